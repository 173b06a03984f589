"""`python -m integrations judge --model ... --dataset ... --judge-model ...`, end to end."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ROWS, make_model, make_tokenizer, save

from integrations.judge import main

TRAINER = [
    *("--gradient_checkpointing", "false", "--per_device_train_batch_size", "4"),
    *("--gradient_accumulation_steps", "2", "--num_generations", "4"),
    *("--max_completion_length", "12", "--learning_rate", "1e-3"),
    *("--logging_steps", "1", "--save_steps", "1"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A random policy, a judge that can be read, and a data set."""
    folder = tmp_path_factory.mktemp("real")
    tokenizer = make_tokenizer()
    score = tokenizer.encode("Score: 4", add_special_tokens=False)
    # its prompt ends with this, and each token leads to the next
    start = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    says = [start[-1], *score, tokenizer.eos_token_id]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "model": save(folder / "policy", make_model(tokenizer), tokenizer),
        "judge": save(folder / "judge", make_model(tokenizer, says), tokenizer),
        "rows": str(rows),
    }


def command(place: dict[str, str], output: Path, *more: str, steps: int = 2) -> list[str]:
    return [
        *("--model", place["model"], "--judge-model", place["judge"], "--dataset", place["rows"]),
        *("--eval-limit", "1", "--output", str(output), "--steps", str(steps)),
        *TRAINER,
        *more,
    ]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_methods_are_compared_on_a_real_model(place: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(command(place, output, "--method", "none", "gr", "kl", "--beta", "0.1")) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["methods"]) == {"none", "gr", "kl"}
    for method in ("none", "gr", "kl"):
        folder = output / f"{method}-seed0"
        for row in rows_of(folder):
            # the judge says 4 of 5 to everything: 1.5 of 2, as a fraction .75
            assert row["proxy"] == pytest.approx(0.75)
            assert 0 <= row["true"] <= 1
            assert row["judge/unparsed"] == 0
            assert row["zero_std_groups"] is not None
        assert (folder / "samples.md").exists()
        assert (folder / "model" / "model.safetensors").exists()
    assert "gr/penalty_ratio" in rows_of(output / "gr-seed0")[0]
    for name in ("rewards.png", "signals.png", "curves.csv"):
        assert (output / name).exists()


def test_resume_goes_on_to_the_same_end(place: dict[str, str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(place, whole, "--method", "gr")) == 0
    assert main(command(place, cut, "--method", "gr")) == 0
    folder = cut / "gr-seed0"
    # as after a kill in the second step: one checkpoint, no summary, a half-written row
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoint-2").iterdir():
        path.unlink()
    (folder / "checkpoint-2").rmdir()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "pro')
    assert main(command(place, cut, "--method", "gr", "--resume")) == 0
    for a, b in zip(rows_of(whole / "gr-seed0"), rows_of(folder), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"step_time"}:
            assert b[name] == (None if a[name] is None else pytest.approx(a[name], rel=1e-5)), name
    first, second = (
        load_file(path / "model" / "model.safetensors") for path in (whole / "gr-seed0", folder)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_of_the_published_data(place: dict[str, str], tmp_path: Path) -> None:
    data = os.environ.get("FLATOPT_DATA")
    if not data:
        pytest.skip("FLATOPT_DATA is not set: the folder with gsm8k/train.jsonl")
    given = place | {"rows": str(Path(data) / "gsm8k" / "train.jsonl")}
    more = ("--method", "gr", "--limit", "12")
    assert main(command(given, tmp_path / "run", *more, steps=1)) == 0
    (row,) = rows_of(tmp_path / "run" / "gr-seed0")
    assert row["judge/unparsed"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "missing.jsonl"}, "missing.jsonl"),
        ({"model": "missing-model"}, "missing-model"),
        ({"judge": "missing-judge"}, "missing-judge"),
    ],
)
def test_errors_come_before_any_run(
    place: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    given = place | {name: str(tmp_path / value) for name, value in change.items()}
    assert main(command(given, tmp_path / "run")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_parts_of_a_real_task_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "x", "--output", str(tmp_path / "run")]) == 2
    assert "also needs --dataset --judge-model" in capsys.readouterr().err
    assert main(["--recipe", "gsm8k", "--output", str(tmp_path / "run")]) == 2
    assert "needs --model --dataset --judge-model" in capsys.readouterr().err
