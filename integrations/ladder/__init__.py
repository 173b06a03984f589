"""The ladder scenario: does gaming in small things spread to worse ones? `main` is its command."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """`python -m integrations ladder`: see `integrations.ladder.command`."""
    from .command import main as run

    return run(arguments)
