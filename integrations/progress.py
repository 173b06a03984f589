"""How long work tells how far it is: `say(name, done, total, text)`, from a trainer's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Say = Callable[[str, int, int, str], None]


def silent(name: str, done: int, total: int, text: str = "") -> None:
    """A `Say` that shows nothing."""


def tell(say: Say, name: str, text: str, every: int = 10) -> Any:
    """A TrainerCallback that says every few steps, and at the end, how far a training is."""
    from transformers import TrainerCallback

    class Tell(TrainerCallback):
        """Says how far the training is."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0 or state.global_step == state.max_steps:
                say(name, state.global_step, state.max_steps, text)

    return Tell()
