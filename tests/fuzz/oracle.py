"""Gradient regularization written down plainly, on lists of float64 tensors: slow and obvious.

Nothing is shifted in place and nothing is shared with flatopt: a gradient is a function of values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Values = Sequence[Tensor]
LossFn = Callable[[Values], Tensor]


def gradient(loss: LossFn, values: Values, live: Sequence[int]) -> list[Tensor]:
    """The gradient in the ``live`` ones of ``values``; zeros where the loss does not see one."""
    leaves = [v.detach().clone().requires_grad_(i in live) for i, v in enumerate(values)]
    with torch.enable_grad():
        wanted = [leaves[i] for i in live]
        return list(torch.autograd.grad(loss(leaves), wanted, materialize_grads=True))


def hessian_times(
    loss: LossFn, values: Values, live: Sequence[int], v: Values, moved: Sequence[int]
) -> list[Tensor]:
    """H v among the ``moved`` ones, by autograd; ``v`` has one tensor for each of them."""
    leaves = [t.detach().clone().requires_grad_(i in live) for i, t in enumerate(values)]
    wanted = [leaves[i] for i in moved]
    with torch.enable_grad():
        g = torch.autograd.grad(loss(leaves), wanted, create_graph=True, materialize_grads=True)
        along = sum((a * b).sum() for a, b in zip(g, v, strict=True))
        assert isinstance(along, Tensor)
        if not along.requires_grad:
            return [torch.zeros_like(t) for t in wanted]
        return list(torch.autograd.grad(along, wanted, materialize_grads=True))


def length(tensors: Values) -> float:
    """Euclidean norm of a list of tensors as one vector."""
    return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))


@dataclass
class Rules:
    """The settings of `GradRegOptimizer`, by the same names."""

    strength: float | Callable[[int], float] | None = None
    ratio: float | None = None
    radius: float | None = None
    eps: float | None = None
    difference: str = "forward"
    max_ratio: float | None = None
    warmup: int = 0
    every: int = 1
    memory: str = "fast"
    fraction: float = 1.0
    batch: str = "whole"

    @property
    def points(self) -> int:
        """Passes of a step with GR; "auto" is on float32 and wider."""
        points = {"forward": 1, "auto": 1, "central": 2, "exact": 1}[self.difference]
        return points * (2 if self.batch == "halves" else 1)


@dataclass
class Split:
    """The two parts of a batch: their losses, as they add up, and the first one's weight."""

    first: LossFn
    second: LossFn
    share: float


@dataclass
class Turn:
    """One direction of the shift: ``along`` it, the change of the gradient of a loss.

    Attributes:
        there: the loss of the passes. here: the one whose gradient at theta is subtracted.
        unit: the multiple of the direction that ``eps`` refers to.
    """

    there: LossFn
    here: LossFn
    along: list[Tensor]
    unit: float = 1.0


