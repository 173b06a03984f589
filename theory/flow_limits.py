r"""Where gradient regularization stops and what holds it fast, when there is no noise.

Statement
    GR follows :math:`-(I+\gamma H)g`, with :math:`g=\nabla L`, :math:`H=\nabla^2L`.
    (a) A stationary point of L stays one, with Hessian :math:`H+\gamma H^2` in place of H: a
    minimum, however sharp, stays a minimum and gets steeper. Only a finite learning rate
    :math:`\eta` leaves it, where :math:`\eta\lambda(1+\gamma\lambda)>2`.
    (b) A saddle or maximum attracts once :math:`\gamma|\lambda|>1` for each negative eigenvalue.
    (c) Points with :math:`(I+\gamma H)g=0` and :math:`g\ne0` can attract too.

Assumptions
    L has three derivatives; full gradients, no momentum.

Derivation
    (a, b) The derivative of :math:`(I+\gamma H)g` where g = 0 has eigenvalues
    :math:`\lambda(1+\gamma\lambda)`; a step multiplies by :math:`1-\eta\lambda(1+\gamma\lambda)`.
    (c) In one dimension: :math:`L''=-1/\gamma`, where L'' rises with the distance from the well.

Falsified if
    the Hessian is off by 1e-12, the edge or a place by 1 %, the saddle's threshold by 3 %.

Source: follows from the rule. Seeds: 0, 1 (Hessians, 642 saddles and maxima).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import root_scalar
from torch import Tensor
from torch.func import grad, hessian, vmap

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

Loss = Callable[[Tensor], Tensor]  # one value for each copy


def spread(low: float, high: float, count: int) -> Tensor:
    """Equally spaced numbers, one for each copy."""
    return torch.linspace(low, high, count, dtype=torch.float64)


def matrices(eigenvalues: Tensor, seed: int) -> Tensor:
    """Symmetric matrices with these eigenvalues (copies, n), each turned at random."""
    draw, shape = torch.Generator().manual_seed(seed), (*eigenvalues.shape, eigenvalues.shape[1])
    q = torch.linalg.qr(torch.randn(shape, generator=draw, dtype=torch.float64)).Q
    return q * eigenvalues[:, None] @ q.mT


def parabola(x: Tensor, matrix: Tensor) -> Tensor:
    """x'Mx/2."""
    return ((matrix @ x[..., None])[..., 0] * x / 2).sum(-1)


def valley(x: Tensor, matrix: Tensor) -> Tensor:
    """The parabola with cubic and quartic terms: stationary at 0, where the Hessian is M."""
    return parabola(x, matrix) + (x**3 / 3 + x**4 / 4).sum(-1)


def bell(x: Tensor) -> Tensor:
    """A well whose flanks end in a plain: the curvature is negative beyond 1."""
    return -torch.exp(-(x**2) / 2)


def descend(loss: Loss, start: Tensor, strength: float, lr: float, steps: int) -> Iterator[Tensor]:
    """flatopt over SGD, each copy for itself (H is block diagonal in them)."""
    param = start.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=lr), strength)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(param).sum()
        value.backward()
        return value.item()

    for _ in range(steps):
        optimizer.step(closure)
        yield param.detach().clone()


def hessian_at_a_minimum(strength: float = 0.1) -> Check:
    """(a) Of L + strength / 2 |g|^2 at five minima, by automatic differentiation."""
    plain = matrices(spread(1, 50, 4).expand(5, 4), 0)

    def measured(m: Tensor) -> Tensor:
        def regularized(x: Tensor) -> Tensor:
            return valley(x, m) + strength / 2 * grad(valley)(x, m).square().sum()

        return hessian(regularized)(0 * m[0])

    found = vmap(measured)(plain)
    steeper = plain + strength * plain @ plain
    off, unmoved = (float((found - m).norm() / found.norm()) for m in (steeper, plain))
    return Check("Hessian at a minimum: to H + γH²", 0, off, 1e-12, unmoved, "absolute")


