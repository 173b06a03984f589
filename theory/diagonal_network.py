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

from itertools import product as pairs

import numpy as np
from matplotlib.figure import Figure
from numpy import ndarray as Array

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.diagonal_flow import (
    ALPHA,
    KINDS,
    SMALL,
    STRONG,
    Problem,
    Sparse,
    argmin,
    descent,
    field,
    flow,
    log_shrinkage,
    problem,
    solution,
    sparse_regression,
)

SETTINGS = ((0.05, 0.0), (0.05, 0.01), (0.05, 0.05), (0.05, 0.15), (STRONG, 0.0))


def distance(a: Array, b: Array) -> float:
    """The Euclidean one."""
    return float(np.linalg.norm(a - b))


def flatopt_follows_the_flow(setting: Problem) -> list[Check]:
    """One step from five random states, and the end of many small ones."""
    draw, gaps, effects = np.random.default_rng(0), [], []
    for gamma, eps in SETTINGS:
        state = draw.uniform(0.2, 1, (2, 20))
        got = state - descent(setting, state, 1.0, 1, gamma, eps)
        for strength, gap in ((gamma, gaps), (0, effects)):
            gap.append(
                distance(got, field(setting, state, strength, eps)[0]) / distance(got, 0 * got)
            )
    start, end = np.full((2, 20), ALPHA), flow(setting, 0.05, 0.05, time=4)[0]
    coarse, fine = (
        distance(descent(setting, start, 4 / steps, steps, 0.05, 0.05), end) for steps in (300, 600)
    )
    # if false: plain descent; no convergence
    return [
        Check("flatopt's gradient off the field", 0, max(gaps), 1e-12, min(effects), "absolute"),
        Check("flatopt's order in the step", 1, np.log2(coarse / fine), 0.05, 0, "absolute"),
    ]


def flows_end_at_the_argmin(settings: list[Problem]) -> list[Check]:
    """uv and beta at the end of 15 flows; if false, GR changes neither."""
    drifts, drifts_if_kept, offs, offs_if_kept = [], [], [], []
    for (gamma, eps), setting in pairs(SETTINGS, settings):
        weights, integral = flow(setting, gamma, eps)
        due = -8 * gamma * integral
        drifts.append(np.abs(log_shrinkage(weights) - due).max())
        drifts_if_kept.append(np.abs(log_shrinkage(weights)).max())
        offs.append(np.abs(solution(weights) - argmin(setting, due)).max())
        offs_if_kept.append(np.abs(solution(weights) - argmin(setting, 0 * due)).max())
    return [
        Check("|log(uv / a)|, 15 flows", 0, max(drifts), 1e-6, min(drifts_if_kept), "absolute"),
        Check("|beta - argmin Q|, 15 flows", 0, max(offs), 1e-6, min(offs_if_kept), "absolute"),
    ]


def shrinkage_to_first_order(settings: list[Problem]) -> list[Check]:
    """The mean fall of log a per strength, from the flow without GR, whose q' is a step away."""
    checks, exact = [], 0.0
    for eps in (0.0, 0.05, 0.15):
        due = 8 * np.mean([flow(setting, 0, eps)[1] for setting in settings]).item()
        ends = [flow(setting, SMALL, eps)[0] for setting in settings]
        got = -np.mean([log_shrinkage(weights) for weights in ends]).item() / SMALL
        exact = exact or due
        # if false: half of it; for a longer step: as for none
        rival = exact if eps else exact / 2
        checks.append(Check(f"shrinkage per strength, eps {eps:g}", due, got, 0.01, rival))
    return checks


def shrinkage_of_the_support(sparse: Sparse) -> list[Check]:
    """GR ends at the argmin here too, and shrinks a most on the support."""
    strong = sparse.betas["strong"]
    off, rival = (
        np.abs(strong - sparse.betas[kind]).max(1) for kind in ("strong argmin", "strong even")
    )
    due, got = (
        float(np.median(log[:, :3].mean(1) / log[:, 3:].mean(1)))
        for log in (sparse.predicted, sparse.weak)
    )
    return [
        Check("|beta - argmin Q|, sparse", 0, max(off), 1e-6, min(rival), "absolute"),
        Check("shrinkage on / off the support", due, got, 0.03, 1),
    ]


def growth(name: str, size: dict[str, Array]) -> list[Check]:
    """By how much, and in how many seeds, GR raises a size; if false: every a shrinks alike."""
    change = {kind: size[kind] - size["plain"] for kind in KINDS}
    slope, due, even = (
        change[kind].mean() / SMALL for kind in ("weak", "weak predicted", "weak even")
    )
    raised = {kind: (change[kind] > 0).sum() for kind in KINDS}
    up, even_up = raised["weak predicted"], raised["weak even"]
    many, few = f"{name}: seeds of 10 where GR raises it", f"{name}: the same, shrunk evenly"
    return [
        Check(f"{name} per strength", due, slope, 0.03, even),
        Check(many, up, raised["strong"], 0, even_up, "absolute"),
        Check(few, even_up, raised["strong even"], 0, up, "absolute"),
    ]


def check(progress: Progress = quiet) -> Outcome:
    """flatopt against the flow, the flow against the argmin, and what it does to sparsity."""
    small = [problem(seed, 6, 20, 2) for seed in range(3)]
    progress("flatopt and argmin")
    checks = flatopt_follows_the_flow(small[0]) + flows_end_at_the_argmin(small)
    checks += shrinkage_to_first_order(small)
    sparse, truth = sparse_regression(progress), np.arange(60) < 3
    sizes = {
        "l1": {kind: np.abs(beta).sum(1) for kind, beta in sparse.betas.items()},
        "error": {kind: np.linalg.norm(b - truth, axis=1) for kind, b in sparse.betas.items()},
    }
    checks += shrinkage_of_the_support(sparse)
    for name, size in sizes.items():
        checks += growth(name, size)
    table = {
        "seed": np.arange(10),
        "left on": np.exp(sparse.strong[:, :3].mean(1)),
        "left off": np.exp(sparse.strong[:, 3:].mean(1)),
    }
    table |= {f"{name} {kind}": size[kind] for name, size in sizes.items() for kind in KINDS}
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
