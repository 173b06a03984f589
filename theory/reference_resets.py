r"""What a KL penalty with reference resets does: a trust region, GR only below pass rate 1/2.

Statement
    Minimise :math:`L+\beta\,\mathrm{KL}(\pi_\theta\|\pi_{ref})`, :math:`L=-\mathbb E_\pi r`; the
    current policy becomes the reference after each cycle. (i) i exact cycles of a tabular policy
    give the optimum of one KL to the first reference at :math:`\beta/i`. (ii) Cycles of K gradient
    steps of length :math:`\eta` follow, to second order, the flow
    :math:`-[g+\tfrac\eta2Hg-\tfrac12\beta\eta(K-1)Fg]`; GR follows :math:`-[g+\gamma Hg]`.
    (iii) Where :math:`Hg=-cFg` this is GR of strength :math:`\beta\eta(K-1)/2c`, hence the opposite
    of GR where c < 0. (iv) Along an eigenvalue f of F a cycle moves by :math:`-K\eta\varphi(x)g`,
    :math:`\varphi(x)=(1-e^{-x})/x`, :math:`x=\beta K\eta f`: for large x a natural gradient step.
    (v) An exact cycle ends at :math:`\mathrm{KL}=g^\top F^+g/2\beta^2`, yet the references descend
    :math:`L-g^\top F^+g/2\beta`: that norm is rewarded, not penalised.

Assumptions
    Exact gradients; L and the policy are smooth, F is the Fisher matrix. (ii), (iii): small
    :math:`\beta\eta KF` and :math:`\eta KH`. (iv), (v): large :math:`\beta`.

Derivation
    (i) A cycle ends at :math:`\pi\propto\pi_{ref}e^{r/\beta}`. With fewer features than actions
    each cycle projects r anew: the gap is :math:`\tfrac12i(i-1)/\beta^2` times a vector. (ii) Step
    j of a cycle sees :math:`g-j\eta(H+\beta F)g`; equate their sum with the path of a flow over
    :math:`K\eta`. (iii) Log-linear policies: :math:`H=-\mathbb E[A\,ss^\top]`; on logits
    :math:`A^\top HA=-\mathbb E A^3`, :math:`A^\top FA=\mathbb E A^2`: c has the sign of the
    reward's skewness; rewards 0 and 1, pass rate p: :math:`c=1-2p`. (iv), (v) The flow
    :math:`\dot\delta=-g-\beta F\delta` rests at :math:`-F^+g/\beta`.

Falsified if
    a slope or a share is off by .05, a coefficient by 1 %, the turning point by 3 %.

Source: (i) Ackermann et al. 2026 (arXiv 2602.18037); (ii) backward error analysis as in Barrett &
Dherin 2021 (arXiv 2009.11162). Seeds: 0; for the random bandits 0-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from scipy.optimize import minimize, root
from torch import Tensor
from torch.func import grad

from flatopt import gradreg_gradient
from theory.check import Check, Outcome, Progress, Table, quiet

K = 8  # steps of a cycle
STEPS = np.array([0.005, 0.0025, 0.00125])


@dataclass
class Bandit:
    """Rewards (..., actions), and a policy whose logits are ``theta @ features``."""

    r: Tensor
    features: Tensor

    def policy(self, theta: Tensor) -> Tensor:
        return (theta @ self.features).softmax(-1)

    def value(self, theta: Tensor, ref: Tensor, beta: float = 0.0) -> Tensor:
        """L + beta KL, summed over the bandits."""
        p = self.policy(theta)
        return (p * (beta * (p / self.policy(ref)).log() - self.r)).sum()

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g, H and F from the scores, in closed form."""
        p = self.policy(theta)
        scores, a = self.features - (self.features @ p)[:, None], self.r - p @ self.r
        return -scores @ (p * a), -(scores * p * a) @ scores.T, (scores * p) @ scores.T

    def exact(self, theta: Tensor, beta: float, cycles: int = 1) -> Tensor:
        """Parameters after cycles that each end at the optimum, found numerically."""
        both = (self.value, grad(self.value))
        value, slope = (lambda t, *a, f=f: f(torch.tensor(t), *a).numpy() / beta for f in both)
        for _ in range(cycles):
            near = minimize(value, theta, (theta, beta), "BFGS", slope).x
            theta = torch.tensor(root(slope, near, (theta, beta), "lm", tol=1e-15).x)
        return theta

    def path(self, theta: Tensor, eta: float, n: int, beta=0.0, gamma=0.0, k=K) -> Tensor:
        """Parameters after 0 to n steps of plain descent, of resets (beta) or of GR (gamma)."""
        points = [theta]
        for step in range(n):
            param, ref = points[-1].clone().requires_grad_(), points[step // k * k]
            loss = partial(self.value, param, ref, beta)
            points.append(points[-1] - eta * gradreg_gradient(loss, [param], gamma, 1e-6)[0])
        return torch.stack(points)


def like_gr(seed: int) -> Tensor:
    """Share of the possible gain, and shares of 300 bandits with c > 0 along A and along g."""
    r = torch.randn(300, 10, generator=torch.Generator().manual_seed(seed)).double()
    p = Bandit(r, torch.eye(10).double()).path(torch.zeros_like(r), 1.0, 320)
    p = p[[0, 1, 2, 3, 5, 8, 12, 20, 40, 80, 160, 320]].softmax(-1)
    a = r - (p * r).sum(-1, keepdim=True)
    gained = ((p - 0.1) * r).sum(-1) / (r.max(-1)[0] - r.mean(-1))
    signs = [(p * a * (v - (p * v).sum(-1, keepdim=True)) ** 2).sum(-1) > 0 for v in (a, p * a)]
    return torch.stack([gained, *(s.double() for s in signs)]).mean(-1)


def check(progress: Progress = quiet) -> Outcome:
    """Exact cycles, the modified flow, the sign, the filter."""
    draw = torch.Generator().manual_seed(0)
    r, start, rows, begin = (torch.randn(s, generator=draw).double() for s in (8, 8, (3, 8), 3))
    full, narrow = Bandit(r, torch.eye(8).double()), Bandit(r, rows)

    progress("exact cycles")
    moved = (full.policy(full.exact(start, 1, 5)) / full.policy(start)).log()
    pairs = [(narrow.exact(begin, 4e3, i), narrow.exact(begin, 4e3 / i)) for i in (2, 5)]
    gap2, gap5 = (torch.dist(*pair).item() for pair in pairs)
    g, h, f = narrow.parts(begin)
    end, size = narrow.exact(begin, 1e3), (g @ torch.linalg.solve(f, g)).item()
    kl = (narrow.value(end, begin, 1) - narrow.value(end, begin)).item()
    change = (narrow.value(end, begin, 1e3) - narrow.value(begin, begin)).item()

    progress("modified flow")

    def drift(_: float, at: np.ndarray, eta: float, sign: int) -> np.ndarray:
        g, h, f = narrow.parts(torch.tensor(at))
        return -(g + eta / 2 * (h @ g + sign * (K - 1) * f @ g)).numpy()

    error = np.zeros((3, 4))
    for i, eta in enumerate(STEPS):
        resets = narrow.path(begin, eta, round(1.2 / eta), beta=1)
        error[i, 3] = (resets[K] - begin + K * eta * (g - (K - 1) / 2 * eta * (h + f) @ g)).norm()
        for j, sign in enumerate((-1, 0, 1)):
            flow = solve_ivp(drift, (0, 1.2), begin, args=(eta, sign), rtol=1e-9, atol=1e-9)
            error[i, j] = np.linalg.norm(flow.y[:, -1] - resets[-1].numpy())
    pull = narrow.path(begin, 1e-4, K, 1)[-1] - narrow.path(begin, 1e-4, K)[-1]
    pull = (pull @ g / (g @ f @ g)).item() / 1e-8
    slopes = np.polyfit(np.log(STEPS), np.log(error), 1)[0]

    progress("sign")
    coin = Bandit(torch.tensor([1.0, 0]).double(), torch.tensor([[1.0, 0]]).double())
    rate = np.linspace(0.05, 0.95, 37)
    at = torch.tensor(rate).logit()[:, None]
    none, *ends = (coin.path(at, 1e-3, K, *kind)[-1] for kind in ((0, 0), (1, 0), (0, 0.1)))
    # what each adds, relative to the plain steps and to its strength
    brake, gr = (((end - none) / (none - at))[:, 0].numpy() for end in ends)
    brake, gr = brake / (1e-3 * (K - 1) / 2), gr / 0.1
    gained, by_a, by_g = torch.stack([like_gr(seed) for seed in range(5)]).mean(0).numpy()
    values, basis = torch.linalg.eigh(f)
    x, length = values / values[-1] * 5 * torch.logspace(-2, 1, 7).double()[:, None], []
    for eta in x[:, -1].numpy() / (4e6 * values[-1].item()):
        move = narrow.path(begin, eta, 400, 1e4, k=400)[-1] - begin
        length.append(basis.T @ move / (-400 * eta * basis.T @ g))
    x, length = x.numpy(), torch.stack(length).numpy()
    phi, order = (1 - np.exp(-x)) / x, np.argsort(x, None)
    checks = [
        Check("5 exact cycles: beta of the one KL", 0.2, 1 / np.polyfit(r, moved, 1)[0], 0.01, 1),
        Check("3 features: gap of 5 cycles / of 2", 10, gap5 / gap2, 0.01, 4),
        # the rival: the formula of a tabular policy
        Check("3 features: KL × 2 beta²", size, 2e6 * kl, 0.01, r.var(correction=0).item()),
        Check("3 features: change of L + beta KL, × 2 beta", -size, 2e3 * change, 0.01, size),
        Check("one cycle: F term / (beta eta²)", K * (K - 1) / 2, pull, 0.01, K**2 / 2),
        Check("one cycle: slope of the rest", 3, slopes[3], 0.05, 2, "absolute"),
        Check("flow with -F: slope", 2, slopes[0], 0.05, 1, "absolute"),
        Check("flow without F: slope", 1, slopes[1], 0.05, 2, "absolute"),
        Check("flow with +F: error / without F", 2, error[2, 2] / error[2, 1], 0.05, 0.5),
        Check("one logit: pass rate where GR turns", 0.5, np.interp(0, gr, rate), 0.03, 1),
        Check("pass rate .1: resets / GR", 1 / 0.8, brake[2] / gr[2], 0.01, -1 / 0.8),
        Check("pass rate .9: resets / GR", -1 / 0.8, brake[-3] / gr[-3], 0.01, 1 / 0.8),
        Check("random bandits, start: share like GR", 0.5, by_g[0], 0.05, 1, "absolute"),
        Check("random bandits, end: share like GR", 0, by_g[-1], 0.05, 0.5, "absolute"),
    ]
    for i in (2, 4, 6):
        at, rival = x[i, -1], 1 - x[i, -1] / 2
        checks.append(Check(f"filter, x = {at:g}", phi[i, -1], length[i, -1], 0.01, rival))
    across = {"x": x, "phi(x)": phi, "1 - x/2": np.maximum(1 - x / 2, 0), "measured": length}
    tables = {
        "flow": {"step eta": STEPS, "-F": error[:, 0], "no F": error[:, 1], "+F": error[:, 2]},
        "one_logit": {"pass rate": rate, "resets": brake, "GR": gr},
        "bandits": {"share of the gain reached": gained, "along A": by_a, "along g": by_g},
        "filter": {name: column.flatten()[order] for name, column in across.items()},
    }
    return Outcome(checks, tables)


def plot(tables: dict[str, Table]) -> Figure:
    """Each table as one panel: its first column across, the others as curves."""
    texts = (
        ("flow", "Resets follow the flow with -F g", "distance of flow and resets", "log", "log"),
        ("one_logit", "One logit: GR turns, resets do not", "change / step", "linear", "linear"),
        ("bandits", "Resets act like GR early only", "share of bandits", "linear", "linear"),
        ("filter", "One cycle: from g to natural gradient", "length / K steps", "log", "linear"),
    )
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, (name, title, label, xs, ys) in zip(figure.subplots(2, 2).flat, texts, strict=True):
        (across, x), *curves = tables[name].items()
        for curve, y in curves:
            axes.plot(x, y, "ko" if curve == "measured" else ".-", label=curve)
        axes.set(title=title, xlabel=across, ylabel=label, xscale=xs, yscale=ys)
        axes.legend(frameon=False)
    return figure
