r"""The ridge between two hills, and on which side of it a policy falls that widens on it.

At a fixed width the ridge is the saddle between spike and hill; over all widths these saddles
form a line :math:`x(\log\sigma)` in the plane of distance from the spike and log width. With the
velocity :math:`v=-(I+\gamma H)g` of GR, the distance y of a policy from that line obeys

.. math:: \frac{dy}{d\log\sigma} = \frac{v_s}{v_{\log\sigma}}\Big|_{x+y} - x'
          = r_0+r_1y+\tfrac12r_2y^2+O(y^3).

Where GR holds the policy on the ridge, :math:`r_1<0` and :math:`y=-r_0/r_1`; where it no longer
does, y grows: towards the hill if it is then positive, towards the spike if negative.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.integrate import solve_ivp

from theory.hills import AXIS, FALSE, SPIKE, edge, gradient, regularized, root


def place(distance: ndarray | float, log_width: ndarray | float) -> ndarray:
    """The policy so far from the spike on the way to the hill."""
    along = SPIKE + np.multiply.outer(distance, AXIS)
    return np.concatenate([along, np.expand_dims(log_width, -1)], -1)


def ridge(false: tuple[float, float] = FALSE) -> ndarray:
    """Saddles at fixed width, from width .05 to where L itself has one: distance, log width."""
    points: list[tuple[float, float]] = []
    for log_width in np.arange(np.log(0.05), 0, 0.02):

        def slope(distance: float, log_width: float = log_width) -> float:
            return gradient(place(distance, log_width), false)[:2] @ AXIS

        near = (points[-1][0] - 0.05, points[-1][0] + 0.05) if points else (0.3, 0.9)
        points.append((root(slope, *near), log_width))
        if gradient(place(*points[-1]), false)[2] > 0:
            break
    return np.array(points)


def lower_edge(false: tuple[float, float] = FALSE, order: int = 2) -> float:
    """Where the distance from the ridge ends on the hill's side rather than the spike's."""
    distance, log_width = ridge(false)[:-4].T
    moves = np.gradient(distance, log_width)

    def hill_side(strength: float) -> bool:
        def rate(y: float) -> ndarray:
            x = place(distance + y, log_width)
            velocity = regularized(x, strength, lambda x: gradient(x, false))
            return velocity[:, :2] @ AXIS / velocity[:, 2] - moves

        before, at, after = (rate(y) for y in (-0.003, 0, 0.003))
        taylor = (at, (after - before) / 0.006, (after - 2 * at + before) / 0.003**2 / 2)

        def change(now: float, y: ndarray) -> ndarray:
            terms = [np.interp(now, log_width, r) * y**k for k, r in enumerate(taylor[: order + 1])]
            return np.sum(terms, 0)

        def far(now: float, y: ndarray) -> float:
            return abs(y[0]) - 0.2

        far.terminal = True  # type: ignore[attr-defined]
        span, held = (log_width[0], log_width[-1]), [-taylor[0][0] / taylor[1][0]]
        path = solve_ivp(change, span, held, "LSODA", events=far, rtol=1e-8, atol=1e-10)
        return path.y[0, -1] > 0

    return edge(hill_side, 0.08, 0.2)
