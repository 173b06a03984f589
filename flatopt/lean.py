"""One buffer instead of two: the second gradient is added onto the first as it is computed.

The strength must be known before the passes. So `ratio` follows the averages up to the last step,
and in the first step of all, which has none yet, the penalty is hardly there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from flatopt.backup import cut, spans
from flatopt.combine import Combination, total
from flatopt.difference import Central
from flatopt.part import take
from flatopt.shards import local
from flatopt.stats import Stats
from flatopt.vectors import (
    LOW_PRECISION,
    SIGNS,
    ShardSums,
    dot_of,
    even_sample,
    layout,
    norm,
    owned,
    plain,
    read,
    reversed_between,
)
from flatopt.window import FLOAT32_MAX, NO_DIFFERENCE, Settings, Window

LOST = (
    "the sum of the gradients is not finite, or a parameter had none at theta', and memory='lean' "
    "keeps no copy; the base optimizer did not step"
)
_CLEARED = (
    "the gradients were cleared, or changed, inside perturbed() by other means than "
    "optimizer.zero_grad(). With memory='lean' they hold the first gradient, onto which the second "
    "is added: leave that out, or use memory='fast'"
)
_TWICE = (
    "a second backward pass inside one perturbed() block: with memory='lean' and 16-bit weights "
    "the first gradient has been used up already. Use one backward pass per block, or memory='fast'"
)
_REPLACED = (
    "a backward pass put another tensor into .grad, as create_graph=True does (or a hook). With "
    "memory='lean' the second gradient is added onto the first in place; use memory='fast'"
)
_SHARDED = (
    "memory='lean' with 16-bit weights needs a single process: elsewhere gradients are exchanged "
    "after they were used up. Use memory='fast'"
)


def lean_window(
    moved: Sequence[Tensor],
    kept: Sequence[Tensor],
    unused: Sequence[Tensor],
    settings: Settings,
) -> Window:
    """A `Window` that needs one buffer: `Adding`, or `Streaming` where weights have 16 bits."""
    narrow = any(p.dtype in LOW_PRECISION for p in moved)
    return (Streaming if narrow else Adding)(moved, kept, unused, settings)


def _processes() -> int:
    """How many processes train together; 0 outside torch.distributed."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 0


class Lean(Window):
    """What both have in common: the strength, and what is left where a step fails."""

    weight: float

    def _ready(self) -> None:
        self.weight = self._weight() if self.why is None else 0.0
        self.begun = False

    def _strength(self) -> float:
        """The strength, from the averages of `ratio` up to the last step."""
        rule = self.settings.rule
        if rule.fixed is not None:
            return rule.fixed
        # Without averages yet: the sum is then that of both gradients in equal parts
        return rule.last or 0.5 / (self._factor() * self.scale)

    def _factor(self) -> float:
        """H g1 / d."""
        return Combination(self).factor

    def _weight(self) -> float:
        """What d is multiplied by; g1 is never left with a weight of (about) zero."""
        weight = self._strength() * self._factor() * self.scale
        if not weight <= FLOAT32_MAX:
            self.why = "the penalty is not finite; the step is plain"
            return 1.0
        if weight < 1e-20:  # its inverse, by which g1 is multiplied, would overflow
            self.why = "the strength is 0"
        return weight

    def _used(self, weight: float) -> float:
        return weight / self._factor() / self.scale

    def _finish(self, weight: float, d_norm: Tensor, along: Tensor, ok: bool) -> Stats:
        """The numbers, and whether the step may be taken at all."""
        factor = self._factor()
        (length,) = read([d_norm])
        if not (ok and math.isfinite(length)) or self.overflowed():
            self.skip_base = True
            return Stats(grad_norm=self.grad_norm, strength=0.0, skipped=LOST)
        strength = self._used(weight)
        if length:
            self.settings.rule.note(self.length, factor * length)
        stats = self.numbers(strength, factor, d_norm, along)
        stats.skipped = self.notes() or (None if length else NO_DIFFERENCE)
        return stats


