"""How the judge world was calibrated: candidates on calibration seeds, methods none and true only.

    python -m integrations.worlds.calibrate --output runs/calibration --jobs 2

The seeds and judges start at 100, so none of them is ever reported on, and no method against
hacking can be run here. Results: `calibration.json` and `calibration.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arm import Arm
from ..cache import write_text
from ..loop import prepare_folder
from ..methods import resolve
from ..parallel import run_all
from ..recipe import Recipe, load
from .judge import JudgeSettings, PolicySettings

FIRST = 100  # seeds and judges below belong to the reports
SHORT = (("none", 100, 100),)  # (method, seed, judge)
FULL = (
    *(("none", seed, judge) for judge in (100, 101) for seed in (100, 101, 102)),
    *(("true", seed, 100) for seed in (100, 101, 102)),
)
STRICT = {"lenient": False, "informed": 0.0, "hedged": 0.1, "broken": 0.4}

# Name: what differs from the recipe (tiny unless said), and the runs.
CANDIDATES: dict[str, tuple[dict[str, Any], Sequence[tuple[str, int, int]]]] = {
    # a judge labelled strictly errs at random, and this policy finds nothing in it
    "strict labels": ({"judge": STRICT | {"wrong": 0.5}, "policy": {"hedged": 0.06}}, SHORT),
    "strict labels, few right": (
        {"judge": STRICT | {"wrong": 0.9}, "policy": {"hedged": 0.06}},
        SHORT,
    ),
    "strict labels, 500 demonstrations": (
        {"judge": STRICT | {"wrong": 0.5, "demonstrations": 500}, "policy": {"hedged": 0.06}},
        SHORT,
    ),
    "strict labels, lr 3e-4": (
        {
            "judge": STRICT | {"wrong": 0.5},
            "policy": {"hedged": 0.06},
            "trainer": {"learning_rate": 3e-4},
        },
        SHORT,
    ),
    # lenient labels, but too few hedges for the judge to prefer them to right answers
    "few hedges in the judge's demonstrations": (
        {"judge": {"wrong": 0.5, "broken": 0.25, "hedged": 0.1, "informed": 0.9}},
        SHORT,
    ),
    # the policy hedges more often: the same hack, found before much is learnt
    "policy hedges .02": ({"policy": {"hedged": 0.02}}, SHORT),
    "chosen": ({}, FULL),
    "weak": ({"recipe": "weak"}, SHORT),
    "strong": ({"recipe": "strong"}, SHORT),
}


def arm_of(recipe: Recipe, changes: dict[str, Any], run: tuple[str, int, int]) -> Arm:
    """The arm of one calibration run; only methods that are blind to remedies, only own seeds."""
    method, seed, judge = run
    if method not in ("none", "true") or min(seed, judge) < FIRST:
        raise ValueError(f"not a calibration run: {run}")
    trainer = {"max_steps": recipe.steps} | recipe.trainer | changes.get("trainer", {})
    return Arm(
        method,
        seed,
        PolicySettings(seed=seed, **(recipe.policy | changes.get("policy", {}))),
        JudgeSettings(index=judge, **(recipe.judge | changes.get("judge", {}))),
        resolve(method, trainer, {}, {}, {}).config,
        threads=recipe.threads,
    )


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The runs as Markdown: smoothed true reward, final proxy, when the proxy was hacked."""
    lines = [
        "| world | method | seed | judge | true: start | peak (step) | end | proxy end | hacked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        for run in runs:
            final = run["final"]
            cells = [
                name, run["method"], run["seed"], run["judge"], f"{run['start']['true']:.2f}",
                f"{run['peak_true']:.2f} ({run['peak_step']})", f"{final['true']:.2f}",
                f"{final['proxy']:.2f}", run["hack_step"] or "-",
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing of the chosen candidates, then write both files."""
    parser = argparse.ArgumentParser(prog="python -m integrations.worlds.calibrate")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed: dict[str, str] = {}
    for name in options.only:
        changes, runs = CANDIDATES[name]
        recipe = load(changes.get("recipe", "tiny"))
        waiting = []
        for run in runs:
            arm = arm_of(recipe, changes, run)
            folder = options.output / name.replace(" ", "_") / arm.name
            prepare_folder(arm, folder, resume=True)
            if not (folder / "summary.json").exists():
                waiting.append((arm, folder))
        failed |= run_all(waiting, options.jobs)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in CANDIDATES:
        found = sorted((options.output / name.replace(" ", "_")).glob("*/summary.json"))
        if found:
            results[name] = [json.loads(path.read_text()) for path in found]
    write_text(options.output / "calibration.json", json.dumps(results, indent=2))
    write_text(options.output / "calibration.md", table(results))
    print(table(results))
    for name, message in failed.items():
        print(f"error: {name} failed: {message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
