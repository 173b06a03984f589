"""The command `rules`: methods compared in RL with rule-based rewards on mathematics.

Example::

    python -m integrations rules --method none kl gr --output runs/rules
    python -m integrations rules --model PATH_OR_NAME --dataset gsm8k.jsonl --output runs/mine
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .. import methods as method_names
from ..command import (
    add_method_options,
    all_methods,
    check_config,
    check_gr,
    check_lists,
    check_recipe_fields,
    for_this_machine,
    given_method_options,
    new_parser,
    option,
    run_folders,
    tell_end,
    trainer_fields,
    with_steps,
)
from ..launch import add_launch_options, check_jobs, prepare_together, with_accumulation
from ..processes import complain, finish, is_main
from .task import FIELDS

DESCRIPTION = """\
RL by TRL's GRPO on questions with a known answer; a rule pays for the right answer and for the form
of the completion. By default in a small self-contained world; with --model and --dataset on any
causal language model, GSM8K's or MATH's form of rows. Every field of TRL's GRPOConfig is an option
too, e.g. --learning_rate 1e-6 --use_vllm true; what is given here wins over the recipe.
Start it by torchrun or accelerate launch to use several devices.
"""
# the options of RulesConfig that a user gives: name, options of add_argument
REAL: dict[str, dict[str, Any]] = {
    "model": {"metavar": "PATH_OR_NAME", "help": "the policy: a causal LM"},
    "dataset": {"metavar": "FILE_OR_NAME", "help": "rows: question, answer; or problem, solution"},
    "split": {"help": "split of a hub data set (train)"},
    "limit": {"type": int, "help": "train on the first rows only"},
    "eval_dataset": {"metavar": "FILE_OR_NAME", "help": "held-out rows"},
    "eval_split": {"help": "split of a hub data set held out (test)"},
    "eval_limit": {"type": int, "help": "how many rows are held out"},
    "bad_rows": {"choices": ["error", "skip"], "help": "skip: count and show them"},
    "form": {"choices": ["auto", "gsm8k", "math"], "help": "of the rows (auto)"},
    "prompt": {"choices": ["one-shot", "zero-shot", "question"], "help": "style (one-shot)"},
    "rewards": {
        "nargs": "+",
        "metavar": "NAME[=WEIGHT]",
        "help": "what is paid for: docs/rewards.md",
    },
    "eval_samples": {"type": int, "help": "completions per held-out question (4); 0: none"},
    "eval_batch": {"type": int, "help": "completions written at once in the evaluation"},
    "eval_temperature": {"type": float, "help": "default: the trainer's"},
    "eval_seed": {"type": int, "help": "of the evaluation's completions"},
}


def arguments_parser() -> argparse.ArgumentParser:
    """The scenario's own options; fields of GRPOConfig are left over for its own parser."""
    parser = new_parser("rules", DESCRIPTION)
    add = parser.add_argument
    add("--method", nargs="+", default=["none", "gr"], metavar="NAME", help="default: none gr")
    add("--recipe", help="tiny (default), a name under recipes/, .yaml; with --model: gsm8k")
    add("--seed", nargs="+", type=int, default=[0], help="one run per seed and method")
    add("--policy_seed", type=int, help="rule world: one start policy for all; default: per seed")
    add("--output", type=Path, required=True, help="folder for the results")
    add("--resume", action="store_true", help="continue the runs in --output, skip finished ones")
    add("--jobs", type=int, default=1, help="runs in parallel, one process each")
    add("--steps", type=int, help="gradient steps, in place of the recipe's")
    add_method_options(parser)
    add_launch_options(parser)
    group = parser.add_argument_group("real models (--model and --dataset, or a recipe with them)")
    for name, options in REAL.items():
        option(group, name, **options)
    return parser


def task_fields(options: argparse.Namespace, recipe: Any) -> dict[str, Any] | None:
    """The fields of a real task, from the recipe and the command line; None for the rule world."""
    from .task import config_of

    given = {name: getattr(options, name) for name in REAL if hasattr(options, name)}
    if recipe.world:
        if given:
            raise ValueError(
                f"--{next(iter(given))} is for real models: give --model and --dataset"
            )
        return None
    if options.policy_seed is not None:
        raise ValueError("--policy_seed is of the rule world; with a real model leave it out")
    fields = recipe.task | given
    config_of(fields)
    return fields


