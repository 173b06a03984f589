"""theory/stochastic_gradient.py, and its identities by enumeration of all batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatopt import GradRegOptimizer, gradient, hessian_product
from tests.theory_statements import verify
from theory.stochastic_gradient import Losses, halves, parts
from theory.stochastic_policy import bandit

SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=20, deadline=None, derandomize=True)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def pairs(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All batches of two samples: the shares of the first, of the second, and the probability."""
    n = len(weights)
    one = torch.eye(n, dtype=weights.dtype)
    return one.repeat(n, 1), one.repeat_interleave(n, 0), torch.outer(weights, weights).flatten()


def optimizer_gradient(losses: Losses, theta: Tensor, shares: Tensor, strength: float) -> Tensor:
    """What GradRegOptimizer leaves in .grad; every row of theta has its own batch."""
    param = theta.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=0.0), strength, difference="exact")

    def closure() -> float:
        optimizer.zero_grad()
        loss = (shares * losses(param)).sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert param.grad is not None
    return param.grad


def least_squares(seed: int) -> tuple[Losses, Tensor, Tensor]:
    inputs, targets, theta = draw(seed, (6, 3), (6,), (3,))
    return lambda t: (t @ inputs.T - targets) ** 2 / 2, torch.full_like(targets, 1 / 6), theta


def policy(seed: int) -> tuple[Losses, Tensor, Tensor]:
    r, logits = draw(seed, (5,), (5,))
    return *bandit(logits, r), logits


def test_statement():
    """Means over batches and the moved minimum are as predicted."""
    verify("stochastic_gradient")


@pytest.mark.parametrize("problem", [least_squares, policy])
@FEW
@given(seed=SEEDS, strength=st.floats(0.1, 3))
def test_expectation_over_all_pairs(problem, seed: int, strength: float) -> None:
    """One batch of two: + tr Sigma / 2. Two batches of one: the gradient norm alone."""
    losses, weights, theta = problem(seed)
    g, hg, extra, _ = parts(losses, weights, theta)
    a, b, chance = pairs(weights)
    at = theta.expand(len(chance), -1)
    mean = chance @ optimizer_gradient(losses, at, (a + b) / 2, strength)
    torch.testing.assert_close(mean, g + strength * (hg + extra / 2), rtol=1e-10, atol=1e-11)
    mean = chance @ halves(losses, at, a, b, strength)
    torch.testing.assert_close(mean, g + strength * hg, rtol=1e-10, atol=1e-11)


@FEW
@given(SEEDS)
def test_halves_by_hand(seed: int) -> None:
    """Each half's gradient meets the other half's Hessian."""
    losses, weights, theta = policy(seed)
    a, b, _ = pairs(weights)
    param = theta.expand(len(a), -1).clone().requires_grad_()
    of_a, of_b = (lambda x=x: (x * losses(param)).sum().backward() for x in (a, b))
    (g_a,), (g_b,) = gradient(of_a, [param]), gradient(of_b, [param])
    (h_a,), (h_b,) = (hessian_product(f, [param], [g]) for f, g in ((of_a, g_b), (of_b, g_a)))
    expected = (g_a + g_b) / 2 + 0.7 * (h_a + h_b) / 2
    torch.testing.assert_close(halves(losses, param.detach(), a, b, 0.7), expected)
