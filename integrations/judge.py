"""The judge scenario: methods compared while a policy learns from a learned judge (TRL's GRPO).

Example::

    python -m integrations judge --method none gr --seed 0 1 --output runs/judge
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from . import methods as method_names
from .recipe import Recipe, load

DESCRIPTION = """\
A small language model is taught sums by imperfect demonstrations and then trained by TRL's GRPO
on the score of a learned judge. Whether its answers are really right is only watched. Every field
of TRL's GRPOConfig is an option too, e.g. --learning_rate 1e-4 --entropy_coef 0.01; what is given
here wins over the recipe. With --model, --dataset and --judge-model the same loop trains a Hugging
Face language model on GSM8K-style questions against an LLM judge.
"""
REAL_REQUIRED = ("model", "dataset", "judge_model")
REAL_OPTIONAL = (
    "split", "limit", "eval_dataset", "eval_split", "eval_limit", "bad_rows", "judge_batch_size",
    "judge_max_input_tokens", "judge_max_new_tokens", "judge_patience",
)  # fmt: skip
METHODS_HELP = "\n".join(f"  {name:6} {text}" for name, text in method_names.PARTS.items())


def arguments_parser() -> argparse.ArgumentParser:
    """The scenario's own options; fields of GRPOConfig are left over for its own parser."""
    parser = argparse.ArgumentParser(
        prog="python -m integrations judge",
        description=DESCRIPTION,
        epilog=f"methods (several are compared; '+' combines, as in gr+kl):\n{METHODS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--method", nargs="+", default=["none", "gr"], metavar="NAME", help="default: none gr")
    add("--recipe", help="tiny (default), weak, strong, smoke, .yaml; with --model: gsm8k")
    add("--seed", nargs="+", type=int, default=[0], help="one run per seed (and method, and judge)")
    add("--judge", nargs="+", type=int, help="which of the independent judges (0)")
    add("--policy_seed", type=int, help="one starting policy for all runs; default: one per seed")
    add("--output", type=Path, required=True, help="folder for the results")
    add("--resume", action="store_true", help="continue the runs in --output, skip finished ones")
    add("--jobs", type=int, default=1, help="runs in parallel, one process each")
    add("--steps", type=int, help="gradient steps, in place of the recipe's")
    group = parser.add_argument_group("gradient regularization (method gr)")
    add = group.add_argument
    none = argparse.SUPPRESS  # only what was given wins over the recipe
    add("--ratio", type=float, default=none, help="penalty over gradient length; sets the strength")
    add("--strength", type=float, default=none, help="fixed strength, in place of --ratio")
    add("--radius", type=float, default=none, help="shift over weight length")
    add("--eps", type=float, default=none, help="shift as a multiple of the gradient")
    add("--difference", choices=["forward", "central", "exact"], default=none)
    add("--samples", choices=["importance", "sequence", "score"], default=none)
    add("--exclude", nargs="*", metavar="NAME", default=none, help="parameters not shifted")
    add("--max_ratio", type=float, default=none, help="bound on penalty over gradient")
    add("--every", type=int, default=none, help="the penalty in every n-th step only")
    group = parser.add_argument_group("real models (the first three together)")
    _real(group, "model", metavar="PATH_OR_NAME", help="the policy: a causal LM")
    _real(group, "dataset", metavar="FILE_OR_NAME", help="rows: question, answer (#### N)")
    _real(group, "judge_model", metavar="PATH_OR_NAME", help="the judge: a causal LM")
    _real(group, "split", help="split of a hub data set (train)")
    _real(group, "limit", type=int, help="use the first rows only")
    _real(group, "eval_dataset", metavar="FILE_OR_NAME", help="held-out rows for the samples")
    _real(group, "eval_split", help="split of a hub data set held out (test)")
    _real(group, "eval_limit", type=int, help="how many rows are held out")
    _real(group, "bad_rows", choices=["error", "skip"], help="skip: count and show them")
    _real(group, "judge_batch_size", type=int, help="verdicts generated at once")
    _real(group, "judge_max_input_tokens", type=int, help="longer cases are cut")
    _real(group, "judge_max_new_tokens", type=int, help="length of a verdict")
    _real(group, "judge_patience", type=int, help="batches without one readable score")
    return parser


