r"""Two hills and a policy between them: the picture that the statements about landscapes share.

A Gaussian policy :math:`N(\mu,\sigma^2I)` in the plane maximises a proxy reward
:math:`r(a)=\sum_k h_k e^{-|a-c_k|^2/2w_k^2}`: a wide hill, which is also the true reward (2.5
high, width 1, at (.8, .8)), and a narrow, higher spike, which is false (4 high, width .15, at
(-.9, -.9)). Its mean has a closed form,

.. math:: L(\mu,\sigma) = -\sum_k h_k \frac{w_k^2}{w_k^2+\sigma^2}
          \exp\Bigl(-\frac{|\mu-c_k|^2}{2(w_k^2+\sigma^2)}\Bigr).

The state is the mean (two numbers, :math:`\sigma=.1`), or mean and :math:`\log\sigma` (three).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import brentq
from torch import Tensor

TOPS = np.array([[0.8, 0.8], [-0.9, -0.9]])
HILL, SPIKE = TOPS
AXIS = (HILL - SPIKE) / np.linalg.norm(HILL - SPIKE)
SIGMA = 0.1
# height and width
TRUE, FALSE = (2.5, 1.0), (4.0, 0.15)
Field = Callable[[ndarray], ndarray]


def reward(action: ndarray) -> ndarray:
    """The proxy reward of actions."""
    height, width = np.array([TRUE, FALSE]).T
    square = ((action[..., None, :] - TOPS) ** 2).sum(-1)
    return (height * np.exp(-square / (2 * width**2))).sum(-1)


def loss(x: Tensor, false: tuple[float, float] = FALSE) -> Tensor:
    """Minus the mean proxy reward of each policy; states along the last dimension."""
    height, width = torch.tensor([TRUE, false], dtype=x.dtype).T
    variance = torch.exp(2 * x[..., 2:]) if x.shape[-1] == 3 else SIGMA**2
    total = width**2 + variance
    square = ((x[..., None, :2] - torch.as_tensor(TOPS, dtype=x.dtype)) ** 2).sum(-1)
    return -(height * width**2 / total * torch.exp(-square / (2 * total))).sum(-1)


def gradient(x: ndarray, false: tuple[float, float] = FALSE) -> ndarray:
    """The gradient of `loss`, written out."""
    height, width = np.array([TRUE, false]).T
    variance = np.exp(2 * x[..., 2:]) if x.shape[-1] == 3 else SIGMA**2
    total = width**2 + variance
    away = x[..., None, :2] - TOPS
    square = (away**2).sum(-1)
    bump = height * width**2 / total * np.exp(-square / (2 * total))
    by_mean = ((bump / total)[..., None] * away).sum(-2)
    if x.shape[-1] == 2:
        return by_mean
    by_width = (variance * bump * (2 / total - square / total**2)).sum(-1, keepdims=True)
    return np.concatenate([by_mean, by_width], -1)


def regularized(x: ndarray, strength: ndarray | float, slope: Field = gradient) -> ndarray:
    """``g + strength * H g``, the gradient GR follows; H g by a central difference (error 1e-9)."""
    g = slope(x)
    product = (slope(x + 1e-5 * g) - slope(x - 1e-5 * g)) / 2e-5
    return g + np.asarray(strength)[..., None] * product


def flow(field: Field, x: ndarray, steps: int = 130, stride: float = 0.03) -> ndarray:
    """The curves of ``dx/dt = -field``, a gradient field: (steps + 1, starts, coordinates).

    Each step solves the linearised equation exactly (exponential integrator) for as long as it
    takes a start to move by about ``stride``: the curve of a flow does not depend on its clock.
    """
    path, shifts = [x], 1e-5 * np.eye(x.shape[-1])[:, None]
    for _ in range(steps):
        force = -field(x)
        jacobian = np.moveaxis((field(x - shifts) - field(x + shifts)) / 2e-5, 0, -1)
        rates, basis = np.linalg.eigh(jacobian)
        time = np.minimum(100, stride / np.maximum(np.linalg.norm(force, axis=-1), 1e-12))
        # no further than the linear picture holds where curves part
        time = np.minimum(time, 1 / np.maximum(rates[:, -1], 1e-2))
        growth = np.where(np.abs(rates) < 1e-9, 1e-9, rates) * time[:, None]
        part = np.einsum("nij,ni->nj", basis, force) * time[:, None] * np.expm1(growth) / growth
        x = x + np.einsum("nij,nj->ni", basis, part)
        path.append(x)
    return np.stack(path)


def gr(strength: ndarray | float, start: ndarray, steps: int = 130, **kind) -> ndarray:
    """The curves of exact GR; ``kind``: another false spike."""
    slope = partial(gradient, **kind)
    return flow(lambda x: regularized(x, strength, slope), start, steps)


def descend(field: Field, x: ndarray, rate: float, steps: int, beta: float = 0) -> ndarray:
    """Every fifth point of plain descent; ``beta``: KL to a reference that is reset there."""
    path = [x]
    for step in range(steps):
        if step % 5 == 0 and step:
            path.append(x)
        x = x - rate * (field(x) + beta / SIGMA**2 * (x - path[-1]))
    return np.stack([*path, x])


def sam(radius: float, x: ndarray, steps: int) -> ndarray:
    """SAM: descent by the gradient a length ``radius`` uphill in the loss."""

    def field(x: ndarray) -> ndarray:
        g = gradient(x)
        length = np.linalg.norm(g, axis=-1, keepdims=True)
        return gradient(x + radius * g / np.maximum(length, 1e-12))

    return descend(field, x, 3e-3, steps)


def square(points: int, width: float | None = None) -> ndarray:
    """Starts on a square grid around the spike, with the policy's width where it is learnt."""
    side = np.linspace(-0.8, 0.8, points)
    mean = SPIKE + np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    if width is None:
        return mean
    return np.concatenate([mean, np.full((len(mean), 1), np.log(width))], 1)


def ring(points: int) -> ndarray:
    """Points on the unit circle."""
    turn = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def ends(x: ndarray, near: tuple[float, float] = (0.3, 0.1)) -> ndarray:
    """Which policies are on the hill, which on the spike: (2, ...)."""
    distance = np.linalg.norm(x[..., None, :2] - TOPS, axis=-1)
    return np.moveaxis(distance < near, -1, 0)


def edge(changed: Callable[[float], bool], low: float, high: float, rounds: int = 12) -> float:
    """Where ``changed`` turns from false to true, by bisection."""
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (low, middle) if changed(middle) else (middle, high)
    return (low + high) / 2


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where the function changes its sign."""
    return float(np.asarray(brentq(function, low, high)))


def bumps() -> tuple[ndarray, ndarray]:
    """Hill and spike as a policy of width SIGMA sees them: heights a, squared widths s^2."""
    height, width = np.array([TRUE, FALSE]).T
    total = width**2 + SIGMA**2
    return height * width**2 / total, total


def limits() -> ndarray:
    """The strengths from which GR closes the hill and the spike: s^2 e^1.5 / 2a."""
    height, total = bumps()
    return total * np.exp(1.5) / (2 * height)


def inner_root(strength: float, k: int) -> float:
    """The distance from bump k (0 hill, 1 spike) at which 1 + strength * u'' turns negative."""
    height, total = (values[k] for values in bumps())
    fall = strength * height / total
    at = root(lambda r: 1 + fall * (1 - r**2) * np.exp(-(r**2) / 2), 1, 3**0.5)
    return float(total**0.5 * at)
