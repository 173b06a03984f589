"""theory/flat_but_wrong.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp

from flatopt import GradRegOptimizer, curvature_along_gradient, gradient
from tests.theory_statements import verify
from theory.flat_but_wrong import BOTH, CRITICAL, PEAK, SIGMA, descend, flow, reward


def test_statement():
    """GR causes a hack, completed hacks are flat, and the norm tells what the errors let it."""
    verify("flat_but_wrong")


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.floats(-1, 2.5), st.floats(-1, 1), st.floats(0, 3))
def test_each_start_follows_the_exact_field_alone(x, y, multiple):
    """flatopt's path of one start among others is that of g + strength * Hg by autograd."""
    strength, lr = multiple * CRITICAL, 0.008
    starts = torch.tensor([[x, y, math.log(SIGMA)], [0.5, 0.5, -1.0], [-0.3, 0.2, -2.0]]).double()
    slope = grad(lambda state: -reward(state).sum())
    exact = starts[:1]
    for _ in range(30):
        exact = exact - lr * (slope(exact) + strength * jvp(slope, (exact,), (slope(exact),))[1])
    assert torch.allclose(descend(starts, strength, 30, lr)[:1], exact, rtol=0, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.floats(0.1, 1), st.floats(0.2, 2), st.floats(-1, 1))
def test_weight_of_a_loss_is_a_strength(weight, multiple, x):
    """A loss times c, stepped with lr, is the loss itself at strength * c, stepped with lr * c."""
    start = torch.tensor([[x, 0.1, math.log(SIGMA)]], dtype=torch.float64)
    weighted = descend(start, multiple * CRITICAL, 30, 0.008, torch.tensor([weight]).double())
    plain = descend(start, multiple * CRITICAL * weight, 30, 0.008 * weight)
    assert torch.allclose(weighted, plain, rtol=0, atol=1e-6)


def test_reward_is_the_mean_over_the_policy():
    """The closed form is the average of the bumps over drawn actions; the truth is the peak's."""
    state = torch.tensor([[0.4, 0.2, math.log(0.3)]], dtype=torch.float64)
    noise = torch.randn(400_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actions = state[:, :2] + 0.3 * noise
    height, width, place = BOTH.unbind(1)
    square = (actions[:, :1] - place) ** 2 + actions[:, 1:] ** 2
    values = height * torch.exp(-square / (2 * width**2))
    error = 5 * values.sum(1).std() / len(values) ** 0.5
    assert abs(values.sum(1).mean() - reward(state)[0]) < error
    assert abs(values[:, 0].mean() - reward(state, BOTH[:1])[0]) < error


def test_threshold_is_where_the_peak_alone_turns_round():
    """At sqrt(3) s from the lone peak g + strength * Hg is 0 at the critical strength exactly."""
    s = math.hypot(PEAK[1], SIGMA)
    at = torch.tensor([[3**0.5 * s, 0.0, math.log(SIGMA)]], dtype=torch.float64)
    slope = grad(lambda state: -reward(state, BOTH[:1]).sum())
    held = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)  # the width is
    g = slope(at) * held
    hg = jvp(slope, (at,), (g,))[1] * held
    assert torch.allclose(g + CRITICAL * hg, torch.zeros_like(g), rtol=0, atol=1e-12)
    assert g.norm() > 1


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(1e-4, 0.4999), st.integers(2, 8), st.floats(0.1, 10))
def test_norm_is_the_same_before_and_after_the_hack(p, arms, pay):
    """One arm paid, the rest alike: |g| at p equals |g| at 1 - p, and rises in between."""

    def norm(share: float) -> float:
        start = [(1 - share) / (arms - 1)] * (arms - 1) + [share]
        logits = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
        g = gradient(lambda: (-pay * logits.softmax(0)[-1]).backward(), [logits])
        return float(g[0].norm())

    assert norm(p) == pytest.approx(norm(1 - p), rel=1e-9)
    assert norm(p) < norm(0.5)
    assert norm(0.5) == pytest.approx(pay / 4 * (arms / (arms - 1)) ** 0.5)


@settings(derandomize=True, deadline=None, max_examples=5)
@given(st.integers(2, 4), st.integers(0, 99))
def test_penalty_fades_with_the_hack(arms, seed):
    """|Hg| / |g| falls as 1 / t: late, GR is no more than strength / t of a step."""
    draw = torch.Generator().manual_seed(seed)
    logits, proxy = torch.randn(2, 1, arms, generator=draw, dtype=torch.float64)
    times, size, path = flow(logits, proxy, 1e9, 1e-8)
    end = path[-1, 0].clone().requires_grad_()
    gap = proxy.max() - proxy[0]
    g, hg, curvature = curvature_along_gradient(lambda: (end.softmax(0) @ gap).backward(), [end])
    assert float(hg / g) * times[-1] == pytest.approx(1, rel=0.01)
    assert float(curvature) * times[-1] == pytest.approx(1, rel=0.01)
    assert float(g) == pytest.approx(size[-1, 0], rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.floats(-5, 5), st.lists(st.floats(-3, 3), min_size=2, max_size=6))
def test_constant_proxy_moves_nothing(constant, start):
    """However wrong it is, a constant proxy has no gradient and GR changes nothing."""
    logits = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = GradRegOptimizer(torch.optim.SGD([logits], lr=1.0), 10.0, eps=1e-3)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -(logits.softmax(0) * constant).sum()
        loss.backward()
        return loss.item()

    assert gradient(closure, [logits])[0].abs().max() < 1e-14
    optimizer.step(closure)
    assert torch.allclose(logits, torch.tensor(start, dtype=torch.float64), rtol=0, atol=1e-12)
