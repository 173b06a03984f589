"""What the scenarios' command lines share: options, their checks, run folders, the table."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

from . import methods as method_names
from .matched import paired
from .processes import is_main

METHODS_HELP = "\n".join(f"  {name:6} {text}" for name, text in method_names.PARTS.items())


def new_parser(scenario: str, description: str) -> argparse.ArgumentParser:
    """The parser of a scenario; it leaves fields of the trainer's config to `trainer_fields`."""
    return argparse.ArgumentParser(
        prog=f"python -m integrations {scenario}",
        description=description,
        epilog=f"methods (several are compared; '+' combines, as in gr+kl):\n{METHODS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def option(group: Any, name: str, **options: Any) -> None:
    """An option that may be written with - or _, and is absent unless it was given."""
    spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
    group.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, **options)


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Options of gradient regularization and of resets; absent unless given."""
    group = parser.add_argument_group("gradient regularization (method gr)")
    add = group.add_argument
    none = argparse.SUPPRESS  # only what was given wins over the recipe
    add("--ratio", type=float, default=none, help="penalty over gradient length; sets the strength")
    add("--strength", type=float, default=none, help="fixed strength, in place of --ratio")
    add("--radius", type=float, default=none, help="shift over weight length")
    add("--eps", type=float, default=none, help="shift as a multiple of the gradient")
    add("--difference", choices=["auto", "forward", "central", "exact"], default=none)
    add("--samples", choices=["importance", "sequence", "score"], default=none)
    add("--exclude", nargs="*", metavar="NAME", default=none, help="parameters not shifted")
    add("--max_ratio", type=float, default=none, help="bound on penalty over gradient")
    add("--every", type=int, default=none, help="the penalty in every n-th step only")
    add("--fraction", type=float, default=none, help="share of the micro-batches it is taken on")
    add("--batch", choices=["whole", "halves"], default=none, help="halves: unbiased")
    add("--memory", choices=["fast", "lean"], default=none, help="lean: one buffer instead of two")
    group = parser.add_argument_group("resets of the reference (method reset)")
    option(group, "reset_every", type=int, help="steps between resets")
    option(group, "reset_mix", type=float, help="share of the source, 1: a hard reset")
    option(group, "reset_source", choices=["policy", "ema"], help="what the target moves to")
    option(group, "reset_target", choices=["reference", "policy"], help="policy: Elastic Reset")
    option(group, "reset_ema_decay", type=float, help="of the running mean, with source ema")
    option(group, "reset_reset_optimizer", action="store_true", help="forget Adam's moments too")


def given_method_options(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given of GR and of resets, by the names of their arguments."""
    gr = {n: getattr(options, n) for n in method_names.GR_FIELDS if hasattr(options, n)}
    names = {n: f"reset_{n}" for n in method_names.RESET_FIELDS}
    return gr, {n: getattr(options, k) for n, k in names.items() if hasattr(options, k)}


