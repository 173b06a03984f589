r"""What long cycles of a KL penalty with reference resets are: natural gradient steps.

Statement
    Minimise :math:`L+\beta\,\mathrm{KL}(\pi_\theta\|\pi_{ref})` with :math:`L=-\mathbb E_\pi r` and
    KL weight :math:`\beta`; the current policy becomes the reference after each cycle. g is the
    gradient of L, F the Fisher matrix of the policy. (i) Along an eigenvalue f of F a cycle of K
    gradient steps of length :math:`\eta` moves by :math:`-K\eta\varphi(x)g`, with
    :math:`\varphi(x)=(1-e^{-x})/x` and :math:`x=\beta K\eta f`: a plain step for small x, a natural
    gradient step :math:`-F^+g/\beta` for large x. (ii) An exact cycle of a log-linear policy is one
    step of implicit Euler of the natural gradient flow :math:`\dot\theta=v=-F^+g`:
    :math:`\theta'=\theta+v(\theta')/\beta`, for every :math:`\beta`. (iii) Tabular policies:
    :math:`v=r`, so i cycles lie on that flow and end where one KL to the first reference at
    :math:`\beta/i` ends; no gradient norm is rewarded or penalised. (iv) With fewer features a
    cycle leaves the flow by :math:`\tfrac12v'v/\beta^2` (v' is the Jacobian); the flow of
    :math:`L+\tfrac c\beta g^\top F^+g` is nearest for
    :math:`c=-\tfrac12w^\top v'v/w^\top w`, :math:`w=F^+\nabla(g^\top F^+g)`, of either sign;
    i cycles leave the one KL by :math:`\tfrac12i(i-1)/\beta^2` times a vector. (v) An exact cycle
    ends at :math:`\mathrm{KL}=g^\top F^+g/2\beta^2`: the KL measures a gradient norm.

Assumptions
    Exact gradients; log-linear policies. (i), (iv), (v): large :math:`\beta`.

Derivation
    (i) The flow :math:`\dot\delta=-g-\beta F\delta` over :math:`K\eta`. (ii) For such policies
    :math:`\nabla_\theta\mathrm{KL}(\pi_\theta\|\pi_{ref})=F(\theta)(\theta-\theta_{ref})`; set
    :math:`g+\beta\nabla\mathrm{KL}=0`. (iii) On logits :math:`Fr=-g`. (iv) Taylor:
    with :math:`h=1/\beta`, implicit Euler is :math:`hv+h^2v'v`, the flow has half of the second
    term, and c adds :math:`-ch^2w`; so i cycles leave the flow by :math:`\tfrac i2h^2v'v`, one of
    :math:`\beta/i` by :math:`\tfrac{i^2}2h^2v'v`. (v) :math:`\delta=-F^+g/\beta` in
    :math:`\tfrac12\delta^\top F\delta`.

Falsified if
    a formula is off by 1 %, an identity by 1e-8, a nearest c by .01.

Source: (iii) Ackermann et al. 2026 (arXiv 2602.18037), who state it for one KL. Seeds: 0-19.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import grad, jvp

from theory.bandit import Bandit
from theory.check import Check, Outcome, Progress, Table, quiet

Part = tuple[list[Check], dict]  # and the table of its panel


def problem(seed: int, features: int | None = 3) -> tuple[Bandit, Tensor]:
    """Eight actions with random rewards and features (None: tabular), and a random policy."""
    draw = torch.Generator().manual_seed(seed)
    r = torch.randn(8, generator=draw).double()
    rows = torch.randn(features, 8, generator=draw).double() if features else torch.eye(8).double()
    return Bandit(r, rows), torch.randn(len(rows), generator=draw).double()


def inverse(bandit: Bandit, theta: Tensor) -> Tensor:
    """The pseudo-inverse of the Fisher matrix."""
    return torch.linalg.pinv(bandit.parts(theta)[2], rtol=1e-9, hermitian=True)


def natural(bandit: Bandit, theta: Tensor) -> Tensor:
    """The natural gradient step v."""
    return -inverse(bandit, theta) @ bandit.parts(theta)[0]


def norm(bandit: Bandit, theta: Tensor) -> Tensor:
    """g'F^+g, the squared length of the natural gradient."""
    return -bandit.parts(theta)[0] @ natural(bandit, theta)


def shrinking(bandit: Bandit, theta: Tensor) -> Tensor:
    """w, whose flow -w would make that length shrink fastest."""
    return inverse(bandit, theta) @ grad(lambda t: norm(bandit, t))(theta)


def follow(bandit: Bandit, theta: Tensor, beta: float, c: float, cycles: int = 1) -> Tensor:
    """Where the natural gradient flow of L + c/beta g'F^+g is after the time of the cycles."""

    def drift(_: float, x: np.ndarray) -> np.ndarray:
        at = torch.tensor(x)
        plain = natural(bandit, at)
        return (plain - c / beta * shrinking(bandit, at) if c else plain).numpy()

    span = (0, cycles / beta)
    return torch.tensor(solve_ivp(drift, span, theta.numpy(), rtol=1e-10, atol=1e-12).y[:, -1])


