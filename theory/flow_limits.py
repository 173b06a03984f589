r"""Where gradient regularization stops, what holds it fast, and what noise lets it prefer.

Statement
    GR follows :math:`-(I+\gamma H)g`, with :math:`g=\nabla L`, :math:`H=\nabla^2L`.
    (a) A stationary point of L stays one, with Hessian :math:`H+\gamma H^2` in place of H: a
    minimum, however sharp, stays a minimum and gets steeper. Only a finite learning rate
    :math:`\eta` leaves it, where :math:`\eta\lambda(1+\gamma\lambda)>2`.
    (b) A saddle or maximum attracts once :math:`\gamma|\lambda|>1` for each negative eigenvalue.
    (c) Points with :math:`(I+\gamma H)g=0` and :math:`g\ne0` can attract too.
    (d) With noise of temperature :math:`\tau` GR adds :math:`\tfrac\tau2\log\det(I+\gamma H)` to
    the free energy of a well. Between equally deep wells the odds of the sharp one change by
    :math:`\sqrt{(1+\gamma\lambda_{flat})/(1+\gamma\lambda_{sharp})}`, whatever :math:`\tau` is.

Assumptions
    L has three derivatives; (a) to (c) full gradients, no momentum; (d) Langevin noise, the same in
    all directions, :math:`\tau` small against the barrier, time enough to cross it.

Derivation
    (a, b) The derivative of :math:`(I+\gamma H)g` where g = 0 has eigenvalues
    :math:`\lambda(1+\gamma\lambda)`; a step multiplies by :math:`1-\eta\lambda(1+\gamma\lambda)`.
    (c) In one dimension: :math:`L''=-1/\gamma`. (d) :math:`e^{-L_\gamma/\tau}` is nearly normal
    around a minimum, with volume :math:`\propto\det[H(I+\gamma H)]^{-1/2}`.

Falsified if
    the Hessian is off by 1e-12, the edge or a place by 1 %, the saddle's threshold by 3 %, the odds
    by 2 % at :math:`\tau=.005`, a simulation by 4 standard errors.

Source: follows from the rule; (d) is simulated by the scheme of Leimkuhler and Matthews 2013 (arXiv
1203.5428), exact in a parabola. Seeds: 0, 1 (Hessians, 642 saddles and maxima), 2, 3 (noise).
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


def valley(x: Tensor, matrix: Tensor) -> Tensor:
    """x'Mx/2 with cubic and quartic terms: stationary at 0, where the Hessian is M."""
    return ((matrix @ x[..., None])[..., 0] * x / 2 + x**3 / 3 + x**4 / 4).sum(-1)


def sextic(x: Tensor) -> Tensor:
    """Two wells of depth 0, at 0 with curvature 50 and at 1 with curvature 2; not parabolas."""
    return x**2 * (1 - x) ** 2 * (1 + 24 * (1 - x) ** 2)


def mixture(x: Tensor) -> Tensor:
    """Two wells of these curvatures, at 0 and 1.8, with a barrier that noise of 1 crosses."""
    return -torch.logaddexp(-25 * x**2, -((x - 1.8) ** 2))


def odds(loss: Loss, strengths: np.ndarray, temperature: float) -> np.ndarray:
    """Weight of the sharp well (x < 0.4) over the flat one's, under exp(-L_gamma / temperature)."""
    x = spread(-2, 8, 400_001)
    value, slope = loss(x), grad(lambda x: loss(x).sum())(x)
    weights = [torch.exp(-(value + y / 2 * slope**2) / temperature) for y in strengths]
    return np.array([float(w[x < 0.4].sum() / w[x >= 0.4].sum()) for w in weights])


def descend(
    loss: Loss, start: Tensor, strength: float, lr: float, steps: int, tau: float = 0, seed: int = 0
) -> Iterator[Tensor]:
    """flatopt over SGD, each copy for itself (H is block diagonal in them), with noise if asked."""
    draw, before = torch.Generator().manual_seed(seed), torch.zeros_like(start)
    param = start.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=lr), strength)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(param).sum()
        value.backward()
        return value.item()

    for _ in range(steps):
        optimizer.step(closure)
        if tau:  # the mean of two successive draws
            noise = torch.randn(start.shape, generator=draw, dtype=start.dtype)
            param.data += (lr * tau / 2) ** 0.5 * (before + noise)
            before = noise
        yield param.detach().clone()