def _real(group: Any, name: str, **options: Any) -> None:
    """An option that may be written with - or _, and is absent unless it was given."""
    spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
    group.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, **options)


def real_fields(options: argparse.Namespace) -> dict[str, Any] | None:
    """What was given of a real task, or None for the tiny world; ValueError for a part of it."""
    names = (*REAL_REQUIRED, *REAL_OPTIONAL)
    real = {n: getattr(options, n) for n in names if hasattr(options, n)}
    missing = " ".join("--" + n.replace("_", "-") for n in REAL_REQUIRED if n not in real)
    if real and missing:
        raise ValueError(f"a run on real models also needs {missing}")
    if not real and options.recipe == "gsm8k":
        raise ValueError(f"recipe gsm8k is for real models; it needs {missing}")
    for option in ("judge", "policy_seed"):
        if real and getattr(options, option) is not None:
            raise ValueError(f"--{option} is of the tiny world; with --model leave it out")
    return real or None


def trainer_fields(rest: list[str]) -> dict[str, Any]:
    """The fields of GRPOConfig that were given, with their types; ValueError for anything else."""
    if not rest:
        return {}
    from transformers import HfArgumentParser
    from trl import GRPOConfig

    parser = HfArgumentParser(GRPOConfig, allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # so that the result holds only what was given

    def complain(message: str) -> None:
        raise ValueError(message)

    parser.error = complain  # type: ignore[assignment,method-assign]
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        raise ValueError(
            f"unknown option {unknown[0]!r}: neither an option of this scenario (see --help) "
            "nor a field of TRL's GRPOConfig"
        )
    return vars(given)


def check_recipe_fields(recipe: Recipe) -> None:
    """ValueError for a key under `trainer:` that GRPOConfig does not have."""
    import dataclasses

    from trl import GRPOConfig

    known = {f.name for f in dataclasses.fields(GRPOConfig)} - set(method_names.RESERVED)
    unknown = sorted(set(recipe.trainer) - known)
    if unknown:
        raise ValueError(f"recipe, trainer: unknown key {', '.join(unknown)} (no GRPOConfig field)")


def plan(options: argparse.Namespace, rest: list[str]) -> list[Any]:
    """The arms that were asked for, everything checked; ValueError says what to change."""
    real = real_fields(options)
    recipe = load(options.recipe or ("gsm8k" if real else "tiny"))
    names = ["+".join(method_names.split(name)) for name in options.method]
    if len(set(names)) < len(names):
        raise ValueError(f"--method names one method twice: {' '.join(options.method)}")
    judges = [0] if options.judge is None else options.judge
    for option, values in (("seed", options.seed), ("judge", judges)):
        if len(set(values)) < len(values) or min(values) < 0:
            raise ValueError(f"--{option} takes different whole numbers of at least 0")
    if options.jobs < 1:
        raise ValueError("--jobs must be at least 1")
    given_gr = {n: getattr(options, n) for n in method_names.GR_FIELDS if hasattr(options, n)}
    # the checks that need no heavy import come first
    method_names.check_used(names, {}, given_gr)
    given = trainer_fields(rest)
    method_names.check_used(names, given, given_gr)
    check_recipe_fields(recipe)
    if options.steps is not None:
        if "max_steps" in given:
            raise ValueError("give --steps or --max_steps, not both")
        given["max_steps"] = options.steps
    if given.get("max_steps", 1) < 1:
        raise ValueError("--steps must be at least 1")
    trainer = {"max_steps": recipe.steps} | recipe.trainer
    if real:
        import torch

        if not torch.cuda.is_available():  # what is given on the command line still wins
            trainer |= {"use_cpu": True, "bf16": False}

    from .loop import Arm, quiet
    from .worlds.judge import JudgeSettings, PolicySettings

    quiet()
    arms = []
    for seed in options.seed:
        if real:
            for name in names:
                m = method_names.resolve(name, trainer, recipe.methods, given, given_gr)
                arms.append(Arm(name, seed, None, None, m.config, m.gr, recipe.threads, real))
            continue
        policy_seed = seed if options.policy_seed is None else options.policy_seed
        policy = PolicySettings(seed=policy_seed, **recipe.policy)
        for index in judges:
            judge = JudgeSettings(index=index, **recipe.judge)
            for name in names:
                method = method_names.resolve(name, trainer, recipe.methods, given, given_gr)
                arms.append(
                    Arm(name, seed, policy, judge, method.config, method.gr, recipe.threads)
                )
    check_config(arms[0].config)
    return arms


def check_gr(arm: Any) -> None:
    """Let GR's settings and names be refused now, not when the first run has been prepared."""
    if arm.gr is None:
        return
    import torch

    from flatopt import GradRegOptimizer

    settings = {k: v for k, v in arm.gr.items() if k not in ("samples", "exclude")}
    GradRegOptimizer(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), **settings)
    if not arm.gr.get("exclude"):
        return
    names = arm.parameter_names()
    for item in arm.gr["exclude"]:
        if not any(f".{item}." in f".{name}." for name in names):
            raise ValueError(f"--exclude {item}: no parameter has it in its name, as {names[:3]}")


