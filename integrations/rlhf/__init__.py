"""The RLHF scenario: SFT, preferences, reward model, RL, evaluation; `main` is its command."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """`python -m integrations rlhf`: see `integrations.rlhf.command`."""
    from .command import main as run

    return run(arguments)
