"""`python -m integrations report`: run folders as one HTML file that needs nothing else."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Write the report that `arguments` ask for; the exit status: 0, or 2 for bad input.

    See `integrations.viewer.command` for the options and `docs/reports.md` for what is shown.
    """
    from .command import main as run

    return run(arguments)
