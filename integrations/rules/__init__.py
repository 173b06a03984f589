"""The rules scenario: RL with rule-based rewards on mathematics; `main` is its command."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """`python -m integrations rules`: see `integrations.rules.command`."""
    from .command import main as run

    return run(arguments)
