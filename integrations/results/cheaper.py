"""Does cheaper GR still protect? The runs behind docs/results/cheaper.md, in the judge world.

    python -m integrations.results.cheaper --output runs/cheaper --jobs 2

GR in every 2nd or 4th step, and GR on a fourth of the micro-batches, each with its own ratio,
chosen as in `integrations.results.judge`: on the tuning seeds and judges, by the highest final true
reward. GR in every step on the whole batch has the ratio that was chosen there. Everything is
resumable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .campaign import command_line
from .cheaper_page import write_page
from .judge_plan import THREE, Setting, report, tune

RATIOS = (8.0, 16.0, 32.0, 64.0)
FIVE = tuple((seed, seed % 2) for seed in range(5))  # (seed, judge): both reporting judges
# The same 128 completions a step, in four micro-batches, of which a fourth is one.
PARTS = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 4}
CHOSEN = 16.0  # for GR in every step, by `integrations.results.judge`
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every 2": ({}, {"every": 2}),
    "every 4": ({}, {"every": 4}),
    "fraction 1/4": (PARTS, {"fraction": 0.25}),
}


def candidates() -> dict[str, list[Setting]]:
    """Four ratios of each way to make GR cheaper."""
    return {family: [setting(family, ratio) for ratio in RATIOS] for family in FAMILIES}


def setting(family: str, ratio: float) -> Setting:
    """GR made cheaper in one way, with one ratio."""
    config, gr = FAMILIES[family]
    options = {"ratio": ratio, "exclude": []} | gr
    return Setting(f"{family.replace('/', ' in ')} ratio={ratio:g}", "gr", config, options)


def reported(chosen: dict[str, Setting]) -> list[tuple[Setting, Sequence[tuple[int, int]]]]:
    """The chosen ones, and beside them GR in every step and no regularization."""
    whole = Setting(f"gr ratio={CHOSEN:g}", "gr", {}, {"ratio": CHOSEN, "exclude": []})
    halves = {"ratio": CHOSEN, "exclude": [], "batch": "halves"}
    untuned = Setting(f"halves ratio={CHOSEN:g} (not tuned)", "gr", PARTS, halves)
    none = Setting("none", "none")
    main = [(s, FIVE) for s in (*chosen.values(), whole)]
    return [*main, (untuned, THREE), (none, THREE[:1])]


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    args = command_line(__doc__, "cheaper").parse_args()
    tuning, chosen = tune(candidates(), args)
    runs = report(reported(chosen), args)
    write_page(args.data, runs, tuning)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
