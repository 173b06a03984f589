"""The whole rule in one function: everything else in flatopt must equal it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradreg_gradient(
    loss_fn: Callable[[], Tensor], params: Sequence[Tensor], strength: float, eps: float
) -> list[Tensor]:
    r"""Gradient of ``L + strength/2 * ||grad L||^2`` by one forward difference.

    .. math::  g_1 + \frac{\gamma}{\epsilon}\,\bigl(\nabla L(\theta + \epsilon g_1) - g_1\bigr)

    Args:
        loss_fn: computes the scalar loss L at the current values of ``params``; the same batch
            and the same random numbers at each call.
        params: the leaf tensors theta, of any shapes; unchanged on return.
        strength: gamma, in loss * (parameter / gradient)^2, that is 1 / curvature.
        eps: the step along the gradient, as a multiple of the gradient.

    Returns:
        One tensor per parameter, of its shape.

    Raises:
        RuntimeError: from autograd, where a parameter does not enter the loss.

    Source: Karakida et al. 2023 (arXiv 2210.02720), eq. 5; Ackermann et al. 2026
    (arXiv 2602.18037), algorithm 1.

    Example:
        >>> w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        >>> (g,) = gradreg_gradient(lambda: (w**2).sum(), [w], strength=0.5, eps=1e-3)
        >>> round(g.item(), 9)  # 2w + strength * 2 * 2w
        8.0
    """
    g1 = torch.autograd.grad(loss_fn(), params)
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, g1, strict=True):
            p.add_(g, alpha=eps)
    g2 = torch.autograd.grad(loss_fn(), params)
    with torch.no_grad():
        for p, value in zip(params, before, strict=True):
            p.copy_(value)
    return [a + (strength / eps) * (b - a) for a, b in zip(g1, g2, strict=True)]
