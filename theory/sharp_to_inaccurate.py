r"""Sharp pairs and long gradients certify that the proxy reward is wrong, and by how much.

Statement
    True reward :math:`r^*`, ell-Lipschitz in a distance d of actions; proxy r; pairs of actions
    independent from a policy :math:`\pi`, labelled by :math:`r^*`. The *excess* is the
    Bradley-Terry loss of r less that of :math:`r^*`; :math:`\varsigma` is the logistic function.
    (1) A pair is sharp if closer than delta with a proxy gap above K. If
    :math:`K>\ell\delta`, excess :math:`\ge2(\varsigma(K)-\varsigma(\ell\delta))^2P(\text{sharp})`.
    (2) With :math:`e=r-r^*` and all gaps at most B:
    :math:`\varsigma'(B)\mathrm{Var}_\pi(e)\le` excess :math:`\le\mathrm{Var}_\pi(e)/4`.
    (3) For any parameters of the policy, F their Fisher matrix, :math:`J_f=E_\pi f`:
    :math:`\mathrm{Var}_\pi(e)\ge|\nabla J_e|_F^2:=\nabla J_e^\top F^+\nabla J_e`, with equality if
    each action has its logit. So :math:`\mathrm{sd}_\pi(e)\ge|\nabla J_r|_F-\ell D`,
    :math:`D^2=\tfrac12E\,d^2`: a gradient longer than the truth allows is error.

Assumptions
    Labels follow Bradley-Terry with :math:`r^*`. (1) needs :math:`K>\ell\delta`: below, the truth
    itself has such pairs and the excess can be 0.

Derivation
    The excess is :math:`E\,\mathrm{KL}(p^*\|p)` of Bernoulli laws. (1) Pinsker, KL at least
    :math:`2(p-p^*)^2`, on the sharp pairs alone. (2) KL is the Bregman divergence of
    :math:`\log(1+e^x)`, whose second derivative lies in :math:`[\varsigma'(B),1/4]`; the gaps of e
    have mean square 2 Var(e). (3) :math:`\nabla J_e=\mathrm{Cov}(e,s)` with the score s:
    Cauchy-Schwarz; the scores of all logits span all functions. Triangle inequality of
    :math:`|\cdot|_F`, and :math:`|\nabla J_{r^*}|_F\le\mathrm{sd}(r^*)\le\ell D`.

Falsified if
    an inequality fails beyond 1e-12 in one finite set of actions: sums over it are exact.

Source: Ackermann et al. 2026 (arXiv 2602.18037), proposition 3.4, for (1). Seeds: 0 (1000 sets of 2
to 39 actions in the plane with Gaussian policies, true and proxy rewards).
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import expit, rel_entr

from flatopt import gradient
from theory.check import Check, Outcome, Progress, Table, quiet

Array = np.ndarray
CASES = 1000


def gaps(reward: Array) -> Array:
    """r(a) - r(a') for all pairs."""
    return reward[:, None] - reward


def excess(policy: Array, proxy: Array, truth: Array) -> float:
    """Bradley-Terry loss of the proxy less that of the truth."""
    label, pairs = expit(gaps(truth)), np.outer(policy, policy)

    def loss(x: Array) -> Array:
        return np.logaddexp(0, x) - label * x

    return float((pairs * (loss(gaps(proxy)) - loss(gaps(truth)))).sum())


def labelled(policy: Array, proxy: Array, truth: Array, draw: np.random.Generator) -> Array:
    """Loss of the proxy less that of the truth on 400,000 labelled pairs, one number for each."""
    a, b = draw.choice(len(policy), size=(2, 400_000), p=policy)
    sign = np.where(draw.random(a.shape) < expit(truth[a] - truth[b]), 1, -1)
    loss = [np.logaddexp(0, -sign * (r[a] - r[b])) for r in (proxy, truth)]
    return loss[0] - loss[1]


def fisher_length(policy: Array, features: Array, f: Array) -> float:
    """|grad J_f|_F of the policy, as the softmax of features theta + a fixed part."""
    fixed, x, value = map(torch.from_numpy, (np.log(policy), features, f))
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    g = gradient(lambda: (torch.softmax(fixed + x @ theta, 0) @ value).backward(), [theta])[0]
    # F = scores^T scores, each score weighted by the root of its probability
    scores = np.sqrt(policy)[:, None] * (features - policy @ features)
    return float(np.linalg.norm(np.linalg.pinv(scores, rcond=1e-10).T @ g.numpy()))


def random_set(draw: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Distances, policy, truth, proxy: the truth with a bump, or with noise, or with both."""
    n, scale = draw.integers(2, 40), np.exp(draw.normal(0, 1))
    points = draw.normal(size=(n, 2))
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    truth = scale * draw.integers(2) * np.cos(points @ draw.normal(size=2) + 6 * draw.random())
    width, height = np.exp(draw.normal((-1, 1), (0.7, 0.5)))
    bump = height * draw.integers(2) * np.exp(-(distance[0] ** 2) / (2 * width**2))
    proxy = truth + scale * (bump + np.exp(draw.normal(-2, 1)) * draw.normal(size=n))
    weight = np.exp(-np.square(points - draw.normal(size=2)).sum(1) / draw.uniform(2, 8))
    return distance, weight / weight.sum(), truth, proxy


def lipschitz(distance: Array, truth: Array) -> float:
    """The least ell."""
    return float((np.abs(gaps(truth)) / np.where(distance > 0, distance, 1)).max())


def pair_bounds(distance: Array, policy: Array, truth: Array, proxy: Array) -> Array:
    """2 (sigma(K) - sigma(ell delta))^2 P(sharp) for six delta and ten K each."""
    gap, found = np.abs(gaps(proxy)), []
    for delta in np.quantile(distance[distance > 0], (0, 0.05, 0.1, 0.2, 0.5, 1)) * (1 + 1e-9):
        allowed = lipschitz(distance, truth) * delta
        if allowed < gap.max():
            for K in np.linspace(allowed, gap.max(), 11)[1:] * (1 - 1e-9):
                P = policy @ ((distance < delta) & (gap > K)) @ policy
                found.append(2 * (expit(K) - expit(allowed)) ** 2 * P)
    return np.array(found)


def two_actions(gap: float, true_gap: float) -> tuple[Array, Array, Array, Array]:
    """Equally likely, at distance 1, with these reward gaps."""
    return 1 - np.eye(2), np.full(2, 0.5), np.array([true_gap, 0]), np.array([gap, 0])


def check(progress: Progress = quiet) -> Outcome:
    """Each inequality over random sets, and over two actions, where it becomes an equation."""
    draw, grid = np.random.default_rng(0), np.geomspace(0.05, 6, 40)
    sets = [(c, K, two_actions(K, c * K)) for c in (0, 0.5, 0.9) for K in grid]
    sets += [("edge", K, two_actions(K, K - 0.01)) for K in grid]
    sets += [("random", 0, random_set(draw)) for _ in range(CASES)]
    rows = []
    for i, (_, _, (distance, policy, truth, proxy)) in enumerate(sets):
        if i % 100 == 0:
            progress(f"set {i} of {len(sets)}")
        e, each, noise = proxy - truth, np.eye(len(policy)), draw.normal(size=(len(policy), 2))
        B = max(np.abs(gaps(x)).max() for x in (proxy, truth))
        allowed = lipschitz(distance, truth) * (policy @ distance**2 @ policy / 2) ** 0.5
        beyond = max(0.0, fisher_length(policy, each, proxy) - allowed)
        lengths = [fisher_length(policy, x, e) for x in (each, noise, np.c_[e, noise])]
        best = pair_bounds(distance, policy, truth, proxy).max(initial=0)
        V, cost = policy @ (e - policy @ e) ** 2, excess(policy, proxy, truth)
        rows.append((cost, best, V, expit(B) * expit(-B), beyond, *lengths))
    cost, best, V, slope, beyond, *lengths = np.array(rows).T
    every, few, matched = (V / x**2 for x in lengths)
    seen, long = best > 1e-9, beyond > 1e-6
    least = (
        ("(1) excess / bound by sharp pairs", cost[seen] / best[seen]),
        ("(2) excess / (slope at B x Var e)", cost / (slope * V)),
        ("(3) Var e / |grad J_e|^2, few features", np.append(few, matched)),
        ("(3) sd e / (|grad J_r| - ell D)", V[long] ** 0.5 / beyond[long]),
        ("(2, 3) excess / bound by gradient", cost[long] / (slope * beyond**2)[long]),
    )
    # false: a constant 5 % stronger
    checks = [Check(name, 1, x.min(), 1e-12, 1.05, "at least") for name, x in least]
    most, off = (cost / V).max(), abs(every - 1).max()
    # a truth with a gap of 2 at distance 1, rated exactly: sharp for K = 1, delta > 1, yet no error
    _, policy, truth, _ = two_actions(0, 2)
    idle, rival = excess(policy, truth, truth), (expit(2) - expit(1)) ** 2
    _, policy, truth, proxy = random_set(draw)
    paid, p, q = labelled(policy, proxy, truth, draw), *(expit(gaps(x)) for x in (truth, proxy))
    divergence = policy @ (rel_entr(p, q) + rel_entr(1 - p, 1 - q)) @ policy
    error = 4 * paid.std() / len(paid) ** 0.5
    checks += [
        Check("excess on sampled labels", divergence, paid.mean(), error, 0, "absolute"),
        Check("(2) excess / Var e", 0.25, most, 1e-12, 0.2375, "at most"),
        Check("(3) Var e / |grad J_e|^2 - 1, all logits", 0, off, 1e-12, 1, "absolute"),
        Check("(1) for K < ell delta: excess", 0, idle, 1e-12, rival, "absolute"),
    ]
    kind, K = zip(*((str(kind), K) for kind, K, _ in sets), strict=True)
    columns = {"excess": cost, "by sharp pairs": best, "by gradient": slope * beyond**2}
    numbers = {name: x.tolist() for name, x in columns.items()}
    return Outcome(checks, {"sets": {"set": kind, "K": K, **numbers}})


def plot(tables: dict[str, Table]) -> Figure:
    """Lower bounds under the excess; over two actions, how much is lost."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = {name: np.array(column) for name, column in tables["sets"].items()}
    chosen = t["set"] == "random"
    for name, colour in (("by sharp pairs", "tab:blue"), ("by gradient", "tab:orange")):
        left.loglog(t["excess"][chosen], t[name][chosen], ".", ms=3, color=colour, label=name)
    left.loglog([1e-6, 10], [1e-6, 10], "k-", lw=1, label="bound = excess")
    left.set(xlabel="excess loss", ylabel="lower bound", ylim=(1e-8, 10), title="Random proxies")
    for share in ("0", "0.5", "0.9"):
        chosen = t["set"] == share
        ratio = t["excess"][chosen] / t["by sharp pairs"][chosen]
        right.loglog(t["K"][chosen], ratio, label=f"true gap = {share} K")
    right.set(xlabel="K, the proxy's gap", ylabel="excess / bound", title="Two actions")
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure
