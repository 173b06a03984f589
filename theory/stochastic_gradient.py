r"""What GR penalises when gradients come from batches: with one batch, their variance too.

Statement
    The gradient of B samples has :math:`\mathbb E\|\hat g\|^2=\|g\|^2+\mathrm{tr}\Sigma/B`, with
    g and H gradient and Hessian of the loss and :math:`\Sigma` the covariance of one sample's
    gradient; hats are estimates from the batch, :math:`\gamma` is the strength of GR. (i) GR with
    both gradients from one batch penalises that sum:
    :math:`\mathbb E\hat H\hat g=Hg+\tfrac1{2B}\nabla\mathrm{tr}\Sigma`; with independent halves a
    and b, :math:`\tfrac12[\hat H_b\hat g_a+\hat H_a\hat g_b]`, only its first part. (ii) One batch
    moves a minimum by :math:`-\tfrac\gamma{2B}H^{-1}\nabla\mathrm{tr}\Sigma+O(\gamma^2)`, halves do
    not.

Assumptions
    Independent samples, smooth losses; in the simulation small learning rates.

Derivation
    (i) A share 1/B of the pairs in :math:`\hat H\hat g` has one sample twice, with
    :math:`\mathbb E h_ig_i=Hg+\tfrac12\nabla\mathrm{tr}\Sigma`, where :math:`h_i,g_i` are the
    Hessian and the gradient of one sample; all others have :math:`\mathbb E h_ig_j=Hg`. (ii) Solve
    :math:`g+\gamma\mathbb E\hat H\hat g=0` around the minimum, where :math:`g=Hg=0`.

Falsified if
    |z| > 4, the first order is off by 1 %, a simulated mean by .05.

Source: Smith et al. 2021 (arXiv 2101.12176) find the same variance term in SGD's implicit GR.
Seeds: 0 (data and batches).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import root
from torch import Tensor
from torch.func import jacrev

from flatopt import gradreg_gradient
from theory.check import Check, Outcome, Progress, Table, quiet

Losses = Callable[[Tensor], Tensor]  # parameters (..., d) to the losses of all samples (..., n)


def parts(losses: Losses, weights: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    """g, H g, half the gradient of tr Sigma, and tr Sigma, by enumeration of the samples."""

    def moments(at: Tensor) -> Tensor:
        each = jacrev(losses)(at)
        square = (weights @ each).square().sum()
        return torch.stack([square, weights @ each.square().sum(-1) - square])

    slopes = jacrev(moments)(theta) / 2
    return weights @ jacrev(losses)(theta), slopes[0], slopes[1], moments(theta)[1]


def batches(weights: Tensor, size: int) -> Tensor:
    """The share of each sample in one random batch for every row of weights."""
    drawn = torch.multinomial(weights, size, replacement=True)
    return torch.zeros_like(weights).scatter_add_(1, drawn, weights.new_full(drawn.shape, 1 / size))


def one_batch(losses: Losses, theta: Tensor, shares: Tensor, strength: float) -> Tensor:
    """flatopt's gradient; each row of theta has its own batch."""
    param = theta.clone().requires_grad_()
    return gradreg_gradient(lambda: (shares * losses(param)).sum(), [param], strength, 1e-5)[0]


def halves(losses: Losses, theta: Tensor, a: Tensor, b: Tensor, strength: float) -> Tensor:
    """The same from two batches, with the penalty strength/2 g_a.g_b."""
    param = theta.clone().requires_grad_()
    g_a, g_b = (jacrev(lambda t, x=x: (x * losses(t)).sum())(param) for x in (a, b))
    (products,) = torch.autograd.grad((g_a * g_b).sum(), param)
    return (g_a + g_b + strength * products).detach() / 2


def least_squares() -> tuple[Losses, Tensor, Tensor]:
    """Twenty samples with skewed targets, their weights, and parameters to start from."""
    inputs, noise, theta = (torch.randn(s).double() for s in ((20, 4), 20, 4))
    weights = torch.ones(20).double() / 20
    return lambda at: (at @ inputs.T - noise.exp()) ** 2 / 2, weights, theta


