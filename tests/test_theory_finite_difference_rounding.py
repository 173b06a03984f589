"""theory/finite_difference_rounding.py."""

import numpy as np
import pytest
import torch

from tests.theory_statements import verify
from theory.finite_difference_rounding import Noise, Truth, optimum


def test_statement():
    """Noise, best steps and the price of bf16 storage are as predicted."""
    verify("finite_difference_rounding")


@pytest.mark.parametrize(("kind", "power"), [("forward", 1), ("central", 2)])
def test_the_optimum_is_the_least_of_the_sum(kind: str, power: int):
    """By search over a fine grid of steps."""
    true, noise = Truth(torch.ones(4), 3.0, 5.0), Noise(2e-6, 1e-6)
    size, level = getattr(true, kind), getattr(noise, kind)
    steps = np.logspace(-6, 0, 200_001)
    total = np.sqrt((size * steps**power) ** 2 + (level / steps) ** 2) / true.length
    best, least = optimum(kind, true, noise, 1.0)
    assert np.isclose(best, steps[total.argmin()], rtol=1e-3)
    assert np.isclose(least, total.min(), rtol=1e-3)
