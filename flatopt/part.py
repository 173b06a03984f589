"""A part of the batch whose gradient is known by itself: for `fraction` and for halves."""

import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flatopt.mark import Mark
from flatopt.vectors import owned


class Part:
    r"""The gradient of the first part of a batch, noted while the rest is still to come.

    With shares :math:`s` of the batch's weight and gradients as they add up in ``.grad``,
    :math:`G_a` is :math:`s_a \nabla L_a`, and :math:`g = G_a + G_b`.

    Args:
        params: those with a ``.grad`` now; it is copied.
        share: weight of the part in the whole batch, between 0 and 1.
    """

    def __init__(self, params: Iterable[Tensor], share: float) -> None:
        self.share = share
        there = [(p, p.grad) for p in params if p.grad is not None]
        self.grads = {id(p): g.detach().clone() for p, g in there}
        self.mark = Mark([p for p, _ in there])  # tells whether the batch was dropped since

    def release(self) -> None:
        """Let the copies go; which parameters had a gradient is still known."""
        self.grads = {key: torch.empty(0) for key in self.grads}

    def of(self, params: Sequence[Tensor], g1: Sequence[Tensor]) -> list[Tensor]:
        """The part's gradient; zeros where a parameter had none yet."""
        return [
            self.grads[id(p)] if id(p) in self.grads else torch.zeros_like(g)
            for p, g in zip(params, g1, strict=True)
        ]


def take(p: Tensor) -> Tensor:
    """``p.grad``, taken out of the parameter: itself where nobody else has it, else a copy.

    Gradients in buckets (DDP) and buffers (of other engines, or the user's own) are overwritten by
    the next pass.
    """
    ours = owned(p.grad) and _references(p) <= _UNSHARED  # type: ignore[arg-type]
    g = p.grad
    assert g is not None
    g = g.detach() if g.requires_grad else g
    g = g if ours else g.clone()
    p.grad = None
    return g


def _references(p: Tensor) -> int:
    return sys.getrefcount(p.grad)


def _unshared() -> int:
    """How many references Python counts to a gradient that only its parameter holds."""
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    return _references(p)


_UNSHARED = _unshared()
