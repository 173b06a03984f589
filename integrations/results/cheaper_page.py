"""Tables and plot of the pages cheaper.md and judges.md, which compare few settings each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .judge_page import plot, table
from .judge_plan import flat
from .page import fill, markdown, spread


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
    body = []
    for label in dict.fromkeys(run["label"] for run in runs):
        rows = [flat(run) for run in runs if run["label"] == label]
        hacked = sum(bool(row["hacked"]) for row in rows)
        true = spread([row.get("final_true") for row in rows])
        body.append([label, str(len(rows)), true, f"{hacked}/{len(rows)}"])
    return markdown(["candidate", "runs", "final true", "hacked"], body)
