"""Runs every experiment behind docs/results/rules.md: tuning, choice of settings, reporting.

    python -m integrations.results.rules --output runs/rules --jobs 2

The rule world of recipes/rules-tiny.yaml and its neighbours. Every tuned method has four candidates
and the same tuning seeds; the rule of choice, fixed beforehand: the highest mean pass@1 on held-out
problems after training. Everything is resumable: finished runs are kept.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import methods
from ..cache import write_csv, write_text
from ..rules.recipe import load
from ..watch.monitor import read_rows
from .campaign import Job, choose, command_line, run_jobs

TUNING = (50, 51, 52)
FIVE = (0, 1, 2, 3, 4)
TEN = tuple(range(10))

RATES = (1.5e-4, 3e-4, 6e-4, 9e-4)  # the last is the recipe's
BETAS = (0.01, 0.03, 0.1, 0.3)
RATIOS = (0.5, 1.0, 4.0, 16.0)
TERMS = ("integer_answer", "strict_format", "soft_format", "tag_count")


@dataclass(frozen=True)
class Setting:
    """One line of a comparison: a method and what it changes in the recipe."""

    label: str
    method: str
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] = field(default_factory=dict)  # arguments of flatopt.attach
    recipe: str = "tiny"


def candidates() -> dict[str, list[Setting]]:
    """Four settings of each method."""
    return {
        "none": [Setting(f"none lr={x:g}", "none", {"learning_rate": x}) for x in RATES],
        "kl": [Setting(f"kl beta={b:g}", "kl", {"beta": b}) for b in BETAS],
        "gr": [Setting(f"gr ratio={r:g}", "gr", {}, {"ratio": r, "exclude": []}) for r in RATIOS],
    }


def reported(chosen: dict[str, Setting]) -> list[tuple[Setting, Sequence[int]]]:
    """The chosen settings, and none at the recipe's rate, on seeds nothing was chosen on.

    Ten seeds for what is compared (whether a run gets stuck is a matter of chance), five for the
    controls.
    """
    plain = candidates()["none"][-1]
    plan: list[tuple[Setting, Sequence[int]]] = []
    for setting in dict.fromkeys((plain.label, *(chosen[f].label for f in ("kl", "gr", "none")))):
        (found,) = {s.label: s for s in (plain, *chosen.values()) if s.label == setting}.values()
        seeds = FIVE if found.method == "none" and found != plain else TEN
        plan.append((found, seeds))
    plan.append((Setting("true", "true"), FIVE))
    return plan


def make_arm(setting: Setting, seed: int) -> Any:
    """The run of a setting, as `python -m integrations rules` would make it."""
    from ..arm import arm_of

    recipe = load(setting.recipe)
    trainer = {"max_steps": recipe.steps} | recipe.trainer
    method = methods.resolve(
        setting.method, trainer, recipe.methods, setting.config, setting.gr, {}
    )
    rules: dict[str, Any] = {"world": recipe.world | {"seed": seed}}
    if "true" in method.name.split("+"):
        rules["form_weight"] = 0.0
    return arm_of(method, seed, threads=recipe.threads, rules=rules)


def place(output: Path, setting: Setting, seed: int) -> Path:
    """The folder of one run."""
    return output / setting.label.replace(" ", "_") / f"seed{seed}"


def jobs_of(plan: Sequence[tuple[Setting, Sequence[int]]], output: Path) -> list[Job]:
    """The runs of a plan."""
    return [
        Job(
            {"label": s.label, "method": s.method, "seed": seed},
            make_arm(s, seed),
            place(output, s, seed),
        )
        for s, seeds in plan
        for seed in seeds
    ]


def levels_of(rows: Sequence[dict[str, Any]], first: int, last: int) -> dict[str, float]:
    """Accuracy on the batches of steps first < step <= last, by level."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if first < row["step"] <= last:
            for name, value in row.items():
                if name.startswith("level/") and value is not None:
                    found.setdefault(name.split("/")[1], []).append(value)
    return {level: statistics.fmean(values) for level, values in sorted(found.items())}


def flat(run: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of runs.csv: shares, points of each reward term, accuracy by level."""
    row = {name: run.get(name) for name in ("label", "method", "seed", "failed")}
    if "failed" in run:
        return row
    folder, final = Path(run["folder"]), run["final"]
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    row |= {
        "steps": run["steps"],
        "start": run["start"]["true"],
        "peak": run["peak_true"],
        "final": final["true"],
        "held_out": evaluation["pass_at_1"]["mean"],
        "start_format": run["start"]["format"],
        "format": final["format"],
        "reward": final.get("reward"),
        "shows_steps": final.get("shows_steps"),
        "truncated": final.get("truncated"),
        "length": final.get("length"),
        "entropy": final.get("entropy"),
        "kl_start": final.get("kl_start"),
        "grad_norm": final.get("grad_norm"),
        "penalty_ratio": final.get("gr/penalty_ratio"),
    }
    row |= {term: final.get(f"rewards/{term}/mean") for term in TERMS}
    rows = read_rows(folder / "metrics.jsonl")
    for name, (first, last) in {"start": (0, 25), "end": (run["steps"] - 25, run["steps"])}.items():
        levels = levels_of(rows, first, last)
        row |= {f"level {level} {name}": value for level, value in levels.items()}
    row |= {f"held-out level {g['level']}": g["mean"] for g in evaluation.get("by_level", ())}
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def held_out(run: dict[str, Any]) -> float:
    """What candidates are chosen by: pass@1 on held-out problems after training."""
    return flat(run).get("held_out") or 0.0


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    args = command_line(__doc__, "rules").parse_args()

    def jobs(plan: Sequence[tuple[Setting, Sequence[int]]], part: str) -> list[Job]:
        made = jobs_of(plan, args.output / part)
        return [job for job in made if job.done] if args.finished else made

    families = candidates()
    tuning = run_jobs(
        jobs([(s, TUNING) for settings in families.values() for s in settings], "tuning"),
        "tuning",
        args.jobs,
    )
    write_csv(args.data / "tuning.csv", [flat(run) for run in tuning])
    chosen = choose(families, tuning, TUNING, held_out)
    record = {family: setting.__dict__ for family, setting in chosen.items()}
    write_text(args.data / "chosen.json", json.dumps(record, indent=2))
    runs = run_jobs(jobs(reported(chosen), "reported"), "reported", args.jobs)
    write_csv(args.data / "runs.csv", [flat(run) for run in runs])

    from .rules_page import write_page

    write_page(args.data, runs, tuning)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
