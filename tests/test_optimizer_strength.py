"""How strong the penalty is in each step: ratio, max_ratio, warmup, every, callables; dropout."""

from typing import Any

import pytest
import torch
from torch import nn

from flatopt import CosineStrength, GradRegOptimizer, LinearStrength
from tests.cases import Problem, distance, gr_step, same


def make(problem: Problem, **options: Any) -> GradRegOptimizer:
    return GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1), **options)


def strengths(steps: int, **options: Any) -> list[float]:
    """The strength that each step used, and the extra passes it took."""
    problem, used = Problem(), []
    optimizer = make(problem, **options)
    for _ in range(steps):
        before = problem.calls
        gr_step(problem, optimizer, "closure")
        used.append(optimizer.stats.numbers()["strength"])
        assert problem.calls - before == (2 if used[-1] else 1)
        assert (optimizer.stats.skipped is None) == (used[-1] > 0)
    return used


@pytest.mark.parametrize("ratio", [0.25, 1.0, 3.0])
def test_first_step_has_the_ratio_asked_for(ratio: float) -> None:
    problem = Problem()
    optimizer = make(problem, ratio=ratio)
    gr_step(problem, optimizer, "closure")
    numbers = optimizer.stats.numbers()
    assert numbers["penalty_ratio"] == pytest.approx(ratio)
    assert numbers["penalty_norm"] == pytest.approx(ratio * numbers["grad_norm"])


def test_default_is_ratio_one() -> None:
    problem, other = Problem(), Problem()
    gr_step(problem, make(problem), "closure")
    gr_step(other, make(other, ratio=1.0), "closure")
    assert same(problem.values(), other.values())


def test_ratio_does_not_depend_on_the_scale_of_the_loss() -> None:
    ratios = []
    for factor in (1.0, 1000.0):
        problem = Problem()
        problem.factor = factor
        optimizer = GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1 / factor), ratio=0.5)
        seen = []
        for _ in range(5):
            gr_step(problem, optimizer, "closure")
            seen.append(optimizer.stats.numbers()["penalty_ratio"])
        ratios.append(seen)
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)


def test_ratio_follows_moving_averages() -> None:
    problem = Problem()
    optimizer = make(problem, ratio=0.5)
    grad = product = 0.0
    for _ in range(4):
        gr_step(problem, optimizer, "closure")
        n = optimizer.stats.numbers()
        grad = 0.9 * grad + 0.1 * n["grad_norm"]
        product = 0.9 * product + 0.1 * n["penalty_norm"] / n["strength"]
        assert n["strength"] == pytest.approx(0.5 * grad / product)
    own = optimizer.state_dict()["gradreg"]
    assert own == pytest.approx({"steps_taken": 4, "grad_norm": grad, "product_norm": product})


def test_ratio_of_a_linear_loss() -> None:
    w = torch.ones(3, requires_grad=True)
    optimizer = GradRegOptimizer(torch.optim.SGD([w], lr=1.0), ratio=1.0, radius=0.25)

    def closure() -> float:
        optimizer.zero_grad()
        w.sum().backward()
        return 0.0

    optimizer.step(closure)
    assert w.tolist() == [0.0, 0.0, 0.0]
    assert "or the loss is linear here" in (optimizer.stats.skipped or "")
    optimizer.step(closure)  # all weights zero: the shift is `radius` long in itself
    assert w.tolist() == [-1.0, -1.0, -1.0]
    assert optimizer.stats.numbers()["radius"] == pytest.approx(0.25)


@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_a_step_without_curvature_leaves_the_averages(difference: str) -> None:
    # L = c w'w/2 + w: with c = 0 for some steps, the strength of the next is what it would be
    used = []
    for gap in (0, 5):
        w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = GradRegOptimizer(torch.optim.SGD([w], lr=0.0), difference=difference)
        seen = []
        for curvature in (2.0, *[0.0] * gap, 2.0):

            def closure(w: torch.Tensor = w, curvature: float = curvature) -> float:
                w.grad = None
                (0.5 * curvature * w**2 + w).sum().backward()
                return 0.0

            optimizer.step(closure)
            if curvature:
                seen.append(optimizer.stats.numbers()["strength"])
        used.append(seen)
    assert used[1] == pytest.approx(used[0])


