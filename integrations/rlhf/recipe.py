"""Recipes of the RLHF scenario: YAML files, checked key by key before work begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..launch import check_completions
from ..recipe import METHOD_KEYS, check_keys, names_of, plain_numbers, read, typed
from ..watch.alarm import AlarmRule
from ..worlds.preferences import PolicySettings, RewardSettings
from .options import RlhfConfig

EVALUATION = {"prompts": 256, "samples": 4, "seed": 0}
# the options of RlhfConfig under `task:`; the others are under `real:`
TASK = (
    "model", "preferences", "prompts", "sft", "gold_model", "judge_model", "reward_model", "split",
    "limit", "bad_rows",
)  # fmt: skip


@dataclass(frozen=True)
class RlhfRecipe:
    """The parts of a recipe file; see recipes/rlhf-tiny.yaml for what each key means."""

    steps: int
    policy: dict[str, Any] = field(default_factory=dict)  # of the worlds: PolicySettings
    reward: dict[str, Any] = field(default_factory=dict)  # of the worlds: RewardSettings
    real: dict[str, Any] = field(default_factory=dict)  # of real runs: sizes of the stages
    task: dict[str, Any] = field(default_factory=dict)  # of real runs: models and data
    completions_per_step: int | None = None  # over all devices
    trainer: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: dict[str, int] = field(default_factory=dict)
    alarm: dict[str, Any] = field(default_factory=dict)  # fields of AlarmRule
    threads: int = 1


NUMBERS = ("beta", "ratio", "strength", "radius", "every", "mix", "ema_decay")


def _check_numbers(given: dict[str, Any], where: str) -> None:
    for name in NUMBERS:
        if isinstance(given.get(name), str):
            raise ValueError(f"{where}: {name} must be a number, got {given[name]!r}")


def load(name: str) -> RlhfRecipe:
    """Read and check a recipe; ValueError says which key is wrong."""
    where, data = read(name, "rlhf")
    check_keys(data, names_of(RlhfRecipe), where)
    if not isinstance(data.get("steps"), int) or data["steps"] < 1:
        raise ValueError(f"{where}: steps must be a whole number of at least 1")
    data = {k: v if k == "completions_per_step" else plain_numbers(v) for k, v in data.items()}
    check_completions(data.get("completions_per_step"), where)
    for part in ("policy", "reward", "real", "task", "trainer", "methods", "evaluation", "alarm"):
        data[part] = data.get(part) or {}
    for part, cls, without in (
        ("policy", PolicySettings, ("language", "seed", "version")),
        ("reward", RewardSettings, ("policy", "seed", "version")),
        ("real", RlhfConfig, (*TASK[:7], "tokens")),
        ("task", RlhfConfig, names_of(RlhfConfig, *TASK)),
    ):
        check_keys(data[part], names_of(cls, *without), f"{where}, {part}")
        data[part] = typed(data[part], cls, f"{where}, {part}")
    check_keys(data["methods"], METHOD_KEYS, f"{where}, methods")
    for method, options in data["methods"].items():
        check_keys(options, METHOD_KEYS[method], f"{where}, methods, {method}")
        _check_numbers(options, f"{where}, methods, {method}")
    check_keys(data["evaluation"], EVALUATION, f"{where}, evaluation")
    for name, value in (*data["evaluation"].items(), ("threads", data.get("threads", 1))):
        if not isinstance(value, int):
            raise ValueError(f"{where}: {name} must be a whole number, got {value!r}")
    data["evaluation"] = EVALUATION | data["evaluation"]
    check_keys(data["alarm"], names_of(AlarmRule), f"{where}, alarm")
    if data["alarm"]:
        try:
            AlarmRule(**data["alarm"])
        except ValueError as error:
            raise ValueError(f"{where}, alarm: {error}") from None
    return RlhfRecipe(**data)
