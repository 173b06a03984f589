r"""What the finite difference of two gradients computes, and the best step for a precision.

Statement
    Forward: :math:`(\nabla L(\theta+\epsilon g)-g)/\epsilon = Hg + c_f\,\epsilon + O(\epsilon^2)`
    with :math:`c_f=\tfrac12 D^3L[g,g]`. Central: :math:`Hg + c_c\,\epsilon^2 + O(\epsilon^4)` with
    :math:`c_c=\tfrac16 D^4L[g,g,g]`. Where each gradient carries an error of norm :math:`\nu`, the
    total is about :math:`c_f\epsilon+\nu_f/\epsilon`, least at
    :math:`\epsilon_f=\sqrt{\nu_f/c_f}`, where it is :math:`2\sqrt{\nu_f c_f}`; for central
    differences at :math:`\epsilon_c=(\nu_c/2c_c)^{1/3}`.

Assumptions
    L has four derivatives along g; both passes see the same batch and the same random numbers;
    the noise does not depend on the step.

Derivation
    Taylor's expansion of :math:`\epsilon\mapsto\nabla L(\theta+\epsilon g)`. Noise: a gradient is
    evaluated with an error :math:`\nu_{ev}`, and rounding the shifted parameters moves them by
    :math:`\delta`, hence the gradient by :math:`\nu_{par}=\|H\delta\|`. Forward:
    :math:`\nu_f^2=2\nu_{ev}^2+\nu_{par}^2` (theta itself is exact); central:
    :math:`\nu_c^2=\tfrac14(2\nu_{ev}^2+2\nu_{par}^2)`. Rounding to a p-bit mantissa shifts
    :math:`\theta_i` by a uniform error of up to half a unit in the last place, so weights that are
    *stored* in bf16 pay :math:`\nu_{par}` 2^16 times as large as in float32.

Falsified if
    a slope is off by more than .05, a coefficient by more than 1 %, a best step or error by more
    than a factor 3.

Source: Karakida et al. 2023 (arXiv 2210.02720), section 3; the noise model is the usual one of
numerical differentiation. Seeds: 0 (network, data), 1 (rounding errors).
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, hessian, jvp

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

STEPS = {torch.float64: np.logspace(-11, -1, 41), torch.float32: np.logspace(-6, 0, 37)}
# float32 keeps 24 bits, float64 53, bf16 8
RATIO_64_TO_32 = 2.0**-29


def network(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """160 parameters of a tanh network (8-12-4) as one vector, inputs (32, 8), targets (32, 4)."""
    draw = torch.Generator().manual_seed(seed)
    theta = 0.5 * torch.randn(160, generator=draw, dtype=torch.float64)
    inputs = torch.randn(32, 8, generator=draw, dtype=torch.float64)
    targets = torch.randn(32, 4, generator=draw, dtype=torch.float64)
    # numbers that float32 and bf16 hold exactly, so that only the arithmetic differs
    return theta.bfloat16().double(), inputs.float().double(), targets.float().double()


def loss(theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the network."""
    w1, b1, w2, b2 = theta.split([96, 12, 48, 4])
    hidden = torch.tanh(inputs @ w1.view(8, 12) + b1)
    return ((hidden @ w2.view(12, 4) + b2 - targets) ** 2).mean() * 4


def estimate(theta: Tensor, batch: tuple[Tensor, Tensor], eps: float, kind: str, bf16=False):
    """H g as flatopt computes it; ``bf16``: the loss sees the weights rounded to bf16."""
    param = theta.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=0.0), 1.0, eps=eps, difference=kind)

    def closure() -> float:
        optimizer.zero_grad()
        # the gradient passes the rounding unchanged, so that storage alone is measured
        seen = param + (param.bfloat16().to(param.dtype) - param).detach() if bf16 else param
        value = loss(seen, *batch)
        value.backward()
        return value.item()

    optimizer.step(closure)
    assert param.grad is not None  # g + strength * Hg, and the strength is 1
    return param.grad.double() - grad(loss)(theta, *batch).double()


def rounding(theta: Tensor, bits: int, draw: torch.Generator) -> Tensor:
    """A uniform error of at most half a unit in the last of ``bits`` places."""
    unit = 2.0 ** (torch.floor(torch.log2(theta.abs())) - bits + 1)
    return unit * (torch.rand(theta.shape, generator=draw, dtype=theta.dtype) - 0.5)


def rms(vectors: list[Tensor]) -> float:
    """Root mean square of the norms."""
    return float(torch.stack(vectors).square().sum(1).mean().sqrt())


