r"""Flat in parameters means robust in actions: close actions rarely have far rewards.

Statement
    Actions :math:`a=\mu_\phi+Z`, proxy R beta-smooth in a, :math:`J(\phi)=E\,R(a)`. Two independent
    actions are a *sharp* pair if closer than delta with a reward gap above K. If J drops by at
    most :math:`\hat L` for :math:`\|e\|\le\varepsilon`, and :math:`\mu_{\phi+e}` reaches the ball
    of radius D around the mean, :math:`\|\nabla R(\mu)\|\le G=\hat L/D+\beta D/2+\beta E\|Z\|`. For
    :math:`K/\delta>G` and :math:`r=(K/\delta-G)/\beta` no pair within r of the mean is sharp, so
    :math:`P(\text{sharp})\le 2P(\|Z\|>r)`.

Assumptions
    One prompt; E is the mean over Z. :math:`D=s\varepsilon` with s the *smallest* singular value of
    the Jacobian M of mu; if M is kappa-Lipschitz, :math:`D=s\varepsilon-\kappa\varepsilon^2/2` with
    :math:`\kappa\varepsilon\le s`. False are, as measured: the operator norm for s, a curved mu
    without kappa, J averaged over prompts. Z has any law; here it is Gaussian and isotropic.

Derivation
    Reach: for :math:`|v|\le D`, :math:`e\mapsto M^+(v-\mu_{\phi+e}+\mu_\phi+Me)` maps the ball of
    radius :math:`\varepsilon` into itself, as :math:`|\mu_{\phi+e}-\mu_\phi-Me|` is at most
    :math:`\kappa|e|^2/2`; at its fixed point (Brouwer) :math:`\mu_{\phi+e}=\mu_\phi+v`. Gradient:
    :math:`\bar J(m)=E\,R(m+Z)` is beta-smooth; a step D against its gradient loses at least
    :math:`D\|\nabla\bar J\|-\beta D^2/2`, at most :math:`\hat L`; :math:`\|\nabla(R-\bar J)\|` is
    at most :math:`\beta E\|Z\|`. Pairs: slopes within r are at most :math:`G+\beta r=K/\delta`.

Falsified if
    a case exceeds G, K or the probability. A drop found too small makes G smaller, the test harder.

Source: Ackermann et al. 2026 (arXiv 2602.18037), proposition 3.3; Lee & Yoon 2025 (ICLR). Seeds:
0 to 5 (300 cases of 1 to 3 dimensions), and for each case's pairs of actions its number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.stats import chi, norm
from torch import Tensor
from torch.nn.functional import normalize

from theory.check import Check, Outcome, Progress, Table, quiet

CASES, PAIRS = 50, 10_000
# E|Z| / sigma in one, two and three dimensions
LENGTH = (0, (2 / np.pi) ** 0.5, (np.pi / 2) ** 0.5, (8 / np.pi) ** 0.5)


@dataclass
class Case:
    """R(a) = sum of weight cos(wave a + phase); mu = M e + kappa/2 e_1^2 (1, .., 1) / sqrt d."""

    weight: Tensor  # (waves,)
    wave: Tensor  # (waves, d)
    phase: Tensor  # (waves,)
    M: Tensor  # (d, p)
    sigma: float  # of Z, in each direction
    eps: float  # how far the parameters may move
    kappa: float
    r: float
    delta: float

    def reward(self, a: Tensor, damp: Tensor | float = 1) -> Tensor:
        """R of the actions (.., d)."""
        return torch.cos(a @ self.wave.T + self.phase) @ (self.weight * damp)

    def J(self, e: Tensor) -> Tensor:
        """The mean of R over Z, in closed form, at the parameters e (.., p)."""
        mean = e @ self.M.T + self.kappa / 2 * e[..., :1] ** 2 / len(self.M) ** 0.5
        return self.reward(mean, torch.exp(-(self.sigma**2) * self.wave.square().sum(1) / 2))

    def drop(self) -> float:
        """The greatest drop of J in the ball: projected descent from 32 points."""
        draw = torch.Generator().manual_seed(0)
        e = torch.randn(32, self.M.shape[1], generator=draw, dtype=torch.float64)
        values = [self.J(0 * e)]
        for step in range(30):
            e = (e * (self.eps / e.norm(dim=1, keepdim=True)).clamp_max(1)).requires_grad_()
            values.append(self.J(e))
            (slope,) = torch.autograd.grad(values[-1].sum(), e)
            e = e.detach() - self.eps * 0.8**step * normalize(slope, dim=1)
        return (values[0][0] - torch.stack(values).min()).item()

    def bound(self, D: float | None = None) -> dict[str, float]:
        """The proposition's numbers by name; ``D``: in place of the radius that is reached."""
        slope = float(torch.func.grad(self.reward)(torch.zeros_like(self.wave[0])).norm())
        beta = float(self.weight.abs() @ self.wave.square().sum(1))
        if D is None:
            D = float(torch.linalg.svdvals(self.M)[-1]) * self.eps - self.kappa * self.eps**2 / 2
        drop, Z = self.drop(), self.sigma * LENGTH[len(self.M)]
        G = drop / D + beta * (D / 2 + Z)
        return {
            "slope": slope,
            "G": G,
            "D": D,
            "drop": drop,
            "Z": Z,
            "K": self.delta * (G + beta * self.r),
        }

    def pairs(self, K: float, seed: int) -> tuple[float, float]:
        """Share of sharp pairs; the greatest gap, in units of K, of close pairs within r."""
        draw = torch.Generator().manual_seed(seed)
        a, b = self.sigma * torch.randn(2, PAIRS, len(self.M), generator=draw, dtype=torch.float64)
        sharp = ((self.reward(a) - self.reward(b)).abs() > K) & ((a - b).norm(dim=1) < self.delta)
        # all radii up to r, with partners delta away, or nearer if that is outside
        a = self.r * torch.linspace(0, 1, PAIRS, dtype=a.dtype)[:, None] * normalize(a, dim=1)
        b = a + self.delta * normalize(b, dim=1)
        b = b * (self.r / b.norm(dim=1, keepdim=True)).clamp_max(1)
        gap = (self.reward(a) - self.reward(b)).abs().max()
        return float(sharp.double().mean()), float(gap) / K


