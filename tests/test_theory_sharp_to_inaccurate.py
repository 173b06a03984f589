"""theory/sharp_to_inaccurate.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from tests.theory_statements import verify
from theory.sharp_to_inaccurate import excess, fisher_length, gaps, lipschitz, pair_bounds

REWARD = st.floats(-4, 4).map(lambda x: round(x, 6))


@st.composite
def action_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distances (on a line, all different places), policy, truth, proxy."""
    places = draw(st.lists(st.integers(0, 50), min_size=2, max_size=12, unique=True))
    n, x = len(places), np.array(places) / 10
    weight = draw(arrays(float, n, elements=st.floats(0.01, 1)))
    truth, proxy = (draw(arrays(float, n, elements=REWARD)) for _ in range(2))
    return np.abs(x[:, None] - x), weight / weight.sum(), truth, proxy


def test_statement():
    """No inequality is violated, and none could be 5 % stronger."""
    verify("sharp_to_inaccurate")


@settings(deadline=None, max_examples=200, derandomize=True)
@given(action_sets())
def test_sharp_pairs(actions) -> None:
    """The excess pays for each choice of K and delta."""
    distance, policy, truth, proxy = actions
    bounds = pair_bounds(distance, policy, truth, proxy)
    assert excess(policy, proxy, truth) >= bounds.max(initial=0) - 1e-12


@settings(deadline=None, max_examples=200, derandomize=True)
@given(action_sets())
def test_error_and_excess(actions) -> None:
    """The excess is between ς'(B) and 1/4 of the error's variance."""
    _, policy, truth, proxy = actions
    e = proxy - truth
    variance = policy @ (e - policy @ e) ** 2
    B = max(np.abs(gaps(r)).max() for r in (proxy, truth))
    found = excess(policy, proxy, truth)
    assert expit(B) * expit(-B) * variance - 1e-12 <= found <= variance / 4 + 1e-12


@settings(deadline=None, max_examples=100, derandomize=True)
@given(action_sets(), st.integers(0, 2**31))
def test_gradient_and_error(actions, seed: int) -> None:
    """Fisher lengths of gradients: of the error below its sd, of the proxy as the truth allows."""
    distance, policy, truth, proxy = actions
    features = np.random.default_rng(seed).normal(size=(len(policy), 3))
    e, allowed = proxy - truth, (policy @ distance**2 @ policy / 2) ** 0.5
    sd = float(policy @ (e - policy @ e) ** 2) ** 0.5
    assert fisher_length(policy, features, e) <= sd + 1e-12
    assert fisher_length(policy, np.eye(len(policy)), e) == pytest.approx(sd, abs=1e-12)
    assert (
        fisher_length(policy, features, proxy) - lipschitz(distance, truth) * allowed <= sd + 1e-12
    )
