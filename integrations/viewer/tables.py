"""The report's tables: outcomes, single runs, GR's numbers, held-out evaluation, settings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..report import final_means
from .arms import NOTHING, SEEDS, Arm, flatten, place, settings_of, short
from .curves import points_of, smooth
from .panels import KNOWN
from .runs import Run, as_dict, number
from .svg import strip, widen

Cell = str | Markup


@dataclass(frozen=True)
class Line:
    """One row: of an arm, whose colour it shows, or of anything else (number None)."""

    number: int | None
    head: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A table as text; the page escapes it. `columns[0]` stands above the heads of the rows."""

    columns: list[str]
    lines: list[Line]
    text: bool = False  # cells are words rather than numbers


def show(value: float | None) -> str:
    """A number with about three digits.

    >>> show(0.1234), show(-12.345), show(123456.0), show(1e-5), show(None)
    ('0.123', '−12.35', '1.23e+05', '1e-05', '–')
    """
    if value is None:
        return NOTHING
    size = abs(value)
    if value and (size < 1e-3 or size >= 1e4):
        text = f"{value:.3g}"
    else:
        text = f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 100 else f"{value:.1f}"
    return "−" + text[1:] if text.startswith("-") else text


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of what is known, to the same digit.

    >>> spread([1.0, 3.0, None]), spread([0.5]), spread([])
    ('2.000 ± 1.414', '0.500', '–')
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return show(known[0] if known else None)
    mean, sd = show(statistics.fmean(known)), statistics.stdev(known)
    if "e" in mean:
        return f"{mean} ± {sd if sd > 1e-6 * statistics.fmean(known) else 0:.1g}"
    return f"{mean} ± {sd:.{len(mean.partition('.')[2])}f}"


def final(run: Run, name: str) -> float | None:
    """A final number: from the summary, or from the last rows of an unfinished run."""
    if run.summary:
        return number(as_dict(run.summary.get("final")).get(name))
    return number(final_means(run.rows).get(name)) if run.rows else None


def start(run: Run, name: str) -> float | None:
    """A number of the first row."""
    found = number(as_dict(run.summary.get("start")).get(name))
    return found if found is not None or not run.rows else run.rows[0].get(name)


def peak(run: Run) -> float | None:
    """The highest smoothed true reward."""
    found = number(run.summary.get("peak_true"))
    return found or max((v for _, v in smooth(points_of(run, "true"))), default=found)


def hacked(runs: Sequence[Run]) -> str:
    """How many of the finished runs were hacked, of those where it is known.

    >>> from pathlib import Path
    >>> hacked([Run(Path("a"), "a", summary={"hacked": True})])
    '1 of 1'
    """
    known = [run.summary["hacked"] for run in runs if isinstance(run.summary.get("hacked"), bool)]
    return f"{sum(known)} of {len(known)}" if known else NOTHING


def outcomes(arms: Sequence[Arm]) -> Table:
    """What each arm came to: means over its finished runs."""
    columns: list[tuple[str, Callable[[Run], float | None]]] = [
        ("start true", lambda run: start(run, "true")),
        ("peak true", peak),
        ("final true", lambda run: final(run, "true")),
        ("final proxy", lambda run: final(run, "proxy")),
        ("format", lambda run: final(run, "format")),
        ("entropy", lambda run: final(run, "entropy")),
        ("KL to start", lambda run: final(run, "kl_start")),
        ("length", lambda run: final(run, "length")),
    ]
    kept = [(n, get) for n, get in columns if any(get(r) is not None for a in arms for r in a.runs)]
    ends = {arm.label: [final(run, "true") for run in arm.finished] for arm in arms}
    known = [value for values in ends.values() for value in values if value is not None]
    limits = (0.0, 1.0) if known and min(known) >= 0 and max(known) <= 1 else None
    limits = limits or (widen(min(known), max(known)) if known else None)
    names = ["arm", "runs"]
    names += [f"each run's final true, {limits[0]:.3g} to {limits[1]:.3g}"] if limits else []
    names += ["hacked", *(name for name, _ in kept)]  # what the eye looks for stands first
    lines = []
    for arm in arms:
        runs = arm.finished
        count = f"{len(runs)}" if len(runs) == len(arm.runs) else f"{len(runs)} of {len(arm.runs)}"
        cells: list[Cell] = [count]
        if limits:
            mine = [value for value in ends[arm.label] if value is not None]
            cells.append(strip(arm.number, mine, limits) if mine else NOTHING)
        cells += [hacked(runs), *(spread([get(run) for run in runs]) for _, get in kept)]
        lines.append(Line(arm.number, arm.label, cells))
    return Table(names, lines)


