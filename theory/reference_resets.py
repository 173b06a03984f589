r"""What a KL penalty with reference resets adds to a step: a brake, which GR is only at times.

Statement
    Minimise :math:`L+\beta\,\mathrm{KL}(\pi_\theta\|\pi_{ref})` with :math:`L=-\mathbb E_\pi r` and
    KL weight :math:`\beta`; the current policy becomes the reference after each cycle of K gradient
    steps of length :math:`\eta`. g and H are gradient and Hessian of L, F is the Fisher matrix of
    the policy. (i) Resets follow, to second order, the flow
    :math:`-[g+\tfrac\eta2Hg-\tfrac12\beta\eta(K-1)Fg]`; GR of strength :math:`\gamma` follows
    :math:`-[g+\gamma Hg]`. (ii) Where :math:`Hg=-cFg`, resets are GR of strength
    :math:`\beta\eta(K-1)/2c`, hence the opposite of GR where c < 0. Rewards 0 and 1, pass rate p,
    and either one logit or all right answers equally likely and all wrong ones too: there
    :math:`Hg=-cFg` with :math:`c=1-2p`. (iii) Otherwise the direction matters. On logits
    :math:`c_d=-d^\top Hd/d^\top Fd` has along the advantages, d = A, the sign of the reward's
    skewness; both rules act along d = g, where pass rate and skewness do not decide the sign: with
    20 right answers of probability .01, a wrong one of .4 and 40 of .01, :math:`c_A=.6` and
    :math:`c_g=-.008`. (iv) Random bandits: :math:`c_g>0` in half of them at the uniform start, in
    none near the end.

Assumptions
    Exact gradients; the policy is log-linear (a tanh network in the tests); small
    :math:`\beta\eta KF` and :math:`\eta KH`.

Derivation
    (i) Step j of a cycle sees :math:`g-j\eta(H+\beta F)g`; equate their sum with the path of a flow
    over :math:`K\eta`. (iii) With the score s: :math:`F=\mathbb E\,ss^\top`,
    :math:`H=-\mathbb E[A\,ss^\top]`; on logits :math:`s_a^\top d=d_a-\mathbb E_\pi d`, so
    :math:`A^\top HA=-\mathbb E A^3`, :math:`A^\top FA=\mathbb E A^2`. (ii) Rewards 0 and 1:
    :math:`\mathbb E A^3=(1-2p)\mathbb E A^2`; one logit has one direction only, and by symmetry g,
    Hg and Fg share theirs in the other case. (iv) Uniform: g is a multiple of A, whose law is
    symmetric. Near the end :math:`s_a^\top g` is of second order in 1 - p for the best action, of
    first order for the others, whose A < 0.

Falsified if
    a slope or a share is off by .05, a coefficient by 1 %, the turning point by 3 %.

Source: backward error analysis as in Barrett & Dherin 2021 (arXiv 2009.11162). Seeds: 0; for the
random bandits 0-4.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

from theory.bandit import Bandit, K
from theory.check import Check, Outcome, Progress, Table, quiet

Part = tuple[list[Check], dict]  # and the table of its panel


def modified_flow() -> Part:
    """(i) One cycle term by term, and the distance of many to three flows as the step shrinks."""
    draw = torch.Generator().manual_seed(0)
    r, rows, begin = (torch.randn(s, generator=draw).double() for s in (8, (3, 8), 3))
    bandit = Bandit(r, rows)
    g, h, f = bandit.parts(begin)
    steps, signs = np.array([0.005, 0.0025, 0.00125]), (-1, 0, 1)

    def drift(_: float, at: np.ndarray, eta: float, sign: int) -> np.ndarray:
        g, h, f = bandit.parts(torch.tensor(at))
        return -(g + eta / 2 * (h @ g + sign * (K - 1) * f @ g)).numpy()

    rest, distance = np.zeros(3), np.zeros((3, 3))
    for i, eta in enumerate(steps):
        resets = bandit.path(begin, eta, round(1.2 / eta), beta=1)
        rest[i] = (resets[K] - begin + K * eta * (g - (K - 1) / 2 * eta * (h + f) @ g)).norm()
        for j, sign in enumerate(signs):
            flow = solve_ivp(drift, (0, 1.2), begin, args=(eta, sign), rtol=1e-9, atol=1e-9)
            distance[i, j] = np.linalg.norm(flow.y[:, -1] - resets[-1].numpy())
    pull = bandit.path(begin, 1e-4, K, beta=1)[-1] - bandit.path(begin, 1e-4, K)[-1]
    slope, slope_rest = (np.polyfit(np.log(steps), np.log(y), 1)[0] for y in (distance, rest))
    checks = [
        Check("one cycle: F term / (beta eta²)", K * (K - 1) / 2,
              (pull @ g / (g @ f @ g)).item() / 1e-8, 0.01, K**2 / 2),
        Check("one cycle: slope of the rest", 3, slope_rest, 0.05, 2, "absolute"),
        Check("flow with -F: slope", 2, slope[0], 0.05, 1, "absolute"),
        Check("flow without F: slope", 1, slope[1], 0.05, 2, "absolute"),
        Check("flow with +F: error / without F", 2, distance[2, 2] / distance[2, 1], 0.05, 0.5),
    ]  # fmt: skip
    return checks, {"step eta": steps, **dict(zip(("-F", "no F", "+F"), distance.T, strict=True))}


def one_logit() -> Part:
    """(ii) Rewards 0 and 1, one logit, every pass rate: what resets and GR add to a step."""
    coin = Bandit(torch.tensor([1.0, 0]).double(), torch.tensor([[1.0, 0]]).double())
    rate = np.linspace(0.05, 0.95, 37)
    resets, gr = coin.added(torch.tensor(rate).logit()[:, None])
    checks = [Check("one logit: pass rate where GR turns", 0.5, np.interp(0, gr, rate), 0.03, 1)]
    for at in (2, -3):
        c = 1 - 2 * rate[at]
        name = f"one logit, pass rate {rate[at]:.1f}: GR / resets"
        checks.append(Check(name, c, gr[at] / resets[at], 0.01, -c))
    return checks, {"pass rate": rate, "resets": resets, "GR": gr}


def one_pass_rate() -> Part:
    """(iii) Pass rate .2: 20 right answers, 40 wrong ones and a further one of probability q."""
    likely = np.append(0.8 / 41, np.arange(1, 16) / 20)
    p = torch.tensor([[0.01] * 20 + [q] + [(0.8 - q) / 40] * 40 for q in likely]).double()
    bandit = Bandit(torch.tensor([1.0] * 20 + [0] * 41).double(), torch.eye(61).double())
    resets, gr = bandit.added(p.log())
    along, cosine = [], []
    for row in p:
        g, h, f = bandit.parts(row.log())
        along.append(-(g @ h @ g / (g @ f @ g)).item())
        cosine.append(torch.cosine_similarity(-h @ g, f @ g, 0).item())
    by_rate, names = 1 - 2 * 0.2, ("all wrong answers alike", "a wrong answer of .4")
    checks = [
        Check(f"pass rate .2, {name}: GR / resets", c, gr[i] / resets[i], 0.01, rival)
        for name, i, c, rival in zip(
            names, (0, 8), (by_rate, along[8]), (along[8], by_rate), strict=True
        )
    ]
    measured = {"along g, measured": gr / resets, "along A": np.full(len(likely), by_rate)}
    return checks, {"q": likely, "along g": along, **measured, "cos(-Hg, Fg)": cosine}


def random_bandits() -> Part:
    """(iv) Gaussian rewards, ten actions, trained from uniform: c along A and along g."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(5)]
    r = torch.cat([torch.randn(300, 10, generator=draw).double() for draw in draws])
    logits = Bandit(r, torch.eye(10).double()).path(torch.zeros_like(r), 1.0, 320)
    p = logits[[0, 1, 2, 3, 5, 8, 12, 20, 40, 80, 160, 320]].softmax(-1)
    a = r - (p * r).sum(-1, keepdim=True)
    gained = ((p - 0.1) * r).sum(-1) / (r.max(-1)[0] - r.mean(-1))
    u = p * a - (p * p * a).sum(-1, keepdim=True)  # scores times -g
    by_a, by_g = (((p * a * v**2).sum(-1) > 0).double().mean(-1) for v in (a, u))
    products = ((w * u - p * (w * u).sum(-1, keepdim=True)) for w in (p * a, p))  # of -H and of F
    cosine = torch.cosine_similarity(*products, dim=-1).abs().median(-1)[0]
    checks = [
        Check("random bandits, start: share like GR", 0.5, by_g[0].item(), 0.05, 1, "absolute"),
        Check("random bandits, end: share like GR", 0, by_g[-1].item(), 0.05, 0.5, "absolute"),
    ]
    columns = {"c > 0 along A": by_a, "c > 0 along g": by_g, "median |cos(Hg, Fg)|": cosine}
    table = {name: column.numpy() for name, column in columns.items()}
    return checks, {"share of the gain reached": gained.mean(-1).numpy(), **table}


