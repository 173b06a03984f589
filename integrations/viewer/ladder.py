"""The report's gaming matrix of ladder runs: how often each stage is gamed after each phase."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .arms import NOTHING, Arm
from .runs import Run, as_dict, number
from .tables import Line, Table

AWAY = "-away"  # how the row after the phase that pays the true reward ends


def gaming_rate(run: Run, policy: str, stage: str) -> float | None:
    """The share of completions on gameable prompts that game, in per cent; None if not measured.

    >>> from pathlib import Path
    >>> cell = {"gameable": {"n": 50, "gamed": 1}}
    >>> gaming_rate(Run(Path("a"), "a", summary={"matrix": {"0-start": {"agree": cell}}}),
    ...             "0-start", "agree")
    2.0
    """
    row = as_dict(as_dict(run.summary.get("matrix")).get(policy))
    cell = as_dict(as_dict(row.get(stage)).get("gameable"))
    n, gamed = number(cell.get("n")), number(cell.get("gamed"))
    if n is None or gamed is None or not 0 <= gamed <= n or n < 1:  # a file may hold anything
        return None
    return 100 * gamed / n


def percent(rates: Sequence[float | None]) -> str:
    """Mean and standard deviation of the known rates, with one digit.

    >>> percent([1.0, 3.0, None]), percent([0.5]), percent([])
    ('2.0 ± 1.4', '0.5', '–')
    """
    known = [rate for rate in rates if rate is not None]
    if not known:
        return NOTHING
    sd = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{sd}"


def gaming_matrix(arms: Sequence[Arm]) -> Table | None:
    """A row for each arm and phase, a column for each stage; None where no run has a matrix."""
    stages: dict[str, None] = {}
    lines = []
    found = [(arm, [run for run in arm.finished if run.summary.get("matrix")]) for arm in arms]
    for _, runs in found:
        for run in runs:
            for row in as_dict(run.summary.get("matrix")).values():
                stages |= dict.fromkeys(map(str, as_dict(row)))
    for arm, runs in found:
        names = (name for run in runs for name in as_dict(run.summary.get("matrix")))
        for policy in dict.fromkeys(names):
            cells = [percent([gaming_rate(run, policy, stage) for run in runs]) for stage in stages]
            lines.append(Line(arm.number, f"{arm.label}, {policy}", [*cells]))
    return Table(["arm, policy after", *stages], lines) if stages and lines else None


def ends_on_truth(runs: Sequence[Run]) -> bool:
    """Whether the last steps of a run were paid the true reward, which its final numbers are of."""
    return any(name.endswith(AWAY) for run in runs for name in as_dict(run.summary.get("matrix")))
