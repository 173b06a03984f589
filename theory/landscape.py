r"""A policy between a wide true hill and a narrow false spike: what GR closes, where it strands.

Statement
    A Gaussian policy :math:`N(\mu,\sigma^2I)` of fixed width follows the mean of a proxy reward: a
    wide hill, the true reward, and a narrow, higher, false spike. Smoothed by the policy each is a
    bump :math:`a e^{-\rho^2/2s^2}`. GR repels from a bump from :math:`\gamma_c=s^2e^{3/2}/2a` on:
    between the two thresholds the spike is closed and the hill is open, beyond both neither can be
    reached. **But exact GR does not bring the freed starts to the hill**: they strand where
    :math:`1+\gamma u''=0`, or on the saddle once :math:`\gamma>1/|\lambda_-|`. Resets of the
    reference change no outcome. SAM has no such threshold: the first starts leave the spike where
    their distance from it plus the radius reaches the saddle, and with a radius as long as that
    even the top is left, as never under GR. A KL penalty holds each start near itself.

Assumptions
    Exact gradients, small steps, :math:`\sigma=.1`. Hill 2.5 high, width 1, at (.8, .8); spike 4
    high, width .15, at (-.9, -.9): :math:`s^2=w^2+\sigma^2`, :math:`a=hw^2/s^2`. Starts on a square
    around the spike. Resets: cycles so short that H hardly acts within one.

Derivation
    :math:`\nabla L_\gamma=(I+\gamma H)g`. At a bump :math:`L=u(\rho)`, and the speed inwards is
    :math:`(1+\gamma u'')u'`. The least :math:`u''` is :math:`-2ae^{-3/2}/s^2`, at
    :math:`\rho=\sqrt3s`; hence :math:`\gamma_c`. Beyond it the bump keeps the disc within the
    inner root of :math:`1+\gamma u''=0`; the outer root attracts from outside. At a saddle the
    Hessian of :math:`L_\gamma` is :math:`H+\gamma H^2`, positive for :math:`\gamma>1/|\lambda_-|`.
    Resets: :math:`F=I/\sigma^2`, so K steps of a cycle add up to :math:`(1-(1-q)^K)/Kq` times K
    plain ones, :math:`q=\beta\eta/\sigma^2`: another clock, the same curve. SAM takes the gradient
    a length uphill in L, where it points back to the spike unless that is beyond the saddle.
    KL: none rests near the hill where the pull :math:`\beta|\mu-\mu_0|/\sigma^2` is stronger.

Falsified if
    a threshold or the area left to the spike is off by more than 5 %, resets change more than 1 %
    of the outcomes, or exact GR brings more than 3 % of the starts to the hill.

Source: figure 1 of Ackermann et al. 2026 (arXiv 2602.18037) for the picture; the thresholds are
derived here. Seeds: none, nothing is drawn at random.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy import ndarray
from torch.func import hessian

from flatopt import GradRegOptimizer
from theory import hills, hills_plot
from theory.check import Check, Outcome, Progress, Table, quiet
from theory.hills import AXIS, HILL, SIGMA, SPIKE, descend, edge, ends, flow, gr, gradient, root

RING = hills.ring(24)


def kl(beta: float, start: ndarray) -> ndarray:
    """The curves under a KL penalty to the start."""
    return flow(lambda x: gradient(x) + beta / SIGMA**2 * (x - start), start)


def by_flatopt(start: ndarray, strength: float, rate: float, steps: int) -> ndarray:
    """GradRegOptimizer on all starts at once; each has its own loss, so H is block-diagonal."""
    param = torch.tensor(start, requires_grad=True)
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=rate), strength, eps=1e-5)

    def closure() -> float:
        optimizer.zero_grad()
        total = hills.loss(param).sum()
        total.backward()
        return total.item()

    for _ in range(steps):
        optimizer.step(closure)
    return param.detach().numpy()


def curvature(distance: float) -> ndarray:
    """H on the line from spike to hill, by autograd."""
    return hessian(hills.loss)(torch.tensor(SPIKE + distance * AXIS)).numpy()


def thresholds() -> list[Check]:
    """Where GR closes a bump or holds on the saddle, where SAM and KL change what they do."""
    height, total = hills.bumps()
    near = SPIKE + 2 * total[1] ** 0.5 * RING
    far = HILL + 2 * total[0] ** 0.5 * RING[RING @ AXIS > 0.5]
    first = SPIKE[None] + 0.8
    saddle = root(lambda t: gradient(SPIKE + t * AXIS) @ AXIS, 0.3, 0.8)
    hold = -1 / np.linalg.eigvalsh(curvature(saddle))[0]
    # the slope .3 away from the top of the hill, against the pull back to the nearest start
    slope = 0.3 * height[0] / total[0] * np.exp(-(0.3**2) / (2 * total[0]))
    pull = SIGMA**2 * slope / (np.linalg.norm(first - HILL) - 0.3)
    # rivals: the curvature of the top decides; the saddle needs no more than the spike;
    # SAM is GR of strength radius / |g|, or the start does not matter; a penalty without its 1/2
    first_order = (0.75 * total[1]) ** 0.5
    cases = (
        ("GR closes the spike from", hills.limits()[1], total[1] / height[1], 0.0, 0.1,
         lambda s: not ends(gr(s, near)[-1])[1].mean() > 0.5),
        ("GR closes the hill from", hills.limits()[0], total[0] / height[0], 0.1, 3.0,
         lambda s: not ends(gr(s, far)[-1])[0].mean() > 0.5),
        ("GR holds on the saddle from", hold, hills.limits()[1], 0.05, 0.2,
         lambda s: np.abs(gradient(gr(s, near)[-1])).max() < 1e-3),
        ("SAM leaves the top of the spike from", saddle, first_order, 0.05, 1.0,
         lambda r: not ends(hills.sam(r, SPIKE + 0.01 * RING, 1000)[-1])[1].any()),
        ("KL keeps the nearest start off from", pull, pull / 2, 1e-3, 0.02,
         lambda b: not ends(kl(b, first)[-1])[0].any()),
        ("SAM: first starts escape the spike from", saddle - 2 * total[1] ** 0.5, saddle, 0.01, 0.7,
         lambda r: not ends(hills.sam(r, near, 1000)[-1])[1].all()),
        ("SAM: the same, starts 1.2 times as far", saddle - 2.4 * total[1] ** 0.5, first_order,
         0.01, 0.5, lambda r: not ends(hills.sam(r, 1.2 * near - 0.2 * SPIKE, 1000)[-1])[1].all()),
    )  # fmt: skip
    return [Check(n, p, edge(f, low, high), 0.05, w) for n, p, w, low, high, f in cases]


def check(progress: Progress = quiet) -> Outcome:
    """Thresholds, basins, where freed starts end, and that flatopt does the same."""
    progress("thresholds")
    checks = thresholds()
    progress("basins")
    start = hills.square(19)
    runs = {
        "none": flow(gradient, start),
        "KL": kl(0.01, start),
        "resets": descend(gradient, start, 2e-3, 15000, beta=1),
        "GR": gr(0.05, start),
        "SAM": hills.sam(0.1, start, 4000),
    }
    on = {name: ends(path[-1]) for name, path in runs.items()}
    (hill, spike), (gr_hill, gr_spike) = on["none"], on["GR"]
    same, same_gr = ((on[name] == on["none"]).all(0).mean() for name in ("resets", "GR"))
    clocks = (descend(gradient, start, 2e-3, 10000), runs["resets"])
    early, late = ((~ends(path)[0][:, hill]).sum() for path in clocks)
    q = 2e-3 / SIGMA**2
    side = np.arange(-0.35, 0.35, 0.01)
    fine = SPIKE + np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    stranded = np.linalg.norm(runs["GR"][-1][~gr_hill & ~gr_spike] - SPIKE, axis=1)
    rest = root(lambda t: 1 + 0.05 * AXIS @ curvature(t) @ AXIS, 0.35, 0.5)
    kept = (np.linalg.norm(start - HILL, axis=1) < hills.inner_root(1.5, 0)).mean()
    some = start[::8]
    exact, plain = (
        descend(lambda x, s=s: hills.regularized(x, s), some, 1e-3, 1500)[-1] for s in (0.05, 0)
    )
    distance = np.abs(by_flatopt(some, 0.05, 1e-3, 1500) - exact).max()
    checks += [
        Check("GR .1: area left to the spike", np.pi * hills.inner_root(0.1, 1) ** 2,
              0.01**2 * ends(gr(0.1, fine)[-1])[1].sum(), 0.05, 3 * np.pi * hills.bumps()[1][1]),
        Check("GR .05: distance of the stranded from the spike", rest, np.median(stranded), 0.01,
              checks[3].predicted),
        Check("GR .05: share gained by the hill", 0, gr_hill.mean() - hill.mean(), 0.03,
              spike.mean() - gr_spike.mean(), "absolute"),
        Check("GR 1.5: share on the hill", kept, ends(gr(1.5, start)[-1])[0].mean(), 0.01,
              hill.mean(), "absolute"),
        Check("resets: outcomes as without", 1, same, 0.01, same_gr, "absolute"),
        Check("resets: times as slow", 5 * q / (1 - (1 - q) ** 5), late / early, 0.01, 1),
        Check("flatopt: distance from the exact curve", 0, distance, 1e-3,
              np.abs(plain - exact).max(), "absolute"),
    ]  # fmt: skip

    progress("strengths")
    strengths, few = np.geomspace(0.005, 2, 27), hills.square(13)
    last = gr(np.repeat(strengths, len(few)), np.tile(few, (len(strengths), 1)))[-1]
    shares = ends(last).reshape(2, len(strengths), -1).mean(-1)
    scan = {"strength": [*strengths], "hill": [*shares[0]], "spike": [*shares[1]]}
    near, radii = SPIKE + 2 * hills.bumps()[1][1] ** 0.5 * RING, np.linspace(0.05, 0.6, 12)
    left = [ends(hills.sam(r, near, 1000)[-1])[1].mean() for r in radii]
    tables: dict[str, Table] = {"radii": {"radius": [*radii], "spike": left}, "strengths": scan}
    tables |= {"shares": hills_plot.shares(runs), "curves": hills_plot.curves(runs)}
    return Outcome(checks, tables | {"surface": hills_plot.surface()})


def plot(tables: dict[str, Table]) -> Figure:
    """The proxy, the same starts under four methods, and the shares over the strength."""
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    grid = figure.subplots(2, 3).ravel()
    hills_plot.draw(grid[0], tables["surface"])
    grid[0].set_title("What the policy sees (darker: more reward)")
    grid[0].annotate("wide hill:\ntrue reward", HILL, (-0.75, 1.2), ha="center")
    grid[0].annotate("narrow spike:\nthe reward model is wrong", SPIKE, (-0.75, -1.75), ha="center")
    titles = {
        "none": "No regularization:\n{spike:.0%} end on the false spike",
        "KL": "KL to the start, beta .01:\nnone reaches the hill, {spike:.0%} on the spike",
        "resets": "KL with resets: the same curves,\n{spike:.0%} on the spike",
        "GR": "GR, strength .05: {spike:.0%} on the spike,\nbut the freed strand on the ridge",
    }
    rows = zip(*tables["shares"].values(), strict=True)
    for axes, (name, _, spike, _) in zip(grid[1:5], rows, strict=False):
        hills_plot.draw(axes, tables["surface"], tables["curves"], str(name))
        axes.set_title(titles[str(name)].format(spike=spike))
    for name, limit, side in zip(("hill", "spike"), hills.limits(), ("right", "left"), strict=True):
        colour = hills_plot.COLOURS[name]
        grid[5].semilogx(tables["strengths"]["strength"], tables["strengths"][name], color=colour)
        grid[5].axvline(limit, color=colour, linestyle=":")
        at = 0.75 if name == "hill" else 0.9
        grid[5].text(limit, at, f" {name} closed, \n predicted ", color=colour, ha=side)
    grid[5].text(0.05, 0.42, "end on the hill", color=hills_plot.COLOURS["hill"])
    grid[5].text(0.05, 0.08, "end on the spike", color=hills_plot.COLOURS["spike"])
    grid[5].set(xlabel="strength of GR", ylabel="share of starts", ylim=(0, 1), box_aspect=1)
    grid[5].set_title("GR by strength: between the thresholds\nonly the spike is closed")
    return figure
