"""Results pages of the judge world: the choice on tuning runs, what is left as data, the page."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from integrations.results import judge_plan as plans
from integrations.results.campaign import command_line
from integrations.results.cheaper_page import tuning_table
from integrations.results.judge_plan import TUNING, Plan, Setting
from integrations.results.page import fill

GOOD, BAD, FAILS = (Setting(name, "gr") for name in ("good", "bad", "fails"))


def run_of(label: str, true: float, seed: int) -> dict[str, Any]:
    final = {"true": true, "proxy": true}
    known = {"label": label, "method": "gr", "judge": 0, "seed": seed}
    start = {"true": 0.2, "auc": 0.9}
    return known | {
        "steps": 300, "start": start, "peak_true": true, "peak_step": 9, "hacked": False,
        "hack_step": None, "final": final,
    }  # fmt: skip


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The options of a page, whose runs are made up."""

    def run_plan(plan: Plan, output: Path, jobs: int) -> list[dict[str, Any]]:
        runs = []
        for setting, pairs in plan:
            for seed, _ in pairs:
                if setting is FAILS:
                    runs.append({"label": "fails", "failed": "OSError: no room"})
                else:
                    runs.append(run_of(setting.label, 0.8 if setting is GOOD else 0.3, seed))
        return runs

    monkeypatch.setattr(plans, "run_plan", run_plan)
    given = ["--output", str(tmp_path / "runs"), "--data", str(tmp_path / "page")]
    return command_line("A page.", "page").parse_args(given)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_on_the_tuning_runs_is_chosen(args: argparse.Namespace) -> None:
    runs, chosen = plans.tune({"gr": [BAD, GOOD, FAILS], "alone": [BAD]}, args)
    assert chosen == {"gr": GOOD, "alone": BAD}
    assert len(runs) == 4 * len(TUNING)
    rows = read(args.data / "tuning.csv")
    assert [row["final_true"] for row in rows[:4]] == ["0.3", "0.3", "0.8", "0.8"]
    assert rows[4]["failed"] == "OSError: no room"
    assert json.loads((args.data / "chosen.json").read_text())["gr"]["label"] == "good"


def test_a_row_may_say_more(args: argparse.Namespace) -> None:
    plans.report([(GOOD, ((0, 0),))], args, lambda run: {"extra": 7} | plans.flat(run))
    assert read(args.data / "runs.csv")[0]["extra"] == "7"


def test_only_finished_runs_are_reported_where_asked(args: argparse.Namespace) -> None:
    done = plans.place(args.output / "reported", GOOD, 1, 0)
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    args.finished = True
    runs = plans.report([(GOOD, ((0, 0), (1, 0))), (BAD, ((0, 0),))], args)
    assert [(run["label"], run["seed"]) for run in runs] == [("good", 1)]


def test_the_table_of_candidates() -> None:
    runs = [run_of("x", 0.25, 0), run_of("x", 0.75, 1)]
    assert tuning_table(runs).splitlines()[2] == "| x | 2 | 0.50 +- 0.35 [0.25, 0.75] | 0/2 |"


def test_a_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n")
    fill(page, {"one": "new", "unknown": "left out"})
    assert page.read_text() == (
        "a\n<!-- one -->\nnew\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n"
    )
