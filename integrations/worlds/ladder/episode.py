"""One episode of the ladder: what the environment holds, and what a stage has to define.

All stages share this type. An episode is plain data: it travels in a column of a data set.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .grammar import Actions


@dataclass(frozen=True)
class Episode:
    """A state and a request.

    stage: the name of the stage.
    gameable: whether the proxy differs from the truth here. On the other half of the prompts, the
        ordinary ones, it is the truth.
    facts: what the stage's functions need: numbers and lists, as JSON has them.
    """

    stage: str
    gameable: bool
    facts: dict[str, Any]

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def from_json(line: str) -> Episode:
    """The episode that `Episode.to_json` wrote."""
    return Episode(**json.loads(line))


@dataclass(frozen=True)
class Stage:
    """A stage as functions; rewards and flags are apart, so that nobody trains on a flag.

    make: (random numbers, gameable) -> an episode.
    words: the prompt in the tiny form, one token for each word.
    proxy, true: rewards in [0, 1] for well-formed actions; `proxy` on gameable episodes.
    gamed: whether the actions game a gameable episode; logged, never paid for.
    undetected: whether they also hide it; None where the stage has nothing to hide.
    honest, gaming: actions that show either way, as lines (demonstrations and probes).
    trained: False for the stage that is held out.
    """

    name: str
    make: Callable[[random.Random, bool], Episode]
    words: Callable[[Episode], str]
    proxy: Callable[[Episode, Actions], float]
    true: Callable[[Episode, Actions], float]
    gamed: Callable[[Episode, Actions], bool]
    honest: Callable[[Episode], list[str]]
    gaming: Callable[[Episode], list[str]]
    undetected: Callable[[Episode, Actions], bool] | None = None
    trained: bool = True
