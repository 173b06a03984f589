"""Groups runs into arms: the same settings but for seeds, under a label that tells them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .runs import Run, as_dict

# what differs between the runs of one arm: the seed, and with which judge or world it is paired
SEEDS = ("seed", "judge.index", "world.reward.seed", "world.reward.policy.seed")
SEEDS += ("world.reward.policy.language.seed", "policy.seed", "rules.world.seed")
SEEDS += ("ladder.seed", "ladder.eval_seed", "ladder.world.seed")
SHOWN = 3  # differences named in a label
OWN = ("gr.", "reference.", "control.")  # settings of the methods themselves
FIRST = ("config.beta", "config.learning_rate", "config.max_steps")  # what readers ask for first
NOTHING = "–"  # a setting that an arm does not have


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only. `number` gives the colour: 0 is no method at all."""

    label: str
    number: int
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that have a summary."""
        return tuple(run for run in self.runs if run.state == "finished")

    @property
    def plotted(self) -> tuple[Run, ...]:
        """The runs that a mean is taken of: the finished ones, or all where none is."""
        return self.finished or self.runs


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names.

    >>> flatten({"gr": {"ratio": 1.0, "exclude": []}})
    {'gr.ratio': 1.0, 'gr.exclude': []}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = value
    return flat


def short(value: Any) -> str:
    """A setting as a reader writes it.

    >>> short(1e-05), short(["lm_head"]), short(True), short(None)
    ('1e-05', 'lm_head', 'yes', 'none')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(short, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def base_label(run: Run) -> str:
    """Method, trainer where it is not GRPO, and the kind of preference world."""
    method = run.settings.get("method") or run.summary.get("method")
    label = method if isinstance(method, str) else "unknown"
    trainer = run.settings.get("trainer")
    label += f" {trainer}" if isinstance(trainer, str) else ""
    kind = as_dict(run.settings.get("world")).get("kind")
    return label + (f" ({kind})" if isinstance(kind, str) else "")


def place(run: Run) -> str:
    """The seeds of a run in words: runs of the same place begin alike."""
    parts = [f"seed {short(run.settings.get('seed', run.summary.get('seed')))}"]
    judge = as_dict(run.settings.get("judge")).get("index")
    parts += [f"judge {short(judge)}"] if judge is not None else []
    world = as_dict(run.settings.get("world"))
    reward = as_dict(world.get("reward")).get("seed")
    parts += [f"world {world.get('kind', '')}{short(reward)}"] if reward is not None else []
    rule_world = as_dict(as_dict(run.settings.get("rules")).get("world")).get("seed")
    parts += [f"world {short(rule_world)}"] if rule_world is not None else []
    return ", ".join(parts)


def settings_of(run: Run) -> dict[str, Any]:
    """Flat settings without seeds, and without what is not set."""
    flat = flatten(run.settings)
    return {k: v for k, v in flat.items() if k not in SEEDS and v is not None}


def _differences(groups: Sequence[Sequence[Run]]) -> list[str]:
    """For groups of one base label: the settings that set them apart, '' where nothing does.

    The method's own settings are named alone where they are enough.
    """
    flats = [settings_of(group[0]) for group in groups]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    differ = [n for n in names if len({short(flat.get(n, NOTHING)) for flat in flats}) > 1]
    own = [n for n in differ if n.startswith(OWN)]
    others = sorted((n for n in differ if n not in own), key=lambda n: n not in FIRST)
    for chosen in (own, [*own, *others]):
        texts = []
        for flat in flats:
            parts = [f"{n.rpartition('.')[2]} {short(flat[n])[:24]}" for n in chosen if n in flat]
            texts.append(", ".join(parts[:SHOWN]))
        if len(set(texts)) == len(groups):
            return texts
    return texts


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """The arms, those without a method first, else in the order of the runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = json.dumps(settings_of(run), sort_keys=True, default=str)
        groups.setdefault((base_label(run), key), []).append(run)
    labelled: list[tuple[str, list[Run]]] = []
    for base in dict.fromkeys(label for label, _ in groups):
        mine = [group for (label, _), group in groups.items() if label == base]
        texts = _differences(mine)
        for text, group in zip(texts, mine, strict=True):
            label = f"{base} [{text}]" if text and len(mine) > 1 else base
            taken = sum(other == label or other.startswith(f"{label} #") for other, _ in labelled)
            labelled.append((f"{label} #{taken + 1}" if taken else label, group))
    labelled.sort(key=lambda pair: not pair[0].startswith("none"))
    arms, next_number = [], 1
    for label, group in labelled:
        plain = label.startswith("none") and not any(arm.number == 0 for arm in arms)
        arms.append(Arm(label, 0 if plain else next_number, tuple(group)))
        next_number += not plain
    return arms
