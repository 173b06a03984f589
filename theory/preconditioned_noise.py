r"""Gradient regularization through Adam under noise: axes, thresholds, and changes of curvature.

Statement
    Where the noise of the gradient outweighs the gradient itself, Adam with GR moves the mean by
    :math:`\dot x=-D^{-1/2}(I+\gamma H)\,Hx`, where D is the diagonal of
    :math:`(I+\gamma H)\Sigma(I+\gamma H)`.

    1. **Orientation decides.** GR speeds up a sharp direction against a flat one not at all if
       they lie along the axes, and by the full :math:`(1+\gamma\lambda_1)/(1+\gamma\lambda_2)`, as
       without Adam, if they lie at 45 degrees.
    2. **Thresholds stay.** A saddle becomes an attractor at :math:`\gamma=1/|\lambda_-|`, whatever
       Adam has learnt of the scales.
    3. **A change is felt for a while.** After the curvature along an axis has jumped from
       :math:`h_0` to :math:`h_1`, the step is
       :math:`\mathrm{sign}(A)\,[1-(1-A^{-2})w_t]^{-1/2}` times that of plain Adam,
       :math:`A=(1+\gamma h_1)/(1+\gamma h_0)`, where :math:`w_t` is the weight of what is older
       than the jump in v (about :math:`\beta_2^t`). A > 1 (sharper) speeds up, 0 < A < 1 (the loss
       bends down) brakes; both fade to 1 within a few times :math:`1/(1-\beta_2)` steps. A < 0
       (beyond :math:`\gamma=1/|h_1|`) turns the step round, and that stays.

Assumptions
    Additive noise of covariance :math:`\Sigma` (here I), larger than the gradient; both passes see
    the same noise; small steps; Adam's own eps is 0.

Derivation
    With noise :math:`\xi` the gradient is :math:`Hx+\xi`, and GR hands on
    :math:`(I+\gamma H)(Hx+\xi)`; v becomes its variance, the diagonal of D. 1: for axes at 45
    degrees D is a multiple of I, for aligned ones :math:`D^{-1/2}=(I+\gamma H)^{-1}`. 2: P > 0
    diagonal and S symmetric: PS has as many eigenvalues of each sign as S (Sylvester). 3: the
    noise on that axis has standard deviation :math:`1+\gamma h`, and v is the mean of its square
    over a window in which it jumps.

Falsified if
    a rate, the threshold, or the gain after a jump, is off by more than 3 %.

Source: derived here. Seeds: 3 (the noise of 64 pairs of copies; each pair shares it, so that
hardly any of it is left in their difference).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from torch import Tensor

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

STRENGTH = 4.0
FLAT = 0.3
BETA2 = 0.997
LR = 5e-4
# the curvature jumps from LOW to each of these: sharper, bending down, and beyond the threshold
LOW, JUMPS = 0.1, (1.0, -0.2, -0.5)
# steps in which v fills before the mean is watched
WARM = 600


def step(optimizer: GradRegOptimizer, x: Tensor, hessian: Tensor, noise: Tensor) -> None:
    """One step on the sum over rows of x H x / 2 + noise . x."""

    def closure() -> float:
        optimizer.zero_grad()
        value = ((x @ hessian) * x / 2 + noise * x).sum()
        value.backward()
        return value.item()

    optimizer.step(closure)


def response(before: Tensor, after: Tensor, strength: float, steps: int) -> np.ndarray:
    """How Adam moves the mean: (steps + 1, n, n) maps of a small start, noise averaged out.

    Pairs of copies share their noise and start at +x and -x: half their difference is the
    response to x alone. The Hessian is ``before`` while v fills at lr 0, then ``after``.
    """
    draw = torch.Generator().manual_seed(3)
    size, small, maps = len(before), 1e-3, []
    x = torch.zeros(2, size, 64, size, dtype=torch.float64, requires_grad=True)
    base = torch.optim.Adam([x], lr=0.0, betas=(0.9, BETA2), eps=1e-300)
    # a quadratic's difference is exact at any step
    optimizer = GradRegOptimizer(base, strength, eps=1e-2)
    for t in range(WARM + steps + 1):
        if t == WARM:
            optimizer.param_groups[0]["lr"] = LR
            start = small * torch.eye(size, dtype=torch.float64)[:, None]
            with torch.no_grad():
                x += torch.stack([start, -start])
        if t >= WARM:
            maps.append(((x[0] - x[1]).detach() / (2 * small)).mean(1).T.numpy())
        noise = torch.randn(size, 64, size, generator=draw, dtype=torch.float64)
        step(optimizer, x, before if t < WARM else after, noise.expand(2, -1, -1, -1))
    return np.array(maps)


def rates(hessian: Tensor, strength: float, steps: int = 800) -> np.ndarray:
    """Measured rates of the mean under Adam, per unit of time (lr times steps), ascending."""
    last = response(hessian, hessian, strength, steps)[-1]
    return np.sort(np.linalg.eigvals(scipy.linalg.logm(last)).real / (-LR * steps))


def predicted_rates(hessian: Tensor, strength: float) -> np.ndarray:
    """Eigenvalues of D^-1/2 (I + strength H) H for noise of variance 1, ascending."""
    h = hessian.numpy()
    k = np.eye(len(h)) + strength * h
    return np.sort(np.linalg.eigvals((k @ h) / np.sqrt(np.diag(k @ k))[:, None]).real)


def turned(degrees: float, flat: float) -> Tensor:
    """A Hessian with eigenvalues 1 and ``flat``, its axes turned by an angle."""
    turn = torch.from_numpy(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2])
    return turn @ torch.diag(torch.tensor([1.0, flat], dtype=torch.float64)) @ turn.T


def gains(steps: np.ndarray, low: float, high: float) -> np.ndarray:
    """GR's step over plain Adam's, that many steps after the jump of curvature."""
    jump = (1 + STRENGTH * high) / (1 + STRENGTH * low)
    # the share of v that is older than the jump, with Adam's bias correction
    older = (BETA2**steps - BETA2 ** (WARM + steps)) / (1 - BETA2 ** (WARM + steps))
    return np.sign(jump) * (1 - (1 - jump**-2) * older) ** -0.5


def check(progress: Progress = quiet) -> Outcome:
    """Rates by orientation, the saddle's threshold, the step after a jump."""
    checks = []
    speeds: dict[str, list[float]] = {"degrees": [], "predicted": [], "measured": []}
    full = (1 + STRENGTH) / (1 + STRENGTH * FLAT)
    for degrees in (0.0, 15.0, 30.0, 45.0):
        progress(f"{degrees:g} degrees")
        hessian = turned(degrees, FLAT)
        predicted, measured = (
            float(np.divide(*law(hessian, STRENGTH)[::-1]) / np.divide(*law(hessian, 0.0)[::-1]))
            for law in (predicted_rates, rates)
        )
        # the false theories: Adam changes nothing; Adam cancels everything
        wrong = full if degrees < 45 else 1.0
        name = f"{degrees:g} degrees: sharp against flat"
        checks.append(Check(name, predicted, measured, 0.03, wrong))
        speeds["degrees"].append(degrees)
        speeds["predicted"].append(predicted)
        speeds["measured"].append(measured)

    progress("saddle")
    saddle = turned(25.0, -0.5)
    near = np.array([1.85, 2.15])
    escape = [rates(saddle, strength)[0] for strength in near]
    threshold = near[0] - escape[0] * (near[1] - near[0]) / (escape[1] - escape[0])
    # the false theory: what counts is the curvature of the preconditioned Hessian
    k = np.eye(2) + 2 * saddle.numpy()
    wrong = -1 / np.linalg.eigvals(saddle.numpy() / np.sqrt(np.diag(k @ k))[:, None]).real.min()
    checks.append(Check("saddle holds from strength", 1 / 0.5, threshold, 0.03, wrong))

    steps = np.arange(0, 600, 10)
    jump = {"steps": [float(t) for t in steps]}
    for high in JUMPS:
        progress(f"jump to {high:g}")
        before, after = (torch.tensor([[h]], dtype=torch.float64) for h in (LOW, high))
        paths = [np.log(response(before, after, s, 600)[:, 0, 0]) for s in (STRENGTH, 0.0)]
        seen = np.divide(*(path[steps + 10] - path[steps] for path in paths))
        curve = gains(steps + 5, LOW, high)
        jump |= {f"predicted, to {high:g}": curve.tolist(), f"to {high:g}": seen.tolist()}
        for t in (20, 400):
            # the false theories: Adam cancels at once; Adam never cancels
            wrong = 1.0 if t < 200 else (1 + STRENGTH * high) / (1 + STRENGTH * LOW)
            name = f"jump to {high:g}: step {t} later"
            checks.append(Check(name, curve[t // 10], seen[t // 10], 0.03, wrong))
    return Outcome(checks, {"orientation": speeds, "jump": jump})


def plot(tables: dict[str, Table]) -> Figure:
    """Left: what orientation keeps of GR. Right: how long a change of curvature is felt."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    across, law, seen = tables["orientation"].values()
    left.plot(across, law, "-", color="tab:blue", label="predicted")
    left.plot(across, seen, "o", color="tab:orange", label="measured")
    left.set(title="Sharp direction sped up against the flat one", xlabel="degrees off the axes")
    jump = tables["jump"]
    for high, colour in zip(JUMPS, ("tab:blue", "tab:orange", "tab:red"), strict=True):
        right.plot(jump["steps"], jump[f"predicted, to {high:g}"], "-", color=colour)
        right.plot(jump["steps"], jump[f"to {high:g}"], ".", color=colour, label=f"to {high:g}")
    right.set(title=f"Step after the curvature jumps from {LOW:g}")
    right.set(xlabel="steps (lines: predicted)")
    for axes in (left, right):
        axes.axhline(1, color="0.6", lw=0.8)
        axes.set_ylabel("times plain Adam's")
        axes.legend(frameon=False)
    return figure
