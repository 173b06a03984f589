"""What must not go wrong in a GradRegOptimizer step: errors, non-finite or missing gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flatopt import GradRegOptimizer
from tests.cases import Problem, gr_step, same


class Interrupted(Exception):
    """Raised by a closure."""


def make(problem: Problem, difference: str = "forward", **options: object) -> GradRegOptimizer:
    base = torch.optim.Adam(problem.params, lr=0.1)
    settings: dict = {"strength": 0.1, "difference": difference, **options}
    return GradRegOptimizer(base, **settings)


def poison(problem: Problem, at: int, how: Callable[[Problem], object]) -> None:
    """Run ``how`` after the forward pass number ``at``."""
    original = problem.loss

    def loss(batch: int = 0) -> Tensor:
        value = original(batch)
        if problem.calls == at:
            how(problem)
            value = value * problem.factor
        return value

    problem.loss = loss  # type: ignore[method-assign]


def interrupt(_: object) -> None:
    raise Interrupted


def make_nan(problem: Problem) -> None:
    problem.factor = float("nan")


def make_inf(problem: Problem) -> None:
    problem.factor = float("inf")


def make_zero(problem: Problem) -> None:
    problem.factor = 0.0


PASSES = [("forward", 2), ("central", 2), ("central", 3), ("exact", 2)]


@pytest.mark.parametrize("how", ["closure", "perturbed"])
@pytest.mark.parametrize(("difference", "at"), PASSES)
def test_error_in_a_pass(difference: str, at: int, how: str) -> None:
    problem = Problem()
    optimizer = make(problem, difference)
    before, pointers = problem.values(), [p.data_ptr() for p in problem.params]
    problem.backward()
    g1 = problem.grads()
    problem.calls = 0
    loss = problem.loss
    poison(problem, at, interrupt)
    with pytest.raises(Interrupted):
        gr_step(problem, optimizer, how)
    assert same(problem.values(), before)
    assert [p.data_ptr() for p in problem.params] == pointers
    assert same(problem.grads(), g1)
    assert "Interrupted" in (optimizer.stats.skipped or "")
    assert not optimizer.state
    # and the next step is that of a fresh optimizer
    problem.loss = loss  # type: ignore[method-assign]
    fresh = Problem()
    gr_step(fresh, make(fresh, difference), how)
    gr_step(problem, optimizer, how)
    assert same(problem.values(), fresh.values())


@pytest.mark.parametrize("how", ["closure", "perturbed"])
@pytest.mark.parametrize("fault", [make_nan, make_inf])
@pytest.mark.parametrize(("difference", "at"), [("forward", 1), *PASSES])
def test_gradient_that_is_not_finite(
    difference: str, at: int, fault: Callable[[Problem], object], how: str
) -> None:
    problem, plain = Problem(), Problem()
    optimizer = make(problem, difference, ratio=1.0, strength=None)
    before, pointers = problem.values(), [p.data_ptr() for p in problem.params]
    loss = problem.loss
    poison(problem, at, fault)
    gr_step(problem, optimizer, how)
    assert "not finite" in (optimizer.stats.skipped or "")
    assert [p.data_ptr() for p in problem.params] == pointers
    if at == 1:  # no step: Adam's moments would be NaN for ever
        assert same(problem.values(), before)
        assert not optimizer.state
    else:  # g1 is sound: a plain step
        base = torch.optim.Adam(plain.params, lr=0.1)
        base.step(plain.closure(base))
        assert same(problem.values(), plain.values())
    problem.loss, problem.factor = loss, 1.0  # type: ignore[method-assign]
    gr_step(problem, optimizer, how)
    assert optimizer.stats.skipped is None
    assert float(optimizer.stats.numbers()["penalty_ratio"]) == pytest.approx(1.0)
    assert all(v.isfinite().all() for v in problem.values())


@pytest.mark.parametrize("exclude", [False, True])
def test_nan_in_one_excluded_or_perturbed_parameter(exclude: bool) -> None:
    problem = Problem()
    optimizer = make(problem, exclude=[problem.params[1]] if exclude else ())
    before = problem.values()
    problem.params[1].register_hook(lambda g: torch.full_like(g, float("nan")))
    optimizer.step(problem.closure(optimizer))
    assert same(problem.values(), before)
    assert "not finite" in (optimizer.stats.skipped or "")


@pytest.mark.parametrize("how", ["closure", "perturbed"])
@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_zero_gradient(difference: str, how: str) -> None:
    problem = Problem()
    optimizer = make(problem, difference)
    before = problem.values()
    problem.factor = 0.0
    gr_step(problem, optimizer, how)
    assert same(problem.values(), before)
    assert "zero" in (optimizer.stats.skipped or "")
    problem.factor = 1.0
    gr_step(problem, optimizer, how)
    assert optimizer.stats.skipped is None


def test_gradient_too_small_to_step_along() -> None:
    p = torch.ones((), requires_grad=True)
    optimizer = GradRegOptimizer(torch.optim.SGD([p], lr=1.0), strength=0.1)
    for _ in range(2):
        p.grad = torch.tensor(1.4e-45)
        with optimizer.perturbed():
            assert p.item() == 1.0
    assert "too small" in (optimizer.stats.skipped or "")


def test_penalty_that_overflows() -> None:
    problem = Problem(torch.float32)
    before = problem.values()
    optimizer = make(problem, strength=1e38)
    gr_step(problem, optimizer, "closure")
    assert "penalty is not finite" in (optimizer.stats.skipped or "")
    assert not same(problem.values(), before)
    assert all(v.isfinite().all() for v in problem.values())


class TwoHeads(nn.Module):
    """A trunk and two heads, of which each pass uses some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 3, dtype=torch.float64)
        self.heads = nn.ModuleList(nn.Linear(3, 1, dtype=torch.float64) for _ in range(2))
        self.x = torch.randn(4, 3, dtype=torch.float64)

    def backward(self, *heads: int) -> None:
        hidden = torch.tanh(self.trunk(self.x))
        sum((self.heads[h](hidden) ** 2).sum() for h in heads).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_parameters_without_a_gradient_in_one_pass(difference: str) -> None:
    net = TwoHeads()
    base = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    optimizer = GradRegOptimizer(base, strength=0.1, difference=difference)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    net.backward(0)
    g1 = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            net.backward(1)  # the other head
    assert optimizer.stats.skipped is not None
    assert "2 parameter(s) had no gradient at theta'" in optimizer.stats.skipped
    assert "2 parameter(s) had no gradient at theta:" in optimizer.stats.skipped
    assert same(dict(net.named_parameters()), before)
    for name, p in net.named_parameters():
        if name.startswith("heads.0"):
            assert p.grad is not None
            assert torch.equal(p.grad, g1[name])
        if name.startswith("heads.1"):
            assert p.grad is None  # g2 alone is no gradient to step along
    optimizer.step()
    after = dict(net.named_parameters())
    assert torch.equal(after["heads.1.weight"], before["heads.1.weight"])
    assert not torch.equal(after["heads.0.weight"], before["heads.0.weight"])


def test_late_gradients_are_cleared_after_an_error() -> None:
    net = TwoHeads()
    optimizer = GradRegOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), strength=0.1)
    net.backward(0)
    net.trunk.weight.register_hook(interrupt)  # the last gradient of the pass
    with pytest.raises(Interrupted), optimizer.perturbed():
        net.backward(1)
    assert net.heads[1].weight.grad is None
    assert net.heads[0].weight.grad is not None


def test_frozen_parameters() -> None:
    problem = Problem()
    problem.model[0].requires_grad_(False)
    before = problem.values()
    optimizer = make(problem)
    gr_step(problem, optimizer, "closure")
    assert optimizer.stats.skipped is None
    assert same(problem.values()[:2], before[:2])
    assert not same(problem.values()[2:], before[2:])
