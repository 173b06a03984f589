"""Which plots a report has: every column of the metrics that holds numbers gets a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .arms import Arm
from .curves import Point, arm_curve, points_of, thin_out
from .svg import Limits, Line, line_plot

POINTS = 60_000  # drawn in all panels together: about a megabyte
KNOWN = {
    "proxy": ("Proxy reward", "what is trained on"),
    "true": ("True reward", "what is wanted"),
    "reward": ("Reward", "as the trainer saw it"),
    "format": ("Format", "share of completions of the right form"),
    "auc": ("AUC of the proxy", "chance that a right completion outscores a wrong one"),
    "reward_accuracy": ("Accuracy of the proxy", "pairs of one prompt put in the order of gold"),
    "grad_norm": ("Gradient norm", "of the loss, without GR's penalty"),
    "gr/grad_norm": ("Gradient norm", "of the loss, without GR's penalty"),
    "gr/penalty_ratio": ("Penalty ratio", "length of GR's penalty over the gradient's"),
    "entropy": ("Entropy", "nats per token"),
    "kl_start": ("KL to the start policy", "nats per completion"),
    "kl_reference": ("KL to the reference", "as the trainer estimates it"),
    "length": ("Completion length", "tokens"),
    "truncated": ("Cut completions", "share that reached the longest length"),
    "spread": ("Spread of the proxy", "standard deviation within a group"),
    "zero_std_groups": ("Groups without signal", "share whose rewards are all equal"),
    "gr/strength": ("Strength", "of GR's penalty, as used"),
    "gr/penalty_norm": ("Penalty norm", "length of strength × Hg"),
    "gr/perturbed_grad_norm": ("Gradient norm at θ′", "after the shift"),
    "gr/cosine": ("Cosine", "of the gradients at θ and θ′"),
    "gr/curvature": ("Curvature", "g·Hg / g·g"),
    "gr/realised_step": ("Realised step", "shift that survived rounding / intended"),
    "gr/radius": ("Radius", "shift / length of the weights"),
    "gr/turn": ("Turn", "angle by which GR turns the gradient, radians"),
    "gr/reversed": ("Reversed", "share of coordinates that change sign"),
    "gr/skipped": ("Skipped", "share of steps that left GR out"),
    "loss": ("Loss", "as the trainer logs it"),
    "step_time": ("Step time", "seconds"),
    "learning_rate": ("Learning rate", ""),
}
REWARDS = ("proxy", "true", "reward")
SIGNALS = (
    "grad_norm", "gr/penalty_ratio", "entropy", "kl_start", "kl_reference", "length", "auc",
    "reward_accuracy", "format", "spread", "truncated", "zero_std_groups",
)  # fmt: skip
SHARES = ("proxy", "true", "format", "auc", "reward_accuracy")
EQUAL = 1e-4  # a column that varies less, in relation to its size, is one number
LOGARITHMIC = ("norm", "strength", "penalty_ratio", "radius", "learning_rate", "step_time")
GR_PLOTS = "Plots of GR's own numbers"
DECADES = 30.0  # highest over lowest value from which such a column is drawn logarithmically


@dataclass(frozen=True)
class Panel:
    """A plot with its title and one line that says what is shown."""

    title: str
    note: str
    plot: Markup


@dataclass(frozen=True)
class Section:
    """Panels under one heading; `folded` ones are shown on demand."""

    heading: str
    note: str
    panels: list[Panel]
    folded: bool = False


def column_names(arms: Sequence[Arm]) -> list[str]:
    """All columns with numbers, in the order in which they appear."""
    rows = (row for arm in arms for run in arm.runs for row in run.rows)
    return list(dict.fromkeys(name for row in rows for name in row if name != "step"))


def constant(arms: Sequence[Arm], name: str) -> float | None:
    """The number that a column is throughout, which no plot is needed for; None if it varies."""
    rows = (row for arm in arms for run in arm.runs for row in run.rows)
    values = [row[name] for row in rows if name in row]
    low, high = min(values), max(values)
    return values[-1] if high - low <= EQUAL * max(abs(low), abs(high)) else None


def titles(name: str) -> tuple[str, str]:
    """Title and note of a column.

    >>> titles("rewards/format/mean")
    ('format', '')
    """
    if name in KNOWN:
        return KNOWN[name]
    parts = name.split("/")
    if parts[0] == "rewards" and parts[-1] == "mean":
        return "/".join(parts[1:-1]).replace("_", " ") or name, ""
    if parts[0] == "level" and parts[-1] == "true":
        return f"Level {'/'.join(parts[1:-1])}", "true reward in training batches"
    return name, ""


def draw(arms: Sequence[Arm], name: str, most: int) -> Panel | None:
    """The panel of one column: a thin line per run, a thick one per arm; None for no number."""
    lines = []
    for arm in arms:
        for run in arm.runs:
            points = thin_out(points_of(run, name), most)
            lines += [Line(arm.number, f"{arm.label}: {run.name}", points)] if points else []
        mean = thin_out(arm_curve(arm, name), 3 * most)
        lines += [Line(arm.number, arm.label, mean, thick=True)] if mean else []
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    log = name.endswith(LOGARITHMIC) and min(values) > 0 and max(values) / min(values) > DECADES
    limits = unit_range(name, values)
    title, note = titles(name)
    note = f"{note}; logarithmic" if log and note else "logarithmic" if log else note
    ends = [f"{line.label} {line.points[-1][1]:.3g}" for line in lines if line.thick]
    label = f"{title} over steps; at the end: {', '.join(ends)}"
    return Panel(title, note, line_plot(lines, label, limits, log))


def unit_range(name: str, values: Sequence[float]) -> Limits | None:
    """0 to 1 for shares and for rewards in that range, so that panels can be compared."""
    share = name in SHARES or name.startswith(("level/", "rewards/"))
    if share and min(values) >= 0 and max(values) <= 1:
        return (-0.02, 1.02)
    return None


def trajectories(arms: Sequence[Arm], most: int) -> Panel | None:
    """True over proxy reward, means over runs: where the curve turns down the proxy is hacked."""
    lines = []
    for arm in arms:
        proxy, true = arm_curve(arm, "proxy"), dict(arm_curve(arm, "true"))
        points: list[Point] = [(value, true[step]) for step, value in proxy if step in true]
        if len(points) > 1:
            every = -(-len(points) // (3 * most))  # not by extremes: both coordinates move
            points = [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])]
            lines.append(Line(arm.number, arm.label, points, thick=True))
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    plot = line_plot(
        lines,
        "True reward over proxy reward, the mean of each arm",
        unit_range("true", values),
        x_label="proxy reward",
        y_label="true reward",
        follow=False,
    )
    return Panel("True over proxy", "means; a dot marks the last step", plot)


def constants(arms: Sequence[Arm]) -> list[tuple[str, float]]:
    """Columns that were one number in all runs, but for rewards, which are plotted anyway."""
    names = [n for n in column_names(arms) if not is_reward(n)]
    found = [(titles(name)[0], constant(arms, name)) for name in names]
    return [(title, value) for title, value in found if value is not None]


def is_reward(name: str) -> bool:
    """Whether a column is a reward, a term of it, or the true reward at a level."""
    return name in REWARDS or name.startswith(("rewards/", "level/"))


def sections(arms: Sequence[Arm]) -> list[Section]:
    """All plots of a report, those without data left out."""
    names = column_names(arms)
    runs = sum(len(arm.runs) for arm in arms)
    most = max(40, min(300, POINTS // max(1, len(names) * runs)))
    if "gr/grad_norm" in names and "grad_norm" in names:
        names.remove("gr/grad_norm")  # the same numbers
    names = [n for n in names if is_reward(n) or constant(arms, n) is None]

    rewards = [n for n in REWARDS if n in names]
    terms = [n for n in names if n.startswith("rewards/") and n.endswith("/mean")]
    levels = sorted(n for n in names if n.startswith("level/") and n.endswith("/true"))
    signals = [n for n in SIGNALS if n in names]
    gr = [n for n in names if n.startswith("gr/") and n not in signals]
    taken = {*rewards, *terms, *levels, *signals, *gr}
    others = [n for n in names if n not in taken]

    def panels(chosen: Sequence[str]) -> list[Panel]:
        return [panel for name in chosen if (panel := draw(arms, name, most))]

    first = panels(rewards)
    along = trajectories(arms, most)
    first[2:2] = [along] if along else []
    found = [
        Section("Proxy and true reward", "", first),
        Section("Reward terms", "The mean of each reward function.", panels(terms)),
        Section("Signals", "", panels(signals)),
        Section("True reward by level", "In the training batches.", panels(levels)),
        Section(GR_PLOTS, "", panels(gr), folded=True),
        Section("Everything else that was logged", "", panels(others), folded=True),
    ]
    return [section for section in found if section.panels]
