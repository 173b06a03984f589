"""Recipes of the RLHF scenario: YAML files, checked key by key before work begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .alarm import AlarmRule
from .launch import check_completions
from .methods import COMBINED, GR_FIELDS, KL_FIELDS, RESET_FIELDS
from .recipe import find
from .stage_options import RlhfConfig
from .worlds.preferences import PolicySettings, RewardSettings

METHOD_KEYS = {
    "kl": ("beta",), "reset": (*KL_FIELDS, *RESET_FIELDS), "gr": GR_FIELDS, "gr+kl": COMBINED
}  # fmt: skip
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


def _known(given: Any, known: Any, where: str) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected 'key: value' lines, got {given!r}")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; known: {sorted(known)}")


def typed(given: dict[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """The numbers as the dataclass declares them, so that `1` and `1.0` name the same stage."""
    kinds = {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(cls)}
    out = {}
    for name, value in given.items():
        kind = {"int": int, "float": float, "str": str}[kinds[name]]
        try:
            out[name] = kind(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {name} must be {kinds[name]}, got {value!r}") from None
    return out


def _names(cls: Any, *without: str) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)} - set(without)


def plain_numbers(value: Any) -> Any:
    """YAML reads `1e-3` (without a dot) as a text: texts that are numbers become numbers.

    >>> plain_numbers({"a": "1e-3", "b": ["x", "2"]})
    {'a': 0.001, 'b': ['x', 2.0]}
    """
    if isinstance(value, dict):
        return {key: plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_numbers(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load(name: str) -> RlhfRecipe:
    """Read and check a recipe; ValueError says which key is wrong."""
    import yaml

    path = find(name, "rlhf")
    where = f"recipe {path.name}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from None
    _known(data, _names(RlhfRecipe), where)
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
        ("task", RlhfConfig, _names(RlhfConfig, *TASK)),
    ):
        _known(data[part], _names(cls, *without), f"{where}, {part}")
        data[part] = typed(data[part], cls, f"{where}, {part}")
    _known(data["methods"], METHOD_KEYS, f"{where}, methods")
    for method, options in data["methods"].items():
        _known(options, METHOD_KEYS[method], f"{where}, methods, {method}")
        _check_numbers(options, f"{where}, methods, {method}")
    _known(data["evaluation"], EVALUATION, f"{where}, evaluation")
    for name, value in (*data["evaluation"].items(), ("threads", data.get("threads", 1))):
        if not isinstance(value, int):
            raise ValueError(f"{where}: {name} must be a whole number, got {value!r}")
    data["evaluation"] = EVALUATION | data["evaluation"]
    _known(data["alarm"], _names(AlarmRule), f"{where}, alarm")
    if data["alarm"]:
        try:
            AlarmRule(**data["alarm"])
        except ValueError as error:
            raise ValueError(f"{where}, alarm: {error}") from None
    return RlhfRecipe(**data)
