"""The judge world's comparisons: a setting and its run, plans, the choice on tuning seeds, rows."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import methods
from ..cache import write_csv, write_text
from ..recipe import load
from .campaign import Job, run_jobs

TUNING = ((50, 50), (51, 51))  # (seed, judge)
THREE = ((0, 0), (1, 1), (2, 0))


@dataclass(frozen=True)
class Setting:
    """One column of a comparison: a method and what it changes in the recipe."""

    label: str
    method: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] = field(default_factory=dict)  # arguments of flatopt.attach
    recipe: str = "tiny"
    steps: int | None = None
    judge: dict[str, Any] = field(default_factory=dict)  # of JudgeSettings, over the recipe's


Plan = Sequence[tuple[Setting, Sequence[tuple[int, int]]]]
"""Settings, each with its (seed, judge) pairs."""


def make_arm(setting: Setting, seed: int, judge: int) -> Any:
    """The run of a setting, as `python -m integrations judge` would make it."""
    from ..arm import Arm
    from ..worlds.judge import JudgeSettings, PolicySettings

    recipe = load(setting.recipe)
    trainer = {"max_steps": setting.steps or recipe.steps} | recipe.trainer
    method = methods.resolve(setting.method, trainer, recipe.methods, setting.config, setting.gr)
    return Arm(
        method.name,
        seed,
        PolicySettings(seed=seed, **recipe.policy),
        JudgeSettings(index=judge, **(recipe.judge | setting.judge)),
        method.config,
        method.gr,
        recipe.threads,
        reference=method.reference,
    )


def place(output: Path, setting: Setting, seed: int, judge: int) -> Path:
    """The folder of one run."""
    return output / setting.label.replace(" ", "_") / f"judge{judge}-seed{seed}"


def finished(plan: Plan, output: Path) -> Plan:
    """The part of a plan whose runs have ended."""
    done = [
        (s, [p for p in pairs if (place(output, s, *p) / "summary.json").exists()])
        for s, pairs in plan
    ]
    return [(s, pairs) for s, pairs in done if pairs]


def run_plan(plan: Plan, output: Path, jobs: int) -> list[dict[str, Any]]:
    """Run what is not finished; the summaries of all runs, in the order of the plan."""
    waiting = []
    for setting, pairs in plan:
        for seed, judge in pairs:
            facts = {"label": setting.label, "method": setting.method, "seed": seed, "judge": judge}
            folder = place(output, setting, seed, judge)
            waiting.append(Job(facts, make_arm(setting, seed, judge), folder))
    return run_jobs(waiting, output.name, jobs)


def choose(
    families: dict[str, list[Setting]], runs: Sequence[dict[str, Any]]
) -> dict[str, Setting]:
    """The setting of each family with the highest mean final true reward on the tuning runs."""
    best: dict[str, Setting] = {}
    for family, settings in families.items():
        scored = []
        for setting in settings:
            values = [_true(r) for r in runs if r["label"] == setting.label]
            scored.append((statistics.fmean(values), setting))
        best[family] = max(scored, key=lambda pair: pair[0])[1]
    return best


def _true(run: dict[str, Any]) -> float:
    return 0.0 if "failed" in run else run["final"]["true"]


def flat(run: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of runs.csv."""
    row = {name: run.get(name) for name in ("label", "method", "judge", "seed", "failed")}
    if "failed" in run:
        return row
    final = run["final"]
    row |= {
        "steps": run["steps"],
        "start_true": run["start"]["true"],
        "peak_true": run["peak_true"],
        "peak_step": run["peak_step"],
        "final_true": final["true"],
        "final_proxy": final["proxy"],
        "hacked": run["hacked"],
        "hack_step": run["hack_step"],
        "held": final["true"] >= 0.6 and final["proxy"] - final["true"] <= 0.1,
        "final_auc": final.get("auc"),
        "kl_start": final.get("kl_start"),
        "entropy": final.get("entropy"),
        "grad_norm": final.get("grad_norm"),
        "penalty_ratio": final.get("gr/penalty_ratio"),
        "strength": final.get("gr/strength"),
        "step_time": final.get("step_time"),
    }
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def tune(
    families: dict[str, list[Setting]],
    args: argparse.Namespace,
    row: Callable[[dict[str, Any]], dict[str, Any]] = flat,
) -> tuple[list[dict[str, Any]], dict[str, Setting]]:
    """Run all candidates on the tuning seeds: the runs, and the chosen setting of each family.

    Leaves tuning.csv (`row` of each run) and chosen.json in the folder of data.
    """
    plan = [(s, TUNING) for settings in families.values() for s in settings]
    runs = run_plan(plan, args.output / "tuning", args.jobs)
    write_csv(args.data / "tuning.csv", [row(run) for run in runs])
    chosen = choose(families, runs)
    record = {family: setting.__dict__ for family, setting in chosen.items()}
    write_text(args.data / "chosen.json", json.dumps(record, indent=2))
    return runs, chosen


def report(
    plan: Plan,
    args: argparse.Namespace,
    row: Callable[[dict[str, Any]], dict[str, Any]] = flat,
) -> list[dict[str, Any]]:
    """Run the reported settings, or take what is finished; leaves runs.csv."""
    if args.finished:
        plan = finished(plan, args.output / "reported")
    runs = run_plan(plan, args.output / "reported", args.jobs)
    write_csv(args.data / "runs.csv", [row(run) for run in runs])
    return runs
