"""The command `ladder`: methods compared on stages that can be gamed, from small to worse.

Example::

    python -m integrations ladder --method none gr --output runs/ladder
    python -m integrations ladder --model PATH_OR_NAME --method kl gr --output runs/mine
"""

from __future__ import annotations

import argparse
import os
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
)
from ..launch import add_launch_options, check_jobs, prepare_together, with_accumulation
from ..processes import complain, finish, is_main
from .config import ORDERS, config_of, total_steps

DESCRIPTION = """\
RL on a ladder of environments that can be gamed: agree, flatter, checklist, forbidden. The fifth,
the ledger, in which a policy could overwrite its own reward, is held out. Text only, nothing is
executed. Measured: the gaming rate on every stage after each stage (the gaming matrix), what
training it away leaves, and whether the policy could game if told how. By default a small policy on
this machine; with --model any causal language model with a chat template. Every field of TRL's
GRPOConfig is an option too.
"""
# fields of LadderConfig that a user gives: name, options of add_argument
GIVEN: dict[str, dict[str, Any]] = {
    "order": {"choices": ORDERS, "help": "stages one after the other, or mixed (sequential)"},
    "steps_per_stage": {"type": int, "help": "gradient steps (rounds, in expert iteration)"},
    "away_steps": {"type": int, "help": "steps of training gaming away at the end; 0: none"},
    "cell": {"type": int, "metavar": "N", "help": "completions behind each cell of the matrix"},
    "eval_seed": {"type": int, "help": "of the prompts and completions measured"},
    "model": {"metavar": "PATH_OR_NAME", "help": "a causal LM with a chat template"},
}
ALGORITHMS = ("grpo", "expert")
# what changes a run of GRPO, and not one of expert iteration
GRPO_ALONE = (
    "samples", "num_generations", "num_iterations", "steps_per_generation",
    "gradient_accumulation_steps", "loss_type", "scale_rewards", "entropy_coef", "epsilon",
    "epsilon_high", "delta", "importance_sampling_level", "mask_truncated_completions", "use_vllm",
)  # fmt: skip


def arguments_parser() -> argparse.ArgumentParser:
    """The scenario's own options; fields of GRPOConfig are left over for its own parser."""
    parser = new_parser("ladder", DESCRIPTION)
    add = parser.add_argument
    add("--method", nargs="+", default=["none", "gr"], metavar="NAME", help="default: none gr")
    text = "TRL's GRPO, or imitation of the best of several completions (expert iteration)"
    add("--algorithm", choices=ALGORITHMS, default="grpo", help=text)
    add("--recipe", help="tiny (default), a name under recipes/, .yaml; with --model: chat")
    add("--seed", nargs="+", type=int, default=[0], help="one run per seed and method")
    option(
        parser, "policy_seed", type=int, help="tiny: one start policy for all; default: per seed"
    )
    add("--output", type=Path, required=True, help="folder for the results")
    add("--resume", action="store_true", help="continue the runs in --output, skip finished ones")
    add("--jobs", type=int, default=1, help="runs in parallel, one process each")
    add_method_options(parser)
    add_launch_options(parser)
    group = parser.add_argument_group("the ladder")
    for name, options in GIVEN.items():
        option(group, name, **options)
    return parser


def check_algorithm(options: argparse.Namespace, names: list[str], given: dict[str, Any]) -> None:
    """ValueError for methods, and given fields of GRPOConfig, that imitation has no place for."""
    if options.algorithm != "expert":
        return
    unused = [name for name in GRPO_ALONE if name in given or hasattr(options, name)]
    if options.step_length:
        unused.append("step_length")
    if unused:
        raise ValueError(f"--{unused[0]} has no effect with --algorithm expert: leave it out")
    for name in names:
        if set(name.split("+")) - {"none", "gr", "true"}:
            raise ValueError(
                f"--algorithm expert with method {name}: imitation has no KL term and no steps to "
                "match. Use none, gr or true, or --algorithm grpo"
            )


def with_total(trainer: dict[str, Any], given: dict[str, Any], steps: int) -> dict[str, Any]:
    """The trainer's fields with the ladder's number of steps and prompts in their order."""
    for name in ("max_steps", "num_train_epochs", "shuffle_dataset"):
        if name in given:
            raise ValueError(f"--{name} is set by the ladder: use --steps_per_stage, --away_steps")
    return trainer | {"max_steps": steps, "shuffle_dataset": False}


def prompts_of_step(config: dict[str, Any]) -> int:
    """Prompts drawn in each step, over all devices, as the trainer's fields have it."""
    from ..processes import world_size

    each = int(config.get("per_device_train_batch_size", 8)) * world_size()
    completions = each * int(config.get("gradient_accumulation_steps") or 1)
    generations = int(config.get("num_generations", 8))
    if completions % generations:
        raise ValueError(
            f"{completions} completions in a step are no multiple of num_generations {generations}"
        )
    accumulation = int(config.get("gradient_accumulation_steps") or 1)
    if (
        int(config.get("num_iterations") or 1) != 1
        or int(config.get("steps_per_generation") or accumulation) != accumulation
        or config.get("generation_batch_size") is not None
    ):
        raise ValueError(
            "a phase of the ladder ends at a step, which has its own completions: leave out "
            "--num_iterations and --generation_batch_size, and give --steps_per_generation "
            f"{accumulation}, as many as gradient_accumulation_steps"
        )
    return completions // generations


