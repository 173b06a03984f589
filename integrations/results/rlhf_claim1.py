"""Claim C1: does the gradient norm go with sharpness, and with how wrong the proxy is?

Correlations along each run, raw and with the trend in time taken out, before and after gold falls;
and across runs at one value of the proxy, where the trend cannot help.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..watch.monitor import read_rows
from ..watch.probe import FILE
from .page import markdown
from .rlhf_tables import Run, ran

PAIRS = (
    ("grad_norm", "sharpness_0.01"),
    ("signal_norm", "sharpness_0.01"),
    ("grad_norm", "bt_loss"),
    ("signal_norm", "bt_loss"),
    ("grad_norm", "reward_accuracy"),
    ("sharpness_0.01", "bt_loss"),
)
FEWEST = 5  # points that a correlation is taken over


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's; None for fewer than five points or without variation."""
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def detrended(values: Sequence[float]) -> list[float]:
    """What is left of a curve when the best parabola in time is taken out."""
    time = np.linspace(-1, 1, len(values))
    return (np.array(values) - np.polyval(np.polyfit(time, values, 2), time)).tolist()


def fall_step(run: Run) -> float:
    """The step at which gold counts as fallen; infinity if it never does."""
    return run["hack_step"] if run["hack_step"] is not None else float("inf")


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The probe's rows of a run, each with what a linear J would give for the sharpness.

    `signal_norm`: the gradient norm without the noise of the samples, from two independent halves
    (the root of their product; negative where that is).
    """
    rows = read_rows(Path(run["folder"]) / FILE)
    for row in rows:
        square = row["grad_square"]
        row["signal_norm"] = math.copysign(math.sqrt(abs(square)), square)
        for radius in ("0.01", "0.05"):
            row[f"linear_{radius}"] = 2.07 * row[f"unit_{radius}"] * row["grad_norm"]
    return rows


def along(run: Run, x: str, y: str, part: str) -> float | None:
    """The correlation of two columns along a run; `part`: all, before, after, detrended."""
    rows = [r for r in rows_of(run) if r.get(x) is not None and r.get(y) is not None]
    if part == "before":
        rows = [r for r in rows if r["step"] < fall_step(run)]
    if part == "after":
        rows = [r for r in rows if r["step"] >= fall_step(run)]
    one, two = [r[x] for r in rows], [r[y] for r in rows]
    if part == "detrended" and len(rows) >= FEWEST:
        one, two = detrended(one), detrended(two)
    return correlation(one, two)


def _cell(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    positive = sum(v > 0 for v in known)
    return f"{statistics.median(known):+.2f} ({positive}/{len(known)} positive)"


def along_table(runs: Sequence[Run], world: str) -> str:
    """Median over the runs of each correlation along a run."""
    parts = ("all", "detrended", "before", "after")
    titles = ("along the run", "detrended", "before gold falls", "after")
    body = []
    for x, y in PAIRS:
        cells = [_cell([along(r, x, y, part) for r in ran(runs, world=world)]) for part in parts]
        body.append([f"{x}, {y}", *cells])
    return markdown([f"world {world}", *titles], body)


def matched_points(runs: Sequence[Run], level: float, x: str, y: str) -> list[tuple[float, float]]:
    """For each run, both columns at the probe whose proxy is the first at or above `level`."""
    points = []
    for run in runs:
        row = next((r for r in rows_of(run) if r["proxy"] >= level), None)
        if row is not None and row.get(x) is not None and row.get(y) is not None:
            points.append((row[x], row[y]))
    return points


def matched_table(runs: Sequence[Run], world: str, levels: Sequence[float]) -> str:
    """Correlations across runs (all methods and seeds) where the proxy first reaches a level."""
    head = [f"world {world}", *(f"proxy {level:g}" for level in levels)]
    body = []
    for x, y in PAIRS:
        cells = []
        for level in levels:
            points = matched_points(ran(runs, world=world), level, x, y)
            value = correlation([p[0] for p in points], [p[1] for p in points])
            cells.append("-" if value is None else f"{value:+.2f} ({len(points)} runs)")
        body.append([f"{x}, {y}", *cells])
    return markdown(head, body)


def linear_table(runs: Sequence[Run]) -> str:
    """Measured sharpness over that of a linear J, by world and method."""
    body = []
    for label in dict.fromkeys(r["label"] for r in runs):
        for world in ("A", "B"):
            rows = [row for run in ran(runs, label, world) for row in rows_of(run)]
            if not rows:
                continue
            cells = []
            for radius in ("0.01", "0.05"):
                ratios = [
                    row[f"sharpness_{radius}"] / row[f"linear_{radius}"]
                    for row in rows
                    if row[f"linear_{radius}"] > 0
                ]
                low, high = np.quantile(ratios, (0.1, 0.9))
                cells.append(f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]")
            body.append([label, world, *cells])
    return markdown(["method", "world", "radius .01", "radius .05"], body)


def probe_csv(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All rows of all probes, for the file beside the page."""
    out = []
    for run in ran(runs):
        key = {k: run[k] for k in ("label", "world", "world_seed", "seed")}
        for row in rows_of(run):
            out.append(
                key | {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
            )
    return out
