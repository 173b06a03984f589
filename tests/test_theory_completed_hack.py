"""theory/completed_hack.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatopt import GradRegOptimizer, curvature_along_gradient, gradient
from tests.theory_statements import verify
from theory.completed_hack import descend, flow, gain, paid_last


def test_statement():
    """Completed hacks are flat whatever the rewards, and GR lengthens their steps."""
    verify("completed_hack")


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
def test_penalty_of_a_fixed_strength_fades(arms, seed):
    """|Hg| / |g| falls as 1 / t: late, a fixed strength adds strength / t of a step."""
    draw = torch.Generator().manual_seed(seed)
    logits, proxy = torch.randn(2, 1, arms, generator=draw, dtype=torch.float64)
    times, size, path = flow(logits, proxy, 1e9, 1e-8)
    end = path[-1, 0].clone().requires_grad_()
    gap = proxy.max() - proxy[0]
    g, hg, curvature = curvature_along_gradient(lambda: (end.softmax(0) @ gap).backward(), [end])
    assert float(hg / g) * times[-1] == pytest.approx(1, rel=0.01)
    assert float(curvature) * times[-1] == pytest.approx(1, rel=0.01)
    assert float(g) == pytest.approx(size[-1, 0], rel=1e-9)


@pytest.mark.parametrize("proxy", [[1.0, 0.0, 0.0], [1.0, 0.3, 0.0]])
def test_ratio_speeds_up_a_late_softmax(proxy):
    """Well before the limit too: the penalty is 16 times the gradient, and along it."""
    logits = torch.tensor([9, 0, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor(proxy, dtype=torch.float64)
    optimizer = GradRegOptimizer(torch.optim.SGD([logits], lr=0.0), ratio=16)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -(logits.softmax(0) @ rewards)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    stats = optimizer.stats.numbers()
    assert stats["penalty_ratio"] == pytest.approx(16)
    assert stats["curvature"] > 0
    assert stats["turn"] < 0.05
    # the part of the penalty that lies along the gradient
    assert 1 + stats["strength"] * stats["curvature"] == pytest.approx(17, rel=0.02)


@pytest.mark.parametrize(("p", "end"), [(0.4, 0), (0.6, 1)])
def test_ratio_decides_at_one_half(p, end):
    """By ratio 16 an answer paid alone is unlearnt below one half, however long it takes."""
    logits, proxy = paid_last(p)
    state = logits.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([state], lr=0.1), ratio=16)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -(state.softmax(0) @ proxy)
        loss.backward()
        return loss.item()

    for _ in range(400):
        optimizer.step(closure)
    assert float(state.detach().softmax(0)[-1]) == pytest.approx(end, abs=0.02)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.floats(0.05, 0.95), st.floats(0, 30), st.integers(2, 6))
def test_speed_of_a_fixed_strength(p, strength, answers):
    """One answer paid: 1 + strength * curvature, which is k / (k - 1) p (1 - p) (2 p - 1)."""
    curvature = answers / (answers - 1) * p * (1 - p) * (2 * p - 1)
    speed = descend(paid_last(p, answers), strength=strength)[1][0]
    assert speed == pytest.approx(1 + strength * curvature, abs=1e-4)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(0.01, 100), st.floats(0.1, 10), st.floats(0.01, 100))
def test_gain_solves_its_equation(strength, age, time):
    """d age / d time = 1 + strength / age, by small steps."""
    steps, now = 20_000, age
    for _ in range(steps):
        half = now + time / steps / 2 * (1 + strength / now)
        now += time / steps * (1 + strength / half)
    assert gain(strength, age, time) == pytest.approx(now - age, rel=1e-3)
