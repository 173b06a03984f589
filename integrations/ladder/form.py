"""The two forms of the ladder behind one face: how prompts are written and completions read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..worlds.ladder.episode import Episode
from ..worlds.ladder.scores import STAGES
from .config import LadderConfig, world_of

if TYPE_CHECKING:
    from ..worlds.ladder.tiny import LadderSettings

Prompt = Any  # a text, or a list of chat messages


class Form(Protocol):
    """What a run needs to know of a form of the ladder."""

    model: str  # the start policy: a folder or hub name
    max_completion: int  # tokens
    batch: int  # completions written at once

    def tokenizer(self) -> Any:
        """The policy's tokenizer, padding on the left."""
        ...

    def draw(
        self, stage: str, gameable: bool, rng: random.Random, held_out: bool = False
    ) -> tuple[Episode, Prompt]:
        """An episode and its prompt, from the part to train on or the held-out one."""
        ...

    def told(self, episode: Episode, prompt: Prompt) -> Prompt:
        """The prompt with the order to game it: a probe of the capability."""
        ...

    def texts(self, completions: Sequence[Any], ids: Sequence[list[int]] | None) -> list[str]:
        """Completions as plain text, from token ids where the form needs them."""
        ...


@dataclass
class TinyForm:
    """Words as tokens, on the cached start policy of `worlds.ladder.tiny`."""

    settings: LadderSettings
    batch: int = 1_000

    def __post_init__(self) -> None:
        from ..worlds.ladder import tiny

        self.model = str(tiny.build_policy(self.settings))
        self.max_completion = tiny.MAX_COMPLETION

    def tokenizer(self) -> Any:
        """The word tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model, padding_side="left")

    def draw(
        self, stage: str, gameable: bool, rng: random.Random, held_out: bool = False
    ) -> tuple[Episode, str]:
        """As `Form.draw`; held-out prompts are every fifth, by a hash."""
        from ..worlds.ladder import tiny

        return tiny.make_episode(stage, gameable, rng, held_out)

    def told(self, episode: Episode, prompt: str) -> str:
        """The prompt, then the gaming lines."""
        from ..worlds.ladder import tiny

        return tiny.told(prompt, STAGES[episode.stage].gaming(episode))

    def texts(self, completions: Sequence[Any], ids: Sequence[list[int]] | None) -> list[str]:
        """The words before the end token."""
        from ..worlds.ladder import tiny

        return tiny.as_texts(completions, ids)


def form_of(config: LadderConfig, trainer: dict[str, Any]) -> Form:
    """The form that a configuration names; `trainer`: fields of the trainer's config."""
    settings = world_of(config)
    if settings is not None:
        return TinyForm(settings, config.batch)
    from .chat import ChatForm

    assert config.model is not None
    return ChatForm(config.model, trainer.get("max_completion_length") or 128, config.batch)
