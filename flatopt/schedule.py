"""How strong the penalty is, by schedule or ratio; and when the reference policy is reset."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

    .. math:: \gamma_t = \mathrm{ratio} \cdot \mathrm{EMA}(\|g_1\|) / \mathrm{EMA}(\|H g_1\|)

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
        self.grad_norm, self.product_norm = self._averages(grad_norm, product_norm)
        return self.last

    def preview(self, grad_norm: float, product_norm: float) -> float:
        """The strength that `update` would return; nothing is taken in."""
        if product_norm == 0.0:
            return 0.0
        average, product = self._averages(grad_norm, product_norm)
        return self.ratio * average / product

    @property
    def last(self) -> float:
        """The strength by the norms taken in so far; 0 before the first."""
        return self.ratio * self.grad_norm / self.product_norm if self.product_norm else 0.0

    def _averages(self, grad_norm: float, product_norm: float) -> tuple[float, float]:
        new = 1 - self.decay
        return (
            self.decay * self.grad_norm + new * grad_norm,
            self.decay * self.product_norm + new * product_norm,
        )


@dataclass(frozen=True)
class ReferenceReset:
    r"""When the reference policy is reset, from what, and to what.

    .. math:: \text{target} \leftarrow (1 - \text{mix}) \cdot \text{target}
              + \text{mix} \cdot \text{source}

    Args:
        every: reset after each so many optimizer steps (200).
        when: in place of ``every``: a callable that says after each step whether to reset. It is
            given a dict: ``step``, ``since_reset``, ``resets``, and what `Reference.metrics` holds
            (in a trainer: its last log).
        source: "policy", or "ema": a running mean of the policy with ``ema_decay``.
        target: "reference": the reference moves. "policy": the policy moves to the running mean,
            and the running mean to the initial policy, which stays the reference (Elastic Reset).
        mix: share of the source, 0 < mix <= 1. 1 is a hard reset.
        ema_decay: 0 < decay < 1, for ``source="ema"``.
        reset_optimizer: also forget the base optimizer's moments, as ProRL does.
        offload: keep the copies on the CPU.

    Raises:
        ValueError: settings outside their range, or that contradict each other.

    Source: hard resets, Ackermann et al. 2026 (arXiv 2602.18037), every=200; TR-DPO, Gorbatovski et
    al. 2024 (arXiv 2404.09656), mix=0.6; ProRL, Liu et al. 2025 (arXiv 2505.24864), ``when`` with
    ``reset_optimizer=True``; Elastic Reset, Noukhovitch et al. 2023 (arXiv 2312.07551),
    ``source="ema", target="policy"``.

    Example:
        >>> rule = ReferenceReset(when=lambda m: m["since_reset"] >= 10 and m["reward"] < 0.5)
        >>> rule.due({"since_reset": 10, "reward": 0.4})
        True
    """

    every: int | None = None
    when: Callable[[dict[str, Any]], bool] | None = None
    source: str = "policy"
    target: str = "reference"
    mix: float = 1.0
    ema_decay: float | None = None
    reset_optimizer: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.every is not None and self.when is not None:
            raise ValueError("give every (steps between resets) or when (a callable), not both")
        if self.every is None and self.when is None:
            object.__setattr__(self, "every", 200)
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise ValueError(f"every is a number of steps, a whole number >= 1; got {self.every!r}")
        if self.when is not None and not callable(self.when):
            raise ValueError(f"when is a callable of the metrics; got {self.when!r}")
        for name, known in (("source", ("policy", "ema")), ("target", ("reference", "policy"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {known}; got {getattr(self, name)!r}")
        if not 0.0 < self.mix <= 1.0:
            raise ValueError(f"mix is a share, 0 < mix <= 1; got {self.mix!r}")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"ema_decay lies between 0 and 1; got {self.ema_decay!r}")
        if (self.source == "ema") != (self.ema_decay is not None):
            raise ValueError('source="ema" and ema_decay belong together; give both, or neither')
        if self.source == self.target:
            raise ValueError('target="policy" needs source="ema" with ema_decay, such as 0.995')

    def due(self, metrics: dict[str, Any]) -> bool:
        """Whether to reset now; ``metrics`` as described for ``when``."""
        if self.every is not None:
            return metrics["since_reset"] >= self.every
        assert self.when is not None
        return bool(self.when(metrics))

    def blend(self, target: Tensor, source: Tensor) -> Tensor:
        """The new target, in float32 or wider; with ``mix`` 1 the source itself, bit for bit."""
        if self.mix == 1.0:
            return source
        dtype = torch.promote_types(torch.promote_types(target.dtype, source.dtype), torch.float32)
        return target.to(dtype).lerp(source.to(dtype), self.mix)