@pytest.mark.parametrize("rule", [{"strength": 100.0}, {"ratio": 100.0}])
def test_max_ratio(rule: dict[str, float]) -> None:
    problem, free = Problem(), Problem()
    optimizer = make(problem, max_ratio=0.7, **rule)
    gr_step(problem, optimizer, "closure")
    numbers = optimizer.stats.numbers()
    assert numbers["penalty_ratio"] == pytest.approx(0.7)
    optimizer = make(free, strength=numbers["strength"])
    gr_step(free, optimizer, "closure")
    assert distance(problem.values(), free.values()) < 1e-12
    optimizer = make(free, strength=1e-6, max_ratio=0.7)
    gr_step(free, optimizer, "closure")
    assert optimizer.stats.numbers()["strength"] == 1e-6


def test_schedules() -> None:
    assert strengths(4, strength=0.3) == [0.3] * 4
    assert strengths(4, strength=0.3, every=2) == [0.3, 0.0, 0.3, 0.0]
    assert strengths(4, strength=0.3, warmup=2) == [0.0, 0.15, 0.3, 0.3]
    assert strengths(5, strength=0.4, warmup=4, every=3) == pytest.approx([0, 0, 0, 0.3, 0])
    assert strengths(3, strength=lambda step: 0.1 * step) == pytest.approx([0.0, 0.1, 0.2])
    assert strengths(3, strength=LinearStrength(0.2, 0.0, 2)) == pytest.approx([0.2, 0.1, 0.0])
    assert strengths(3, strength=CosineStrength(0.2, 0.0, 2)) == pytest.approx([0.2, 0.1, 0.0])
    assert strengths(2, ratio=0.0) == [0.0, 0.0]


def test_warmup_of_the_ratio() -> None:
    problem = Problem()
    optimizer = make(problem, ratio=0.5, warmup=4)
    gr_step(problem, optimizer, "closure")
    assert optimizer.stats.numbers() == {"strength": 0.0}
    gr_step(problem, optimizer, "closure")
    assert optimizer.stats.numbers()["penalty_ratio"] == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("reason", ["every=2", "the strength is 0"])
def test_plain_steps_say_why(reason: str) -> None:
    problem = Problem()
    options = {"every": 2} if reason == "every=2" else {"warmup": 2, "strength": 1.0}
    optimizer = make(problem, **options)
    for _ in range(2 if reason == "every=2" else 1):
        gr_step(problem, optimizer, "perturbed")
    assert reason in (optimizer.stats.skipped or "")


# ---- random numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_closures_draw_the_same_dropout(difference: str) -> None:
    problem, plain = Problem(layer=nn.Dropout(0.5)), Problem(layer=nn.Dropout(0.5))
    optimizer = make(problem, strength=1e-9, eps=1e-6, difference=difference)
    torch.manual_seed(1)
    gr_step(problem, optimizer, "closure", micro=3)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    base = torch.optim.SGD(plain.params, lr=0.1)
    base.step(plain.closure(base, 3))
    # the stream goes on as after one pass
    assert torch.equal(after, torch.get_rng_state())
    assert distance(problem.values(), plain.values()) < 1e-8
    if difference != "exact":
        numbers = optimizer.stats.numbers()
        product = numbers["penalty_norm"] / numbers["strength"]
        assert 1e-6 * product / numbers["grad_norm"] < 1e-4  # |g2 - g1| / |g1|
        assert numbers["cosine"] == pytest.approx(1.0)


def test_random_numbers_go_on_after_an_error() -> None:
    problem = Problem(layer=nn.Dropout(0.5))
    optimizer = make(problem, strength=0.1)
    torch.manual_seed(1)
    problem.copy().loss()
    after = torch.get_rng_state()
    torch.manual_seed(1)

    def closure() -> float:
        if problem.calls == 1:
            raise ZeroDivisionError  # before the second pass draws anything
        return problem.closure(optimizer)()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), after)
