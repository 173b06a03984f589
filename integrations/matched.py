"""Runs that follow another run's steps (`--method gr matched`): names, pairs, records.

GR changes the direction of a step and its length. A control that makes, without GR, steps of the
same lengths tells the two apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .watch.monitor import read_rows

FILE = "steps.jsonl"  # in a run's folder, a line per step: `step` (from 1), `length`


def partner_of(name: str) -> str | None:
    """The run (or method) whose steps a matched one follows; None if it follows none.

    >>> partner_of("matched+kl-seed0")
    'gr+kl-seed0'
    """
    method, dash, rest = name.partition("-")
    parts = method.split("+")
    if "matched" not in parts:
        return None
    return "+".join("gr" if part == "matched" else part for part in parts) + dash + rest


def paired(methods: Sequence[Any], everywhere: bool = False) -> list[Any]:
    """The methods, where those that a matched one follows (or all) record their step lengths."""
    followed = {partner_of(method.name) for method in methods}
    return [
        dataclasses.replace(method, control={"step_length": True, **(method.control or {})})
        if everywhere or method.name in followed
        else method
        for method in methods
    ]


def check_partners(arms: Sequence[Any], output: Path) -> None:
    """ValueError where a matched arm has neither a partner in this command nor its record."""
    names = {arm.name for arm in arms}
    for arm in arms:
        partner = partner_of(arm.name)
        if partner is None or partner in names:
            continue
        if not (output / partner / FILE).exists():
            raise ValueError(
                f"method {arm.method} takes the length of each step from the run {partner}, and "
                f"{output / partner} holds no {FILE}. Run both in one command: --method "
                f"{partner_of(arm.method)} {arm.method}"
            )


def read_lengths(folder: Path, steps: int) -> dict[int, float]:
    """The recorded length of each of the first `steps` steps; ValueError where some are missing."""
    path = folder / FILE
    lengths = {row["step"]: row["length"] for row in read_rows(path)}
    missing = [step for step in range(1, steps + 1) if step not in lengths]
    if missing:
        raise ValueError(
            f"{path} has no length for step {missing[0]} (it has {len(lengths)} steps, this run "
            f"takes {steps}). Finish that run first, with as many steps"
        )
    return lengths
