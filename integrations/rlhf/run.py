"""Runs the stages of an RLHF command: the ones before RL, the runs, their evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import parallel
from ..arm import Arm
from ..processes import finish, is_main, world_size
from ..worlds.preferences import RewardSettings
from .evaluate import evaluate_arm, evaluated, show, write_tables
from .options import RlhfConfig
from .stages import Stage, check_earlier, run_stages

BEFORE = ("sft", "pairs", "labels", "reward")
ALL_BEFORE = "before"  # for --stage: all of them
STAGES = (*BEFORE, "rl", "evaluate")


@dataclass(frozen=True)
class Pipeline:
    """What the stages before RL are made of, as data that travels to processes."""

    world: RewardSettings | None = None
    real: RlhfConfig | None = None
    root: Path = Path()

    def stages(self) -> list[Stage]:
        """The stages before RL, in the order in which they are run."""
        if self.world is not None:
            from .world_stages import world_stages

            return world_stages(self.world)
        from .model_stages import real_stages

        assert self.real is not None
        return real_stages(self.real, self.root)

    @property
    def name(self) -> str:
        """For the lines of progress."""
        return "" if self.world is None else f" {self.world.seed}"


@dataclass
class Plan:
    """Everything that a command asks for, checked."""

    arms: list[Arm]
    pipelines: list[Pipeline]
    evaluation: dict[str, Any]
    output: Path
    only: str | None = None
    command: str = ""  # the command line without --stage
    resume: bool = False
    jobs: int = 1
    notes: list[str] = field(default_factory=list)


def check_launch(plan: Plan) -> None:
    """ValueError where several processes would run what is made for one."""
    if world_size() == 1 or plan.only == "rl":
        return
    if plan.only is not None:
        raise ValueError(f"--stage {plan.only} is for one process: run it without a launcher")
    for pipeline in plan.pipelines:
        if any(not stage.finished for stage in pipeline.stages()):
            raise ValueError(
                "under a launcher only RL is trained, and the stages before it are not finished. "
                f"Run them by one process first:\n    {plan.command} --stage {ALL_BEFORE}"
            )


def check_only(plan: Plan) -> None:
    """ValueError where the one stage that was asked for cannot be run yet, or does not exist."""
    if plan.only in (None, ALL_BEFORE):
        return
    for pipeline in plan.pipelines:
        stages = pipeline.stages()
        if plan.only in BEFORE:
            asked = [stage for stage in stages if stage.name == plan.only]
            if not asked:
                known = ", ".join([stage.name for stage in stages] + ["rl", "evaluate"])
                raise ValueError(f"--stage {plan.only}: this run has none; its stages are {known}")
            if not asked[0].finished:
                check_earlier(asked[0], plan.command)
        else:
            check_earlier(Stage(plan.only, plan.output, {}, print, tuple(stages)), plan.command)
    if plan.only == "evaluate":
        for arm in plan.arms:
            if not (plan.output / arm.name / "summary.json").exists():
                raise ValueError(
                    f"stage evaluate needs the result of stage rl for {arm.name}, which is not "
                    f"there. Make it with\n    {plan.command} --stage rl"
                )


def _before(pipeline: Pipeline, only: str | None, command: str, threads: int) -> None:
    import torch

    from ..loop import quiet

    quiet()
    torch.set_num_threads(threads)

    def say(name: str, done: int, total: int, text: str = "") -> None:
        named = f"{name}{pipeline.name}" if name in STAGES else name
        parallel.say_here(named, done, total, text)

    run_stages(pipeline.stages(), say, only, command)


def _evaluate(arm: Arm, folder: Path, settings: dict[str, Any]) -> None:
    evaluate_arm(arm, folder, settings, parallel.say_here)


def run_plan(plan: Plan, waiting: Sequence[tuple[Arm, Path]]) -> int:
    """Run what is missing of the plan, then write the tables; 1 if something failed, else 0."""
    threads = plan.arms[0].threads
    failed: dict[str, str] = {}
    only = None if plan.only == ALL_BEFORE else plan.only
    if world_size() == 1 and plan.only in (None, ALL_BEFORE, *BEFORE):
        calls: dict[str, parallel.Call] = {
            f"stages{pipeline.name}": (_before, pipeline, only, plan.command, threads)
            for pipeline in plan.pipelines
        }
        failed = parallel.run_calls(calls, plan.jobs)
    if not failed and plan.only in (None, "rl"):
        failed = parallel.run_all(list(waiting), plan.jobs)
    finish()
    if not is_main():
        return 1 if failed else 0  # the evaluation is the main process's
    folders = {arm.name: plan.output / arm.name for arm in plan.arms}
    if plan.only in (None, "evaluate"):
        calls = {
            f"evaluate {arm.name}": (_evaluate, arm, folders[arm.name], plan.evaluation)
            for arm in plan.arms
            if (folders[arm.name] / "summary.json").exists()
            and not evaluated(arm, folders[arm.name], plan.evaluation)
        }
        failed |= parallel.run_calls(calls, plan.jobs)
    if plan.only not in (ALL_BEFORE, *BEFORE):
        _report(plan)
    for name, message in failed.items():
        print(f"error: {name} failed: {message}", file=sys.stderr)
    if plan.only in (ALL_BEFORE, *BEFORE) and not failed:
        for pipeline in plan.pipelines:
            for stage in pipeline.stages():
                if plan.only in (ALL_BEFORE, stage.name):
                    print(f"{stage.name} is in {stage.folder}")
    return 1 if failed else 0


def _report(plan: Plan) -> None:
    """The curves, and the table of what has been evaluated, over all runs in the folder."""
    from ..report import write_report

    folders = [plan.output / arm.name for arm in plan.arms]
    # runs of earlier commands in the same folder stay part of the comparison
    folders += sorted(p.parent for p in plan.output.glob("*/settings.json"))
    folders = [f for f in dict.fromkeys(folders) if (f / "settings.json").exists()]
    write_report(plan.output, folders)
    rows = write_tables(plan.output, folders)
    if rows:
        show(rows)
    print(f"results in {plan.output}")
