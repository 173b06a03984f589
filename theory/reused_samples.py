r"""What the second gradient of GR is when a policy gradient reuses the samples of the first.

Statement
    L = -E[R]. Sequences y of T tokens are drawn once, at theta; their advantage is A = R - b. The
    losses in use have the right gradient g at theta; elsewhere theirs is
    :math:`-\mathbb E[A\sum_tc_t\nabla\log\pi_t]`, and the ratio c decides what GR sees. With
    :math:`s_t=\nabla\log\pi_t`, :math:`s=\sum_ts_t`, :math:`C=\nabla^2\log p(y)` its Jacobian is

    - sequence (the ratio of the whole): :math:`-\mathbb E[A(C+ss^\top)]=\nabla^2L`, for any b;
    - token (GRPO, PPO): :math:`-\mathbb E[A(C+\sum_ts_ts_t^\top)]`, no products between tokens;
    - length (GSPO): :math:`-\mathbb E[A(C+ss^\top/T)]`;
    - one (old log-probs taken anew): :math:`-\mathbb E[AC]`, for one action with logits z
      :math:`\mathbb E[A]F-\mathbb E[A(\nabla^2z-\mathbb E\nabla^2z)]`. Where the logits are the
      parameters and the baseline is the mean this is zero, and GR is silently off.

    PPO's clip: a shift along g moves ratios away from it (few are clipped), one against g into it.

Assumptions
    Expectations over all sequences, of one length T; the samples are those of theta (on policy).

Derivation
    c is the product of the tokens' ratios, each token's own, their geometric mean, or 1. At theta
    it is 1 and its gradient is s, :math:`s_t`, s/T, 0; use the product rule. A double backward
    takes the *value* of c as constant, which trainers detach: it sees "token" in all four. Clip:
    for logits :math:`\log c=\pm\epsilon g+const`, so :math:`\mathbb E[A\log c]=\mp\epsilon\|g\|^2`.

Falsified if
    a product is off its formula by 1e-6, or a ratio of 1 gives more than 1e-9 where 0 is due.

Source: Shao et al. 2024 (arXiv 2402.03300), Zheng et al. 2025 (arXiv 2507.18071). Seeds: 0, for 100
bandits, 20 networks, and 100 sequence problems for each length and reward.
"""

from __future__ import annotations

from itertools import product as pairs

import torch
from matplotlib.figure import Figure
from torch import Tensor, cosine_similarity
from torch.func import hessian, vmap

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.policy_products import KINDS, derived, found, linear

COLUMNS = "reward,tokens,ratio,how,error predicted,cosine predicted,error,cosine,10 %,90 %"


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def logits(inputs: Tensor, theta: Tensor) -> Tensor:
    """Of a tanh network 3-4-5, for one input."""
    return torch.tanh(inputs @ theta[:12].view(3, 4)) @ theta[12:].view(4, 5)


def compare(product: Tensor, hg: Tensor) -> list[float]:
    """Over the seeds: median error over |Hg|, median cosine to Hg, its 10 % and 90 % quantiles."""
    product, hg = product / hg.norm(dim=1, keepdim=True), hg / hg.norm(dim=1, keepdim=True)
    error, cosine = (product - hg).norm(dim=1), cosine_similarity(product, hg)
    return [error.median().item(), *(cosine.quantile(q).item() for q in (0.5, 0.1, 0.9))]


def one_action(draw: torch.Generator) -> list[Check]:
    """Bandits whose parameters are the logits: products under three baselines, and PPO's clip."""
    theta, reward = normal(draw, 100, 10), normal(draw, 100, 10).exp()
    bandit = (linear(10, 1), torch.eye(10).double().expand(100, 1, 10, 10), theta)
    weight, g, hg, *_ = derived(*bandit, reward)
    p, checks, offs = theta.softmax(1), [], []
    fisher, mean = p * (g - (p * g).sum(1, keepdim=True)), (p * reward).sum(1, keepdim=True)

    def along(product: Tensor) -> float:
        return ((g * product).sum(1) / (g * fisher).sum(1)).median().item()

    for name, b in (("mean", 0 * mean), ("none", mean), ("mean + 1", 0 * mean - 1)):
        fixed, one = (found(kind, *bandit, weight + p * b)[0] for kind in ("token", "one"))
        offs.append(((fixed - hg).norm(dim=1) / hg.norm(dim=1)).max().item())
        # E[A] is b; if false: every ratio gives H g
        name = f"one, baseline {name}: product / Fg"
        checks.append(Check(name, along(b * fisher), along(one), 1e-9, along(hg), "absolute"))
    checks.append(Check("old fixed, any baseline: error", 0, max(offs), 1e-6, 1, "absolute"))

    ratios = [(theta + side * g).softmax(1) / p for side in (1, -1)]
    cuts = [torch.where(weight > 0, ratio > 1.2, ratio < 0.8) for ratio in ratios]
    cuts += [cut[..., 0] for _, cut in found("token", *bandit, weight, 1.0, limit=0.2)[1][1:]]
    ahead, behind, *got = ((p * cut).sum(1).mean().item() for cut in cuts)
    checks.append(Check("clipped at eps 1, along g", ahead, got[0], 1e-6, behind))
    checks.append(Check("clipped at eps 1, against g", behind, got[1], 1e-6, ahead))
    return checks


