r"""A completed hack is flat, and GR does not undo it: set by ratio, it even completes it faster.

Statement
    (1) In the gradient flow of a softmax policy with k answers :math:`\|g\|\to\sqrt{1-1/k}/t`,
    :math:`\lambda_{\max}(H)\to1/t` and :math:`Hg\to g/t`, whatever the rewards, right or wrong. If
    one answer is paid and the rest are alike, :math:`\|g\|\propto p(1-p)`, p its probability.
    (2) So, late, GR lengthens the step without turning it. Let the *age* of a hack be
    :math:`\tau=\sqrt{1-1/k}/\|g\|`; plain descent lets it grow as the time. With a fixed strength
    :math:`\gamma` it grows at the speed :math:`1+\gamma/\tau`, with a ratio R at 1 + R for ever.
    (3) One answer paid: the speed by ratio is 1 + R where p > 1/2, and 1 - R (0 by default) below.

Assumptions
    Exact gradients, one best answer. (2) The age changes little in the ten steps over which the
    ratio averages.

Derivation
    (1) Answer 1 best, :math:`y_i=\pi_i(r_1-r_i)`: late, :math:`\dot y_i=-y_i(y_i+\sum_jy_j)`, so
    :math:`y_i\to1/kt`; :math:`g=(-\sum y,y_2,\dots)`, :math:`H=\sum y_i(e_i-e_1)(e_i-e_1)^\top`, a
    star's Laplacian over kt: top eigenvalue k/kt, eigenvector g. (2) GR's gradient is
    :math:`(1+\gamma/\tau)g`, and a ratio sets :math:`\gamma=R\|g\|/\|Hg\|=R\tau`. From age
    :math:`\tau_0` a fixed strength gains G in the time :math:`G-\gamma\ln(1+G/(\tau_0+\gamma))`.
    (3) g keeps its direction, so Hg is g times the curvature, which has the sign of p - 1/2.

Falsified if
    an exponent is off by .05, a constant or a speed by 1 %, an age gained in many steps by 5 %.

Source: our own derivations. Seeds: 10 (20 bandits for each of 2, 3 and 5 answers).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor
from torch.func import grad, hessian, vmap

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

RATIO = 16.0
LATE = 1e12  # the time after which a hack counts as completed
STEPS = 1500  # of GR after completion, each as long as a thousandth of that time
Bandit = tuple[Tensor, Tensor]  # logits and proxy rewards


def flow(logits: Tensor, proxy: Tensor, end: float, rtol: float):
    """Times, gradient norms and logits (time first) in the gradient flow of softmax policies."""
    gap = proxy.amax(1, keepdim=True) - proxy  # counted from the best answer nothing cancels

    def field(log_time: float, x: np.ndarray) -> np.ndarray:
        p = torch.tensor(x).view(gap.shape).softmax(1)
        return -math.exp(log_time) * (p * (gap - (p * gap).sum(1, keepdim=True))).flatten().numpy()

    span = np.linspace(math.log(0.01), math.log(end), 400)
    path = solve_ivp(field, span[[0, -1]], logits.flatten(), t_eval=span, rtol=rtol).y.T
    path = torch.tensor(path).view(400, *gap.shape)
    size = grad(lambda x: (x.softmax(-1) * gap).sum())(path).norm(dim=2)
    return np.exp(span), size.numpy(), path


def descend(bandit: Bandit, lr: float = 0.0, steps: int = 1, **gr: float):
    """flatopt's descent: the age before each step, and the step along -g, 1 without GR."""
    state, gap = bandit[0].clone().requires_grad_(), bandit[1].max() - bandit[1]
    optimizer = GradRegOptimizer(torch.optim.SGD([state], lr=lr), **gr)  # type: ignore[arg-type]

    def closure() -> float:
        optimizer.zero_grad()
        loss = state.softmax(0) @ gap
        loss.backward()
        return loss.item()

    ages, speeds = [], []
    for _ in range(steps):
        g = grad(lambda x: x.softmax(0) @ gap)(state.detach())
        optimizer.step(closure)
        assert state.grad is not None  # g + strength * Hg
        ages.append(float((1 - 1 / len(gap)) ** 0.5 / g.norm()))
        speeds.append(float(state.grad @ g / (g @ g)))
    return np.array(ages), np.array(speeds)


def paid_last(p: float, answers: int = 5) -> Bandit:
    """The proxy pays the last answer alone, of probability p; the others are alike."""
    shares = [(1 - p) / (answers - 1)] * (answers - 1) + [p]
    return torch.tensor(shares).double().log(), torch.eye(answers).double()[-1]


def farthest(values: list, target: float) -> float:
    """Of all values the one farthest from where they should be."""
    flat = np.concatenate([np.atleast_1d(value) for value in values])
    return float(flat[np.abs(flat - target).argmax()])


def gain(strength: float, age: float, time: float) -> float:
    """The age that a fixed strength gains in a time."""
    missing = lambda G: G - strength * math.log1p(G / (age + strength)) - time  # noqa: E731
    return float(brentq(missing, 0, 1e3 * time))  # type: ignore[arg-type]


