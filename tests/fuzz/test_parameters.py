"""Random parameters: a step's passes change nothing but .grad, which holds g1 + strength * H g1."""

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fuzz import examples, on_path
from tests.fuzz.oracle import gradient, hessian_times, length
from tests.fuzz.problems import Case, cases
from tests.fuzz.steps import (
    STRENGTHS,
    WIDE,
    Passes,
    adds_up,
    excluded_ones,
    lost_in_adding,
    make,
    radius_used,
    rounding,
    ways,
)

# torch's remark on speed, which comes once, for some empty gradients of a graph
pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey")


@examples(400)
@given(
    data=st.data(),
    case=cases(),
    strength=STRENGTHS,
    radius=st.sampled_from([None, 1e-2]),
    way=ways(),
)
def test_passes_change_nothing_but_gradients(
    data: st.DataObject,
    case: Case,
    strength: float,
    radius: float | None,
    way: tuple[str, dict[str, Any], str],
) -> None:
    difference, mode, path = way
    excluded = data.draw(excluded_ones(case))
    optimizer = make(case, excluded, strength, radius, difference, mode)
    with on_path(path):
        passes = Passes(case, optimizer)
    assert passes.after == passes.before
    live = case.live()
    for i, (p, g1) in enumerate(zip(case.params, passes.g1, strict=True)):
        assert (p.grad is not None) == (i in live)
        if p.grad is not None:
            assert (p.grad.dtype, p.grad.shape) == (p.dtype, p.shape)
            assert not p.grad.requires_grad
            assert p.grad.isfinite().all()
            if i in excluded:
                assert g1 is not None
                assert torch.equal(p.grad, g1)
    for point in passes.points:
        for i, (value, theta) in enumerate(zip(point, passes.theta, strict=True)):
            if i not in live or i in excluded:
                assert torch.equal(value, theta)
    # and the base steps with what is in .grad
    for twin, p in zip(passes.theta, case.params, strict=True):
        twin.grad = None if p.grad is None else p.grad.clone()
    optimizer.step()
    torch.optim.SGD(passes.theta, lr=0.1).step()
    for p, twin in zip(case.params, passes.theta, strict=True):
        assert torch.equal(p, twin)


@examples(400)
@given(
    data=st.data(),
    case=cases(),
    strength=STRENGTHS,
    radius=st.sampled_from([None, 1e-4, 1e-2]),
    way=ways(exact=False),
    buffers=st.booleans(),
)
def test_gradient_is_the_difference_at_the_weights_that_were_used(
    data: st.DataObject,
    case: Case,
    strength: float,
    radius: float | None,
    way: tuple[str, dict[str, Any], str],
    buffers: bool,
) -> None:
    # exact for 16 bits as well: both gradients are taken at the rounded weights
    difference, mode, path = way
    excluded = data.draw(excluded_ones(case))
    optimizer = make(case, excluded, strength, radius, difference, mode)
    with on_path(path):
        passes = Passes(case, optimizer, buffers)
    live = case.live()
    moved = [i for i in live if i not in excluded]
    theta = [passes.theta[i] for i in moved]
    g1 = [g.double() for i in moved if (g := passes.g1[i]) is not None]
    if length(g1) == 0.0:
        assert optimizer.stats.skipped == "the gradient is zero"
        return
    eps = radius_used(radius, theta) * length(theta) / length(g1)
    dtypes = [t.dtype for t in theta]
    adding = adds_up(mode, dtypes)
    kept = [g.bfloat16().double() for g in g1] if adding and difference == "central" else g1
    for sign, point in zip((1.0, -1.0), passes.points, strict=False):
        shifts = [sign * eps * g for g in kept]
        targets = [t.double() + s for t, s in zip(theta, shifts, strict=True)]
        found = [point[i].double() for i in moved]
        error = length([a - b for a, b in zip(found, targets, strict=True)])
        # one ulp, and the shift itself computed with 24 bits
        allowed = rounding(targets, dtypes) + 1e-6 * length(shifts)
        assert error <= allowed
    seen = [[g.double() for g in gradient(case.value, v, moved)] for v in passes.points]
    if difference == "central":
        product = [(a - b) / (2 * eps) for a, b in zip(*seen, strict=True)]
    else:
        product = [(b - a) / eps for a, b in zip(g1, seen[0], strict=True)]
    expected = [a + strength * h for a, h in zip(g1, product, strict=True)]
    grads = [g.double() for i in moved if (g := case.params[i].grad) is not None]
    error = length([a - b for a, b in zip(grads, expected, strict=True)])
    # the sum is rounded once, to the nearest
    allowed = 0.5 * rounding(expected, dtypes) + 1e-5 * strength * length(product)
    weight = strength / eps / len(passes.points)
    lost = lost_in_adding(weight, [g1, *seen], dtypes) if adding else 0.0
    allowed += lost
    assert error <= allowed

    numbers = optimizer.stats.numbers()
    assert numbers["grad_norm"] == pytest.approx(length(g1), rel=1e-5)
    if optimizer.stats.skipped is None:
        penalty = strength * length(product)
        assert numbers["penalty_norm"] == pytest.approx(penalty, rel=1e-4, abs=lost)
        assert numbers["radius"] == pytest.approx(radius_used(radius, theta), rel=1e-4)
    else:  # too short a step for these weights
        assert strength * length(product) <= lost


