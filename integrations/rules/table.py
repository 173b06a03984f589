"""The rules scenario's comparison: accuracy, form and levels of each method, as a table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

SHOWN = ("start", "peak", "final", "format", "reward", "held-out")

if TYPE_CHECKING:
    from rich.table import Table


def read(path: Path) -> dict[str, Any]:
    """The JSON of a file, or nothing where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def numbers(folder: Path) -> dict[str, Any] | None:
    """What a finished run has come to, as shares; None for an unfinished one."""
    summary = read(folder / "summary.json")
    if not summary:
        return None
    final, evaluation = summary["final"], read(folder / "evaluation.json")
    held = evaluation.get("pass_at_1") or {}
    row = {
        "method": summary["method"],
        "seed": summary["seed"],
        "start": summary["start"]["true"],
        "peak": summary["peak_true"],
        "final": final["true"],
        "format": final["format"],
        "reward": final.get("reward"),
        "held-out": held.get("mean"),
    }
    for group in evaluation.get("by_quintile") or evaluation.get("by_level") or ():
        row[str(group["level"])] = group["mean"]
    return row


def tables(folders: list[Path]) -> list[Table]:
    """Two tables with a row per method, means over its finished runs: outcomes, and levels.

    start, peak, final, format, reward: of the training batches; held-out and levels: pass@1.
    """
    from rich.table import Table

    rows = [row for row in map(numbers, folders) if row]
    names = list(dict.fromkeys(k for row in rows for k in row if k not in ("method", "seed")))
    made = []
    for title, columns in (
        ("accuracy in training, format, reward; pass@1 held out", [n for n in names if n in SHOWN]),
        ("pass@1 held out, by level", [n for n in names if n not in SHOWN]),
    ):
        shown = Table(title=title)
        for name in ("method", "runs", *columns):
            shown.add_column(name, justify="left" if name == "method" else "right")
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == method]
            cells = []
            for name in columns:
                values = [row[name] for row in mine if row.get(name) is not None]
                cells.append(f"{statistics.fmean(values):.3f}" if values else "-")
            shown.add_row(method, str(len(mine)), *cells)
        if columns:
            made.append(shown)
    return made
