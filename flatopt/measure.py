"""Measurements of flatness: gradient norm, curvature along the gradient, exact H g."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flatopt.difference import differentiable, product
from flatopt.perturb import RNGState
from flatopt.shards import check_one_process
from flatopt.vectors import dot, norm, wide


def gradient(closure: Callable[[], object], params: Sequence[Tensor]) -> list[Tensor]:
    """The gradient that ``closure`` (zero_grad, loss, backward) leaves, copied; zeros if absent.

    ``.grad`` is as before on return. Shapes are those of ``params``; float32 or wider.
    """
    before = [p.grad for p in params]
    try:
        for p in params:
            p.grad = None
        with torch.enable_grad():
            closure()
        return [
            torch.zeros_like(p, dtype=wide(p.dtype))
            if p.grad is None
            else p.grad.detach().to(wide(p.dtype), copy=True)
            for p in params
        ]
    finally:
        for p, g in zip(params, before, strict=True):
            p.grad = g


def hessian_product(
    closure: Callable[[], object], params: Sequence[Tensor], direction: Sequence[Tensor]
) -> list[Tensor]:
    """Exact ``H v`` of the closure's loss by double backward.

    Args:
        closure: zero_grad, loss, backward, as for `GradRegOptimizer.step`.
        params: where H is taken.
        direction: v, tensors of the same shapes.

    Returns:
        ``H v``, one detached tensor per parameter. ``.grad`` is as before on return.

    Raises:
        RuntimeError: from autograd, where an operation has no second derivative.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (h,) = hessian_product(lambda: (w**3).sum().backward(), [w], [torch.ones(2)])
        >>> h.tolist()
        [6.0, 12.0]
    """
    check_one_process(params)
    before = [p.grad for p in params]
    try:
        for p in params:
            p.grad = None
        with torch.enable_grad(), differentiable():
            closure()
        return product(params, direction)
    finally:
        for p, g in zip(params, before, strict=True):
            p.grad = g


def curvature_along_gradient(
    closure: Callable[[], object], params: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """``(||g||, ||H g||, g.Hg / g.g)``, exact, at the closure's loss; 0-dim tensors.

    Units: loss/parameter, loss^2/parameter^3, loss/parameter^2.
    """
    rng = RNGState.capture([p.device for p in params])
    g = gradient(closure, params)
    rng.restore()
    h = hessian_product(closure, params, g)
    return norm(g), norm(h), dot(g, h) / dot(g, g)
