r"""What of gradient regularization survives Adam: signs, not lengths.

Statement
    flatopt hands :math:`c=g+\gamma Hg` to the base optimizer. Adam divides each coordinate by the
    root mean square of the c it has seen there, so a positive factor on a coordinate of c, constant
    in time, is divided out again. Hence Adam

    1. **cancels** GR wherever :math:`(Hg)_i=h_ig_i` with constant :math:`h_i>-1/\gamma`: in an
       axis-aligned bowl it takes the same path with and without GR, noise or not, at any strength;
    2. **reverses** coordinates with :math:`h_i<-1/\gamma`;
    3. **keeps**, of its first step, the signs of c. The share of coordinates that GR reverses
       (``optimizer.stats.reversed``) does not see what Adam divides out. The penalty ratio
       :math:`\|\gamma Hg\|/\|g\|` and the angle between g and c do: the angle is large in a bowl
       where Adam does nothing new, and tiny in one where it reverses a third of the coordinates.
    4. **is moved without a sign** where curvature differs between batches b: it rests where
       :math:`\mathbb E[(1+\gamma h_b)g_b]=0`, not where :math:`\mathbb E g_b=0`. So a share of 0
       does not mean that GR does nothing.

    How many signs: `preconditioned_turn`. In the long run, under noise: `preconditioned_noise`.

Assumptions
    Adam's own eps is 0. 1, 2: the strength is fixed (a ratio varies in time) and nothing clips the
    gradient by its norm. 3, two scales: the coordinates of g and Hg in a block are jointly
    Gaussian, as in a random bowl. 4: a small learning rate.

Derivation
    Replacing :math:`c_i` by :math:`d_ic_i` replaces :math:`m_i/\sqrt{v_i}` by
    :math:`\mathrm{sign}(d_i)\,m_i/\sqrt{v_i}`. 1, 2: here :math:`d_i=1+\gamma h_i`. 3: the first
    step is :math:`-\eta\,\mathrm{sign}(c)`; a factor :math:`d_i>0` changes angles, but no sign.
    4: v is the same for all batches, so the mean of c over them must vanish.

Falsified if
    GR changes Adam's path in an aligned bowl by more than 1e-9 of its length, ``stats.reversed`` is
    not what Adam reverses, the share of two scales is off by more than 5 %, or the place of rest by
    more than 3 %.

Source: derived here; the papers on GR (Karakida et al. 2023, Ackermann et al. 2026) have no
preconditioner. Seeds: 0 (checks), 0-2 (figure).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet
from theory.preconditioned_turn import LR, RATIOS, Loss, adam, bowl, first_step, step


def path_change(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> float:
    """How far GR moves the end of a noisy path in an aligned bowl, over the plain displacement."""
    curvatures = torch.tensor([3.0, 1.0, 0.1, 0.02], dtype=torch.float64)
    ends = []
    for strength in (0.0, 4.0):
        draw = torch.Generator().manual_seed(0)
        x = torch.ones(4, dtype=torch.float64, requires_grad=True)
        # a quadratic's difference is exact at any step
        optimizer = GradRegOptimizer(make([x]), strength, eps=1e-2)
        for _ in range(300):
            noise = torch.randn(4, generator=draw, dtype=torch.float64)
            step(optimizer, x, lambda x, noise=noise: (curvatures * x * x / 2 + noise * x).sum())
        ends.append(x.detach() - 1)
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


def aligned(seed: int) -> tuple[Tensor, Loss]:
    """An axis-aligned bowl: curvatures over decades, gradients of one scale."""
    draw = torch.Generator().manual_seed(seed)
    start, h = torch.randn(2, 3000, generator=draw, dtype=torch.float64)
    h = torch.exp(1.5 * h)
    return start / h, lambda x: (h * x * x).sum() / 2


def two_scales(seed: int) -> tuple[Tensor, Loss]:
    """A random bowl beside 30 coordinates of 3000 times its gradient, as of an embedding."""
    start, loss = bowl(seed)
    large = torch.full((30,), 3e3, dtype=torch.float64)
    return torch.cat([large, start]), lambda x: loss(x[30:]) + (x[:30] * x[:30]).sum() / 2


PLACES: dict[str, tuple[Callable[[int], tuple[Tensor, Loss]], slice]] = {
    "an aligned bowl": (aligned, slice(None)),
    "two scales of gradient": (two_scales, slice(30, None)),
    "one scale, axes at random": (bowl, slice(None)),
}


def cancelled() -> list[Check]:
    """Parts 1 and 2: an aligned bowl, an aligned saddle."""
    # the false theory: GR does to Adam's path what it does to that of SGD
    moved, wrong = (path_change(f) for f in (adam, lambda p: torch.optim.SGD(p, lr=LR)))
    h = 2 * torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    # at a start of ones g = h and Hg = h^2, so this ratio is a strength of 4
    ratio = 4 * float((h * h).norm() / h.norm())
    found = first_step(torch.ones_like(h), lambda x: (h * x * x / 2).sum(), ratio)
    beyond, negative = (float((h < edge).double().mean()) for edge in (-1 / 4, 0))
    return [
        Check("aligned bowl: change of path", 0, moved, 1e-9, wrong, "absolute"),
        # the false theory: any negative curvature reverses
        Check("strength 4: reversed where h < -1/4", beyond, found.reversed, 1e-12, negative),
    ]


def kept() -> list[Check]:
    """Part 3: what Adam reverses is what `stats.reversed` says, whatever the angle."""
    flat, steep = first_step(*aligned(0), 16.0), first_step(*two_scales(0), 16.0, slice(30, None))
    error = max(abs(f.told - f.reversed * share) for f, share in ((flat, 1), (steep, 3000 / 3030)))
    misled = abs(flat.angle - flat.reversed)
    return [
        # the false theories: the angle says it
        Check("aligned, ratio 16: reversed share", 0, flat.reversed, 1e-12, flat.angle, "absolute"),
        Check("two scales, ratio 16: reversed", steep.predicted, steep.reversed, 0.05, steep.angle),
        Check("stats.reversed: error", 0, error, 1e-6, misled, "absolute"),
    ]


def batches() -> list[Check]:
    """Part 4: two batches in turn, x and 2x^2 - x/2: where Adam rests, no sign being reversed."""
    rest, share = [], 0.0
    for strength in (0.0, 1.0):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        base = torch.optim.Adam([x], lr=5e-4, eps=1e-300)
        optimizer, seen = GradRegOptimizer(base, strength, eps=1e-2), []
        for t in range(6000):
            step(optimizer, x, lambda x, t=t: (x if t % 2 else 2 * x * x - x / 2).sum())
            share = max(share, optimizer.stats.numbers().get("reversed", 0.0))
            seen.append(x.item())
        rest.append(float(np.mean(seen[-1000:])))
    return [
        Check("two batches: rest without GR", -1 / 8, rest[0], 0.03, 3 / 40),
        # the false theory: what reverses no sign changes nothing
        Check("two batches: rest with strength 1", 3 / 40, rest[1], 0.03, -1 / 8),
        Check("two batches: reversed share", 0, share, 1e-12, 1, "absolute"),
    ]


def check(progress: Progress = quiet) -> Outcome:
    """What Adam cancels, and what it keeps."""
    progress("aligned bowls")
    checks = cancelled()
    progress("signs")
    checks += kept() + batches()
    rows = []
    for place, (make, block) in PLACES.items():
        for ratio in RATIOS:
            progress(f"{place}, ratio {ratio:g}")
            found = [first_step(*make(seed), ratio, block) for seed in (0, 1, 2)]
            _, share, _, angle, _ = (float(x) for x in np.mean(found, axis=0))
            rows.append((place, ratio, share, angle))
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = ("place", "ratio", "reversed", "angle / pi")
    return Outcome(checks, {"shares": dict(zip(names, columns, strict=True))})


def plot(tables: dict[str, Table]) -> Figure:
    """Angle and reversed share over the ratio, in three places: they part in two."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    place, ratio, share, angle = (np.array(column) for column in tables["shares"].values())
    for axes, name in zip(figure.subplots(1, 3, sharey=True), PLACES, strict=True):
        of = place == name
        axes.semilogx(ratio[of], share[of], "o-", color="tab:blue", label="reversed by Adam")
        axes.semilogx(ratio[of], angle[of], "s--", color="tab:orange", label="angle / pi")
        axes.set(title=name, xlabel="penalty ratio", ylim=(-0.02, 0.55))
    figure.axes[0].set_ylabel("share")
    figure.axes[0].legend(frameon=False)
    return figure