def networks(draw: torch.Generator) -> Check:
    """A ratio of one keeps what the curvature of a network's logits contributes."""
    inputs, theta, reward = normal(draw, 20, 3), normal(draw, 20, 32), normal(draw, 20, 5)
    network = (lambda x, at: logits(x, at).log_softmax(-1)[:, None], inputs, theta)
    weight, g, hg, *_ = derived(*network, reward)
    curvature = vmap(hessian(logits, argnums=1))(inputs, theta)
    due = -torch.einsum("sa,sapq,sq->sp", weight, curvature, g)
    got = found("one", *network, weight)[0]
    return Check("one, network: cosine", compare(due, hg)[1], compare(got, hg)[1], 1e-6, 0)


def sequences(draw: torch.Generator, given: str, length: int) -> tuple[list[tuple], float, float]:
    """Rows of the table for 100 problems; the worst error of g, and of the products."""
    n, rows, gaps, offs = 3**length, [], [], []
    features, theta = normal(draw, 100, n // 2, 3, 6), normal(draw, 100, 6) / 2
    reward = normal(draw, 100, n)
    if given == "one right":
        reward = (reward == reward.max(1, keepdim=True)[0]).double()
    problem = (linear(3, length), features, theta)
    reward /= derived(*problem, reward)[1].norm(dim=1, keepdim=True)  # |g| = 1
    weight, g, hg, *products = derived(*problem, reward)
    for kind, own in zip(KINDS, products, strict=True):
        for eps, how, due in ((1e-5, "difference", own), (None, "double", products[1])):
            got, passes = found(kind, *problem, weight, eps)
            gaps.append(((passes[0][0] - g).norm() / g.norm()).item())
            offs.append(((got - due).norm(dim=1) / hg.norm(dim=1)).max().item())
            rows.append((given, length, kind, how, *compare(due, hg)[:2], *compare(got, hg)))
    return rows, max(gaps), max(offs)


def three_tokens(rows: list[tuple]) -> list[Check]:
    """Medians over the problems with three tokens and random rewards."""
    of = {row[2:4]: row[4:] for row in rows if row[:2] == ("random", 3)}
    rival = of["length", "difference"][0]  # GSPO's 1 / T is not made up for
    off = of["sequence", "difference"][2]
    checks = [Check("sequence, 3 tokens: error", 0, off, 1e-6, rival, "absolute")]
    for kind in KINDS[1:]:  # if false: every ratio gives H g
        due, along, error, cosine, *_ = of[kind, "difference"]
        checks.append(Check(f"{kind}, 3 tokens: error", due, error, 1e-6, 0))
        checks.append(Check(f"{kind}, 3 tokens: cosine", along, cosine, 1e-6, 1))
    for kind in ("sequence", "one"):  # if false: a double backward sees the ratio
        along, cosine, own = of[kind, "double"][1], of[kind, "double"][3], of[kind, "difference"][1]
        checks.append(Check(f"{kind}, double backward: cosine", along, cosine, 1e-6, own))
    return checks


def check(progress: Progress = quiet) -> Outcome:
    """One action, PPO's clip, networks, sequences."""
    draw = torch.Generator().manual_seed(0)
    checks = [*one_action(draw), networks(draw)]
    rows, gaps, offs = [], [], []
    for given, length in pairs(("random", "one right"), range(1, 7)):
        progress(f"{length} tokens, reward: {given}")
        more, gap, off = sequences(draw, given, length)
        rows, gaps, offs = rows + more, [*gaps, gap], [*offs, off]
    exact = three_tokens(rows)
    checks += [
        Check("all ratios: error of g", 0, max(gaps), 1e-12, 0.5, "absolute"),
        Check("all ratios: product off formula", 0, max(offs), 1e-6, exact[0].wrong, "absolute"),
        *exact,
    ]
    table = dict(zip(COLUMNS.split(","), zip(*rows, strict=True), strict=True))
    return Outcome(checks, {"sequences": {**table}})


def plot(tables: dict[str, Table]) -> Figure:
    """How far each ratio's product points along the true one, over the length."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rows = list(zip(*tables["sequences"].values(), strict=True))
    titles = {"random": "random reward for each sequence", "one right": "one sequence is right"}
    for axes, rewards in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        for kind in KINDS:
            line = [row for row in rows if row[0] == rewards and row[2:4] == (kind, "difference")]
            tokens, cosine, low, high = zip(*((row[1], *row[7:]) for row in line), strict=True)
            axes.plot(tokens, cosine, "o-", label=kind)
            axes.fill_between(tokens, low, high, alpha=0.15)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(title=titles[rewards], xlabel="tokens", ylabel="cosine of product and Hg")
    figure.axes[0].legend(frameon=False, title="ratio")
    return figure
