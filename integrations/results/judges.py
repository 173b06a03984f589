"""Does GR make a cheap judge do a dear judge's work (C8)? The runs behind docs/results/judges.md.

    python -m integrations.results.judges --output runs/judges --jobs 2

Judges of three strengths in the judge world, each without regularization and with GR. The
strengths were settled by runs without regularization alone, on seeds 110 and 111. GR has four
candidates with the cheap and the middle judge, chosen on the tuning seeds by the highest final true
reward; with the dear judge it takes the middle one's. No regularization has nothing to choose. All
is resumable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .campaign import command_line
from .cheaper_page import write_page
from .judge_plan import Setting, flat, report, tune

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
    args = command_line(__doc__, "judges").parse_args()
    tuning, chosen = tune(candidates(), args, with_judge)
    runs = report(reported(chosen), args, with_judge)
    write_page(args.data, runs, tuning)
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
