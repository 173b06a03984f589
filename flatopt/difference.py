"""Estimators of the Hessian-gradient product H g: forward, central, exact."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Difference:
    r"""A weighted sum of gradients that is a multiple of H g.

    .. math:: H g = \frac{\text{scale}}{\epsilon} \Bigl(\text{base} \cdot g
              + \sum_k \text{sign}_k\,\nabla L(\theta + \text{point}_k\,\epsilon g)\Bigr)

    ``points`` are the shifts, in units of eps*g, one further backward pass each.
    """

    name: ClassVar[str]
    points: ClassVar[tuple[float, ...]]
    signs: ClassVar[tuple[float, ...]]
    base: ClassVar[float]
    scale: ClassVar[float]

    def factor(self, eps: float) -> float:
        """H g / the weighted sum."""
        return self.scale / eps

    def combine(
        self, g1: Sequence[Tensor], grads: Sequence[list[Tensor]], eps: float
    ) -> tuple[list[Tensor], float]:
        """``(d, scale)`` with ``H g = scale * d``; d overwrites the first list of ``grads``."""
        d, *others = grads
        for more, sign in zip(others, self.signs[1:], strict=True):
            for a, b in zip(d, more, strict=True):
                a.add_(b, alpha=sign)
        if self.base:
            for a, b in zip(d, g1, strict=True):
                a.add_(b, alpha=self.base)
        return d, self.factor(eps)


class Forward(Difference):
    """(grad L(theta + eps g) - g) / eps. One extra pass; error eps/2 * D3L[g,g]."""

    name = "forward"
    points, signs = (1.0,), (1.0,)
    base, scale = -1.0, 1.0


class Central(Difference):
    """(grad L(theta + eps g) - grad L(theta - eps g)) / 2 eps. Two extra passes; error eps^2/6."""

    name = "central"
    points, signs = (1.0, -1.0), (1.0, -1.0)
    base, scale = 0.0, 0.5


class Exact(Difference):
    """H g by a second backward through the first: the oracle. About twice the cost of Forward.

    The extra pass runs at theta itself, with a graph (`differentiable`, which is not thread-safe),
    and is differentiated along g1 by `product`.
    """

    name = "exact"
    points, signs = (0.0,), (1.0,)
    base, scale = 0.0, 1.0

    def factor(self, eps: float) -> float:
        """1: the pass returns H g itself."""
        return 1.0


DIFFERENCES: dict[str, type[Difference]] = {kind.name: kind for kind in (Forward, Central, Exact)}


@contextmanager
def differentiable() -> Iterator[None]:
    """Inside, every ``backward()`` keeps the graph of the gradients it leaves in ``.grad``.

    So a user's own training code, which calls ``loss.backward()``, can be differentiated twice.
    Attention takes its plain mathematical form, because fused kernels have no second derivative.
    Not thread-safe: ``torch.autograd.backward`` is replaced for the whole process, so no other
    thread may run a backward pass meanwhile.
    """
    original = torch.autograd.backward

    def backward(tensors, grad_tensors=None, retain_graph=None, create_graph=False, *rest, **named):
        # The cycle that torch warns of (a parameter holds its .grad, whose graph holds the
        # parameter) is broken by the optimizer, which replaces .grad.
        import warnings

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*create_graph=True.*")
            return original(tensors, grad_tensors, True, True, *rest, **named)

    torch.autograd.backward = backward  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.autograd.backward = original  # type: ignore[assignment]


def product(params: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """H v from gradients that `differentiable` left in ``.grad``; zeros where L is linear.

    Args:
        params: leaf tensors whose ``.grad`` has a graph.
        direction: v, of the same shapes.

    Returns:
        H v, one detached tensor per parameter, float32 or wider where ``direction`` is.
    """
    pairs = [
        (p.grad, v.to(p.grad.dtype))
        for p, v in zip(params, direction, strict=True)
        if p.grad is not None and p.grad.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(v) for v in direction]
    products = torch.autograd.grad(
        [g for g, _ in pairs], list(params), [v for _, v in pairs], allow_unused=True
    )
    return [
        torch.zeros_like(v) if h is None else h.detach().to(v.dtype)
        for h, v in zip(products, direction, strict=True)
    ]