def length_of_cycle() -> Part:
    """(i) Cycles of 400 steps along each eigenvector of F, at seven lengths."""
    bandit, start = problem(0)
    g, _, f = bandit.parts(start)
    values, basis = torch.linalg.eigh(f)
    x = values / values[-1] * 5 * torch.logspace(-2, 1, 7).double()[:, None]
    rows = []
    for eta in (x[:, -1] / (4e6 * values[-1])).tolist():
        move = bandit.path(start, eta, 400, 1e4, k=400)[-1] - start
        rows.append(basis.T @ move / (-400 * eta * basis.T @ g))
    x, measured = x.numpy(), torch.stack(rows).numpy()
    phi, order = (1 - np.exp(-x)) / x, np.argsort(x, None)
    checks = [
        # the false theory: the cycle is plain gradient steps
        Check(f"filter, x = {x[i, -1]:g}", phi[i, -1], measured[i, -1], 0.01, 1.0)
        for i in (2, 4, 6)
    ]
    columns = {"x": x, "phi(x)": phi, "1 - x/2": np.maximum(1 - x / 2, 0), "measured": measured}
    return checks, {name: column.flatten()[order] for name, column in columns.items()}


def exact_cycles() -> list[Check]:
    """(ii), (iii), (v) Implicit Euler, the tabular flow and its one KL, the KL as a thermometer."""
    tabular, logits = problem(0, None)
    narrow, start = problem(0)
    moved = (tabular.policy(tabular.exact(logits, 1, 5)) / tabular.policy(logits)).log()
    beta_of_one = 1 / np.polyfit(tabular.r, moved, 1)[0]
    cycles = tabular.exact(logits, 10, 5)
    flow, rewarded = (tabular.policy(follow(tabular, logits, 10, c, 5)) for c in (0, -0.5))
    end, far = narrow.exact(start, 1), narrow.exact(start, 1e3)
    implicit, explicit = (start + natural(narrow, at) for at in (end, start))
    pairs = [(narrow.exact(start, 4e3, i), narrow.exact(start, 4e3 / i)) for i in (2, 5)]
    gap2, gap5 = (torch.dist(*pair).item() for pair in pairs)
    kl = (narrow.value(far, start, 1) - narrow.value(far, start)).item()
    p = narrow.policy(start)
    variance = (p @ narrow.r**2 - (p @ narrow.r) ** 2).item()
    return [
        # the rival: an explicit natural gradient step
        Check("3 features, beta 1: cycle less implicit Euler", 0, torch.dist(end, implicit).item(),
              1e-8, torch.dist(explicit, implicit).item(), "absolute"),
        Check("tabular, 5 cycles: beta of the one KL", 0.2, beta_of_one, 0.01, 1),
        # the rival rewards the norm: the flow of L - g'F^+g / 2 beta
        Check("tabular, 5 cycles: distance to the flow of L", 0,
              torch.dist(tabular.policy(cycles), flow).item(), 1e-8,
              torch.dist(rewarded, flow).item(), "absolute"),
        Check("3 features: gap of 5 cycles / of 2", 10, gap5 / gap2, 0.01, 4),
        # the rival: g'F^+g of a tabular policy
        Check("3 features: KL × 2 beta²", norm(narrow, start).item(), 2e6 * kl, 0.01, variance),
    ]  # fmt: skip


def nearest_flow() -> Part:
    """(iv) How far one cycle leaves the flow of L, and the nearest c, in 20 bandits."""
    beta, rows = 1e3, []
    for seed in range(20):
        bandit, start = problem(seed)
        bend = jvp(lambda t, b=bandit: natural(b, t), (start,), (natural(bandit, start),))[1] / 2
        w = shrinking(bandit, start)
        left = (bandit.exact(start, beta) - follow(bandit, start, beta, 0)) * beta**2
        # the flow of c = -1/2 leaves that of c = 0 by w / 2
        base = (follow(bandit, start, beta, -0.5) - follow(bandit, start, beta, 0)) * beta**2
        c = (-(bend @ w) / (w @ w)).item(), (-(left @ base) / (base @ base) / 2).item()
        rows.append((*c, bend.norm().item(), left.norm().item(), w.norm().item() / 2))
    predicted, measured, bend, left, rewarded = np.array(rows).T
    c = "nearest c, 20 bandits"
    checks = [
        Check("one cycle: distance to the flow × beta²", bend[0], left[0], 0.01, rewarded[0]),
        # the rivals: the flow that a Euclidean policy would follow, and a norm always rewarded
        Check(f"{c}: largest error", 0, abs(measured - predicted).max(), 0.01,
              abs(measured + 0.25).max(), "absolute"),
        Check(f"{c}: share below 0", (predicted < 0).mean(), (measured < 0).mean(), 0.01, 1),
    ]  # fmt: skip
    return checks, {"predicted c": predicted, "measured c": measured}


def check(progress: Progress = quiet) -> Outcome:
    """Length of a cycle, exact cycles, and the flow they are nearest to."""
    progress("length of a cycle")
    filtered, filter_table = length_of_cycle()
    progress("exact cycles")
    exact = exact_cycles()
    progress("nearest flow")
    nearest, nearest_table = nearest_flow()
    return Outcome(
        filtered + exact + nearest, {"filter": filter_table, "nearest_flow": nearest_table}
    )


def plot(tables: dict[str, Table]) -> Figure:
    """A cycle's length over x; the nearest c, predicted and measured."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    (_, x), *curves = tables["filter"].items()
    for name, y in curves:
        left.semilogx(x, y, "ko" if name == "measured" else "-", label=name)
    left.set(xlabel="x", ylabel="length / K steps", title="One cycle: from g to natural gradient")
    left.legend(frameon=False)
    (across, x), (up, y) = tables["nearest_flow"].items()
    right.plot(x, y, "ko")
    right.axline((0, 0), slope=1, color="tab:blue")
    right.axhline(-0.5, color="tab:red", ls=":", label="the norm rewarded: -1/2")
    right.set(xlabel=across, ylabel=up, title="Nearest flow: 3 features, 20 bandits")
    right.legend(frameon=False)
    return figure
