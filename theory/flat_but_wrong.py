r"""A flat maximum can be a wrong one: GR can cause the hacking that it is meant to prevent.

Statement
    (1) A proxy has a narrow *right* peak, its highest, and a wide worthless hill. Plain descent
    climbs the peak from near it. Iff :math:`\gamma>\gamma_c=s^2e^{3/2}/2a`, GR repels starts; a
    policy that learns its width then climbs the hill (at :math:`2\gamma_c`, not yet at 1.5).
    (2) A completed hack is flat: in the gradient flow of a softmax policy with k arms
    :math:`\|g\|\to\sqrt{1-1/k}/t` and :math:`\lambda_{\max}(H)\to1/t`, whatever the rewards.
    (3) What a gradient norm tells of the truth depends on the proxy's errors: nothing, or that a
    *high* peak is the better sign. (4) A constant proxy: gradient 0, excess Bradley-Terry loss > 0.

Assumptions
    Exact gradients. (1) Policy :math:`N(\mu,\sigma^2I_2)`, bumps that barely overlap. (2) One best
    arm. (3) Truth = proxy or its negative by a coin; or truth N(0, 1), proxy = truth + N(0, 1).

Derivation
    (1) A bump of height h, width w is seen as :math:`ae^{-x^2/2}`, :math:`x=\rho/s`, where
    :math:`s^2=w^2+\sigma^2,\ a=hw^2/s^2`. L curves by :math:`\tfrac a{s^2}(1-x^2)e^{-x^2/2}`, least
    at :math:`x=\sqrt3`; where that is below :math:`-1/\gamma`, :math:`(1+\gamma L'')L'` has turned
    round. Within its inner root, :math:`x^2=1-2W(-\gamma_c/e\gamma)` (Lambert's W), starts stay.
    (2) Arm 1 best, :math:`y_i=\pi_i(r_1-r_i)`: late, :math:`\dot y_i=-y_i(y_i+\sum_jy_j)`, so
    :math:`y_i\to1/kt`; :math:`g=(-\sum y,y_2,\dots)`, :math:`H=\sum y_i(e_i-e_1)(e_i-e_1)^\top`, a
    star's Laplacian over kt: top eigenvalue k/kt, eigenvector g. One arm paid, the rest alike:
    :math:`\|g\|\propto p(1-p)`. (3) The run ignores the coin. Given it, the truth is N(r/2, 1/2).

Falsified if
    GR does not lower the truth; a threshold is off by 5 %, a share by 7 %, an exponent by .05, a
    constant by 1 %, an AUC by four standard errors.

Source: the limit is stated in Ackermann et al. 2026 (arXiv 2602.18037); derivations our own.
Seeds: 0-9 (200 bandits each), 10 (ends of hacks).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from scipy.special import entr, expit, lambertw
from scipy.stats import norm, rankdata
from torch import Tensor
from torch.func import grad, hessian, vmap

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

# height, width and place of the peak and the hill; the policy's first width; s^2, a/s^2 of the peak
PEAK, HILL, SIGMA = (3.0, 0.35, 0.0), (2.4, 1.2, 2.0), 0.15
BOTH = torch.tensor([PEAK, HILL], dtype=torch.float64)
S2 = PEAK[1] ** 2 + SIGMA**2
CURVATURE = PEAK[0] * PEAK[1] ** 2 / S2**2
CRITICAL = math.exp(1.5) / (2 * CURVATURE)


def reward(state: Tensor, bumps: Tensor = BOTH) -> Tensor:
    """Expected reward for rows of two means and the log of the width."""
    height, width, place = bumps.unbind(1)
    spread = width**2 + torch.exp(2 * state[:, 2:])
    square = (state[:, :1] - place) ** 2 + state[:, 1:2] ** 2
    return (height * width**2 / spread * torch.exp(-square / (2 * spread))).sum(1)


def descend(starts: Tensor, strength: float, steps: int, lr: float, weight=None, learn=1) -> Tensor:
    """Where starts end, each alone (H is block-diagonal); a loss times c feels strength times c."""
    state = starts.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([state], lr=lr), strength, eps=1e-7)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -(reward(state) * (1 if weight is None else weight)).sum()
        loss.backward()
        state.grad[:, 2] *= learn  # type: ignore[index]
        return loss.item()

    for _ in range(steps):
        optimizer.step(closure)
    return state.detach()


def flow(logits: Tensor, proxy: Tensor, end: float, rtol: float):
    """Times, gradient norms and logits (time first) in the gradient flow of softmax policies."""
    gap = proxy.amax(1, keepdim=True) - proxy  # counted from the best arm nothing cancels

    def field(log_time: float, x: np.ndarray) -> np.ndarray:
        p = torch.tensor(x).view(gap.shape).softmax(1)
        return -math.exp(log_time) * (p * (gap - (p * gap).sum(1, keepdim=True))).flatten().numpy()

    span = np.linspace(math.log(0.01), math.log(end), 400)
    path = solve_ivp(field, span[[0, -1]], logits.flatten(), t_eval=span, rtol=rtol).y.T
    path = torch.tensor(path).view(400, *gap.shape)
    size = grad(lambda x: (x.softmax(-1) * gap).sum())(path).norm(dim=2)
    return np.exp(span), size.numpy(), path


def check(progress: Progress = quiet) -> Outcome:
    """Two peaks, completed hacks, what monitors see, the constant proxy."""
    progress("two peaks")
    index = torch.arange(200).double()  # a sunflower's seeds: even over a disc of radius 2s
    r, angle = 2 * ((index + 0.5) / 200 * S2).sqrt(), index * math.pi * (3 - math.sqrt(5))
    starts = torch.stack([r * angle.cos(), r * angle.sin(), 0 * r + math.log(SIGMA)], 1)
    gamma, weight = 2.5 * CRITICAL, torch.tensor([0.6, 0.8, 1.0]).repeat_interleave(200)
    # step sizes below the edge of stability at the peak (where the width is learnt: at width 0)
    ends = descend(starts.repeat(3, 1), gamma, 4600, 0.0088, weight).split(200)
    runs = [descend(starts, 0, 1000, 0.04), *ends, descend(starts, gamma, 1500, 0.014, learn=0)]
    away = [[(x[:, 0] - b[2]).hypot(x[:, 1]) for x in runs] for b in (PEAK, HILL)]
    right, wrong = ([float((d < 0.4).double().mean()) for d in row] for row in away)
    proxy, truth = ([float(reward(x, b).mean()) for x in runs] for b in (BOTH, BOTH[:1]))
    names = ("none", "1.5", "2", "2.5", "2.5, fixed")
    shares = {"strength": names, "right": right, "wrong": wrong, "proxy": proxy, "truth": truth}
    scan = torch.linspace(0.85, 1.15, 31).double()  # until each of the outer starts stays away
    weight = (scan / scan[-1]).repeat_interleave(40)
    end = descend(starts[160:].repeat(31, 1), 1.15 * CRITICAL, 900, 0.028, weight, learn=0)
    home = (end[:, 0].hypot(end[:, 1]) < 0.2).view(31, 40).sum(0)
    threshold = CRITICAL * float(scan[home.clamp(max=30)].median())
    kept = (1 - 2 * lambertw(-1 / 2.5 / math.e).real) / 4
    before, after = (float(reward(x[away[1][3] < 0.4]).mean()) for x in (starts, ends[2]))
    checks = [
        # the false theory: 1 / curvature at the top
        Check("threshold strength", CRITICAL, threshold, 0.05, 1 / CURVATURE),
        Check("width fixed, GR: share that stays right", kept, right[4], 0.07, 1),
        Check("width fixed, GR: share on the hill", 0, wrong[4], 0.01, 1 - kept, "absolute"),
        Check("width learnt, GR: share on the hill", 1 - kept, wrong[3], 0.07, 0),
        Check("truth with GR - without", -(1 - kept) * PEAK[0], truth[3] - truth[0], 0.07, 0),
        Check("proxy of those on the hill", HILL[0], after, 0.02, before),
    ]
    draw, found = torch.Generator().manual_seed(10), []
    for k in (2, 3, 5):
        logits, proxy = torch.randn(2, 20, k, generator=draw, dtype=torch.float64)
        times, size, path = flow(logits, proxy, 1e12, 1e-8)
        slope = np.polyfit(np.log(times[-60:]), np.log(size[-60:]), 1)[0]
        matrix = vmap(hessian(lambda x, r: x.softmax(0) @ (r.max() - r)))(path[-1], proxy)
        top = torch.linalg.eigvalsh(matrix)[:, -1].numpy()
        found.append([slope, size[-1] * times[-1] / (1 - 1 / k) ** 0.5, top * times[-1]])
    far = [max(v, key=lambda x: abs(abs(x) - 1)) for v in np.concatenate(found, 1)]
    # the proxy pays the last of five arms, at first a rare one; the truth pays the others
    rare, last = torch.tensor([[0.245] * 4 + [0.02], [0.0] * 4 + [1.0]]).double().split(1)
    times, size, path = flow(rare.log(), last, 1e4, 1e-8)
    truth = 1 - path[:, 0].softmax(1)[:, 4]
    hack = {"time": times, "gradient norm": size[:, 0], "true reward": truth}
    again = np.interp(-0.02, -truth, size[:, 0]) / size[0, 0]
    checks += [
        Check("hack: exponent of |g|", -1, far[0], 0.05, 0, "absolute"),
        # the false theories: the learnt arm's logit alone, the curvature of one arm alone
        Check("hack: |g| t / (1 - 1/k)^.5", 1, far[1], 0.01, 0.5**0.5),
        Check("hack: sharpness * t", 1, far[2], 0.01, 0.5),
        Check("|g| at truth .02 / at truth .98", 1, again, 0.01, 0.02 / 0.98),
    ]
    progress("monitors")
    draws = [np.random.default_rng(seed).normal(size=(4, 200, 5)) for seed in range(10)]
    logits, truth, error, coin = torch.tensor(np.concatenate(draws, 1))
    proxy = truth + error
    _, size, path = flow(logits, proxy, 1e6, 1e-5)
    start, peak, end = (v.reshape(10, 200) for v in (size[0], size.max(0), size[-1]))
    ranks = rankdata([start, peak, peak / start, end], axis=2)
    change = torch.nn.functional.normalize(path[-1].softmax(1) - path[0].softmax(1))
    monitor: dict = {"signal": ("start", "peak", "peak / start", "end")}
    for kind, judge in (("coin", coin[:, :1].sign() * proxy), ("errors", truth)):
        hacked = ((change * judge).sum(1) < 0).view(10, 200).numpy()
        n = hacked.sum(1)
        auc = ((ranks * hacked).sum(2) - n * (n + 1) / 2) / (n * (200 - n))
        monitor |= {kind: auc.mean(1), f"{kind}, 2 s.e.": 2 * auc.std(1, ddof=1) / 10**0.5}
    risk = norm.cdf(-(change * proxy).sum(1).numpy() / 2**0.5)[peak.argsort(None)]
    pairs = risk * ((1 - risk).cumsum() - (1 - risk)), risk * ((1 - risk).sum() - (1 - risk))
    worst = abs(monitor["coin"] - 0.5).argmax()
    # a constant proxy's loss on a pair of answers is ln 2, the least is the entropy of its label
    entropy = 2 * entr(expit((truth[:, 0] - truth[:, 1]).numpy()))
    mean = float(norm(scale=2**0.5).expect(lambda x: 2 * entr(expit(x))))
    checks += [
        Check("coin: AUC farthest from 1/2", 0.5, monitor["coin"][worst],
              2 * monitor["coin, 2 s.e."][worst], 1, "absolute"),
        Check("errors: AUC of the peak |g|", pairs[0].sum() / pairs[1].sum(), monitor["errors"][1],
              2 * monitor["errors, 2 s.e."][1], 0.5, "absolute"),
        Check("constant proxy: excess loss", math.log(2) - mean, math.log(2) - entropy.mean(),
              4 * entropy.std() / 2000**0.5, 0, "absolute"),
    ]  # fmt: skip
    return Outcome(checks, {"shares": shares, "hack": hack, "monitor": monitor})


def plot(tables: dict[str, Table]) -> Figure:
    """Where the starts end; a hack and its gradient; what a monitor could know."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    shares, monitor = tables["shares"], tables["monitor"]
    first.bar("strength", "right", data=shares, label="right peak")
    first.bar("strength", "wrong", bottom="right", data=shares, color="C3", label="wrong hill")
    first.set(xlabel="strength / critical", ylabel="share", ylim=(0, 1.3), title="GR causes a hack")
    for name in ("gradient norm", "true reward"):
        second.loglog("time", name, data=tables["hack"], label=name)
    second.set(xlabel="time", title="A completed hack is flat", ylim=(1e-4, 9), xlim=(1, 1e4))
    third.axhline(0.5, color="grey", linewidth=0.8)
    for kind in ("coin", "errors"):
        third.errorbar("signal", kind, f"{kind}, 2 s.e.", data=monitor, fmt="o", label=kind)
    third.set(ylabel="AUC for hacked runs", ylim=(0, 1), title="What the gradient norm tells")
    for axes in (first, second, third):
        axes.legend(loc="upper right", frameon=False)
    return figure
