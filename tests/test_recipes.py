"""Recipe files of real models: models and data in `task:`, what wins, what is refused; GSM8K."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from integrations import judge
from integrations.recipe import load
from integrations.rlhf import command as rlhf
from integrations.rlhf.recipe import load as load_rlhf
from integrations.rules import command as rules
from tests.recipe_cases import difference, make_models, rows, run, weights

DATA = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"


def judge_plan(*arguments: str) -> Any:
    options, rest = judge.arguments_parser().parse_known_args([*arguments, "--output", "unused"])
    return judge.plan(options, rest)


def rlhf_plan(*arguments: str) -> Any:
    given = [*arguments, "--output", "unused"]
    options, rest = rlhf.arguments_parser().parse_known_args(given)
    return rlhf.make_plan(options, rest, given)


def test_a_recipe_is_a_whole_command() -> None:
    arm = judge_plan("--recipe", "gsm8k-0.5b", "--method", "gr")[0]
    assert arm.real["model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert arm.real["judge_model"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert arm.config["gradient_accumulation_steps"] == 16
    assert arm.gr["exclude"] == ["embed_tokens"]
    plan = rlhf_plan("--recipe", "tldr-pythia-1b", "--method", "reset")
    assert plan.pipelines[0].real.model == "EleutherAI/pythia-1b-deduped"
    assert plan.pipelines[0].real.pairs == 43000
    assert plan.pipelines[0].real.tokens == 53
    assert plan.arms[0].reference == {"every": 200}


def test_the_command_line_wins() -> None:
    given = ("--recipe", "gsm8k-0.5b", "--method", "gr", "matched")
    more = ("--model", "mine", "--strength", "1e-3", "--eps", "1e-3", "--learning_rate", "5e-6")
    arms = judge_plan(*given, *more, "--completions_per_step", "64")
    assert arms[0].real["model"] == "mine"
    assert arms[0].real["dataset"] == "openai/gsm8k"
    assert arms[0].gr == {
        "strength": 1e-3, "eps": 1e-3, "samples": "importance", "exclude": ["embed_tokens"]
    }  # fmt: skip
    assert arms[0].config["gradient_accumulation_steps"] == 4
    assert [arm.control for arm in arms] == [{"step_length": True}, {"match": True}]
    assert arms[0].config == arms[1].config
    plan = rlhf_plan("--recipe", "alpaca-3b", "--method", "gr", "--preferences", "mine.jsonl")
    assert plan.pipelines[0].real.preferences == "mine.jsonl"
    assert plan.pipelines[0].real.model == "Qwen/Qwen2.5-3B"


def test_every_arm_differs_in_the_method_only() -> None:
    options, rest = rules.arguments_parser().parse_known_args(
        ["--recipe", "gsm8k-1.5b", "--method", "none", "kl", "reset", "gr", "--output", "unused"]
    )
    arms = rules.plan(options, rest)
    assert [arm.config.pop("beta") for arm in arms] == [0.0, 0.05, 0.3, 0.0]
    assert all(arm.config == arms[0].config for arm in arms)
    assert all(arm.rules == arms[0].rules for arm in arms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\ntask: {modle: a}\n", "unknown key modle"),
        ("steps: 1\ntask: {model: 3}\n", "model must be"),
        ("steps: 1\ncompletions_per_step: many\ntask: {model: a}\n", "whole number"),
        ("steps: 1\ncompletions_per_step: 0\ntask: {model: a}\n", "at least 1"),
    ],
)
def test_a_wrong_recipe_says_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(str(path))
    if "3" not in text:  # there any value becomes a text
        with pytest.raises(ValueError, match=message):
            load_rlhf(str(path))


def test_a_task_that_is_not_whole_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("steps: 1\ntask: {model: a}\n")
    with pytest.raises(ValueError, match="--dataset --judge-model"):
        judge_plan("--recipe", str(path))
    with pytest.raises(ValueError, match="--preferences"):
        rlhf_plan("--recipe", str(path))
    path.write_text("steps: 1\ntask: {preferences: a}\n")
    with pytest.raises(ValueError, match="--model"):
        rlhf_plan("--recipe", str(path))
    with pytest.raises(ValueError, match="for real models: give --model"):
        rlhf_plan("--recipe", "real")
    with pytest.raises(ValueError, match="tiny world"):
        judge_plan("--recipe", "tiny", "--model", "a", "--dataset", "b", "--judge-model", "c")


@pytest.mark.skipif(not (DATA / "train.jsonl").exists(), reason="FLATOPT_DATA has no gsm8k/")
def test_real_gsm8k_resumes_the_same(tmp_path: Path) -> None:
    """64 rows of GSM8K, a small random Qwen2: two steps, and the second one resumed."""
    model = make_models(tmp_path)["qwen"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--model", model, "--dataset", str(DATA / "train.jsonl"), "--limit", "64"]
    more += ["--eval_dataset", str(DATA / "test.jsonl"), "--eval_limit", "4"]
    more += ["--completions_per_step", "16", "--num_generations", "4", "--eval_samples", "2"]
    more += ["--per_device_train_batch_size", "8", "--max_completion_length", "8"]
    more += ["--logging_steps", "1", "--save_steps", "1", "--disable_tqdm", "true"]

    def go(output: Path, steps: str, *resume: str) -> int:
        given = ["rules", "--recipe", "gsm8k", "--method", "gr", "--output", str(output)]
        return run([*given, *more, "--steps", steps, *resume])

    assert go(whole, "2") == 0
    shown = json.loads((whole / "gr-seed0" / "evaluation.json").read_text())
    assert (shown["questions"], shown["samples"]) == (4, 2)
    assert rows(whole / "gr-seed0")[0]["gr/penalty_ratio"] > 0
    # killed after the first step: its checkpoint is there, and no summary
    (broken / "gr-seed0").mkdir(parents=True)
    for name in ("settings.json", "metrics.jsonl"):
        (broken / "gr-seed0" / name).write_text((whole / "gr-seed0" / name).read_text())
    (whole / "gr-seed0" / "checkpoint-1").rename(broken / "gr-seed0" / "checkpoint-1")
    assert go(broken, "2", "--resume") == 0
    assert difference(weights(whole / "gr-seed0"), weights(broken / "gr-seed0")) == 0
    assert rows(whole / "gr-seed0") == rows(broken / "gr-seed0")
