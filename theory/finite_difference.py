r"""What the finite difference of two gradients computes: H g, and how much more.

Statement
    Forward: :math:`(\nabla L(\theta+\epsilon g)-g)/\epsilon = Hg + c_f\epsilon + O(\epsilon^2)`
    with :math:`c_f=\tfrac12 D^3L[g,g]`. Central: :math:`Hg + c_c\epsilon^2 + O(\epsilon^4)` with
    :math:`c_c=\tfrac16 D^4L[g,g,g]`. A double backward: Hg. (Rounding: finite_difference_rounding.)

Assumptions
    L has four derivatives along g; both passes see the same batch and the same random numbers;
    exact arithmetic, so float64 and steps that are not too short.

Derivation
    Taylor's expansion of :math:`\epsilon\mapsto\nabla L(\theta+\epsilon g)`.

Falsified if
    a slope is off by more than .05, a coefficient by more than 1 %, the double backward by 1e-13.

Source: Karakida et al. 2023 (arXiv 2210.02720), section 3. Seeds: 0 (network, data).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, jvp

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

Batch = tuple[Tensor, Tensor]


class Truth(NamedTuple):
    """Derivatives along g, by automatic differentiation: H g, and the norms of c_f and c_c."""

    product: Tensor
    forward: float
    central: float

    @property
    def length(self) -> float:
        """|H g|."""
        return float(self.product.norm())


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


def estimate(theta: Tensor, batch: Batch, eps: float, kind: str, bf16: bool = False):
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


def rms(vectors: list[Tensor]) -> float:
    """Root mean square of the norms."""
    return float(torch.stack(vectors).square().sum(1).mean().sqrt())


def truth(theta: Tensor, batch: Batch) -> Truth:
    """Of the network at theta."""
    g = grad(loss)(theta, *batch)

    def derivative(f):
        return lambda eps: jvp(f, (eps,), (torch.ones_like(eps),))[1]

    first = derivative(lambda eps: grad(loss)(theta + eps * g, *batch))
    second = derivative(first)
    at = torch.zeros((), dtype=torch.float64)
    third = derivative(second)(at)
    return Truth(first(at), float(second(at).norm()) / 2, float(third.norm()) / 6)


def errors(
    theta: Tensor, batch: Batch, true: Truth, steps: np.ndarray, kind: str, *, bf16: bool = False
) -> np.ndarray:
    """Of flatopt's product, for each step; the root mean square over eight steps beside it.

    Neighbouring steps round differently: their mean is the noise, not one draw.
    """
    near = [[eps * (1 + k / 100) for k in np.arange(-3.5, 4)] for eps in steps]
    batch = (batch[0].to(theta.dtype), batch[1].to(theta.dtype))
    found = [[estimate(theta, batch, eps, kind, bf16) for eps in some] for some in near]
    return np.array([rms([product - true.product for product in some]) for some in found])


def coefficients(theta: Tensor, batch: Batch, true: Truth) -> list[Check]:
    """Orders and sizes of the truncation, where it exceeds round-off and the next order."""
    checks = []
    for kind, power, size, taylor, steps in (
        ("forward", 1, true.forward, 2, np.logspace(-5.5, -4, 7)),
        ("central", 2, true.central, 6, np.logspace(-3.5, -2.5, 7)),
    ):
        found = errors(theta, batch, true, steps, kind)
        slope = np.polyfit(np.log(steps), np.log(found), 1)[0]
        mean = float(np.mean(found / steps**power))
        checks += [
            Check(f"{kind}: slope", power, slope, 0.05, 3 - power, "absolute"),
            # the false theory forgets Taylor's 1/2 and 1/6
            Check(f"{kind}: coefficient", size, mean, 0.01, size * taylor),
        ]
    return checks


def curves(theta: Tensor, batch: Batch, true: Truth) -> Table:
    """Error over |H g| of both differences for each step, and the leading order by Taylor."""
    steps = np.logspace(-7, 0, 57)
    table = {
        "eps": steps,
        "forward": errors(theta, batch, true, steps, "forward") / true.length,
        "central": errors(theta, batch, true, steps, "central") / true.length,
        "forward by Taylor": true.forward * steps / true.length,
        "central by Taylor": true.central * steps**2 / true.length,
    }
    return {name: column.tolist() for name, column in table.items()}


def check(progress: Progress = quiet) -> Outcome:
    """The double backward, orders and coefficients of the differences."""
    theta, *data = network()
    batch = (data[0], data[1])
    true = truth(theta, batch)
    progress("coefficients")
    gap = float((estimate(theta, batch, 1.0, "exact") - true.product).norm()) / true.length
    exact = Check("exact: error / |Hg|", 0, gap, 1e-13, 1, "absolute")
    found = coefficients(theta, batch, true)
    progress("curves")
    return Outcome([exact, *found], {"curves": curves(theta, batch, true)})


def plot(tables: dict[str, Table]) -> Figure:
    """Error over step, and what Taylor's leading order says of it."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    curve = tables["curves"]
    for kind, colour in (("forward", "tab:orange"), ("central", "tab:blue")):
        axes.loglog(curve["eps"], curve[kind], ".", color=colour, label=f"{kind}, flatopt")
        axes.loglog(
            curve["eps"], curve[f"{kind} by Taylor"], color=colour, lw=0.8, label="by Taylor"
        )
    axes.set(xlabel="step eps", ylabel="error / |Hg|", title="Error of the difference, float64")
    axes.set(ylim=(1e-11, 10))
    axes.legend(frameon=False)
    return figure
