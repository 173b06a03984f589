r"""What noise lets gradient regularization prefer when GR does not see it: flat wells.

Statement
    Noise is added *after* the step: :math:`\theta\leftarrow\theta-\eta Kg+\sqrt{2\eta\tau}\,z`,
    with :math:`g=\nabla L`, :math:`H=\nabla^2L`, :math:`K=I+\gamma H`, learning rate :math:`\eta`
    and z standard normal. (Noise of the batch goes through K too: see flow_batch_noise.)
    (a) GR adds :math:`\tfrac\tau2\log\det K` to the free energy of a well.
    (b) Between equally deep wells the odds of the sharp one change by
    :math:`\sqrt{(1+\gamma\lambda_{flat})/(1+\gamma\lambda_{sharp})}`, whatever :math:`\tau` is.
    (c) At any :math:`\tau` the share of a well is its share of :math:`e^{-L_\gamma/\tau}`, with
    :math:`L_\gamma=L+\tfrac\gamma2\|g\|^2`.

Assumptions
    Full gradients, small :math:`\eta`; the noise is the same in all directions and places. For (a)
    and (b) :math:`\tau` is small against the barrier; for (b) and (c) there is time to cross it.

Derivation
    :math:`Kg=\nabla L_\gamma`, so (c) is the density of Langevin's equation. Near a minimum it is
    nearly normal, with volume :math:`\propto\det(HK)^{-1/2}`: (a), and with it (b).

Falsified if
    the odds are off by 2 % at :math:`\tau=.005`, the volume or the share by 4 standard errors.

Source: follows from the rule; simulated by the scheme of Leimkuhler and Matthews 2013 (arXiv
1203.5428), exact in a parabola. Seeds: 0 (the turned valley), 2, 3 (noise).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet
from theory.flow_limits import Loss, matrices, spread, valley

TOP = 0.512  # of the barrier between the wells of `pair`, at 0 and 1.5
WHERE = spread(-2.5, 6, 400_001)  # of the densities
SHOWN = slice(90_000, 310_000, 500)  # the part of them in tables and figures


def columns(table: Mapping[str, Any]) -> Table:
    """The table with lists in place of arrays and tensors."""
    return {name: np.asarray(values).tolist() for name, values in table.items()}


def sextic(x: Tensor) -> Tensor:
    """Two wells of depth 0, at 0 with curvature 50 and at 1 with curvature 2; not parabolas."""
    return x**2 * (1 - x) ** 2 * (1 + 24 * (1 - x) ** 2)


def pair(x: Tensor) -> Tensor:
    """Two wells, of curvature near 20 at 0 and near 2 at 1.5; L'' >= -18; noise of 1 crosses."""
    return -torch.logaddexp(-10 * x**2, -((x - 1.5) ** 2))


def density_added(loss: Loss, strength: float, tau: float) -> Tensor:
    """exp(-L_gamma / tau), with integral 1; of strength 0: without GR."""
    slope = grad(lambda x: loss(x).sum())(WHERE)
    density = torch.exp(-(loss(WHERE) + strength / 2 * slope**2) / tau)
    return density / torch.trapezoid(density, WHERE)


def share_left(density: Tensor, top: float) -> float:
    """Share of the sharp well, which is the left one."""
    return float(density[top > WHERE].sum() / density.sum())


def wander(loss: Loss, start: Tensor, strength: float, lr: float, steps: int, kind: str,
           size: float, seed: int) -> Iterator[Tensor]:  # fmt: skip
    """flatopt over SGD, each copy for itself, with gradient noise of this standard deviation.

    Kind: "seen", in the loss of both passes; "added", after the step; "smooth", the same with the
    mean of two successive draws, which is closer to the limit of a small learning rate.
    """
    draw, before = torch.Generator().manual_seed(seed), torch.zeros_like(start)
    param = start.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=lr), strength)
    for _ in range(steps):
        noise = size * torch.randn(start.shape, generator=draw, dtype=start.dtype)

        def closure(noise: Tensor = noise) -> float:
            optimizer.zero_grad()
            value = loss(param).sum()
            if kind == "seen":
                value = value + (noise * param).sum()
            value.backward()
            return value.item()

        optimizer.step(closure)
        if kind != "seen":
            param.data += lr * (noise if kind == "added" else (noise + before) / 2)
        before = noise
        yield param.detach().clone()


def shares(kind: str, strength: float, copies: int, lr: float, seed: int,
           between: tuple[float, float]) -> tuple[Tensor, Table]:  # fmt: skip
    """Share of the time 4 to 12 that each copy is between two places of `pair`; a histogram."""
    plain = share_left(density_added(pair, 0, 1), TOP)
    start = 1.5 * (spread(0, 1, copies) > plain).double()  # as they are without GR
    steps, size = int(12 / lr), (2 / lr) ** 0.5  # noise of temperature 1
    kept, share, places = steps - steps // 3, 0 * start, []
    for k, x in enumerate(wander(pair, start, strength, lr, steps, kind, size, seed)):
        if k >= steps - kept:
            share += ((x > between[0]) & (x < between[1])) / kept
            places += [x] if k % 100 == 0 else []
    density, edges = np.histogram(torch.cat(places).numpy(), bins=60, range=(-1, 4), density=True)
    return share, columns({"x": (edges[1:] + edges[:-1]) / 2, "density": density})


def volume(strength: float = 0.2, tau: float = 5e-4) -> Check:
    """(a) log det K from the covariance of 5000 copies in a valley that is no parabola."""
    matrix, lr = matrices(torch.tensor([[50.0, 20.0, 5.0]], dtype=torch.float64), 0), 0.0015
    start, size = torch.zeros(5000, 3, dtype=torch.float64), (2 * tau / lr) ** 0.5
    loss = partial(valley, matrix=matrix)
    *_, cloud = wander(loss, start, strength, lr, 500, "smooth", size, 3)
    found = torch.logdet(tau * torch.linalg.inv(torch.cov(cloud.T) @ matrix[0]))
    due, error = torch.logdet(torch.eye(3) + strength * matrix[0]), (6 / len(cloud)) ** 0.5
    z, rival = (float(v - due) / error for v in (found, strength * matrix[0].trace()))
    return Check("volume of a well, flatopt: z", 0, z, 4, rival, "absolute")


def odds_in_the_cold(tau: float = 0.005) -> tuple[list[Check], Table]:
    """(b) The formula beside integrals of the density of (c): no flatopt in it."""
    strengths = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    formula = ((1 + 2 * strengths) / (1 + 50 * strengths)) ** 0.5
    left = np.array([share_left(density_added(sextic, y, tau), 0.4) for y in (0, *strengths)])
    odds = left / (1 - left)
    integrals, checks = odds[1:] / odds[0], []
    for k in (0, 3, 6):
        name = f"τ = {tau:g}, γ = {strengths[k]:g}: odds by integration"
        checks.append(Check(name, formula[k], integrals[k], 0.02, 1))
    return checks, columns({"strength": strengths, "formula": formula, "integrals": integrals})


def share_simulated(strength: float = 0.2) -> tuple[Check, Table, Table]:
    """(c) With a barrier that the noise crosses; the rival is a term 1.3 times too strong."""
    share, histogram = shares("smooth", strength, 16_000, 0.002, 2, (-9, TOP))
    error = float(share.std()) / len(share) ** 0.5
    plain, density, stronger = (density_added(pair, y * strength, 1) for y in (0, 1, 1.3))
    due, rival = share_left(density, TOP), share_left(stronger, TOP)
    z = (float(share.mean()) - due) / error
    name = f"τ = 1, γ = {strength:g}, flatopt: z of the share"
    curves = columns({"x": WHERE[SHOWN], "without GR": plain[SHOWN], "with GR": density[SHOWN]})
    return Check(name, 0, z, 4, (rival - due) / error, "absolute"), curves, histogram


def check(progress: Progress = quiet) -> Outcome:
    """The volume of one well, the odds of two."""
    progress("volume")
    in_one_well = volume()
    progress("odds")
    odds, wells = odds_in_the_cold()
    progress("share, simulated")
    share, densities, histogram = share_simulated()
    tables = {"wells": wells, "densities": densities, "simulated": histogram}
    return Outcome([in_one_well, *odds, share], tables)


def plot(tables: dict[str, Table]) -> Figure:
    """What unseen noise makes of two wells: the odds over the strength, and the density."""
    figure = Figure(figsize=(8.5, 3.7), layout="constrained")
    well, place = figure.subplots(1, 2)
    strength, formula, integrals = tables["wells"].values()
    well.semilogx(strength, formula, label="formula")
    well.semilogx(strength, integrals, "o", label="integrals, τ = 0.005")
    well.set(xlabel="strength γ", ylabel="odds, relative to γ = 0", title="Odds of the sharp well")
    x, *curves = tables["densities"].values()
    place.plot(x, np.transpose(curves), label=["without GR", "γ = 0.2"])
    place.plot(*tables["simulated"].values(), "k.", ms=4, label="γ = 0.2, flatopt")
    place.set(xlabel="x", ylabel="density", title="Two wells, noise after the step, τ = 1")
    for axes in (well, place):
        axes.legend(frameon=False)
    return figure
