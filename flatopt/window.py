"""One GR step in flight: g1, the shifted passes, and their combination in .grad."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flatopt.backup import Keeper
from flatopt.combine import Combination
from flatopt.difference import Difference, Exact, differentiable, product
from flatopt.part import Part, take
from flatopt.perturb import displaced
from flatopt.rounding import Dither
from flatopt.shards import check_one_process
from flatopt.stats import Stats
from flatopt.vectors import SAMPLE, ShardSums, norm, read, thinned_norm

FLOAT32_MAX = torch.finfo(torch.float32).max
NOT_FINITE = "the gradient is not finite; the base optimizer did not step"
_NOT_FINITE_THERE = "the gradient at theta' is not finite; the step is plain"
NO_DIFFERENCE = (
    "g2 equals g1 exactly: the shift is below the precision (give radius=3e-4) or the loss is "
    "linear here; the step is plain"
)


@dataclass(frozen=True)
class Rule:
    """How strong the penalty is: ``fixed``, or from the norms of g1 and H g1.

    ``preview`` gives the strength and changes nothing; ``note`` takes the step's norms in; ``last``
    is the strength by the norms taken in so far.
    """

    fixed: float | None = None
    preview: Callable[[float, float], float] = lambda grad_norm, product_norm: 0.0
    note: Callable[[float, float], object] = lambda grad_norm, product_norm: None
    last: float = 0.0

    def strength(self, grad_norm: float, product_norm: float) -> float:
        """This step's strength."""
        return self.preview(grad_norm, product_norm) if self.fixed is None else self.fixed


@dataclass(frozen=True)
class Settings:
    """How the passes of one step are done.

    Attributes:
        difference: where gradients are taken and how they combine.
        radius: shift relative to ||theta||; or eps: multiple of the (unscaled) gradient.
        scale: factor on all gradients (a GradScaler's loss scale); does not enter the penalty.
        part: the first part of the batch. halves: it is one of two independent halves.
        keeper: keeps the weights. seed: of the random rounding of 16-bit weights.
        rule: gives the strength.
    """

    difference: Difference
    radius: float | None
    eps: float | None
    scale: float = 1.0
    part: Part | None = None
    halves: bool = False
    keeper: Keeper | None = None
    seed: int = 0
    rule: Rule = Rule()


