"""`python -m theory [name ...]`: runs statements, prints predicted beside measured, judges."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from theory import STATEMENTS, report
from theory.check import Outcome


def chosen(words: list[str]) -> list[str]:
    """The statements whose names contain one of the words; all of them for no word.

    Raises:
        ValueError: for a word that is in no name.
    """
    for word in words:
        if not any(word in name for name in STATEMENTS):
            raise ValueError(f"no statement is called {word!r}; there are: {', '.join(STATEMENTS)}")
    return [name for name in STATEMENTS if not words or any(word in name for word in words)]


def writable(path: Path | None, *, folder: bool) -> None:
    """Refuse a place that cannot be written before minutes are spent on what goes there.

    Raises:
        ValueError: naming the place and why.
    """
    if path is None:
        return
    if path.exists() and path.is_dir() != folder:
        raise ValueError(f"{path} is a {'file' if folder else 'folder'}; give another name")
    place = path if folder else path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{place} cannot be made: {error.strerror}") from None
    if not os.access(place, os.W_OK):
        raise ValueError(f"{place} cannot be written to; give another place")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m theory",
        description="Measure what the theory of gradient regularization predicts. Exit status 0: "
        "every check holds; 1: one fails; 2: the command line is wrong.",
        epilog="statements: " + ", ".join(STATEMENTS),
    )
    parser.add_argument("names", nargs="*", metavar="name", help="a statement, or a part of names")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="a figure and its CSVs for each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the checks as data")
    parser.add_argument(
        "--pages",
        type=Path,
        metavar="DIR",
        help="refresh tables and figures of the docs pages in DIR (docs/theory)",
    )
    options = parser.parse_args(arguments)
    try:
        options.names = chosen(options.names)
        writable(options.plots, folder=True)
        writable(options.pages, folder=True)
        writable(options.json, folder=False)
        if options.pages:
            for name in options.names:
                report.place_of_table(options.pages / f"{name}.md")
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str]) -> int:
    """Run the chosen statements; the exit status says whether all checks hold."""
    options = parse(arguments)
    # the tensors are small: further threads cost more than they bring
    torch.set_num_threads(1)
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(options.names), at="")
        for name in options.names:
            bar.update(task, at=name)
            start = time.perf_counter()
            try:
                statement = importlib.import_module(f"theory.{name}")
                outcome = statement.check(
                    lambda part, name=name: bar.update(task, at=f"{name}: {part}")
                )
                for folder in {options.plots, options.pages} - {None}:
                    bar.update(task, at=f"{name}: plot")
                    report.write_figure(folder / name, outcome, statement.plot(outcome.tables))
                if options.pages:
                    report.update_page(options.pages / f"{name}.md", outcome)
                outcomes[name] = outcome
            except KeyboardInterrupt:  # what is measured by now is still shown
                failures[name] = "interrupted"
                break
            except Exception as error:  # the other statements still run; this one is reported
                failures[name] = f"{type(error).__name__}: {error}"
            seconds[name] = time.perf_counter() - start
            bar.advance(task)
    terminal = Console()
    if not terminal.is_terminal:  # a pipe or a file: nothing is gained by folding the table
        terminal.width = 120
    terminal.print(report.terminal_table(outcomes, failures))
    checks = [check for outcome in outcomes.values() for check in outcome.checks]
    held = sum(check.holds for check in checks)
    broken = f"; stopped with an error: {', '.join(failures)}" if failures else ""
    print(f"{held} of {len(checks)} checks hold, {sum(seconds.values()):.0f} s{broken}")
    if options.json:
        report.write(options.json, report.as_json(outcomes, failures, seconds))
    return 0 if held == len(checks) and not failures else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
