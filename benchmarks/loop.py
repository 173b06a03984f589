"""What GR adds to a step of the judge loop, in CPU time.

    python -m benchmarks.loop --rounds 5 --steps 20

Trainings without and with GR alternate in one process on one thread; each is timed inside
``trainer.train()``, so loading is left out. Generation and judging happen once in both.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from integrations.results.page import fill

# the same 128 completions a step, in four micro-batches
PARTS = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 4}
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "none": ("none", {}, {}),
    "kl": ("kl", {}, {}),
    "gr": ("gr", {}, {}),
    "gr+kl": ("gr+kl", {}, {}),
    "gr, every 2": ("gr", {}, {"every": 2}),
    "gr, every 4": ("gr", {}, {"every": 4}),
    "none, 4 micro-batches": ("none", PARTS, {}),
    "gr, 4 micro-batches": ("gr", PARTS, {}),
    "gr, fraction 1/4": ("gr", PARTS, {"fraction": 0.25}),
    "gr, halves": ("gr", PARTS, {"batch": "halves"}),
}


def seconds_per_step(name: str, steps: int, seed: int) -> float:
    """CPU seconds per gradient step of one short training in the tiny judge world."""
    from integrations.loop import make_trainer
    from integrations.results.judge_plan import Setting, make_arm

    method, config, gr = ARMS[name]
    setting = Setting(name, method, {"save_strategy": "no"} | config, gr, steps=steps)
    arm = make_arm(setting, seed=seed, judge=100)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_trainer(arm, arm.task(), Path(folder))
        begin = time.process_time()
        trainer.train()
        return (time.process_time() - begin) / steps


def table(rows: Sequence[dict[str, Any]], steps: int) -> str:
    """One line per method."""
    lines = ["| method | ms per step | x none | least and most |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['milliseconds']:.1f} | {row['ratio']:.2f} "
            f"| {min(row['rounds']):.1f}-{max(row['rounds']):.1f} ms |"
        )
    note = f"{len(rows[0]['rounds'])} rounds of {steps} steps ([loop.json](cost/loop.json))."
    return "\n".join([*lines, "", note])


def main() -> None:
    """Measure, print and write what the options ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--results", type=Path, help="folder of cost.md, which is filled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in args.methods}
    for number in range(args.rounds + 1):  # the first round warms up
        for name in args.methods:
            value = seconds_per_step(name, args.steps, seed=100)
            if number:
                seconds[name].append(value)
    base = statistics.median(seconds[args.methods[0]])
    rows = []
    print(f"{'method':<24}{'ms per step':>12}{'x ' + args.methods[0]:>10}")
    for name, values in seconds.items():
        value = statistics.median(values)
        rows.append(
            {
                "method": name,
                "milliseconds": round(value * 1e3, 1),
                "ratio": round(value / base, 3),
                "rounds": [round(v * 1e3, 1) for v in values],
            }
        )
        print(f"{name:<24}{value * 1e3:>12.1f}{value / base:>10.2f}")
    if args.results:
        data = args.results / "cost" / "loop.json"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")
        if (args.results / "cost.md").exists():
            fill(args.results / "cost.md", {"loop": table(rows, args.steps)})


if __name__ == "__main__":
    main()
