r"""What a monitor of the gradient norm may conclude about hacking: what the proxy's errors let it.

Statement
    Policies follow the gradient of a proxy; a run is *hacked* if the true reward ends below its
    start. (1) If a coin decides whether the truth is the proxy or its negative, no statistic of
    the run tells hacked runs from honest ones better than chance. (2) If the proxy is the truth
    plus independent errors, a run that moved the policy by :math:`\Delta\pi` is hacked with
    probability :math:`\Phi(-\Delta\pi\cdot r/\sqrt2\|\Delta\pi\|)`. There hacked runs have the
    *lower* gradient norms: an alarm on high ones is worse than chance.

Assumptions
    Bandits of five answers, softmax policies, gradient flow with exact gradients until time 1e6.
    True rewards and errors are independent N(0, 1), and so are the first logits.

Derivation
    (1) The run does not depend on the coin. (2) Given the proxy r the truth is N(r/2, 1/2),
    independent of the policy, so :math:`\Delta\pi\cdot r^*` is normal with mean
    :math:`\Delta\pi\cdot r/2` and variance :math:`\|\Delta\pi\|^2/2`. The AUC of a statistic is
    the share of pairs, one hacked and one honest, in which the hacked run has the higher value:
    with a risk :math:`q_i` for each run, the sum of :math:`q_i(1-q_j)` over the pairs where i has
    the higher one, over that sum over all pairs.

Falsified if
    an AUC is off by four standard errors (from ten seeds), or the share of hacked runs by four.

Source: our own derivation. Seeds: 0-9 (200 bandits each).
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm, rankdata
from torch.nn.functional import normalize

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.completed_hack import flow

Array = np.ndarray
SEEDS, BANDITS, ANSWERS = 10, 200, 5


def runs() -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """The norms by name (seed, bandit), each run's risk, and which are hacked, by kind of error."""
    draws = [np.random.default_rng(k).normal(size=(4, BANDITS, ANSWERS)) for k in range(SEEDS)]
    logits, truth, error, coin = torch.tensor(np.concatenate(draws, 1))
    proxy = truth + error
    _, size, path = flow(logits, proxy, 1e6, 1e-5)
    start, peak, end = (v.reshape(SEEDS, BANDITS) for v in (size[0], size.max(0), size[-1]))
    norms = {"start": start, "peak": peak, "peak / start": peak / start, "end": end}
    direction = normalize(path[-1].softmax(1) - path[0].softmax(1))
    risk = norm.cdf(-(direction * proxy).sum(1).numpy() / 2**0.5)
    truths = {"coin": coin[:, :1].sign() * proxy, "errors": truth}
    gains = {kind: (direction * true).sum(1).numpy() for kind, true in truths.items()}
    return norms, risk, {kind: (g < 0).reshape(SEEDS, BANDITS) for kind, g in gains.items()}


def auc(statistic: Array, hacked: Array) -> tuple[float, float]:
    """Mean over the seeds of the share of pairs in which the hacked run is higher; 2 s.e."""
    ranks, n = rankdata(statistic, axis=1), hacked.sum(1)
    each = ((ranks * hacked).sum(1) - n * (n + 1) / 2) / (n * (BANDITS - n))
    return float(each.mean()), float(2 * each.std(ddof=1) / SEEDS**0.5)


def expected_auc(statistic: Array, risk: Array) -> float:
    """The AUC of runs that are hacked with these probabilities."""
    risk = risk[statistic.argsort(axis=None)]
    honest = 1 - risk
    below = honest.cumsum() - honest
    return float((risk * below).sum() / (risk * (honest.sum() - honest)).sum())


def check(progress: Progress = quiet) -> Outcome:
    """How often runs are hacked, and each norm as an alarm, by coin and by independent errors."""
    progress("bandits")
    norms, risk, hacked = runs()
    predicted = {name: expected_auc(norms[name], risk) for name in norms}
    found = {kind: {name: auc(norms[name], hacked[kind]) for name in norms} for kind in hacked}
    value, two_errors = max(found["coin"].values(), key=lambda pair: abs(pair[0] - 0.5))
    checks = [
        # the false theory: the norms tell what they tell of independent errors
        Check("coin: AUC farthest from 1/2", 0.5, value, 2 * two_errors,
              predicted["peak"], "absolute"),
        # the false theory: as often as by a coin
        Check("errors: share of hacked runs", risk.mean(), hacked["errors"].mean(),
              4 * (risk * (1 - risk)).mean() ** 0.5 / len(risk) ** 0.5, 0.5, "absolute"),
    ]  # fmt: skip
    for name, (value, two_errors) in found["errors"].items():
        # the false theory: it says nothing
        checks.append(Check(f"errors: AUC of |g|, {name}", predicted[name], value, 2 * two_errors,
                            0.5, "absolute"))  # fmt: skip
    table: dict[str, list] = {"norm": [*norms], "errors, predicted": [*predicted.values()]}
    for kind, by_norm in found.items():
        values, two_errors = zip(*by_norm.values(), strict=True)
        table |= {kind: [*values], f"{kind}, 2 s.e.": [*two_errors]}
    return Outcome(checks, {"monitor": table})


def plot(tables: dict[str, Table]) -> Figure:
    """What each norm tells of hacked runs, as predicted and as found."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    monitor = tables["monitor"]
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.plot(
        "norm", "errors, predicted", "kx", data=monitor, label="independent errors, predicted"
    )
    for kind, label in (("errors", "independent errors"), ("coin", "a coin decides")):
        axes.errorbar("norm", kind, f"{kind}, 2 s.e.", data=monitor, fmt="o", label=label)
    axes.set(xlabel="gradient norm", ylabel="AUC for hacked runs", ylim=(0, 1))
    axes.set_title("What the gradient norm tells")
    axes.legend(frameon=False)
    return figure