def each_run(arms: Sequence[Arm]) -> Table:
    """Every run on its own, finished or not."""
    columns = ["run", "seeds", "state", "hacked at step", "start true", "peak true", "final true"]
    columns += ["final proxy", "gradient norm", "minutes"]
    lines = []
    for arm in arms:
        for run in arm.runs:
            step = number(run.summary.get("hack_step"))
            known = isinstance(run.summary.get("hacked"), bool)
            when = f"{step:g}" if step is not None else "never" if known else NOTHING
            seconds = number(run.summary.get("seconds"))
            values = [start(run, "true"), peak(run), final(run, "true"), final(run, "proxy")]
            values += [final(run, "grad_norm"), seconds / 60 if seconds is not None else None]
            cells: list[Cell] = [place(run), run.progress, when, *map(show, values)]
            lines.append(Line(arm.number, run.name, cells))
    return Table(columns, lines)


def gr_numbers(arms: Sequence[Arm]) -> Table | None:
    """GR's numbers at the end, mean ± sd over the finished runs; None where no arm has GR."""
    mine = [arm for arm in arms if any(as_dict(run.settings.get("gr")) for run in arm.runs)]
    rows = (row for arm in mine for run in arm.runs for row in run.rows)
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith("gr/")))
    if not mine or not names:
        return None
    heads = [KNOWN.get(name, (name.removeprefix("gr/").replace("_", " "), ""))[0] for name in names]
    lines = [
        Line(a.number, a.label, [spread([final(r, n) for r in a.plotted]) for n in names])
        for a in mine
    ]
    return Table(["arm", *heads], lines)


def problems(runs: Sequence[Run]) -> Table | None:
    """Runs that are not finished, or of which something could not be read."""
    lines = []
    for run in runs:
        if run.state != "finished" or run.notes or not run.rows:
            lines.append(Line(None, run.name, [run.progress, "; ".join(run.notes) or NOTHING]))
    return Table(["run", "state", "what could not be read"], lines, text=True) if lines else None


def settings_tables(arms: Sequence[Arm]) -> tuple[Table | None, Table]:
    """Settings that differ between arms (None where nothing does), and those that all share.

    Seeds, which differ within an arm, are listed with their values.
    """
    flats = [settings_of(arm.runs[0]) for arm in arms]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    different, shared = [], []
    for name in names:
        values = [short(flat[name]) if name in flat else NOTHING for flat in flats]
        if len(set(values)) > 1:
            different.append(Line(None, name, list(values)))
        else:
            shared.append(Line(None, name, [values[0]]))
    every = [flatten(run.settings) for arm in arms for run in arm.runs]
    for name in SEEDS:
        found = sorted({short(flat[name]) for flat in every if name in flat})
        shared += [Line(None, name, [" / ".join(found)])] if found else []
    first = Table(["setting", *(arm.label for arm in arms)], different, text=True)
    return first if different else None, Table(["setting", "value"], shared, text=True)


def environment_table(runs: Sequence[Run]) -> Table | None:
    """Versions that the numbers depend on; all values where runs differ."""
    known = [as_dict(run.summary.get("environment")) for run in runs]
    names = list(dict.fromkeys(name for versions in known for name in versions))
    lines = []
    for name in names:
        values = dict.fromkeys(short(versions[name]) for versions in known if name in versions)
        lines.append(Line(None, str(name), [" / ".join(values)]))
    return Table(["part", "version"], lines, text=True) if lines else None


def plain_numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """The numbers at the top of an evaluation."""
    return {k: n for k, v in evaluation.items() if (n := number(v)) is not None}
