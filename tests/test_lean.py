"""memory="lean": the same gradient with one buffer; what it refuses and cannot bring back."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from flatopt import GradRegOptimizer
from tests.cases import Problem, distance, same, two_phases


def optimizer_for(problem: Problem, **options: Any) -> GradRegOptimizer:
    settings: dict[str, Any] = {"strength": 0.3, "radius": 1e-5, "memory": "lean"} | options
    return GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1), **settings)


def combined(problem: Problem, micro: int = 1, **options: Any) -> list[Tensor]:
    two_phases(problem, optimizer_for(problem, **options), micro)
    return problem.grads()


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize(("difference", "error"), [("forward", 1e-10), ("central", 2e-3)])
def test_equals_fast(difference: str, error: float, micro: int) -> None:
    # central keeps its direction in 16 bits: H of a gradient rounded by 2^-9
    lean, fast = (
        combined(Problem(), micro, difference=difference, memory=memory)
        for memory in ("lean", "fast")
    )
    assert distance(lean, fast) < error


@pytest.mark.parametrize("strength", [1e-3, 0.3, 30.0])
def test_equals_simple_in_float32(strength: float) -> None:
    problem, exact = Problem(torch.float32), Problem()
    found = combined(problem, strength=strength, radius=1e-3)
    assert distance(found, combined(exact, strength=strength, radius=1e-3, memory="fast")) < 1e-3


def test_strength_that_leaves_nothing_of_the_first_gradient() -> None:
    # strength == eps: the sum is g2 alone
    problem, other = Problem(), Problem()
    found = combined(problem, strength=1e-2, eps=1e-2, radius=None)
    assert distance(found, other.simple(1e-2, 1e-2)) < 1e-12


def test_a_closure_may_clear_the_gradients() -> None:
    lean, fast = Problem(), Problem()
    for problem, memory in ((lean, "lean"), (fast, "fast")):
        optimizer = optimizer_for(problem, memory=memory)
        for _ in range(3):
            optimizer.step(problem.closure(optimizer))
    assert distance(lean.values(), fast.values()) < 1e-10


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_model_zero_grad_inside_a_pass(difference: str) -> None:
    # set to None, the first gradient is still known; emptied in place, it is gone
    lean = Problem()
    optimizer = optimizer_for(lean, difference=difference)
    lean.backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            lean.model.zero_grad()
            lean.backward()
    expected = combined(Problem(), difference=difference)
    assert distance(lean.grads(), expected) < 1e-12


def test_gradients_emptied_in_place_inside_a_pass_are_missed() -> None:
    problem = Problem()
    optimizer, before = optimizer_for(problem), problem.values()
    problem.backward()
    cleared = pytest.raises(RuntimeError, match=r"other means than optimizer\.zero_grad")
    with cleared, optimizer.perturbed():
        problem.model.zero_grad(set_to_none=False)
        problem.backward()
    assert same(problem.values(), before)


def test_numbers_are_those_of_fast_where_the_sample_is_all() -> None:
    numbers = []
    for memory in ("lean", "fast"):
        problem = Problem()
        optimizer = optimizer_for(problem, memory=memory)
        two_phases(problem, optimizer)
        numbers.append(optimizer.stats.numbers())
        assert optimizer.stats.skipped is None
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def test_ratio_follows_the_averages_up_to_the_last_step() -> None:
    lean = Problem()
    late = optimizer_for(lean, strength=None, ratio=0.5)
    used, known = [], []
    for _ in range(4):
        late.step(lean.closure(late))
        used.append(late.stats.numbers()["strength"])
        rule = late.ratio_rule
        assert rule is not None
        known.append(rule.last)
    assert used[0] < 1e-2 * known[0]  # nothing is known yet: hardly any penalty
    assert used[1:] == pytest.approx(known[:-1])
    # lagging, but the same averages as usual on the same way
    assert used[1:] == pytest.approx(used[1:2] * 3, rel=0.5)


def test_an_error_in_a_pass_costs_the_batch_and_nothing_else() -> None:
    problem, other = Problem(), Problem()
    optimizer, before = optimizer_for(problem), problem.values()
    problem.backward()
    with pytest.raises(ZeroDivisionError), optimizer.perturbed():  # noqa: PT012
        problem.backward()
        raise ZeroDivisionError
    assert same(problem.values(), before)
    assert all(p.grad is None for p in problem.params)
    two_phases(problem, optimizer)
    assert distance(problem.grads(), combined(other)) < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1, 2])
def test_what_is_not_finite_is_not_stepped_on(bad: float, at: int) -> None:
    problem = Problem()
    optimizer, before = optimizer_for(problem), problem.values()
    problem.factor = bad if at == 1 else 1.0
    problem.backward()
    with optimizer.perturbed():
        problem.factor = bad
        problem.backward()
    optimizer.step()
    assert same(problem.values(), before)
    assert "did not step" in (optimizer.stats.skipped or "")


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_a_parameter_without_second_gradient_steps_with_its_first(difference: str) -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, difference=difference)
    problem.backward()
    g1 = problem.grads()
    last = problem.params[-1]
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            last.requires_grad_(False)
            problem.backward()
            last.requires_grad_(True)
    assert last.grad is not None
    assert distance([last.grad], [g1[-1]]) < 1e-12
    assert "step with g1" in (optimizer.stats.skipped or "")
    assert distance(problem.grads()[:-1], g1[:-1]) > 1e-2


def test_excluded_parameters_keep_their_first_gradient() -> None:
    problem = Problem()
    out = problem.params[-1]
    optimizer = optimizer_for(problem, exclude=[out])
    problem.backward()
    g1 = problem.grads()
    with optimizer.perturbed():
        problem.backward()
    assert same(problem.grads()[-1], g1[-1])
    assert distance(problem.grads()[:-1], g1[:-1]) > 1e-2


@pytest.mark.parametrize(
    "options", [{"difference": "exact"}, {"batch": "halves"}, {"max_ratio": 1.0}]
)
def test_refusals(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Use memory='fast'"):
        optimizer_for(Problem(), **options)


# ---- 16-bit weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_equal_fast_bit_for_bit(dtype: torch.dtype, difference: str) -> None:
    found, numbers = [], []
    for memory in ("lean", "fast"):
        problem = Problem(dtype)
        optimizer = optimizer_for(problem, memory=memory, difference=difference, radius=1e-2)
        before = problem.values()
        two_phases(problem, optimizer)
        assert same(problem.values(), before)
        found.append(problem.grads())
        numbers.append(optimizer.stats.numbers())
    assert same(*found)
    numbers[1].pop("reversed")  # g1 is used up when it could be counted
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_16_bit_weights_take_one_backward_pass() -> None:
    problem = Problem(torch.bfloat16)
    optimizer = optimizer_for(problem, difference="forward", radius=1e-2)
    before = problem.values()
    with pytest.raises(RuntimeError, match="Use one backward pass per block"):
        two_phases(problem, optimizer, micro=2)
    assert same(problem.values(), before)
    assert all(p.grad is None for p in problem.params)
    two_phases(problem, optimizer)  # usable afterwards
    assert optimizer.stats.skipped is None


def test_16_bit_weights_are_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatopt.lean._processes", lambda: 2)
    problem = Problem(torch.bfloat16)
    problem.backward()
    with (
        pytest.raises(RuntimeError, match="needs a single process"),
        optimizer_for(problem, difference="forward").perturbed(),
    ):
        pass


def test_16_bit_weights_written_to_inside_a_pass_are_missed() -> None:
    problem = Problem(torch.bfloat16)
    optimizer = optimizer_for(problem, difference="forward")
    problem.backward()
    written = pytest.raises(RuntimeError, match="written to inside perturbed")
    with written, optimizer.perturbed():
        problem.backward()
        with torch.no_grad():
            problem.params[0].add_(1.0)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_a_strength_beyond_float32_leaves_a_plain_step(difference: str) -> None:
    problem = Problem(torch.float32)
    optimizer = optimizer_for(problem, strength=1e38, radius=1e-6, difference=difference)
    problem.backward()
    g1 = problem.grads()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            problem.backward()
    assert same(problem.grads(), g1)
    assert "the step is plain" in (optimizer.stats.skipped or "")


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_a_gradient_that_is_replaced_is_refused(difference: str) -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, difference=difference)
    problem.backward()
    replaced = pytest.raises(RuntimeError, match="put another tensor into")
    with replaced, optimizer.perturbed(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*create_graph=True.*")
        problem.loss().backward(create_graph=True)
    for p in problem.params:
        p.grad = None


def test_a_vanishing_strength_is_a_plain_step() -> None:
    problem = Problem(torch.float32)
    optimizer = optimizer_for(problem, strength=1e-42)
    problem.backward()
    g1 = problem.grads()
    with optimizer.perturbed():
        problem.backward()
    assert same(problem.grads(), g1)
    assert optimizer.stats.skipped == "the strength is 0"


@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_a_sum_beyond_float16_is_not_stepped_on(memory: str) -> None:
    problem = Problem(torch.float16)
    optimizer = optimizer_for(
        problem, strength=1e6, radius=1e-2, difference="forward", memory=memory
    )
    two_phases(problem, optimizer)
    optimizer.step()
    assert "finite" in (optimizer.stats.skipped or "")
    assert all(p.isfinite().all() for p in problem.params)
