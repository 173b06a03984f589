"""The command line of the report: its options, their checks, and the file it writes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cache import write_text
from .page import build_page
from .runs import find_runs, read_run

NO_RUNS = (
    "no runs under {names}. Name a folder that `python -m integrations judge|rules|rlhf|ladder "
    "--output` has written to, or one run in it (a folder with settings.json and metrics.jsonl)."
)


def make_parser() -> argparse.ArgumentParser:
    """The options of `python -m integrations report`."""
    parser = argparse.ArgumentParser(
        prog="python -m integrations report",
        description="One HTML file about finished and unfinished runs: tables, plots, completions.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, or one run")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: DIR/report.html")
    parser.add_argument("--title", help="default: made from the names of the folders")
    return parser


def write_page(folders: list[Path], output: Path | None = None, title: str | None = None) -> Path:
    """Write the report on all runs in `folders`; where it is.

    Without `output` there must be one folder, and its `report.html` is written. ValueError for a
    folder that is not there, for no runs, and for an output that cannot be a file.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give the --output of a comparison")
    if output is None and len(folders) > 1:
        raise ValueError("several folders need an --output: add --output FILE.html")
    output = output or folders[0] / "report.html"
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file, as {output / 'report.html'}")
    found = find_runs(folders)
    if not found:
        raise ValueError(NO_RUNS.format(names=", ".join(map(str, folders))))
    runs = [read_run(folder, name) for folder, name in found]
    names = [folder.resolve().name for folder in folders]
    page = build_page(runs, title or "Runs: " + ", ".join(names))
    # A JSON file or a file's name may hold half a surrogate pair, which UTF-8 cannot write.
    write_text(output, page.encode("utf-8", "replace").decode("utf-8"))
    return output


def main(arguments: list[str]) -> int:
    """Run the command; 0, or 2 for input that cannot be used."""
    options = make_parser().parse_args(arguments)
    try:
        output = write_page(options.folders, options.output, options.title)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report in {output}")
    return 0
