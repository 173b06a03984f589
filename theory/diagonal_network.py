r"""Which solution GR picks in a diagonal linear network: a richer regime, yet not a sparser one.

Statement
    Regression :math:`L=\tfrac1{2n}\|X\beta-y\|^2`, :math:`\beta=u^2-v^2` (coordinate-wise), from
    :math:`u=v=\alpha`. The flow of GR by a forward difference (strength :math:`\gamma`, step
    :math:`\epsilon` of any length, 0: exact GR), if it interpolates, ends at the minimum of
    :math:`Q_a(\beta)=\sum_i\beta_i\,\mathrm{arsinh}(\beta_i/2a_i)-\sqrt{\beta_i^2+4a_i^2}` over
    :math:`X\beta=y`, with :math:`a=\alpha^2\exp(-8\gamma\int qq'\,dt)`,
    :math:`q=X^\top(X\beta-y)/n`, and q' the same at the shifted weights. Exact GR makes every
    :math:`a_i` smaller ("richer"), but most on the support, where q is large and a smaller
    :math:`a_i` penalises a wanted coordinate: the solution gets less sparse here, not more.

Assumptions
    Full batch, gradient flow, no noise in y, convergence to :math:`X\beta=y`.

Derivation
    :math:`g_u=2uq,\ g_v=-2vq`; shifted: :math:`u'=u(1+2\epsilon q),\ v'=v(1-2\epsilon q)`. With
    :math:`w=(1-\gamma/\epsilon)q+(\gamma/\epsilon)q'` GR's flow has
    :math:`(\log u)'=-2w-4\gamma qq'` and :math:`(\log v)'=2w-4\gamma qq'`. Sum: :math:`uv=a`.
    Difference: w is in the row space of X, so :math:`\log(u/v)=X^\top\lambda`, and
    :math:`\beta=2uv\sinh\log(u/v)` has :math:`\nabla Q_a(\beta)=X^\top\lambda`; Q is convex. To
    first order in :math:`\gamma` the integral may be taken along the flow *without* GR.

Falsified if
    a flow ends further than 1e-6 from the argmin, or a first-order effect is off by 3 %.

Source: Karakida et al. 2023 (arXiv 2210.02720); Q: Woodworth et al. 2020 (arXiv 2002.09277).
Seeds: 0-2 (6 x 20, 2 ones), 0-9 (30 x 60, 3 ones), 0 (the states of the first check).
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy import ndarray as Array
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

ALPHA = 0.1
SMALL, STRONG = 0.002, 0.15  # strengths: for first-order effects, and for plain sight
SETTINGS = ((0.05, 0.0), (0.05, 0.01), (0.05, 0.05), (0.05, 0.15), (STRONG, 0.0))
# the solutions compared: three flows, then four argmins of Q
KINDS = ("plain", "weak", "strong", "strong argmin", "weak predicted", "weak even", "strong even")
Problem = tuple[Array, Array, Array]  # X, y, the sparse truth


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


def check(progress: Progress = quiet) -> Outcome:
    """flatopt against the flow, the flow against the argmin, and what it does to sparsity."""
    small, norm, a0 = [problem(seed, 6, 20, 2) for seed in range(3)], np.linalg.norm, ALPHA**2
    progress("flatopt and argmin")
    draw = np.random.default_rng(0)
    gaps, effects, drifts, kept, offs, unmoved = [], [], [], [], [], []
    for gamma, eps in SETTINGS:
        state = draw.uniform(0.2, 1, (2, 20))
        got = state - descent(small[0], state, 1.0, 1, gamma, eps)
        for gap, strength in ((gaps, gamma), (effects, 0)):
            gap.append(norm(got - field(small[0], state, strength, eps)[0]) / norm(got))
        for setting in small:
            (u, v), integral = flow(setting, gamma, eps)
            log_a, guess = np.log(u * v / a0), -8 * gamma * integral
            for drift, off, share in ((drifts, offs, 1), (kept, unmoved, 0)):
                drift.append(np.abs(log_a - share * guess).max())
                off.append(np.abs(u**2 - v**2 - least(setting, a0 * np.exp(share * guess))).max())
    start, end = np.full((2, 20), ALPHA), flow(small[0], 0.05, 0.05, time=4)[0]
    far = [norm(descent(small[0], start, 4 / n, n, 0.05, 0.05) - end) for n in (300, 600)]
    # if false: plain descent; no convergence; uv = alpha^2 is conserved; so is the argmin
    checks = [
        Check("flatopt's gradient off the field", 0, max(gaps), 1e-12, min(effects), "absolute"),
        Check("flatopt's order in the step", 1, np.log2(far[0] / far[1]), 0.05, 0, "absolute"),
        Check("|log(uv / a)|, 15 flows", 0, max(drifts), 1e-6, min(kept), "absolute"),
        Check("|beta - argmin Q|, 15 flows", 0, max(offs), 1e-6, min(unmoved), "absolute"),
    ]
    guesses = []
    for eps in (0.0, 0.05, 0.15):
        # along the flow without GR, yet with q' a step eps away
        guesses.append(8 * np.mean([flow(setting, 0, eps)[1] for setting in small]).item())
        ends = [flow(setting, SMALL, eps)[0] for setting in small]
        got = -np.mean([np.log(u * v / a0) for u, v in ends]).item() / SMALL
        rival = guesses[0] if eps else guesses[0] / 2
        checks.append(Check(f"shrinkage per strength, eps {eps:g}", guesses[-1], got, 0.01, rival))

    solutions, logs = [], []
    for seed in range(10):
        progress(f"sparse regression, seed {seed}")
        setting = problem(seed, 30, 60, 3)
        runs = [flow(setting, gamma, 0) for gamma in (0, SMALL, STRONG)]
        weak, strong = (np.log(u * v / a0) for (u, v), _ in runs[1:])
        guess, one = -8 * SMALL * runs[0][1], np.ones(60)
        changes = (-8 * STRONG * runs[2][1], guess, guess.mean() * one, strong.mean() * one)
        argmins = [least(setting, a0 * np.exp(change)) for change in changes]
        solutions.append([u**2 - v**2 for (u, v), _ in runs] + argmins)
        logs.append((guess, weak, strong))
    betas, truth = np.array(solutions), np.arange(60) < 3
    off, rival = (np.abs(betas[:, 2] - betas[:, k]).max(1) for k in (3, 6))
    checks.append(Check("|beta - argmin Q|, sparse", 0, max(off), 1e-6, min(rival), "absolute"))
    on, away = (np.array(logs)[:, :, where].mean(2) for where in (truth, ~truth))
    guess, got, _ = np.median(on / away, axis=0).tolist()
    checks.append(Check("shrinkage on / off the support", guess, got, 0.03, 1))
    table = {"seed": np.arange(10), "left on": np.exp(on[:, 2]), "left off": np.exp(away[:, 2])}
    for name, size in (("l1", np.abs(betas).sum(2)), ("error", norm(betas - truth, axis=2))):
        table |= {f"{name} {kind}": size[:, k] for k, kind in enumerate(KINDS)}
        grown = size - size[:, :1]
        slope, guess, even = grown.mean(0)[[1, 4, 5]] / SMALL
        raised, up, even_up, raised_evenly = (grown > 0).sum(0)[[2, 4, 5, 6]]
        # the false theory: every a_i shrinks alike, hence "GR implies sparser"
        checks += [
            Check(f"{name} per strength", guess, slope, 0.03, even),
            Check(f"{name}: seeds of 10 where GR raises it", up, raised, 0, even_up, "absolute"),
            Check(f"{name}: the same, shrunk evenly", even_up, raised_evenly, 0, up, "absolute"),
        ]
    return Outcome(checks, {"seeds": {name: column.tolist() for name, column in table.items()}})


def plot(tables: dict[str, Table]) -> Figure:
    """What is left of each a_i on and off the support, and what that does to the error."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    shrunk, worse = figure.subplots(1, 2)
    seeds = {name: np.array(column) for name, column in tables["seeds"].items()}
    for shift, where, name in ((-0.2, "on", "on the support"), (0.2, "off", "off it")):
        shrunk.bar(seeds["seed"] + shift, seeds[f"left {where}"], 0.4, label=name)
    shrunk.set(title="GR shrinks a most on the support", ylabel="a / alpha^2 (geometric mean)")
    for shift, kind, name in ((-0.2, "strong", "GR"), (0.2, "strong even", "shrunk evenly")):
        change = seeds[f"error {kind}"] - seeds["error plain"]
        worse.bar(seeds["seed"] + shift, change, 0.4, label=name)
    worse.set(title="so it misses the sparse truth by more", ylabel="change of |beta - truth|")
    for axes in (shrunk, worse):
        axes.set(xlabel="seed", xticks=range(10), ymargin=0.25)
        axes.legend(frameon=False, ncols=2, loc="upper center")
    return figure
