"""flatopt.measure: gradient, exact product and curvature against closed forms."""

import pytest
import torch
from torch import nn

from flatopt import curvature_along_gradient, gradient, hessian_product
from tests.cases import Problem, distance, same

MATRIX = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def quadratic() -> tuple[torch.Tensor, object]:
    w = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    return w, lambda: (0.5 * w @ MATRIX @ w).backward()


def test_closed_forms() -> None:
    w, closure = quadratic()
    g = MATRIX @ w.detach()  # (2, -1)
    assert torch.equal(gradient(closure, [w])[0], g)  # type: ignore[arg-type]
    (product,) = hessian_product(closure, [w], [torch.ones(2)])  # type: ignore[arg-type]
    assert product.tolist() == [4.0, 3.0]
    size, product_norm, curvature = curvature_along_gradient(closure, [w])  # type: ignore[arg-type]
    assert float(size) == pytest.approx(5**0.5)
    assert float(product_norm) == pytest.approx(float((MATRIX @ g).norm()))
    assert float(curvature) == pytest.approx(float(g @ MATRIX @ g) / 5)


def test_gradients_are_left_alone() -> None:
    problem = Problem()
    problem.backward(2)
    grads, values = [p.grad for p in problem.params], problem.values()
    kept = problem.grads()

    def closure() -> None:
        problem.model.zero_grad()
        problem.backward()

    curvature_along_gradient(closure, problem.params)
    assert all(p.grad is g for p, g in zip(problem.params, grads, strict=True))
    assert same(problem.grads(), kept)
    assert same(problem.values(), values)


def test_gradients_are_put_back_after_an_error() -> None:
    problem = Problem()
    problem.backward()
    kept = problem.grads()
    for measure in (gradient, lambda c, p: hessian_product(c, p, kept)):
        with pytest.raises(ZeroDivisionError):
            measure(lambda: 1 / 0, problem.params)
        assert same(problem.grads(), kept)


def test_unused_and_16_bit_parameters() -> None:
    used = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    unused = torch.ones(3, requires_grad=True)
    found = gradient(lambda: (used.float() ** 2).sum().backward(), [used, unused])
    assert [g.dtype for g in found] == [torch.float32, torch.float32]
    assert [g.tolist() for g in found] == [[2.0, 2.0], [0.0, 0.0, 0.0]]


def test_both_passes_see_the_same_dropout() -> None:
    problem = Problem(layer=nn.Dropout(0.5))

    def closure() -> None:
        problem.backward()

    torch.manual_seed(3)
    measured = curvature_along_gradient(closure, problem.params)
    torch.manual_seed(3)
    g = gradient(closure, problem.params)
    torch.manual_seed(3)
    h = hessian_product(closure, problem.params, g)
    along = sum(float((a * b).sum()) for a, b in zip(g, h, strict=True))
    assert float(measured[2]) * float(measured[0]) ** 2 == pytest.approx(along)
    assert distance([measured[1]], [torch.cat([t.flatten() for t in h]).norm()]) < 1e-12
