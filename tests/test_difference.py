"""flatopt.difference: the order of each estimator's error against the exact product."""

import math

import pytest
import torch
from torch import nn

from flatopt import GradRegOptimizer, gradient, hessian_product
from flatopt.difference import DIFFERENCES, differentiable
from tests.cases import Problem, distance, gr_step, two_phases


def estimate(problem: Problem, difference: str, eps: float) -> list[torch.Tensor]:
    """H g by the optimizer: with strength 1, what it adds to the gradient."""
    sgd = torch.optim.SGD(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(sgd, strength=1.0, eps=eps, difference=difference)
    optimizer.zero_grad()
    problem.backward()
    g1 = problem.grads()
    two_phases(problem, optimizer)
    return [a - b for a, b in zip(problem.grads(), g1, strict=True)]


def oracle(problem: Problem) -> list[torch.Tensor]:
    """H g by differentiating g.v with v held fixed: shares nothing with flatopt."""
    grads = torch.autograd.grad(problem.loss(), problem.params, create_graph=True)
    along = sum((g * g.detach()).sum() for g in grads)
    return list(torch.autograd.grad(along, problem.params))  # type: ignore[arg-type]


@pytest.mark.parametrize(("difference", "order"), [("forward", 1), ("central", 2)])
def test_order_of_the_error(difference: str, order: int) -> None:
    problem = Problem()
    exact = oracle(problem)
    sizes = [1e-2, 1e-3, 1e-4] if order == 1 else [4e-2, 1e-2, 2.5e-3]
    errors = [distance(estimate(problem, difference, eps), exact) for eps in sizes]
    slope = math.log(errors[0] / errors[-1]) / math.log(sizes[0] / sizes[-1])
    assert slope == pytest.approx(order, abs=0.05), errors


@pytest.mark.parametrize("micro", [1, 3])
def test_exact_is_the_gradient_of_the_penalized_loss(micro: int) -> None:
    problem = Problem()
    sgd = torch.optim.SGD(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(sgd, strength=0.3, difference="exact")
    loss = sum(problem.loss(b) for b in range(micro))
    grads = torch.autograd.grad(loss, problem.params, create_graph=True)  # type: ignore[arg-type]
    penalty = 0.15 * sum((g**2).sum() for g in grads)
    expected = torch.autograd.grad(loss + penalty, problem.params)  # type: ignore[arg-type]
    two_phases(problem, optimizer, micro)
    assert distance(problem.grads(), expected) < 1e-12
    assert not any(p.grad.requires_grad for p in problem.params if p.grad is not None)


def test_exact_product_matches_the_oracle() -> None:
    problem = Problem()
    g = gradient(problem.backward, problem.params)
    assert distance(hessian_product(problem.backward, problem.params, g), oracle(problem)) < 1e-12


def test_exact_leaves_no_graph_in_excluded_gradients() -> None:
    problem = Problem()
    sgd = torch.optim.SGD(problem.params, lr=0.1)
    out = problem.params[-1]
    optimizer = GradRegOptimizer(sgd, strength=0.3, difference="exact", exclude=[out])
    gr_step(problem, optimizer, "closure")
    assert out.grad is not None
    assert not out.grad.requires_grad


def test_exact_through_attention() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    def closure() -> None:
        layer(x, x, x, need_weights=False)[0].pow(2).mean().backward()

    params = list(layer.parameters())
    g = gradient(closure, params)
    exact = hessian_product(closure, params, g)
    for p, step in zip(params, g, strict=True):
        p.data.add_(step, alpha=1e-6)
    moved = gradient(closure, params)
    difference = [(a - b) / 1e-6 for a, b in zip(moved, g, strict=True)]
    assert distance(difference, exact) < 1e-4


def test_exact_product_of_a_linear_loss_is_zero() -> None:
    w = torch.ones(3, requires_grad=True)
    (h,) = hessian_product(lambda: w.sum().backward(), [w], [torch.ones(3)])
    assert h.tolist() == [0.0, 0.0, 0.0]


def test_differentiable_puts_backward_back() -> None:
    before = torch.autograd.backward
    with pytest.raises(ZeroDivisionError), differentiable():
        raise ZeroDivisionError
    assert torch.autograd.backward is before


def test_central_keeps_its_first_gradient_where_buffers_are_reused() -> None:
    # DDP with gradient_as_bucket_view writes each pass into the same memory
    problem, other = Problem(), Problem()
    optimizer = GradRegOptimizer(
        torch.optim.SGD(problem.params, lr=0.1), strength=1.0, eps=1e-2, difference="central"
    )
    buffers = [torch.zeros_like(p) for p in problem.params]

    def backward() -> None:
        found = torch.autograd.grad(problem.loss(), problem.params)
        for p, buffer, g in zip(problem.params, buffers, found, strict=True):
            p.grad = buffer.copy_(g)

    backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            backward()
    other.backward()
    expected = [a + b for a, b in zip(other.grads(), estimate(other, "central", 1e-2), strict=True)]
    assert distance(problem.grads(), expected) < 1e-12


@pytest.mark.parametrize("name", sorted(DIFFERENCES))
def test_passes(name: str) -> None:
    problem = Problem()
    sgd = torch.optim.SGD(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(sgd, strength=1.0, difference=name)
    gr_step(problem, optimizer, "closure")
    assert problem.calls == 1 + optimizer.passes == 1 + len(DIFFERENCES[name].points)
