r"""For a Gaussian policy: how gradient and curvature of J bound the proxy's error, and what not.

Statement
    Actions :math:`a\sim N(\mu,\sigma^2I)`, :math:`J_f(\mu)=E\,f(a)`; proxy r, truth :math:`r^*`
    (ell-Lipschitz, its gradient M-Lipschitz), error :math:`e=r-r^*`.
    (A) :math:`\mathrm{Var}(e)=\sum_{k\ge1}\frac{\sigma^{2k}}{k!}\|\nabla^kJ_e\|_F^2`.
    (B) sd(e) is at least :math:`\sigma(\|\nabla J_r\|-\ell)`, :math:`\sigma^2(\lambda-M)/\sqrt2`
    if lambda is the largest curvature of :math:`J_r`. For a truth that is only Lipschitz
    :math:`M=\ell\sqrt{2/\pi}/\sigma`, attained by :math:`\ell|a|`. (C) The excess Bradley-Terry
    loss is at least :math:`\varsigma'(B)` times the square of either, B the largest gap.
    (D) If r is G-Lipschitz, :math:`\mathrm{Var}(e)\le\sigma^2E\|\nabla e\|^2\le\sigma^2(G+\ell)^2`
    and excess :math:`\le\sigma^2(G+\ell)^2/4`. A flat J is not enough: ripples narrower than
    sigma do not show in it, and a constant proxy is flat and wrong.

Assumptions
    The parameter is the mean, sigma is fixed; labels by Bradley-Terry with the truth.

Derivation
    (A) By Stein the Hermite coefficients of :math:`\xi\mapsto e(\mu+\sigma\xi)` are
    :math:`\sigma^k\nabla^kJ_e`, their squares weigh 1/k!; Parseval. (B) The terms k = 1, 2, with
    :math:`\|\nabla J_{r^*}\|\le\ell`, :math:`\|\nabla^2J_{r^*}\|\le M`; along a unit vector u the
    curvature of :math:`J_{r^*}` is :math:`E[\partial_ur^*\,\xi_u]/\sigma\le\ell E|\xi_u|/\sigma`.
    (C) and the excess in (D): it is between :math:`\varsigma'(B)` and 1/4 of Var(e). (D) Poincare.

Falsified if
    an inequality fails beyond 1e-12, or the series does.

Source: Hermite, Stein, Poincare are classical; the rest follows. Seeds: 0 (150 random rewards).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit
from torch import Tensor

from flatopt import gradient, hessian_product
from theory.check import Check, Outcome, Progress, Table, quiet

CASES = 150
Reward = Callable[[Tensor], Tensor]


def grid(d: int, n: int) -> tuple[Tensor, Tensor]:
    """Nodes (n^d, d) and weights of the standard normal law."""
    x, w = map(torch.from_numpy, hermegauss(n))
    weight = torch.cartesian_prod(*[w] * d).reshape(-1, d).prod(1)
    return torch.cartesian_prod(*[x] * d).reshape(-1, d), weight / weight.sum()


@dataclass
class Waves:
    """f(a) = sum of weight cos(wave a + phase)."""

    weight: Tensor  # (m,)
    wave: Tensor  # (m, d)
    phase: Tensor  # (m,)

    def __call__(self, a: Tensor) -> Tensor:
        return torch.cos(a @ self.wave.T + self.phase) @ self.weight

    def __add__(self, other: Waves) -> Waves:
        parts = ((self.weight, other.weight), (self.wave, other.wave), (self.phase, other.phase))
        return Waves(*map(torch.cat, parts))

    def limit(self, order: int) -> float:
        """A bound on |f|, |grad f| or the norm of the Hessian, for order 0, 1, 2."""
        return float(self.weight.abs() @ self.wave.norm(dim=1) ** order)

    def terms(self, mu: Tensor, sigma: float) -> Tensor:
        """sigma^2k / k! |grad^k J|^2 for k = 1 to 60."""
        k = torch.arange(1, 61, dtype=torch.float64)[:, None]
        damp = self.weight * torch.exp(-(sigma**2) * self.wave.square().sum(1) / 2)
        c = damp * torch.cos(self.wave @ mu + self.phase + k * torch.pi / 2)
        products = (sigma**2 * self.wave @ self.wave.T) ** k[..., None]
        return torch.einsum("ki,kij,kj->k", c, products, c) / torch.exp(torch.lgamma(k[:, 0] + 1))


def derivatives(f: Reward, mu: Tensor, sigma: float, n: int = 24) -> tuple[float, float]:
    """|grad J_f| and the largest absolute curvature of J_f at mu, J by quadrature."""
    nodes, share = grid(len(mu), n)
    mean = mu.clone().requires_grad_()

    def closure() -> None:
        (share @ f(mean + sigma * nodes)).backward()

    units = torch.eye(len(mu), dtype=mu.dtype)
    hessian = torch.stack([hessian_product(closure, [mean], [u])[0] for u in units])
    return float(gradient(closure, [mean])[0].norm()), float(torch.linalg.matrix_norm(hessian, 2))


def excess(proxy: Reward, truth: Reward, mu: Tensor, sigma: float, n: int = 18) -> float:
    """Bradley-Terry loss of the proxy less that of the truth, over pairs of nodes."""
    nodes, share = grid(len(mu), n)
    r, true = (f(mu + sigma * nodes) for f in (proxy, truth))
    gap, true_gap = r[:, None] - r, true[:, None] - true

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(x) - true_gap.sigmoid() * x

    return float(share @ (loss(gap) - loss(true_gap)) @ share)


def random_waves(draw: torch.Generator, size: float) -> Waves:
    """Four waves in the plane."""
    weight, x, y, phase = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    return Waves(size * weight, torch.stack([x, y], 1), 3 * phase)


def long_wave(slope: float, curvature: float) -> Waves:
    """(slope a_1 + curvature a_1^2 / 2) / 1000 as far as the policy reaches."""
    weight, wave, phase = [slope / 100, -curvature / 10], [[0.1, 0], [0.1, 0]], [-math.pi / 2, 0]
    return Waves(*(torch.tensor(x, dtype=torch.float64) for x in (weight, wave, phase)))


def check(progress: Progress = quiet) -> Outcome:
    """Series, lower and upper bounds over random rewards and long waves, which are tight."""
    draw, origin = torch.Generator().manual_seed(0), torch.zeros(2, dtype=torch.float64)
    # slope and curvature of the truth, then of the error, in thousandths
    tight = ((1, 0, 2, 0), (0, 1, 0, 2), (0, 0, 1, 0), (0, 0, 0, 1), (-1, 0, 2, 0))
    cases, rows = [(long_wave(a, b), long_wave(c, d), origin, 0.5) for a, b, c, d in tight], []
    for _ in range(CASES):
        small, size, width, *mu = torch.randn(5, generator=draw, dtype=torch.float64)
        truth, e = random_waves(draw, math.exp(small - 2)), random_waves(draw, math.exp(size - 1))
        cases.append((truth, e, torch.stack(mu), min(0.35, math.exp(width - 1.5))))
    for i, (truth, e, mu, sigma) in enumerate(cases):
        progress(f"reward {i} of {len(cases)}")
        proxy, (nodes, share) = truth + e, grid(2, 24)
        a = mu + sigma * nodes
        steep = sigma**2 * share @ torch.func.vmap(torch.func.grad(e))(a).square().sum(1)
        slope, curvature = derivatives(proxy, mu, sigma)
        by_slope = sigma * max(0.0, slope - truth.limit(1))
        by_curvature = sigma**2 / 2**0.5 * max(0.0, curvature - truth.limit(2))
        most = sigma**2 * (proxy.limit(1) + truth.limit(1)) ** 2 / 4
        B, V = 2 * max(proxy.limit(0), truth.limit(0)), share @ (e(a) - share @ e(a)) ** 2
        terms, cost = e.terms(mu, sigma), excess(proxy, truth, mu, sigma)
        bent = derivatives(truth, mu, sigma)[1] * sigma / max(truth.limit(1), 1e-9)
        known = (cost, V, terms.sum(), terms[:2].sum(), steep, bent, by_slope, by_curvature, most)
        rows.append((*known, expit(B) * expit(-B)))
    cost, V, series, two, steep, bent, by_slope, by_curvature, most, least = np.array(rows).T
    s, c = by_slope > 1e-9, by_curvature > 1e-9
    # J of |a|, sigma = 1, climbs with P(a > 0) - P(a < 0)
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    kink = gradient(lambda: (2 * torch.special.ndtr(mean) - 1).backward(), [mean])[0]
    at_least = (
        ("(B) sd e / bound by gradient", V[s] ** 0.5 / by_slope[s]),
        ("(B) sd e / bound by curvature", V[c] ** 0.5 / by_curvature[c]),
        ("(C) excess / bound by gradient", cost[s] / (least * by_slope**2)[s]),
        ("(C) excess / bound by curvature", cost[c] / (least * by_curvature**2)[c]),
    )
    at_most = (
        ("(B) curvature of the truth x sigma / ell", (2 / math.pi) ** 0.5, np.append(bent, kink)),
        ("(D) Var e / (sigma^2 E|grad e|^2)", 1, V / steep),
        ("(D) excess / (sigma^2 (G + ell)^2 / 4)", 1, cost / most),
    )
    off, rival = abs(series / V - 1).max(), abs(two / V - 1).max()
    checks = [Check("(A) series / Var e - 1", 0, off, 1e-12, rival, "absolute")]
    # false: a constant 5 % stronger
    checks += [Check(name, 1, x.min(), 1e-12, 1.05, "at least") for name, x in at_least]
    checks += [Check(name, p, x.max(), 1e-12, 0.95 * p, "at most") for name, p, x in at_most]
    # flat and wrong
    zero, (x, share) = torch.zeros(1, dtype=torch.float64), grid(1, 60)
    level = derivatives(lambda a: 1 + 0 * a[:, 0], zero, 1)[0]
    dull = excess(lambda a: 0 * a[:, 0], lambda a: a[:, 0], zero, 1, 60)
    # the gaps of the truth are N(0, 2); a constant proxy calls each pair even
    p = torch.special.expit(2**0.5 * x[:, 0])
    even = share @ (math.log(2) - torch.special.entr(p) - torch.special.entr(1 - p))
    ripple = derivatives(lambda a: torch.sin(4 * a[:, 0]), zero, 1, 60)[0]
    seen = ripple / float(share @ torch.sin(4 * x[:, 0]) ** 2) ** 0.5
    checks += [
        Check("constant proxy: |grad J|", 0, level, 1e-12, 1, "absolute"),
        Check("constant proxy: excess", even, dull, 1e-6, 0),
        Check("ripple: sigma |grad J| / sd e", 32**0.5 * math.exp(-8), seen, 0.01, 1),
    ]
    names = ("error", "by gradient", "by curvature", "excess loss", "lower", "upper")
    lower = least * np.maximum(by_slope, by_curvature) ** 2
    columns = np.array([V**0.5, by_slope, by_curvature, cost, lower, most])
    return Outcome(checks, {"rewards": dict(zip(names, columns.tolist(), strict=True))})


def plot(tables: dict[str, Table]) -> Figure:
    """Bounds against what they bound: the error, and the excess loss."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    names, columns = zip(*tables["rewards"].items(), strict=True)
    for k, axes in enumerate(figure.subplots(1, 2)):
        of, bounded = names[3 * k], columns[3 * k]
        axes.loglog(bounded, bounded, "k-", lw=1, label=f"bound = {of}")
        for i in (3 * k + 1, 3 * k + 2):
            axes.loglog(bounded, columns[i], ".", label=names[i])
        axes.set(xlabel=of, title=f"Bounds on the {of}", xlim=(1e-3, 2), ylim=(1e-5, 10))
        axes.legend(frameon=False)
    return figure
