"""Cheap rivals of GR, as controls: advantage clipping, reward squashing, a decaying KL.

Advantage clipping and squashing also tame a rare, over-paid sample; the decaying beta is what
resets of the reference amount to in the long run (theory/reference_resets.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Control:
    """What is changed in a trainer besides its config.

    advantage_clip: advantages are cut to [-c, c], in units of the reward.
    squash: s tanh(reward / s) is trained on in place of the reward; the logs show the reward.
    decay_every: beta / i in the i-th stretch of so many steps.
    cross_batch: GR between the halves of a batch, as {"ratio": ...} (`halves.CrossBatchGR`).
    step_length: the length of each step is recorded (`displacement.StepLength`).
    match: each step is as long as that of the run with GR (`matched.partner_of`).
    """

    advantage_clip: float | None = None
    squash: float | None = None
    decay_every: int | None = None
    cross_batch: dict[str, Any] | None = None
    step_length: bool = False
    match: bool = False

    def __post_init__(self) -> None:
        for name in ("advantage_clip", "squash", "decay_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")

    def shape(self, rewards: list[float]) -> list[float]:
        """The rewards as they are trained on."""
        if self.squash is None:
            return rewards
        return [self.squash * math.tanh(r / self.squash) for r in rewards]

    def apply(self, trainer: Any, folder: Path | None = None) -> None:
        """Change a GRPO or RLOO trainer, whose run lies in `folder`; before flatopt.attach."""
        if self.advantage_clip is not None:
            trainer._generate_and_score_completions = _clipped(
                trainer._generate_and_score_completions, self.advantage_clip
            )
        if self.decay_every is not None:
            if not trainer.beta > 0:
                raise ValueError("decay_every needs a KL term: beta > 0")
            trainer.add_callback(_decay(trainer, self.decay_every))
        if self.cross_batch is not None:
            from .watch.halves import CrossBatchGR

            CrossBatchGR(trainer, **self.cross_batch)
        if self.step_length or self.match:
            from .displacement import StepLength
            from .matched import FILE, partner_of, read_lengths

            assert folder is not None
            targets = None
            if self.match:
                partner = partner_of(folder.name)
                assert partner is not None
                targets = read_lengths(folder.parent / partner, trainer.args.max_steps)
            StepLength(trainer, folder / FILE, targets)


def _clipped(generate: Callable[..., Any], most: float) -> Callable[..., Any]:
    def clipped(*args: Any, **kwargs: Any) -> Any:
        inputs = generate(*args, **kwargs)
        inputs["advantages"] = inputs["advantages"].clamp(-most, most)
        return inputs

    return clipped


def _decay(trainer: Any, every: int) -> Any:
    from transformers import TrainerCallback

    first = trainer.beta

    class Decay(TrainerCallback):
        """Sets the trainer's beta from its step alone, so that a resumed run goes on alike."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.beta = first / (1 + state.global_step // every)

    return Decay()
