"""theory/landscape_width.py and theory/ridge.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from tests.theory_statements import verify
from theory import hills
from theory.landscape_width import kl, resets
from theory.ridge import lower_edge, place, ridge


def test_statement():
    """Both edges of the window and the shares around it are as predicted."""
    verify("landscape_width")


def normal(state: torch.Tensor) -> MultivariateNormal:
    """The policy."""
    return MultivariateNormal(state[:2], torch.exp(2 * state[2]) * torch.eye(2, dtype=state.dtype))


states = st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(-3, 0))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(state=states)
def test_resets_divide_by_the_fisher_matrix(state):
    """Which is the Hessian of the KL divergence at equal policies."""
    at = torch.tensor(state, dtype=torch.float64)
    fisher = torch.autograd.functional.hessian(lambda x: kl_divergence(normal(x), normal(at)), at)
    g = hills.gradient(at.numpy())
    np.testing.assert_allclose(
        resets(at.numpy()), np.linalg.solve(np.asarray(fisher), g), rtol=1e-8, atol=1e-12
    )


def test_kl_holds_back_by_its_gradient():
    """A curve under a large beta rests where beta times the gradient of the KL balances L."""
    start = np.array([[-0.3, -0.2, np.log(0.1)]])
    end = torch.tensor(kl(0.5, start)[-1, 0], requires_grad=True)
    distance = kl_divergence(normal(end), normal(torch.tensor(start[0])))
    (pull,) = torch.autograd.grad(distance, end)
    balance = hills.gradient(end.detach().numpy()) + 0.5 * pull.numpy()
    np.testing.assert_allclose(balance, 0, atol=1e-6)


@settings(deadline=None, max_examples=3, derandomize=True)
@given(false=st.tuples(st.floats(3, 4.5), st.floats(0.12, 0.2)))
def test_lower_edge_in_other_landscapes(false):
    """The prediction holds for other spikes: one policy just below it, one just above."""
    start = place(ridge(false)[:1, 0], np.array([np.log(0.05)]))
    predicted = lower_edge(false)
    below, above = (
        hills.ends(hills.gr(predicted * factor, start, 220, false=false)[-1])[:, 0]
        for factor in (0.97, 1.03)
    )
    assert below.tolist() == [False, True]
    assert above.tolist() == [True, False]


@pytest.mark.parametrize("order", [1, 2])
def test_ridge_and_orders(order):
    """The ridge has no slope across; each order of the prediction is within 10 % of the other."""
    line = ridge()
    slope = hills.gradient(place(line[:, 0], line[:, 1]))[:, :2] @ hills.AXIS
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    assert lower_edge(order=order) == pytest.approx(lower_edge(), rel=0.1)
