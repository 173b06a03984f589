"""The report of ladder runs: seeds are one arm, the gaming matrix by hand, what is not ranked."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from integrations.viewer.arms import group_runs
from integrations.viewer.ladder import gaming_matrix
from integrations.viewer.page import build_page, sentences
from integrations.viewer.runs import Run


def cell(gamed: int, n: int = 50) -> dict[str, Any]:
    return {"gameable": {"n": n, "gamed": gamed}, "ordinary": {"n": 10, "gamed": 9}}


def ladder_run(method: str, seed: int, gamed: int, **world: Any) -> Run:
    matrix = {
        name: {"agree": cell(gamed), "ledger": cell(1)} for name in ("0-start", "1-agree", "2-away")
    }
    ladder = {"seed": seed, "eval_seed": seed, "order": "sequential"}
    ladder |= world or {"world": {"seed": seed}}
    given = {"method": method, "seed": seed, "config": {"max_steps": 4}, "ladder": ladder}
    final = {"true": 0.9 if method == "gr" else 0.5}
    return Run(
        Path(f"{method}-{seed}"), f"{method}-{seed}", given, [{"step": 4.0, "true": 0.5}],
        {"seed": seed, "final": final, "matrix": matrix},
    )  # fmt: skip


def test_seeds_of_the_ladder_are_one_arm() -> None:
    runs = [ladder_run(method, seed, 10) for method in ("none", "gr") for seed in (0, 1, 2)]
    arms = group_runs(runs)
    assert [(arm.label, len(arm.runs)) for arm in arms] == [("none", 3), ("gr", 3)]


def test_the_gaming_matrix_by_hand() -> None:
    arms = group_runs([ladder_run("none", 0, 10), ladder_run("none", 1, 20)])
    table = gaming_matrix(arms)
    assert table is not None
    assert table.columns == ["arm, policy after", "agree", "ledger"]
    assert [line.head for line in table.lines] == ["none, 0-start", "none, 1-agree", "none, 2-away"]
    assert table.lines[0].cells == [f"30.0 ± {statistics.stdev([20.0, 40.0]):.1f}", "2.0 ± 0.0"]


@pytest.mark.parametrize("gamed", [None, "7", -1, 51, 1e90])
def test_a_count_that_is_none_is_left_out(gamed: Any) -> None:
    run = ladder_run("none", 0, 10)
    run.summary["matrix"]["0-start"]["agree"] = {"gameable": {"n": 50, "gamed": gamed}}
    table = gaming_matrix(group_runs([run]))
    assert table is not None
    assert table.lines[0].cells == ["–", "2.0"]


def test_final_rewards_are_not_ranked_where_the_last_phase_paid_the_truth() -> None:
    runs = [ladder_run("none", 0, 10), ladder_run("gr", 0, 3)]
    assert not any("Final true reward" in text for text in sentences(group_runs(runs)))
    page = build_page(runs, "Ladder")
    assert "Gaming matrix" in page
    assert "is paid the true reward" in page
    for run in runs:
        del run.summary["matrix"]["2-away"]
    assert any("highest 0.900" in text for text in sentences(group_runs(runs)))


def test_the_scenario_has_a_name() -> None:
    assert "in the ladder of environments" in sentences(group_runs([ladder_run("gr", 0, 1)]))[0]
    chat = ladder_run("gr", 0, 1, model="models/Qwen2.5-0.5B-Instruct")
    assert "in the ladder with Qwen2.5-0.5B-Instruct" in sentences(group_runs([chat]))[0]
    assert "Gaming matrix" not in build_page([Run(Path("a"), "a", {"method": "none"})], "Judge")
