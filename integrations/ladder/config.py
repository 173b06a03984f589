"""The options of a ladder run, checked: policy, order of the stages, how much is measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..worlds.ladder.scores import TRAINED

if TYPE_CHECKING:
    from ..worlds.ladder.tiny import LadderSettings

ORDERS = ("sequential", "parallel")
AWAY = ("agree", "flatter")  # the stages on which gaming is trained away at the end


@dataclass(frozen=True)
class LadderConfig:
    """`world` (fields of LadderSettings: the tiny form) or `model` (a causal LM with a chat form).

    order: "sequential", a stage after the other, or "parallel", all of them mixed.
    steps_per_stage: gradient steps for each of the four stages (rounds, in expert iteration).
    away_steps: steps at the end in which the true reward of the first two stages is trained on.
    prompts_per_step: prompts drawn in a step.
    cell: gameable completions behind each cell of the gaming matrix.
    ordinary, probe: completions on ordinary prompts, and on prompts that say how to game.
    seed: of the prompts trained on. eval_seed: of those measured on, and of their completions.
    batch: completions written at once when measuring.
    """

    world: dict[str, Any] | None = None
    model: str | None = None
    order: str = "sequential"
    steps_per_stage: int = 60
    away_steps: int = 60
    prompts_per_step: int = 16
    cell: int = 10_000
    ordinary: int = 1_000
    probe: int = 500
    seed: int = 0
    eval_seed: int = 0
    batch: int = 1_000
    expert: dict[str, Any] = field(default_factory=dict)  # of expert iteration: `expert.Rounds`


FIELDS = tuple(f.name for f in dataclasses.fields(LadderConfig))


def config_of(given: dict[str, Any]) -> LadderConfig:
    """The checked options; ValueError says what to change."""
    config = LadderConfig(**given)
    if (config.world is None) == (config.model is None):
        raise ValueError("a ladder run needs a tiny world or --model PATH_OR_NAME, one of the two")
    if config.order not in ORDERS:
        raise ValueError(f"--order {config.order}: give one of {', '.join(ORDERS)}")
    for name in ("steps_per_stage", "prompts_per_step", "cell", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(config, name)}")
    for name in ("away_steps", "ordinary", "probe", "seed", "eval_seed"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name} must be at least 0, got {getattr(config, name)}")
    if config.world is not None:
        world_of(config)
    return config


def world_of(config: LadderConfig) -> LadderSettings | None:
    """The settings of the tiny form, or None for a real model."""
    if config.world is None:
        return None
    from ..worlds.ladder.tiny import LadderSettings

    return LadderSettings(**config.world)


def model_config(given: dict[str, Any]) -> Any:
    """The config of the policy's model, without its weights."""
    from transformers import AutoConfig, LlamaConfig

    config = config_of(given)
    world = world_of(config)
    if world is None:
        return AutoConfig.from_pretrained(str(config.model), trust_remote_code=False)
    from ..worlds.ladder.tiny import model_config as llama

    return LlamaConfig(**llama(world))


@dataclass(frozen=True)
class Phase:
    """A stretch of steps: the stages whose prompts take turns, and the reward that is paid."""

    name: str
    stages: tuple[str, ...]
    steps: int
    paid: str = "proxy"  # or "true"


def phases(config: LadderConfig) -> list[Phase]:
    """The phases of a run, in order.

    >>> [phase.name for phase in phases(LadderConfig(model="-"))]
    ['agree', 'flatter', 'checklist', 'forbidden', 'away']
    """
    if config.order == "parallel":
        made = [Phase("all", TRAINED, len(TRAINED) * config.steps_per_stage)]
    else:
        made = [Phase(stage, (stage,), config.steps_per_stage) for stage in TRAINED]
    if config.away_steps:
        made.append(Phase("away", AWAY, config.away_steps, "true"))
    return made


def total_steps(config: LadderConfig) -> int:
    """The steps of all phases."""
    return sum(phase.steps for phase in phases(config))
