"""How good the alarm of `HackMonitor` is: rules chosen on tuning runs, replayed on reported runs.

Three rules, by what a user knows of the truth: nothing; which of two completions is better, for the
batch at hand (accuracy of the proxy); the gold reward of the batch. Each is the rule of a grid with
the least mean regret: gold at its peak less gold where the rule stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..watch.alarm import AlarmRule, choose, evaluate, grid, rates, stored
from ..watch.monitor import read_rows
from .page import markdown
from .rlhf_tables import Run, labels_of, ran

SEEN: dict[str, Any] = {  # without any label
    "kl_limit": [None, 3.0, 6.0, 12.0],
    "spread_jump": [None, 1.5, 2.0],
    "entropy_fall": [None, 0.7],
    "proxy_excess": [None, 2.0, 3.0],
    "patience": [1, 3],
}
GRIDS: dict[str, dict[str, Any]] = {  # each holds the one before: more is known
    "nothing known": SEEN,
    "labels": SEEN | {"accuracy_floor": [None, 0.45, 0.5, 0.55]},
    "gold": SEEN | {"gold_fall": [None, 0.1, 0.2, 0.3]},
}


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The log of a run under the names of the alarm."""
    return [stored(row) for row in read_rows(Path(run["folder"]) / "metrics.jsonl")]


def honest(runs: Sequence[Run]) -> list[Run]:
    """The runs that were trained on a proxy: all but the controls on the gold reward."""
    return [run for run in ran(runs) if not run["method"].startswith("true")]


def choose_rules(tuning: Sequence[Run]) -> dict[str, AlarmRule]:
    """The rule with the least regret on the tuning runs, for each kind of knowledge."""
    logs = [rows_of(run) for run in honest(tuning)]
    return {name: choose(logs, grid(**options)) for name, options in GRIDS.items()}


def replay(runs: Sequence[Run], rules: dict[str, AlarmRule]) -> list[dict[str, Any]]:
    """What each rule would have done in each run: one row per run and rule."""
    out = []
    for run in honest(runs):
        rows = rows_of(run)
        for name, rule in rules.items():
            key = {k: run[k] for k in ("label", "world", "world_seed", "seed")}
            result = evaluate(rows, rule)
            short = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
            out.append({"rule": name} | key | short)
    return out


def rule_text(rule: AlarmRule) -> str:
    """What is set in a rule, as in ``kl_limit=6.0, patience=3``."""
    default = asdict(AlarmRule(gold_fall=1.0)) | {"gold_fall": None}
    return ", ".join(f"{k}={v}" for k, v in asdict(rule).items() if v != default[k])


def rates_table(results: Sequence[dict[str, Any]], rules: dict[str, AlarmRule]) -> str:
    """Errors, lead and regret of each rule in each world."""
    head = (
        "what is known", "rule", "world", "runs", "false alarms", "missed hacks",
        "lead, steps: median [least, most]", "regret", "without a rule",
    )  # fmt: skip
    body = []
    for name, rule in rules.items():
        for world in ("A", "B"):
            mine = [x for x in results if (x["rule"], x["world"]) == (name, world)]
            if not mine:
                continue
            r = rates(mine)
            lead = (
                "-"
                if r["lead_median"] is None
                else f"{r['lead_median']:g} [{r['lead_min']}, {r['lead_max']}]"
            )
            cells = [
                name,
                rule_text(rule),
                world,
                str(r["runs"]),
                f"{r['false_positives']}/{r['runs'] - r['hacked']}",
                f"{r['false_negatives']}/{r['hacked']}",
                lead,
                f"{r['regret']:.2f}",
                f"{r['regret_without']:.2f}",
            ]
            body.append(cells)
    return markdown(head, body)


def stop_table(results: Sequence[dict[str, Any]], labels: Sequence[str] = ()) -> str:
    """Gold where each rule stops, beside the peak and the end: means over the runs of a method."""
    names = list(dict.fromkeys(r["rule"] for r in results))
    head = ["method", "world", "peak (oracle)", *(f"stopped: {n}" for n in names), "at the end"]
    body = []
    for label in labels or labels_of(results):
        for world in ("A", "B"):
            mine = [r for r in results if (r["label"], r["world"]) == (label, world)]
            if not mine:
                continue
            first = [r for r in mine if r["rule"] == names[0]]
            cells = [label, world, _mean([r["peak"] for r in first])]
            for name in names:
                cells.append(_mean([r["peak"] - r["regret"] for r in mine if r["rule"] == name]))
            cells.append(_mean([r["gold_at_end"] for r in first]))
            body.append(cells)
    return markdown(head, body)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"
