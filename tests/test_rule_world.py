"""The rule world: problems, demonstrations, rewards, starting policy, a short run, calibration."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integrations.loop import make_trainer, quiet
from integrations.rewards import REWARD_RANGES
from integrations.rules.recipe import load
from integrations.watch.monitor import read_rows
from integrations.worlds import calibrate_rules as calibration
from integrations.worlds import rule_sums as sums
from integrations.worlds.rule_task import FORM, accuracy_name, held_out, rule_task

SMALL = sums.RuleSettings(
    seed=7, train_problems=80, test_problems=20, demonstrations=200, steps=3, batch=16, width=16
)
RIGHT = "<reasoning> 5 +3 8 -2 6 </reasoning> <answer> 6 </answer>"
BARE = RIGHT.replace("<reasoning> ", "").replace("</reasoning> ", "")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The policy of these tests is built once, and not in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        quiet()
        yield folder


def test_problems_are_right_distinct_and_held_out():
    train, test = sums.problems(SMALL), sums.problems(SMALL, "test")
    assert (len(train), len(test)) == (80, 20)
    assert len({p.prompt for p in train + test}) == 100
    for problem in train + test:
        words = problem.prompt.split()
        assert words[-1] == "?"
        assert problem.answer == sum(map(int, words[:-1]))
        assert problem.level == len(words) - 1 == len(problem.partials) + 1
        assert all(0 <= partial <= sums.LARGEST for partial in problem.partials)
    for level in sums.LEVELS:
        assert sum(p.level == level for p in train) == 20
    assert test == sums.problems(sums.RuleSettings(seed=7, test_problems=20), "test")
    assert train != sums.problems(sums.RuleSettings(seed=8), "train")[:80]


def test_the_largest_pool_exists():
    settings = sums.RuleSettings(train_problems=sums.MAX_PROBLEMS - 100, test_problems=100)
    assert len(sums.problems(settings)) == sums.MAX_PROBLEMS - 100


def test_tokenizer_round_trip():
    tokenizer = sums.make_tokenizer()
    rng = random.Random(0)
    assert len(tokenizer) == len(sums.VOCABULARY) == len(set(sums.VOCABULARY))
    for problem in sums.problems(SMALL):
        text = sums.demonstrate(problem, sums.RuleSettings(), rng)
        assert len(text.split()) < sums.MAX_COMPLETION
        for words in (problem.prompt, text):
            ids = [int(i) for i in tokenizer.encode(words, add_special_tokens=False)]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == words
            assert sums.to_text([*ids, sums.VOCABULARY.index("<eos>"), ids[0]]) == words


def _share(settings: sums.RuleSettings, holds: Any) -> float:
    rng = random.Random(1)
    pool = sums.problems(SMALL)
    held = [holds(sums.demonstrate(p, settings, rng), p) for p in pool * 10]
    return sum(held) / len(held)


def test_writers_are_as_the_settings_say():
    sure: dict[str, Any] = {"careful_broken": 0.0, "quick_broken": 0.0, "filler": 0.0}

    def right(text: str, problem: sums.Problem) -> bool:
        return sums.true_reward(text, problem.answer) == 1

    def neat(text: str, problem: sums.Problem) -> bool:
        return sums.is_formatted(text)

    def steps(text: str, problem: sums.Problem) -> bool:
        return sums.shows_steps(text)

    careful = sums.RuleSettings(careful=1, slip=0, **sure)
    assert _share(careful, right) == _share(careful, neat) == _share(careful, steps) == 1
    messy = replace(careful, careful_broken=1.0)
    assert _share(messy, right) == 1
    assert _share(messy, neat) == 0
    slipping = sums.RuleSettings(careful=1, slip=1, **sure)
    assert _share(slipping, right) < 0.06  # a later slip may undo an earlier one
    quick = sums.RuleSettings(careful=0, guess=(1, 0, 0, 0), **sure)
    assert _share(quick, right) == 0.25
    assert _share(quick, steps) == 0
    mixed = sums.RuleSettings(careful=0.3, **sure)
    assert 0.2 < _share(mixed, steps) < 0.4


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (RIGHT, (2, 0.5, 1, 1, 0.5)),
        (RIGHT.replace("<answer> 6", "<answer> 4"), (0, 0.5, 1, 1, 0.5)),
        (RIGHT.replace("6 </answer>", "8 -2 </answer>"), (0, 0, 1, 1, 0.5)),
        (BARE, (2, 0.5, 0, 0, 0.25)),
        ("so " + RIGHT, (2, 0.5, 0, 1, 0.5)),
        (RIGHT.replace("6 </answer>", "6 4 </answer>"), (0, 0, 1, 1, 0.5)),
        (RIGHT.removesuffix(" </answer>"), (0, 0, 0, 0, 0.375)),
        ("", (0, 0, 0, 0, 0)),
    ],
)
def test_rewards(text: str, points: tuple[float, ...]):
    assert tuple(sums.reward_terms(text, 6).values()) == points
    assert sums.true_reward(text, 6) == points[0] / 2
    assert sums.is_formatted(text) == bool(points[2])


def test_the_wanted_completion_fits_and_fillers_push_it_out():
    longest = sums.make_problem(max(sums.LEVELS), random.Random(0))
    careful = sums.RuleSettings(careful=1, slip=0, careful_broken=0, filler=0)
    words = sums.demonstrate(longest, careful, random.Random(0)).split()
    assert sums.true_reward(" ".join(words), longest.answer) == 1
    assert len(words) + 1 <= sums.MAX_COMPLETION < len(words) + 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"careful": 1.5},
        {"slip": -0.1},
        {"guess": (0.5,)},
        {"guess": (0.5, 0.2, 0.1, 2)},
        {"steps": 0},
        {"lr": 0.0},
        {"width": 30},
        {"train_problems": sums.MAX_PROBLEMS},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sums.RuleSettings(**wrong)


def test_settings_from_yaml_are_the_same():
    assert sums.RuleSettings(guess=[0.6, 0.2, 0.1, 0.05]) == sums.RuleSettings()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part"):
        sums.problems(SMALL, "validation")


def test_bad_tasks_are_refused():
    with pytest.raises(ValueError, match="unknown terms loose_format; known: integer_answer"):
        rule_task(SMALL, only=("loose_format",))
    with pytest.raises(ValueError, match="form_weight"):
        rule_task(SMALL, form_weight=-1)


def test_the_terms_of_the_form_are_those_of_the_reward():
    task = rule_task(SMALL)
    texts = [RIGHT, BARE, "so"]
    terms = [sums.reward_terms(text, 6) for text in texts]
    for term, name in zip(task.further, ("integer", "strict", "soft", "tags"), strict=True):
        ids = [[sums.VOCABULARY.index(word) for word in text.split()] for text in texts]
        found = term(prompts=[""] * 3, completions=[""] * 3, completion_ids=ids, answer=[6] * 3)
        assert found == [row[name] for row in terms]
        top = REWARD_RANGES[term.__name__][1]
        assert max(found) == top
    assert task.further_weights == [1, 1, 1, 1]
    assert rule_task(SMALL, form_weight=0).further_weights == [0, 0, 0, 0]
    assert rule_task(SMALL, only=("strict_format",)).further_weights == [0, 1, 0, 0]


def test_a_short_run_logs_levels_and_terms(tmp_path: Path):
    arm = calibration.arm_of(
        "none", 100, {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 16}
    )
    task = rule_task(SMALL)
    trainer, monitor = make_trainer(arm, task, tmp_path)
    trainer.train()
    rows = read_rows(monitor.path)
    assert len(rows) == 2
    for row in rows:
        paid = 2 * row["true"] + sum(row[f"rewards/{t.__name__}/mean"] for t in FORM)
        assert row["reward"] == pytest.approx(paid, abs=1e-5)
        assert row["proxy"] == row["true"]
        assert row["format"] == pytest.approx(row["rewards/strict_format/mean"])
        assert any(accuracy_name(level) in row for level in sums.LEVELS)
    shares = held_out(trainer.model, task.tokenizer, SMALL, 0)
    assert set(shares) == {"accuracy", "strict", *map(accuracy_name, sums.LEVELS)}
    assert all(0 <= share <= 1 for share in shares.values())
    found = task.samples(trainer.model, 0)
    assert len(found) == 12
    assert {row["prompt"] for row in found} <= {p.prompt for p in sums.problems(SMALL, "test")}


def test_calibration_is_blind_to_remedies():
    for changes, runs in calibration.CANDIDATES.values():
        for method, seed in runs:
            calibration.arm_of(method, seed, changes.get("trainer", {}))
    for method, seed, changes in (
        ("gr", 100, {}),
        ("kl", 100, {}),
        ("none", 0, {}),
        ("none", 100, {"beta": 0.1}),
    ):
        with pytest.raises(ValueError, match=r"calibration"):
            calibration.arm_of(method, seed, changes)


@pytest.mark.parametrize("name", ["tiny", "slow"])
def test_recipes_are_the_calibrated_worlds(name: str):
    recipe = load(name)
    changes, _ = calibration.CANDIDATES["chosen" if name == "tiny" else name]
    assert sums.RuleSettings(**recipe.world) == sums.RuleSettings(**changes.get("world", {}))
    calibrated = calibration.TRAINER | changes.get("trainer", {})
    assert recipe.steps == calibrated["max_steps"]
    set_elsewhere = ("max_steps", "beta", "save_strategy")
    wanted = {k: v for k, v in calibrated.items() if k not in set_elsewhere}
    assert {k: recipe.trainer.get(k) for k in wanted} == wanted


def _rows(accuracy: list[float], strict: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": 5 * (i + 1), "true": a, "format": s, "reward": 0.0, "shows_steps": 0.0}
        | dict.fromkeys(calibration.LEVEL_ACCURACY, a)
        for i, (a, s) in enumerate(zip(accuracy, strict, strict=True))
    ]


@pytest.mark.parametrize(
    ("none", "strict", "true", "met"),
    [
        ([0.1] * 10, 1.0, [0.1] * 5 + [0.5] * 5, True),
        ([0.1] * 10, 0.8, [0.1] * 5 + [0.5] * 5, False),
        ([0.1] * 5 + [0.45] * 5, 1.0, [0.1] * 5 + [0.5] * 5, False),
        ([0.6] * 5 + [0.45] * 5, 1.0, [0.5] * 10, True),
    ],
)
def test_the_aim(none: list[float], strict: float, true: list[float], met: bool):
    pair = [calibration.summary_of(_rows(a, [strict] * 10)) for a in (none, true)]
    assert pair[0]["accuracy_end"] == pytest.approx(none[-1])
    assert calibration.over_focused(*pair) == met


def test_the_table_of_the_calibration():
    def result(method: str, accuracy: float) -> dict[str, Any]:
        held = {f"held_out_{k}_{w}": 0.5 for k in ("accuracy", "strict") for w in ("start", "end")}
        rows = calibration.summary_of(_rows([0.1] * 5 + [accuracy] * 5, [1.0] * 10))
        return {"candidate": "chosen", "method": method, "seed": 100} | held | rows

    lines = calibration.table([result("none", 0.2), result("true", 0.6)]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| chosen | none | 100 | 0.10 -> 0.20 |")
    assert [line.rsplit("| ", 1)[1] for line in lines[2:]] == ["met |", "- |"]
