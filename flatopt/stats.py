"""What the last step did: the numbers behind `optimizer.stats`."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

WORDS = ("difference", "precision", "skipped")  # what is not a number


@dataclass
class Stats:
    """Numbers of the last step, as 0-dim tensors on the parameters' device, or None before it.

    All norms are over the perturbed parameters (without excluded ones). With ``memory="lean"``
    those of g2 and of the penalty are estimates from a sample of the coordinates; so are `cosine`
    and `curvature` of models above a million parameters. `float(stats.cosine)` or
    `stats.numbers()` reads them.

    Attributes:
        grad_norm: ||g1||, the gradient at theta.
        perturbed_grad_norm: ||g2||, the gradient at theta' (for "exact": None).
        penalty_norm: ||strength * H g1||, the gradient of the penalty as it was used.
        penalty_ratio: penalty_norm / grad_norm.
        strength: the strength used, after `ratio`, `warmup`, `max_ratio`; 0 on a step without GR.
        cosine: of g1 and g2 (for "exact": None).
        curvature: g.Hg / g.g, in loss / parameter^2.
        realised_step: length of the shift that survived rounding / the intended one. Near 0: the
            weights are too coarse for this step length. 2 or 3 with 16-bit weights, where rounding
            at random adds to the length without a direction of its own.
        turn: the angle, in radians, by which GR turns the gradient as a whole, between g1 and
            g1 + strength * H g1: what a step of fixed length keeps of GR.
        reversed: the share of coordinates that change sign, of an even sample: what Adam keeps
            at once (None for shards, and for lean memory of 16-bit weights). Like Adam it does
            not see a positive factor on a coordinate. With 16-bit weights or autocast a part of
            it is rounding.
        radius: the intended ||theta' - theta|| / ||theta||.
        difference: "forward", "central" or "exact": how H g1 was taken.
        precision: what the gradients were computed in: "float64", "float32", "tf32" or "16 bits";
            None where nothing tells (very small float32 models).
        skipped: why GR was left out of this step, for all or for some parameters; or None.
    """

    grad_norm: Tensor | None = None
    perturbed_grad_norm: Tensor | None = None
    penalty_norm: Tensor | None = None
    penalty_ratio: Tensor | None = None
    strength: Tensor | float | None = None
    cosine: Tensor | None = None
    curvature: Tensor | None = None
    realised_step: Tensor | None = None
    radius: Tensor | float | None = None
    reversed: Tensor | None = None
    difference: str | None = None
    precision: str | None = None
    skipped: str | None = None

    @property
    def turn(self) -> Tensor | None:
        """The angle between g1 and g1 + strength * H g1 in radians; None without GR."""
        if self.penalty_ratio is None or self.curvature is None or self.strength is None:
            return None
        along = self.strength * self.curvature
        across = (self.penalty_ratio**2 - along**2).clamp(min=0.0).sqrt()
        return torch.atan2(across, 1.0 + along)

    def known(self) -> dict[str, Tensor | float]:
        """The numbers that are known, as they are (does not wait for the device)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in WORDS}
        values["turn"] = self.turn
        return {name: value for name, value in values.items() if value is not None}

    def numbers(self) -> dict[str, float]:
        """The numbers that are known, as floats (waits for the device)."""
        return {name: float(value) for name, value in self.known().items()}
