"""Writes what the statements found: a table for the terminal, JSON, CSV, figures, docs pages."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table as RichTable
from rich.text import Text

from theory.check import Check, Outcome, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("check", "predicted", "measured", "tolerance", "if false", "verdict")
# a page's generated part stands between these lines
BEGIN, END = "<!-- checks -->", "<!-- end -->"


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def cells(check: Check) -> tuple[str, ...]:
    """One row of the table of checks."""
    numbers = (number(check.predicted), number(check.measured), check.demand, number(check.wrong))
    return (check.name, *numbers, "holds" if check.holds else "FAILS")


def terminal_table(outcomes: dict[str, Outcome], failures: dict[str, str]) -> RichTable:
    """All checks, statement by statement; ``failures`` are statements that raised an error."""
    table = RichTable(title="flatopt: theory", title_justify="left")
    table.add_column(COLUMNS[0], overflow="fold")
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, outcome in outcomes.items():
        table.add_row(Text(name, style="bold"))
        for check in outcome.checks:
            *shown, verdict = cells(check)
            style = "green" if check.holds else "bold red"
            table.add_row(*shown, Text(verdict, style=style))
        table.add_section()
    for name, error in failures.items():
        table.add_row(Text(name, style="bold"), "", "", "", "", Text("ERROR", style="bold red"))
        table.add_row(Text(error, style="red"))
    return table


def write(path: Path, data: str | bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def finite(row: dict) -> dict:
    """The row with null for NaN and infinity, which JSON has no word for."""
    bad = (name for name, v in row.items() if isinstance(v, float) and not math.isfinite(v))
    return row | dict.fromkeys(bad)


def as_json(outcomes: dict[str, Outcome], failures: dict[str, str], seconds: dict) -> str:
    """The checks with their verdicts, the errors, and what they ran on."""
    statements = {
        name: {
            "holds": outcome.holds,
            "seconds": round(seconds[name], 2),
            "checks": [finite(asdict(check)) | {"holds": check.holds} for check in outcome.checks],
        }
        for name, outcome in outcomes.items()
    }
    statements |= {name: {"holds": False, "error": error} for name, error in failures.items()}
    environment = {"torch": torch.__version__, "python": platform.python_version()}
    return json.dumps({"statements": statements, "environment": environment}, indent=2) + "\n"


def as_csv(table: Table) -> str:
    """The columns of a table, six significant digits each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([v if isinstance(v, str) else f"{float(v):.6g}" for v in row])
    return text.getvalue()


def write_figure(folder: Path, outcome: Outcome, figure: Figure) -> None:
    """``folder/figure.png``, and beside it one CSV for each table it was drawn from."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    write(folder / "figure.png", picture.getvalue())
    for name, table in outcome.tables.items():
        write(folder / f"{name}.csv", as_csv(table))


def markdown_table(outcome: Outcome) -> str:
    """The checks as a table of a docs page."""
    head = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}\n"
    rows = (" | ".join(cell.replace("|", r"\|") for cell in cells(c)) for c in outcome.checks)
    return head + "".join(f"| {row} |\n" for row in rows)


def place_of_table(page: Path) -> re.Match[str]:
    """Where the table of checks stands in a docs page.

    Raises:
        ValueError: where there is no such page, or not the two lines between which it stands.
    """
    if not page.is_file():
        raise ValueError(f"there is no page {page}")
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    found = pattern.search(page.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r} for the table of checks")
    return found


def update_page(page: Path, outcome: Outcome) -> None:
    """Replace the table of checks in a docs page; the prose around it stays."""
    place = place_of_table(page)
    table = f"{BEGIN}\n{markdown_table(outcome)}{END}"
    write(page, place.string[: place.start()] + table + place.string[place.end() :])
