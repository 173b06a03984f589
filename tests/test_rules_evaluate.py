"""pass@1: intervals, quintiles without regression to the mean, resuming, fixed random seeds."""

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from integrations.evaluate import wilson
from integrations.rules.evaluate import (
    QUINTILES,
    Evaluation,
    by_group,
    evaluate_run,
    evaluate_start,
    pass_at_1,
    quintiles,
    write_samples,
)


def right(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
    return [float(t == str(a)) for t, a in zip(texts, columns["answer"], strict=True)]


class Policy:
    """Answers prompt i rightly with chance `skill[i]`; counts the batches it was asked for."""

    def __init__(self, skill: list[float], dies_after: int | None = None) -> None:
        self.skill, self.dies_after, self.batches = skill, dies_after, 0

    def complete(self, model: Any, prompts: list[str], seed: int) -> list[str]:
        if self.batches == self.dies_after:
            raise KeyboardInterrupt
        self.batches += 1
        rng = random.Random(seed)
        return [p if rng.random() < self.skill[int(p)] else "no" for p in prompts]


def make(policy: Policy, **options: Any) -> Evaluation:
    names = [str(i) for i in range(len(policy.skill))]
    columns: dict[str, list[Any]] = {"answer": names, "level": [int(n) % 2 for n in names]}
    given: dict[str, Any] = {"samples": 4, "batch": 12} | options
    return Evaluation(names, columns, policy.complete, right, lambda text: text != "no", **given)


def test_pass_at_1_counts_dependent_samples_for_what_they_are_worth() -> None:
    # all samples of a question agree: 40 trials, not 160
    agreed = pass_at_1([1.0] * 10 + [0.0] * 30, 4)
    low, high = wilson(0.25, 40)
    assert (agreed["low"], agreed["high"]) == pytest.approx((low, high), abs=0.01)
    # questions do not differ: every sample counts
    alike = pass_at_1([0.25] * 40, 4)
    assert (alike["low"], alike["high"]) == wilson(0.25, 160)
    nothing = pass_at_1([0.0] * 40, 4)
    assert nothing["low"] == pytest.approx(0.0)
    assert nothing["high"] == wilson(0.0, 40)[1] > 0
    assert pass_at_1([], 4)["mean"] is None


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    rng, hits = random.Random(1), 0
    for _ in range(400):
        skills = [rng.betavariate(0.5, 1.5) for _ in range(60)]  # mean 1/4
        shares = [statistics.fmean(rng.random() < s for _ in range(4)) for s in skills]
        row = pass_at_1(shares, 4)
        hits += row["low"] <= 0.25 <= row["high"]
    assert 0.91 <= hits / 400 <= 0.985


def test_the_samples_do_not_depend_on_where_the_work_was_broken_off(tmp_path: Path) -> None:
    skill = [i / 20 for i in range(20)]
    whole = Policy(skill)
    expected = write_samples(make(whole), None, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        write_samples(make(Policy(skill, dies_after=3)), None, tmp_path / "b")
    samples = tmp_path / "b" / "samples.jsonl"
    samples.write_text(samples.read_text()[:-25])  # the kill cut the last line
    rest = Policy(skill)
    assert write_samples(make(rest), None, tmp_path / "b") == expected
    assert 0 < rest.batches < whole.batches
    again = Policy(skill)
    write_samples(make(again), None, tmp_path / "b")
    assert again.batches == 0


def test_two_processes_share_the_work_and_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import integrations.rules.evaluate as module

    skill = [i / 20 for i in range(20)]
    expected = write_samples(make(Policy(skill)), None, tmp_path / "a")
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "wait", lambda: None)
    monkeypatch.setattr(module, "rank", lambda: 1)
    with pytest.raises(AssertionError, match="questions without samples"):  # the other half's
        write_samples(make(Policy(skill)), None, tmp_path / "b")
    monkeypatch.setattr(module, "rank", lambda: 0)
    assert write_samples(make(Policy(skill)), None, tmp_path / "b") == expected


def test_other_settings_do_not_reuse_the_samples(tmp_path: Path) -> None:
    skill = [0.5] * 6
    write_samples(make(Policy(skill)), None, tmp_path)
    for change in ({"samples": 2}, {"seed": 1}, {"facts": {"temperature": 0.7}}):
        other = Policy(skill)
        write_samples(make(other, **change), None, tmp_path)
        assert other.batches > 0, change


def test_quintiles_do_not_regress_to_the_mean() -> None:
    """Equal questions: whoever was unlucky in the first half is not better in the second."""
    rng = random.Random(0)
    rows = [{"right": [float(rng.random() < 0.4) for _ in range(8)]} for _ in range(1000)]
    names, fresh, count = quintiles(rows)
    assert count == 4
    groups = {row["level"]: row for row in by_group(names, fresh, count, QUINTILES)}
    for name in QUINTILES:
        assert groups[name]["n"] == 200
        assert abs(groups[name]["mean"] - 0.4) < 0.06  # 3.5 standard errors
    naive = [statistics.fmean(row["right"][:4]) for row in rows]
    biased = {row["level"]: row["mean"] for row in by_group(names, naive, 4, QUINTILES)}
    assert biased["hardest"] < 0.2 < 0.6 < biased["easiest"]


def test_the_start_policy_is_measured_once_and_gives_the_quintiles(tmp_path: Path) -> None:
    skill = [i / 50 for i in range(50)]
    start = evaluate_start(make(Policy(skill), samples=8), lambda: None, tmp_path / "start")
    means = [row["mean"] for row in start["by_quintile"]]
    assert means[0] < 0.3 < 0.7 < means[-1]

    def never() -> None:
        raise AssertionError("the model was loaded again")

    again = evaluate_start(make(Policy(skill), samples=8), never, tmp_path / "start")
    assert again == start
    best = Policy([1.0] * 50)
    result = evaluate_run(make(best, samples=8), None, tmp_path / "run", tmp_path / "start")
    assert [row["mean"] for row in result["by_quintile"]] == [1.0] * 5
    assert {row["level"] for row in result["by_level"]} == {0, 1}
    assert result["base"]["pass_at_1"] == start["pass_at_1"]
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert saved["pass_at_1"]["mean"] == 1.0


def test_an_unchanged_policy_keeps_its_quintiles(tmp_path: Path) -> None:
    """The run's samples are not those that chose the quintiles."""
    rng = random.Random(3)
    skill = [rng.betavariate(0.7, 0.8) for _ in range(400)]
    start = evaluate_start(make(Policy(skill)), lambda: None, tmp_path / "start")
    run = evaluate_run(make(Policy(skill)), None, tmp_path / "run", tmp_path / "start")
    for before, after in zip(start["by_quintile"], run["by_quintile"], strict=True):
        error = (before["high"] - before["low"]) / 3.9  # n = 80 in each
        assert abs(before["mean"] - after["mean"]) < 4 * error, before["level"]


def test_one_sample_per_question_gives_no_quintiles(tmp_path: Path) -> None:
    start = evaluate_start(make(Policy([0.5] * 20), samples=1), lambda: None, tmp_path / "start")
    assert "by_quintile" not in start
    run = evaluate_run(
        make(Policy([0.5] * 20), samples=1), None, tmp_path / "run", tmp_path / "start"
    )
    assert "by_quintile" not in run


def test_another_start_policy_is_not_taken_for_this_one(tmp_path: Path) -> None:
    first = make(Policy([0.5] * 6), facts={"model": "a"})
    evaluate_start(first, lambda: None, tmp_path / "start")
    other = make(Policy([0.5] * 6), facts={"model": "b"})
    with pytest.raises(ValueError, match="another --output"):
        evaluate_start(other, lambda: None, tmp_path / "start")
    assert "base" not in evaluate_run(other, None, tmp_path / "run", tmp_path / "start")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 completion"):
        make(Policy([0.5]), samples=0)
    with pytest.raises(ValueError, match="hold out at least 1"):
        make(Policy([]))
