"""How the rule world was calibrated: on calibration seeds, methods none and true only.

    python -m integrations.worlds.calibrate_rules --output runs/rules-calibration

`none` is paid the whole rule-based reward, `true` (the control) correctness alone. Seeds start at
100, so none of them is ever reported on, and no method against hacking can be run here. Results:
`calibration.csv` (a row per run), `curves.csv` and `calibration.md`. A finished run is kept; an
unfinished one starts again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arm import Arm
from ..cache import write_text
from ..loop import make_trainer, prepare_folder, quiet
from ..watch.monitor import read_rows
from .calibrate_preferences import TRAINER as PREFERENCE_TRAINER
from .calibrate_preferences import as_csv
from .rule_sums import LEVELS, MAX_COMPLETION, RuleSettings
from .rule_task import STEPS, accuracy_name, held_out, rule_task

FIRST = 100  # seeds below belong to the reports
METHODS = ("none", "true")
LAST = 25  # steps that a start, a peak and an end are averaged over
# The aim, fixed before the search.
SHORT_OF_CONTROL = 0.1  # accuracy that `none` ends below the control, or below its own peak
STRICT = 0.9  # share of strict format that `none` ends with at least
LEVEL_ACCURACY = tuple(map(accuracy_name, LEVELS))
CURVES = (
    "step", "true", "format", *LEVEL_ACCURACY, STEPS, "reward", "length", "truncated", "entropy",
    "kl_start", "grad_norm",
)  # fmt: skip

TRAINER: dict[str, Any] = PREFERENCE_TRAINER | {
    "max_steps": 200,
    # 16 prompts x 8 completions, one gradient step per batch: strictly on policy
    "per_device_train_batch_size": 128,
    "max_completion_length": MAX_COMPLETION,
    "learning_rate": 9e-4,
    "logging_steps": 5,
}

# Name: what differs from the chosen world, and the runs: method, seed.
FULL = tuple((method, seed) for seed in (100, 101, 102) for method in METHODS)
CANDIDATES: dict[str, tuple[dict[str, Any], Sequence[tuple[str, int]]]] = {
    "chosen": ({}, FULL),
    # the same policy at a sixth of the learning rate
    "slow": ({"trainer": {"learning_rate": 1.5e-4, "max_steps": 300}}, FULL[:2]),
    # a policy that cannot work the steps out well, at that rate: what was tried before
    "weak": (
        {
            "world": {"slip": 0.2, "steps": 600, "careful_broken": 0.99},
            "trainer": {"learning_rate": 1.5e-4, "max_steps": 300},
        },
        FULL[:4],
    ),
}


def arm_of(method: str, seed: int, changes: dict[str, Any]) -> Arm:
    """The arm of one calibration run; only methods that are blind to remedies, only own seeds."""
    if method not in METHODS or seed < FIRST:
        raise ValueError(
            f"not a calibration run: method {method}, seed {seed}; methods are "
            f"{', '.join(METHODS)}, seeds at least {FIRST}"
        )
    if changes.keys() & {"beta", "sync_ref_model", "entropy_coef", "max_grad_norm"}:
        raise ValueError(f"calibration is blind to remedies, got beta or the like in {changes}")
    # the control is told from `none` by the weight of the form: see `run`
    config = TRAINER | changes | {"reward_weights": [1.0, 0.0]}
    return Arm(method, seed, None, None, config)


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Start, peak and end of the accuracies, start and end of strict format, over LAST steps."""
    width = min(len(rows), max(1, LAST // (rows[1]["step"] - rows[0]["step"]))) if rows[1:] else 1

    def smooth(name: str) -> list[float]:
        values = []
        for end in range(width, len(rows) + 1):
            known = [r[name] for r in rows[end - width : end] if r.get(name) is not None]
            values.append(sum(known) / len(known) if known else float("nan"))
        return values

    out: dict[str, Any] = {}
    for name, label in (("true", "accuracy"), *zip(LEVEL_ACCURACY, LEVEL_ACCURACY, strict=True)):
        values = smooth(name)
        peak = max(range(len(values)), key=values.__getitem__)
        out |= {f"{label}_start": values[0], f"{label}_peak": values[peak]}
        out |= {f"{label}_peak_step": rows[peak + width - 1]["step"], f"{label}_end": values[-1]}
    for name, label in (("format", "strict"), (STEPS, STEPS), ("reward", "reward")):
        values = smooth(name)
        out |= {f"{label}_start": values[0], f"{label}_end": values[-1]}
    return out


def over_focused(none: dict[str, Any], true: dict[str, Any]) -> bool:
    """Whether `none` ends in format without correctness: the aim, for one seed.

    Strict format at STRICT or more, and accuracy SHORT_OF_CONTROL or more below the end of the
    control or below its own peak.
    """
    best = max(true["accuracy_end"], none["accuracy_peak"])
    return none["strict_end"] >= STRICT and none["accuracy_end"] <= best - SHORT_OF_CONTROL


def run(arm: Arm, settings: RuleSettings, folder: Path) -> None:
    """One run in its folder; `result.json` is written last."""
    begin = time.perf_counter()
    task = rule_task(settings, form_weight=float(arm.method == "none"))
    built = round(time.perf_counter() - begin, 1)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    trainer, monitor = make_trainer(arm, task, folder)
    start = held_out(trainer.model, task.tokenizer, settings, arm.seed)
    begin = time.perf_counter()
    trainer.train()
    seconds = round(time.perf_counter() - begin, 1)
    end = held_out(trainer.model, task.tokenizer, settings, arm.seed)
    result = {"method": arm.method, "seed": arm.seed} | summary_of(read_rows(monitor.path))
    result |= {f"held_out_{k}_start": v for k, v in start.items()}
    result |= {f"held_out_{k}_end": v for k, v in end.items()}
    result |= {"steps": arm.config["max_steps"], "seconds": seconds, "built": built}
    write_text(folder / "result.json", json.dumps(result, indent=2, allow_nan=False))


def table(results: list[dict[str, Any]]) -> str:
    """The runs as Markdown, each cell start and end; for `none`, whether it meets the aim."""
    names = (
        "accuracy", *LEVEL_ACCURACY, "strict", STEPS, "held_out_accuracy", "held_out_strict"
    )  # fmt: skip
    heads = ["candidate", "method", "seed", *(name.replace("_", " ") for name in names), "aim"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    controls = {(r["candidate"], r["seed"]): r for r in results if r["method"] == "true"}
    for r in results:
        control = controls.get((r["candidate"], r["seed"]))
        aim = "-"
        if r["method"] == "none" and control:
            aim = "met" if over_focused(r, control) else "not met"
        cells = (f"{r[f'{name}_start']:.2f} -> {r[f'{name}_end']:.2f}" for name in names)
        row = (r["candidate"], r["method"], str(r["seed"]), *cells, aim)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def plan(candidate: str, output: Path) -> list[tuple[Arm, RuleSettings, Path]]:
    """The runs of a candidate that are still to do; ValueError for a folder of another world."""
    changes, runs = CANDIDATES[candidate]
    waiting = []
    for method, seed in runs:
        arm = arm_of(method, seed, changes.get("trainer", {}))
        settings = RuleSettings(seed=seed, **changes.get("world", {}))
        folder = output / candidate.replace(" ", "_") / arm.name
        prepare_folder(arm, folder, resume=True)
        plain = json.dumps(asdict(settings), indent=2)
        saved = folder / "world.json"
        if saved.exists() and saved.read_text(encoding="utf-8") != plain:
            raise ValueError(f"{folder} holds a run in another world. Choose another --output.")
        write_text(saved, plain)
        if not (folder / "result.json").exists():
            waiting.append((arm, settings, folder))
    return waiting


def main(arguments: list[str]) -> int:
    """Run what is missing, then write the tables over every run in the output folder."""
    parser = argparse.ArgumentParser(prog="python -m integrations.worlds.calibrate_rules")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    quiet()
    try:
        waiting = [work for name in options.only for work in plan(name, options.output)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for arm, settings, folder in waiting:
        print(f"running {folder} ...", file=sys.stderr, flush=True)
        run(arm, settings, folder)
    results, curves = [], []
    for candidate in CANDIDATES:
        for file in sorted((options.output / candidate.replace(" ", "_")).glob("*/result.json")):
            result = {"candidate": candidate} | json.loads(file.read_text(encoding="utf-8"))
            results.append(result)
            key = {k: result[k] for k in ("candidate", "method", "seed")}
            rows = read_rows(file.parent / "metrics.jsonl")
            curves += [key | {k: row.get(k) for k in CURVES} for row in rows]
    write_text(options.output / "calibration.csv", as_csv(results))
    write_text(options.output / "curves.csv", as_csv(curves))
    write_text(options.output / "calibration.md", table(results))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
