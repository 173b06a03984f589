"""Runs every experiment behind docs/results/judge.md: tuning, choice of settings, reporting.

    python -m integrations.results --output runs/results --jobs 2

Settings are chosen on the tuning seeds and judges only; each method has the same number of
candidates (6) and the same number of tuning runs. Everything is resumable: finished runs are kept.
The rule of choice, fixed beforehand: the highest final true reward, mean over the tuning runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import methods
from .cache import write_text
from .campaign import Job, run_jobs, write_csv
from .recipe import load

TUNING = ((50, 50), (51, 51))  # (seed, judge)
MAIN = tuple((seed, judge) for judge in (0, 1) for seed in range(5))
THREE = ((0, 0), (1, 1), (2, 0))
ONE = ((0, 0),)


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


def candidates() -> dict[str, list[Setting]]:
    """Six settings of each tuned method."""

    def several(family: str, method: str, options: list[dict[str, Any]]) -> list[Setting]:
        made = []
        for option in options:
            gr = {k: v for k, v in option.items() if k in methods.GR_FIELDS}
            config = {k: v for k, v in option.items() if k not in gr}
            text = ",".join(f"{k}={v:g}" for k, v in option.items() if k != "exclude")
            made.append(Setting(f"{family} {text}", method, config, gr))
        return made

    ratios, betas = (1.0, 2.0, 4.0, 8.0, 16.0), (0.01, 0.03, 0.1, 0.15, 0.2, 0.3)
    both = [(r, b) for r in (4.0, 8.0, 16.0) for b in (0.03, 0.1)]
    resets = ((0.1, 25), (0.1, 75), (0.3, 25), (0.3, 75), (0.3, 150), (0.5, 75))
    strengths = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    rates = (5e-6, 1e-5, 2e-5, 3e-5, 4e-5, 8e-5)
    clips = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    coefficients = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    blocks_only = ["embed_tokens", "lm_head"]
    return {
        "gr": several("gr", "gr", [{"ratio": r, "exclude": []} for r in ratios])
        + several("gr blocks", "gr", [{"ratio": 4.0, "exclude": blocks_only}]),
        "kl": several("kl", "kl", [{"beta": b} for b in betas]),
        "gr+kl": several(
            "gr+kl", "gr+kl", [{"ratio": r, "exclude": [], "beta": b} for r, b in both]
        ),
        "reset": several(
            "reset", "reset", [{"beta": b, "ref_model_sync_steps": k} for b, k in resets]
        ),
        "gr strength": several("gr", "gr", [{"strength": s, "exclude": []} for s in strengths]),
        "small lr": several("lr", "none", [{"learning_rate": x} for x in rates]),
        "clip": several("clip", "none", [{"max_grad_norm": x} for x in clips]),
        "entropy": several("entropy", "none", [{"entropy_coef": x} for x in coefficients]),
    }


def reported(chosen: dict[str, Setting]) -> list[tuple[Setting, Sequence[tuple[int, int]]]]:
    """Every reported setting with its (seed, judge) pairs; none of them was tuned on."""
    gr, kl, both = chosen["gr"], chosen["kl"], chosen["gr+kl"]
    main = [Setting("none", "none"), kl, gr, both]
    plan: list[tuple[Setting, Sequence[tuple[int, int]]]] = [(s, MAIN) for s in main]
    plan += [
        (Setting("true", "true"), THREE),
        (Setting("true+gr", "true+gr", gr=gr.gr), THREE),
        (Setting("true+kl", "true+kl", config=kl.config), THREE),
    ]
    decade = [s for s in candidates()["kl"] if s.config["beta"] in (0.01, 0.03, 0.1, 0.3)]
    plan += [(s, THREE) for s in decade if s != kl]
    others = ("reset", "gr strength", "small lr", "clip", "entropy")
    plan += [(chosen[name], THREE) for name in others]
    options = gr.gr | {"samples": "importance"}
    excluded = [] if options["exclude"] else ["embed_tokens", "lm_head"]
    changes: dict[str, dict[str, Any]] = {
        "gr, ratio 1": {"ratio": 1.0},
        "gr, overdose": {"ratio": 16 * options["ratio"]},
        "gr, samples=score": {"samples": "score"},
        "gr, samples=sequence": {"samples": "sequence"},
        "gr, blocks only" if excluded else "gr, all parameters": {"exclude": excluded},
    }
    plan += [(Setting(name, "gr", gr=options | change), THREE) for name, change in changes.items()]
    twice = 2 * load("tiny").steps
    plan += [
        (Setting(f"{s.label} (x2 steps)", s.method, s.config, s.gr, steps=twice), ONE) for s in main
    ]
    for world in ("weak", "strong"):
        plan += [
            (Setting(f"{s.label} ({world})", s.method, s.config, s.gr, recipe=world), ONE)
            for s in main
        ]
    return plan


def make_arm(setting: Setting, seed: int, judge: int) -> Any:
    """The run of a setting, as `python -m integrations judge` would make it."""
    from .arm import Arm
    from .worlds.judge import JudgeSettings, PolicySettings

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


def finished(
    plan: Sequence[tuple[Setting, Sequence[tuple[int, int]]]], output: Path
) -> list[tuple[Setting, Sequence[tuple[int, int]]]]:
    """The part of a plan whose runs have ended."""
    done = [
        (s, [p for p in pairs if (place(output, s, *p) / "summary.json").exists()])
        for s, pairs in plan
    ]
    return [(s, pairs) for s, pairs in done if pairs]


def run_plan(
    plan: Sequence[tuple[Setting, Sequence[tuple[int, int]]]], output: Path, jobs: int
) -> list[dict[str, Any]]:
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


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--data", type=Path, default=Path("docs/results/judge"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--finished", action="store_true", help="report what is finished so far")
    parser.add_argument("--tune-only", action="store_true", help="stop after the choice")
    args = parser.parse_args()

    families = candidates()
    tuning = run_plan(
        [(s, TUNING) for settings in families.values() for s in settings],
        args.output / "tuning",
        args.jobs,
    )
    write_csv(args.data / "tuning.csv", [flat(run) for run in tuning])
    chosen = choose(families, tuning)
    record = {family: setting.__dict__ for family, setting in chosen.items()}
    write_text(args.data / "chosen.json", json.dumps(record, indent=2))
    if args.tune_only:
        return int(any("failed" in run for run in tuning))
    plan = reported(chosen)
    if args.finished:
        plan = finished(plan, args.output / "reported")
    runs = run_plan(plan, args.output / "reported", args.jobs)
    write_csv(args.data / "runs.csv", [flat(run) for run in runs])

    from .results_page import write_page

    main_labels = ["none", *(chosen[name].label for name in ("kl", "gr", "gr+kl"))]
    write_page(args.data, runs, main_labels)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