def fading() -> tuple[list[Check], list[Bandit]]:
    """(1) The laws of completed hacks; and where these hacks ended."""
    draw, ends, slopes, sizes, tops = torch.Generator().manual_seed(10), [], [], [], []
    for k in (2, 3, 5):
        logits, proxy = torch.randn(2, 20, k, generator=draw, dtype=torch.float64)
        times, size, path = flow(logits, proxy, LATE, 1e-8)
        slopes.append(np.polyfit(np.log(times[-60:]), np.log(size[-60:]), 1)[0])
        sizes.append(size[-1] * LATE / (1 - 1 / k) ** 0.5)
        matrix = vmap(hessian(lambda x, r: x.softmax(0) @ (r.max() - r)))(path[-1], proxy)
        tops.append(torch.linalg.eigvalsh(matrix)[:, -1].numpy() * LATE)
        ends += zip(path[-1], proxy, strict=True)
    checks = [
        Check("exponent of |g|", -1, farthest(slopes, -1), 0.05, 0, "absolute"),
        # the false theories: the learnt answer's logit alone, the curvature of one answer alone
        Check("|g| t / (1 - 1/k)^.5", 1, farthest(sizes, 1), 0.01, 0.5**0.5),
        Check("sharpness * t", 1, farthest(tops, 1), 0.01, 0.5),
    ]
    return checks, ends


def whole_hack() -> tuple[Check, Table]:
    """(1) From rare to certain: the proxy pays one of five answers, the truth the others."""
    logits, proxy = paid_last(0.02)
    times, size, path = flow(logits[None], proxy[None], 1e4, 1e-8)
    truth = 1 - path[:, 0].softmax(1)[:, -1].numpy()
    again = np.interp(-0.02, -truth, size[:, 0]) / size[0, 0]
    # the false theory: the norm falls with the truth
    check = Check("|g| at truth .02 / at truth .98", 1, again, 0.01, 0.02 / 0.98)
    columns = {"time": times, "gradient norm": size[:, 0], "true reward": truth}
    return check, {name: column.tolist() for name, column in columns.items()}


def hurried(ends: list[Bandit]) -> tuple[list[Check], Table]:
    """(2) The speed of GR after completion, in one step of each and many steps of one."""
    fixed = [descend(end, strength=LATE)[1] for end in ends]
    ratio = [descend(end, ratio=RATIO)[1] for end in ends]
    lr, three_answers = LATE / 1000, ends[20]
    modes = {"none": {"strength": 0.0}, "fixed": {"strength": RATIO * LATE},
             "ratio": {"ratio": RATIO}}  # fmt: skip
    age = {name: descend(three_answers, lr, STEPS + 1, **gr)[0] for name, gr in modes.items()}
    mean_speed = {name: (a[-1] - a[0]) / (STEPS * lr) for name, a in age.items()}
    lasting, fades = 1 + RATIO, gain(RATIO * LATE, age["fixed"][0], STEPS * lr) / (STEPS * lr)
    checks = [
        # the false theories: the penalty resists; it fades by ratio too; it lasts at any strength
        Check("fixed strength t: speed of a step", 2, farthest(fixed, 2), 0.01, 0),
        Check("ratio 16: speed of a step", lasting, farthest(ratio, lasting), 0.01, 1 - RATIO),
        Check("fixed strength 16 t: mean speed", fades, mean_speed["fixed"], 0.05, lasting),
        Check("ratio 16: mean speed", lasting, mean_speed["ratio"], 0.05, fades),
    ]
    ages = {name: (a / a[0])[::30].tolist() for name, a in age.items()}
    return checks, {"step": list(range(0, STEPS + 1, 30)), **ages}


def halves() -> tuple[list[Check], Table]:
    """(3) One answer paid: which way GR by ratio goes, by how likely the answer is."""
    p = np.array([0.01, 0.05, *np.arange(0.1, 0.46, 0.05), *np.arange(0.55, 0.96, 0.05), 0.99])
    speed = np.concatenate([descend(paid_last(share), ratio=RATIO)[1] for share in p])
    still = np.concatenate([descend(paid_last(share), ratio=1.0)[1] for share in p[p < 0.5]])
    checks = [
        Check("p < 1/2: speed at ratio 1", 0, farthest([still], 0), 0.01, 1, "absolute"),
        # false theories: GR hurries every hack; GR resists every hack
        Check("p < 1/2: speed", 1 - RATIO, farthest([speed[p < 0.5]], 1 - RATIO), 0.01, 1 + RATIO),
        Check("p > 1/2: speed", 1 + RATIO, farthest([speed[p > 0.5]], 1 + RATIO), 0.01, 1 - RATIO),
    ]
    return checks, {"p": p.tolist(), "speed": speed.tolist()}


def check(progress: Progress = quiet) -> Outcome:
    """Laws of completed hacks, what GR does to them, and what it does to half a hack."""
    progress("completed hacks")
    (laws, ends), (same_norm, hack) = fading(), whole_hack()
    progress("GR after completion")
    speeds, ages = hurried(ends)
    progress("GR before completion")
    sides, speed = halves()
    checks = [*laws, same_norm, *speeds, *sides]
    return Outcome(checks, {"hack": hack, "ages": ages, "speed": speed})


def plot(tables: dict[str, Table]) -> Figure:
    """A hack and its gradient norm; its age with and without GR; where GR turns back."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name in ("gradient norm", "true reward"):
        left.loglog("time", name, data=tables["hack"])
    left.set(xlabel="time", title="A completed hack is flat", ylim=(1e-4, 9), xlim=(1, 1e4))
    for name in ("ratio", "fixed", "none"):
        middle.plot("step", name, "", data=tables["ages"], label=f"GR: {name}")
    middle.set(xlabel="steps after completion", ylabel="age / first age", title="GR speeds it up")
    right.axhline(1, color="grey", linewidth=0.8, label="without GR")
    right.plot("p", "speed", "o", data=tables["speed"], label="GR, ratio 16")
    right.set(xlabel="p, the paid answer's probability", ylabel="speed", title="One answer paid")
    for axes in (left, middle, right):
        axes.legend(frameon=False)
    return figure
