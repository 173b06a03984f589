"""theory/flat_to_robust.py."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi

from tests.theory_statements import verify
from theory.flat_to_robust import LENGTH, PAIRS, random_case


def test_statement():
    """Slopes, gaps and probabilities stay below their bounds; false readings of D do not."""
    verify("flat_to_robust")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    d=st.integers(1, 3),
    curved=st.booleans(),
    sigma=st.floats(1e-3, 2),
    r=st.floats(1e-3, 3),
    delta=st.floats(1e-3, 3),
)
def test_any_case(seed: int, d: int, curved: bool, sigma: float, r: float, delta: float) -> None:
    """No slope above G, no sharp pair within r, no more sharp pairs than the bound allows."""
    case = random_case(np.random.default_rng(seed), d, curved)
    case.sigma, case.r, case.delta = sigma, r, delta
    found = case.bound()
    assert found["slope"] <= found["G"] * (1 + 1e-12)
    sharp, gap = case.pairs(found["K"], seed)
    assert gap <= 1 + 1e-12
    assert sharp - 4 * math.sqrt(sharp / PAIRS) <= 2 * chi.sf(r / sigma, d) + 1e-12


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 3))
def test_ball_is_reached(seed: int, d: int) -> None:
    """Parameters within eps reach every action within D, by the iteration of the proof."""
    draw = np.random.default_rng(seed)
    case = random_case(draw, d, True)
    M, D = case.M.numpy(), case.bound()["D"]
    v = draw.normal(size=d)
    v *= D / np.linalg.norm(v)
    e = np.zeros(M.shape[1])
    for _ in range(2000):
        bent = case.kappa / 2 * e[0] ** 2 / math.sqrt(d)
        e = np.linalg.pinv(M) @ (v - bent)
        assert np.linalg.norm(e) <= case.eps * (1 + 1e-12)
    assert M @ e + case.kappa / 2 * e[0] ** 2 / math.sqrt(d) == pytest.approx(v, abs=1e-3 * D)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_mean_length(d: int) -> None:
    assert pytest.approx(chi.mean(d)) == LENGTH[d]