PARTS = {
    "flow": modified_flow,
    "one_logit": one_logit,
    "one_pass_rate": one_pass_rate,
    "bandits": random_bandits,
}


def check(progress: Progress = quiet) -> Outcome:
    """The modified flow, one logit, one pass rate in many bandits, random bandits."""
    outcome = Outcome([])
    for name, part in PARTS.items():
        progress(name)
        checks, outcome.tables[name] = part()
        outcome.checks += checks
    return outcome


def plot(tables: dict[str, Table]) -> Figure:
    """Each table as one panel: its first column across, the others as curves."""
    texts = (
        ("flow", "Resets follow the flow with -F g", "distance of flow and resets", "log", "log"),
        ("one_logit", "One logit: GR turns, resets do not", "change / step", "linear", "linear"),
        ("one_pass_rate", "Pass rate .2, a wrong answer of q", "c, cosine", "linear",
         "linear"),
        ("bandits", "Random bandits, while they learn", "share; cosine", "linear", "linear"),
    )  # fmt: skip
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, (name, title, label, xs, ys) in zip(figure.subplots(2, 2).flat, texts, strict=True):
        (across, x), *curves = tables[name].items()
        for curve, y in curves:
            axes.plot(x, y, "ko" if "measured" in curve else ".-", label=curve)
        axes.set(title=title, xlabel=across, ylabel=label, xscale=xs, yscale=ys)
        axes.legend(frameon=False, fontsize=8)
    return figure
