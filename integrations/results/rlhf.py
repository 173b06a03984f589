"""Runs every experiment behind docs/results/rlhf.md: tuning, choice of settings, reporting.

    python -m integrations.results.rlhf --output runs/rlhf --jobs 2

Settings are chosen on the tuning seeds only; each method has the same number of candidates (6) and
of tuning runs (one in each world). The rule of choice, fixed beforehand: the highest gold
reward at the end, mean over the tuning runs of both worlds; one setting serves both. Finished runs
are kept.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import write_csv, write_text
from . import rlhf_plan as plans
from .campaign import Job, command_line, run_jobs, summary_of
from .rlhf_page import write_page
from .rlhf_plan import Plan, Setting

PARTS = ("main", "probe", "more", "retune", "confirm", "reward", "scale", "control")
FACTS = ("label", "method", "world", "world_seed", "seed")


def jobs_of(plan: Plan, output: Path) -> list[Job]:
    """The runs of a plan, the seeds outermost, so that a plan cut short has whole comparisons."""
    jobs = []
    order = list(dict.fromkeys(pair for _, _, seeds in plan for pair in seeds))
    for world_seed, seed in order:
        for setting, kinds, seeds in plan:
            for kind in kinds:
                if (world_seed, seed) in seeds:
                    values = (setting.label, setting.method, kind, world_seed, seed)
                    place = setting.label.replace(" ", "_").replace("/", "over")
                    folder = output / place / f"{kind}{world_seed}-seed{seed}"
                    arm = plans.make_arm(setting, kind, world_seed, seed)
                    jobs.append(Job(dict(zip(FACTS, values, strict=True)), arm, folder))
    return jobs


def tuning_plan(names: Sequence[str]) -> Plan:
    """The tuning runs of these families of candidates."""
    pairs = tuple((seed, seed) for seed in plans.TUNING)
    settings = [s for name in names for s in plans.candidates()[name]]
    return [(s, plans.KINDS, pairs) for s in settings]


def final_gold(run: dict[str, Any]) -> float:
    """Gold at the end; a failed run counts as the worst that any run could be expected to reach."""
    return -10.0 if "failed" in run else run["final"]["true"]


def choose(names: Sequence[str], runs: Sequence[dict[str, Any]]) -> dict[str, Setting]:
    """The setting of each family with the highest mean final gold over all its tuning runs."""
    best = {}
    for name in names:

        def mean(setting: Setting) -> float:
            return statistics.fmean(final_gold(r) for r in runs if r["label"] == setting.label)

        best[name] = max(plans.candidates()[name], key=mean)
    return best


def choose_again(chosen: dict[str, Setting], runs: Sequence[dict[str, Any]]) -> dict[str, Setting]:
    """`chosen`, with the families of `RETUNED` by their mean final gold in the further worlds."""
    again = dict(chosen)
    for family, labels in plans.RETUNED.items():
        tried = [s for s in plans.candidates()[family] if s.label in labels]
        golds = {s.label: [final_gold(r) for r in runs if r["label"] == s.label] for s in tried}
        again[family] = max(tried, key=lambda s: statistics.fmean(golds[s.label]))
    return again


def flat(run: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of a table of runs."""
    row = {name: run.get(name) for name in (*FACTS, "failed")}
    if "failed" in run:
        return row
    final = run["final"]
    row |= {
        "steps": run["steps"],
        "start_gold": run["start"]["true"],
        "peak_gold": run["peak_true"],
        "peak_step": run["peak_step"],
        "final_gold": final["true"],
        "final_proxy": final["proxy"],
        "fell": run["hacked"],
        "fell_at": run["hack_step"],
        "accuracy": final.get("reward_accuracy"),
        "bt_loss": final.get("bt_loss"),
        "kl_start": final.get("kl_start"),
        "entropy": final.get("entropy"),
        "grad_norm": final.get("grad_norm"),
        "spread": final.get("spread"),
        "penalty_ratio": final.get("gr/penalty_ratio"),
        "strength": final.get("gr/strength"),
    }
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def save(path: Path, chosen: dict[str, Setting]) -> None:
    """The settings of each family as a file."""
    record = {family: setting.__dict__ for family, setting in chosen.items()}
    write_text(path, json.dumps(record, indent=2))


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    parser = command_line(__doc__, "rlhf")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts to run; default: all")
    parser.add_argument("--tune", nargs="*", help="families to tune; default: all")
    args = parser.parse_args()
    names = list(plans.candidates()) if args.tune is None else args.tune
    failed = False

    def run(plan: Plan, name: str) -> list[dict[str, Any]]:
        nonlocal failed
        jobs = jobs_of(plan, args.output / ("tuning" if name == "tuning" else "reported"))
        if args.finished:
            runs = [summary_of(job) for job in jobs if job.done]
        else:
            runs = run_jobs(jobs, name, args.jobs)
        failed |= any("failed" in r for r in runs)
        write_csv(args.data / f"{name}.csv", [flat(r) for r in runs])
        return runs

    tuning = run(tuning_plan(names), "tuning")
    chosen = choose(names, tuning)
    save(args.data / "chosen.json", chosen)
    parts = {"tuning": tuning}
    for name in PARTS if args.only is None else args.only:
        settings = chosen
        if name in ("confirm", "reward", "scale"):
            settings = choose_again(chosen, [*parts["more"], *parts["retune"]])
            save(args.data / "chosen_again.json", settings)
        parts[name] = run(getattr(plans, f"{name}_plan")(settings), name)
    write_page(args.data, args.data.parent / f"{args.data.name}.md", chosen, parts)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
