"""What every statement of theory/ must show; its test file calls `verify` with its name."""

from __future__ import annotations

import importlib
import inspect
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
    rows = committed_rows(name)
    assert list(rows) == [check.name for check in outcome.checks], f"docs/theory/{name}.md is old"
    for check in outcome.checks:
        # the page's prediction and verdict; its measurement may differ in rounding
        assert rows[check.name][2] == check.demand, f"docs/theory/{name}.md is old: {check.name}"
        assert rows[check.name][-1] == "holds"
    for table in outcome.tables:
        assert (PAGES / name / f"{table}.csv").is_file(), f"no {name}/{table}.csv"
    assert (PAGES / name / "figure.png").is_file()
    return outcome
