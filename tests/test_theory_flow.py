"""theory/flow.py."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp

from tests.theory_statements import verify
from theory.flow import clipped_product, descend, norm, problem

ANY_PROBLEM = st.integers(0, 10**6)


def test_statement():
    """SAM, the learning rate's share and the effect of clipping are as predicted."""
    verify("flow")


@settings(deadline=None, max_examples=20, derandomize=True)
@given(ANY_PROBLEM, st.floats(1e-3, 0.3), st.floats(0.01, 20))
def test_forward_difference_is_a_mix_of_two_gradients(seed: int, eps: float, k: float):
    """strength = k eps gives k g2 - (k - 1) g1; k = 1 is un-normalised SAM."""
    theta, loss = problem(seed)
    g1 = grad(loss)(theta)
    g2 = grad(loss)(theta + eps * g1)
    for factor in (1.0, k):
        step = theta - descend(loss, theta, 1.0, 1, strength=factor * eps, eps=eps)
        due = factor * g2 - (factor - 1) * g1
        assert norm(step - due) <= 1e-12 * (1 + factor) * (norm(theta) + norm(g1) + norm(g2))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(ANY_PROBLEM, st.floats(0.05, 0.8))
def test_clipping_both_removes_the_part_along_the_gradient(seed: int, share: float):
    """Whatever the network, the clipped product is c^2/|g| (I - uu') H u."""
    theta, loss = problem(seed)
    g = grad(loss)(theta)
    u, c = g / norm(g), share * norm(g)
    hu = jvp(grad(loss), (theta,), (u,))[1]
    clipped = clipped_product(loss, theta, c, 1e-6)
    assert norm(clipped - c * share * (hu - (hu @ u) * u)) <= 1e-4 * c * norm(hu)
    assert abs(float(clipped @ u)) <= 1e-4 * c * norm(hu)


def test_clipping_does_nothing_to_short_gradients():
    """The clipped code and GR agree where no gradient is as long as the bound."""
    theta, loss = problem()
    g = grad(loss)(theta)
    hg = jvp(grad(loss), (theta,), (g,))[1]
    assert norm(clipped_product(loss, theta, 100.0, 1e-6) - hg) <= 1e-4 * norm(hg)
    assert torch.equal(grad(loss)(theta), g)  # nothing was clipped in place