@dataclass
class PlainGR:
    """The combined gradient of one step after another.

    Attributes:
        steps: steps taken. means: the running means of ||g1|| and ||H g1|| for ``ratio``.
        strength, product: what the last step used: strength, and ||H g1||.
        norms: ||g1|| and ||H g1|| of this step, for the means, until it is taken.
    """

    rules: Rules
    steps: int = 0
    means: tuple[float, float] = (0.0, 0.0)
    strength: float = field(default=0.0, init=False)
    product: float = field(default=0.0, init=False)
    norms: tuple[float, float] | None = field(default=None, init=False)

    def share(self) -> float:
        """This step's strength, or with ``ratio`` the share of it; 0 where the step is plain."""
        rules, step = self.rules, self.steps
        if step % rules.every != 0:
            return 0.0
        if rules.ratio is not None:
            value = 1.0 if rules.ratio > 0 else 0.0
        elif callable(rules.strength):
            value = rules.strength(step)
        else:
            value = rules.strength or 0.0
        return value if rules.warmup == 0 else value * min(step / rules.warmup, 1.0)

    def taken(self) -> None:
        """The base has stepped."""
        if self.norms is not None and self.rules.ratio is not None:
            self.means = self.with_norms(*self.norms)
        self.norms = None
        self.steps += 1

    def with_norms(self, size: float, product: float) -> tuple[float, float]:
        """The running means with those of this step."""
        return 0.9 * self.means[0] + 0.1 * size, 0.9 * self.means[1] + 0.1 * product

    def turns(
        self, loss: LossFn, there: LossFn, split: Split | None, values: Values, moved: Sequence[int]
    ) -> tuple[list[Turn], float]:
        """The directions, and what the sum of their changes is divided by."""
        g = gradient(loss, values, moved)
        if split is not None and self.rules.batch == "halves":
            a, b = split.share, 1.0 - split.share
            first = gradient(split.first, values, moved)
            second = gradient(split.second, values, moved)
            found = [
                Turn(split.second, split.second, first, unit=a),
                Turn(split.first, split.first, second, unit=b),
            ]
            return found, 2.0 * a * b
        if split is not None and self.rules.fraction < 1.0:
            return [Turn(split.first, split.first, g)], split.share
        return [Turn(there, loss, g)], 1.0

    def change(self, turn: Turn, eps: float, values: Values, moved: Sequence[int]) -> list[Tensor]:
        """H v for the loss and the direction of a turn, by the difference that is set."""
        v = turn.along
        if self.rules.difference == "exact":
            return hessian_times(turn.there, values, moved, v, moved)
        if self.rules.memory == "lean" and self.rules.difference == "central":
            v = [t.bfloat16().double() for t in v]  # which is kept for the second pass
        along = dict(zip(moved, v, strict=True))

        def at(multiple: float) -> list[Tensor]:
            shifted = [t + multiple * along[i] if i in along else t for i, t in enumerate(values)]
            return gradient(turn.there, shifted, moved)

        if self.rules.difference == "central":
            return [(a - b) / (2 * eps) for a, b in zip(at(eps), at(-eps), strict=True)]
        here = gradient(turn.here, values, moved)
        return [(b - a) / eps for a, b in zip(here, at(eps), strict=True)]

    def combined(
        self,
        loss: LossFn,
        values: Values,
        live: Sequence[int],
        excluded: Sequence[int] = (),
        shifted_loss: LossFn | None = None,
        absent: Sequence[int] = (),
        split: Split | None = None,
        opened: tuple[float, tuple[float, float]] | None = None,
    ) -> list[Tensor] | None:
        """One gradient for each of ``live``; None where the base may not step.

        Args:
            loss: of the first pass; shifted_loss: of the others, where it differs.
            values: of all parameters; live: indices of those that have a gradient.
            excluded: those that are not perturbed; absent: those without a gradient in the
                others, which step with their first one.
            split: the parts of the batch, for ``fraction`` and halves.
            opened: `share` and ``means`` as they were before the first pass, if not as now.
        """
        rules, lean = self.rules, self.rules.memory == "lean"
        self.strength = self.product = 0.0
        self.norms = None
        g = dict(zip(live, gradient(loss, values, live), strict=True))
        share, known = opened or (self.share(), self.means)
        if share == 0.0:
            return list(g.values())
        if not all(torch.isfinite(t).all() for t in g.values()):
            return None
        moved = [i for i in live if i not in excluded]
        size = length([g[i] for i in moved])
        if size == 0.0:
            return list(g.values())
        turns, divisor = self.turns(loss, shifted_loss or loss, split, values, moved)
        if any(length(turn.along) == 0.0 for turn in turns) and rules.difference != "exact":
            return list(g.values())
        theta = length([values[i] for i in moved]) or 1.0
        radius = rules.radius if rules.radius is not None else 1e-7
        h, eps = [torch.zeros_like(values[i]) for i in moved], 1.0
        for turn in turns:
            eps = (
                radius * theta / length(turn.along) if rules.eps is None else rules.eps / turn.unit
            )
            change = self.change(turn, eps, values, moved)
            h = [a + b / divisor for a, b in zip(h, change, strict=True)]
        h = [torch.zeros_like(t) if i in absent else t for i, t in zip(moved, h, strict=True)]
        product = length(h)
        if lean and (not math.isfinite(product)):
            return None
        if not math.isfinite(product) or product == 0.0:
            return list(g.values())
        if rules.ratio is None:
            strength = share
        elif lean:  # known before the passes
            points = 2 if rules.difference == "central" else 1
            before = rules.ratio * known[0] / known[1] if known[1] else 0.0
            strength = share * before or 0.5 * points * eps * divisor
        else:
            means = self.with_norms(size, product)
            strength = share * rules.ratio * means[0] / means[1]
        if rules.max_ratio is not None:
            strength = min(strength, rules.max_ratio * size / product)
        if lean and absent and rules.points == 1 and abs(1.0 - strength / eps) < 1e-3:
            return None  # g1 was multiplied by (about) zero
        self.strength, self.product, self.norms = strength, product, (size, product)
        extra = dict(zip(moved, h, strict=True))
        return [g[i] + strength * extra[i] if i in extra else g[i] for i in live]
