"""The held-out evaluation of runs that have one: pass@1 with intervals by level, or gold reward."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from .arms import Arm
from .panels import Panel
from .runs import as_dict, number
from .svg import Interval, interval_plot
from .tables import Line, Table, plain_numbers, show, spread

GROUPS = {
    "by_level": ("Accuracy by level", "the questions' own levels"),
    "by_quintile": ("Accuracy by difficulty", "fifths by the start policy's own pass rate"),
}
# numbers of an RLHF evaluation and their names; those with _sft are of the policy before RL
GOLD = {
    "gold": "gold reward",
    "win_rate": "win rate against the start",
    "kl": "KL to the start",
    "proxy": "proxy",
    "accuracy": "accuracy of the proxy",
    "length": "length",
}
START = "start policy"


def share_of(evaluation: dict[str, Any], group: str) -> dict[str, dict[str, float]]:
    """Mean, low and high of each level; levels without a mean are left out.

    >>> share_of({"by_level": [{"level": 1, "mean": 0.5, "low": 0.4, "high": 0.6}]}, "by_level")
    {'1': {'mean': 0.5, 'low': 0.4, 'high': 0.6}}
    """
    found = {}
    items = evaluation.get(group)
    for item in map(as_dict, items if isinstance(items, list) else []):
        values = interval(item)
        if values:
            found[str(item.get("level"))] = values
    return found


def interval(item: dict[str, Any]) -> dict[str, float]:
    """Mean, low and high of an entry; empty without a mean. Without bounds, the mean itself."""
    mean = number(item.get("mean"))
    if mean is None:
        return {}
    low, high = number(item.get("low")), number(item.get("high"))
    return {
        "mean": mean,
        "low": mean if low is None else low,
        "high": mean if high is None else high,
    }


def pooled(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over runs: the mean ± sd; of one run its own interval over questions."""
    if len(shares) == 1:
        return shares[0]
    means = [share["mean"] for share in shares]
    mean, sd = statistics.fmean(means), statistics.stdev(means)
    return {"mean": mean, "low": mean - sd, "high": mean + sd}


def bases(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The start policy's evaluations, each once."""
    found = [as_dict(run.evaluation.get("base")) for arm in arms for run in arm.runs]
    return [base for i, base in enumerate(found) if base and base not in found[:i]]


def accuracy_table(arms: Sequence[Arm]) -> Table | None:
    """pass@1, format and each level: the start policy, then each arm; None without evaluations."""
    keys: dict[tuple[str, str], str] = {}
    rows: list[tuple[int | None, str, list[dict[str, Any]]]] = [(None, START, bases(arms))]
    rows += [(arm.number, arm.label, [r.evaluation for r in arm.runs]) for arm in arms]
    for _, _, evaluations in rows:
        for group in GROUPS:
            for level in (name for e in evaluations for name in share_of(e, group)):
                keys[group, level] = f"level {level}" if group == "by_level" else level
    lines = []
    for arm_number, label, evaluations in rows:
        known = [e for e in evaluations if interval(as_dict(e.get("pass_at_1")))]
        if not known:
            continue
        passed = [interval(as_dict(e["pass_at_1"])) for e in known]
        bounds = f"{show(passed[0]['low'])} to {show(passed[0]['high'])}"
        formatted = [interval(as_dict(e.get("formatted"))).get("mean") for e in known]
        cells = [str(len(known)), spread([p["mean"] for p in passed])]
        cells += [bounds if len(passed) == 1 else "–", spread(formatted)]
        for group, level in keys:
            cells.append(spread([share_of(e, group).get(level, {}).get("mean") for e in known]))
        lines.append(Line(arm_number, label, list(cells)))
    columns = ["arm", "evaluations", "pass@1", "95 % interval", "format", *keys.values()]
    return Table(columns, lines) if lines else None


def gold_table(arms: Sequence[Arm]) -> Table | None:
    """Held-out gold reward and the like, after RL and before it; None without any."""
    rows = []
    for arm in arms:
        known = [numbers for run in arm.runs if (numbers := plain_numbers(run.evaluation))]
        known = [numbers for numbers in known if GOLD.keys() & numbers.keys()]
        if known:
            rows.append((arm, known))
    seen = {name for _, known in rows for numbers in known for name in numbers}
    columns = {}
    for name, title in GOLD.items():
        columns |= {name: title} if name in seen else {}
        columns |= {f"{name}_sft": f"{title}, {START}"} if f"{name}_sft" in seen else {}
    lines = [
        Line(
            a.number,
            a.label,
            [str(len(known)), *(spread([n.get(c) for n in known]) for c in columns)],
        )
        for a, known in rows
    ]
    return Table(["arm", "evaluations", *columns.values()], lines) if lines else None


def level_panels(arms: Sequence[Arm]) -> list[Panel]:
    """Accuracy by level and by difficulty, with intervals."""
    panels = []
    for group, (title, note) in GROUPS.items():
        items = [
            Interval(None, START, level, **share)
            for base in bases(arms)[:1]
            for level, share in share_of(base, group).items()
        ]
        for arm in arms:
            found = [share_of(run.evaluation, group) for run in arm.runs]
            for level in dict.fromkeys(name for shares in found for name in shares):
                pool = pooled([shares[level] for shares in found if level in shares])
                items.append(Interval(arm.number, arm.label, level, **pool))
        if items:
            ends = [value for item in items for value in (item.low, item.high)]
            limits = (0.0, 1.0) if min(ends) >= 0 and max(ends) <= 1 else None
            plot: Markup = interval_plot(items, f"{title}: mean and interval of each arm", limits)
            text = f"{note}; bars: mean ± sd of runs, or of one run the 95 % interval"
            panels.append(Panel(title, text, plot))
    return panels
