r"""With a width that is learnt too, GR brings the policy to the true hill: a window of strengths.

Statement
    The landscape has a wide true hill and a narrow false spike, and the policy
    :math:`N(\mu,\sigma^2I)` now learns :math:`\log\sigma` as well. GR below the window changes
    nothing; within it all starts outside a small disc reach the hill; beyond it they stop at the
    saddle of L. Upper edge: :math:`1/|\lambda|` of that saddle. Lower edge: the strength at which
    the solution of

    .. math:: \frac{dy}{d\log\sigma}=r_0+r_1y+\tfrac12r_2y^2

    ends on the hill's side instead of the spike's. y is the distance of the policy from the ridge,
    the line of saddles :math:`x_\sigma` at fixed :math:`\sigma`; :math:`r_k(\sigma,\gamma)` are
    derivatives of L there. It does not depend on the start while :math:`\sigma_0` is small. A KL
    penalty at beta .01, and resets in the limit of full inner convergence (natural gradient), do
    not help.

Assumptions
    Exact gradients, small steps; :math:`L=-\sum_k h_k\frac{w_k^2}{s_k^2}e^{-|\mu-c_k|^2/2s_k^2}`,
    :math:`s_k^2=w_k^2+\sigma^2`, hill 2.5 high, width 1, spike 4 high, width .15; a second
    landscape with spike 3.5, .2. Starts on a square around the spike, :math:`\sigma_0` = .05 or .1.

Derivation
    GR drives all starts that it frees to the ridge, where it holds while
    :math:`\gamma|\lambda_\sigma|>1`. There :math:`-\partial_{\log\sigma}L=\sigma^2\Delta J>0`:
    the policy widens, the spike fades, :math:`|\lambda_\sigma|` falls, the hold is lost. Which way
    it then falls was decided before. With velocity v(s, log sigma) = :math:`-(I+\gamma H)g` along
    the ridge's line, :math:`dy/d\log\sigma=v_s/v_{\log\sigma}-x'_\sigma`; :math:`r_k` are its
    Taylor coefficients in y at the ridge. No closed form is known to us. Saddle of L: its Hessian
    under GR, :math:`H+\gamma H^2`, is positive for :math:`\gamma>1/|\lambda|`.

Falsified if
    an edge is off by more than 3 % (10 % without r_2), a share by .03, or resets change it by .05.

Source: derived here. Seeds: none, nothing is drawn at random.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy import ndarray
from scipy.optimize import fsolve
from torch.func import hessian

from theory import hills, hills_plot
from theory.check import Check, Outcome, Progress, Table, quiet
from theory.hills import AXIS, FALSE, SIGMA, SPIKE, descend, edge, ends, flow, gr, gradient
from theory.ridge import lower_edge, place, ridge

# the name of a case: width at the start, false spike
CASES = {"width .05": (0.05, FALSE), "width .1": (0.1, FALSE), "other spike": (0.05, (3.5, 0.2))}


def measured_edge(
    width: float, false: tuple[float, float] = FALSE, *, upper: bool = False
) -> float:
    """Where the share on the hill is half-way between outside and within the window."""
    start = hills.square(7, width)

    def share(strength: float) -> float:
        return ends(gr(strength, start, 220, false=false)[-1])[0].mean()

    middle = (share(0) + share(0.25)) / 2
    if upper:
        return edge(lambda s: share(s) < middle, 0.25, 0.6, 9)
    return edge(lambda s: share(s) > middle, 0.03, 0.25, 9)


def resets(x: ndarray) -> ndarray:
    """The natural gradient, to which resets tend: Fisher is 1 / sigma^2, and 4 for log sigma."""
    g = gradient(x)
    return np.concatenate([g[..., :2] * np.exp(2 * x[..., 2:]), g[..., 2:] / 4], -1)


def kl(beta: float, start: ndarray) -> ndarray:
    """The curves under a KL penalty to the start."""

    def field(x: ndarray) -> ndarray:
        moved = x - start
        wider = 2 * np.exp(2 * moved[..., 2:]) - 2
        return gradient(x) + beta * np.concatenate([moved[..., :2] / SIGMA**2, wider], -1)

    return flow(field, start, 220)


def check(progress: Progress = quiet) -> Outcome:
    """Both edges, in two landscapes; shares within and outside; the methods that do not help."""
    progress("edges")
    line = ridge()
    saddle = fsolve(gradient, place(*line[-1]))
    upper = -1 / np.linalg.eigvalsh(hessian(hills.loss)(torch.tensor(saddle)).numpy())[0]
    # the rivals: GR helps as soon as it closes the spike, and as long as it leaves the hill open
    closes, opens = hills.limits()
    checks = [Check("upper edge", upper, measured_edge(0.1, upper=True), 0.03, closes)]
    checks += [
        Check(f"lower edge, {name}", lower_edge(case[1]), measured_edge(*case), 0.03, opens)
        for name, case in CASES.items()
    ]
    linear, measured = lower_edge(order=1), checks[1].measured
    checks.append(Check("lower edge, r_2 left out", linear, measured, 0.1, opens))
    edges = {
        "edge": [check.name for check in checks],
        "predicted": [check.predicted for check in checks],
        "measured": [check.measured for check in checks],
    }

    progress("shares")
    start = hills.square(19, SIGMA)
    runs = {
        "none": flow(gradient, start, 220),
        "GR .2": gr(0.2, start, 220),
        "KL .01": kl(0.01, start),
        "resets": descend(resets, start, 0.3, 6000),
        "GR .05": gr(0.05, start, 220),
        "GR .45": gr(0.45, start, 220),
    }
    shares = hills_plot.shares(runs)
    hill = dict(zip(shares["method"], shares["hill"], strict=True))
    none, best = hill["none"], hill["GR .2"] - hill["none"]
    kept = np.linalg.norm(start[:, :2] - SPIKE, axis=1) < hills.inner_root(0.2, 1)
    stopped = runs["GR .45"][-1][~ends(runs["GR .45"][-1]).any(0)]
    width = np.median(np.exp(stopped[:, 2]))
    checks += [
        Check("GR .2: on the hill", 1 - kept.mean(), hill["GR .2"], 0.03, none, "absolute"),
        Check("GR .05: gained by the hill", 0, hill["GR .05"] - none, 0.05, best, "absolute"),
        Check("GR .45: width where it stops", np.exp(saddle[2]), width, 0.01, SIGMA),
        Check("resets: gained by the hill", 0, hill["resets"] - none, 0.05, best, "absolute"),
        Check("KL .01: on the hill", 0, hill["KL .01"], 0.03, none, "absolute"),
    ]

    progress("strengths")
    strengths = np.linspace(0.02, 0.5, 25)
    scan: dict[str, list] = {"strength": [*strengths]}
    for at in (0.05, 0.1, 0.2):
        last = gr(np.repeat(strengths, 49), np.tile(hills.square(7, at), (25, 1)), 220)[-1]
        scan[f"from width {at:g}"] = [*ends(last)[0].reshape(25, 49).mean(1)]
    waits: dict[str, list] = {"strength": [], "distance": [], "width": []}
    some = np.array([[SPIKE[0] - 0.1, SPIKE[1] + 0.35, np.log(0.05)]])
    for strength in (0.09, 0.12, 0.45):
        path = gr(strength, some, 220)[:, 0]
        waits["strength"] += [strength] * len(path)
        waits["distance"] += [*(path[:, :2] - SPIKE) @ AXIS]
        waits["width"] += [*np.exp(path[:, 2])]
    tables = {"shares": shares, "edges": edges, "strengths": scan, "waits": waits}
    tables["ridge"] = {"distance": [*line[:, 0]], "width": [*np.exp(line[:, 1])]}
    tables["curves"] = hills_plot.curves({n: runs[n] for n in ("none", "GR .2")}, 30)
    return Outcome(checks, tables | {"surface": hills_plot.surface()})


def plot(tables: dict[str, Table]) -> Figure:
    """The same starts without and with GR, the window, and the wait on the ridge."""
    figure = Figure(figsize=(9.5, 9.2), layout="constrained")
    (none, with_gr), (window, wait) = figure.subplots(2, 2)
    shares = {row[0]: row[1:3] for row in zip(*tables["shares"].values(), strict=True)}
    for axes, name in ((none, "none"), (with_gr, "GR .2")):
        hills_plot.draw(axes, tables["surface"], tables["curves"], name)
    none.set_title(f"No regularization:\n{shares['none'][1]:.0%} end on the false spike")
    with_gr.set_title(f"GR, strength .2:\n{shares['GR .2'][0]:.0%} reach the true hill")
    (_, strengths), *columns = tables["strengths"].items()
    for (name, share), colour in zip(columns, ("olive", "tab:green", "tab:cyan"), strict=True):
        window.plot(strengths, share, ".-", color=colour, label=name)
    for at in tables["edges"]["predicted"][:2]:
        window.axvline(float(at), color="black", linestyle=":")
    window.set(xlabel="strength of GR", ylabel="share that reaches the hill", ylim=(0, 1))
    window.set_title("A window of strengths\n(dotted: predicted edges)")
    window.legend(frameon=False, loc="lower left")
    texts = {0.09: ".09: to the spike", 0.12: ".12: to the hill", 0.45: ".45: stays for good"}
    rows = np.array([*zip(*tables["waits"].values(), strict=True)])
    for (value, text), end in zip(texts.items(), ("spike", "hill", "neither"), strict=True):
        path = rows[rows[:, 0] == value]
        wait.plot(path[:, 1], path[:, 2], color=hills_plot.COLOURS[end], label=f"strength {text}")
    wait.plot(tables["ridge"]["distance"], tables["ridge"]["width"], "k--", label="ridge")
    wait.set(xlabel="distance from the spike towards the hill", ylabel="width of the policy")
    wait.set_title("Why: held on the ridge the policy widens\nuntil the spike has faded")
    wait.legend(frameon=False, loc=(0.3, 0.15))
    return figure
