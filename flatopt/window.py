"""One GR step in flight: g1, the shifted passes, and their combination in .grad."""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from flatopt.difference import Difference, Exact, differentiable, product
from flatopt.perturb import displaced, dot, norm, read, share_reversed, wide
from flatopt.stats import Stats

FLOAT32_MAX = torch.finfo(torch.float32).max
_NO_DIFFERENCE = (
    "g2 equals g1 exactly: the shift is below the precision (give radius=3e-4) or the loss is "
    "linear here; the step is plain"
)


class Window:
    """Takes g1 from ``.grad``, runs the passes of a `Difference`, leaves the sum in ``.grad``.

    Args:
        moved: the parameters that are perturbed; kept: the excluded ones. All have a ``.grad``.
        unused: the parameters without a ``.grad``; they have none afterwards either.
        difference: where gradients are taken and how they combine.
        radius: shift relative to ||theta||; or eps: multiple of the (unscaled) gradient.
        scale: factor on all gradients (a GradScaler's loss scale); does not enter the penalty.
        measure: report how much of the shift survived rounding.

    g1 is copied, not taken by reference: DDP's gradient buckets overwrite it in the next pass.
    """

    def __init__(
        self,
        moved: Sequence[Tensor],
        kept: Sequence[Tensor],
        unused: Sequence[Tensor],
        difference: Difference,
        *,
        radius: float | None,
        eps: float | None,
        scale: float,
        measure: bool,
    ) -> None:
        self.moved, self.kept, self.unused = list(moved), list(kept), list(unused)
        self.difference = difference
        self.scale, self.measure = scale, measure
        self.g1 = [_grad(p).to(wide(p.dtype), copy=True) for p in self.moved]
        self.kept_grads = [_grad(p).clone() for p in self.kept]
        self.grads: list[list[Tensor]] = []  # one list per finished pass
        self.absent: list[bool] = [False] * len(self.moved)  # no gradient in some pass
        self.late: set[int] = set()  # ids of unused parameters with a gradient in some pass
        self.active = False  # inside a pass
        self.realised: Tensor | None = None

        # Whether to shift at all is decided on the host. A step waits for the device twice: here
        # for these norms, and in `combine` for ||d|| (`read`).
        grad_norm = norm(self.g1) if self.moved else torch.zeros(())
        self.grad_norm = grad_norm / scale
        theta_norm = norm(self.moved) if self.moved else torch.ones(())
        kept_norm = norm(self.kept_grads) if self.kept else torch.zeros(())
        length, self.length, theta, kept_length = read(
            [grad_norm, self.grad_norm, theta_norm, kept_norm]
        )
        every_grad = length + kept_length
        self.bad_gradient = not math.isfinite(every_grad)
        self.why: str | None = None
        if self.bad_gradient:
            self.why = "the gradient is not finite; the base optimizer did not step"
        elif length == 0.0:
            self.why = "the gradient is zero" if self.moved else "every parameter is excluded"
        # alpha multiplies the stored gradients, eps the true ones: eps * g = alpha * (scale * g)
        self.eps = 0.0
        if self.why is None:
            if eps is not None:
                self.eps = eps
            else:
                # All weights zero: nothing to be relative to; the shift is then `radius` long.
                self.eps = (radius or 0.0) * (theta or 1.0) * scale / length
        self.alpha = self.eps / scale
        if self.alpha > FLOAT32_MAX:
            self.why, self.alpha = "the gradient is too small to step along", 0.0
        self.radius = self.alpha * length / theta if theta else self.alpha * length

    @property
    def complete(self) -> bool:
        return len(self.grads) == len(self.difference.points)

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        """One pass: shifted parameters and empty gradients inside, both put back outside."""
        self.active = True
        try:
            with self._pass():
                yield
        finally:
            self.active = False
            for p in self.unused:
                if p.grad is not None:  # g2 alone: the base must not take it for a gradient
                    self.late.add(id(p))
                    p.grad = None

    @contextmanager
    def _pass(self) -> Iterator[None]:
        point = self.difference.points[len(self.grads)]
        for p in (*self.moved, *self.kept):
            p.grad = None
        if self.why is not None:
            yield  # the gradients of this pass are not used
            self.grads.append([])
            return
        if point == 0.0:
            with differentiable():
                yield
            found: list[Tensor | None] = list(product(self.moved, self._direction()))
        else:
            measure = self.measure and not self.grads
            with displaced(self.moved, self.g1, self.alpha * point, measure) as realised:
                yield
            self.realised = realised if measure else self.realised
            found = [p.grad for p in self.moved]
        self.absent = [a or g is None for a, g in zip(self.absent, found, strict=True)]
        # A gradient buffer that the next pass may reuse (DDP's buckets) must be copied.
        last = len(self.grads) + 1 == len(self.difference.points)
        self.grads.append(
            [
                torch.zeros_like(g1) if g is None else g.detach().to(g1.dtype, copy=not last)
                for g, g1 in zip(found, self.g1, strict=True)
            ]
        )

    def _direction(self) -> list[Tensor]:
        return [g / self.scale for g in self.g1] if self.scale != 1.0 else self.g1

    def abandon(self) -> None:
        """Put g1 back into ``.grad``, as before the first pass."""
        for p, g in zip(self.moved, self.g1, strict=True):
            p.grad = g if p.dtype == g.dtype else g.to(p.dtype)
        self._restore_kept()

    def _restore_kept(self) -> None:
        for p, g in zip(self.kept, self.kept_grads, strict=True):
            if p.grad is None or p.grad.requires_grad:
                p.grad = g
            else:
                p.grad.copy_(g)

    @torch.no_grad()
    def combine(
        self, strength_for: Callable[[float, float], float], max_ratio: float | None
    ) -> Stats:
        """Leave g1 + strength * H g1 in ``.grad``.

        Args:
            strength_for: the strength, given ||g1|| and ||H g1||.
            max_ratio: bound on the length of the penalty relative to ||g1||.
        """
        if self.why is not None:
            self.abandon()
            return Stats(grad_norm=self.grad_norm, strength=0.0, skipped=self.why)
        d, factor = self.difference.combine(self.g1, self.grads, self.eps)
        factor /= self.scale  # H g1 = factor * d, with d made of scaled gradients
        for part, missing in zip(d, self.absent, strict=True):
            if missing:
                part.zero_()
        d_norm, along = norm(d), dot(self.g1, d)
        grad_norm, product_norm = self.length, factor * read([d_norm])[0]
        if not math.isfinite(product_norm):
            return self._plain("the gradient at theta' is not finite; the step is plain")
        if product_norm == 0.0 and not isinstance(self.difference, Exact):
            return self._plain(_NO_DIFFERENCE if not all(self.absent) else self._notes())
        strength = strength_for(grad_norm, product_norm)
        if max_ratio is not None and strength * product_norm > max_ratio * grad_norm:
            strength = max_ratio * grad_norm / product_norm
        weight = strength * factor * self.scale
        if not (math.isfinite(strength * product_norm) and weight <= FLOAT32_MAX):
            return self._plain("the penalty is not finite; the step is plain")
        reverses = share_reversed(self.g1, d, weight)
        self._write(d, weight)
        stats = self._stats(strength, factor, d_norm, along)
        stats.reversed = reverses
        return stats

    def _plain(self, why: str) -> Stats:
        self.abandon()
        stats = Stats(grad_norm=self.grad_norm, strength=0.0, radius=self.radius, skipped=why)
        stats.realised_step = self.realised
        return stats

    def _notes(self) -> str:
        notes = []
        if any(self.absent):
            notes.append(f"{sum(self.absent)} parameter(s) had no gradient at theta': step with g1")
        if self.late:
            notes.append(f"{len(self.late)} parameter(s) had no gradient at theta: no step")
        return "; ".join(notes)

    def _write(self, d: list[Tensor], weight: float) -> None:
        for p, a, b in zip(self.moved, self.g1, d, strict=True):
            # a gradient that requires grad has a graph, from the exact product
            if p.grad is None or p.grad.requires_grad:
                p.grad = torch.add(a, b, alpha=weight).to(p.dtype)
            elif p.grad.dtype == a.dtype:
                torch.add(a, b, alpha=weight, out=p.grad)
            else:
                p.grad.copy_(torch.add(a, b, alpha=weight))
        self._restore_kept()

    def _stats(self, strength: float, factor: float, d_norm: Tensor, along: Tensor) -> Stats:
        # `along` = g1.d and d_norm are in scaled gradients; n = ||g1|| scaled
        n = self.grad_norm * self.scale
        stats = Stats(
            grad_norm=self.grad_norm,
            penalty_norm=strength * factor * d_norm,
            penalty_ratio=strength * factor * d_norm / self.grad_norm,
            strength=strength,
            curvature=factor * self.scale * along / n**2,
            radius=self.radius,
        )
        if isinstance(self.difference, Exact):
            stats.radius = None
        else:
            # g2 = g1 + d for forward differences, g1 + d/2 for central ones (to second order);
            # written so because ||g2|| itself would hide a small difference in rounding.
            share = 1.0 / len(self.difference.points)
            g2 = torch.sqrt((n**2 + 2 * share * along + (share * d_norm) ** 2).clamp_min(0))
            stats.perturbed_grad_norm = g2 / self.scale
            stats.cosine = (n**2 + share * along) / (n * g2)
            stats.realised_step = self.realised
        stats.skipped = self._notes() or None
        return stats


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
        return all(p.grad is not g for p, g, _ in self.grads)

    @property
    def changed(self) -> bool:
        """Any is another tensor, or was written to."""
        return any(
            p.grad is not g or (g is not None and g._version != version)
            for p, g, version in self.grads
        )


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.detach()
