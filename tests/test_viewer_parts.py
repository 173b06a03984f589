"""Parts of the report: curves, axes, completions side by side, evaluations, size."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrations import report
from integrations.viewer import completions
from integrations.viewer.arms import Arm, group_runs
from integrations.viewer.curves import arm_curve, mean_curve, smooth, thin_out
from integrations.viewer.held_out import accuracy_table, gold_table, level_panels
from integrations.viewer.page import build_page
from integrations.viewer.panels import sections
from integrations.viewer.runs import Run, read_run
from integrations.viewer.svg import HEIGHT, Axis, Line, line_plot

numbers = st.floats(-100, 100)


def make_run(method: str = "none", seed: int = 0, **given: Any) -> Run:
    plain = {"method": method, "seed": seed, "config": {"max_steps": 9}}
    return Run(Path(f"{method}-{seed}"), f"{method}-{seed}", plain, **given)


def polylines(svg: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """The class and the points of each curve."""
    found = re.findall(r'<polyline class="([^"]*)"[^>]* points="([^"]*)"', svg)
    return [
        (look, [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())])
        for look, points in found
    ]


@given(st.lists(st.integers(1, 200), min_size=1, unique=True), st.data())
@settings(deadline=None)
def test_smoothing_is_that_of_the_summaries(steps: list[int], data: st.DataObject) -> None:
    steps.sort()
    values = data.draw(st.lists(numbers, min_size=len(steps), max_size=len(steps)))
    expected = report.smooth(steps, values)
    found = smooth(list(zip(steps, values, strict=True)))
    assert [s for s, _ in found] == steps
    assert [v for _, v in found] == pytest.approx(expected)


def test_a_mean_ends_with_the_first_run() -> None:
    long, short = [(s, 1.0) for s in range(1, 9)], [(s, 3.0) for s in range(1, 5)]
    assert mean_curve([long, short, []]) == [(float(s), 2.0) for s in range(1, 5)]
    assert mean_curve([[], []]) == []
    assert mean_curve([[(1, 1.0), (2, 1.0)], [(5, 1.0)]]) == []  # no step in common


def test_unfinished_runs_are_drawn_but_not_averaged() -> None:
    rows = [{"step": float(s), "true": 0.5} for s in range(1, 9)]
    begun = [{"step": 1.0, "true": 0.1}]
    arm = Arm("none", 0, (make_run(rows=rows, summary={"seed": 0}), make_run(seed=1, rows=begun)))
    assert [value for _, value in arm_curve(arm, "true")] == pytest.approx([0.5] * 8)
    found = {p.title: p.plot for s in sections([arm]) for p in s.panels}
    assert found["True reward"].count('class="a0 d0 run') == 2


@given(st.lists(numbers, min_size=2, max_size=2000), st.integers(10, 200))
@settings(deadline=None)
def test_fewer_points_keep_the_extremes(values: list[float], most: int) -> None:
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thin_out(points, most)
    assert set(kept) <= set(points)
    assert [p[0] for p in kept] == sorted({p[0] for p in kept})
    assert {points[0], points[-1]} <= set(kept)
    assert min(p[1] for p in kept) == min(values)
    assert max(p[1] for p in kept) == max(values)
    assert len(kept) <= max(most + 3, 2)


@pytest.mark.parametrize("log", [False, True])
def test_curves_lie_where_the_axis_says(log: bool) -> None:
    points = [(0.0, 1.0), (5.0, 10.0), (10.0, 100.0)]
    svg = line_plot([Line(3, "gr", points, thick=True)], "a plot", (1.0, 100.0), log)
    ((look, drawn),) = polylines(svg)
    assert look == "a3 d0 mean"
    assert drawn[0][1] == HEIGHT - 34
    assert drawn[-1][1] == 10
    share = (drawn[1][1] - drawn[0][1]) / (drawn[2][1] - drawn[0][1])
    assert share == pytest.approx(0.5 if log else 9 / 99, abs=0.002)
    assert drawn[1][0] - drawn[0][0] == pytest.approx(drawn[2][0] - drawn[1][0], abs=0.2)
    ticks = re.findall(r'y="([0-9.]+)" text-anchor="end">([0-9]+)<', svg)
    assert len(ticks) >= 3
    axis = Axis(1.0, 100.0, HEIGHT - 34, 10, log)
    for y, text in ticks:
        assert float(y) - 4 == pytest.approx(axis.at(float(text)), abs=0.06)


@given(numbers, st.floats(1e-6, 100), st.booleans())
@settings(deadline=None)
def test_ticks_lie_on_the_axis(low: float, size: float, log: bool) -> None:
    low = abs(low) + 1e-3 if log else low
    axis = Axis(low, low + size, 200, 10, log)
    for tick in axis.ticks(5):
        assert 9.9 <= axis.at(tick) <= 200.1


def test_extreme_numbers_are_drawn_or_left_out(tmp_path: Path) -> None:
    tiny, huge = "5e-324", "1.7e308"
    values = [f'"true": {tiny}, "gr/strength": {tiny}', f'"true": -{huge}, "gr/strength": 1e90']
    values += [f'"true": {huge}', '"true": 1e-9, "gr/strength": 1e-90']
    lines = [f'{{"step": {i}, {text}}}' for i, text in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = build_page([read_run(tmp_path, "extreme")], "Extreme")
    assert "nan" not in page.replace("unfinished", "")
    assert not re.search(r'[" ,]-?inf[" ,]', page)
    assert "True reward" in page


def test_one_point_is_a_dot_and_no_point_an_error() -> None:
    svg = line_plot([Line(9, "gr", [(5.0, 0.0)], thick=True)], "a plot")
    assert '<circle class="a2 d1 mean dot"' in svg
    with pytest.raises(ValueError, match="leave the panel out"):
        line_plot([], "a plot")


def test_reward_terms_and_levels_have_panels() -> None:
    names = ("rewards/format/mean", "rewards/strict_format/mean", "level/hard/true", "my/own")
    rows = [{"step": float(s), "true": s / 9} | dict.fromkeys(names, s / 10) for s in (1, 2)]
    found = {
        s.heading: [p.title for p in s.panels]
        for s in sections([Arm("gr", 1, (make_run(rows=rows),))])
    }
    assert found["Reward terms"] == ["format", "strict format"]
    assert found["True reward by level"] == ["Level hard"]
    assert found["Everything else that was logged"] == ["my/own"]


def sample(prompt: str, before: str, after: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": "", "before": before, "after": after}


def test_completions_of_one_prompt_stand_together() -> None:
    first = make_run("none", samples=[sample("p", "b", "n1"), sample("q", "c", "n2")])
    second = make_run("gr", samples=[sample("q", "other", "g2"), sample("p", "b", "g1")])
    third = make_run("gr", 1, samples=[sample("p", "b", "s1"), sample("p", "b2", "s2")])
    places, left_out = completions.side_by_side(group_runs([first, second, third]))
    assert left_out == 0
    shown = {
        place.name: [
            (p.prompt, p.before, [(a.label, a.text, a.before) for a in p.answers])
            for p in place.prompts
        ]
        for place in places
    }
    assert shown == {
        "seed 0": [
            ("p", "b", [("none", "n1", None), ("gr", "g1", None)]),
            ("q", "c", [("none", "n2", None), ("gr", "g2", "other")]),
        ],
        "seed 1": [("p", "b", [("gr", "s1", None)]), ("p", "b2", [("gr", "s2", None)])],
    }


def test_too_many_completions_are_left_out_and_counted() -> None:
    text = "x" * completions.LONGEST
    runs = [
        make_run("gr", seed, samples=[sample(str(i), text, text) for i in range(100)])
        for seed in range(4)
    ]
    places, left_out = completions.side_by_side(group_runs(runs))
    kept = [len(place.prompts) for place in places]
    assert sum(kept) + left_out == 400
    assert max(kept) - min(kept) <= 1
    assert 0.9 * completions.BUDGET < 4 * 1060 * sum(kept) < 1.1 * completions.BUDGET


def share(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def evaluation(mean: float) -> dict[str, Any]:
    levels = [{"level": 1, "n": 5} | share(mean), {"level": 2, "n": 0, "mean": None}]
    return {"questions": 5, "samples": 2, "pass_at_1": share(mean), "by_level": levels}


def test_pass_at_1_beside_the_start_policy() -> None:
    runs = [
        make_run("gr", seed, evaluation=evaluation(mean) | {"base": evaluation(0.2)})
        for seed, mean in enumerate((0.5, 0.7))
    ]
    runs.append(make_run("none", evaluation=evaluation(0.4)))
    arms = group_runs(runs)
    table = accuracy_table(arms)
    assert table is not None
    cells = {
        line.head: dict(zip(table.columns[1:], line.cells, strict=True)) for line in table.lines
    }
    assert list(cells) == ["start policy", "none", "gr"]
    assert cells["start policy"]["pass@1"] == "0.200"
    assert cells["none"]["95 % interval"] == "0.300 to 0.500"
    assert cells["gr"]["pass@1"] == cells["gr"]["level 1"] == "0.600 ± 0.141"
    assert "level 2" not in table.columns
    (panel,) = level_panels(arms)
    assert panel.title == "Accuracy by level"
    assert "start policy, 1: 0.2 (0.1 to 0.3)" in panel.plot
    assert "gr, 1: 0.6 (0.459 to 0.741)" in panel.plot
    assert "none, 1: 0.4 (0.3 to 0.5)" in panel.plot
    assert accuracy_table(group_runs([make_run()])) is None
    assert gold_table(arms) is None


def test_gold_after_rl_and_before() -> None:
    runs = [
        make_run("kl", s, evaluation={"gold": g, "gold_sft": 0.5}) for s, g in enumerate((1, 2))
    ]
    table = gold_table(group_runs(runs))
    assert table is not None
    assert table.columns == ["arm", "evaluations", "gold reward", "gold reward, start policy"]
    assert table.lines[0].cells == ["2", "1.500 ± 0.707", "0.500 ± 0.000"]


def test_thirty_long_runs_stay_below_three_megabytes() -> None:
    text = "word " * 300
    runs = []
    for i in range(30):
        rows = [
            {"step": float(s)} | {f"m{k}": float((s * (k + 7) + i) % 101) for k in range(25)}
            for s in range(400)
        ]
        texts = [sample(f"{k} {text}", text, text) for k in range(12)]
        runs.append(make_run(("none", "gr", "kl")[i % 3], i // 3, rows=rows, samples=texts))
    assert len(build_page(runs, "Long").encode()) < 3_000_000


def test_the_script_and_the_style_hold_no_end_tag() -> None:
    folder = Path(completions.__file__).parent
    for name in ("script.js", "style.css"):
        assert "</" not in (folder / name).read_text(encoding="utf-8")
