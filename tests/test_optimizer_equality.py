"""GradRegOptimizer equals the bare base at strength 0, the simple rule otherwise, and SAM."""

import copy
import math

import pytest
import torch

import flatopt.optimizer
import flatopt.passes
from flatopt import GradRegOptimizer, gradient
from tests.cases import (
    BASES,
    Problem,
    distance,
    gr_step,
    make_base,
    problem_for,
    same,
    set_grads,
    two_phases,
)

EPS, STRENGTH = 1e-2, 0.1


def forbidden(*args: object, **named: object) -> None:
    raise AssertionError("a plain step must not make copies")


@pytest.mark.parametrize("how", ["closure", "perturbed"])
@pytest.mark.parametrize("name", sorted(BASES))
def test_strength_zero_is_the_base(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, wrapped = problem_for(name), problem_for(name)
    base = make_base(name, plain.params)
    optimizer = GradRegOptimizer(make_base(name, wrapped.params), strength=0.0)
    monkeypatch.setattr(flatopt.passes, "Window", forbidden)
    monkeypatch.setattr(flatopt.optimizer, "RNGState", forbidden)
    for _ in range(10):
        base.step(plain.closure(base))
        gr_step(wrapped, optimizer, how)
        assert optimizer.stats.skipped is not None
    assert wrapped.calls == plain.calls == 10
    assert same(wrapped.values(), plain.values())
    assert same(optimizer.base.state_dict(), base.state_dict())


@pytest.mark.parametrize("how", ["closure", "perturbed"])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("name", sorted(BASES))
def test_steps_equal_the_simple_rule(name: str, micro: int, how: str) -> None:
    plain, wrapped = problem_for(name), problem_for(name)
    base = make_base(name, plain.params)
    optimizer = GradRegOptimizer(make_base(name, wrapped.params), strength=STRENGTH, eps=EPS)
    for _ in range(3):
        set_grads(plain.params, plain.simple(STRENGTH, EPS, micro))
        base.step()
        gr_step(wrapped, optimizer, how, micro)
        assert optimizer.stats.skipped is None
    assert distance(wrapped.values(), plain.values()) < 1e-12


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradient_equals_the_simple_rule(dtype: torch.dtype, tolerance: float, micro: int) -> None:
    problem = Problem(dtype)
    expected = problem.simple(EPS, EPS, micro)
    optimizer = GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1), strength=EPS, eps=EPS)
    two_phases(problem, optimizer, micro)
    assert distance(problem.grads(), expected) < tolerance


@pytest.mark.parametrize("radius", [1e-2, 1e-4])
def test_radius_is_relative_to_the_parameters(radius: float) -> None:
    problem = Problem()
    problem.backward()
    eps = radius * float(
        torch.cat([p.detach().flatten() for p in problem.params]).norm()
        / torch.cat([g.flatten() for g in problem.grads()]).norm()
    )
    expected = problem.simple(STRENGTH, eps)
    base = torch.optim.SGD(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(base, strength=STRENGTH, radius=radius)
    two_phases(problem, optimizer)
    # the shift of relative length 1e-4 loses 4 of 16 digits in the difference
    assert distance(problem.grads(), expected) < 1e-11
    assert optimizer.stats.radius == pytest.approx(radius)


@pytest.mark.parametrize("multiple", [1.0, 5.0])
def test_sam(multiple: float) -> None:
    # strength = k * eps is k * g2 - (k - 1) * g1; k = 1 is un-normalised SAM
    problem = Problem()
    shifted = problem.copy()
    problem.backward()
    g1 = problem.grads()
    with torch.no_grad():
        for p, g in zip(shifted.params, g1, strict=True):
            p.add_(g, alpha=EPS)
    shifted.backward()
    expected = [multiple * b - (multiple - 1) * a for a, b in zip(g1, shifted.grads(), strict=True)]
    base = torch.optim.SGD(problem.params, lr=0.1)
    two_phases(problem, GradRegOptimizer(base, strength=multiple * EPS, eps=EPS))
    assert distance(problem.grads(), expected) < 1e-14


@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_both_ways_of_stepping_agree(difference: str) -> None:
    problem = Problem()
    other = problem.copy()
    for each, how in ((problem, "closure"), (other, "perturbed")):
        base = torch.optim.Adam(each.params, lr=0.1)
        optimizer = GradRegOptimizer(base, strength=0.1, difference=difference)
        for _ in range(3):
            gr_step(each, optimizer, how)
    assert same(problem.values(), other.values())


def test_closure_that_does_not_clear_accumulates_once() -> None:
    # as in the base, the first call adds to what was there; the passes begin empty
    problem = Problem()
    base = torch.optim.SGD(problem.params, lr=0.0)
    optimizer = GradRegOptimizer(base, strength=EPS, eps=EPS)
    expected = problem.simple(EPS, EPS)
    optimizer.step(lambda: float(problem.backward()))
    assert distance(problem.grads(), expected) < 1e-12


def test_stats_of_a_quadratic() -> None:
    # L = w'Aw/2 with A = diag(1, 3), w = (1, 1): g = (1, 3), Hg = (1, 9)
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)
    optimizer = GradRegOptimizer(torch.optim.SGD([w], lr=0.0), strength=0.5, eps=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0.5 * (scale * w**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([1.5, 7.5])
    g2 = torch.tensor([1.1, 3.9])
    assert optimizer.stats.numbers() == pytest.approx(
        {
            "grad_norm": 10**0.5,
            "perturbed_grad_norm": float(g2.norm()),
            "penalty_norm": 0.5 * 82**0.5,
            "penalty_ratio": 0.5 * 82**0.5 / 10**0.5,
            "strength": 0.5,
            "cosine": (1.1 + 11.7) / (10**0.5 * float(g2.norm())),
            "curvature": 28 / 10,
            "realised_step": 1.0,
            "radius": 0.1 * 10**0.5 / 2**0.5,
            # between (1, 3) and (1.5, 7.5)
            "reversed": 0.0,
            "turn": math.atan2(7.5, 1.5) - math.atan2(3.0, 1.0),
        }
    )
    assert optimizer.stats.skipped is None


@pytest.mark.parametrize("difference", ["central", "exact"])
def test_stats_agree_across_differences(difference: str) -> None:
    numbers = {}
    for kind in ("forward", difference):
        problem = Problem()
        base = torch.optim.SGD(problem.params, lr=0.1)
        optimizer = GradRegOptimizer(base, strength=0.1, difference=kind)
        gr_step(problem, optimizer, "closure")
        numbers[kind] = optimizer.stats.numbers()
    for name, value in numbers[difference].items():
        assert value == pytest.approx(numbers["forward"][name], rel=1e-5), name


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_stats_of_the_shifted_gradient(difference: str) -> None:
    problem, shifted = Problem(), Problem()
    base = torch.optim.SGD(problem.params, lr=0.0)
    optimizer = GradRegOptimizer(base, strength=0.1, eps=EPS, difference=difference)
    gr_step(problem, optimizer, "closure")
    with torch.no_grad():
        g1 = gradient(shifted.backward, shifted.params)
        for p, g in zip(shifted.params, g1, strict=True):
            p.add_(g, alpha=EPS)
    shifted.backward()
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (g1, shifted.grads()))
    assert float(b.norm() / a.norm()) > 1.005
    numbers = optimizer.stats.numbers()
    assert numbers["perturbed_grad_norm"] == pytest.approx(float(b.norm()), rel=1e-3)
    assert numbers["cosine"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), rel=1e-4)


