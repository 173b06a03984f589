"""Tables and plot of docs/results/cheaper.md, from the runs of integrations.cheaper_results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import flat
from .results_page import fill, plot, spread, table


def write_page(
    data: Path, runs: Sequence[dict[str, Any]], tuning: Sequence[dict[str, Any]]
) -> None:
    """Fill the page beside ``data`` and draw its plot."""
    labels = list(dict.fromkeys(run["label"] for run in runs))
    plot(data / "rewards.png", runs, labels, "rewards")
    page = data.parent / f"{data.name}.md"
    parts = {"runs": table([flat(run) for run in runs], labels), "tuning": tuning_table(tuning)}
    if page.exists():
        fill(page, parts)


def tuning_table(runs: Sequence[dict[str, Any]]) -> str:
    """Final true reward of every candidate."""
    lines = ["| candidate | runs | final true | hacked |", "|---|---|---|---|"]
    for label in dict.fromkeys(run["label"] for run in runs):
        rows = [flat(run) for run in runs if run["label"] == label]
        hacked = sum(bool(row["hacked"]) for row in rows)
        true = spread([row.get("final_true") for row in rows])
        lines.append(f"| {label} | {len(rows)} | {true} | {hacked}/{len(rows)} |")
    return "\n".join(lines)
