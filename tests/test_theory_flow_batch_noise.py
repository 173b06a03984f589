"""theory/flow_batch_noise.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory_statements import verify
from theory.flow_batch_noise import density_seen
from theory.flow_noise import WHERE, pair, wander

COPIES = 4000


def test_statement():
    """The spread in a bowl and the share of the sharp well are as predicted."""
    verify("flow_batch_noise")


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.floats(1, 20), st.floats(0, 0.5), st.floats(0.1, 1.5), st.integers(0, 99))
def test_variance_in_a_parabola(curvature: float, strength: float, product: float, seed: int):
    """Of noise in the batch: exact at any learning rate; product is eta lambda kappa."""
    kappa = 1 + strength * curvature
    lr = product / curvature / kappa
    start = torch.zeros(COPIES, dtype=torch.float64)
    steps = int(5 / min(product, 2 - product)) + 1
    path = wander(lambda x: curvature / 2 * x**2, start, strength, lr, steps, "seen", 1.0, seed)
    *_, end = path
    due = lr * kappa / (curvature * (2 - lr * curvature * kappa))
    assert abs(float(end.var()) / due - 1) < 5 * (2 / COPIES) ** 0.5 + 1e-4


def test_the_exponent_moves_against_the_penalty():
    """To first order in the strength: kappa^-2 exp(-(L - strength / 2 L'^2) / tau)."""
    slope = torch.func.grad(lambda x: pair(x).sum())(WHERE)
    curvature = torch.gradient(slope, spacing=(WHERE,))[0]
    inside, tau, small = (WHERE > -0.5) & (WHERE < 3), 0.7, 1e-4
    change = (density_seen(pair, small, tau).log() - density_seen(pair, 0, tau).log()) / small
    due = slope**2 / 2 / tau - 2 * curvature
    gap = (change - due)[inside]
    assert float((gap - gap.mean()).abs().max()) < 0.01 * float(due[inside].abs().max())


def test_no_density_where_kappa_vanishes():
    """Where the strength exceeds one over the greatest negative curvature."""
    with pytest.raises(ValueError, match="not positive"):
        density_seen(pair, 0.06, 1)
