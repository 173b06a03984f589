"""How the preference worlds were calibrated: on calibration seeds, methods none and true only.

    python -m integrations.worlds.calibrate_preferences --output runs/preference-calibration

World seeds start at 100, so none of them is ever reported on, and no method against hacking can be
run here. World A is the learned proxy, B the same with the exploit. Results: `calibration.csv` (a
row per run), `curves.csv`, `calibration.md` and `worlds.csv` (the worlds before RL). A finished run
is kept; an unfinished one starts again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import Arm
from ..cache import write_text
from ..loop import make_trainer, prepare_folder, quiet
from ..watch.monitor import read_rows
from .preference_task import ACCURACY, KINDS, PreferenceWorld, preference_task
from .preferences import (
    Proxy,
    RewardSettings,
    build_reward_model,
    sample_pairs,
    world,
)
from .topics import BLANK, count_bigram, read_completions

FIRST = 100  # world seeds below belong to the reports
METHODS = ("none", "true")
CURVES = (
    "step", "true", "proxy", ACCURACY, "kl_start", "entropy", "grad_norm", "format"
)  # fmt: skip
SMOOTH = 5  # rows of the log that a peak and an end are averaged over

TRAINER: dict[str, Any] = {
    "max_steps": 200,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    # 12 prompts x 8 completions, one gradient step per batch: strictly on policy
    "per_device_train_batch_size": 96,
    "num_generations": 8,
    "num_iterations": 1,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 12,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,  # never clips, yet the norm is measured
    "beta": 0.0,
    "logging_steps": 2,
    "save_strategy": "no",
}

# Name: what differs from the chosen world, and the runs: world, method, world seed.
TWO = (("A", "none", 100), ("A", "none", 101))
FULL = tuple(
    (name, method, seed)
    for seed in (100, 101, 102, 103, 104)
    # the gold reward is the same in both worlds, and so is the control
    for name, method in (("A", "none"), ("A", "true"), ("B", "none"))
)
CANDIDATES: dict[str, tuple[dict[str, Any], Sequence[tuple[str, str, int]]]] = {
    "chosen": ({}, FULL),
    "2000 pairs": ({"reward": {"pairs": 2_000}}, TWO),
    "500 pairs": ({"reward": {"pairs": 500}}, TWO),
    "RL lr 1.5e-4": ({"trainer": {"learning_rate": 1.5e-4}}, TWO[:1]),
}


def arm_of(name: str, method: str, seed: int, changes: dict[str, Any]) -> Arm:
    """The arm of one calibration run; only methods that are blind to remedies, only own seeds."""
    if name not in KINDS or method not in METHODS or seed < FIRST:
        raise ValueError(
            f"not a calibration run: world {name}, method {method}, seed {seed}; worlds are "
            f"{', '.join(KINDS)}, methods {', '.join(METHODS)}, seeds at least {FIRST}"
        )
    if changes.keys() & {"beta", "sync_ref_model", "entropy_coef", "max_grad_norm"}:
        raise ValueError(f"calibration is blind to remedies, got beta or the like in {changes}")
    weights = [0.0, 1.0] if method == "true" else [1.0, 0.0]
    config = TRAINER | changes | {"reward_weights": weights}
    return Arm(method, seed, None, None, config)


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Start, peak and end of gold and proxy, each a mean over SMOOTH rows of the log."""

    def smooth(name: str) -> list[float]:
        values = [row[name] for row in rows]
        width = min(SMOOTH, len(values))
        return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]

    gold, proxy = smooth("true"), smooth("proxy")
    peak = max(range(len(gold)), key=gold.__getitem__)
    accuracy = [row[ACCURACY] for row in rows if row.get(ACCURACY) is not None]
    return {
        "gold_start": rows[0]["true"],
        "gold_peak": gold[peak],
        "peak_step": rows[min(peak + SMOOTH // 2, len(rows) - 1)]["step"],
        "gold_end": gold[-1],
        "proxy_start": rows[0]["proxy"],
        "proxy_end": proxy[-1],
        "accuracy_start": accuracy[0],
        "accuracy_end": accuracy[-1],
        "kl_end": rows[-1]["kl_start"],
        "entropy_end": rows[-1]["entropy"],
    }


def run(arm: Arm, name: str, settings: RewardSettings, folder: Path) -> None:
    """One run in its folder; `result.json` is written last."""
    begin = time.perf_counter()
    task = preference_task(PreferenceWorld(name, settings))
    built = round(time.perf_counter() - begin, 1)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    trainer, monitor = make_trainer(arm, task, folder)
    begin = time.perf_counter()
    trainer.train()
    seconds = round(time.perf_counter() - begin, 1)
    result = {"world": name, "method": arm.method, "seed": arm.seed}
    result |= summary_of(read_rows(monitor.path)) | {"seconds": seconds, "built": built}
    write_text(folder / "result.json", json.dumps(result, indent=2, allow_nan=False))


def facts_of(settings: RewardSettings) -> dict[str, Any]:
    """A world before RL: how good its reward model is on fresh pairs, and what its policy writes.

    `labels_agree`: share of the noisy labels that gold agrees with; the two accuracies: share of
    fresh pairs that the reward model orders as the label does, and as gold does.
    """
    world_language = settings.policy.language
    proxy = Proxy(build_reward_model(settings), world_language)
    fresh = sample_pairs(replace(settings, seed=settings.seed + 1_000, pairs=2_000))
    sides = ("chosen", "rejected")
    scores = [np.array(proxy(fresh["prompt"], fresh[side])) for side in sides]
    gold = [np.array(fresh[f"gold_{side}"]) for side in sides]
    words = read_completions([*fresh["chosen"], *fresh["rejected"]])
    rare = count_bigram(words, world_language.rare_bigram)
    return {
        "seed": settings.seed,
        "labels_agree": (gold[0] > gold[1]).mean().item(),
        "accuracy_labels": (scores[0] > scores[1]).mean().item(),
        "accuracy_gold": ((scores[0] > scores[1]) == (gold[0] > gold[1])).mean().item(),
        "gold_mean": np.concatenate(gold).mean().item(),
        "gold_sd": np.concatenate(gold).std().item(),
        "rare_bigram_share": (rare > 0).double().mean().item(),
        "not_only_words_share": (words == BLANK).any(1).double().mean().item(),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    lines = [
        "| candidate | world | method | seed | gold: start | peak (step) | end | proxy: start "
        "| end | accuracy: start | end | KL |",
        "|" + "---|" * 12,
    ]
    for r in results:
        numbers = (
            f"{r['gold_start']:.2f}", f"{r['gold_peak']:.2f} ({r['peak_step']})",
            f"{r['gold_end']:.2f}", f"{r['proxy_start']:.2f}", f"{r['proxy_end']:.2f}",
            f"{r['accuracy_start']:.2f}", f"{r['accuracy_end']:.2f}", f"{r['kl_end']:.1f}",
        )  # fmt: skip
        names = [str(r[k]) for k in ("candidate", "world", "method", "seed")]
        lines.append(f"| {' | '.join((*names, *numbers))} |")
    return "\n".join(lines) + "\n"


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows with equal keys as a CSV file's text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )
    return text.getvalue()


def plan(candidate: str, output: Path) -> list[tuple[Arm, str, RewardSettings, Path]]:
    """The runs of a candidate that are still to do; ValueError for a folder of another world."""
    changes, runs = CANDIDATES[candidate]
    waiting = []
    for name, method, seed in runs:
        arm = arm_of(name, method, seed, changes.get("trainer", {}))
        settings = world(seed, **changes.get("reward", {}))
        folder = output / candidate.replace(" ", "_") / f"{name}-{arm.name}"
        prepare_folder(arm, folder, resume=True)
        plain = json.dumps(asdict(settings), indent=2)
        saved = folder / "world.json"
        if saved.exists() and saved.read_text(encoding="utf-8") != plain:
            raise ValueError(f"{folder} holds a run in another world. Choose another --output.")
        write_text(saved, plain)
        if not (folder / "result.json").exists():
            waiting.append((arm, name, settings, folder))
    return waiting


def main(arguments: list[str]) -> int:
    """Run what is missing, then write the tables over every run in the output folder."""
    parser = argparse.ArgumentParser(prog="python -m integrations.worlds.calibrate_preferences")
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
    for arm, name, settings, folder in waiting:
        print(f"running {folder} ...", file=sys.stderr, flush=True)
        run(arm, name, settings, folder)
    results, curves = [], []
    for candidate in CANDIDATES:
        for file in sorted((options.output / candidate.replace(" ", "_")).glob("*/result.json")):
            result = {"candidate": candidate} | json.loads(file.read_text(encoding="utf-8"))
            results.append(result)
            key = {k: result[k] for k in ("candidate", "world", "method", "seed")}
            rows = read_rows(file.parent / "metrics.jsonl")
            curves += [key | {k: row.get(k) for k in CURVES} for row in rows]
    seeds = sorted({r["seed"] for r in results if r["candidate"] == "chosen"})
    if seeds:
        facts = [facts_of(world(seed)) for seed in seeds]
        write_text(options.output / "worlds.csv", as_csv(facts))
    write_text(options.output / "calibration.csv", as_csv(results))
    write_text(options.output / "curves.csv", as_csv(curves))
    write_text(options.output / "calibration.md", table(results))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
