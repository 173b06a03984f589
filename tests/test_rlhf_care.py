"""What a careless user of the RLHF loop would trip over: seeds, prompts, stops, recipes."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import integrations.loop as loop
from integrations.loop import without_grpo
from integrations.recipe import FOLDER
from integrations.rlhf import recipe as recipes
from integrations.rlhf.command import main
from integrations.rlhf.world_stages import unseen_prompts
from integrations.worlds.preference_task import rl_prompts
from integrations.worlds.preferences import world
from tests.rlhf_cases import after, killed, same_weights


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_two_seeds_are_told_apart_in_the_evaluation(tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = ["--recipe", "smoke", "--world", "A", "--method", "none", "--eval_seed", "5"]
    assert main([*given, "--seed", "3", "4", "--output", str(output)]) == 0
    with (output / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["eval_seed"]) for row in rows] == [("3", "5"), ("4", "5")]


def test_prompts_of_the_evaluation_are_not_those_of_rl() -> None:
    settings = world(0)
    unseen = unseen_prompts(settings, 256)
    assert len(set(unseen)) == 256
    assert not set(unseen) & set(rl_prompts(settings))


def test_a_run_that_the_alarm_stopped_does_not_go_on(tmp_path: Path) -> None:
    recipe = tmp_path / "alarmed.yaml"
    text = (FOLDER / "rlhf-smoke.yaml").read_text()
    recipe.write_text(text + "\nalarm: {kl_limit: -1.0, smooth: 1, baseline: 2}\n")
    given = ["--recipe", str(recipe), "--world", "A", "--method", "gr", "--alarm", "stop"]
    whole, cut = (str(tmp_path / name) for name in ("whole", "cut"))
    assert main([*given, "--output", whole]) == 0
    killed([*given, "--output", cut, "--resume"], after(loop, "write_samples", 1))
    assert main([*given, "--output", cut, "--resume"]) == 0
    name = "gr-A0-seed0"
    assert same_weights(tmp_path / "whole" / name, tmp_path / "cut" / name)
    files = [tmp_path / run / name / "summary.json" for run in ("whole", "cut")]
    one, two = (json.loads(file.read_text()) for file in files)
    assert one["alarm"] == two["alarm"]
    assert one["alarm"]["fired_at"] == one["steps"] == two["steps"]
    assert one["steps"] < recipes.load("smoke").steps


def test_rloo_and_what_only_grpo_knows() -> None:
    with pytest.raises(ValueError, match="entropy_coef: a field of GRPOConfig that RLOO does not"):
        without_grpo({"entropy_coef": 0.1, "loss_type": "grpo", "beta": 0.0})
    assert without_grpo({"loss_type": "grpo", "scale_rewards": "none", "beta": 0.1}) == {
        "beta": 0.1
    }


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    text = "steps: 2\nthreads: two\n"
    file.write_text(text)
    with pytest.raises(ValueError, match="threads must be a whole number, got 'two'"):
        recipes.load(str(file))
    file.write_text("steps: 2\ntrainer: {learning_rate: 1e-3}\nmethods: {kl: {beta: 1e-1}}\n")
    recipe = recipes.load(str(file))
    assert recipe.trainer["learning_rate"] == 1e-3
    assert recipe.methods["kl"]["beta"] == 0.1
    file.write_text("steps: 2\nmethods: {kl: {beta: much}}\n")
    with pytest.raises(ValueError, match="beta must be a number, got 'much'"):
        recipes.load(str(file))
