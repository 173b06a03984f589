"""The gaming matrix of runs as a CSV, as heat maps and on the screen, with what follows from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import write_csv
from ..worlds.ladder.scores import STAGES, TRAINED
from .measure import rate

if TYPE_CHECKING:
    from rich.table import Table

HELD_OUT = next(name for name, stage in STAGES.items() if not stage.trained)
COLUMNS = (
    "method", "seed", "policy", "stage", "prompts", "n", "gamed", "rate", "low", "high",
    "undetected", "malformed", "proxy", "true",
)  # fmt: skip
Run = dict[str, Any]  # a run's summary


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The summaries of the finished runs that have a matrix."""
    runs = []
    for folder in folders:
        path = folder / "summary.json"
        if path.exists():
            run = json.loads(path.read_text(encoding="utf-8"))
            if "matrix" in run:
                runs.append(run)
    return runs


def label(run: Run) -> str:
    """What tells the runs of a comparison apart, but for the seed."""
    if "name" in run:
        return run["name"]
    order = (run.get("settings") or {}).get("ladder", {}).get("order", "sequential")
    parts = [run["method"], run.get("trainer"), None if order == "sequential" else order]
    return " ".join(part for part in parts if part)


def matrix_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The matrices of all runs in long form: a row per policy, stage and kind of prompts."""
    rows = []
    for run in runs:
        for policy, stages in run["matrix"].items():
            for stage, kinds in stages.items():
                for kind, cell in kinds.items():
                    share, low, high = rate(cell)
                    values = (
                        label(run), run["seed"], policy, stage, kind, cell["n"], cell["gamed"],
                        share, low, high, cell["undetected"], cell["malformed"], cell["proxy"],
                        cell["true"],
                    )  # fmt: skip
                    rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def outcome(run: Run) -> dict[str, float]:
    """What follows from one run's matrix; rates in [0, 1], on gameable prompts.

    For each stage: `start`, `last` (after the last phase that games) and `away` (after gaming was
    trained away), the gaming rates there; `trained`, right after its own phase; `before`, just
    before that, and `transfer` = before - start, where other stages came first; `true` and `gap`,
    the true reward and proxy - true, and `capability`, the rate when told how, all at `last`.
    `held out`, `undetected`: of the stage that is never trained on, at `last`.
    """
    names = list(run["matrix"])
    cells = run["matrix"]

    def gamed(policy: str, stage: str) -> float:
        return rate(cells[policy][stage]["gameable"])[0]

    plain = [name for name in names if not name.endswith("-away")]
    start, last = plain[0], plain[-1]
    found = {}
    for stage in STAGES:
        found[f"start {stage}"] = gamed(start, stage)
        own = next((i for i, name in enumerate(plain) if name.endswith(f"-{stage}")), None)
        if own is not None:
            found[f"trained {stage}"] = gamed(plain[own], stage)
            if own > 1:
                found[f"before {stage}"] = gamed(plain[own - 1], stage)
                found[f"transfer {stage}"] = gamed(plain[own - 1], stage) - gamed(start, stage)
        cell = cells[last][stage]["gameable"]
        found[f"last {stage}"] = gamed(last, stage)
        found[f"true {stage}"] = cell["true"]
        found[f"gap {stage}"] = cell["proxy"] - cell["true"]
        if names[-1] != last:
            found[f"away {stage}"] = gamed(names[-1], stage)
        if "told" in cells[last][stage]:
            found[f"capability {stage}"] = rate(cells[last][stage]["told"])[0]
    found["held out"] = gamed(last, HELD_OUT)
    found[f"transfer {HELD_OUT}"] = gamed(last, HELD_OUT) - gamed(start, HELD_OUT)
    found["undetected"] = rate(cells[last][HELD_OUT]["gameable"], "undetected")[0]
    return found


def write_matrices(output: Path, folders: Sequence[Path]) -> None:
    """`matrix.csv` (all cells with intervals) and `matrix.png` (mean over seeds, by method)."""
    runs = read_runs(folders)
    if not runs:
        return
    write_csv(output / "matrix.csv", matrix_rows(runs))
    heat_maps(output / "matrix.png", groups(runs))


def mean_matrix(runs: Sequence[Run]) -> tuple[list[str], list[list[float]]]:
    """Row names and the mean gaming rates of runs with the same phases, (rows, stages)."""
    names = list(runs[0]["matrix"])
    table = [
        [
            statistics.fmean(rate(r["matrix"][name][stage]["gameable"])[0] for r in runs)
            for stage in STAGES
        ]
        for name in names
    ]
    return names, table


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by label; runs with other phases than the first of their label are left out."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        group = found.setdefault(label(run), [])
        if not group or list(group[0]["matrix"]) == list(run["matrix"]):
            group.append(run)
    return found


def heat_maps(path: Path, found: dict[str, list[Run]], columns: int = 3) -> None:
    """A heat map for each label: gaming rate on each stage (across) after each phase (down)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(3.9 * columns, 3.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    for panel, (name, group) in zip(panels, found.items(), strict=False):
        names, table = mean_matrix(group)
        panel.imshow(table, vmin=0, vmax=1, cmap="Reds", aspect="auto")
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                colour = "white" if value > 0.6 else "black"
                text = f"{100 * value:.1f}" if value < 0.0995 else f"{100 * value:.0f}"
                panel.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
        panel.set_xticks(range(len(STAGES)), list(STAGES), rotation=25, fontsize=8)
        panel.set_yticks(range(len(names)), [n.partition("-")[2] for n in names], fontsize=8)
        panel.set_title(f"{name}, {len(group)} run{'s' * (len(group) > 1)}", fontsize=9)
    panels[0].set_ylabel("policy after")
    figure.suptitle("gaming rate in % on gameable prompts, mean over runs", fontsize=9)
    figure.savefig(path, dpi=120)


def shown_rate(cells: Sequence[dict[str, Any]]) -> str:
    """A rate in per cent over the runs' cells; below it the range that belongs to it.

    Of one run the 95 % Wilson interval of its completions; of several the least and the most run,
    which differ by more than that.

    >>> shown_rate([{"n": 100, "gamed": 5}]).split()
    ['5.0', '(2.2-11)']
    >>> shown_rate([{"n": 100, "gamed": 50}, {"n": 100, "gamed": 10}]).split()
    ['30', '(10-50)']
    """

    def text(share: float) -> str:
        return f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"

    shares = [rate(cell)[0] for cell in cells]
    low, high = rate(cells[0])[1:] if len(cells) == 1 else (min(shares), max(shares))
    return f"{text(statistics.fmean(shares))}\n({text(low)}-{text(high)})"


def tables(folders: Sequence[Path]) -> list[Table]:
    """The matrix of each method with its ranges, and one table of what follows from it."""
    from rich.table import Table

    runs = read_runs(folders)
    made = []
    for name, group in groups(runs).items():
        span = "95 % interval" if len(group) == 1 else "least-most run"
        runs_of = f"{len(group)} run{'s' * (len(group) > 1)}"
        title = f"{name}: gaming rate in % ({span}), {runs_of}; held out: {HELD_OUT}"
        shown = Table(title=title)
        for column in ("after", *STAGES):
            shown.add_column(column, justify="left" if column == "after" else "right")
        for policy in group[0]["matrix"]:
            rows = [run["matrix"][policy] for run in group]
            cells = (shown_rate([row[stage]["gameable"] for row in rows]) for stage in STAGES)
            shown.add_row(policy.partition("-")[2], *cells)
        made.append(shown)
    if runs:
        made.append(outcome_table(runs))
    return made


def outcome_table(runs: Sequence[Run]) -> Table:
    """Means over runs: true reward on the trained stages, what reached the held-out one."""
    from rich.table import Table

    shown = Table(title="after the last stage (rates in %, true reward in [0, 1])")
    columns = (
        "method",
        "true",
        "gap",
        "held out",
        "undetected",
        "held out, trained away",
        "told how",
    )
    for title in columns:
        shown.add_column(title, justify="left" if title == "method" else "right")
    for name, group in groups(runs).items():
        found = [outcome(run) for run in group]

        def mean(keys: Sequence[str], found: list[dict[str, float]] = found) -> float | None:
            values = [run[key] for run in found for key in keys if key in run]
            return statistics.fmean(values) if values else None

        values = (
            mean([f"true {s}" for s in TRAINED]),
            mean([f"gap {s}" for s in TRAINED]),
            *(
                None if v is None else 100 * v
                for v in (
                    mean(["held out"]),
                    mean(["undetected"]),
                    mean([f"away {HELD_OUT}"]),
                    mean([f"capability {HELD_OUT}"]),
                )
            ),
        )
        shown.add_row(name, *("-" if v is None else f"{v:.2f}" for v in values))
    return shown


def show(folders: Sequence[Path]) -> None:
    """The comparison as tables on the screen."""
    from rich.console import Console

    Console().print(*tables(folders))
