"""The length of each optimizer step: measured, or set to that of another run (`matched`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from flatopt.shards import local
from flatopt.vectors import ShardSums, wide

from .processes import is_main

COLUMN = "step_length"  # of metrics.jsonl: the mean since the last row


class StepLength(TrainerCallback):
    """Measures ||theta_{t+1} - theta_t|| of each step, and sets it where `targets` are given.

    The length is the L2 norm over all trainable parameters, of all shards under FSDP2. With
    targets the step is multiplied by target / length: same direction, the given length. A step of
    length 0 stays 0. The result is rounded to the weights' precision: a relative error of some 1e-6
    with float32 weights, and far more with 16-bit ones. What is recorded is the real length.

    Args:
        trainer: a transformers Trainer. Takes memory for one copy of the trainable parameters.
        path: where a line per step is written: `step` (from 1), `length`.
        targets: the length of each step, or None to measure only.
    """

    def __init__(self, trainer: Any, path: Path, targets: dict[int, float] | None = None) -> None:
        self.trainer, self.path, self.targets = trainer, path, targets
        self._before: list[torch.Tensor] = []
        self._sum, self._count = 0.0, 0  # since the last log
        trainer.add_callback(self)

    def _parameters(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.trainer.model.parameters() if p.requires_grad]

    def _length(self) -> float:
        sums = ShardSums(self._before[0].device)  # one exchange between processes for all shards
        for now, before in zip(self._parameters(), self._before, strict=True):
            moved = local(now) - local(before)  # one tensor at a time: no second copy of the model
            sums.add(now, torch.linalg.vector_norm(moved, dtype=wide(moved.dtype)))
        return float(sums.norm())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the parameters as they are before the step."""
        now = self._parameters()
        if len(self._before) != len(now):
            self._before = [p.clone() for p in now]
            return
        for kept, p in zip(self._before, now, strict=True):
            kept.copy_(p)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the step, and set its length."""
        step = state.global_step + 1
        length = self._length()
        if self.targets is not None and 0.0 < length < math.inf:
            scale = self.targets[step] / length
            for now, before in zip(self._parameters(), self._before, strict=True):
                here, there = local(now), local(before)
                here.copy_(there + scale * (here - there))
            length = self._length()
        self._sum, self._count = self._sum + length, self._count + 1
        if is_main():
            with self.path.open("a", encoding="utf-8") as file:
                row = {"step": step, "length": length if math.isfinite(length) else None}
                file.write(json.dumps(row) + "\n")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the mean since the last log to the trainer's numbers."""
        if logs is not None and self._count:
            logs[COLUMN] = self._sum / self._count
            self._sum, self._count = 0.0, 0
