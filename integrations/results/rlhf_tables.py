"""Tables of docs/results/rlhf.md, from the summaries and logs of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..watch.monitor import read_rows
from .page import markdown, spread

Run = dict[str, Any]
SMOOTH = 3  # rows of the log (12 steps) that a crossing is judged by


def ran(runs: Sequence[Run], label: str | None = None, world: str | None = None) -> list[Run]:
    """The runs that did not fail, of a label and a world where given."""
    return [
        r
        for r in runs
        if not r.get("failed") and label in (None, r["label"]) and world in (None, r["world"])
    ]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The labels in the order of their first run."""
    return list(dict.fromkeys(r["label"] for r in runs))


def outcome_table(runs: Sequence[Run], labels: Sequence[str], world: str) -> str:
    """Final and peak gold, proxy, accuracy and KL of each label in one world."""
    head = (
        "method", "runs", "gold at the end", "by world seed", "gold at its peak", "fell",
        "proxy at the end", "accuracy", "KL",
    )  # fmt: skip
    body = []
    for label in labels:
        mine = ran(runs, label, world)
        failed = sum(
            bool(r.get("failed")) for r in runs if (r["label"], r["world"]) == (label, world)
        )
        if not mine and not failed:
            continue
        cells = [
            label + (f" ({failed} failed)" if failed else ""),
            str(len(mine)),
            spread([r["final"]["true"] for r in mine]),
            by_world(mine),
            spread([r["peak_true"] for r in mine]),
            f"{sum(bool(r['hacked']) for r in mine)}/{len(mine)}",
            spread([r["final"]["proxy"] for r in mine]),
            spread([r["final"].get("reward_accuracy") for r in mine]),
            spread([r["final"]["kl_start"] for r in mine], 1),
        ]
        body.append(cells)
    return markdown(head, body)


def by_world(runs: Sequence[Run]) -> str:
    """The mean gold at the end for each world seed, in their order.

    >>> golds = ((1, 0.0), (0, 2.0), (1, 1.0))
    >>> by_world([{"world_seed": s, "final": {"true": g}} for s, g in golds])
    '0: 2.00, 1: 0.50'
    """
    seeds = sorted({r["world_seed"] for r in runs})
    parts = []
    for seed in seeds:
        mean = statistics.fmean(r["final"]["true"] for r in runs if r["world_seed"] == seed)
        parts.append(f"{seed}: {mean:.2f}")
    return ", ".join(parts)


def paired_table(runs: Sequence[Run], ours: str, others: Sequence[str]) -> str:
    """How often, and by how much, `ours` ends with more gold than another label, seed by seed."""
    head = [f"{ours} against", "A: more gold in", "difference", "B: more gold in", "difference"]
    body = []
    for other in others:
        cells = [other]
        for world in ("A", "B"):
            theirs = {(r["world_seed"], r["seed"]): r for r in ran(runs, other, world)}
            pairs = [
                r["final"]["true"] - theirs[key]["final"]["true"]
                for r in ran(runs, ours, world)
                if (key := (r["world_seed"], r["seed"])) in theirs
            ]
            wins = f"{sum(d > 0 for d in pairs)}/{len(pairs)}"
            cells += [wins if pairs else "not run", spread(pairs)]
        body.append(cells)
    return markdown(head, body)


def value_at(rows: Sequence[dict[str, Any]], name: str, level: float, wanted: str) -> float | None:
    """`wanted` where `name` first reaches `level`, both running means; None if it never does."""
    known = [row for row in rows if row.get(name) is not None and row.get(wanted) is not None]
    for i in range(len(known)):
        window = known[max(0, i - SMOOTH + 1) : i + 1]
        if statistics.fmean(row[name] for row in window) >= level:
            return statistics.fmean(row[wanted] for row in window)
    return None


def matched_table(
    runs: Sequence[Run], labels: Sequence[str], world: str, name: str, levels: Sequence[float]
) -> str:
    """Gold where the proxy, or the KL, first reaches a level; in brackets, how many runs do."""
    shown = {"proxy": "proxy", "kl_start": "KL"}[name]
    head = ["method", *(f"{shown} {level:g}" for level in levels)]
    body = []
    for label in labels:
        logs = [read_rows(Path(r["folder"]) / "metrics.jsonl") for r in ran(runs, label, world)]
        if not logs:
            continue
        cells = [label]
        for level in levels:
            found = [v for rows in logs if (v := value_at(rows, name, level, "true")) is not None]
            cells.append(f"{spread(found)} ({len(found)}/{len(logs)})" if found else "not reached")
        body.append(cells)
    return markdown(head, body)


def short_spread(runs: Sequence[Run], name: str = "final") -> str:
    """Mean and range of the gold at the end (or at the peak) of some runs."""
    values = [r["peak_true"] if name == "peak" else r["final"]["true"] for r in runs]
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def grid_table(
    runs: Sequence[Run],
    bases: Sequence[str],
    columns: Sequence[tuple[str, str]],
    name: str = "final",
) -> str:
    """Gold of each base label with each suffix, A and B in one cell: mean [least, most]."""
    body = []
    for base in bases:
        cells = [base]
        for _, suffix in columns:
            worlds = [w for w in ("A", "B") if ran(runs, base + suffix, w)]
            cells.append(
                "; ".join(f"{w} {short_spread(ran(runs, base + suffix, w), name)}" for w in worlds)
                or "-"
            )
        body.append(cells)
    return markdown(["method", *(title for title, _ in columns)], body)


def tuning_table(families: dict[str, list[Any]], runs: Sequence[Run]) -> str:
    """Every candidate's mean gold at the end over its tuning runs, the chosen one marked."""
    body = []
    for family, settings in families.items():
        means = []
        for s in settings:
            values = [r["final"]["true"] for r in ran(runs, s.label)]
            if values:
                means.append((statistics.fmean(values), s.label))
        if not means:
            continue
        best = max(means)[1]
        text = ", ".join(
            f"**{label}: {value:.2f}**" if label == best else f"{label}: {value:.2f}"
            for value, label in means
        )
        body.append([family, text])
    return markdown(["method", "candidates: gold at the end, mean of A and B"], body)
