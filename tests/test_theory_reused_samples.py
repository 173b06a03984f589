"""theory/reused_samples.py, and its two sharpest claims on random bandits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.theory_statements import verify
from theory.policy_products import KINDS, LogProbs, derived, found, linear

Problem = tuple[LogProbs, Tensor, Tensor]
# logits and rewards of 2 to 8 actions
ARMS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-5, 5)), min_size=2, max_size=8)


def bandit(arms: list[tuple[float, float]]) -> tuple[Problem, Tensor, Tensor]:
    """What `found` and `derived` take for one bandit; its rewards and probabilities."""
    theta, reward = torch.tensor(arms, dtype=torch.float64).T[:, None].unbind()
    n = len(arms)
    features = torch.eye(n, dtype=torch.float64).reshape(1, 1, n, n)
    return (linear(n, 1), features, theta), reward, theta.softmax(1)


def test_statement():
    """The products of all ratios are as derived; only the sequence's is H g."""
    verify("reused_samples")


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ARMS, st.floats(-5, 5))
def test_old_log_probs_fixed_give_the_hessian_product(arms, baseline: float):
    problem, reward, p = bandit(arms)
    _, g, hg, *_ = derived(*problem, reward)
    product, passes = found("token", *problem, p * (reward - baseline))
    assert torch.allclose(passes[0][0], g, atol=1e-12)
    assert torch.allclose(product, hg, rtol=1e-6, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ARMS, st.floats(-5, 5))
def test_a_ratio_of_one_gives_the_mean_advantage_times_the_fisher_product(arms, baseline: float):
    problem, reward, p = bandit(arms)
    _, g, *_ = derived(*problem, reward)
    fisher = p * (g - (p * g).sum())
    product, _ = found("one", *problem, p * (reward - baseline))
    assert torch.allclose(product, ((p * reward).sum() - baseline) * fisher, rtol=1e-6, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ARMS, st.lists(st.integers(0, 7), min_size=2, max_size=8))
def test_a_ratio_of_one_gives_nothing_when_advantages_sum_to_zero(arms, drawn: list[int]):
    """Of the expectation, and of any batch with its own mean as baseline."""
    problem, reward, p = bandit(arms)
    counts = torch.zeros_like(p)
    for action in drawn:
        counts[0, action % len(arms)] += 1 / len(drawn)
    for share in (p, counts):
        product, _ = found("one", *problem, share * (reward - (share * reward).sum()))
        assert product.abs().max() < 1e-9


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ARMS, st.floats(0.01, 2), st.sampled_from([1, -1]))
def test_a_shift_along_g_moves_ratios_away_from_the_clip(arms, eps: float, side: int):
    """On average, weighted by the advantage: exactly by eps |g|^2."""
    problem, reward, p = bandit(arms)
    weight, g, *_ = derived(*problem, reward)
    moved = (problem[2] + side * eps * g).log_softmax(1) - p.log()
    assert torch.allclose((weight * moved).sum(), -side * eps * (g * g).sum(), atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_products_of_sequences(vocabulary: int, length: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    n = vocabulary**length
    prefixes = (n - 1) // (vocabulary - 1)
    shapes = (1, prefixes, vocabulary, 5), (1, 5), (1, n)
    features, theta, reward = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes
    )
    problem = (linear(vocabulary, length), features, theta)
    weight, g, hg, *products = derived(*problem, reward)
    assert torch.allclose(products[0], hg)
    for kind, product in zip(KINDS, products, strict=True):
        got, passes = found(kind, *problem, weight)
        assert torch.allclose(passes[0][0], g, atol=1e-12)
        assert torch.allclose(got, product, rtol=1e-6, atol=1e-7)
