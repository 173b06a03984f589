"""GradRegOptimizer under torch.amp.GradScaler: the loss scale must not change the update."""

from typing import Any

import pytest
import torch
from torch.amp import GradScaler  # pyright: ignore[reportPrivateImportUsage]

from flatopt import GradRegOptimizer
from tests.cases import Problem, distance, gr_step, same, two_phases

RULES: list[dict[str, Any]] = [
    {"strength": 0.1, "eps": 1e-2},
    {"strength": 0.1, "radius": 1e-2},
    {"strength": 0.1, "radius": 1e-2, "difference": "central"},
    {"strength": 0.1, "difference": "exact"},
    {"ratio": 0.5, "eps": 1e-2},
    {"ratio": 0.5, "radius": 1e-2},
    {"ratio": 0.5, "radius": 1e-2, "max_ratio": 0.1},
    {"strength": 0.0},
]


def make(problem: Problem, **rule: Any) -> GradRegOptimizer:
    return GradRegOptimizer(torch.optim.Adam(problem.params, lr=0.1, eps=1e-6), **rule)


def scaled_step(
    problem: Problem, optimizer: GradRegOptimizer, scaler: GradScaler, told: bool = True
) -> None:
    optimizer.zero_grad()
    scaler.scale(problem.loss()).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed(scaler=scaler if told else None):
            scaler.scale(problem.loss()).backward()
    scaler.step(optimizer)
    scaler.update()


def scaler_of(scale: float = 65536.0) -> GradScaler:
    return GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("scale", [65536.0, 3.0])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_update_does_not_depend_on_the_scale(rule: dict[str, Any], scale: float) -> None:
    problem, plain = Problem(torch.float32), Problem(torch.float32)
    optimizer, unscaled = make(problem, **rule), make(plain, **rule)
    scaler = scaler_of(scale)
    for _ in range(3):
        scaled_step(problem, optimizer, scaler)
        gr_step(plain, unscaled, "perturbed")
        assert distance(problem.values(), plain.values()) < 1e-5
        for name, value in unscaled.stats.numbers().items():
            assert optimizer.stats.numbers()[name] == pytest.approx(value, rel=1e-3), name
    assert optimizer.steps_taken == 3


def test_disabled_scaler() -> None:
    problem, plain = Problem(), Problem()
    scaler = GradScaler("cpu", enabled=False)
    scaled_step(problem, make(problem, strength=0.1), scaler)
    gr_step(plain, make(plain, strength=0.1), "perturbed")
    assert same(problem.values(), plain.values())
    optimizer = make(problem, strength=0.1)
    scaler.step(optimizer, problem.closure(optimizer))
    assert optimizer.steps_taken == 1


def test_overflow_skips_the_step_and_lowers_the_scale() -> None:
    problem, fresh = Problem(torch.float32), Problem(torch.float32)
    optimizer, scaler = make(problem, strength=0.1, eps=1e-2), scaler_of(1e38)
    problem.factor = 1e3
    before = problem.values()
    scaled_step(problem, optimizer, scaler)
    assert same(problem.values(), before)
    assert not optimizer.state
    assert optimizer.steps_taken == 0
    assert scaler.get_scale() == pytest.approx(0.5e38)
    assert "not finite" in (optimizer.stats.skipped or "")
    problem.factor = 1.0
    scaler.update(1024.0)
    scaled_step(problem, optimizer, scaler)
    gr_step(fresh, make(fresh, strength=0.1, eps=1e-2), "perturbed")
    assert optimizer.stats.skipped is None
    assert distance(problem.values(), fresh.values()) < 1e-5


def test_clipping_between_unscale_and_step() -> None:
    problem = Problem(torch.float32)
    base = torch.optim.SGD(problem.params, lr=1.0)
    optimizer, scaler = GradRegOptimizer(base, strength=0.1, eps=1e-2), scaler_of()
    before = problem.values()
    scaler.scale(problem.loss()).backward()
    with optimizer.perturbed(scaler=scaler):
        scaler.scale(problem.loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(problem.params, 1e-3)
    scaler.step(optimizer)
    moved = [a - b for a, b in zip(problem.values(), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("strength", [0.1, 0.0])
def test_closure_under_a_scaler(strength: float) -> None:
    problem = Problem()
    optimizer, scaler = make(problem, strength=strength), scaler_of()
    scaler.scale(problem.loss()).backward()
    before = problem.values()
    with pytest.raises(RuntimeError, match=r"with optimizer\.perturbed\(scaler=scaler\):"):
        scaler.step(optimizer, problem.closure(optimizer))
    assert same(problem.values(), before)


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_scaler_that_perturbed_was_not_told_of(rule: dict[str, Any]) -> None:
    problem = Problem()
    before = problem.values()
    optimizer = make(problem, **rule)
    with pytest.raises(RuntimeError, match="that perturbed\\(\\) was not told of"):
        scaled_step(problem, optimizer, scaler_of(), told=False)
    assert same(problem.values(), before)
    two_phases(problem, optimizer)  # and without a scaler it goes on
    optimizer.step()


def test_ratio_of_the_radius_needs_no_scale() -> None:
    problem, plain = Problem(), Problem()
    rule = {"ratio": 0.5, "radius": 1e-2}
    scaled_step(problem, make(problem, **rule), scaler_of(), told=False)
    gr_step(plain, make(plain, **rule), "perturbed")
    assert distance(problem.values(), plain.values()) < 1e-6


def test_unscaled_too_early() -> None:
    problem = Problem()
    optimizer, scaler = make(problem, strength=0.1), scaler_of()
    scaler.scale(problem.loss()).backward()
    scaler.unscale_(optimizer)
    with (
        pytest.raises(RuntimeError, match=r"Call unscale_ \(and clip\) after"),
        optimizer.perturbed(scaler=scaler),
    ):
        pass


def test_step_without_passes_under_a_scaler() -> None:
    problem = Problem()
    optimizer, scaler = make(problem, strength=0.1), scaler_of()
    scaler.scale(problem.loss()).backward()
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        scaler.step(optimizer)
