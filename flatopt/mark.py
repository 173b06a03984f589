"""Which gradients lie in .grad: kept through a pass, and told apart from those of another batch."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def kept_gradients(params: Iterable[Tensor]) -> Iterator[None]:
    """A pass that is not needed: its gradients are dropped, those before it stay in ``.grad``."""
    held = [(p, p.grad) for p in params]
    for p, _ in held:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in held:
            p.grad = grad


class Mark:
    """Which gradients a pass left in ``.grad``, to tell later whether another batch came since.

    A few of them tell it; the smallest, because they are held.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        few = heapq.nsmallest(4, params, key=lambda p: (p.grad is None, p.numel()))
        self.grads = [(p, p.grad, None if p.grad is None else p.grad._version) for p in few]

    def again(self) -> "Mark":
        """The same parameters' gradients as they are now."""
        return Mark([p for p, _, _ in self.grads])

    @property
    def replaced(self) -> bool:
        """All are other tensors than before, or were cleared; clipping keeps the tensors."""
        known = [(p, g) for p, g, _ in self.grads if g is not None]
        return bool(known) and all(p.grad is not g for p, g in known)

    @property
    def changed(self) -> bool:
        """Any is another tensor, or was written to."""
        return any(
            p.grad is not g or (g is not None and g._version != version)
            for p, g, version in self.grads
        )