def check_config(config: dict[str, Any]) -> None:
    """Let GRPOConfig object now rather than in the middle; check what resuming relies on."""
    from trl import GRPOConfig

    checked = GRPOConfig(output_dir="unused", **config)
    if checked.save_strategy == "steps" and checked.save_steps % checked.logging_steps:
        raise ValueError(
            f"save_steps ({checked.save_steps}) must be a multiple of logging_steps "
            f"({checked.logging_steps}), so that a resumed run logs whole rows"
        )


def prepare(arms: list[Any], output: Path, resume: bool) -> list[tuple[Any, Path]]:
    """Make or check the folders; the arms that are still to run, with their folders."""
    from .loop import prepare_folder

    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file")
    if output.exists() and any(output.iterdir()) and not resume:
        raise ValueError(f"--output {output} is not empty; add --resume to continue its runs")
    waiting = []
    for arm in arms:
        folder = output / arm.name
        prepare_folder(arm, folder, resume)
        if not (folder / "summary.json").exists():
            waiting.append((arm, folder))
    return waiting


def show(summary: dict[str, Any]) -> None:
    """The comparison as a table on the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="true reward: mean over runs (final: last 25 steps)")
    for title in ("method", "runs", "start", "peak", "final", "final proxy", "hacked"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, row in summary["methods"].items():
        numbers = [row[k]["mean"] for k in ("start_true", "peak_true", "final_true", "final_proxy")]
        hacked = f"{row['hacked']} of {row['runs']}"
        table.add_row(name, str(row["runs"]), *(f"{n:.3f}" for n in numbers), hacked)
    Console().print(table)


def main(arguments: list[str]) -> int:
    """Plan, build the world, run the arms, report; 2 for wrong input, 1 if an arm failed."""
    options, rest = arguments_parser().parse_known_args(arguments)
    if not hasattr(options, "model"):
        # the tiny world needs no network: its models are built on this machine
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arms = plan(options, rest)
        if arms[0].real:
            from .tasks import check_real

            for note in check_real(arms[0].real, arms[0].config):
                print(f"note: {note}", file=sys.stderr)
        for arm in arms:
            check_gr(arm)
        waiting = prepare(arms, options.output, options.resume)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    from .parallel import run_all
    from .report import write_report

    failed = run_all(waiting, options.jobs)
    # runs of earlier commands in the same folder stay part of the comparison
    folders = [options.output / arm.name for arm in arms]
    folders += sorted(p.parent for p in options.output.glob("*/settings.json"))
    show(write_report(options.output, list(dict.fromkeys(folders))))
    for name, message in failed.items():
        print(f"error: {name} failed: {message}", file=sys.stderr)
    print(f"results in {options.output}")
    return 1 if failed else 0
