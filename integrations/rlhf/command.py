"""The RLHF scenario: SFT, preferences, reward model, RL against it, evaluation; stage by stage.

Example::

    python -m integrations rlhf --recipe tiny --world A B --method none kl gr --output runs/rlhf
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
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
    check_output,
    check_recipe_fields,
    for_this_machine,
    given_method_options,
    new_parser,
    option,
    trainer_fields,
    with_steps,
)
from ..launch import add_launch_options, check_jobs, prepare_together, with_accumulation
from ..processes import complain, decided_by_main, is_main

DESCRIPTION = """\
A language model is fine-tuned, pairs of its completions are labelled, a reward model learns from
the labels, and TRL's GRPO or RLOO trains the policy on that reward model, against which it is then
evaluated. Without --model the self-contained preference worlds are used: in A the reward model gets
ever worse as the policy moves away (slow over-optimization), in B it also over-pays one rare bigram
(a steep exploit). Every field of TRL's GRPOConfig (RLOOConfig) is an option too; what is given here
wins over the recipe. Finished stages are kept, killed ones go on where they were (--resume). On
several devices: `--stage before` by one process, then the same command without it by torchrun or
accelerate launch.
"""
STAGES = ("sft", "pairs", "labels", "reward", "before", "rl", "evaluate")
HELP = {
    "model": "the policy: a causal LM, folder or hub name",
    "preferences": "file or hub name: prompt, chosen, rejected",
    "prompts": "file or hub name: prompt; default: those of the preferences",
    "sft": "chosen (the preferences' better replies), none, or a file: prompt, completion",
    "gold_model": "classifier with one label: labels sampled pairs, watched in RL",
    "judge_model": "causal LM that compares sampled pairs",
    "reward_model": "classifier with one label, in place of a trained one",
    "split": "split of hub data sets (train)",
    "limit": "use the first rows only",
    "bad_rows": "error or skip: leave broken preference rows out, count and show them",
    "reward_method": "bt (Bradley-Terry), grm or gr",
    "reward_amount": "grm: share of the text loss (.01); gr: ratio (1)",
    "pairs": "how many pairs are sampled; default: one per prompt",
    "max_length": "tokens of prompt and completion in SFT and reward model",
    "save_every": "steps between checkpoints of SFT and reward model",
    "sample_batch_size": "completions written at once, pairs judged at once",
    "stage_seed": "of SFT, pairs and reward model",
}
# given in other ways: from the trainer's config, and with --eval_prompts
NOT_OPTIONS = ("tokens", "eval_prompts")


def arguments_parser() -> argparse.ArgumentParser:
    """The scenario's own options; fields of the trainer's config are left over."""
    from .options import RlhfConfig

    parser = new_parser("rlhf", DESCRIPTION)
    add = parser.add_argument
    add("--method", nargs="+", default=["none", "gr", "kl"], metavar="NAME", help="none gr kl")
    add("--recipe", help="tiny (default), smoke, .yaml; with --model: real")
    add("--world", nargs="+", choices=["A", "B"], help="A: slow, B: steep exploit (A B)")
    add("--world_seed", nargs="+", type=int, help="language, policy and reward model (0)")
    add("--seed", nargs="+", type=int, default=[0], help="of RL: one run per seed")
    add("--trainer", choices=["grpo", "rloo"], default="grpo")
    add("--alarm", choices=["log", "stop"], help="watch for hacking by the recipe's rule")
    add("--stage", choices=STAGES, help="run this stage alone; before: all those before rl")
    add("--output", type=Path, required=True, help="folder for the results")
    add("--resume", action="store_true", help="continue what is in --output")
    add("--jobs", type=int, default=1, help="runs in parallel, one process each")
    add("--steps", type=int, help="gradient steps of RL, in place of the recipe's")
    group = parser.add_argument_group("evaluation")
    option(group, "eval_prompts", type=int, help="held-out prompts")
    option(group, "eval_samples", type=int, help="completions per prompt and policy, at least 2")
    option(group, "eval_seed", type=int, help="of these completions")
    add_method_options(parser)
    add_launch_options(parser)
    group = parser.add_argument_group("real models (--model, with --preferences or --prompts)")
    for field in dataclasses.fields(RlhfConfig):
        if field.name not in NOT_OPTIONS:
            kind = {"int": int, "float": float}.get(str(field.type).removesuffix(" | None"), str)
            option(group, field.name, type=kind, help=HELP.get(field.name))
    return parser


def _evaluation(options: argparse.Namespace, settings: dict[str, int]) -> dict[str, int]:
    names = {n: f"eval_{n}" for n in ("prompts", "samples", "seed")}
    given = {n: getattr(options, k) for n, k in names.items() if hasattr(options, k)}
    settings = settings | given
    for name, least in (("prompts", 1), ("samples", 2), ("seed", 0)):
        if settings[name] < least:
            raise ValueError(f"--eval_{name} must be at least {least}, got {settings[name]}")
    return settings


def real_config(options: argparse.Namespace, recipe: Any, tokens: int) -> Any:
    """The options of a real run, or None for a world; ValueError for a part of them."""
    from .options import RlhfConfig

    names = [f.name for f in dataclasses.fields(RlhfConfig) if f.name not in NOT_OPTIONS]
    given = {n: getattr(options, n) for n in names if hasattr(options, n)}
    given = recipe.task | given
    for_worlds = bool(recipe.policy or recipe.reward) or not recipe.real
    if not given and for_worlds:
        return None
    if "model" not in given:
        if given:
            raise ValueError(f"--{next(iter(given))} is for real models: give --model too")
        raise ValueError(
            "this recipe is for real models: give --model, and --preferences or --prompts"
        )
    for name in ("world", "world_seed"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is of the self-contained worlds; with --model leave it out")
    given = recipe.real | given | {"tokens": tokens}
    if hasattr(options, "eval_prompts"):
        given["eval_prompts"] = options.eval_prompts
    return RlhfConfig(**given)


def command_of(arguments: list[str]) -> str:
    """The command line without --stage."""
    kept = list(arguments)
    if "--stage" in kept:
        at = kept.index("--stage")
        kept = kept[:at] + kept[at + 2 :]
    kept = [a for a in kept if not a.startswith("--stage=")]
    return shlex.join(["python", "-m", "integrations", "rlhf", *kept])


def make_plan(options: argparse.Namespace, rest: list[str], arguments: list[str]) -> Any:
    """What was asked for, with every setting checked; ValueError says what to change."""
    names = ["+".join(method_names.split(name)) for name in options.method]
    world_seeds = [0] if options.world_seed is None else options.world_seed
    check_lists(names, {"seed": options.seed, "world_seed": world_seeds}, options.jobs)
    if len(set(options.world or [])) < len(options.world or []):
        raise ValueError("--world names one world twice")
    check_jobs(options.jobs)
    given_gr, given_reset = given_method_options(options)
    # the checks that need no heavy import come first
    method_names.check_used(names, {}, given_gr, given_reset)
    from .recipe import load

    recipe = load(options.recipe or ("real" if hasattr(options, "model") else "tiny"))
    is_real = hasattr(options, "model") or bool(recipe.task)
    evaluation: dict[str, Any] = _evaluation(options, recipe.evaluation)
    from ..loop import quiet, trainer_classes

    quiet()
    trainer_name = None if options.trainer == "grpo" else options.trainer
    given = trainer_fields(rest, trainer_classes(trainer_name)[0])
    method_names.check_used(names, given, given_gr, given_reset)
    check_recipe_fields(recipe.trainer)
    given = with_steps(options, given)
    trainer = {"max_steps": recipe.steps} | recipe.trainer
    trainer = with_accumulation(
        trainer, given, recipe.completions_per_step, options.completions_per_step
    )
    if is_real:
        trainer = for_this_machine(trainer)
    tokens = int((trainer | given).get("max_completion_length", 256))
    real = real_config(options, recipe, tokens)
    methods = all_methods(
        names, trainer, recipe.methods, given, given_gr, given_reset, options.step_length
    )
    common: dict[str, Any] = {"threads": recipe.threads, "trainer": trainer_name}
    if options.alarm:
        if not recipe.alarm:
            raise ValueError("--alarm needs a rule: write one under `alarm:` in the recipe")
        common["alarm"] = {"rule": recipe.alarm, "stop": options.alarm == "stop"}

    from ..arm import arm_of
    from ..worlds.preference_task import PreferenceWorld
    from ..worlds.preferences import PolicySettings, RewardSettings
    from ..worlds.topics import Language
    from .run import Pipeline, Plan

    if real is not None:
        evaluation["prompts"] = None  # all that are held out
        pipelines = [Pipeline(real=real, root=options.output / "stages")]
        from .task import describe

        if "true" in "+".join(names).split("+") and not real.gold_model:
            raise ValueError("method true trains on the gold reward: give --gold_model")
        folders = {stage.name: stage.folder for stage in pipelines[0].stages()}
        where = describe(real, folders)
        arms = [arm_of(m, seed, rlhf=where, **common) for seed in options.seed for m in methods]
    else:
        rewards = [
            RewardSettings(
                PolicySettings(Language(seed), seed=seed, **recipe.policy),
                seed=seed,
                **recipe.reward,
            )
            for seed in world_seeds
        ]
        pipelines = [Pipeline(world=reward) for reward in rewards]
        worlds = [PreferenceWorld(k, r) for k in options.world or ["A", "B"] for r in rewards]
        arms = [
            arm_of(m, seed, world=w, **common)
            for w in worlds
            for seed in options.seed
            for m in methods
        ]
    check_config(arms[0].config, trainer_name)
    return Plan(
        arms=arms,
        pipelines=pipelines,
        evaluation=evaluation,
        output=options.output,
        only=options.stage,
        command=command_of(arguments),
        resume=options.resume or options.stage is not None,
        jobs=options.jobs,
    )


def check_plan(plan: Any) -> None:
    """Inputs and settings whose check needs models or data; cheap ones came before."""
    from .run import check_launch, check_only

    decided_by_main(lambda: check_output(plan.output, plan.resume))
    check_launch(plan)
    real = plan.pipelines[0].real
    if real is not None:
        from .checks import check_inputs

        plan.notes += check_inputs(real)
    for arm in plan.arms:
        check_gr(arm)
    check_only(plan)


def main(arguments: list[str]) -> int:
    """Plan, check, run the stages; 2 for wrong input, 1 if a stage failed."""
    options, rest = arguments_parser().parse_known_args(arguments)
    if not hasattr(options, "model") and options.recipe in (None, "tiny", "smoke"):
        # the worlds need no network: their models are built on this machine
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from ..reward_models.trainer import BadReward

    try:
        plan = make_plan(options, rest, arguments)
        check_plan(plan)
        waiting = []
        if plan.only in (None, "rl"):
            waiting = prepare_together(plan.arms, plan.output, plan.resume)
    except (ValueError, OSError, BadReward) as error:
        return complain(error)
    for note in plan.notes if is_main() else ():
        print(f"note: {note}", file=sys.stderr)
    from .run import run_plan

    return run_plan(plan, waiting)