def edge_of_stability(strength: float, lr: float = 0.02) -> Check:
    """(a) The least curvature of a minimum that the learning rate leaves."""
    curvature = spread(1, 120, 2381)
    start = torch.full_like(curvature, 1e-6)
    *_, end = descend(lambda x: curvature * (1 - x.cos()), start, strength, lr, 300)
    edge = ((1 + 8 * strength / lr) ** 0.5 - 1) / (2 * strength)
    name = f"η = {lr:g}, γ = {strength:g}: least λ that is left"
    return Check(name, edge, float(curvature[end.abs() > start][0]), 0.01, 2 / lr)


def attracting(name: str, others: tuple[int, ...], strength: float) -> tuple[Check, Table]:
    """(b) Points with one weak negative curvature of many sizes; growth of the distance to them."""
    products = spread(0.4, 2, 321)  # strength times the weak curvature
    eigenvalues = [-products / strength, *(torch.full_like(products, v) for v in others)]
    matrix = matrices(torch.stack(eigenvalues, 1), 1)
    start = 1e-4 * torch.ones_like(matrix[:, 0])
    path = [*descend(partial(valley, matrix=matrix), start, strength, 0.02, 200)]
    growth = path[-1].norm(dim=1) / path[99].norm(dim=1)
    least = float(products[int((growth > 1).sum())]) / strength
    label = f"{name}, γ = {strength:g}: least |λ| that attracts"
    table = {"strength_times_curvature": products.tolist(), name: growth.tolist()}
    return Check(label, 1 / strength, least, 0.03, 0.5 / strength), table


def flank(strength: float = 4.0) -> tuple[list[Check], Table]:
    """(c) Where starts on the flank of a well end, beside the two roots of L'' = -1 / strength."""

    def condition(x: float) -> float:
        return np.exp(x * x / 2) + strength - strength * x * x

    bounds = ((1, 3**0.5), (3**0.5, 4))
    inner, outer = (root_scalar(condition, bracket=b).root for b in bounds)
    starts = spread(0.2, 3, 561)
    *_, ends = descend(bell, starts, strength, 0.3, 400)
    edge, name = float(starts[ends > 1][0]), f"well with flanks, γ = {strength:g}"
    checks = [
        Check(f"{name}: where GR stops", outer, float(ends[-1]), 0.01, 0),
        Check(f"{name}: edge of the basin", inner, edge, 0.01, 3**0.5),
    ]
    return checks, {"start": starts.tolist(), "end": ends.tolist()}


def check(progress: Progress = quiet) -> Outcome:
    """Edges, thresholds and places of the flow."""
    progress("minima")
    minima = [hessian_at_a_minimum(), edge_of_stability(0.05), edge_of_stability(1.0)]
    progress("saddles")
    saddle, growth = attracting("saddle", (3, 2, -4), 0.8)
    maximum, growth_of_maximum = attracting("maximum", (-3, -4), 2.0)
    progress("spurious points")
    places, ends = flank()
    tables = {"saddles": {**growth, **growth_of_maximum}, "flanks": ends}
    return Outcome([*minima, saddle, maximum, *places], tables)


def plot(tables: dict[str, Table]) -> Figure:
    """Saddles that attract, and where starts on a flank end."""
    figure = Figure(figsize=(8.5, 3.7), layout="constrained")
    saddle, flank = figure.subplots(1, 2)
    product, *growths = tables["saddles"].values()
    saddle.semilogy(product, np.transpose(growths), label=["saddles", "maxima"])
    saddle.axhline(1, color="grey", lw=0.8)
    saddle.set(xlabel="γ|λ|", ylabel="growth of the distance", title="From γ|λ| = 1 they attract")
    saddle.legend(frameon=False)
    flank.plot(*tables["flanks"].values(), ".")
    flank.set(xlabel="start", ylabel="end", title="Well −exp(−x²/2), γ = 4: where GR stops")
    return figure