def trainer_fields(rest: list[str], config_class: Any) -> dict[str, Any]:
    """The fields of the trainer's config that were given, with their types; ValueError for
    anything else."""
    if not rest:
        return {}
    from transformers import HfArgumentParser

    parser = HfArgumentParser(config_class, allow_abbrev=False, add_help=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # so that the result holds only what was given

    def complain(message: str) -> None:
        raise ValueError(message)

    parser.error = complain  # type: ignore[assignment,method-assign]
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1, 0.8)
        raise ValueError(
            f"unknown option {unknown[0]!r}: neither an option of this scenario (see --help) "
            f"nor a field of TRL's {config_class.__name__}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    fields = vars(given)
    if fields.get("remove_unused_columns"):
        raise ValueError(
            "--remove_unused_columns true drops the columns that the rewards read: leave it out"
        )
    return fields


def with_steps(options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with --steps as `max_steps`; ValueError for both, or for none to do."""
    if options.steps is not None:
        if "max_steps" in given:
            raise ValueError("give --steps or --max_steps, not both")
        given = given | {"max_steps": options.steps}
    if given.get("max_steps", 1) < 1:
        raise ValueError("--steps must be at least 1")
    return given


def all_methods(
    names: list[str],
    trainer: dict[str, Any],
    recipe: dict[str, dict[str, Any]],
    given: dict[str, Any],
    given_gr: dict[str, Any],
    given_reset: dict[str, Any],
    record: bool,
) -> list[method_names.Method]:
    """The settings of every method; `record`: the length of each step is kept, for all of them."""
    found = [
        method_names.resolve(name, trainer, recipe, given, given_gr, given_reset) for name in names
    ]
    return paired(found, record)


def for_this_machine(trainer: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields for real models, changed where there is no GPU; the command line wins."""
    import torch

    if torch.cuda.is_available():
        return trainer
    return trainer | {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}


def run_folders(arms: list[Any], output: Path) -> list[Path]:
    """The folders of the arms and of earlier runs: those stay part of the comparison."""
    folders = [output / arm.name for arm in arms]
    folders += sorted(path.parent for path in output.glob("*/settings.json"))
    return list(dict.fromkeys(folders))


def tell_end(failed: dict[str, str], output: Path) -> int:
    """Say what failed and where the results are; the exit status."""
    if is_main():
        for name, message in failed.items():
            print(f"error: {name} failed: {message}", file=sys.stderr)
        print(f"results in {output}")
    return 1 if failed else 0


def check_recipe_fields(trainer: dict[str, Any]) -> None:
    """ValueError for a key under `trainer:` that GRPOConfig does not have."""
    import dataclasses

    from trl import GRPOConfig

    known = {f.name for f in dataclasses.fields(GRPOConfig)} - set(method_names.RESERVED)
    unknown = sorted(set(trainer) - known)
    if unknown:
        raise ValueError(f"recipe, trainer: unknown key {', '.join(unknown)} (no GRPOConfig field)")


def check_lists(names: list[str], lists: dict[str, list[int]], jobs: int) -> None:
    """ValueError for methods, seeds and the like that are given twice or make no sense."""
    if len(set(names)) < len(names):
        raise ValueError(f"--method names one method twice: {' '.join(names)}")
    for name, values in lists.items():
        if len(set(values)) < len(values) or min(values) < 0:
            raise ValueError(f"--{name} takes different whole numbers of at least 0")
    if jobs < 1:
        raise ValueError("--jobs must be at least 1")


def check_gr(arm: Any) -> None:
    """Let the settings of GR and resets be refused now, not when the first run is prepared."""
    from flatopt import GradRegOptimizer, ReferenceReset

    if arm.reference is not None:
        ReferenceReset(**arm.reference)
    if arm.gr is None:
        return
    import torch

    settings = {k: v for k, v in arm.gr.items() if k not in ("samples", "exclude")}
    GradRegOptimizer(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), **settings)
    if not arm.gr.get("exclude"):
        return
    names = arm.parameter_names()
    for item in arm.gr["exclude"]:
        if not any(f".{item}." in f".{name}." for name in names):
            raise ValueError(f"--exclude {item}: no parameter has it in its name, as {names[:3]}")


def check_config(config: dict[str, Any], trainer: str | None = None) -> None:
    """Let the trainer's config object now rather than in the middle; check what resuming needs."""
    from .loop import trainer_classes, without_grpo

    if trainer == "rloo":
        config = without_grpo(config)
    checked = trainer_classes(trainer)[0](output_dir="unused", **config)
    if checked.save_strategy == "steps" and checked.save_steps % checked.logging_steps:
        raise ValueError(
            f"save_steps ({checked.save_steps}) must be a multiple of logging_steps "
            f"({checked.logging_steps}), so that a resumed run logs whole rows"
        )


def check_output(output: Path, resume: bool) -> None:
    """ValueError where --output cannot be used."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file")
    if output.exists() and any(output.iterdir()) and not resume:
        raise ValueError(f"--output {output} is not empty; add --resume to continue its runs")


def prepare(arms: list[Any], output: Path, resume: bool) -> list[tuple[Any, Path]]:
    """Make or check the folders; the arms that are still to run, with their folders."""
    from .loop import prepare_folder

    check_output(output, resume)
    waiting = []
    for arm in arms:
        folder = output / arm.name
        prepare_folder(arm, folder, resume)
        if not (folder / "summary.json").exists():
            waiting.append((arm, folder))
    return waiting


def show(summary: dict[str, Any], unit: str = "25 steps") -> None:
    """The comparison as a table on the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"true reward: mean over runs (final: last {unit})")
    for title in ("method", "runs", "start", "peak", "final", "final proxy", "hacked"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, row in summary["methods"].items():
        numbers = [row[k]["mean"] for k in ("start_true", "peak_true", "final_true", "final_proxy")]
        hacked = "-" if row["hacked"] is None else f"{row['hacked']} of {row['runs']}"
        table.add_row(
            name, str(row["runs"]), *("-" if n is None else f"{n:.3f}" for n in numbers), hacked
        )
    Console().print(table)


def complain(error: BaseException) -> int:
    """Print an error of the input; the exit status for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2