def plan(options: argparse.Namespace, rest: list[str]) -> list[Any]:
    """The arms that were asked for, everything checked; ValueError says what to change."""
    names = ["+".join(method_names.split(name)) for name in options.method]
    check_lists(names, {"seed": options.seed}, options.jobs)
    check_jobs(options.jobs)
    given_gr, given_reset = given_method_options(options)
    # the checks that need no heavy import come first
    method_names.check_used(names, {}, given_gr, given_reset)
    from .recipe import load

    recipe = load(options.recipe or ("gsm8k" if hasattr(options, "model") else "tiny"))
    fields = task_fields(options, recipe)

    from trl import GRPOConfig

    given = trainer_fields(rest, GRPOConfig)
    method_names.check_used(names, given, given_gr, given_reset)
    check_recipe_fields(recipe.trainer)
    given = with_steps(options, given)
    trainer = {"max_steps": recipe.steps} | recipe.trainer
    trainer = with_accumulation(
        trainer, given, recipe.completions_per_step, options.completions_per_step
    )
    if fields is not None:
        trainer = for_this_machine(trainer)

    from ..arm import arm_of
    from ..loop import quiet

    quiet()
    methods = all_methods(
        names, trainer, recipe.methods, given, given_gr, given_reset, options.step_length
    )
    arms = []
    for seed in options.seed:
        for m in methods:
            if fields is None:
                policy_seed = seed if options.policy_seed is None else options.policy_seed
                rules: dict[str, Any] = {"world": recipe.world | {"seed": policy_seed}}
            else:
                rules = dict(fields)
            if "true" in m.name.split("+"):
                rules["form_weight"] = 0.0  # the control is paid for right answers alone
            arms.append(arm_of(m, seed, threads=recipe.threads, rules=rules))
    check_config(arms[0].config)
    return arms


def start_folder(output: Path) -> Path:
    """Where the start policy's pass rates are kept, for all arms of a comparison."""
    return output / "start"


def measure_start(arm: Any, folder: Path) -> None:
    """pass@1 of the start policy and the quintile of each held-out question, if any is wanted."""
    from transformers import AutoModelForCausalLM

    from ..parallel import say_here
    from .evaluate import evaluate_start

    task = arm.task()
    if task.evaluation is None:
        return

    def load() -> Any:
        return on_device(AutoModelForCausalLM.from_pretrained(task.model, **task.model_init), arm)

    evaluate_start(task.evaluation, load, folder, say_here)


def on_device(model: Any, arm: Any) -> Any:
    """The model where this process computes."""
    import torch

    if arm.config.get("use_cpu") or not torch.cuda.is_available():
        return model.eval()
    return model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}").eval()


def show(folders: list[Path]) -> None:
    """The comparison as tables on the screen."""
    from rich.console import Console

    from .table import tables

    Console().print(*tables(folders))


def main(arguments: list[str]) -> int:
    """Plan, measure the start policy, run the arms, report; 2 for wrong input, 1 for a failure."""
    options, rest = arguments_parser().parse_known_args(arguments)
    if not hasattr(options, "model") and options.recipe in (None, "tiny", "smoke"):
        # the rule world needs no network: its models are built on this machine
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arms = plan(options, rest)
        from .task import check_task

        notes = check_task(arms[0].rules, arms[0].config)
        for note in notes if is_main() else ():
            print(f"note: {note}", file=sys.stderr)
        for arm in arms:
            check_gr(arm)
        waiting = prepare_together(arms, options.output, options.resume)
    except (ValueError, OSError) as error:
        return complain(error)

    from ..parallel import run_all, run_calls
    from ..report import write_report

    failed: dict[str, str] = {}
    if waiting and arms[0].rules.get("world") is None:
        # in the rule world each seed has a policy of its own, and levels are known
        start = start_folder(options.output)
        failed = run_calls({"start policy": (measure_start, arms[0], start)}, 1)
    failed = failed or run_all(waiting, options.jobs)
    finish()
    if is_main():
        folders = run_folders(arms, options.output)
        write_report(options.output, folders)
        show(folders)
    return tell_end(failed, options.output)


assert set(REAL) <= set(FIELDS)
