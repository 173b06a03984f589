"""The sum of the gradients of one step: d, of which H g1 is a multiple, and g1 + w d."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatopt.backup import cut, spans
from flatopt.shards import local
from flatopt.vectors import (
    SIGNS,
    ShardSums,
    dot,
    dot_of,
    even_sample,
    norm,
    plain,
    reversed_between,
    thinned,
    wide,
)

if TYPE_CHECKING:
    from flatopt.window import Window

# devices on which a loop over tensors, range by range, is faster than torch's multi-tensor kernels
LOOPED = ("cpu",)


class Combination:
    """d as a weighted sum of the passes' gradients, g1 and the part's; H g1 = ``factor`` * d."""

    def __init__(self, window: "Window") -> None:
        self.window = window
        self.moved, self.g1, self.absent = window.moved, window.g1, window.absent
        self.coefficients, self.factor = self._weights()

    def _weights(self) -> tuple[list[float], float]:
        """What the passes, then g1 and the part, are multiplied by in d; and H g1 / d."""
        window = self.window
        part, difference = window.settings.part, window.difference
        signs, base = list(difference.signs), difference.base
        if part is None:
            return [*signs, base], difference.factor(window.alphas[0] * window.scale) / window.scale
        eps = window.alphas[0] * window.scale
        if not window.settings.halves:  # d is of the part, whose weight in the batch is its share
            return [*signs, 0.0, base], difference.factor(eps) / part.share / window.scale
        # The second direction's passes ran the first half, and the other way round. Each shifted by
        # its own alpha: d is in units of the first.
        a, b = window.shares()
        r = window.alphas[0] / window.alphas[1]
        # base * (g - part) from the first pair of passes, base * r * part from the second
        terms = [*signs, *(r * s for s in signs), base, base * (r - 1.0)]
        return terms, difference.factor(eps) / (2.0 * a * b) / window.scale

    def terms(self, i: int, last: Tensor | None = None) -> list[tuple[float, Tensor]]:
        """The tensors of parameter ``i`` that make up d, with their coefficients.

        ``last``: its gradient of the last pass, where ``window.grads`` does not have it yet.
        """
        window = self.window
        grads = [g[i] for g in window.grads] + ([] if last is None else [last])
        lists = [*grads, self.g1[i], *([window.part[i]] if window.part is not None else [])]
        found = []
        for c, t in zip(self.coefficients, lists, strict=True):
            if c and t is not None:
                found.append((c, t))
        return found

    def measure(self, sampled: bool) -> ShardSums:
        """||d||; where ``sampled``, from a sixteenth of the coordinates, with g1 . d besides."""
        sums = ShardSums(self.moved[0].device)
        for i, p in enumerate(self.moved):
            if self.absent[i]:
                continue
            terms = [(c, local(t)) for c, t in self.terms(i)]
            if sampled:
                d, g = total([(c, thinned(t)) for c, t in terms]), thinned(local(self.g1[i]))
                grown = terms[0][1].numel() / max(d.numel(), 1)
                size = torch.linalg.vector_norm(d)
                sums.add(p, math.sqrt(grown) * size, grown * dot_of(g, d))
                continue
            for span in spans(*(t for _, t in terms)):
                d = total([(c, cut(t, span)) for c, t in terms])
                sums.add(p, torch.linalg.vector_norm(d))
        return sums

    def _together(self) -> bool:
        """Whether torch's multi-tensor kernels do the sum: few launches, as accelerators want."""
        first = self.g1[0]
        return (
            first.device.type not in LOOPED
            and first.dtype == wide(first.dtype)
            and not any(self.absent)
            and all(g.device == first.device and g.dtype == first.dtype for g in self.g1)
            and plain(self.g1)
        )

    def _lists(self) -> list[tuple[float, list[Tensor]]]:
        """The terms of d as lists over all parameters; every gradient is there."""
        rows = [self.terms(i) for i in range(len(self.g1))]
        return [(column[0][0], [t for _, t in column]) for column in zip(*rows, strict=True)]

    def reversed(self, weight: float) -> Tensor | None:
        """Share of an even sample of the coordinates that change sign; None for shards."""
        rows = [
            (g, self.terms(i)) for i, g in enumerate(self.g1) if not self.absent[i] and g.numel()
        ]
        if not rows or not plain([t for _, terms in rows for _, t in terms]):
            return None
        g = even_sample([g for g, _ in rows], SIGNS)
        parts = []
        for column in zip(*(terms for _, terms in rows), strict=True):
            tensors = [t for _, t in column]
            same = tensors[0] is rows[0][0]  # g1 itself is among the terms of a forward difference
            parts.append((column[0][0], g if same else even_sample(tensors, SIGNS)))
        return reversed_between(g, total(parts), weight)

    def write(self, weight: float, with_dot: bool) -> tuple[Tensor, Tensor]:
        """Leave g1 + weight * d in ``.grad``; ``(||d||, g1 . d)``, found on the way."""
        grads = [p.grad for p in self.moved if p.grad is not None]
        graphs = any(g.requires_grad for g in grads)  # from the exact product
        if self._together() and len(grads) == len(self.moved) and not graphs:
            (_, d), *others = self._lists()
            for c, tensors in others:
                torch._foreach_add_(d, tensors, alpha=c)
            found = norm(d), dot(self.g1, d)
            torch._foreach_mul_(d, weight)
            torch._foreach_add_(d, self.g1)
            if any(a.data_ptr() != b.data_ptr() for a, b in zip(d, grads, strict=True)):
                torch._foreach_copy_(grads, d)
            return found
        sums = ShardSums(self.moved[0].device)
        for i, p in enumerate(self.moved):
            self._write_one(i, p, weight, sums, with_dot)
        return sums.norm(), sums.dot()

    def _write_one(
        self,
        i: int,
        p: Tensor,
        weight: float,
        sums: ShardSums,
        with_dot: bool,
    ) -> None:
        g = self.g1[i]
        # a gradient that requires grad has a graph, from the exact product
        if p.grad is None or p.grad.requires_grad:
            p.grad = g if self.absent[i] else torch.empty_like(g)
        if self.absent[i]:
            p.grad.copy_(g)
            return
        here, target = local(g), local(p.grad)
        terms = [(c, local(t)) for c, t in self.terms(i)]
        for span in spans(here, target, *(t for _, t in terms)):
            # several operations on one range, which they find in the cache
            part = cut(here, span)
            d = total([(c, cut(t, span)) for c, t in terms], in_place=True)
            sums.add(p, torch.linalg.vector_norm(d), dot_of(part, d) if with_dot else None)
            if target.dtype == d.dtype:
                torch.add(part, d, alpha=weight, out=cut(target, span))
            else:
                cut(target, span).copy_(d.mul_(weight).add_(part))


def total(terms: Sequence[tuple[float, Tensor]], in_place: bool = False) -> Tensor:
    """The weighted sum, in float32 or wider; the first weight is 1.

    ``in_place``: in the memory of the first tensor where that is wide.
    """
    (_, first), *others = terms
    found = first.to(wide(first.dtype), copy=not in_place)
    for c, t in others:
        found.add_(t, alpha=c)
    return found
