"""Recipes: YAML files with every setting of a scenario, checked key by key before work begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .launch import check_completions
from .methods import COMBINED, GR_FIELDS, KL_FIELDS, RESET_FIELDS
from .worlds.judge import JudgeSettings, PolicySettings

FOLDER = Path(__file__).parent / "recipes"
# what a recipe may set under `methods:`, for each method that has settings
METHOD_KEYS = {
    "kl": ("beta",), "reset": (*KL_FIELDS, *RESET_FIELDS), "gr": GR_FIELDS, "gr+kl": COMBINED
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The parts of a recipe file; see recipes/judge-tiny.yaml for what each key means."""

    steps: int
    policy: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)  # of real runs: RealTaskConfig
    completions_per_step: int | None = None  # over all devices
    threads: int = 1


def find(name: str, scenario: str = "judge") -> Path:
    """The file of a recipe: a path, or the name of one that comes with the project."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"recipe {name}: no such file")
        return path
    path = FOLDER / f"{scenario}-{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem.removeprefix(f"{scenario}-") for p in FOLDER.glob(f"{scenario}-*"))
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(known)}, or a .yaml file")
    return path


def read(name: str, scenario: str = "judge") -> tuple[str, Any]:
    """What a recipe file holds, with "recipe <file>" before it, for messages."""
    import yaml

    path = find(name, scenario)
    where = f"recipe {path.name}"
    try:
        return where, yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from None


def check_keys(keys: Any, known: Collection[str], where: str) -> None:
    """ValueError unless `keys` is a dict whose keys are all known."""
    if not isinstance(keys, dict):
        raise ValueError(f"{where}: expected 'key: value' lines, got {keys!r}")
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; known: {sorted(known)}")


def names_of(cls: Any, *without: str) -> set[str]:
    """The fields of a dataclass, but for some."""
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


def typed(given: dict[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """The numbers as the dataclass declares them, so that `1` and `1.0` name the same cache."""
    kinds = {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(cls)}
    out = {}
    for name, value in given.items():
        kind = {"int": int, "float": float, "str": str}[kinds[name]]
        try:
            out[name] = kind(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {name} must be {kinds[name]}, got {value!r}") from None
    return out


def _numbers(given: dict[str, Any], cls: Any, where: str) -> dict[str, Any]:
    """The values as the dataclass declares them, so that `1` and `1.0` name the same cache."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
    values = {}
    for name, value in given.items():
        try:
            values[name] = kinds[name](value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: {name} must be a number, got {value!r}") from None
    return values


def _check_task(given: dict[str, Any], where: str) -> None:
    """The names of a real task's options; what they hold is checked when they are used."""
    from .real import RealTaskConfig

    check_keys(given, names_of(RealTaskConfig, "judge_check"), where)
    for name in ("model", "dataset", "judge_model"):
        if name in given and not isinstance(given[name], str):
            raise ValueError(f"{where}: {name} must be a text, got {given[name]!r}")


def load(name: str) -> Recipe:
    """Read and check a recipe; ValueError says which key is wrong."""
    where, data = read(name)
    check_keys(data, {f.name for f in dataclasses.fields(Recipe)}, where)
    if not isinstance(data.get("steps"), int) or data["steps"] < 1:
        raise ValueError(f"{where}: steps must be a whole number of at least 1")
    for part in ("policy", "judge", "trainer", "methods", "task"):
        data[part] = data.get(part) or {}
    check_completions(data.get("completions_per_step"), where)
    if data["task"]:
        _check_task(data["task"], f"{where}, task")
    check_keys(data["policy"], names_of(PolicySettings, "seed", "version"), f"{where}, policy")
    check_keys(data["judge"], names_of(JudgeSettings, "index", "version"), f"{where}, judge")
    check_keys(data["methods"], {"kl", "reset", "gr"}, f"{where}, methods")
    for method, options in data["methods"].items():
        known = {"gr": GR_FIELDS, "kl": KL_FIELDS, "reset": (*KL_FIELDS, *RESET_FIELDS)}[method]
        check_keys(options, known, f"{where}, methods, {method}")
    data["policy"] = _numbers(data["policy"], PolicySettings, where)
    data["judge"] = _numbers(data["judge"], JudgeSettings, where)
    return Recipe(**data)
