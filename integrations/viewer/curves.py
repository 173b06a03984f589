"""Curves of runs and arms: smoothing, the mean over runs, and fewer points for drawing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..report import WINDOW
from .arms import Arm
from .runs import Run

Point = tuple[float, float]


def points_of(run: Run, name: str) -> list[Point]:
    """(step, value) of one column; a run begins with nothing where the column has no number."""
    return [(row["step"], row[name]) for row in run.rows if name in row]


def smooth(points: Sequence[Point], window: float = WINDOW) -> list[Point]:
    """The mean over the last `window` steps at each step, as `integrations.report.smooth`.

    >>> smooth([(10, 1.0), (20, 3.0), (40, 5.0)], window=15)
    [(10, 1.0), (20, 2.0), (40, 5.0)]
    """
    near: deque[Point] = deque()
    out = []
    for step, value in points:
        near.append((step, value))
        while near[0][0] <= step - window:
            near.popleft()
        out.append((step, sum(v for _, v in near) / len(near)))
    return out


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean of several curves over the steps that all of them cover, by linear interpolation.

    Where a run ends early the mean ends too: a mean over fewer runs would jump.

    >>> mean_curve([[(0, 0.0), (2, 2.0)], [(0, 2.0), (1, 2.0), (3, 2.0)]])
    [(0.0, 1.0), (1.0, 1.5), (2.0, 2.0)]
    """
    known = [np.array(curve, dtype=float) for curve in curves if curve]
    if not known:
        return []
    first, last = max(c[0, 0] for c in known), min(c[-1, 0] for c in known)
    steps = np.unique(np.concatenate([c[:, 0] for c in known]))
    steps = steps[(steps >= first) & (steps <= last)]
    values = np.mean([np.interp(steps, c[:, 0], c[:, 1]) for c in known], axis=0)
    return [(float(s), float(v)) for s, v in zip(steps, np.atleast_1d(values), strict=True)]


def arm_curve(arm: Arm, name: str) -> list[Point]:
    """The mean over the arm's runs of their smoothed values."""
    return mean_curve([smooth(points_of(run, name)) for run in arm.plotted])


def thin_out(points: Sequence[Point], most: int) -> list[Point]:
    """About `most` points: the lowest and the highest of each stretch, so that spikes stay.

    >>> len(thin_out([(i, float(i % 7)) for i in range(1000)], 100)) <= 102
    True
    """
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return list(dict.fromkeys([*kept, points[-1]]))
