r"""What GR from one batch penalises in policy gradients: how large the variance part is, and does.

Statement
    GR from one batch of B samples follows :math:`Hg+\tfrac1{2B}\nabla\mathrm{tr}\Sigma`
    (stochastic_gradient), with g and H gradient and Hessian of the loss and :math:`\Sigma` the
    covariance of one sample's gradient. A policy over n actions has logits as its parameters; A is
    the advantage, s the score, J the expected reward. (i) Uniform policy:
    :math:`\mathrm{tr}\Sigma=(n-2)\|g\|^2`, :math:`\tfrac12\nabla\mathrm{tr}\Sigma=(n-3)Hg`: noise
    leads in batches below n - 2 and n - 3. Two actions, probabilities p, q: both are
    :math:`(p-q)^2/pq`. (ii) So do batches drawn from a half-trained policy, at the enumerated
    sizes. (iii) The variance part pushes down rare samples with a large advantage of either sign:
    it sees :math:`A_a^2\|s_a\|^2`. On a policy unrelated to r that raises J in half of the cases;
    on a half-trained one they are the rare bad actions: entropy falls and J rises.

Assumptions
    Independent samples; loss :math:`-A\pi_\theta/\pi_{old}` with reused samples (a fixed law), A
    with the exact mean as baseline, a parameter for each action.

Derivation
    (i) Uniform: :math:`g=-A/n`, :math:`\|s\|^2=1-1/n`. Two actions: as old is fixed, both parts are
    multiples of :math:`p^2q^2`. (iii) One sample's gradient is :math:`-A_as_a\pi_a/\pi_{old,a}`:
    its square does not know the sign of A. Near a deterministic policy :math:`\|s\|` is small for
    the likely action and above 1 for the others: the part lowers their probability, hence the
    entropy; in between this is measured.

Falsified if
    a formula is off by 1 %, a mean over batches or a share by .05, a rank correlation by .15.

Source: stochastic_gradient, and the score function of a softmax. Seeds: 0 (batches), 0-4 (300
bandits each, rewards N(0, 1), trained from uniform).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap
from torch.linalg import vecdot

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.stochastic_gradient import Losses, batches, one_batch, parts

STEPS = (0, 1, 2, 3, 5, 8, 12, 20, 40)  # of training, at which the bandits are looked at
UNIFORM, HALF = 0, 5  # places in STEPS


def bandit(logits: Tensor, r: Tensor) -> tuple[Losses, Tensor]:
    """The loss of each action with reused samples, and the old policy."""
    old = logits.softmax(-1)
    return lambda z: (vecdot(old, r)[..., None] - r) * (z.log_softmax(-1) - old.log()).exp(), old


enumerated = vmap(lambda logits, r: parts(*bandit(logits, r), logits))


@dataclass
class Trained:
    """1500 bandits (second axis) at each of STEPS (first axis), all by enumeration.

    ``half_slope`` is half the gradient of tr Sigma, ``gained`` the share of the possible gain.
    """

    r: Tensor
    logits: Tensor
    g: Tensor
    hg: Tensor
    half_slope: Tensor
    trace: Tensor
    gained: np.ndarray


def trained() -> Trained:
    """Ten actions, Gaussian rewards, plain gradient ascent from the uniform policy."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(5)]
    r = torch.cat([torch.randn(300, 10, generator=draw).double() for draw in draws])
    path = [torch.zeros_like(r)]
    for _ in range(max(STEPS)):
        p = path[-1].softmax(-1)
        path.append(path[-1] + p * (r - vecdot(p, r)[:, None]))
    logits = torch.stack([path[step] for step in STEPS])
    gained = (vecdot(logits.softmax(-1), r) - r.mean(-1)) / (r.max(-1)[0] - r.mean(-1))
    share = gained.mean(-1).clamp(0).numpy()
    g, hg, half_slope, trace = vmap(enumerated, (0, None))(logits, r)
    return Trained(r, logits, g, hg, half_slope, trace, share)


def batch_sizes(bandits: Trained) -> tuple[list[Check], dict]:
    """(i) The sizes below which noise leads: uniform, two actions, in training."""
    sizes = {
        "|g|²": bandits.trace / vecdot(bandits.g, bandits.g),
        "GR": bandits.half_slope.norm(dim=-1) / bandits.hg.norm(dim=-1),
    }
    two = torch.tensor([[0.9, 0.1]]).double().log()
    _, hg, half_slope, _ = enumerated(two, torch.tensor([[1.0, 0]]).double())
    checks = [
        Check(f"uniform, n = 10: size for {name}", n, size[UNIFORM].mean().item(), 1e-9, 10)
        for (name, size), n in zip(sizes.items(), (8, 7), strict=True)
    ]
    # the rival: a law that moves with the policy
    settled = (half_slope.norm() / hg.norm()).item()
    checks.append(Check("p = .9, q = .1: size for GR", 64 / 9, settled, 0.01, 14 / 9))
    quantiles = {
        f"{name}, {q} %": np.percentile(size, q, axis=1)
        for name, size in sizes.items()
        for q in (10, 50, 90)
    }
    return checks, {"gain reached": bandits.gained, **quantiles}