@examples(400)
@given(
    data=st.data(),
    case=cases(),
    strength=STRENGTHS,
    radius=st.sampled_from([None, 1e-2, 5e-2]),
    way=ways(),
)
def test_gradient_is_that_of_the_penalty(
    data: st.DataObject,
    case: Case,
    strength: float,
    radius: float | None,
    way: tuple[str, dict[str, Any], str],
) -> None:
    # against the exact product in float64, within what rounding and the third derivative allow
    difference, mode, path = way
    excluded = data.draw(excluded_ones(case))
    optimizer = make(case, excluded, strength, radius, difference, mode)
    with on_path(path):
        passes = Passes(case, optimizer)
    live = case.live()
    moved = [i for i in live if i not in excluded]
    theta = [v.double() for v in passes.theta]
    dtypes = [case.params[i].dtype for i in moved]
    g = dict(zip(live, gradient(case.value, theta, live), strict=True))
    along = [g[i] for i in moved]
    h = hessian_times(case.value, theta, live, along, moved)
    expected = [a + strength * b for a, b in zip(along, h, strict=True)]
    grads = [t.double() for i in moved if (t := case.params[i].grad) is not None]
    error = length([a - b for a, b in zip(grads, expected, strict=True)])
    size = length(along)
    if size == 0.0:
        assert error == 0.0
        return

    count = sum(v.numel() for v, used in zip(theta, case.used, strict=True) if used)
    second, third, fourth = case.loss.bounds(count)
    g_lost = rounding(along, dtypes)  # a gradient is rounded to the dtype of its parameter
    if difference == "exact":
        allowed = 4 * second * g_lost + 2 * rounding(h, dtypes)
    else:
        values = [theta[i] for i in moved]
        eps = radius_used(radius, [passes.theta[i] for i in moved]) * length(values) / size
        shifted = [v + eps * a for v, a in zip(values, along, strict=True)]
        theta_lost = rounding(shifted, dtypes) + eps * g_lost
        noise = 1e-14 * (second * length(theta) + count**0.5)  # of the loss in float64
        truncation = (
            third * eps * size**2 / 2 if difference == "forward" else fourth * eps**2 * size**3 / 6
        )
        # g2 is at most second * eps * size longer than g1
        grads_lost = 2 * g_lost + second * eps * size * max(torch.finfo(d).eps for d in dtypes)
        allowed = (grads_lost + second * theta_lost + noise) / eps + 1.01 * truncation
        if adds_up(mode, dtypes):
            weight = strength / eps / len(passes.points)
            grown = [g * (1.0 + second * eps) for g in along]
            allowed += lost_in_adding(weight, [grown] * 3, dtypes) / strength
            if difference == "central":  # the direction is kept in 16 bits
                allowed += second * 2.0**-8 * size
    allowed = strength * allowed + g_lost + rounding(expected, dtypes)
    assert error <= allowed


@examples(60)
@given(
    case=cases(dtypes=WIDE),
    difference=st.sampled_from(["forward", "central", "exact"]),
    fails=st.integers(0, 3),
)
def test_random_numbers_of_a_step_are_those_of_one_pass(
    case: Case, difference: str, fails: int
) -> None:
    twin = [p.detach().clone().requires_grad_(p.requires_grad) for p in case.params]
    optimizer = make(case, [], 0.1, 1e-3, difference)
    seen: list[Tensor] = []

    def loss(params: Sequence[Tensor]) -> Tensor:
        noise = torch.rand(len(params))  # as dropout does
        seen.append(noise)
        if fails == len(seen):
            raise ZeroDivisionError
        torch.rand(len(seen))  # and more in each call
        return case.value([p * (0.5 + n) for p, n in zip(params, noise, strict=True)])

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(case.params)
        value.backward()
        return value.item()

    calls = 1 + {"forward": 1, "central": 2, "exact": 1}[difference]
    torch.manual_seed(0)
    with contextlib.suppress(ZeroDivisionError):
        loss(twin).backward()
    expected = torch.get_rng_state()
    seen.clear()
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError) if 0 < fails <= calls else contextlib.nullcontext():
        optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), expected)
    assert len(seen) == (min(fails, calls) if fails else calls)
    assert all(torch.equal(noise, seen[0]) for noise in seen)