def test_parameters_of_odd_shapes_and_layouts() -> None:
    # 0-dim, empty, transposed and mixed dtypes in one optimizer
    torch.manual_seed(0)
    params = [
        torch.tensor(2.0, dtype=torch.float64, requires_grad=True),
        torch.empty(0, 3, requires_grad=True),
        torch.randn(4, 3, dtype=torch.float64).t().requires_grad_(),
        torch.randn(3, requires_grad=True),
        torch.randn(3, 2).bfloat16().requires_grad_(),
    ]
    before = [p.detach().clone() for p in params]

    def loss() -> torch.Tensor:
        total = sum((p.double() ** 2).sum() + (p.double() ** 3).sum() for p in params)
        assert isinstance(total, torch.Tensor)
        return total

    sgd = torch.optim.SGD(params, lr=0.0)
    optimizer = GradRegOptimizer(sgd, strength=0.1, radius=1e-2, difference="forward")
    loss().backward()
    g1 = [p.grad.clone() for p in params if p.grad is not None]
    with optimizer.perturbed():
        moved = [not torch.equal(a, b) for a, b in zip(before, params, strict=True)]
        loss().backward()
    assert moved == [True, False, True, True, True]
    assert same([p.detach() for p in params], before)
    for p, g, value in zip(params, g1, before, strict=True):
        assert p.grad is not None
        assert p.grad.dtype == p.dtype
        if p.dtype != torch.bfloat16 and p.numel():  # a 16-bit shift is mostly rounding here
            expected = g.double() * (1 + 0.1 * (2 + 6 * value.double()))
            assert distance([p.grad], [expected]) < 0.02


def test_tied_parameters_move_once() -> None:
    problem = Problem()
    layer = torch.nn.Linear(5, 5, bias=False, dtype=torch.float64)
    problem.model = torch.nn.Sequential(problem.model[0], layer, layer, problem.model[2])
    problem.params = list(problem.model.parameters())
    assert len(problem.params) == 5
    expected = problem.simple(STRENGTH, EPS)
    base = torch.optim.SGD(problem.params, lr=0.1)
    two_phases(problem, GradRegOptimizer(base, strength=STRENGTH, eps=EPS))
    assert distance(problem.grads(), expected) < 1e-12


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model(backend: str) -> None:
    problem = Problem()
    compiled = copy.deepcopy(problem)
    compiled.model.compile(backend=backend)
    compiled.params = list(compiled.model.parameters())
    for each in (problem, compiled):
        optimizer = GradRegOptimizer(torch.optim.Adam(each.params, lr=0.1), strength=0.1, eps=EPS)
        for _ in range(3):
            gr_step(each, optimizer, "closure")
    assert distance(compiled.values(), problem.values()) < 1e-12
