r"""A flat maximum can be a wrong one: GR can cause the hacking that it is meant to prevent.

Statement
    (1) A proxy has a narrow *right* peak, its highest, and a wide worthless hill. Plain descent
    climbs the peak from near it. Iff the strength :math:`\gamma` exceeds
    :math:`\gamma_c=s^2e^{3/2}/2a`, GR repels starts from the peak.
    (2) Starts within a disc stay right at any strength. Of the others, a policy of fixed width
    stalls between peak and hill; one that learns its width climbs the hill (at 2 and 2.5 times
    :math:`\gamma_c`, not yet at 1.5), and its truth is lost while its proxy rises.
    (3) A constant proxy has gradient 0 everywhere, and an excess Bradley-Terry loss above 0.

Assumptions
    Exact gradients. (1, 2) Policy :math:`N(\mu,\sigma^2I_2)` with two or three parameters, bumps
    that barely overlap. (3) Pairs of answers with independent true rewards N(0, 1), labelled
    by Bradley-Terry with the true reward.

Derivation
    (1) A bump of height h, width w is seen as :math:`ae^{-x^2/2}`, :math:`x=\rho/s`, where
    :math:`s^2=w^2+\sigma^2,\ a=hw^2/s^2`. Along the radius L curves by
    :math:`\tfrac a{s^2}(1-x^2)e^{-x^2/2}`, least at :math:`x=\sqrt3`; where that is below
    :math:`-1/\gamma`, :math:`(1+\gamma L'')L'` has turned round. (2) Within its inner root,
    :math:`x^2=1-2W_0(-\gamma_c/e\gamma)` (Lambert's W), starts stay. (3) The constant's loss on a
    pair is ln 2; the least mean loss is the entropy of the label, the gap being N(0, 2).

Falsified if
    GR does not lower the truth; the threshold is off by 5 %, a share or the loss of truth by 7 %,
    the proxy on the hill by 2 %, the excess loss by four standard errors.

Source: the limit is stated in Ackermann et al. 2026 (arXiv 2602.18037); derivations our own.
Seeds: 0 (labelled pairs); the starts are a fixed pattern.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import entr, expit, lambertw
from scipy.stats import norm
from torch import Tensor

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

# height, width and place of the peak and the hill; the policy's first width; s^2, a/s^2 of the peak
PEAK, HILL, SIGMA = (3.0, 0.35, 0.0), (2.4, 1.2, 2.0), 0.15
BOTH = torch.tensor([PEAK, HILL], dtype=torch.float64)
S2 = PEAK[1] ** 2 + SIGMA**2
CURVATURE = PEAK[0] * PEAK[1] ** 2 / S2**2
CRITICAL = math.exp(1.5) / (2 * CURVATURE)
# in units of CRITICAL: the strengths of the runs that learn the width; the last also without
STRENGTHS = (1.5, 2.0, 2.5)
STARTS, PAIRS = 200, 400_000


def reward(state: Tensor, bumps: Tensor = BOTH) -> Tensor:
    """Expected reward for rows of two means and the log of the width; of the peak: the truth."""
    height, width, place = bumps.unbind(1)
    spread = width**2 + torch.exp(2 * state[:, 2:])
    square = (state[:, :1] - place) ** 2 + state[:, 1:2] ** 2
    return (height * width**2 / spread * torch.exp(-square / (2 * spread))).sum(1)


def sunflower() -> Tensor:
    """Starts even over a disc of radius 2s around the peak, from the middle outwards."""
    index = torch.arange(STARTS).double()
    radius, angle = 2 * ((index + 0.5) / STARTS * S2).sqrt(), index * math.pi * (3 - math.sqrt(5))
    width = torch.full_like(radius, math.log(SIGMA))
    return torch.stack([radius * angle.cos(), radius * angle.sin(), width], 1)


def descend(
    starts: Tensor,
    strength: float,
    steps: int,
    lr: float,
    loss_scale: Tensor | float = 1.0,
    learn_width: bool = True,
) -> Tensor:
    """Where starts end, each alone: the Hessian has one block for each of them.

    A loss times c feels c times the strength: ``loss_scale`` gives each start a strength.
    """
    state = starts.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([state], lr=lr), strength, eps=1e-7)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -(reward(state) * loss_scale).sum()
        loss.backward()
        if not learn_width:
            state.grad[:, 2] = 0  # type: ignore[index]
        return loss.item()

    for _ in range(steps):
        optimizer.step(closure)
    return state.detach()


def distance(state: Tensor, bump: tuple[float, float, float]) -> Tensor:
    """From the mean action to the middle of a bump."""
    return (state[:, 0] - bump[2]).hypot(state[:, 1])


def threshold() -> Check:
    """(1) The least strength that keeps an outer start from the peak; the median over starts."""
    outer, multiples = sunflower()[160:], torch.linspace(0.85, 1.15, 31).double()
    most = float(multiples[-1])
    scale = (multiples / most).repeat_interleave(len(outer))
    repeated = outer.repeat(len(multiples), 1)
    end = descend(repeated, most * CRITICAL, 900, 0.028, scale, learn_width=False)
    # for each start the number of strengths, of 31, at which it comes home
    home = (distance(end, PEAK) < 0.2).view(len(multiples), len(outer)).sum(0)
    first_away = multiples[home.clamp(max=len(multiples) - 1)]
    # the false theory: repelled as soon as the strength exceeds 1 / the curvature at the top
    measured = CRITICAL * float(first_away.median())
    return Check("threshold strength", CRITICAL, measured, 0.05, 1 / CURVATURE)


def two_peaks() -> tuple[list[Check], Table]:
    """(2) Where the starts end without GR, with it, and with it at a fixed width."""
    starts, most = sunflower(), STRENGTHS[-1] * CRITICAL
    scale = (torch.tensor(STRENGTHS).double() / STRENGTHS[-1]).repeat_interleave(STARTS)
    # step sizes below the edge of stability at the peak (where the width is learnt: at width 0)
    learnt = descend(starts.repeat(len(STRENGTHS), 1), most, 4600, 0.0088, scale).split(STARTS)
    ends = {"none": descend(starts, 0, 1000, 0.04)}
    ends |= {f"{strength:g}": end for strength, end in zip(STRENGTHS, learnt, strict=True)}
    ends["2.5, fixed"] = descend(starts, most, 1500, 0.014, learn_width=False)
    table: dict[str, list] = {
        "strength": [*ends],
        "right": [float((distance(end, PEAK) < 0.4).double().mean()) for end in ends.values()],
        "wrong": [float((distance(end, HILL) < 0.4).double().mean()) for end in ends.values()],
        "proxy": [float(reward(end).mean()) for end in ends.values()],
        "truth": [float(reward(end, BOTH[:1]).mean()) for end in ends.values()],
    }
    found = {name: dict(zip(ends, column, strict=True)) for name, column in table.items()}
    right, wrong, truth = found["right"], found["wrong"], found["truth"]
    # the disc within the inner root, as a share of the disc of starts, whose radius is 2s
    stay = (1 - 2 * lambertw(-1 / STRENGTHS[-1] / math.e).real) / 4
    lost = distance(ends["2.5"], HILL) < 0.4
    before, after = (float(reward(state[lost]).mean()) for state in (starts, ends["2.5"]))
    checks = [
        Check("width fixed, GR: share that stays right", stay, right["2.5, fixed"], 0.07, 1),
        Check("width fixed, GR: share on the hill", 0, wrong["2.5, fixed"], 0.01, 1 - stay,
              "absolute"),
        Check("width learnt, GR: share on the hill", 1 - stay, wrong["2.5"], 0.07, 0),
        Check("truth with GR - without", -(1 - stay) * PEAK[0], truth["2.5"] - truth["none"],
              0.07, 0),
        # the false theory: they stay as good as they began
        Check("proxy of those on the hill", HILL[0], after, 0.02, before),
    ]  # fmt: skip
    return checks, table


def constant_proxy() -> Check:
    """(3) On drawn pairs with drawn labels, the constant's loss less that of the true reward."""
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, PAIRS))
    prefers_first = draw.random(PAIRS) < expit(first - second)
    gap = np.where(prefers_first, first - second, second - first)
    excess = -np.log(expit(0.0)) + np.log(expit(gap))
    error = 4 * excess.std() / PAIRS**0.5
    entropy = float(norm(scale=2**0.5).expect(lambda x: entr(expit(x)) + entr(expit(-x))))
    # the false theory: for small gaps it is a quarter of the variance of the missing reward
    name, small_gaps = "constant proxy: excess loss", 1 / 4
    return Check(name, math.log(2) - entropy, excess.mean(), error, small_gaps, "absolute")


def check(progress: Progress = quiet) -> Outcome:
    """Threshold, two peaks, constant proxy."""
    progress("threshold")
    checks = [threshold()]
    progress("two peaks")
    ends, table = two_peaks()
    progress("constant proxy")
    return Outcome([*checks, *ends, constant_proxy()], {"shares": table})


def plot(tables: dict[str, Table]) -> Figure:
    """Where the starts end, and what that is worth to the proxy and in truth."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = tables["shares"]
    left.bar("strength", "right", data=shares, label="right peak")
    left.bar("strength", "wrong", bottom="right", data=shares, color="C3", label="wrong hill")
    left.set(ylabel="share of the starts", ylim=(0, 1.3), title="Where the starts end")
    places = np.arange(len(shares["strength"]))
    right.bar(places - 0.2, shares["proxy"], 0.4, color="C1", label="proxy")
    right.bar(places + 0.2, shares["truth"], 0.4, color="C2", label="truth")
    right.set(ylabel="mean reward at the end", ylim=(0, 4.6), title="GR lowers the truth")
    right.set_xticks(places, shares["strength"])
    for axes in (left, right):
        axes.set_xlabel("strength / critical strength")
        axes.legend(loc="upper right", frameon=False)
    return figure
