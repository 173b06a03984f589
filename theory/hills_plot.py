"""Tables and pictures of where policies go between the two hills of `theory.hills`."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy import ndarray

from theory.check import Table
from theory.hills import HILL, SPIKE, ends, loss

COLOURS = {"hill": "tab:green", "spike": "tab:red", "neither": "tab:blue"}


def shares(runs: dict[str, ndarray]) -> dict[str, list]:
    """Where the starts of each method end, as shares."""
    table: dict[str, list] = {"method": [], "hill": [], "spike": [], "neither": []}
    for name, path in runs.items():
        hill, spike = ends(path[-1]).mean(1)
        for column, value in zip(table, (name, hill, spike, 1 - hill - spike), strict=True):
            table[column].append(value)
    return table


def curves(runs: dict[str, ndarray], points: int = 18) -> Table:
    """Every third start of a square of 19, each curve by points evenly spaced along it."""
    index = np.arange(361).reshape(19, 19)[::3, ::3].ravel()
    table: dict[str, list] = {"method": [], "start": [], "x": [], "y": []}
    for name, path in runs.items():
        path = path[:, index, :2]
        length = np.linalg.norm(np.diff(path, axis=0), axis=-1).cumsum(0)
        for n, total in enumerate(length.T):
            at = np.searchsorted(total, np.linspace(0, total[-1], points))
            table["method"] += [name] * points
            table["start"] += [n] * points
            table["x"] += [*path[at, n, 0]]
            table["y"] += [*path[at, n, 1]]
    return table


def surface(points: int = 61) -> Table:
    """The mean proxy reward of a policy of width SIGMA on a grid."""
    side = np.linspace(-2, 1.8, points)
    mean = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    proxy = -loss(torch.tensor(mean)).numpy()
    return {"x": [*mean[:, 0]], "y": [*mean[:, 1]], "proxy": [*proxy]}


def tables(runs: dict[str, ndarray], points: int = 18) -> dict[str, Table]:
    """What a picture of these runs needs."""
    return {"shares": shares(runs), "curves": curves(runs, points), "surface": surface()}


def draw(axes: Axes, ground: Table, lines: Table | None = None, method: str = "") -> None:
    """The proxy as contours; on it the curves of one method, coloured by where they end."""
    points = round(len(ground["x"]) ** 0.5)
    x, y, z = (np.reshape(ground[c], (points, points)) for c in ("x", "y", "proxy"))
    axes.contourf(x, y, z, levels=12, cmap="Greys", alpha=0.6)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.plot(*HILL, "^", color="black")
    axes.plot(*SPIKE, "v", color="black")
    if lines is None:
        return
    mine = np.array([(a, b, c) for m, a, b, c in zip(*lines.values(), strict=True) if m == method])
    for start in np.unique(mine[:, 0]):
        path = mine[mine[:, 0] == start][:, 1:]
        hill, spike = ends(path[-1])
        colour = COLOURS["hill" if hill else "spike" if spike else "neither"]
        axes.plot(*path.T, color=colour, linewidth=0.9)
        axes.plot(*path[0], ".", color=colour, markersize=3)
