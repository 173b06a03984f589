"""Runs every experiment behind docs/results/judge.md: tuning, choice of settings, reporting.

    python -m integrations.results.judge --output runs/results --jobs 2

Settings are chosen on the tuning seeds and judges only; each method has the same number of
candidates (6) and the same number of tuning runs. Everything is resumable: finished runs are kept.
The rule of choice, fixed beforehand: the highest final true reward, mean over the tuning runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import methods
from ..recipe import load
from .campaign import command_line
from .judge_page import write_page
from .judge_plan import THREE, Setting, report, tune

MAIN = tuple((seed, judge) for judge in (0, 1) for seed in range(5))
ONE = ((0, 0),)


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


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    parser = command_line(__doc__, "judge")
    parser.set_defaults(output=Path("runs/results"))
    parser.add_argument("--tune-only", action="store_true", help="stop after the choice")
    args = parser.parse_args()
    tuning, chosen = tune(candidates(), args)
    if args.tune_only:
        return int(any("failed" in run for run in tuning))
    runs = report(reported(chosen), args)
    main_labels = ["none", *(chosen[name].label for name in ("kl", "gr", "gr+kl"))]
    write_page(args.data, runs, main_labels)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
