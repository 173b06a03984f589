"""theory/hack_monitor.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tests.theory_statements import verify
from theory.hack_monitor import BANDITS, auc, expected_auc


def test_statement():
    """The norms tell nothing of a coin, and of independent errors what the formula says."""
    verify("hack_monitor")


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_auc_counts_pairs(seed):
    """The share of pairs in which the hacked run is higher, ties counted half."""
    draw = np.random.default_rng(seed)
    statistic, hacked = draw.integers(0, 50, (2, BANDITS)), draw.random((2, BANDITS)) < 0.3
    shares = []
    for values, bad in zip(statistic, hacked, strict=True):
        gap = values[bad][:, None] - values[~bad]
        shares.append(((gap > 0) + 0.5 * (gap == 0)).mean())
    assert auc(statistic, hacked)[0] == pytest.approx(np.mean(shares))


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_expected_auc_counts_pairs_by_their_probability(seed, runs):
    draw = np.random.default_rng(seed)
    statistic, risk = draw.normal(size=runs), draw.uniform(0.01, 0.99, runs)
    both = np.outer(risk, 1 - risk)  # row hacked, column honest
    np.fill_diagonal(both, 0)
    higher = statistic[:, None] > statistic
    assert expected_auc(statistic, risk) == pytest.approx((both * higher).sum() / both.sum())


def test_risk_of_a_run():
    """Among drawn truths with one proxy in common, as many lose by a shift as the formula says."""
    draw = np.random.default_rng(0)
    proxy, shift = np.array([1.5, 0.2, -1.0]), np.array([0.3, 0.2, -0.5])
    truth = proxy / 2 + 0.5**0.5 * draw.normal(size=(400_000, 3))
    risk = norm.cdf(-(shift @ proxy) / (2**0.5 * np.linalg.norm(shift)))
    assert (truth @ shift < 0).mean() == pytest.approx(risk, abs=0.004)


def test_truth_given_the_proxy():
    """Truth and proxy drawn as assumed: the truth less half the proxy has variance 1/2."""
    truth, error = np.random.default_rng(0).normal(size=(2, 400_000))
    rest = truth - (truth + error) / 2
    assert np.corrcoef(rest, truth + error)[0, 1] == pytest.approx(0, abs=0.01)
    assert rest.var() == pytest.approx(0.5, abs=0.01)
