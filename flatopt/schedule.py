"""How strong the penalty is: fixed, on a schedule, or scale-free by a target ratio."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Strength = float | Callable[[int], float]


@dataclass(frozen=True)
class _Ramp:
    """From ``start`` to ``end`` in ``steps`` optimizer steps, then ``end``."""

    start: float
    end: float
    steps: int

    def _share(self, step: int) -> float:
        return min(step / self.steps, 1.0) if self.steps > 0 else 1.0


@dataclass(frozen=True)
class LinearStrength(_Ramp):
    """Strength going linearly from ``start`` to ``end`` in ``steps`` optimizer steps.

    Example:
        >>> LinearStrength(0.0, 1.0, steps=10)(5)
        0.5
    """

    def __call__(self, step: int) -> float:
        return self.start + self._share(step) * (self.end - self.start)


@dataclass(frozen=True)
class CosineStrength(_Ramp):
    """Strength going from ``start`` to ``end`` in ``steps`` steps along half a cosine.

    Example:
        >>> round(CosineStrength(1.0, 0.0, steps=10)(5), 6)
        0.5
    """

    def __call__(self, step: int) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * self._share(step)))
        return self.end + (self.start - self.end) * wave


@dataclass
class RatioStrength:
    r"""Strength at which the penalty gradient is ``ratio`` times as long as the gradient.

    .. math:: \gamma_t = ratio \cdot \mathrm{EMA}(\|g_1\|) / \mathrm{EMA}(\|H g_1\|)

    Both averages have the same decay and start from zero, so the bias of the start cancels in the
    quotient and the first step is exact. Scaling the loss by c scales the first average by c and
    the second by c^2: the penalty keeps its length relative to the gradient, which no fixed
    strength does. A step without curvature (``product_norm`` 0) has strength 0 and leaves both as
    they were; averaged in, it would make the strength of the next ones overshoot. What a single
    batch of unusual curvature still does, `GradRegOptimizer`'s ``max_ratio`` bounds.

    Example:
        >>> rule = RatioStrength(ratio=0.5)
        >>> rule.update(grad_norm=2.0, product_norm=4.0)
        0.25
    """

    ratio: float
    decay: float = 0.9
    grad_norm: float = 0.0
    product_norm: float = 0.0

    def update(self, grad_norm: float, product_norm: float) -> float:
        """Take in this step's two norms; return the strength for this step."""
        if product_norm == 0.0:
            return 0.0
        self.grad_norm = self.decay * self.grad_norm + (1 - self.decay) * grad_norm
        self.product_norm = self.decay * self.product_norm + (1 - self.decay) * product_norm
        return self.ratio * self.grad_norm / self.product_norm