def random_case(draw: np.random.Generator, d: int, curved: bool) -> Case:
    """One to four waves; in every second case the mean action is a crest or a trough of each."""
    waves = draw.integers(1, 5)
    phase = torch.tensor(draw.uniform(0, 2 * np.pi, waves) * draw.integers(2))
    weight, wave, M = (torch.tensor(draw.normal(size=s)) for s in (waves, (waves, d), (d, 5)))
    (sigma, eps), kappa = np.exp(draw.normal(-2, 1, 2)), curved * abs(draw.normal())
    eps = min(eps, float(torch.linalg.svdvals(M)[-1]) / (kappa + 1e-9))
    return Case(weight, wave, phase, M, sigma, eps, kappa, *(sigma * draw.uniform((0.1, 0.5), 3)))


def quadratic(slope: float, M: list, *rest: float) -> Case:
    """slope a_1 + a_1^2 / 2 as the trough of one long wave; beta = 1."""
    parts = ([-1e6], [[1e-3, 0][: len(M)]], [np.arcsin(1e-3 * slope)], M)
    weight, wave, phase, jacobian = (torch.tensor(x, dtype=torch.float64) for x in parts)
    return Case(weight, wave, phase, jacobian, *rest)


def check(progress: Progress = quiet) -> Outcome:
    """Random cases, families that touch the limits, and three false readings of D."""
    line, bend = (quadratic(10, [[1]], 1e-3, 0.5, kappa, 0.03, 1e-3) for kappa in (0, 1))
    level = [quadratic(0, [[1]], 1, 1e-6, 0, r, 1.5) for r in np.linspace(0.05, 1.5, 20)]
    cases, rows = [line, bend, quadratic(0, [[1]], 0.01, 1e-6, 0, 0.35, 1e-3), *level], []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        cases += [random_case(draw, 1 + seed % 3, seed > 2) for _ in range(CASES)]
    for i, case in enumerate(cases):
        progress(f"case {i} of {len(cases)}")
        f, d, far = case.bound(), len(case.M), case.r / case.sigma
        known = (d, case.kappa, f["slope"], f["G"], far, 2 * chi.sf(far, d))
        rows.append((*known, *case.pairs(f["K"], i)))
    names = ("d", "kappa", "slope", "G", "r / sigma", "bound", "P(sharp)", "gap within r / K")
    _, kappa, slope, G, _, bound, sharp, gap = np.array(rows).T
    ratio, curved, sure, f = slope / G, kappa > 0, sharp - 4 * (sharp / PAIRS) ** 0.5, line.bound()
    # a - a|a| / 2 has beta = 1, and nearby slopes all below the one at 0; eps = D = .01
    kink = quad(lambda a: (a - a * abs(a) / 2) * (norm.pdf(a) - norm.pdf(a + 0.01)), -9, 9)
    limits = (
        ("straight policies: slope / G", 1, ratio[~curved].max(), 0.9),
        ("curved policies: slope / G", 1, ratio[curved].max(), 0.9),
        ("share of beta D needed", 1 / 2, (f["slope"] - f["drop"] / f["D"] - f["Z"]) / f["D"], 0),
        ("share of beta E|Z| needed", 1, (1 - kink[0] / 0.01 - 0.005) / LENGTH[1], 0),
        ("gap of close pairs within r / K", 1, gap.max(), 0.9),
        ("P(sharp) / bound", 1, (sure / bound).max(), 0.01),
    )
    checks = [Check(name, p, m, 1e-12, wrong, "at most") for name, p, m, wrong in limits]
    weak = quadratic(100, [[0.1, 0], [0, 1]], 0.1, 1, 0, 39.4, 0.2)
    # two prompts with rewards sin a_1 / 2 and -sin a_2 / 2, and one parameter: J is 0 everywhere
    one, phase = torch.ones(2, dtype=torch.float64), torch.tensor([-np.pi / 2, np.pi / 2])
    prompts = Case(one / 2, torch.diag(one), phase.double(), one[:, None], 0.01, 0.1, 0, 1, 1)
    # slope over drop / D + D / 2 + E|Z|; each reading claims at most 1
    readings = (
        ("operator norm", 100 / (10 - 0.005 + 0.5 + 0.1 * LENGTH[2]), weak.bound(D=1)),
        ("no kappa", 10 / (7.5 - 0.375**2 + 0.25 + 1e-3 * LENGTH[1]), bend.bound(D=0.5)),
        ("shared prompts", 0.5**0.5 / (0.05 + 0.01 * LENGTH[2]), prompts.bound(D=0.1)),
    )
    for name, excess, f in readings:
        checks.append(Check(f"{name}: slope / G", excess, f["slope"] / f["G"], 0.01, 1))
    # pairs at distance x; their first coordinates must be more than .1 apart
    P = quad(lambda x: 100 / np.pi * x * np.exp(-25 * x**2) * np.arccos(0.1 / x), 0.1, 0.2)[0]
    seen, error = weak.pairs(50 * weak.delta, 0)[0], 4 * (P / PAIRS) ** 0.5
    # the reading claims 2 P(|Z| > r), which is 0 to machine precision
    checks.append(Check("operator norm: P(sharp)", P, seen, error, 0, "absolute"))
    table: Table = dict(zip(names, np.array(rows).T.tolist(), strict=True))
    false = {name: [found[name] for _, _, found in readings] for name in ("G", "slope")}
    return Outcome(checks, {"cases": table, "readings": false})


def plot(tables: dict[str, Table]) -> Figure:
    """Slopes under their bound, false readings above it; sharp pairs far below theirs."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    t, false = ({n: np.array(c) for n, c in tables[k].items()} for k in ("cases", "readings"))
    for curved, name in enumerate(("straight policies", "curved policies")):
        chosen = (t["kappa"] > 0) == curved
        left.loglog(t["G"][chosen], t["slope"][chosen], ".", label=name)
    left.loglog(false["G"], false["slope"], "rx", label="false readings of D")
    left.loglog([2e-3, 1e2], [2e-3, 1e2], "k-", lw=1, label="slope = G")
    left.set(xlabel="bound G", ylabel="slope of R", ylim=(1e-3, 1e3), title="At the mean action")
    r, bound, sharp = (t[name][3:23] for name in ("r / sigma", "bound", "P(sharp)"))
    right.semilogy(r, bound, "k-", label="bound 2 P(|Z| > r)")
    right.semilogy(r, sharp, "o", label="measured")
    right.set(xlabel="r / sigma", ylabel="probability", title="Sharp pairs for R = a^2 / 2")
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure
