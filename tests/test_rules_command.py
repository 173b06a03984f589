"""`python -m integrations rules`, end to end: the rule world, a real model's path, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import ROWS, make_model, make_tokenizer, save

from integrations.rules import main

RECIPE = """
steps: 2
task: {eval_limit: 2, eval_samples: 2, prompt: zero-shot}
trainer:
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  num_generations: 4
  max_completion_length: 8
  learning_rate: 1.0e-3
  logging_steps: 1
  save_steps: 1
  report_to: none
  disable_tqdm: true
methods:
  kl: {beta: 0.1}
  gr: {ratio: 1.0, exclude: [embed_tokens]}
"""
MATH = [
    {"problem": f"What is ${n} + 1$?", "solution": f"It is $\\boxed{{{n + 1}}}$.", "level": "1"}
    for n in range(4)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rules")
    tokenizer = make_tokenizer()
    for name, rows in (("gsm8k", ROWS), ("math", MATH)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "recipe.yaml").write_text(RECIPE)
    return {
        "model": save(folder / "policy", make_model(tokenizer), tokenizer),
        "gsm8k": str(folder / "gsm8k.jsonl"),
        "math": str(folder / "math.jsonl"),
        "recipe": str(folder / "recipe.yaml"),
    }


def command(place: dict[str, str], output: Path, *more: str, data: str = "gsm8k") -> list[str]:
    return [
        *("--model", place["model"], "--dataset", place[data], "--recipe", place["recipe"]),
        *("--output", str(output), *more),
    ]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_methods_are_compared_on_a_real_model(place: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(command(place, output, "--method", "none", "gr", "true")) == 0
    start = read(output / "start" / "evaluation.json")
    assert len(start["quintiles"]) == 2
    for method in ("none", "gr", "true"):
        folder = output / f"{method}-seed0"
        for row in rows_of(folder):
            assert 0 <= row["rewards/tag_count/mean"] <= 0.5
            assert row["reward"] is not None
        evaluation = read(folder / "evaluation.json")
        assert evaluation["questions"] == 2
        assert evaluation["base"]["pass_at_1"] == start["pass_at_1"]
    assert "gr/penalty_ratio" in rows_of(output / "gr-seed0")[-1]
    assert read(output / "true-seed0" / "settings.json")["rules"]["form_weight"] == 0.0


def test_math_has_its_own_prompt_and_rewards(place: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(command(place, output, "--method", "none", data="math")) == 0
    row = rows_of(output / "none-seed0")[-1]
    assert "rewards/reasoning_keywords/mean" in row
    assert "level/1/true" in row
    assert read(output / "none-seed0" / "evaluation.json")["by_level"][0]["level"] == "1"


def test_a_stopped_run_resumes_to_the_same_numbers(place: dict[str, str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(place, whole, "--method", "gr")) == 0
    assert main(command(place, parts, "--method", "gr")) == 0
    folder = parts / "gr-seed0"
    for name in ("summary.json", "evaluation.json", "checkpoint-2/complete"):
        (folder / name).unlink()  # as if it had been killed while the second step was saved
    assert main(command(place, parts, "--method", "gr", "--resume")) == 0
    kept = [{k: v for k, v in r.items() if k != "step_time"} for r in rows_of(folder)]
    full = [{k: v for k, v in r.items() if k != "step_time"} for r in rows_of(whole / "gr-seed0")]
    assert kept == full
    assert read(folder / "evaluation.json") == read(whole / "gr-seed0" / "evaluation.json")
    assert read(folder / "summary.json")["resumed_from"] == 1


def test_the_rule_world_runs_with_every_method(tmp_path: Path) -> None:
    output = tmp_path / "run"
    methods = ("none", "gr", "kl", "reset", "true")
    given = ["--recipe", "smoke", "--output", str(output), "--method", *methods]
    assert main(given) == 0
    for method in methods:
        evaluation = read(output / f"{method}-seed0" / "evaluation.json")
        assert len(evaluation["by_level"]) > 1
    control = read(output / "true-seed0" / "settings.json")
    assert control["rules"]["form_weight"] == 0.0
    assert control["config"]["reward_weights"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rewards", "niceness"], "unknown; known: correctness"),
        (["--rewards", "strict_format"], "exactly one of correctness"),
        (["--rewards", "correctness", "string_equality"], "exactly one of"),
        (["--rewards", "correctness=much"], "correctness=WEIGHT"),
        (["--rewards", "correctness=nan"], "positive number"),
        (["--rewards", "correctness=0"], "positive number"),
        (["--rewards", "boxed_correctness"], "form gsm8k"),
        (["--eval_limit", "4"], "cannot be held out"),
        (["--eval_split", "validation"], "eval_dataset"),
        (["--eval_temperature", "0"], "above 0"),
        (["--per_device_train_batch_size", "64"], "one batch of completions draws"),
        (["--rewards", "correctness", "correctness"], "twice"),
        (["--eval_samples", "-1"], "eval_samples"),
        (["--limit", "0"], "limit"),
        (["--policy_seed", "1"], "rule world"),
        (["--max_completion_length", "5000"], "at most"),
        (["--ratio", "-1"], "ratio"),
        (["--learning_rte", "1"], "unknown option"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    place: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    assert main(command(place, tmp_path / "run", "--method", "gr", *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_that_contradict_themselves_are_refused(
    place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    twice = [*ROWS, {"question": ROWS[0]["question"].upper(), "answer": "#### 8"}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*twice, *ROWS[1:]]))
    data = place | {"gsm8k": str(rows)}
    assert main(command(data, tmp_path / "a")) == 2
    assert "two results" in capsys.readouterr().err
    given = command(place, tmp_path / "b", "--eval_dataset", place["gsm8k"])
    assert main(given) == 2
    assert "every question is in the training data" in capsys.readouterr().err


def test_another_model_does_not_join_a_comparison(place: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(command(place, output, "--method", "none")) == 0
    other = command(place, output, "--method", "kl", "--temperature", "0.5", "--resume")
    assert main(other) == 1  # its start was sampled at another temperature
    assert not (output / "kl-seed0" / "summary.json").exists()


def test_a_missing_part_is_named(place: dict[str, str], tmp_path: Path) -> None:
    for given, says in (
        (["--model", place["model"], "--recipe", place["recipe"]], "--dataset"),
        (["--dataset", place["gsm8k"]], "--model"),
        (["--dataset", place["gsm8k"], "--recipe", place["recipe"]], "--model"),
        (["--form", "math"], "--model"),
    ):
        error = _error(given, tmp_path)
        assert says in error, (given, error)


def _error(given: list[str], tmp_path: Path) -> str:
    import contextlib
    import io

    caught = io.StringIO()
    with contextlib.redirect_stderr(caught):
        assert main([*given, "--output", str(tmp_path / "run")]) == 2
    return caught.getvalue()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: 0\ntask: {model: m}", "steps"),
        ("steps: 1", "one of `world:`"),
        ("steps: 1\ntask: {model: m}\nworld: {steps: 1}", "one of `world:`"),
        ("steps: 1\ntask: {modle: m}", "modle"),
        ("steps: 1\ntask: {prompt: long}", "one-shot"),
        ("steps: 1\nworld: {widht: 3}", "widht"),
        ("steps: 1\nworld: {width: wide}", "width"),
        ("steps: 1\ntask: {model: m}\nmethods: {sgd: {}}", "sgd"),
        ("steps: [", "YAML"),
    ],
)
def test_a_broken_recipe_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    error = _error(["--recipe", str(path)], tmp_path)
    assert "mine.yaml" in error
    assert says in error