def drawn_batches(bandits: Trained) -> list[Check]:
    """(ii) 300 batches of eight for each half-trained bandit: do they show the enumerated sizes?"""
    g, hg, half_slope = (x[HALF] for x in (bandits.g, bandits.hg, bandits.half_slope))
    at = bandits.logits[HALF].repeat(300, 1)
    losses, old = bandit(at, bandits.r.repeat(300, 1))
    shares = batches(old, 8)
    square = one_batch(losses, at, shares, 0).square().sum(-1).view(300, -1).mean(0)
    noise = one_batch(losses, at, shares, 1).view(300, -1, 10).mean(0) - g - hg
    along = vecdot(noise, half_slope) / half_slope.norm(dim=-1)
    size, size_gr = bandits.trace[HALF] / vecdot(g, g), half_slope.norm(dim=-1) / hg.norm(dim=-1)
    seen, seen_gr = 8 * (square / vecdot(g, g) - 1), 8 * along / hg.norm(dim=-1)
    # the rivals: the sizes stay those of the uniform policy
    return [
        Check("half trained: size for |g|²", size.mean().item(), seen.mean().item(), 0.05, 8),
        Check("half trained: size for GR", size_gr.mean().item(), seen_gr.mean().item(), 0.05, 7),
    ]


def entropy_and_reward(bandits: Trained) -> tuple[list[Check], dict]:
    """(iii) Shares of bandits in which a step against the variance part, or Hg, does what."""
    p = bandits.logits.softmax(-1)
    up = -p * (p.log() - vecdot(p, p.log())[..., None])  # the gradient of the entropy
    # a step along -x lowers the entropy where x.up > 0, and raises J where x.g > 0, as g = -dJ
    falls, rises, hg_falls, hg_rises = (
        (vecdot(part, slope) > 0).double().mean(1).numpy()
        for part in (bandits.half_slope, bandits.hg)
        for slope in (up, bandits.g)
    )
    a = bandits.r - vecdot(p, bandits.r)[..., None]
    push = -(a**2) * (1 - 2 * p + vecdot(p, p)[..., None])  # -A² |s|²
    ranks = [x[HALF].argsort(-1).argsort(-1) - 4.5 for x in (-bandits.half_slope, push)]
    correlation = vecdot(*ranks).mean().item() / 82.5
    checks = [
        Check("uniform: share where J rises", 0.5, rises[UNIFORM], 0.05, 1, "absolute"),
        Check("half trained: share where J rises", 1, rises[HALF], 0.05, 0.5, "absolute"),
        Check("half trained: share where entropy falls", 1, falls[HALF], 0.05, 0.5, "absolute"),
        Check("half trained: ranks", 1, correlation, 0.15, 0, "absolute"),
    ]
    effects = {
        "entropy falls": falls,
        "J rises": rises,
        "Hg: entropy falls": hg_falls,
        "Hg: J rises": hg_rises,
    }
    # to first order nothing changes the entropy of a uniform policy
    later = {name: share[1:] for name, share in effects.items()}
    return checks, {"gain reached": bandits.gained[1:], **later}


def check(progress: Progress = quiet) -> Outcome:
    """Batch sizes at which noise leads, by enumeration and in batches; entropy and reward."""
    torch.manual_seed(0)
    progress("training")
    bandits = trained()
    progress("batch sizes")
    sizes, sizes_table = batch_sizes(bandits)
    progress("batches")
    drawn = drawn_batches(bandits)
    progress("entropy and reward")
    effects, effects_table = entropy_and_reward(bandits)
    return Outcome(sizes + drawn + effects, {"sizes": sizes_table, "effects": effects_table})


def plot(tables: dict[str, Table]) -> Figure:
    """Each table as one panel: its first column across, the others as curves."""
    texts = (
        ("sizes", "Batch size below which noise leads", "samples", "log"),
        ("effects", "What the variance part and Hg do", "share of bandits", "linear"),
    )
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, title, label, scale) in zip(figure.subplots(1, 2).flat, texts, strict=True):
        (across, x), *curves = tables[name].items()
        for curve, y in curves:
            axes.plot(x, y, ":" if curve[-4:] in ("10 %", "90 %") else "-", label=curve)
        axes.set(title=title, xlabel=across, ylabel=label, yscale=scale)
        axes.legend(frameon=False)
    return figure
