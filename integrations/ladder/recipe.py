"""Recipes of the ladder: YAML files, checked key by key before work begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..launch import check_completions
from ..recipe import METHOD_KEYS, check_keys, plain_numbers, read, typed
from .config import FIELDS, LadderConfig, config_of

# fields of LadderConfig that are decided elsewhere
OWN = {"world", "model", "seed", "order", "expert", "prompts_per_step"}


@dataclass(frozen=True)
class LadderRecipe:
    """The parts of a recipe file; see recipes/ladder-tiny.yaml for what each key means."""

    ladder: dict[str, Any] = field(default_factory=dict)  # fields of LadderConfig
    world: dict[str, Any] = field(default_factory=dict)  # of the tiny form: LadderSettings
    expert: dict[str, Any] = field(default_factory=dict)  # of expert iteration: Rounds
    trainer: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    completions_per_step: int | None = None  # over all devices
    threads: int = 1


def load(name: str) -> LadderRecipe:
    """Read and check a recipe; ValueError says which key is wrong."""
    from ..worlds.ladder.tiny import LadderSettings
    from .expert import Rounds

    where, data = read(name, "ladder")
    check_keys(data, {f.name for f in dataclasses.fields(LadderRecipe)}, where)
    check_completions(data.get("completions_per_step"), where)
    data = plain_numbers(data)
    for part in ("ladder", "world", "expert", "trainer", "methods"):
        data[part] = data.get(part) or {}
    check_keys(data["ladder"], set(FIELDS) - OWN, f"{where}, ladder")
    data["ladder"] = typed(data["ladder"], LadderConfig, f"{where}, ladder")
    names = {f.name for f in dataclasses.fields(LadderSettings)} - {"seed", "version"}
    check_keys(data["world"], names, f"{where}, world")
    data["world"] = typed(data["world"], LadderSettings, f"{where}, world")
    check_keys(data["expert"], {f.name for f in dataclasses.fields(Rounds)}, f"{where}, expert")
    data["expert"] = typed(data["expert"], Rounds, f"{where}, expert")
    check_keys(data["methods"], METHOD_KEYS, f"{where}, methods")
    for method, options in data["methods"].items():
        check_keys(options, METHOD_KEYS[method], f"{where}, methods, {method}")
    try:
        config_of(data["ladder"] | ({"world": data["world"]} if data["world"] else {"model": "-"}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    return LadderRecipe(**data)
