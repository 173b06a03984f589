r"""The best step of a finite difference for a precision, and the price of weights in bf16.

Statement
    A forward difference is off by :math:`c_f\epsilon`, a central one by :math:`c_c\epsilon^2`
    (finite_difference). (a) Rounding adds an error of norm :math:`\nu/\epsilon`. (b) The total is
    :math:`\sqrt{(c_f\epsilon)^2+(\nu_f/\epsilon)^2}`, least at
    :math:`\epsilon_f=\sqrt{\nu_f/c_f}`, where it is :math:`\sqrt{2\nu_fc_f}`; for central
    differences :math:`\epsilon_c=(\nu_c/\sqrt2c_c)^{1/3}` and :math:`\sqrt3c_c\epsilon_c^2`.
    (c) Weights *stored* in bf16 make the storage part of :math:`\nu` 2^16 times as large.

Assumptions
    As in finite_difference; the noise does not depend on the step, and its direction has nothing to
    do with that of the truncation.

Derivation
    (a) A gradient is evaluated with an error :math:`\nu_{ev}`, and rounding the shifted parameters
    moves them by :math:`\delta`, hence the gradient by :math:`\nu_{par}=\|H\delta\|`. Forward:
    :math:`\nu_f^2=2\nu_{ev}^2+\nu_{par}^2` (theta itself is exact); central:
    :math:`\nu_c^2=\tfrac14(2\nu_{ev}^2+2\nu_{par}^2)`. (b) Minimise over :math:`\epsilon`.
    (c) Rounding to a p-bit mantissa shifts :math:`\theta_i` by a uniform error of up to half a unit
    in the last place; float32 has 24 bits, bf16 has 8, and float64 53: there :math:`\nu` is taken
    as 2^-29 of float32's.

Falsified if
    a noise, an error, or the best step of a forward difference is off by a factor 1.5, the best
    step of a central difference by a factor 1.2.

Source: the usual noise model of numerical differentiation. Seeds: 0 (network, data), 1 (rounding
errors).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, hessian

from theory.check import Check, Outcome, Progress, Table, quiet
from theory.finite_difference import Batch, Truth, errors, loss, network, rms, truth

STEPS = {torch.float64: np.logspace(-11, -1, 41), torch.float32: np.logspace(-6, 0, 37)}
SCALES = {torch.float64: 2.0**-29, torch.float32: 1.0}  # of the noise
# steps so short that rounding is all
SHORT = {"forward": np.array([1e-6, 1e-5]), "central": np.array([1e-5, 1e-4])}


class Noise(NamedTuple):
    """Norms of the error of a difference times its step, in float32."""

    forward: float
    central: float


def rounding(theta: Tensor, bits: int, draw: torch.Generator) -> Tensor:
    """A uniform error of at most half a unit in the last of ``bits`` places."""
    unit = 2.0 ** (torch.floor(torch.log2(theta.abs())) - bits + 1)
    return unit * (torch.rand(theta.shape, generator=draw, dtype=theta.dtype) - 0.5)


def sources(theta: Tensor, batch: Batch) -> tuple[float, dict[int, float]]:
    """Norms of the error of evaluation in float32, and of storage in 24 and in 8 bits."""
    draw = torch.Generator().manual_seed(1)
    single = (batch[0].float(), batch[1].float())
    nearby = [(theta + rounding(theta, 12, draw)).float() for _ in range(32)]
    gaps = [grad(loss)(t, *single).double() - grad(loss)(t.double(), *batch) for t in nearby]
    matrix = hessian(loss)(theta, *batch)
    return rms(gaps), {
        bits: rms([matrix @ rounding(theta, bits, draw) for _ in range(32)]) for bits in (24, 8)
    }


def combined(evaluation: float, storage: float) -> Noise:
    """(a) Of a forward difference, whose first gradient is at theta, and of a central one."""
    forward = (2 * evaluation**2 + storage**2) ** 0.5
    return Noise(forward, 0.5 * (2 * evaluation**2 + 2 * storage**2) ** 0.5)


def optimum(kind: str, true: Truth, noise: Noise, scale: float) -> tuple[float, float]:
    """(b) The best step and the least error over |H g|."""
    if kind == "forward":
        best = (scale * noise.forward / true.forward) ** 0.5
        return best, 2**0.5 * true.forward * best / true.length
    best = (scale * noise.central / 2**0.5 / true.central) ** (1 / 3)
    return best, 3**0.5 * true.central * best**2 / true.length


def lowest(
    theta: Tensor, batch: Batch, true: Truth, kind: str, around: float
) -> tuple[float, float]:
    """The measured best step and least error: of a parabola through logarithms near the least."""
    steps = around * np.logspace(-0.4, 0.4, 17)
    found = errors(theta, batch, true, steps, kind) / true.length
    square, slope, level = np.polyfit(np.log(steps / around), np.log(found), 2)
    return around * np.exp(-slope / 2 / square), np.exp(level - slope**2 / 4 / square)


def short_steps(
    theta: Tensor, batch: Batch, true: Truth, noise: Noise, rival: Noise
) -> list[Check]:
    """(a) The error of short steps, times the step; the rival has no error of evaluation."""
    checks = []
    for kind, steps in SHORT.items():
        found = errors(theta.float(), batch, true, steps, kind) * steps
        due, false = getattr(noise, kind), getattr(rival, kind)
        size = float(np.mean(found**2) ** 0.5)
        checks.append(Check(f"float32, {kind}: noise", due, size, 1.5, false, "factor"))
    return checks


def best_step(at: Tensor, batch: Batch, true: Truth, kind: str, noise: Noise, rival: Noise
              ) -> tuple[list[Check], list[tuple]]:  # fmt: skip
    """(b) Best step and least error in the precision of the weights; rows of the curve."""
    steps, scale = STEPS[at.dtype], SCALES[at.dtype]
    name = str(at.dtype).removeprefix("torch.")
    curve = errors(at, batch, true, steps, kind) / true.length
    best, least = lowest(at, batch, true, kind, steps[int(np.argmin(curve))])
    due, false = (optimum(kind, true, n, scale) for n in (noise, rival))
    near = 1.5 if kind == "forward" else 1.2  # the cube root brings the rival nearer
    checks = [
        Check(f"{name}, {kind}: best eps", due[0], best, near, false[0], "factor"),
        Check(f"{name}, {kind}: least error / |Hg|", due[1], least, 1.5, false[1], "factor"),
    ]
    return checks, [(name, kind, eps, error) for eps, error in zip(steps, curve, strict=True)]


def stored_in_bf16(
    theta: Tensor, batch: Batch, true: Truth, storage: dict[int, float]
) -> list[Check]:
    """(c) Of the weights that the loss sees; if false: what float32 storage would give."""
    checks = []
    for eps in (1e-3, 1e-2):
        due, false = (
            ((true.forward * eps) ** 2 + (storage[bits] / eps) ** 2) ** 0.5 / true.length
            for bits in (8, 24)
        )
        found = (
            errors(theta.float(), batch, true, np.array([eps]), "forward", bf16=True)[0]
            / true.length
        )
        name = f"bf16 storage, eps {eps:g}: error / |Hg|"
        checks.append(Check(name, due, found, 1.5, false, "factor"))
    return checks


def check(progress: Progress = quiet) -> Outcome:
    """Noise, best steps, and the price of bf16 storage."""
    theta, *data = network()
    batch = (data[0], data[1])
    true = truth(theta, batch)
    progress("noise")
    evaluation, storage = sources(theta, batch)
    noise, rival = combined(evaluation, storage[24]), combined(0, storage[24])
    checks = short_steps(theta, batch, true, noise, rival)
    rows = []
    for dtype in STEPS:
        for kind in ("forward", "central"):
            progress(f"{dtype}, {kind}")
            more, curve = best_step(theta.to(dtype), batch, true, kind, noise, rival)
            checks, rows = checks + more, rows + curve
    progress("bf16 storage")
    checks += stored_in_bf16(theta, batch, true, storage)
    names: list[str] = ["precision", "difference", "eps", "error"]
    sizes: Table = {"source": ["evaluation", "storage"], "norm": [evaluation, storage[24]]}
    curves: Table = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Outcome(checks, {"curves": curves, "noise": sizes})


def plot(tables: dict[str, Table]) -> Figure:
    """Error over step: falling round-off, rising truncation, one best step for each."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = list(zip(*tables["curves"].values(), strict=True))
    for precision, style in (("float32", "-"), ("float64", "--")):
        for kind, colour in (("forward", "tab:orange"), ("central", "tab:blue")):
            eps, error = zip(*[r[2:] for r in rows if r[:2] == (precision, kind)], strict=True)
            axes.loglog(eps, error, style, color=colour, label=f"{precision} {kind}")
    axes.set(xlabel="step eps", ylabel="error / |Hg|", title="Error of the finite difference")
    axes.legend(frameon=False)
    return figure
