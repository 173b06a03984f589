"""Resuming at the right place in the data, also after the first pass over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def advance_sampler(trainer: Any, checkpoint: Path) -> None:
    """Let a resumed trainer draw the prompts that the unbroken run would have drawn.

    TRL's sampler shuffles anew for each pass over the data, from a random state of its own. A
    resumed Trainer begins with the pass it was in, and with the random state of the first.

    Args:
        trainer: a GRPO or RLOO trainer, before train().
        checkpoint: what it is resumed from.
    """
    import torch

    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    passes = int(state["epoch"] + 1e-6)  # a whole number of passes may be a little below
    make = trainer._get_train_sampler

    def advanced(*arguments: Any, **options: Any) -> Any:
        sampler = make(*arguments, **options)
        generator = getattr(sampler, "generator", None)
        for _ in range(passes if generator is not None else 0):
            torch.randperm(sampler.num_samples, generator=generator)
        return sampler

    trainer._get_train_sampler = advanced
