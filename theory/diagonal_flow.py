"""A diagonal linear network: its flow under GR, flatopt's steps, and the minimum of Q."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray as Array
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from flatopt import GradRegOptimizer
from theory.check import Progress

ALPHA = 0.1
SMALL, STRONG = 0.002, 0.15  # strengths: for first-order effects, and for plain sight
# the solutions compared: three flows, then four argmins of Q
KINDS = ("plain", "weak", "strong", "strong argmin", "weak predicted", "weak even", "strong even")
Problem = tuple[Array, Array, Array]  # X, y, the sparse truth


class Sparse(NamedTuple):
    """What sparse regression gave, for each of ten seeds."""

    betas: dict[str, Array]  # for each of KINDS: (seeds, unknowns)
    predicted: Array  # log of what weak GR leaves of a, to first order: (seeds, unknowns)
    weak: Array  # the same, measured
    strong: Array


def problem(seed: int, n: int, d: int, ones: int) -> Problem:
    """Gaussian inputs, a truth with the given number of ones, no noise."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    truth = (np.arange(d) < ones).astype(float)
    return x, x @ truth, truth


def field(setting: Problem, state: Array, gamma: float, eps: float) -> tuple[Array, Array]:
    """GR's gradient (of u over that of v), and q * q', from two plain gradients; eps 0: exact."""
    x, y, _ = setting
    sign = np.array([[2.0], [-2.0]])
    q = x.T @ (x @ (state[0] ** 2 - state[1] ** 2) - y) / len(y)
    g = sign * state * q
    if eps == 0:
        slope = x.T @ (x @ (sign * state * g).sum(0)) / len(y)
        return g + gamma * sign * (g * q + state * slope), q * q
    there = state + eps * g
    ahead = x.T @ (x @ (there[0] ** 2 - there[1] ** 2) - y) / len(y)
    return g + gamma / eps * (sign * there * ahead - g), q * ahead


def flow(setting: Problem, gamma: float, eps: float, time: float = 3000) -> tuple[Array, Array]:
    """Weights (u, v) at the end of the flow, and the integral of q * q' along it."""
    d = setting[0].shape[1]

    def right(_: float, y: Array) -> Array:
        g, product = field(setting, y[: 2 * d].reshape(2, d), gamma, eps)
        return np.concatenate([-g.ravel(), product])

    start = np.repeat([ALPHA, 0], [2 * d, d])
    end = solve_ivp(right, (0, time), start, method="LSODA", rtol=1e-10, atol=1e-13).y[:, -1]
    return end[: 2 * d].reshape(2, d), end[2 * d :]


def least(setting: Problem, a: Array) -> Array:
    """The minimum of Q_a over X beta = y, by Newton's method on the dual, from zero."""
    x, y, _ = setting
    dual = minimize(
        lambda z: 2 * a @ np.cosh(x.T @ z) - y @ z,
        np.zeros(len(y)),
        jac=lambda z: x @ (2 * a * np.sinh(x.T @ z)) - y,
        hess=lambda z: (x * (2 * a * np.cosh(x.T @ z))) @ x.T,
        method="trust-exact",
        options={"gtol": 1e-10},
    )
    return 2 * a * np.sinh(x.T @ dual.x)


def descent(setting: Problem, start: Array, lr: float, steps: int, gamma: float, eps: float):
    """Weights after steps of flatopt; eps 0: exact."""
    x, y = torch.tensor(setting[0]), torch.tensor(setting[1])
    weights = torch.tensor(start, requires_grad=True)
    base, kind = torch.optim.SGD([weights], lr=lr), "forward" if eps else "exact"
    optimizer = GradRegOptimizer(base, gamma, eps=eps or None, difference=kind)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (x @ (weights[0] ** 2 - weights[1] ** 2) - y).square().mean() / 2
        loss.backward()
        return loss.item()

    for _ in range(steps):
        optimizer.step(closure)
    return weights.detach().numpy()


def log_shrinkage(weights: Array) -> Array:
    """log(uv / alpha^2) of weights (u, v), coordinate by coordinate."""
    return np.log(weights[0] * weights[1] / ALPHA**2)


def solution(weights: Array) -> Array:
    """beta = u^2 - v^2."""
    return weights[0] ** 2 - weights[1] ** 2


def argmin(setting: Problem, log_a: Array) -> Array:
    """The minimum of Q_a for a = alpha^2 exp(log_a)."""
    return least(setting, ALPHA**2 * np.exp(log_a))


def sparse_regression(progress: Progress) -> Sparse:
    """30 equations and 60 unknowns, of which the first three are not zero, ten times."""
    betas, predicted = [], []
    measured: dict[float, list[Array]] = {SMALL: [], STRONG: []}
    for seed in range(10):
        progress(f"sparse regression, seed {seed}")
        setting = problem(seed, 30, 60, 3)
        runs = {gamma: flow(setting, gamma, 0) for gamma in (0, SMALL, STRONG)}
        for gamma, found in measured.items():
            found.append(log_shrinkage(runs[gamma][0]))
        predicted.append(-8 * SMALL * runs[0][1])
        changes = (
            -8 * STRONG * runs[STRONG][1],
            predicted[-1],
            np.full(60, predicted[-1].mean()),
            np.full(60, measured[STRONG][-1].mean()),
        )
        flows = [solution(weights) for weights, _ in runs.values()]
        betas.append(flows + [argmin(setting, change) for change in changes])
    by_kind: dict[str, Array] = dict(zip(KINDS, np.moveaxis(np.array(betas), 1, 0), strict=True))
    return Sparse(by_kind, *(np.array(logs) for logs in (predicted, *measured.values())))