class Adding(Lean):
    r"""Scales ``.grad`` so that the backward passes add up to the sum that is wanted.

    .. math:: g_1 + w (g_2 - g_1) = w \Bigl(\frac{1-w}{w} g_1 + g_2\Bigr)

    and, for central differences, :math:`-w(-\frac1w g_1 - g_+ + g_-)`. Float32 weights and wider.
    Works wherever gradients accumulate: DDP, FSDP2. The numbers in `Stats` come from a sample.
    """

    def _take(self) -> None:
        self.g1 = [local(p.grad) for p in self.moved if p.grad is not None]  # not copied
        for p in self.kept:
            self.kept_grads.append(take(p))
        self.grads = []
        part = self.settings.part
        self.part = part.of(self.moved, [p.grad for p in self.moved]) if part is not None else None  # type: ignore[misc]
        self.before = self._sample(self.g1) if self.why is None else torch.zeros(())
        self.missed = [0] * len(self.moved)  # passes without a gradient

    def _sample(self, tensors: Sequence[Tensor]) -> Tensor:
        """Some coordinates of this process: enough for the numbers, a 64th of the memory."""
        count = sum(t.numel() for t in tensors)
        return even_sample(tensors, max(SIGNS, count // 64))

    def _directions(self) -> list[list[Tensor]]:
        g1 = [p.grad for p in self.moved]
        if isinstance(self.difference, Central) and self.why is None:
            # the second pass needs the direction too, when .grad no longer is g1; both take the
            # same, rounded to 16 bits
            g1 = [g.bfloat16() for g in g1 if g is not None]
        return [g1]  # type: ignore[list-item]

    @contextmanager
    def _pass(self) -> Iterator[None]:
        for p in self.kept:
            p.grad = None
        if self.why is not None:
            held = [(p, p.grad) for p in self.moved]
            for p in self.moved:
                p.grad = None
            try:
                yield
            finally:
                for p, g in held:
                    p.grad = g
            return
        grads = [p.grad for p in self.moved]
        backwards: dict[int, int] = {}  # how many reached each parameter
        cleared: set[int] = set()  # had no .grad when the first of them did

        def before(p: Tensor) -> None:
            if p.grad is None:
                cleared.add(id(p))

        def count(p: Tensor) -> None:
            backwards[id(p)] = backwards.get(id(p), 0) + 1

        handles = [p.register_post_accumulate_grad_hook(count) for p in self.moved]
        handles += [p.register_hook(lambda _, p=p: before(p)) for p in self.moved]
        try:
            with self._shifted():
                self._prepare(grads)
                versions = [None if g is None else local(g)._version for g in grads]
                yield
        finally:
            for handle in handles:
                handle.remove()
        if self._alone():
            self._check_written(grads, versions, backwards)
            # pieces of one tensor (as a cat leaves them) count their writes together: put right
            for i, (p, g) in enumerate(zip(self.moved, grads, strict=True)):
                if g is not None and not owned(g) and id(p) not in backwards and p.grad is g:
                    versions[i] = g._version
            for p, g in zip(self.moved, grads, strict=True):
                if p.grad is not None and p.grad is not g and id(p) not in cleared:
                    raise RuntimeError(_REPLACED)
        if any(p.grad is not None and p.grad.requires_grad for p in self.moved):
            raise RuntimeError(_REPLACED)
        self._collect(grads, versions)

    def _check_written(
        self,
        grads: Sequence[Tensor | None],
        versions: Sequence[int | None],
        backwards: dict[int, int],
    ) -> None:
        """Refuse a sum to which something else than backward passes has written."""
        for p, g, version in zip(self.moved, grads, versions, strict=True):
            if g is None or version is None or p.grad is not g or not owned(g):
                continue
            if g._version - version > backwards.get(id(p), 0):
                raise RuntimeError(_CLEARED)

    def _alone(self) -> bool:
        """True where nothing but backward passes may write to gradients: no engine reduces them."""
        return _processes() == 0 and all(plain([p]) for p in self.moved)

    def _prepare(self, grads: Sequence[Tensor | None]) -> None:
        """Scale what is there, for the pass to add to."""
        if self.done:  # central: the second pass is subtracted
            factors = (-1.0, 0.0)
        else:
            self.begun, w = True, self.weight
            base = self.difference.base
            # of g1, and of the part where there is one
            factors = ((1.0 + base * w) / w, 0.0) if self.part is None else (1.0 / w, base)
        for i, g in enumerate(grads):
            assert g is not None
            g.mul_(factors[0])
            if factors[1] and self.part is not None:
                g.add_(self.part[i], alpha=factors[1])
        if self.part is not None and self.settings.part is not None:
            self.settings.part.release()
        self.part = None

    def _collect(self, grads: Sequence[Tensor | None], versions: Sequence[int | None]) -> None:
        for i, (p, g) in enumerate(zip(self.moved, grads, strict=True)):
            assert g is not None
            if p.grad is None or p.grad is g:
                self.missed[i] += local(g)._version == versions[i]
            elif not self._alone() and layout(p.grad) is None and not owned(p.grad):
                continue  # DDP has built its buckets anew, and moved the gradient into one
            else:  # cleared before the backward pass
                g.add_(p.grad)
            p.grad = g

    def combine(self, max_ratio: float | None) -> Stats:
        """Scale the sum of the passes in `.grad` to the gradient of the step; its numbers."""
        if self.why is not None:
            self._restore_kept()
            return Stats(grad_norm=self.grad_norm, strength=0.0, skipped=self.why)
        weight = self.weight
        grads = [p.grad for p in self.moved if p.grad is not None]
        last = weight if len(self.passes) == 1 else -weight
        whole = True
        for i, g in enumerate(grads):
            g.mul_(last)
            whole &= self._without(i, g, weight)
        self._restore_kept()
        g1, g = self.before, self._sample([local(t) for t in grads])
        d = (g - g1) / weight
        sums = ShardSums(self.moved[0].device)
        grown = sum(t.numel() for t in self.g1) / max(g.numel(), 1)
        size = torch.linalg.vector_norm(d)
        sums.add(self.moved[0], math.sqrt(grown) * size, grown * dot_of(g1, d))
        finite = math.isfinite(read([norm(grads)])[0])
        stats = self._finish(weight, sums.norm(), sums.dot(), finite and whole)
        if stats.strength and layout(self.moved[0]) is None:
            stats.reversed = reversed_between(g1, d, weight)
        return stats

    def _without(self, i: int, g: Tensor, weight: float) -> bool:
        """Bring g1 back where passes left no gradient for a parameter; False where it is lost."""
        if not self.missed[i]:
            return True
        self.absent[i] = True
        if isinstance(self.difference, Central):  # both passes: g1 / w came back as it was
            return self.missed[i] == len(self.passes)
        if self.settings.part is not None:  # so it does where the part never had a gradient
            return id(self.moved[i]) not in self.settings.part.grads
        if abs(1.0 - weight) < 1e-3:
            return False
        g.div_(1.0 - weight)
        return True

    def clear(self, zero_grad: Callable[[], None]) -> None:
        """Clear the gradients where GR is left out; else the pass adds to them."""
        if self.why is not None:
            zero_grad()  # else the gradients are what the pass adds to

    def abandon(self) -> None:
        """The first gradient is gone: the batch must be taken again."""
        if self.why is None and self.begun:
            for p in self.moved:
                p.grad = None
        self._restore_kept()


class Streaming(Lean):
    """Uses up each second gradient as soon as its backward pass has computed it.

    For 16-bit weights, whose gradients would lose in accumulation what the difference is made of:
    the sum is made in float32, one range of a tensor at a time, and rounded once. The last pass's
    gradients are never all there at once.
    """

    def _take(self) -> None:
        if _processes() > 1:
            raise RuntimeError(_SHARDED)
        super()._take()
        self.sums = ShardSums(self.moved[0].device)
        self.seen: set[int] = set()

    @contextmanager
    def _pass(self) -> Iterator[None]:
        if self.why is not None or self.done + 1 < len(self.passes):
            with super()._pass():
                yield
            return
        handles: list[RemovableHandle] = []
        for p in (*self.moved, *self.kept):
            p.grad = None
        try:
            for i, p in enumerate(self.moved):
                handles.append(p.register_post_accumulate_grad_hook(self._hook(i)))
            with self._shifted():
                yield
        finally:
            for handle in handles:
                handle.remove()
        self.absent = [a or i not in self.seen for i, a in enumerate(self.absent)]
        for p, g in zip(self.moved, self.g1, strict=True):
            p.grad = g

    def _hook(self, i: int) -> Callable[[Tensor], None]:
        def use_up(p: Tensor) -> None:
            if i in self.seen:
                raise RuntimeError(_TWICE)
            self.seen.add(i)
            with torch.no_grad():
                self._add(i, p)
            p.grad = None

        return use_up

    def _add(self, i: int, p: Tensor) -> None:
        """g1 + w d into g1's memory, for one parameter."""
        if self.absent[i]:  # in an earlier pass
            return
        assert p.grad is not None
        terms, g = Combination(self).terms(i, last=p.grad), self.g1[i]
        for span in spans(g, *(t for _, t in terms)):
            part = cut(g, span)
            d = total([(c, cut(t, span)) for c, t in terms])
            self.sums.add(p, torch.linalg.vector_norm(d), dot_of(part, d))
            part.copy_(d.mul_(self.weight).add_(part))

    def combine(self, max_ratio: float | None) -> Stats:
        """The numbers of the step, whose gradients the last pass has made already."""
        if self.why is not None:
            self.abandon()
            return Stats(grad_norm=self.grad_norm, strength=0.0, skipped=self.why)
        self._restore_kept()
        return self._finish(self.weight, self.sums.norm(), self.sums.dot(), True)

    def abandon(self) -> None:
        """g1 is partly used up after an error in the last pass: the batch must be taken again."""
        if self.seen:
            for p in self.moved:
                p.grad = None
            self._restore_kept()
        else:
            super().abandon()