def check_sampling(config: dict[str, Any], tiny: bool) -> None:
    """ValueError for completions that could not be written, or would be measured otherwise."""
    from ..worlds.ladder.tiny import MAX_COMPLETION

    if not float(config.get("temperature", 1.0)) > 0:
        raise ValueError(f"--temperature must be above 0, got {config['temperature']}")
    if tiny and config.get("max_completion_length") != MAX_COMPLETION:
        raise ValueError(
            f"completions of the tiny form are measured at {MAX_COMPLETION} tokens: leave out "
            f"--max_completion_length, or write max_completion_length: {MAX_COMPLETION} in the "
            f"recipe; got {config.get('max_completion_length')}"
        )


def plan(options: argparse.Namespace, rest: list[str]) -> list[Any]:
    """The arms that were asked for, everything checked; ValueError says what to change."""
    names = ["+".join(method_names.split(name)) for name in options.method]
    policy_seed = [options.policy_seed] if hasattr(options, "policy_seed") else [0]
    check_lists(names, {"seed": options.seed, "policy_seed": policy_seed}, options.jobs)
    check_jobs(options.jobs)
    check_algorithm(options, names, {})
    given_gr, given_reset = given_method_options(options)
    # the checks that need no heavy import come first
    method_names.check_used(names, {}, given_gr, given_reset)
    from .recipe import load

    recipe = load(options.recipe or ("chat" if hasattr(options, "model") else "tiny"))
    own = recipe.ladder | {n: getattr(options, n) for n in GIVEN if hasattr(options, n)}
    if "model" not in own:
        if not recipe.world:
            raise ValueError(f"recipe {options.recipe} needs --model PATH_OR_NAME")
        own["world"] = recipe.world
    elif hasattr(options, "policy_seed"):
        raise ValueError("--policy_seed is of the tiny form; with a real model leave it out")

    from trl import GRPOConfig

    given = trainer_fields(rest, GRPOConfig)
    check_algorithm(options, names, given)
    method_names.check_used(names, given, given_gr, given_reset)
    check_recipe_fields(recipe.trainer)
    trainer = with_accumulation(
        recipe.trainer, given, recipe.completions_per_step, options.completions_per_step
    )
    if "model" in own:
        trainer = for_this_machine(trainer)
    expert = options.algorithm == "expert"
    if expert:
        own |= {"expert": recipe.expert, "steps_per_stage": own.get("steps_per_stage", 0)}
        own = expert_lengths(own, options)
    trainer = with_total(trainer, given, total_steps(config_of(own)))
    if not expert:  # a round of imitation draws its own number of prompts
        own["prompts_per_step"] = prompts_of_step(trainer | given)
    check_sampling(trainer | given, "world" in own)

    from ..arm import arm_of
    from ..loop import quiet

    quiet()
    methods = all_methods(
        names, trainer, recipe.methods, given, given_gr, given_reset, options.step_length
    )
    arms = []
    for seed in options.seed:
        for method in methods:
            ladder = own | {"seed": seed}
            if "world" in own:
                world_seed = getattr(options, "policy_seed", seed)
                ladder["world"] = own["world"] | {"seed": world_seed}
            arms.append(
                arm_of(
                    method,
                    seed,
                    threads=recipe.threads,
                    ladder=ladder,
                    trainer="expert" if expert else None,
                )
            )
    check_config(arms[0].config)
    return arms


def expert_lengths(own: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Steps of imitation in place of steps of GRPO: rounds x steps for each stage."""
    from .expert import Rounds

    rounds = Rounds(**own["expert"])
    stage = getattr(options, "steps_per_stage", rounds.rounds)
    away = getattr(options, "away_steps", min(rounds.rounds, own.get("away_steps", rounds.rounds)))
    return own | {"steps_per_stage": stage, "away_steps": away}


def main(arguments: list[str]) -> int:
    """Plan, run the arms, measure, report; 2 for wrong input, 1 for a failed run."""
    options, rest = arguments_parser().parse_known_args(arguments)
    if not hasattr(options, "model"):
        # the tiny form needs no network: its models are built on this machine
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arms = plan(options, rest)
        if arms[0].ladder.get("model"):
            from .chat import check_model

            check_model(arms[0].ladder["model"], arms[0].config)
        for arm in arms:  # reads the model's config, of which check_model says what is wrong
            check_gr(arm)
        waiting = prepare_together(arms, options.output, options.resume)
    except (ValueError, OSError) as error:
        return complain(error)

    from ..parallel import run_all
    from ..report import write_report
    from .report import show, write_matrices

    failed = run_all(waiting, options.jobs)
    finish()
    if is_main():
        folders = run_folders(arms, options.output)
        write_report(options.output, folders)
        write_matrices(options.output, folders)
        show(folders)
    return tell_end(failed, options.output)
