"""Runs every experiment behind docs/results/ladder.md: tuning, choice of settings, reporting.

    python -m integrations.results.ladder --output runs/ladder --jobs 2

The tiny form of recipes/ladder-tiny.yaml. Every method has four candidates and the same tuning
seeds; the rule of choice, fixed beforehand: the highest mean true reward on held-out prompts of the
four trained stages, gameable and ordinary alike, after the last of them. Everything is resumable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import methods
from ..cache import write_text
from ..ladder.command import prompts_of_step, with_total
from ..ladder.config import config_of, total_steps
from ..ladder.recipe import load
from ..ladder.report import outcome
from ..matched import paired
from ..worlds.ladder.scores import TRAINED
from .campaign import Job, choose, run_jobs

TUNING = (50, 51)
SEEDS = (0, 1, 2, 3, 4)
# completions behind a cell: of one run, so 12,500 over the five seeds
REPORTED_CELL = {"cell": 2_500}
TUNING_CELL = {"cell": 500, "ordinary": 500, "probe": 0, "away_steps": 0}

RATES = (3e-5, 1e-4, 2e-4, 3e-4)  # the last is the recipe's
BETAS = (0.03, 0.1, 0.3, 1.0)
EVERY = (15, 30, 60, 120)
RATIOS = (0.5, 1.0, 4.0, 16.0)
ENTROPY = (0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Setting:
    """One line of a comparison: a method and what it changes in the recipe."""

    label: str
    method: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] = field(default_factory=dict)  # arguments of flatopt.attach
    reset: dict[str, Any] = field(default_factory=dict)  # arguments of ReferenceReset
    order: str = "sequential"
    trainer: str | None = None


PLAIN = Setting("none", "none")


def candidates() -> dict[str, list[Setting]]:
    """Four settings of each method."""
    return {
        "none": [Setting(f"none lr={x:g}", "none", {"learning_rate": x}) for x in RATES],
        "kl": [Setting(f"kl beta={b:g}", "kl", {"beta": b}) for b in BETAS],
        "reset": [Setting(f"reset every={n}", "reset", {}, {}, {"every": n}) for n in EVERY],
        "gr": [Setting(f"gr ratio={r:g}", "gr", {}, {"ratio": r}) for r in RATIOS],
        "entropy": [Setting(f"entropy {c:g}", "none", {"entropy_coef": c}) for c in ENTROPY],
    }


def reported(chosen: dict[str, Setting]) -> list[Setting]:
    """The arms of the comparison: none, every method as chosen, and the controls."""
    gr, kl = chosen["gr"], chosen["kl"]
    both = Setting(f"{gr.label} + {kl.label}", "gr+kl", kl.config, gr.gr)
    arms = [
        PLAIN,
        *(chosen[family] for family in ("kl", "reset", "gr", "entropy", "none")),
        both,
        Setting("matched", "matched"),
        Setting("true", "true"),
    ]
    other = [
        dataclasses.replace(arm, label=f"{arm.label}, parallel", order="parallel")
        for arm in (PLAIN, gr)
    ]
    experts = [
        dataclasses.replace(arm, label=f"{arm.label}, expert iteration", trainer="expert")
        for arm in (PLAIN, gr)
    ]
    return list({arm.label: arm for arm in (*arms, *other, *experts)}.values())


def make_arm(setting: Setting, seed: int, changes: dict[str, Any]) -> Any:
    """The run of a setting, as `python -m integrations ladder` would make it."""
    from ..arm import arm_of

    recipe = load("tiny")
    own = recipe.ladder | changes | {"seed": seed, "order": setting.order}
    own["world"] = recipe.world | {"seed": seed}
    if setting.trainer == "expert":
        own |= {"expert": recipe.expert, "steps_per_stage": recipe.expert["rounds"]}
        if own.get("away_steps"):
            own["away_steps"] = recipe.expert["rounds"]
    trainer = with_total(recipe.trainer, {}, total_steps(config_of(own)))
    own["prompts_per_step"] = prompts_of_step(trainer)
    method = methods.resolve(
        setting.method, trainer, recipe.methods, setting.config, setting.gr, setting.reset
    )
    if setting.trainer is None:  # step lengths are recorded: matched follows those of gr
        (method,) = paired([method], everywhere="matched" not in setting.method)
    return arm_of(method, seed, threads=recipe.threads, ladder=own, trainer=setting.trainer)


def jobs_of(
    plan: Sequence[Setting], seeds: Sequence[int], output: Path, changes: dict[str, Any]
) -> list[Job]:
    """The runs of a plan, a seed after the other."""
    jobs = []
    for seed in seeds:
        for setting in plan:
            arm = make_arm(setting, seed, changes)
            facts = {"label": setting.label, "method": setting.method, "seed": seed}
            jobs.append(Job(facts, arm, output / f"seed{seed}" / folder_name(setting, arm)))
    return jobs


def folder_name(setting: Setting, arm: Any) -> str:
    """The folder of a run: its label, but for `matched`, which looks for its partner by name."""
    if setting.method == "matched":
        return arm.name
    return setting.label.replace(" ", "_").replace(",", "")


def link_partner(jobs: Sequence[Job], label: str) -> None:
    """Give the run that `matched` follows the name under which it is looked for."""
    for job in jobs:
        if job.facts["label"] == label:
            link = job.folder.parent / job.arm.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink() and link.readlink() != Path(job.folder.name):
                raise ValueError(
                    f"{link} is another run, which `matched` has followed. Move {link.parent}"
                    "/matched-* away, and the link"
                )
            if not link.is_symlink():
                link.symlink_to(job.folder.name, target_is_directory=True)


def true_reward(run: dict[str, Any]) -> float:
    """What candidates are chosen by: the mean true reward on the trained stages, both kinds."""
    names = [name for name in run["matrix"] if not name.endswith("-away")]
    last = run["matrix"][names[-1]]
    kinds = ("gameable", "ordinary")
    return statistics.fmean(last[stage][kind]["true"] for stage in TRAINED for kind in kinds)


def flat(run: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of runs.csv; rates and rewards in [0, 1]."""
    row = {name: run.get(name) for name in ("label", "method", "seed", "failed")}
    if "failed" in run:
        return row
    final = run["final"]
    row |= {"steps": run["steps"], "true reward": true_reward(run)}
    row |= outcome(run)
    row |= {name: final.get(name) for name in ("entropy", "kl_start", "grad_norm", "step_length")}
    row["penalty_ratio"] = final.get("gr/penalty_ratio")
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--data", type=Path, default=Path("docs/results/ladder"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--finished", action="store_true", help="report what is finished so far")
    args = parser.parse_args()

    def finished(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.done] if args.finished else jobs

    from .ladder_page import write_page

    families = candidates()
    tried = [setting for settings in families.values() for setting in settings]
    jobs = jobs_of(tried, TUNING, args.output / "tuning", TUNING_CELL)
    build_policies(finished(jobs))
    tuning = run_jobs(finished(jobs), "tuning", args.jobs)
    chosen = choose(families, tuning, TUNING, true_reward)
    record = {family: dataclasses.asdict(setting) for family, setting in chosen.items()}
    write_text(args.data / "chosen.json", json.dumps(record, indent=2))
    plan = reported(chosen)
    jobs = jobs_of(plan, SEEDS, args.output / "reported", REPORTED_CELL)
    build_policies(finished(jobs))
    link_partner(jobs, chosen["gr"].label)
    followers = [job for job in jobs if job.arm.method == "matched"]
    runs = run_jobs(finished([j for j in jobs if j not in followers]), "reported", args.jobs)
    runs += run_jobs(finished(followers), "matched", args.jobs)
    order = {setting.label: i for i, setting in enumerate(plan)}
    runs.sort(key=lambda run: (order[run["label"]], run["seed"]))
    write_page(args.data, runs, tuning, [setting.label for setting in plan])
    return int(any("failed" in run for run in (*tuning, *runs)))


def build_policies(jobs: Sequence[Job]) -> None:
    """Train the start policies of the jobs that are still to run, before they run side by side."""
    from ..worlds.ladder.tiny import build_policy

    settings = dict.fromkeys(s for job in jobs if not job.done for s in job.arm.builds())
    for policy in settings:
        build_policy(policy)


if __name__ == "__main__":
    raise SystemExit(main())
