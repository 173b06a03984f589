r"""What GR penalises when gradients come from batches: with one batch, their variance too.

Statement
    The gradient of B samples has :math:`\mathbb E\|\hat g\|^2=\|g\|^2+\mathrm{tr}\Sigma/B`, with
    :math:`\Sigma` the covariance of one sample's gradient. (i) GR with both gradients from one
    batch penalises that sum: :math:`\mathbb E\hat H\hat g=Hg+\tfrac1{2B}\nabla\mathrm{tr}\Sigma`;
    with independent halves, :math:`\tfrac12[\hat H_b\hat g_a+\hat H_a\hat g_b]`, only its first
    part. (ii) One batch moves a minimum by :math:`-\tfrac\gamma{2B}H^{-1}\nabla\mathrm{tr}
    \Sigma+O(\gamma^2)`, halves do not. (iii) Policy gradients, uniform policy, n actions:
    :math:`\mathrm{tr}\Sigma=(n-2)\|g\|^2`, :math:`\tfrac12\nabla\mathrm{tr}\Sigma=(n-3)Hg`: noise
    leads in batches below n - 2 and n - 3. Two actions, probabilities p, q: both are
    :math:`(p-q)^2/pq`. (iv) The variance part pushes down actions with large
    :math:`A_a^2\|s_a\|^2`, whatever the sign of A. On a policy unrelated to r that raises J in half
    of the cases; on a trained one they are the rare bad actions: entropy falls and J rises.

Assumptions
    Independent samples, smooth losses. Policies: loss :math:`-A\pi_\theta/\pi_{old}` with reused
    samples (a fixed law), A with the exact mean as baseline, a parameter for each action.

Derivation
    A share 1/B of the pairs in :math:`\hat H\hat g` has one sample twice, with :math:`\mathbb E
    h_ig_i=Hg+\tfrac12\nabla\mathrm{tr}\Sigma`. Uniform: :math:`g=-A/n`, :math:`\|s\|^2=1-1/n`.
    Two actions: as old is fixed, both parts are multiples of :math:`p^2q^2`.

Falsified if
    |z| > 4, a formula is off by 1 %, a mean over batches or a share by .05, a correlation by .15.

Source: Smith et al. 2021 (arXiv 2101.12176) find the same variance term in SGD's implicit GR.
Seeds: 0 (data and batches), 0-4 (300 bandits each, rewards N(0, 1), trained from uniform).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import root
from torch import Tensor
from torch.func import jacrev, vmap
from torch.linalg import vecdot

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


def bandit(logits: Tensor, r: Tensor) -> tuple[Losses, Tensor]:
    """The loss of each action with reused samples, and the old policy."""
    old = logits.softmax(-1)
    return lambda z: (vecdot(old, r)[..., None] - r) * (z.log_softmax(-1) - old.log()).exp(), old


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


def check(progress: Progress = quiet) -> Outcome:
    """Batches of least squares, the moved minimum, policies and their entropy."""
    torch.manual_seed(0)
    n, rows = 20, 100_000
    inputs, noise, theta = (torch.randn(s).double() for s in ((n, 4), n, 4))
    weights = torch.ones(n).double() / n

    def losses(at: Tensor) -> Tensor:
        return (at @ inputs.T - noise.exp()) ** 2 / 2

    def field(at: np.ndarray, gamma: float) -> np.ndarray:
        g, hg, extra, _ = parts(losses, weights, torch.tensor(at))
        return (g + gamma * (hg + extra / 4)).numpy()

    progress("least squares")
    g, hg, extra, trace = parts(losses, weights, theta)
    at, a, b = theta.expand(rows, 4), *(batches(weights.expand(rows, n), 4) for _ in range(2))
    norms = one_batch(losses, at, (a + b) / 2, 0).square().sum(1)
    one, two = one_batch(losses, at, (a + b) / 2, 1) @ extra, halves(losses, at, a, b, 1) @ extra
    biased, unbiased = (g + hg + extra / 8) @ extra, (g + hg) @ extra
    checks = []
    for name, values, true, false in (
        ("|g_B|²", norms, g @ g + trace / 8, g @ g),
        ("GR from one batch", one, biased, unbiased),
        ("GR from halves", two, unbiased, biased),
    ):
        z, rival = ((x - true) / values.std() * rows**0.5 for x in (values.mean(), false))
        checks.append(Check(f"B = 8, {name}: z", 0, z.item(), 4, rival.item(), "absolute"))

    gammas = np.array([1e-4, 0.05, 0.1, 0.2])
    bottom, *ends = (torch.tensor(root(field, theta, x, tol=1e-13).x) for x in (0.0, *gammas))
    line = torch.linalg.solve(inputs.T @ inputs / n, parts(losses, weights, bottom)[2]).norm() / 4
    moved, sgd = torch.stack(ends) - bottom, []
    for gamma, to in zip(gammas, moved, strict=True):
        plain, seen = bottom.expand(1000, 4), []  # subtracted, to take most of the noise away
        same, split = plain, plain + to  # each begins where its rival ends
        for _ in range(400):
            a, b = (batches(weights.expand(1000, n), 2) for _ in range(2))
            same = same - 0.05 * one_batch(losses, same, (a + b) / 2, gamma)
            split = split - 0.05 * halves(losses, split, a, b, gamma)
            plain = plain - 0.05 * one_batch(losses, plain, (a + b) / 2, 0)
            seen.append(torch.stack([same - plain, split - plain]).mean(1) @ to / to.norm())
        sgd.append(torch.stack(seen[200:]).mean(0).tolist())
    far, line, (one, two) = moved.norm(dim=1).numpy(), line.item() * gammas, np.transpose(sgd)

    progress("policies")
    draws = [torch.Generator().manual_seed(seed) for seed in range(5)]
    r = torch.cat([torch.randn(300, 10, generator=draw).double() for draw in draws])
    path = [torch.zeros_like(r)]
    for _ in range(40):
        p = path[-1].softmax(-1)
        path.append(path[-1] + p * (r - vecdot(p, r)[:, None]))
    logits = torch.stack([path[step] for step in (0, 1, 2, 3, 5, 8, 12, 20, 40)])
    enumerated = vmap(lambda z, r: parts(*bandit(z, r), z))
    g, hg, extra, trace = vmap(enumerated, (0, None))(logits, r)
    sizes = {"|g|²": trace / vecdot(g, g), "GR": extra.norm(dim=-1) / hg.norm(dim=-1)}
    p = logits.softmax(-1)
    a = r - vecdot(p, r)[..., None]
    gained = ((vecdot(p, r) - r.mean(-1)) / (r.max(-1)[0] - r.mean(-1))).mean(-1).clamp(0).numpy()
    up = -p * (p.log() - vecdot(p, p.log())[..., None])  # the gradient of the entropy
    shares = [(vecdot(x, y) > 0).double().mean(1).numpy() for x in (extra, hg) for y in (up, g)]
    push = -(a**2) * (1 - 2 * p + vecdot(p, p)[..., None])  # -A² |s|²
    ranks = [x[5].argsort(-1).argsort(-1) - 4.5 for x in (-extra, push)]
    start, (g, hg, extra) = logits[5].repeat(300, 1), (x[5] for x in (g, hg, extra))
    sampled, old = bandit(start, r.repeat(300, 1))
    drawn = batches(old, 8)
    square = one_batch(sampled, start, drawn, 0).square().sum(-1).view(300, -1).mean(0)
    tilt = one_batch(sampled, start, drawn, 1).view(300, -1, 10).mean(0) - g - hg
    size = 8 * (square / vecdot(g, g) - 1).mean().item()
    size_gr = 8 * (vecdot(tilt, extra) / extra.norm(dim=-1) / hg.norm(dim=-1)).mean().item()
    _, h2, v2, _ = enumerated(torch.tensor([[0.9, 0.1]]).double().log(), torch.eye(2)[:1].double())
    checks += [
        Check("moved minimum / first order", 1, far[0] / line[0], 0.01, 2),
        Check("SGD, one batch: moved / exact", 1, one[-1] / far[-1], 0.05, 0),
        Check("SGD, halves: moved / exact", 0, two[-1] / far[-1], 0.05, 1, "absolute"),
        Check("uniform, n = 10: size for |g|²", 8, sizes["|g|²"][0].mean().item(), 1e-9, 10),
        Check("uniform, n = 10: size for GR", 7, sizes["GR"][0].mean().item(), 1e-9, 10),
        # the rivals: a law that moves with the policy, n - 2, n - 3
        Check("p = .9, q = .1: size for GR", 64 / 9, (v2.norm() / h2.norm()).item(), 0.01, 14 / 9),
        Check("half trained: size for |g|²", sizes["|g|²"][5].mean().item(), size, 0.05, 8),
        Check("half trained: size for GR", sizes["GR"][5].mean().item(), size_gr, 0.05, 7),
        Check("uniform: share where J rises", 0.5, shares[1][0], 0.05, 1, "absolute"),
        Check("half trained: share where J rises", 1, shares[1][5], 0.05, 0.5, "absolute"),
        Check("half trained: share where entropy falls", 1, shares[0][5], 0.05, 0.5, "absolute"),
        Check("half trained: ranks", 1, vecdot(*ranks).mean().item() / 82.5, 0.15, 0, "absolute"),
    ]
    moves = {"gamma": gammas, "exact": far, "first order": line, "SGD": one, "SGD, halves": two}
    spread = {f"{k}, {q} %": np.percentile(x, q, 1) for k, x in sizes.items() for q in (10, 50, 90)}
    names = ("entropy falls", "J rises", "Hg: entropy falls", "Hg: J rises")
    # to first order nothing changes the entropy of a uniform policy
    effects = {name: share[1:] for name, share in zip(names, shares, strict=True)}
    sized, acts = {"gain reached": gained, **spread}, {"gain reached": gained[1:], **effects}
    return Outcome(checks, {"moved": moves, "sizes": sized, "effects": acts})


def plot(tables: dict[str, Table]) -> Figure:
    """Each table as one panel: its first column across, the others as curves."""
    texts = (
        ("moved", "One batch moves the minimum, halves do not", "distance", "linear"),
        ("sizes", "Batch size below which noise leads", "samples", "log"),
        ("effects", "What the variance part and Hg do", "share of bandits", "linear"),
    )
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (name, title, label, scale) in zip(figure.subplots(1, 3).flat, texts, strict=True):
        (across, x), *curves = tables[name].items()
        for curve, y in curves:
            style = "o" if "SGD" in curve else ":" if curve[-4:] in ("10 %", "90 %") else "-"
            axes.plot(x, y, style, label=curve)
        axes.set(title=title, xlabel=across, ylabel=label, yscale=scale)
        axes.legend(frameon=False)
    return figure
