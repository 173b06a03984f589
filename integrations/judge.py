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
from .command import (
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
    show,
    tell_end,
    trainer_fields,
    with_steps,
)
from .launch import add_launch_options, check_jobs, prepare_together, with_accumulation
from .processes import complain, finish, is_main
from .recipe import Recipe, load

DESCRIPTION = """\
A small language model is taught sums by imperfect demonstrations and then trained by TRL's GRPO
on the score of a learned judge. Whether its answers are really right is only watched. Every field
of TRL's GRPOConfig is an option too, e.g. --learning_rate 1e-4 --entropy_coef 0.01; what is given
here wins over the recipe. With --model, --dataset and --judge-model, or a recipe that names them,
the same loop trains a Hugging Face language model on GSM8K-style questions against an LLM judge.
Start that by torchrun or accelerate launch to use several devices.
"""
WORLD_RECIPES = ("tiny", "weak", "strong", "smoke")  # of the self-contained world
REAL_REQUIRED = ("model", "dataset", "judge_model")
REAL_OPTIONAL = (
    "split", "limit", "eval_dataset", "eval_split", "eval_limit", "bad_rows", "judge_kind",
    "judge_batch_size", "judge_max_input_tokens", "judge_max_new_tokens", "judge_patience",
)  # fmt: skip


def arguments_parser() -> argparse.ArgumentParser:
    """The scenario's own options; fields of GRPOConfig are left over for its own parser."""
    parser = new_parser("judge", DESCRIPTION)
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
    add_method_options(parser)
    add_launch_options(parser)
    group = parser.add_argument_group("real models (the first three together, or a recipe's)")
    option(group, "model", metavar="PATH_OR_NAME", help="the policy: a causal LM")
    option(group, "dataset", metavar="FILE_OR_NAME", help="rows: question, answer (#### N)")
    option(group, "judge_model", metavar="PATH_OR_NAME", help="the judge: a causal LM")
    option(group, "split", help="split of a hub data set (train)")
    option(group, "limit", type=int, help="use the first rows only")
    option(group, "eval_dataset", metavar="FILE_OR_NAME", help="held-out rows for the samples")
    option(group, "eval_split", help="split of a hub data set held out (test)")
    option(group, "eval_limit", type=int, help="how many rows are held out")
    option(group, "bad_rows", choices=["error", "skip"], help="skip: count and show them")
    option(group, "judge_kind", choices=["hardened", "paper"], help="paper: hackable, as released")
    option(group, "judge_batch_size", type=int, help="verdicts generated at once")
    option(group, "judge_max_input_tokens", type=int, help="longer cases are cut")
    option(group, "judge_max_new_tokens", type=int, help="length of a verdict")
    option(group, "judge_patience", type=int, help="batches without one readable score")
    return parser


def real_fields(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any] | None:
    """What was given of a real task, or None for the tiny world; ValueError for a part of it."""
    names = (*REAL_REQUIRED, *REAL_OPTIONAL)
    given = {n: getattr(options, n) for n in names if hasattr(options, n)}
    real = recipe.task | given
    missing = " ".join("--" + n.replace("_", "-") for n in REAL_REQUIRED if n not in real)
    if real and missing:
        raise ValueError(f"a run on real models also needs {missing}")
    if given and (recipe.policy or recipe.judge):
        raise ValueError(
            f"--{next(iter(given))} is for real models, and this recipe is of the tiny world: "
            "leave --recipe out, or give one with a `task:`"
        )
    for name in ("judge", "policy_seed"):
        if real and getattr(options, name) is not None:
            raise ValueError(f"--{name} is of the tiny world; with --model leave it out")
    return real or None


def plan(options: argparse.Namespace, rest: list[str]) -> list[Any]:
    """The arms that were asked for, everything checked; ValueError says what to change."""
    recipe = load(options.recipe or ("gsm8k" if hasattr(options, "model") else "tiny"))
    real = real_fields(options, recipe)
    names = ["+".join(method_names.split(name)) for name in options.method]
    judges = [0] if options.judge is None else options.judge
    check_lists(names, {"seed": options.seed, "judge": judges}, options.jobs)
    check_jobs(options.jobs)
    given_gr, given_reset = given_method_options(options)
    # the checks that need no heavy import come first
    method_names.check_used(names, {}, given_gr, given_reset)
    from trl import GRPOConfig

    given = trainer_fields(rest, GRPOConfig)
    method_names.check_used(names, given, given_gr, given_reset)
    check_recipe_fields(recipe.trainer)
    given = with_steps(options, given)
    trainer = {"max_steps": recipe.steps} | recipe.trainer
    trainer = with_accumulation(
        trainer, given, recipe.completions_per_step, options.completions_per_step
    )
    if real:
        trainer = for_this_machine(trainer)
    methods = all_methods(
        names, trainer, recipe.methods, given, given_gr, given_reset, options.step_length
    )

    from .arm import arm_of
    from .loop import quiet
    from .worlds.judge import JudgeSettings, PolicySettings

    quiet()
    arms = []
    for seed in options.seed:
        if real:
            arms += [arm_of(m, seed, threads=recipe.threads, real=real) for m in methods]
            continue
        policy_seed = seed if options.policy_seed is None else options.policy_seed
        policy = PolicySettings(seed=policy_seed, **recipe.policy)
        for index in judges:
            judge = JudgeSettings(index=index, **recipe.judge)
            arms += [arm_of(m, seed, policy, judge, threads=recipe.threads) for m in methods]
    check_config(arms[0].config)
    return arms


def main(arguments: list[str]) -> int:
    """Plan, build the world, run the arms, report; 2 for wrong input, 1 if an arm failed."""
    options, rest = arguments_parser().parse_known_args(arguments)
    if not hasattr(options, "model") and options.recipe in (None, *WORLD_RECIPES):
        # the tiny world needs no network: its models are built on this machine
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arms = plan(options, rest)
        if arms[0].real:
            from .tasks import check_real

            for note in check_real(arms[0].real, arms[0].config):
                if is_main():
                    print(f"note: {note}", file=sys.stderr)
        for arm in arms:
            check_gr(arm)
        waiting = prepare_together(arms, options.output, options.resume)
    except (ValueError, OSError) as error:
        return complain(error)

    from .parallel import run_all
    from .report import write_report

    failed = run_all(waiting, options.jobs)
    finish()
    if is_main():
        show(write_report(options.output, run_folders(arms, options.output)))
    return tell_end(failed, options.output)
