"""theory/flat_but_wrong.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp

from flatopt import GradRegOptimizer, gradient
from tests.theory_statements import verify
from theory.flat_but_wrong import BOTH, CRITICAL, HILL, PEAK, SIGMA, constant_proxy, descend, reward


def test_statement():
    """GR causes a hack, and a proxy without gradient has an excess loss."""
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
def test_scale_of_a_loss_is_a_strength(scale, multiple, x):
    """A loss times c, stepped with lr, is the loss itself at strength * c, stepped with lr * c."""
    start = torch.tensor([[x, 0.1, math.log(SIGMA)]], dtype=torch.float64)
    scaled = descend(start, multiple * CRITICAL, 30, 0.008, torch.tensor([scale]).double())
    plain = descend(start, multiple * CRITICAL * scale, 30, 0.008 * scale)
    assert torch.allclose(scaled, plain, rtol=0, atol=1e-6)


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


def test_wrong_hill_is_not_the_best_of_the_proxy():
    """The peak is the higher one as the policy sees it: nothing asks an optimizer to leave it."""
    at = torch.tensor([[PEAK[2], 0, math.log(SIGMA)], [HILL[2], 0, math.log(SIGMA)]]).double()
    peak, hill = reward(at)
    assert peak > hill


def test_constant_proxy_on_pairs_of_a_table():
    """The excess over all pairs of drawn rewards, summed over the labels that the check draws."""
    reward = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = torch.sigmoid(reward[:, None] - reward)
    least = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert float(math.log(2) - least) == pytest.approx(constant_proxy().measured, abs=0.02)
