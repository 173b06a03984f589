r"""What gradient regularization follows: its loss, SAM, the learning rate's own share, clipping.

Statement
    With :math:`g=\nabla L`, :math:`u=g/\|g\|`, :math:`H=\nabla^2L`, :math:`\gamma` = strength:
    (a) GR descends :math:`L_\gamma=L+\tfrac\gamma2\|g\|^2`; with a forward difference of step
    :math:`\epsilon=\gamma/k` along :math:`k\nabla L(\theta+\epsilon g)-(k-1)g`. k = 1 is SAM
    without normalisation. (b) SAM's :math:`\nabla L(\theta+\rho u)` is :math:`\nabla(L+\rho\|g\|)`,
    GR of strength :math:`\rho/\|g\|`, up to :math:`\tfrac{\rho^2}2D^3L[u,u]`.
    (c) Gradient descent with learning rate :math:`\eta` on G follows the flow of
    :math:`G+\tfrac\eta4\|\nabla G\|^2` to second order. For :math:`G=L_\gamma` the strengths add,
    to :math:`\gamma+\eta/2`, only where :math:`\gamma=0` or :math:`\gamma=O(\eta)`.
    (d) Both gradients clipped to length c before the difference give, in place of Hg,
    :math:`\tfrac{c^2}{\|g\|}(I-uu^\top)Hu`: nothing along g, whatever H is.

Assumptions
    L has four derivatives; (c) SGD without momentum, a fixed time, small :math:`\eta\|H\|`;
    (d) both gradients are longer than c and the shift goes along the clipped one.

Derivation
    (a) :math:`\nabla\tfrac12\|g\|^2=Hg`. (b) Taylor in :math:`\rho`; :math:`\nabla\|g\|=Hu`.
    (c) A flow along -F reaches :math:`\theta-\eta F+\tfrac{\eta^2}2F'F`, a step
    :math:`\theta-\eta G'`: :math:`F=G'+\tfrac\eta2G''G'=\nabla(G+\tfrac\eta4\|G'\|^2)`.
    (d) :math:`v\mapsto cv/\|v\|` has the derivative :math:`\tfrac c{\|v\|}(I-\bar v\bar v^\top)`.

Falsified if
    an identity is off by 1e-12, a slope by .05, a coefficient by 1 %, the clipped product by 1e-4.

Source: Foret et al. 2021 (arXiv 2010.01412), Karakida et al. 2023 (arXiv 2210.02720); (c) Barrett
and Dherin 2021 (arXiv 2009.11162). Seeds: 0 here; the tests repeat the identities with others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import grad, jvp, vmap

from flatopt import GradRegOptimizer
from theory.check import Check, Outcome, Progress, Table, quiet

Loss = Callable[[Tensor], Tensor]
TIME, COUNTS = 0.25, (20, 40, 80, 160, 320)  # learning rate = time / count
FLOWS = ("L_γ", "summed strengths", "L_γ + η/4 |∇L_γ|²")


def problem(seed: int = 0) -> tuple[Tensor, Loss]:
    """The 33 parameters of a tanh network (2-8-1), and its squared error on 16 points."""
    by = torch.Generator().manual_seed(seed)
    theta, x, y = (torch.randn(s, generator=by, dtype=torch.float64) for s in (33, (16, 2), 16))

    def loss(theta: Tensor) -> Tensor:
        hidden = torch.tanh(x @ theta[:16].view(2, 8) + theta[16:24])
        return (hidden @ theta[24:32] + theta[32] - y).square().mean()

    return theta, loss


def norm(vector: Tensor) -> float:
    """Euclidean length."""
    return float(torch.linalg.vector_norm(vector))


def penalised(loss: Loss, strength: Tensor | float) -> Loss:
    """L + strength/2 |grad L|^2, by automatic differentiation."""
    return lambda theta: loss(theta) + strength / 2 * grad(loss)(theta).square().sum()


def descend(loss: Loss, start: Tensor, lr: float, count: int, **rule) -> Tensor:
    """Where ``count`` steps of flatopt over SGD end."""
    param = start.clone().requires_grad_()
    optimizer = GradRegOptimizer(torch.optim.SGD([param], lr=lr), **rule)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(param)
        value.backward()
        return value.item()

    for _ in range(count):
        optimizer.step(closure)
    return param.detach()


def flow_ends(loss: Loss, start: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """For each a and b: the end of the flow of G + b/4 |grad G|^2, G = L + a/2 |grad L|^2."""
    field = vmap(lambda theta, a, b: -grad(penalised(penalised(loss, a), b / 2))(theta))

    def right(_: float, flat: np.ndarray) -> np.ndarray:
        return field(torch.tensor(flat).view(a.numel(), -1), a.ravel(), b.ravel()).numpy().ravel()

    states = start.repeat(a.numel())
    path = solve_ivp(right, (0, TIME), states, "DOP853", rtol=1e-10, atol=1e-12)
    return torch.tensor(path.y[:, -1]).view(*a.shape, -1)


def clipped_product(loss: Loss, theta: Tensor, c: float, eps: float) -> Tensor:
    """(g2 - g1) / eps, both clipped to length c, the shift along the clipped g1."""
    g1 = grad(loss)(theta)
    g1 *= min(1.0, c / norm(g1))
    g2 = grad(loss)(theta + eps * g1)
    return (g2 * min(1.0, c / norm(g2)) - g1) / eps


def check(progress: Progress = quiet) -> Outcome:
    """Identities, orders and coefficients; what clipping takes away."""
    theta, loss = problem()
    g = grad(loss)(theta)
    length, unit = norm(g), g / norm(g)
    hu = jvp(grad(loss), (theta,), (unit,))[1]
    third = norm(jvp(lambda t: jvp(grad(loss), (t,), (unit,))[1], (theta,), (unit,))[1])

    def step(strength: float, **rule) -> Tensor:
        return theta - descend(loss, theta, 1.0, 1, strength=strength, **rule)

    progress("SAM")
    exact = {"difference": "exact"}
    g2, hg = grad(loss)(theta + 0.05 * g), length * hu
    whole, half = (grad(penalised(loss, strength))(theta) for strength in (0.3, 0.15))
    linear = grad(lambda t: loss(t) + 0.1 * grad(loss)(t).norm())(theta)
    cases = (  # name, flatopt's step, predicted, false theory
        ("GR: to ∇(L + γ/2 |g|²)", step(0.3, **exact), whole, half),
        ("γ = ε: to ∇L(θ + εg)", step(0.05, eps=0.05), g2, g + 0.05 * hg),
        ("γ = 10ε: to 10 g2 - 9 g", step(0.5, eps=0.05), 10 * g2 - 9 * g, g2),
        ("γ = ρ/|g|: to ∇(L + ρ|g|)", step(0.1 / length, **exact), linear, g + 0.1 * hg),
    )
    checks = [Check(n, 0, norm(m - p), 1e-12, norm(m - w), "absolute") for n, m, p, w in cases]
    radii = np.logspace(-4, -2, 9)
    # flatopt's radius is relative to the norm of the parameters
    rest = [norm(step(r / length, radius=r / norm(theta)) - g - r * hu) for r in radii]
    slope = np.polyfit(np.log(radii), np.log(rest), 1)[0]
    checks += [
        Check("SAM to ∇(L + ρ|g|): slope in ρ", 2, slope, 0.05, 1, "absolute"),
        Check("SAM to ∇(L + ρ|g|): coefficient", third / 2, rest[0] / radii[0] ** 2, 0.01, third),
    ]

    progress("learning rate")
    eta = TIME / torch.tensor(COUNTS, dtype=torch.float64).expand(3, -1)
    gamma = torch.stack([0 * eta[0], 0 * eta[0] + 0.1, eta[0]])
    a, b = torch.stack([gamma, gamma + eta / 2, gamma]), torch.stack([0 * eta, 0 * eta, eta])
    ends = flow_ends(loss, theta, a, b)  # flow, strength, learning rate
    runs = zip(eta.ravel().tolist(), COUNTS * 3, gamma.ravel().tolist(), strict=True)
    stops = torch.stack([descend(loss, theta, e, n, strength=y, **exact) for e, n, y in runs])
    errors = (stops.view(ends.shape[1:]) - ends).norm(dim=-1).numpy()
    for flow, rule, power in ((2, 0, 2), (0, 1, 1), (1, 1, 1), (2, 1, 2), (1, 2, 2)):
        slope = np.polyfit(eta[0, 2:].log(), np.log(errors[flow, rule, 2:]), 1)[0]
        name = f"γ = {('0', '0.1', 'η')[rule]}: order in η, {FLOWS[flow]}"
        checks.append(Check(name, power, slope, 0.05, 3 - power, "absolute"))
    due = ends[2, 0] - ends[0, 0]
    added = ((stops[: len(COUNTS)] - ends[0, 0]) * due).sum(1) / (2 * due.square().sum(1))
    # extrapolated to a learning rate of 0; the false theory adds all of it, not half
    limit = float(2 * added[-1] - added[-2])
    checks.append(Check("strength that the learning rate adds / η", 0.5, limit, 0.01, 1))

    progress("clipping")
    c, across = length / 2, hu - (hu @ unit) * unit
    clipped = clipped_product(loss, theta, c, 1e-6) / c
    bounded = (step(0.3, max_ratio=0.5, **exact) - g) / length
    x = torch.tensor([100.0], dtype=torch.float64)  # L = 2x²: curvature 4, gradient 400
    true = x - descend(lambda x: 2 * x @ x, x, 1.0, 1, strength=0.1, eps=1e-3, max_ratio=1.0)
    cut = 10 + 0.1 * clipped_product(lambda x: 2 * x @ x, x, 10.0, 1e-3)
    checks += [
        Check("both clipped: error of the product / |Hu|", 0, norm(clipped - across / 2) / norm(hu),
              1e-4, norm(clipped - hu) / norm(hu), "absolute"),
        Check("both clipped: part along g / |Hu|", 0, float(clipped @ unit) / norm(hu), 1e-4,
              float(hu @ unit) / norm(hu), "absolute"),
        Check("max_ratio 0.5: to 0.5 Hu/|Hu|", 0, norm(bounded - 0.5 * hu / norm(hu)), 1e-12,
              norm(bounded - 0.5 * across / norm(across)), "absolute"),
        Check("quadratic: step, both clipped", 10, float(cut), 1e-6, 560),
        Check("quadratic: flatopt's step", 400 * (1 + 0.1 * 4), float(true), 1e-6, 10),
    ]  # fmt: skip
    arrows = {"not clipped": 0.3 * hu, "both clipped": 0.3 * clipped, "max_ratio 0.5": bounded}
    x, y = ([float(v @ e) / norm(e) for v in arrows.values()] for e in (unit, across))
    return Outcome(checks, {
        "sam": {"rho": [*radii], "distance": rest},
        "learning_rate": dict(zip(("eta", *FLOWS), [eta[0].tolist(), *errors[:, 1]], strict=True)),
        "clipping": {"penalty": [*arrows], "along g": x, "across g": y},
    })  # fmt: skip


def plot(tables: dict[str, Table]) -> Figure:
    """SAM's distance, the learning rate's three flows, and what clipping leaves of the penalty."""
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    sam, rate, clip = figure.subplots(1, 3)
    sam.loglog(*tables["sam"].values(), "o-")
    sam.set(xlabel="radius ρ", ylabel="distance", title="SAM's gradient to ∇(L + ρ|∇L|)")
    for flow in FLOWS:
        rate.loglog(tables["learning_rate"]["eta"], tables["learning_rate"][flow], "o-", label=flow)
    rate.set(xlabel="learning rate η", ylabel="distance", title="Descent (γ = 0.1) to the flow of")
    for name, x, y in zip(*tables["clipping"].values(), strict=True):  # drawn as pins
        clip.plot([0, x], [0, y], "o-", markevery=[1], label=name)
    clip.set(xlabel="part along ∇L", ylabel="part across ∇L", title="GR's term, relative to |∇L|")
    rate.legend(frameon=False)
    clip.legend(frameon=False)
    return figure
