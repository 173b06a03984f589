"""What the scenarios share for runs on several devices: options, batch size, common decisions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import decided_by_main, world_size

PER_DEVICE = 8  # per_device_train_batch_size where neither recipe nor command line gives one


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Options on the batch of all devices together, and on what is recorded of each step."""
    group = parser.add_argument_group("batch and records")
    names = ("--completions-per-step", "--completions_per_step")
    text = "completions in each gradient step, over all devices: sets gradient_accumulation_steps"
    group.add_argument(*names, type=int, metavar="N", help=text)
    names = ("--step-length", "--step_length")
    text = "record the length of each step, as method gr does beside matched"
    group.add_argument(*names, action="store_true", help=text)


def check_jobs(jobs: int) -> None:
    """ValueError for runs side by side under a launcher."""
    if world_size() > 1 and jobs > 1:
        raise ValueError(
            "--jobs is for one device: under a launcher all processes train one run together. "
            "Leave it out"
        )


def check_completions(value: Any, where: str) -> None:
    """ValueError unless a recipe's `completions_per_step` is a whole number or absent."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            f"{where}: completions_per_step must be a whole number of at least 1, got {value!r}"
        )


def with_accumulation(
    trainer: dict[str, Any], given: dict[str, Any], recipe: int | None, asked: int | None = None
) -> dict[str, Any]:
    """`trainer`, with `gradient_accumulation_steps` such that a step has so many completions.

    completions = per_device_train_batch_size * gradient_accumulation_steps * processes, so a step
    is the same on one device and on many.

    Args:
        trainer: fields of the trainer's config, from the recipe.
        given: those of the command line, which win.
        recipe: completions of a step, from the recipe; None: the fields say it.
        asked: the same, from the command line; wins.

    Raises:
        ValueError: the number is no multiple of what the devices take at once, or is given twice.

    >>> with_accumulation({"per_device_train_batch_size": 16}, {}, 256)
    {'per_device_train_batch_size': 16, 'gradient_accumulation_steps': 16}
    """
    field = "gradient_accumulation_steps"
    if asked is not None and asked < 1:
        raise ValueError(f"--completions_per_step must be at least 1, got {asked}")
    if asked is not None and field in given:
        raise ValueError(f"give --completions_per_step or --{field}, not both")
    if asked is None and recipe is not None and field in trainer:
        raise ValueError(f"recipe: give completions_per_step or trainer: {field}, not both")
    wanted = asked if asked is not None else recipe
    if wanted is None or field in given:
        return trainer
    each = int((trainer | given).get("per_device_train_batch_size", PER_DEVICE))
    at_once = each * world_size()
    if wanted % at_once:
        per_device = wanted // world_size()
        fitting = [n for n in range(1, min(each, per_device) + 1) if per_device % n == 0]
        advice = (
            f"give --per_device_train_batch_size {fitting[-1]}"
            if wanted % world_size() == 0
            else f"{wanted} cannot be shared by {world_size()} devices: use another number of them"
        )
        raise ValueError(
            f"{wanted} completions per step are no multiple of {each} on each of {world_size()} "
            f"device(s): {advice}, or another --completions_per_step"
        )
    return trainer | {field: wanted // at_once}


def prepare_together(arms: Sequence[Any], output: Path, resume: bool) -> list[tuple[Any, Path]]:
    """`command.prepare`, decided by the main process for all: the arms that are still to run."""
    from .command import prepare
    from .matched import check_partners

    def waiting() -> list[str]:
        check_partners(arms, output)
        return [arm.name for arm, _ in prepare(list(arms), output, resume)]

    names = set(decided_by_main(waiting))
    return [(arm, output / arm.name) for arm in arms if arm.name in names]
