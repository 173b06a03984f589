"""Recipes of the rules scenario: YAML files, checked key by key before work begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..launch import check_completions
from ..recipe import METHOD_KEYS, check_keys, plain_numbers, read
from .task import FIELDS, config_of, weights_of


@dataclass(frozen=True)
class RulesRecipe:
    """The parts of a recipe file; see recipes/rules-tiny.yaml for what each key means."""

    steps: int
    world: dict[str, Any] = field(default_factory=dict)  # of the rule world: RuleSettings
    task: dict[str, Any] = field(default_factory=dict)  # of real runs: RulesConfig
    trainer: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    completions_per_step: int | None = None  # over all devices
    threads: int = 1


def _world(given: dict[str, Any], where: str) -> dict[str, Any]:
    """The world's settings as RuleSettings declares them, so that 1 and 1.0 name one cache."""
    from ..worlds.rule_sums import RuleSettings

    kinds = {f.name: type(f.default) for f in dataclasses.fields(RuleSettings)}
    check_keys(given, set(kinds) - {"seed", "version"}, where)
    typed = {}
    for name, value in given.items():
        try:
            typed[name] = kinds[name](value)
        except (TypeError, ValueError):
            kind = kinds[name].__name__
            raise ValueError(f"{where}: {name} must be {kind}, got {value!r}") from None
    return typed


def load(name: str) -> RulesRecipe:
    """Read and check a recipe; ValueError says which key is wrong."""
    where, data = read(name, "rules")
    check_keys(data, {f.name for f in dataclasses.fields(RulesRecipe)}, where)
    if not isinstance(data.get("steps"), int) or data["steps"] < 1:
        raise ValueError(f"{where}: steps must be a whole number of at least 1")
    task = data.get("task") or {}
    check_completions(data.get("completions_per_step"), where)
    data = plain_numbers({k: v for k, v in data.items() if k != "task"})
    for part in ("world", "trainer", "methods"):
        data[part] = data.get(part) or {}
    if bool(data["world"]) == bool(task):
        raise ValueError(f"{where}: give one of `world:` (the rule world) and `task:` (a model)")
    check_keys(task, set(FIELDS) - {"world", "form_weight"}, f"{where}, task")
    if task:
        try:
            config_of({"model": "-", "dataset": "-"} | task)
            form = task.get("form", "auto")
            if form != "auto":
                weights_of(task.get("rewards", []), form)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}, task: {error}") from None
    else:
        data["world"] = _world(data["world"], f"{where}, world")
    check_keys(data["methods"], METHOD_KEYS, f"{where}, methods")
    for method, options in data["methods"].items():
        check_keys(options, METHOD_KEYS[method], f"{where}, methods, {method}")
    return RulesRecipe(**data, task=task)
