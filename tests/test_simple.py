"""flatopt.simple: the rule itself against closed forms and automatic differentiation."""

import pytest
import torch

from flatopt import gradreg_gradient
from tests.cases import Problem, distance


def test_quadratic() -> None:
    # L = w'Aw/2: gradient of L + s/2 |Aw|^2 is Aw + s A^2 w, and differences are exact
    a = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    (got,) = gradreg_gradient(lambda: 0.5 * w @ a @ w, [w], strength=0.3, eps=1e-2)
    expected = a @ w + 0.3 * a @ a @ w
    assert distance([got], [expected]) < 1e-13


@pytest.mark.parametrize("strength", [0.0, 0.1, 2.0])
def test_is_the_gradient_of_the_penalized_loss(strength: float) -> None:
    problem = Problem()
    grads = torch.autograd.grad(problem.loss(), problem.params, create_graph=True)
    penalized = problem.loss() + strength / 2 * sum((g**2).sum() for g in grads)
    expected = torch.autograd.grad(penalized, problem.params)
    assert distance(problem.simple(strength, eps=1e-6), expected) < 1e-6


def test_parameters_are_unchanged() -> None:
    problem = Problem()
    before = problem.values()
    problem.simple(strength=0.5, eps=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))
    assert all(p.grad is None for p in problem.params)