def check(progress: Progress = quiet) -> Outcome:
    """Coefficients, slopes, best steps, and the price of bf16 storage."""
    theta, *data = network()
    batch = (data[0], data[1])
    g = grad(loss)(theta, *batch)

    def along(eps: Tensor) -> Tensor:
        return grad(loss)(theta + eps * g, *batch)

    def derivative(f):
        return lambda eps: jvp(f, (eps,), (torch.ones_like(eps),))[1]

    zero = torch.zeros((), dtype=torch.float64)
    hg = derivative(along)(zero)
    third = derivative(derivative(along))(zero)
    fourth = derivative(derivative(derivative(along)))(zero)
    forward, central = float(third.norm()) / 2, float(fourth.norm()) / 6
    length = float(hg.norm())

    progress("coefficients")
    exact = estimate(theta, batch, 1.0, "exact")
    checks = [
        Check("exact: error / |Hg|", 0, float((exact - hg).norm()) / length, 1e-13, 1, "absolute")
    ]
    # above round-off, below the next order
    clean = {"forward": np.logspace(-5.5, -4, 7), "central": np.logspace(-3.5, -2.5, 7)}
    for kind, power, size, taylor in (("forward", 1, forward, 2), ("central", 2, central, 6)):
        errors = np.array([rms([estimate(theta, batch, e, kind) - hg]) for e in clean[kind]])
        measured = np.mean(errors / clean[kind] ** power)
        slope = np.polyfit(np.log(clean[kind]), np.log(errors), 1)[0]
        checks += [
            Check(f"{kind}: slope", power, slope, 0.05, 3 - power, "absolute"),
            # the false theory forgets Taylor's 1/2 and 1/6
            Check(f"{kind}: coefficient", size, measured, 0.01, size * taylor),
        ]

    progress("noise")
    draw = torch.Generator().manual_seed(1)
    matrix = hessian(loss)(theta, *batch)
    nearby = [theta + rounding(theta, 12, draw) for _ in range(32)]
    single = (batch[0].float(), batch[1].float())
    coarse = [grad(loss)(t.float(), *single).double() for t in nearby]
    fine = [grad(loss)(t.float().double(), *batch) for t in nearby]
    evaluation = rms([a - b for a, b in zip(coarse, fine, strict=True)])
    storage = {b: rms([matrix @ rounding(theta, b, draw) for _ in range(32)]) for b in (24, 8)}
    noise_f = (2 * evaluation**2 + storage[24] ** 2) ** 0.5
    noise_c = 0.5 * (2 * evaluation**2 + 2 * storage[24] ** 2) ** 0.5
    curves: dict[str, list] = {"precision": [], "difference": [], "eps": [], "error": []}
    for dtype, steps in STEPS.items():
        name = str(dtype).removeprefix("torch.")
        scale = 1.0 if dtype is torch.float32 else RATIO_64_TO_32
        typed = (batch[0].to(dtype), batch[1].to(dtype))
        for kind in ("forward", "central"):
            progress(f"{name}, {kind}")
            # eight neighbouring steps round differently: their mean is the noise, not one draw
            near = [[e * (1 + k / 100) for k in range(8)] for e in steps]
            start = theta.to(dtype)
            errors = [rms([estimate(start, typed, e, kind) - hg for e in es]) for es in near]
            curves["precision"] += [name] * len(steps)
            curves["difference"] += [kind] * len(steps)
            curves["eps"] += [*steps]
            curves["error"] += [error / length for error in errors]
            if kind == "forward":
                best, truncation = (scale * noise_f / forward) ** 0.5, forward * steps[0]
                least = 2 * (scale * noise_f * forward) ** 0.5
            else:
                best, truncation = (
                    (scale * noise_c / 2 / central) ** (1 / 3),
                    central * steps[0] ** 2,
                )
                least = scale * noise_c / best + central * best**2
            at = steps[int(np.argmin(errors))]
            # the false theory ignores the noise: the shorter the step, the better
            checks += [
                Check(f"{name}, {kind}: best eps", best, at, 3, steps[0], "factor"),
                Check(f"{name}, {kind}: least error / |Hg|", least / length,
                      min(errors) / length, 3, truncation / length, "factor"),
            ]  # fmt: skip

    progress("bf16 storage")
    for eps in (1e-3, 1e-2):
        predicted = ((forward * eps) ** 2 + (storage[8] / eps) ** 2) ** 0.5 / length
        errors = [
            estimate(theta.float(), single, eps * (1 + k / 100), "forward", bf16=True) - hg
            for k in range(8)
        ]
        # the false theory: what float32 storage would give
        checks.append(
            Check(f"bf16 storage, eps {eps:g}: error / |Hg|", predicted, rms(errors) / length, 1.5,
                  forward * eps / length, "factor")
        )  # fmt: skip
    return Outcome(checks, {"curves": curves})


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
