r"""What the noise of the batch makes of gradient regularization: it widens sharp wells.

Statement
    The gradients of both passes have the same error :math:`\xi` with
    :math:`\mathrm{cov}\,\xi=\sigma^2I`, drawn anew for each step: the loss is
    :math:`L+\xi\cdot\theta`, the step :math:`\theta\leftarrow\theta-\eta K(g+\xi)`, with
    :math:`g=\nabla L`, :math:`K=I+\gamma\nabla^2L`, learning rate :math:`\eta`.
    (a) In a parabola the stationary variance along curvature :math:`\lambda`, with
    :math:`\kappa=1+\gamma\lambda`, is exactly
    :math:`\eta\sigma^2\kappa/\lambda(2-\eta\lambda\kappa)`: for small :math:`\eta`
    :math:`\kappa` times what it is without GR, where noise added after the step (flow_noise) gives
    :math:`1/\kappa` times.
    (b) In one dimension, with :math:`\kappa=1+\gamma L''>0` everywhere and
    :math:`\tau=\eta\sigma^2/2`, the density is :math:`\propto\kappa^{-2}e^{-\Phi/\tau}`,
    :math:`\Phi'=L'/\kappa`; to first order in :math:`\gamma`,
    :math:`\Phi=L-\tfrac\gamma2L'^2`, the opposite of what GR minimises. The noise gathers where L
    is concave, and of two equally deep wells the sharp one can gain by GR.

Assumptions
    The batches change the gradient but not its derivative; (a) L is quadratic and
    :math:`\eta\lambda\kappa<2`; (b) small :math:`\eta`, time to cross the barrier.

Derivation
    (a) :math:`v=(1-\eta\lambda\kappa)^2v+\eta^2\kappa^2\sigma^2`. (b) The limit is Ito's equation
    :math:`dx=-\kappa L'dt+\sqrt{2\tau}\,\kappa\,dW`; in one dimension there is no current:
    :math:`-\kappa L'p=\tau(\kappa^2p)'`.

Falsified if
    a variance is off by 5 % (5 standard errors), a share or odds of (b) by 5 % (for their finite
    :math:`\eta`).

Source: follows from the rule. Seeds: 0 (the turned parabola), 2, 4, 5 (noise).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.flow_limits import Loss, descend, matrices, parabola, spread
from theory.flow_noise import (
    SHOWN,
    WHERE,
    columns,
    density_added,
    pair,
    shares,
    wander,
)

SEEDS = {"seen": 4, "added": 5}


def density_seen(loss: Loss, strength: float, tau: float) -> Tensor:
    """(b) exp(-Phi / tau) / kappa^2, with integral 1."""
    slope = grad(lambda x: loss(x).sum())(WHERE)
    kappa = 1 + strength * torch.gradient(slope, spacing=(WHERE,))[0]
    if not (kappa > 0).all():
        raise ValueError("there is no such density: 1 + strength * L'' is not positive everywhere")
    phi = torch.cumulative_trapezoid(slope / kappa, WHERE)
    phi = torch.cat([0 * phi[:1], phi])
    density = torch.exp(-(phi - phi.min()) / tau) / kappa**2
    return density / torch.trapezoid(density, WHERE)


def variances(kind: str, seed: int, strength: float, curvature: Tensor, lr: float) -> Tensor:
    """Along each curvature of a turned parabola, from 20000 copies, for noise of variance 1."""
    matrix = matrices(curvature[None], 0)
    directions = torch.linalg.eigh(matrix[0])[1]  # by rising curvature
    start = torch.zeros(20_000, len(curvature), dtype=torch.float64)
    *_, end = wander(partial(parabola, matrix=matrix), start, strength, lr, 400, kind, 1, seed)
    return (end @ directions).var(0)


def spread_in_a_bowl(strength: float = 0.2, lr: float = 0.002) -> tuple[list[Check], Table]:
    """(a) For both kinds of noise; the rival of each is the formula of the other."""
    curvature = torch.tensor([5.0, 50.0], dtype=torch.float64)
    kappa = 1 + strength * curvature
    seen = lr * kappa / (curvature * (2 - lr * curvature * kappa))
    due = {"seen": seen, "added": seen / kappa**2}
    found = {kind: variances(kind, seed, strength, curvature, lr) for kind, seed in SEEDS.items()}
    checks, rows = [], []
    for kind, other in (("seen", "added"), ("added", "seen")):
        for k, size in enumerate(curvature.tolist()):
            name = f"noise {kind}, λ = {size:g}: variance / σ²"
            checks.append(
                Check(name, due[kind][k].item(), found[kind][k].item(), 0.05, due[other][k].item())
            )
            rows.append((kind, size, float(due[kind][k]), float(found[kind][k])))
    kinds, sizes, predicted, measured = zip(*rows, strict=True)
    table = {"kind": kinds, "curvature": sizes, "predicted": predicted, "measured": measured}
    return checks, columns(table)


def concave() -> tuple[float, float]:
    """Between which places L'' < 0, on the way from the sharp well of `pair` to the flat one."""
    slope = grad(lambda x: pair(x).sum())(WHERE)
    places = WHERE[(torch.gradient(slope, spacing=(WHERE,))[0] < 0) & (WHERE > 0)]
    return float(places[0]), float(places[-1])


def regions(density: Tensor, places: Tensor) -> Tensor:
    """Shares of the sharp well, the concave stretch and the flat well."""
    low, high = concave()
    masks = (places < low, (places >= low) & (places <= high), places > high)
    return torch.stack([density[mask].sum() for mask in masks]) / density.sum()


def stationary(strength: float, tau: float, lr: float = 0.0007) -> Tensor:
    """Shares of the regions under flatopt's steps with noise of the batch, for all time.

    A step is linear in the noise, so that two steps from each place of a grid, one without noise
    and one with a noise of 1, give the normal distribution of the next place.
    """
    places = spread(-1.2, 4.2, 2701)
    still = next(descend(pair, places, strength, lr, 1))
    pushed = next(descend(lambda x: pair(x) + x, places, strength, lr, 1))
    deviation = (2 * tau / lr) ** 0.5 * (pushed - still).abs()
    chances = torch.exp(-(((places - still[:, None]) / deviation[:, None]) ** 2) / 2)
    chances /= chances.sum(1, keepdim=True)
    # unchanged by a step, and of sum 1
    system = chances.T - torch.eye(len(places), dtype=torch.float64)
    system[-1] = 1
    right = torch.zeros_like(places)
    right[-1] = 1
    return regions(torch.linalg.solve(system, right), places)


def share_simulated(strength: float = 0.04) -> tuple[Check, dict[str, Table]]:
    """(b) Of the concave stretch, at tau = 1; the rival is the density of unseen noise."""
    curves = {
        "without GR": density_added(pair, 0, 1),
        "added": density_added(pair, strength, 1),
        "seen": density_seen(pair, strength, 1),
    }
    share, histogram = shares("seen", strength, 4000, 0.0014, 2, concave())
    due, rival = (float(regions(curves[kind], WHERE)[1]) for kind in ("seen", "added"))
    name = f"noise seen, τ = 1, γ = {strength:g}: share of the concave part"
    shown = {"x": WHERE[SHOWN], **{kind: curve[SHOWN] for kind, curve in curves.items()}}
    tables = {"densities": columns(shown), "simulated": histogram}
    return Check(name, due, float(share.mean()), 0.05, rival), tables


def odds_of_the_sharp_well(strength: float = 0.04) -> tuple[list[Check], Table]:
    """(b) Over the flat one, both without the concave stretch; the same rival."""
    checks, rows = [], []
    for tau in (1, 0.15):
        densities = {
            "without GR": density_added(pair, 0, tau),
            "added": density_added(pair, strength, tau),
            "seen": density_seen(pair, strength, tau),
        }
        found = {kind: regions(density, WHERE) for kind, density in densities.items()}
        found["seen, flatopt"] = stationary(strength, tau)
        odds = {kind: float(share[0] / share[2]) for kind, share in found.items()}
        name = f"noise seen, τ = {tau:g}, γ = {strength:g}: odds of the sharp well"
        checks.append(Check(name, odds["seen"], odds["seen, flatopt"], 0.05, odds["added"]))
        rows += [(tau, kind, *share.tolist()) for kind, share in found.items()]
    names = ("tau", "noise", "sharp", "concave", "flat")
    return checks, dict(zip(names, zip(*rows, strict=True), strict=True))


def check(progress: Progress = quiet) -> Outcome:
    """The spread in a bowl, and the weights of two wells and of what lies between them."""
    progress("spread in a bowl")
    spreads, bowl = spread_in_a_bowl()
    progress("two wells, simulated")
    share, tables = share_simulated()
    progress("two wells, stationary")
    odds, weights = odds_of_the_sharp_well()
    return Outcome([*spreads, share, *odds], {"bowl": bowl, **tables, "weights": weights})


def plot(tables: dict[str, Table]) -> Figure:
    """Spread in a bowl, and where noise of either kind is found in two wells."""
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    bowl, wells = figure.subplots(1, 2, width_ratios=(2, 3))
    kinds, curvature, predicted, measured = tables["bowl"].values()
    names = [f"{kind},\nλ = {size:g}" for kind, size in zip(kinds, curvature, strict=True)]
    bowl.semilogy(names, predicted, "k_", ms=25, label="predicted")
    bowl.semilogy(names, measured, "o", label="flatopt")
    bowl.set(ylabel="variance / σ²", title="Spread in a bowl, γ = 0.2")
    x, *densities = tables["densities"].values()
    labels = ["without GR", "noise added after the step", "noise seen"]
    wells.plot(x, np.transpose(densities), label=labels)
    wells.plot(*tables["simulated"].values(), "k.", ms=4, label="noise seen, flatopt")
    wells.set(xlabel="x", ylabel="density", title="Two wells, γ = 0.04, τ = 1")
    for axes in (bowl, wells):
        axes.legend(frameon=False)
    return figure
