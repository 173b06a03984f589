"""`python -m theory.landscape_animation [file.gif]`: the policies move, without and with GR."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from theory.hills import HILL, SIGMA, SPIKE, ends, flow, gr, gradient, square
from theory.hills_plot import COLOURS, draw, surface

PATH = Path(__file__).resolve().parent.parent / "docs/theory/landscape/animation.gif"


def animate(path: Path, frames: int = 50) -> None:
    """Write the animation: dots are policies, circles their standard deviations."""
    # off the axis, on which a freed policy would balance behind the spike
    start = square(7, SIGMA) + np.array([0.03, -0.02, 0])
    steps = 180
    panels = {
        "no regularization": flow(gradient, start, steps),
        "GR, strength .2": gr(0.2, start, steps),
    }
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ground = surface()
    policies: list[tuple[Circle, Circle]] = []
    for axes, (name, curves) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        draw(axes, ground)
        axes.set(xlim=(-2, 1.8), ylim=(-2, 1.8))
        hill, spike = ends(curves[-1])
        axes.set_title(
            f"{name}: {hill.mean():.0%} reach\nthe true hill, {spike.mean():.0%} the spike"
        )
        axes.annotate("true hill", HILL, (0.8, 1.2), ha="center")
        axes.annotate("false spike", SPIKE, (-0.9, -1.9), ha="center")
        for on_hill, on_spike in zip(hill, spike, strict=True):
            colour = COLOURS["hill" if on_hill else "spike" if on_spike else "neither"]
            dot = Circle((0, 0), 0.025, color=colour, zorder=5)
            around = Circle((0, 0), 0.1, color=colour, fill=False, alpha=0.5, zorder=5)
            policies.append((axes.add_patch(dot), axes.add_patch(around)))
    writer = PillowWriter(fps=10)
    with writer.saving(figure, str(path), dpi=80):
        # the last picture stays for a while
        for at in [*np.linspace(0, steps, frames).astype(int), *[steps] * 15]:
            now = np.concatenate([curves[at] for curves in panels.values()])
            for (dot, around), (x, y, log_width) in zip(policies, now, strict=True):
                dot.set_center((x, y))
                around.set_center((x, y))
                around.set_radius(max(np.exp(log_width), 0.05))
            writer.grab_frame()


if __name__ == "__main__":
    animate(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
