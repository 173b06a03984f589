"""Does GR make a cheap judge do a dear judge's work (C8)? The runs behind docs/results/judges.md.

    python -m integrations.judges_results --output runs/judges --jobs 2

Judges of three strengths in the judge world, each without regularization and with GR. The
strengths were settled by runs without regularization alone, on seeds 110 and 111. GR has four
candidates with the cheap and the middle judge, chosen on the tuning seeds by the highest final true
reward; with the dear judge it takes the middle one's. No regularization has nothing to choose. All
is resumable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cache import write_text
from .campaign import write_csv
from .results import TUNING, Setting, choose, finished, flat, run_plan

# What differs from the judge of recipes/judge-tiny.yaml ("middle"): half the labels; or a larger
# model, four times the labels and fewer hedged answers among them, which annotators mistake.
JUDGES: dict[str, dict[str, Any]] = {
    "cheap": {"demonstrations": 500},
    "middle": {},
    "dear": {"demonstrations": 4000, "width": 64, "steps": 800, "hedged": 0.1},
}
TUNED = ("cheap", "middle")
RATIOS = (4.0, 8.0, 16.0, 32.0)
FIVE = tuple((seed, seed % 2) for seed in range(5))  # (seed, judge): both reporting judges


def settings(judge: str, method: str) -> list[Setting]:
    """The candidates of one method with one judge."""
    worse = JUDGES[judge]
    if method == "none":
        return [Setting(f"{judge} none", "none", judge=worse)]
    ratios = [{"ratio": ratio, "exclude": []} for ratio in RATIOS]
    return [Setting(f"{judge} gr ratio={r['ratio']:g}", "gr", {}, r, judge=worse) for r in ratios]


def candidates() -> dict[str, list[Setting]]:
    """Four settings of GR for each judge that it is tuned with."""
    return {f"{judge} gr": settings(judge, "gr") for judge in TUNED}


def reported(
    chosen: dict[str, Setting],
) -> list[tuple[Setting, Sequence[tuple[int, int]]]]:
    """The chosen ones and no regularization, for each judge, on seeds nothing was chosen on."""
    plan = []
    for judge in JUDGES:
        (none,) = settings(judge, "none")
        if judge in TUNED:
            gr = chosen[f"{judge} gr"]
        else:
            ratio = chosen["middle gr"].gr["ratio"]
            (gr,) = (s for s in settings(judge, "gr") if s.gr["ratio"] == ratio)
        plan += [(s, FIVE) for s in (none, gr)]
    return plan


def with_judge(run: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of runs, with the judge's strength and its AUC at the start."""
    row = flat(run)
    start = run.get("start") or {}
    return {"strength": run["label"].split()[0], "start_auc": start.get("auc")} | row


def main() -> int:
    """Tune, choose, report; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/judges"))
    parser.add_argument("--data", type=Path, default=Path("docs/results/judges"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--finished", action="store_true", help="report what is finished so far")
    args = parser.parse_args()
    families = candidates()
    plan = [(s, TUNING) for options in families.values() for s in options]
    tuning = run_plan(plan, args.output / "tuning", args.jobs)
    write_csv(args.data / "tuning.csv", [with_judge(run) for run in tuning])
    chosen = choose(families, tuning)
    record = {family: s.__dict__ for family, s in chosen.items()}
    write_text(args.data / "chosen.json", json.dumps(record, indent=2))
    report = reported(chosen)
    if args.finished:
        report = finished(report, args.output / "reported")
    runs = run_plan(report, args.output / "reported", args.jobs)
    write_csv(args.data / "runs.csv", [with_judge(run) for run in runs])

    from .cheaper_page import write_page

    write_page(args.data, runs, tuning)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