def check(progress: Progress = quiet) -> Outcome:
    """Edges, thresholds and places of the flow; preferences of the noise."""
    progress("minima")
    m = matrices(spread(1, 50, 4).expand(5, 4), 0)

    def curved(m: Tensor) -> Tensor:
        return hessian(lambda x: valley(x, m) + 0.05 * grad(valley)(x, m).square().sum())(0 * m[0])

    found = vmap(curved)(m)
    off, unmoved = (float((found - p).norm() / found.norm()) for p in (m + 0.1 * m @ m, m))
    checks = [Check("Hessian at a minimum: to H + γH²", 0, off, 1e-12, unmoved, "absolute")]
    curvature = spread(1, 120, 2381)
    for gamma in (0.05, 1.0):
        start = torch.full_like(curvature, 1e-6)
        *_, end = descend(lambda x: curvature * (1 - x.cos()), start, gamma, 0.02, 300)
        edge, left = ((1 + 400 * gamma) ** 0.5 - 1) / (2 * gamma), curvature[end.abs() > start]
        name = f"η = 0.02, γ = {gamma:g}: least λ that is left"
        checks.append(Check(name, edge, float(left[0]), 0.01, 2 / 0.02))

    progress("saddles")
    weak = spread(0.4, 2, 321)  # strength times the weakest negative curvature
    growth = {"strength_times_curvature": weak.tolist()}
    for name, others, gamma in (("saddle", (3, 2, -4), 0.8), ("maximum", (-3, -4), 2.0)):
        m = matrices(torch.stack([-weak / gamma, *(0 * weak + v for v in others)], 1), 1)
        start = 1e-4 * torch.ones_like(m[:, 0])
        path = [*descend(partial(valley, matrix=m), start, gamma, 0.02, 200)]
        late = path[-1].norm(dim=1) / path[99].norm(dim=1)
        least, growth[name] = float(weak[int((late > 1).sum())]) / gamma, late.tolist()
        name = f"{name}, γ = {gamma:g}: least |λ| that attracts"
        checks.append(Check(name, 1 / gamma, least, 0.03, 0.5 / gamma))

    progress("spurious points")
    places, bounds = spread(0.2, 3, 561), ((1, 3**0.5), (3**0.5, 4))
    *_, ends = descend(lambda x: -torch.exp(-(x**2) / 2), places, 4.0, 0.3, 400)
    bent = (root_scalar(lambda x: np.exp(x * x / 2) + 4 - 4 * x * x, bracket=b) for b in bounds)
    inner, outer = (found.root for found in bent)
    edge = float(places[ends > 1][0])
    checks += [
        Check("well with flanks, γ = 4: where GR stops", outer, float(ends[-1]), 0.01, 0),
        Check("well with flanks, γ = 4: edge of the basin", inner, edge, 0.01, 3**0.5),
    ]

    progress("noise")
    strengths = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
    formula = ((1 + 2 * strengths) / (1 + 50 * strengths)) ** 0.5
    cold, warm = odds(sextic, strengths, 0.005), odds(mixture, strengths, 1.0)
    for k in (1, 4, 7):
        name = f"τ = 0.005, γ = {strengths[k]:g}: odds of the sharp well"
        checks.append(Check(name, formula[k], cold[k] / cold[0], 0.02, 1))
    progress("noise, simulated")
    gamma, (plain, due) = strengths[3], warm[[0, 3]] / (1 + warm[[0, 3]])  # shares of the copies
    rate, start = 0.2 / (50 * (1 + 50 * gamma)), 1.8 * (spread(0, 1, 4000) > plain).double()
    path = [x < 0.4 for x in descend(mixture, start, gamma, rate, int(7 / rate), 1.0, 2)]
    share = torch.stack(path[3 * len(path) // 7 :]).double().mean(0)
    mean, error = float(share.mean()), float(share.std()) / len(share) ** 0.5
    z, rival = (mean - due) / error, (plain - due) / error
    checks.append(Check(f"τ = 1, γ = {gamma:g}, simulated: z", 0, z, 4, rival, "absolute"))
    odd, wide = mean / (1 - mean) / warm[0], error / (1 - mean) ** 2 / warm[0]
    m = matrices(torch.tensor([[50.0, 20.0, 5.0]], dtype=torch.float64), 0)
    start = torch.zeros(5000, 3, dtype=torch.float64)
    *_, cloud = descend(partial(valley, matrix=m), start, 0.2, 0.0015, 500, 5e-4, 3)
    squeeze = torch.logdet(5e-4 * torch.linalg.inv(torch.cov(cloud.T) @ m[0]))
    due, error = torch.logdet(torch.eye(3) + 0.2 * m[0]), (6 / len(cloud)) ** 0.5
    z, rival = (float(v - due) / error for v in (squeeze, 0.2 * m[0].trace()))
    checks.append(Check("volume of a well, simulated: z", 0, z, 4, rival, "absolute"))
    wells = np.stack([strengths, formula, cold / cold[0], warm / warm[0]])[:, 1:].tolist()
    return Outcome(checks, {
        "saddles": growth,
        "flanks": {"start": places.tolist(), "end": ends.tolist()},
        "wells": dict(zip(("strength", "formula", "cold", "warm"), wells, strict=True)),
        "simulated": {"strength": [gamma], "odds": [odd], "error": [wide]},
    })  # fmt: skip


def plot(tables: dict[str, Table]) -> Figure:
    """Saddles that attract, where starts on a flank end, and what noise makes of two wells."""
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    saddle, flank, well = figure.subplots(1, 3)
    product, *growths = tables["saddles"].values()
    saddle.semilogy(product, np.transpose(growths), label=["saddles", "maxima"])
    saddle.axhline(1, color="grey", lw=0.8)
    saddle.set(xlabel="γ|λ|", ylabel="growth of the distance", title="From γ|λ| = 1 they attract")
    flank.plot(*tables["flanks"].values(), ".")
    flank.set(xlabel="start", ylabel="end", title="Well −exp(−x²/2), γ = 4: where GR stops")
    strength, *curves = tables["wells"].values()
    well.semilogx(strength, np.transpose(curves), label=["formula", "τ = 0.005", "τ = 1"])
    well.errorbar(*tables["simulated"].values(), fmt="ko", label="τ = 1, simulated")
    well.set(xlabel="strength γ", ylabel="odds, relative to γ = 0", title="Odds of the sharp well")
    saddle.legend(frameon=False)
    well.legend(frameon=False)
    return figure
