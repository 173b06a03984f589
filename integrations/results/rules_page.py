"""Tables and plots of docs/results/rules.md, from the runs of integrations.results.rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import write_text
from ..watch.monitor import read_rows
from .page import fill, markdown, spread
from .rules import TERMS, flat

CURVES = ("true", "format", "reward", "entropy", "grad_norm", "shows_steps")


def write_page(
    data: Path, runs: Sequence[dict[str, Any]], tuning: Sequence[dict[str, Any]]
) -> None:
    """Fill the page beside ``data``, write the curves and draw the plots."""
    rows = [flat(run) for run in runs]
    parts = {
        "main": main_table(rows),
        "terms": terms_table(rows),
        "levels": levels_table(rows),
        "tuning": main_table([flat(run) for run in tuning]),
    }
    page = data.parent / f"{data.name}.md"
    if page.exists():
        fill(page, parts)
    write_curves(data / "curves.csv", runs)
    plot(data / "curves.png", runs)


def groups(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The finished runs of each label."""
    labels = dict.fromkeys(row["label"] for row in rows)
    return {x: [r for r in rows if r["label"] == x and not r.get("failed")] for x in labels}


def main_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy at the start, at its peak and at the end, held out; format and reward at the end.

    stuck: strict format in at least .9 of the completions, worked steps in less than .1.
    """
    header = (
        "method",
        "runs",
        "stuck",
        "start",
        "peak",
        "end",
        "held out",
        "format at the end",
        "reward",
    )
    names = ("start", "peak", "final", "held_out", "format", "reward")
    table = []
    for label, mine in groups(rows).items():
        failed = sum(bool(row.get("failed")) for row in rows if row["label"] == label)
        name = f"{label} ({failed} failed)" if failed else label
        stuck = sum((r["format"] or 0) >= 0.9 and (r["shows_steps"] or 0) < 0.1 for r in mine)
        counts = [str(len(mine)), f"{stuck}/{len(mine)}"]
        table.append([name, *counts, *(spread([row[n] for row in mine]) for n in names)])
    return markdown(header, table)


def terms_table(rows: Sequence[dict[str, Any]]) -> str:
    """What each reward term pays at the end, and how the completions look."""
    names = (*TERMS, "shows_steps", "length", "truncated", "entropy", "kl_start")
    header = ("method", *(name.replace("_", " ") for name in names))
    table = [
        [label, *(_mean([row.get(name) for row in mine]) for name in names)]
        for label, mine in groups(rows).items()
    ]
    return markdown(header, table)


def levels_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy by level: first 25 steps -> last 25 steps, and held out."""
    known = sorted({n.split()[1] for row in rows for n in row if n.startswith("level ")})
    header = ("method", *(f"level {level}" for level in known), "held out")
    table = []
    for label, mine in groups(rows).items():
        cells = [
            f"{_mean([r.get(f'level {x} start') for r in mine])} -> "
            f"{spread([r.get(f'level {x} end') for r in mine])}"
            for x in known
        ]
        held = " / ".join(_mean([r.get(f"held-out level {x}") for r in mine]) for x in known)
        table.append([label, *cells, held])
    return markdown(header, table)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"


def write_curves(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """The curves of every run, thinned to each 10th step."""
    found = [(run, read_rows(Path(run["folder"]) / "metrics.jsonl")) for run in runs
             if "failed" not in run]  # fmt: skip
    levels = sorted({n for _, rows in found for row in rows for n in row if n.startswith("level/")})
    lines = [",".join(("label", "seed", "step", *CURVES, *levels))]
    for run, rows in found:
        for row in rows:
            if row["step"] % 10:
                continue
            cells = [row.get(name) for name in (*CURVES, *levels)]
            numbers = ["" if value is None else f"{value:.4g}" for value in cells]
            lines.append(",".join((run["label"], str(run["seed"]), str(row["step"]), *numbers)))
    write_text(path, "\n".join(lines) + "\n")


def plot(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Two rows of panels, one column per label: accuracy and format; accuracy by level."""
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(run["label"] for run in runs if "failed" not in run))
    figure = Figure(figsize=(2.6 * max(1, len(labels)), 5.2), layout="constrained")
    panels = figure.subplots(2, max(1, len(labels)), squeeze=False, sharex=True, sharey=True)
    for column, label in enumerate(labels):
        mine = [r for r in runs if r["label"] == label and "failed" not in r]
        for first, run in enumerate(mine):
            rows = read_rows(Path(run["folder"]) / "metrics.jsonl")
            for name, colour in (("true", "C0"), ("format", "C1")):
                title = {"true": "accuracy", "format": "strict format"}[name]
                _line(panels[0][column], rows, name, colour, None if first else title)
            levels = sorted({n for row in rows for n in row if n.startswith("level/")})
            for n, name in enumerate(levels):
                level = f"level {name.split('/')[1]}"
                _line(panels[1][column], rows, name, f"C{n}", None if first else level)
        panels[0][column].set_title(f"{label} ({len(mine)})", fontsize=8)
        panels[1][column].set_xlabel("step")
    for row in panels:
        row[0].set_ylim(0, 1)
        row[0].legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _line(panel: Any, rows: list[dict[str, Any]], name: str, colour: str, title: Any) -> None:
    """A curve, as means over five rows: single batches are noisy."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    chunks = [points[i : i + 5] for i in range(0, len(points), 5)]
    x = [chunk[-1][0] for chunk in chunks]
    y = [sum(value for _, value in chunk) / len(chunk) for chunk in chunks]
    panel.plot(x, y, colour, lw=0.9, alpha=0.75, label=title)
