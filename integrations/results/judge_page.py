"""Tables and plots of docs/results/judge.md, made from the runs of integrations.results.judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import write_text
from ..report import smooth
from ..watch.monitor import read_rows
from .page import fill, markdown, spread

COLUMNS = (
    "method", "runs", "hacked", "held",
    "final true", "final proxy", "peak true", "judge AUC", "KL",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    """One line per label. held: final true >= .6 and proxy - true <= .1."""
    body = []
    for label in labels:
        mine = [row for row in rows if row["label"] == label]
        ran = [row for row in mine if not row.get("failed")]
        if not mine:
            continue
        name = label if len(ran) == len(mine) else f"{label} ({len(mine) - len(ran)} failed)"
        cells = [
            name,
            str(len(mine)),
            f"{sum(bool(row['hacked']) for row in ran)}/{len(mine)}",
            f"{sum(bool(row['held']) for row in ran)}/{len(mine)}",
            spread([row["final_true"] for row in ran]),
            spread([row["final_proxy"] for row in ran]),
            spread([row["peak_true"] for row in ran]),
            spread([row["final_auc"] for row in ran]),
            spread([row["kl_start"] for row in ran], 1),
        ]
        body.append(cells)
    return markdown(COLUMNS, body)


def steps_to(path: Path, level: float) -> int | None:
    """The first step at which the smoothed true reward reaches `level`, or None."""
    rows = read_rows(path)
    steps = [row["step"] for row in rows]
    curve = smooth(steps, [row["true"] for row in rows])
    return next((s for s, value in zip(steps, curve, strict=True) if value >= level), None)


def price_table(runs: Sequence[dict[str, Any]], levels: Sequence[float]) -> str:
    """What GR and KL cost when the true reward is trained on: accuracy, steps to a level."""
    head = ["trained on the true reward", "runs", "final true"] + [f"steps to {v}" for v in levels]
    body = []
    for label in ("true", "true+gr", "true+kl"):
        mine = [r for r in runs if r["label"] == label and "failed" not in r]
        if not mine:
            continue
        cells = [label, str(len(mine)), spread([r["final"]["true"] for r in mine])]
        for level in levels:
            found = [steps_to(Path(r["folder"]) / "metrics.jsonl", level) for r in mine]
            reached = [float(s) for s in found if s is not None]
            text = spread(reached, 0)
            cells.append(f"{text} ({len(reached)}/{len(found)})")
        body.append(cells)
    return markdown(head, body)


def plot(path: Path, runs: Sequence[dict[str, Any]], labels: Sequence[str], what: str) -> None:
    """One panel per label, one thin line per run: "rewards" or "signals"."""
    from matplotlib.figure import Figure

    names = {
        "rewards": (("proxy", "C1"), ("true", "C0")),
        "signals": (("grad_norm", "C3"), ("auc", "C2")),
    }[what]
    columns = min(4, len(labels))
    lines = -(-len(labels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=what == "rewards").flatten()
    for panel, label in zip(panels, labels, strict=False):
        mine = [r for r in runs if r["label"] == label and "failed" not in r]
        for name, colour in names:
            for i, run in enumerate(mine):
                rows = read_rows(Path(run["folder"]) / "metrics.jsonl")
                points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
                panel.plot(
                    [p[0] for p in points],
                    [p[1] for p in points],
                    colour,
                    lw=0.9,
                    alpha=0.75,
                    label=None if i else name,
                )
        panel.set_title(f"{label.replace(',', ', ')} ({len(mine)})", fontsize=8)
        panel.set_xlabel("step")
        if what == "rewards":
            panel.set_ylim(0, 1)
    for panel in panels[len(labels) :]:
        panel.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_curves(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """The curves of every reported run, thinned to each 25th step."""
    lines = ["label,judge,seed,step,proxy,true,grad_norm,auc"]
    for run in runs:
        if "failed" in run:
            continue
        for row in read_rows(Path(run["folder"]) / "metrics.jsonl"):
            if row["step"] % 25 and row["step"] != 5:
                continue
            cells = [run["label"].replace(",", ";"), run["judge"], run["seed"], row["step"]]
            for name in ("proxy", "true", "grad_norm", "auc"):
                value = row.get(name)
                cells.append("" if value is None else f"{value:.4g}")
            lines.append(",".join(map(str, cells)))
    write_text(path, "\n".join(lines) + "\n")


def write_page(data: Path, runs: Sequence[dict[str, Any]], main_labels: Sequence[str]) -> None:
    """Everything that docs/results/judge.md shows, from the summaries of the reported runs."""
    from .judge_plan import flat

    rows = [flat(run) for run in runs]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    special = [x for x in labels if "(" in x or x.startswith("true")]
    others = [x for x in labels if x not in main_labels and x not in special]
    neighbours = [x for x in labels if x.endswith(("(weak)", "(strong)"))]
    twice = [x for x in labels if x.endswith("(x2 steps)")]
    tables = {
        "main": table(rows, main_labels),
        "others": table(rows, others),
        "true": table(rows, [x for x in labels if x.startswith("true")]),
        "price": price_table(runs, (0.6, 0.7, 0.8)),
        "neighbours": table(rows, neighbours),
        "twice": table(rows, twice),
    }
    page = data.parent / "judge.md"
    if page.exists():
        fill(page, tables)
    write_curves(data / "curves.csv", runs)
    plot(data / "rewards_main.png", runs, main_labels, "rewards")
    plot(data / "signals_main.png", runs, main_labels, "signals")
    plot(data / "rewards_others.png", runs, others, "rewards")
    if neighbours:
        plot(data / "rewards_neighbours.png", runs, neighbours, "rewards")
    if twice:
        plot(data / "rewards_twice.png", runs, twice, "rewards")
