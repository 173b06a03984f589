"""What every statement of theory/ must show; its test file calls `verify` with its name."""

from __future__ import annotations

import csv
import importlib
import inspect
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

from theory import STATEMENTS, report
from theory.check import Outcome

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "theory"
# the parts of a statement's docstring, in its own words
PARTS = ("Statement", "Assumptions", "Derivation", "Falsified if", "Seeds")


@cache
def measured(name: str) -> Outcome:
    """The outcome of a statement, measured once in a process."""
    return importlib.import_module(f"theory.{name}").check()


def committed_rows(name: str) -> dict[str, list[str]]:
    """The rows of the table in the statement's page: the check's name to the other cells."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    table = text.partition(report.BEGIN)[2].partition(report.END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    rows = [line.replace(r"\|", "\0").strip("| ").split(" | ") for line in lines]
    return {row[0].replace("\0", "|"): row[1:] for row in rows}


def verify(name: str) -> Outcome:
    """Every check holds and could have failed; the plot draws; docstring and page are right."""
    assert name in STATEMENTS, f"{name} is not listed in theory/__init__.py"
    module = importlib.import_module(f"theory.{name}")
    outcome = measured(name)
    assert outcome.checks
    for check in outcome.checks:
        assert check.holds, f"fails: {check}"
        assert check.refuses_wrong, f"would accept the false theory too: {check}"
    figure = module.plot(outcome.tables)
    assert figure.axes
    for part in PARTS:
        assert part in (module.__doc__ or ""), f"theory/{name}.py: no {part!r} in its docstring"
    assert len(inspect.getsource(module).splitlines()) < 200, f"theory/{name}.py: 200 lines or more"
    assert_page_is_current(name, outcome)
    return outcome


def assert_page_is_current(name: str, outcome: Outcome) -> None:
    """The page's table and the CSVs beside it are those of this code, up to rounding."""
    old = f"docs/theory/{name}.md is old: run `python -m theory {name} --pages docs/theory`"
    rows = committed_rows(name)
    assert list(rows) == [check.name for check in outcome.checks], old
    for check in outcome.checks:
        predicted, measured, demand, wrong, verdict = rows[check.name]
        assert (demand, verdict) == (check.demand, "holds"), f"{old}: {check.name}"
        assert near(float(predicted), check.predicted), f"{old}: {check.name}"
        assert near(float(wrong), check.wrong, 0.05), f"{old}: {check.name}"
        # on another machine simulations differ in detail, but then they must hold as well
        page = replace(check, measured=float(measured))
        assert page.holds or near(page.measured, check.measured), f"{old}: {check.name}"
    assert (PAGES / name / "figure.png").is_file()
    for key, table in outcome.tables.items():
        with (PAGES / name / f"{key}.csv").open(encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        assert header == list(table), f"{old}: {key}.csv"
        for saved, column in zip(zip(*lines, strict=True), table.values(), strict=True):
            assert len(saved) == len(column), f"{old}: {key}.csv"
            same = (
                cell == value if isinstance(value, str) else near(float(cell), float(value), 0.05)
                for cell, value in zip(saved, column, strict=True)
            )
            assert sum(same) >= 0.8 * len(column), f"{old}: {key}.csv"


def near(page: float, now: float, rel: float = 5e-3) -> bool:
    """Equal up to the digits that a page shows; below 1e-9 all is round-off."""
    return math.isclose(page, now, rel_tol=rel, abs_tol=1e-9)
