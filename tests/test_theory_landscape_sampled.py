"""theory/landscape_sampled.py: its estimates against formulas, autograd and flatopt."""

import numpy as np
import pytest
import torch

from flatopt import gradreg_gradient
from tests.theory_statements import verify
from theory import hills
from theory.landscape_sampled import estimate, mean_field, means, run


@pytest.mark.slow
def test_statement():
    """Thresholds by batch size and shares by method are those of the mean field."""
    verify("landscape_sampled")


def test_means_are_the_formulas():
    """One batch: with the variance term; halves: without; each refuses the other's formula."""
    for check in means():
        assert check.holds, check
        assert check.refuses_wrong, check


@pytest.mark.parametrize("halves", [False, True])
def test_sampled_gradient_has_the_exact_mean(halves):
    """Within 4 standard errors, also after a few steps of the loop."""
    start = hills.SPIKE + np.array([[0.3, 0.1], [0.0, 0.4]])
    noise = np.random.default_rng(2).standard_normal((20000, 2, 8, 2))
    sample = estimate(start[None], noise, halves)[0]
    error = sample.std(0) / len(sample) ** 0.5
    assert (np.abs(sample.mean(0) - hills.gradient(start)) < 4 * error).all()
    end = run(np.tile(start, (200, 1)), np.zeros(1), 8, 1e-3, 5, halves).reshape(-1, 2, 2)
    plain = hills.descend(hills.gradient, start, 1e-3, 5)[-1]
    assert (np.abs(end.mean(0) - plain) < 4 * end.std(0) / len(end) ** 0.5).all()


def test_infinite_batch_is_the_exact_field():
    """No variance term is left."""
    x = hills.square(4)
    exact = hills.regularized(x, 0.05)
    np.testing.assert_allclose(mean_field(x, 0.05, np.inf), exact, atol=1e-12)


def test_flatopt_takes_this_step():
    """Reused samples, importance weights to the fixed old policy, leave-one-out baseline."""
    old = torch.tensor([-0.6, -0.7], dtype=torch.float64)
    noise = np.random.default_rng(3).standard_normal((16, 2))
    actions = old + hills.SIGMA * torch.tensor(noise)
    rewards = torch.tensor(hills.reward(actions.numpy()))
    advantage = (rewards - rewards.mean()) / 15
    mean = old.clone().requires_grad_()

    def surrogate() -> torch.Tensor:
        square = ((actions - mean) ** 2 - (actions - old) ** 2).sum(1)
        return -(advantage * torch.exp(-square / (2 * hills.SIGMA**2))).sum()

    (found,) = gradreg_gradient(surrogate, [mean], strength=0.02, eps=1e-7)
    g, product = estimate(old.numpy(), noise, halves=False)
    np.testing.assert_allclose(found.numpy(), g + 0.02 * product, rtol=1e-4)
