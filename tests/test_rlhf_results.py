"""The experiments behind the RLHF page: equal tuning, blind reports, tables checked by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from integrations.results import rlhf_claim1 as claim1
from integrations.results import rlhf_plan as plans
from integrations.results import rlhf_tables as tables
from integrations.results.campaign import Job, run_jobs
from integrations.results.rlhf import choose, choose_again, jobs_of, tuning_plan
from integrations.results.rlhf_plan import Setting, make_arm

NOWHERE = Path("nowhere")


def chosen():
    return {name: settings[0] for name, settings in plans.candidates().items()}


def test_every_method_gets_the_same_tuning():
    families = plans.candidates()
    assert {len(settings) for settings in families.values()} == {6}
    labels = [s.label for settings in families.values() for s in settings]
    assert len(set(labels)) == len(labels)
    jobs = jobs_of(tuning_plan(list(families)), NOWHERE)
    per_family = len(jobs) / len(families)
    assert per_family == 6 * len(plans.KINDS) * len(plans.TUNING)
    assert all(NOWHERE in job.folder.parents for job in jobs)


@pytest.mark.parametrize(
    "part", ["main", "more", "retune", "confirm", "control", "probe", "scale", "reward"]
)
def test_nothing_is_reported_on_a_seed_that_was_used_before(part):
    jobs = jobs_of(getattr(plans, f"{part}_plan")(chosen()), NOWHERE)
    for job in jobs:
        world_seed = job.facts["world_seed"]
        assert world_seed not in plans.TUNING
        if part == "confirm":  # nor where its settings were chosen again
            assert world_seed not in dict(plans.FURTHER)
        assert world_seed < 100  # those are the calibration's
        assert job.arm.world is not None
        assert job.arm.world.reward.seed == world_seed
    folders = [job.folder for job in jobs]
    assert len(set(folders)) == len(folders)


def test_a_setting_becomes_the_arm_that_it_names():
    both: Any = make_arm(Setting("x", "gr+kl", {"beta": 0.2}, {"ratio": 2.0}), "B", 1, 3)
    assert both.config["beta"] == 0.2
    assert both.gr == {"ratio": 2.0, "samples": "importance"}
    assert (both.world.kind, both.world.reward.seed, both.seed) == ("B", 1, 3)
    reset = make_arm(Setting("x", "reset", {"beta": 0.4}, reset={"every": 25}), "A", 0, 0)
    assert reset.reference == {"every": 25}
    assert reset.gr is None
    scaled = make_arm(Setting("x", "none", scale=10.0), "A", 0, 0)
    assert scaled.config["reward_weights"] == [10.0, 0.0]
    assert scaled.config["beta"] == 0.0
    fewer: Any = make_arm(Setting("x", "none", reward={"pairs": 300}), "A", 0, 0)
    assert fewer.world.reward.pairs == 300


def test_the_choice_is_the_highest_mean_gold_of_both_worlds_and_a_failure_counts():
    settings = plans.candidates()["kl"]
    runs = []
    for i, s in enumerate(settings):
        for world in ("A", "B"):
            gold = {"A": i * 0.1, "B": 0.3 if i < 4 else -1.0}[world]
            runs.append({"label": s.label, "world": world, "final": {"true": gold}})
    runs[7] = {"label": settings[3].label, "world": "B", "failed": "out of memory"}
    assert choose(["kl"], runs)["kl"] == settings[2]


def test_the_second_choice_is_made_in_the_further_worlds_alone():
    runs = []
    for labels in plans.RETUNED.values():
        for i, label in enumerate(labels):
            runs += [{"label": label, "final": {"true": gold}} for gold in (0.1 * i, 0.2)]
    again = choose_again(chosen(), runs)
    assert again["gr+kl"].label == plans.RETUNED["gr+kl"][-1]
    assert again["squash+kl"].label == plans.RETUNED["squash+kl"][-1]
    assert again["kl"] == chosen()["kl"]


def test_a_failed_run_is_reported_and_a_finished_one_kept(tmp_path):
    arm = make_arm(Setting("none", "none"), "A", 0, 0)
    done, broken = tmp_path / "done", tmp_path / "broken"
    done.mkdir()
    (done / "summary.json").write_text(json.dumps({"final": {"true": 1.0}, "label": "old"}))
    broken.mkdir()
    (broken / "stranger").write_text("")  # a folder that holds no run
    jobs = [Job({"label": "a"}, arm, done), Job({"label": "b"}, arm, broken)]
    first, second = run_jobs(jobs, "test", 1)
    assert first["label"] == "a"
    assert first["final"]["true"] == 1.0
    assert "not empty and holds no run" in second["failed"]


def run(label, world, seed, gold, folder=None, fell=False):
    return {
        "label": label,
        "world": world,
        "world_seed": 0,
        "seed": seed,
        "final": {"true": gold, "proxy": 1.0, "kl_start": 2.0, "reward_accuracy": 0.5},
        "peak_true": gold + 0.5,
        "hacked": fell,
        "hack_step": None,
        "folder": str(folder),
    }


def test_paired_table_compares_seed_by_seed():
    runs = [run("ours", "A", s, 1.0) for s in range(3)] + [run("other", "A", 0, 2.0)]
    runs += [run("other", "A", 1, 0.5), run("other", "A", 9, 9.0)]  # 9: not ours
    line = tables.paired_table(runs, "ours", ["other"]).splitlines()[-1]
    assert line.split("|")[2].strip() == "1/2"
    assert "-0.25" in line


def test_outcomes_count_failed_runs_and_falls():
    runs = [run("x", "B", 0, -1.0, fell=True), run("x", "B", 1, 1.0)]
    runs.append({"label": "x", "world": "B", "failed": "no"})
    line = tables.outcome_table(runs, ["x"], "B").splitlines()[-1]
    assert "x (1 failed)" in line
    assert "| 1/2 |" in line
    assert "0.00 +- 1.41 [-1.00, 1.00]" in line


def test_tuning_table_marks_the_best_and_leaves_out_what_has_not_run():
    settings = [Setting("one", "kl"), Setting("two", "kl"), Setting("three", "kl")]
    runs = [run("one", "A", 0, 0.5), run("one", "B", 0, 1.0), run("two", "A", 0, 0.8)]
    line = tables.tuning_table({"kl": settings, "gr": []}, runs).splitlines()[2:]
    assert line == ["| kl | one: 0.75, **two: 0.80** |"]


def test_value_at_a_level():
    rows = [{"proxy": p, "true": t} for p, t in ((0, 0), (3, 1), (3, 2), (3, 6), (9, 0))]
    # means over three rows reach 3 at the fourth row: gold there is the mean of 1, 2, 6
    assert tables.value_at(rows, "proxy", 3.0, "true") == 3.0
    assert tables.value_at(rows, "proxy", 99.0, "true") is None


def write_probe(folder, rows):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "probe.jsonl").write_text(text)


def test_detrending_takes_out_what_only_time_explains(tmp_path):
    steps = range(0, 200, 20)
    wiggle = [math.sin(i) for i in range(10)]
    rows = [
        {
            "step": step,
            "proxy": step / 100,
            "grad_norm": 5 + step / 10 + wiggle[i],
            "sharpness_0.01": 1.0,
            "sharpness_0.05": 1.0,
            "unit_0.01": 0.1,
            "grad_square": 4.0,
            "unit_0.05": 0.5,
            "bt_loss": 2 + step / 10 - wiggle[i],
            "reward_accuracy": 0.5,
        }
        for i, step in enumerate(steps)
    ]
    write_probe(tmp_path / "run", rows)
    one = run("x", "A", 0, 0.0, tmp_path / "run") | {"hack_step": 100}
    raw: Any = claim1.along(one, "grad_norm", "bt_loss", "all")
    rest: Any = claim1.along(one, "grad_norm", "bt_loss", "detrended")
    assert raw > 0.9  # both rise
    assert rest < -0.99
    assert claim1.along(one, "grad_norm", "reward_accuracy", "all") is None  # no variation
    assert claim1.along(one, "grad_norm", "bt_loss", "before") is not None
    read = claim1.rows_of(one)[0]
    assert read["signal_norm"] == 2.0
    assert read["linear_0.05"] == pytest.approx(2.07 * 0.5 * 5.0)
    points = claim1.matched_points([one], 1.0, "grad_norm", "bt_loss")
    assert points == [(rows[5]["grad_norm"], rows[5]["bt_loss"])]
