"""Misuse that must fail loudly: phases out of order, bad settings; and what exclude means."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flatopt import GradRegOptimizer
from tests.cases import Problem, gr_step, same, two_phases


def make(problem: Problem, difference: str = "forward", **options: object) -> GradRegOptimizer:
    base = torch.optim.Adam(problem.params, lr=0.1)
    settings: dict = {"strength": 0.1, "difference": difference, **options}
    return GradRegOptimizer(base, **settings)


# ---- two phases, misused ------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "passes"), [("forward", 0), ("central", 1)])
def test_step_before_all_passes(difference: str, passes: int) -> None:
    problem = Problem()
    optimizer = make(problem, difference)
    problem.backward()
    g1 = problem.grads()
    for _ in range(passes):
        with optimizer.perturbed():
            problem.backward()
    with pytest.raises(RuntimeError, match=r"with optimizer\.perturbed\(\):"):
        optimizer.step()
    assert same(problem.grads(), g1)
    two_phases(problem, optimizer)  # and all is as before
    optimizer.step()


def test_perturbed_twice() -> None:
    problem = Problem()
    optimizer = make(problem)
    two_phases(problem, optimizer)
    with pytest.raises(RuntimeError, match="already used"), optimizer.perturbed():
        pass
    optimizer.step()


def test_perturbed_inside_perturbed() -> None:
    problem = Problem()
    optimizer = make(problem)
    before = problem.values()
    problem.backward()
    with (
        pytest.raises(RuntimeError, match="inside perturbed"),
        optimizer.perturbed(),
        optimizer.perturbed(),
    ):
        pass
    assert same(problem.values(), before)


def test_perturbed_without_gradients() -> None:
    problem = Problem()
    with pytest.raises(RuntimeError, match=r"call backward\(\)"), make(problem).perturbed():
        pass


def test_perturbed_at_strength_zero_keeps_g1() -> None:
    problem = Problem()
    optimizer = make(problem, strength=0.0)
    problem.backward()
    g1, values = problem.grads(), problem.values()
    with optimizer.perturbed():
        assert same(problem.values(), values)
        problem.backward(3)
    assert same(problem.grads(), g1)
    optimizer.step()


def test_combined_gradient_thrown_away() -> None:
    # a loop that drops a step (a scaler, a NaN guard) clears the gradients and goes on
    problem, fresh = Problem(), Problem()
    optimizer = make(problem)
    two_phases(problem, optimizer)
    two_phases(problem, optimizer)
    optimizer.step()
    gr_step(fresh, make(fresh), "closure")
    assert same(problem.values(), fresh.values())
    two_phases(problem, optimizer)
    gr_step(problem, optimizer, "closure")
    assert optimizer.stats.skipped is None
    assert problem.calls == 8


def test_closure_that_only_reports_the_loss() -> None:
    problem = Problem()
    optimizer = make(problem)
    two_phases(problem, optimizer)
    combined = problem.grads()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert same(problem.grads(), combined)


# ---- steps that were begun and dropped ----------------------------------------------------------

CLEARING: dict[str, Callable[[Problem, GradRegOptimizer], None]] = {
    "optimizer": lambda problem, optimizer: optimizer.zero_grad(),
    "optimizer in place": lambda problem, optimizer: optimizer.zero_grad(set_to_none=False),
    "model": lambda problem, optimizer: problem.model.zero_grad(),  # as the HF Trainer does
}


@pytest.mark.parametrize("clear", CLEARING)
def test_one_pass_of_two_is_forgotten_with_its_batch(clear: str) -> None:
    problem, fresh = Problem(), Problem()
    optimizer = make(problem, "central")
    problem.loss(0).backward()
    with optimizer.perturbed():
        problem.loss(0).backward()
    CLEARING[clear](problem, optimizer)
    problem.loss(1).backward()
    with optimizer.perturbed():  # the first of two, not the second of the other batch
        problem.loss(1).backward()
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()
    # and whole steps after such a beginning are those of a fresh optimizer
    for each, which in ((problem, optimizer), (fresh, make(fresh, "central"))):
        CLEARING[clear](each, which)
        each.loss(1).backward()
        for _ in range(2):
            with which.perturbed():
                each.loss(1).backward()
        which.step()
    assert same(problem.values(), fresh.values())


def test_gradients_that_change_between_two_passes() -> None:
    for clear in (True, False):  # in place by the model, which cannot be told from not at all
        problem = Problem()
        optimizer = make(problem, "central")
        problem.backward()
        with optimizer.perturbed():
            problem.backward()
        if clear:
            problem.model.zero_grad(set_to_none=False)
        problem.loss(1).backward()
        with (
            pytest.raises(RuntimeError, match=r"between two passes.*optimizer\.zero_grad\(\)"),
            optimizer.perturbed(),
        ):
            pass
        two_phases(problem, optimizer)
        optimizer.step()


@pytest.mark.parametrize("clear", CLEARING)
@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_finished_passes_do_not_count_for_the_next_batch(difference: str, clear: str) -> None:
    problem = Problem()
    optimizer = make(problem, difference)
    before = problem.values()
    two_phases(problem, optimizer)
    CLEARING[clear](problem, optimizer)
    problem.loss(1).backward()
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()
    assert same(problem.values(), before)
    fresh = Problem()
    for each, which in ((problem, optimizer), (fresh, make(fresh, difference))):
        gr_step(each, which, "closure")
    assert same(problem.values(), fresh.values())


@pytest.mark.parametrize("clear", CLEARING)
def test_a_dropped_nan_batch_does_not_stop_the_next_step(clear: str) -> None:
    problem, fresh = Problem(), Problem()
    optimizer = make(problem)
    problem.factor = float("nan")
    two_phases(problem, optimizer)
    assert "not finite" in (optimizer.stats.skipped or "")
    problem.factor = 1.0
    CLEARING[clear](problem, optimizer)
    problem.backward()
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()
    with optimizer.perturbed():
        problem.backward()
    optimizer.step()
    gr_step(fresh, make(fresh), "perturbed")
    assert same(problem.values(), fresh.values())
    # where the next step is a plain one, it is taken
    problem.factor = float("nan")
    two_phases(problem, optimizer)
    problem.factor, optimizer.strength = 1.0, 0.0
    before = problem.values()
    CLEARING[clear](problem, optimizer)
    problem.backward()
    optimizer.step()
    assert not same(problem.values(), before)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_passes_for_each_micro_batch(difference: str) -> None:
    problem = Problem()
    optimizer = make(problem, difference)
    two_phases(problem, optimizer)
    problem.loss(1).backward()  # added to the combined gradient
    with pytest.raises(RuntimeError, match="already used"), optimizer.perturbed():
        pass


def test_a_closure_after_passes_that_were_dropped() -> None:
    for clear in (True, False):
        problem, fresh = Problem(), Problem()
        optimizer = make(problem, "central")
        problem.backward()
        for _ in range(2 if clear else 1):
            with optimizer.perturbed():
                problem.backward()

        def closure(problem: Problem = problem, in_place: bool = clear) -> torch.Tensor:
            problem.model.zero_grad(set_to_none=not in_place)
            return problem.backward()

        optimizer.step(closure)  # type: ignore[arg-type]
        gr_step(fresh, make(fresh, "central"), "closure")
        assert same(problem.values(), fresh.values())


def test_a_combined_gradient_is_changed_in_place_only() -> None:
    problem = Problem()
    optimizer = make(problem)
    two_phases(problem, optimizer)
    torch.nn.utils.clip_grad_norm_(problem.params, 1e-3)
    problem.params[0].grad = None  # a single one may be left out
    optimizer.step()
    two_phases(problem, optimizer)
    for p in problem.params:
        assert p.grad is not None
        p.grad = p.grad / 2
    with pytest.raises(RuntimeError, match="change it in place"):
        optimizer.step()


# ---- gradients that GR refuses ------------------------------------------------------------------


def test_sparse_gradients() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = GradRegOptimizer(torch.optim.SGD(table.parameters(), lr=0.1), strength=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"), optimizer.perturbed():
        pass
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        optimizer.step()


def test_complex_parameters() -> None:
    p = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    optimizer = GradRegOptimizer(torch.optim.SGD([p], lr=0.1), strength=0.1)
    p.abs().sum().backward()
    with pytest.raises(ValueError, match="view_as_real"), optimizer.perturbed():
        pass
