"""theory/sharp_to_inaccurate_gaussian.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory_statements import verify
from theory.sharp_to_inaccurate_gaussian import derivatives, excess, grid, random_waves

SEEDS = st.integers(0, 2**31)


def test_statement():
    """The series is the variance; no bound is violated, and none could be 5 % stronger."""
    verify("sharp_to_inaccurate_gaussian")


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=SEEDS, sigma=st.floats(0.05, 0.5))
def test_series_and_lower_bounds(seed: int, sigma: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    truth, e = random_waves(draw, 0.3), random_waves(draw, 1.0)
    mu = torch.randn(2, generator=draw, dtype=torch.float64)
    nodes, share = grid(2, 32)
    value = e(mu + sigma * nodes)
    variance = float(share @ (value - share @ value) ** 2)
    assert float(e.terms(mu, sigma).sum()) == pytest.approx(variance, rel=1e-11)
    slope, curvature = derivatives(truth + e, mu, sigma, 32)
    sd = math.sqrt(variance)
    assert sigma * (slope - truth.limit(1)) <= sd + 1e-12
    assert sigma**2 / math.sqrt(2) * (curvature - truth.limit(2)) <= sd + 1e-12


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=SEEDS, sigma=st.floats(0.02, 0.35))
def test_quadrature_of_the_excess(seed: int, sigma: float) -> None:
    """As many nodes as the check takes are enough, by comparison with twice as many in all."""
    draw = torch.Generator().manual_seed(seed)
    truth, e = random_waves(draw, 0.3), random_waves(draw, 0.6)
    mu = torch.zeros(2, dtype=torch.float64)
    fine = excess(truth + e, truth, mu, sigma, 26)
    assert excess(truth + e, truth, mu, sigma) == pytest.approx(fine, rel=1e-4, abs=1e-12)