def means_over_batches(losses: Losses, weights: Tensor, theta: Tensor) -> list[Check]:
    """(i) 100000 batches of eight, or of two halves: each mean in standard errors."""
    rows = 100_000
    g, hg, half_slope, trace = parts(losses, weights, theta)
    at = theta.expand(rows, 4)
    a, b = (batches(weights.expand(rows, 20), 4) for _ in range(2))
    norms = one_batch(losses, at, (a + b) / 2, 0).square().sum(1)
    # GR's gradients are seen in the direction in which the variance part points
    from_one = one_batch(losses, at, (a + b) / 2, 1) @ half_slope
    from_halves = halves(losses, at, a, b, 1) @ half_slope
    with_variance, without = (g + hg + half_slope / 8) @ half_slope, (g + hg) @ half_slope
    checks = []
    for name, values, predicted, rival in (
        ("|g_B|²", norms, g @ g + trace / 8, g @ g),
        ("GR from one batch", from_one, with_variance, without),
        ("GR from halves", from_halves, without, with_variance),
    ):
        error = values.std() / rows**0.5
        z, z_rival = (((mean - predicted) / error).item() for mean in (values.mean(), rival))
        checks.append(Check(f"B = 8, {name}: z", 0, z, 4, z_rival, "absolute"))
    return checks


def resting_points(losses: Losses, weights: Tensor, gammas: np.ndarray) -> Tensor:
    """Where the mean field of GR with one batch of four vanishes, for each strength."""

    def field(at: np.ndarray, gamma: float) -> np.ndarray:
        g, hg, half_slope, _ = parts(losses, weights, torch.tensor(at))
        return (g + gamma * (hg + half_slope / 4)).numpy()

    return torch.stack([torch.tensor(root(field, np.zeros(4), x, tol=1e-13).x) for x in gammas])


def simulated(losses: Losses, weights: Tensor, bottom: Tensor, to: Tensor, gamma: float) -> Tensor:
    """How far SGD rests from the minimum, in the direction ``to``: one batch of four, halves."""
    rows, seen = 1000, []
    plain = bottom.expand(rows, 4)  # subtracted, to take most of the noise away
    same, split = plain, plain + to  # each begins where its rival ends
    for _ in range(400):
        a, b = (batches(weights.expand(rows, 20), 2) for _ in range(2))
        same = same - 0.05 * one_batch(losses, same, (a + b) / 2, gamma)
        split = split - 0.05 * halves(losses, split, a, b, gamma)
        plain = plain - 0.05 * one_batch(losses, plain, (a + b) / 2, 0)
        seen.append(torch.stack([same - plain, split - plain]).mean(1) @ to / to.norm())
    return torch.stack(seen[200:]).mean(0)


def moved_minimum(losses: Losses, weights: Tensor) -> tuple[list[Check], dict]:
    """(ii) How far one batch of four moves the minimum: first order, exactly, by SGD."""
    gammas = np.array([1e-4, 0.05, 0.1, 0.2])
    bottom, *ends = resting_points(losses, weights, np.append(0, gammas))
    moved = torch.stack(ends) - bottom
    hessian = jacrev(lambda at: weights @ jacrev(losses)(at))(bottom)
    per_gamma = torch.linalg.solve(hessian, parts(losses, weights, bottom)[2]).norm().item() / 4
    exact, first_order = moved.norm(dim=1).numpy(), per_gamma * gammas
    by_sgd = [simulated(losses, weights, bottom, *x) for x in zip(moved, gammas, strict=True)]
    one, split = torch.stack(by_sgd).T.numpy()
    checks = [
        Check("moved minimum / first order", 1, exact[0] / first_order[0], 0.01, 2),
        Check("SGD, one batch: moved / exact", 1, one[-1] / exact[-1], 0.05, 0),
        Check("SGD, halves: moved / exact", 0, split[-1] / exact[-1], 0.05, 1, "absolute"),
    ]
    curves = {"exact": exact, "first order": first_order, "SGD": one, "SGD, halves": split}
    return checks, {"gamma": gammas, **curves}


def check(progress: Progress = quiet) -> Outcome:
    """Means over batches, and the minimum that one batch moves."""
    torch.manual_seed(0)
    losses, weights, theta = least_squares()
    progress("means over batches")
    checks = means_over_batches(losses, weights, theta)
    progress("moved minimum")
    moved, table = moved_minimum(losses, weights)
    return Outcome(checks + moved, {"moved": table})


def plot(tables: dict[str, Table]) -> Figure:
    """Distance between the minimum and where GR rests, over its strength."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    (across, gammas), *curves = tables["moved"].items()
    for name, y in curves:
        style = {"exact": "-", "first order": "--"}.get(name, "o")
        axes.plot(gammas, y, style, label=name)
    axes.set(xlabel=f"strength {across}", ylabel="distance from the minimum",
             title="One batch moves the minimum, halves do not")  # fmt: skip
    axes.legend(frameon=False)
    return figure
