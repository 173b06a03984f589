"""theory/flow_noise.py."""

import math

import torch

from tests.theory_statements import verify
from theory.flow_noise import TOP, WHERE, density_added, pair, sextic, share_left


def test_statement():
    """Volume, odds and share under noise that GR does not see are as predicted."""
    verify("flow_noise")


def normal_left(at: float, curvature: float) -> float:
    """Share of a normal density around `at` that lies left of the top of the barrier."""
    return float(torch.special.ndtr(torch.tensor((TOP - at) * curvature**0.5)))


def test_share_without_strength_is_that_of_the_density():
    """exp(-pair) is a sum of two normal densities, so its share left of the barrier is known."""
    sharp, flat = 20**-0.5, 2**-0.5
    due = (sharp * normal_left(0, 20) + flat * normal_left(1.5, 2)) / (sharp + flat)
    assert math.isclose(share_left(density_added(pair, 0, 1), TOP), due, rel_tol=1e-3)


def test_wells_are_as_described():
    """Depth 0 and curvatures 50 and 2, by automatic differentiation; the top of the barrier."""
    for place, curvature in ((0.0, 50.0), (1.0, 2.0)):
        x = torch.tensor(place, dtype=torch.float64)
        assert float(sextic(x)) == 0
        assert abs(float(torch.func.hessian(sextic)(x)) - curvature) < 1e-12
    between = WHERE[(WHERE > 0) & (WHERE < 1.5)]
    assert abs(float(between[pair(between).argmax()]) - TOP) < 1e-3