class Window:
    """Takes g1 from ``.grad``, runs the passes of a `Difference`, leaves the sum in ``.grad``.

    Args:
        moved: the parameters that are perturbed; kept: the excluded ones. All have a ``.grad``.
        unused: the parameters without a ``.grad``; they have none afterwards either.

    ``skip_base`` says afterwards that the base optimizer must not step.
    """

    def __init__(
        self,
        moved: Sequence[Tensor],
        kept: Sequence[Tensor],
        unused: Sequence[Tensor],
        settings: Settings,
    ) -> None:
        self.moved, self.kept, self.unused = list(moved), list(kept), list(unused)
        self.settings, self.difference = settings, settings.difference
        self.scale = settings.scale
        self.absent: list[bool] = [False] * len(self.moved)  # no gradient in some pass
        self.late: set[int] = set()  # ids of unused parameters with a gradient in some pass
        self.done = 0  # passes
        self.active = False  # inside a pass
        self.realised: Tensor | None = None
        self._measure()
        self.g1: list[Tensor] = []
        self.kept_grads: list[Tensor] = []
        try:
            self._take()
            self.directions = self._directions()
            self.alphas = self._alphas()
            # one (direction, point) per pass
            points = self.difference.points
            self.passes = [(d, point) for d in range(len(self.directions)) for point in points]
            self._ready()
        except BaseException:
            self._give_back()
            raise

    def _ready(self) -> None:
        """For subclasses: all is known, nothing has been done yet."""

    # ---- on opening -----------------------------------------------------------------------------

    def _measure(self) -> None:
        """The norms of g1 and theta, and whether they allow a shift (`why` not)."""
        device = (self.moved or self.kept)[0].device
        g1, kept = ([_grad(p) for p in side] for side in (self.moved, self.kept))
        zero = torch.zeros((), device=device)
        grad_norm = norm(g1) if g1 else zero
        self.grad_norm = grad_norm / self.scale
        # Whether to shift at all is decided on the host. A step waits for the device twice: here
        # for these norms, and in `combine` for ||d|| (`read`).
        raw, self.length, self.theta, others = read(
            [
                grad_norm,
                self.grad_norm,
                thinned_norm(self.moved) if self.moved else zero + 1.0,
                norm(kept) if kept else zero,
            ]
        )
        self.skip_base = not math.isfinite(raw + others)
        self.why: str | None = None
        if self.skip_base:
            self.why = NOT_FINITE
        elif raw == 0.0:
            self.why = "the gradient is zero" if self.moved else "every parameter is excluded"
        self.raw_length = raw

    def _take(self) -> None:
        for p in self.moved:
            self.g1.append(take(p))
        for p in self.kept:
            self.kept_grads.append(take(p))
        self.grads: list[list[Tensor | None]] = []  # one list per finished pass
        part = self.settings.part
        self.part = part.of(self.moved, self.g1) if part is not None else None

    def _directions(self) -> list[list[Tensor]]:
        if not self.settings.halves:
            return [self.g1]
        assert self.part is not None
        return [self.part, [g - a for g, a in zip(self.g1, self.part, strict=True)]]

    def _alphas(self) -> list[float]:
        """The multiples of the stored gradients by which each direction shifts."""
        if self.why is not None or isinstance(self.difference, Exact):
            self.radius = None
            return [1.0] * len(self.directions)
        # alpha multiplies the stored gradients, eps the true ones: eps * g = alpha * (scale * g)
        lengths = [self.raw_length]
        if len(self.directions) > 1:
            lengths = read([norm(d) for d in self.directions])
        if 0.0 in lengths:
            self.why = "one half has a zero gradient"
            return [1.0] * len(lengths)
        if self.settings.eps is not None:
            # a half's own gradient is the mean of its samples, not its share of the batch's
            shares = [1.0] if self.settings.part is None or len(lengths) == 1 else self.shares()
            alphas = [self.settings.eps / self.scale / s for s in shares]
        else:
            # All weights zero: nothing to be relative to; the shift is then `radius` long.
            alphas = [(self.settings.radius or 0.0) * (self.theta or 1.0) / n for n in lengths]
        if max(alphas) > FLOAT32_MAX:
            self.why = "the gradient is too small to step along"
        self.radius = alphas[0] * lengths[0] / (self.theta or 1.0)
        return alphas

    def shares(self) -> list[float]:
        """The weights in the batch of the two parts that are shifted one after the other."""
        assert self.settings.part is not None
        return [self.settings.part.share, 1.0 - self.settings.part.share]

    def _give_back(self) -> None:
        """All gradients in their places again, also where only some had been taken."""
        taken = (
            *zip(self.moved, self.g1, strict=False),
            *zip(self.kept, self.kept_grads, strict=False),
        )
        for p, g in taken:
            if p.grad is None:
                p.grad = g

    # ---- passes ---------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all passes have been made."""
        return self.done == len(self.passes)

    @contextmanager
    def next_pass(self) -> Iterator[None]:
        """One pass: shifted parameters and empty gradients inside, both put back outside."""
        self.active = True
        try:
            with self._pass():
                yield
            self.done += 1
        finally:
            self.active = False
            for p in self.unused:
                if p.grad is not None:  # g2 alone: the base must not take it for a gradient
                    self.late.add(id(p))
                    p.grad = None

    @contextmanager
    def _pass(self) -> Iterator[None]:
        for p in (*self.moved, *self.kept):
            p.grad = None
        if self.why is not None:
            yield  # the gradients of this pass are not used
            return
        if isinstance(self.difference, Exact):
            check_one_process(self.moved)
            with differentiable():
                yield
            number, _ = self.passes[self.done]
            direction = [g / self.scale for g in self.directions[number]]
            products = product(self.moved, direction)
            found = [
                None if p.grad is None else h for p, h in zip(self.moved, products, strict=True)
            ]
        else:
            with self._shifted():
                yield
            found = [p.grad for p in self.moved]
            if self.done + 1 < len(self.passes):  # the next pass may overwrite them
                found = [None if p.grad is None else take(p) for p in self.moved]
        if self.done + 1 < len(self.passes):
            self.abandon()  # between two passes all is as before the first
        self.absent = [a or g is None for a, g in zip(self.absent, found, strict=True)]
        self.grads.append([None if g is None else g.detach() for g in found])

    @contextmanager
    def _shifted(self) -> Iterator[None]:
        number, point = self.passes[self.done]
        keeper = self.settings.keeper or Keeper()
        dither = Dither(self.settings.seed * 8 + self.done)
        measure = self.done == 0
        direction, alpha = self.directions[number], self.alphas[number] * point
        with displaced(self.moved, direction, alpha, measure, keeper, dither) as realised:
            yield
        self.realised = realised if measure else self.realised

    def clear(self, zero_grad: Callable[[], None]) -> None:
        """What the optimizer's zero_grad() does inside a pass."""
        zero_grad()

    def abandon(self) -> None:
        """Put g1 back into ``.grad``, as before the first pass."""
        for p, g in zip(self.moved, self.g1, strict=True):
            p.grad = g
        self._restore_kept()

    def _restore_kept(self) -> None:
        for p, g in zip(self.kept, self.kept_grads, strict=True):
            if p.grad is g:
                continue
            if p.grad is None or p.grad.requires_grad:
                p.grad = g
            else:
                p.grad.copy_(g)

    # ---- the sum --------------------------------------------------------------------------------

    @torch.no_grad()
    def combine(self, max_ratio: float | None) -> Stats:
        """Leave g1 + strength * H g1 in ``.grad``.

        Args:
            max_ratio: bound on the length of the penalty relative to ||g1||.
        """
        if self.why is not None:
            self.abandon()
            return Stats(grad_norm=self.grad_norm, strength=0.0, skipped=self.why)
        combination = Combination(self)
        factor = combination.factor
        rule, sampled = self.settings.rule, False
        sums = ShardSums(self.moved[0].device)
        strength, product_norm = rule.fixed, None
        if strength is None or max_ratio is not None:
            # The strength hangs on ||H g1||. To read all gradients once more for it would cost as
            # much as the sum itself, so in large models a sample tells it.
            sampled = max_ratio is None and sum(g.numel() for g in self.g1) > SAMPLE
            sums = combination.measure(sampled)
            product_norm = factor * read([sums.norm()])[0]
            if not math.isfinite(product_norm):
                return self._plain(_NOT_FINITE_THERE)
            strength = rule.strength(self.length, product_norm)
            if max_ratio is not None and strength * product_norm > max_ratio * self.length:
                strength = max_ratio * self.length / product_norm
        weight = strength * factor * self.scale
        if not weight <= FLOAT32_MAX:
            return self._plain("the penalty is not finite; the step is plain")
        reverses = combination.reversed(weight)
        d_norm, along = combination.write(weight, with_dot=not sampled)
        if sampled:
            along = sums.dot()
        if sampled or product_norm is None:
            product_norm = factor * read([d_norm])[0]
        if not math.isfinite(product_norm):
            return self._plain(_NOT_FINITE_THERE)
        if product_norm == 0.0 and not isinstance(self.difference, Exact):
            return self._plain(NO_DIFFERENCE if not all(self.absent) else self.notes())
        if self.overflowed():
            return self._plain("the sum is not finite in float16; the step is plain")
        rule.note(self.length, product_norm)
        if not math.isfinite(strength * product_norm):
            return self._plain("the penalty is not finite; the step is plain")
        self._restore_kept()
        stats = self.numbers(strength, factor, d_norm, along)
        stats.reversed = reverses
        stats.skipped = self.notes() or None
        return stats

    def overflowed(self) -> bool:
        """True where g1 + strength * H g1 has left float16's range, though its parts have not."""
        half = [_grad(p) for p in self.moved if p.dtype == torch.float16]
        return bool(half) and not math.isfinite(read([norm(half)])[0])

    def _plain(self, why: str) -> Stats:
        self.abandon()
        stats = Stats(grad_norm=self.grad_norm, strength=0.0, radius=self.radius, skipped=why)
        stats.realised_step = self.realised
        return stats

    def notes(self) -> str:
        """What happened to single parameters."""
        notes = []
        if any(self.absent):
            notes.append(f"{sum(self.absent)} parameter(s) had no gradient at theta': step with g1")
        if self.late:
            notes.append(f"{len(self.late)} parameter(s) had no gradient at theta: no step")
        return "; ".join(notes)

    def numbers(self, strength: float, factor: float, d_norm: Tensor, along: Tensor) -> Stats:
        """The step's numbers, from ||d|| and g1 . d in scaled gradients."""
        n = self.grad_norm * self.scale
        stats = Stats(
            grad_norm=self.grad_norm,
            penalty_norm=strength * factor * d_norm,
            penalty_ratio=strength * factor * d_norm / self.grad_norm,
            strength=strength,
            curvature=factor * self.scale * along / n**2,
            radius=self.radius,
            realised_step=self.realised,
        )
        if not isinstance(self.difference, Exact) and self.settings.part is None:
            # g2 = g1 + d for forward differences, g1 + d/2 for central ones (to second order);
            # written so because ||g2|| itself would hide a small difference in rounding.
            share = 1.0 / len(self.difference.points)
            g2 = torch.sqrt((n**2 + 2 * share * along + (share * d_norm) ** 2).clamp_min(0))
            stats.perturbed_grad_norm = g2 / self.scale
            stats.cosine = (n**2 + share * along) / (n * g2)
        return stats


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.detach()
