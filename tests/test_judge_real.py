"""The real-model path: two GRPO steps from paths, and clear errors before any long work."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from integrations.real import RealTask, RealTaskConfig, build_real_task
from integrations.rewards.correctness import TAGS
from tests.tiny_models import ROWS, chain, make_model, make_tokenizer, save

GSM8K = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"


def makes(tokenizer: PreTrainedTokenizerFast, folder: Path, says: str, strength: float) -> str:
    return save(folder, make_model(tokenizer, chain(tokenizer, says), strength), tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A policy that mostly writes a right answer to the first row, judges, and the rows."""
    folder = tmp_path_factory.mktemp("real")
    tokenizer = make_tokenizer()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    reply = "<reasoning>Tom</reasoning><answer>7</answer>"
    return {
        "dataset": str(rows),
        "model": makes(tokenizer, folder / "policy", reply, strength=1.4),
        "judge_model": makes(tokenizer, folder / "judge", "Score: 4", strength=10),
        "random_judge": save(folder / "random", make_model(tokenizer), tokenizer),
    }


def options(place: dict[str, str], **changes: Any) -> Namespace:
    given = {key: place[key] for key in ("model", "dataset", "judge_model")}
    return Namespace(**{**given, "eval_limit": 1, **changes})


def train(task: RealTask, folder: Path, **changes: Any) -> list[dict[str, float]]:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    config = GRPOConfig(
        output_dir=str(folder),
        reward_weights=task.reward_weights,
        model_init_kwargs=task.model_init_kwargs,
        **{**settings, **changes},
    )
    trainer = GRPOTrainer(
        model=task.model,
        reward_funcs=task.reward_funcs,  # pyright: ignore
        args=config,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=task.processing_class,
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == settings["max_steps"]
    return logs


def test_two_steps_of_grpo(place: dict[str, str], tmp_path: Path) -> None:
    task = build_real_task(options(place), max_completion_length=12)
    assert len(task.train_dataset) == 3
    assert len(task.eval_dataset) == 1
    for row in train(task, tmp_path):
        missing = [name for name in task.shown_metrics if name not in row]
        assert not missing
        assert all(torch.isfinite(torch.tensor(row[name])) for name in task.shown_metrics)
        assert row["rewards/judge/mean"] == 1.5, "Score: 4 is (4 - 1) / 2"
        assert 0 <= row["rewards/correctness/mean"] <= task.reward_top
        assert row["judge/unparsed"] == 0
        assert row["rewards/tag_count/mean"] > 0
        assert row["grad_norm"] > 0
        trained_on = ("judge", "integer_answer", "strict_format", "soft_format", "tag_count")
        parts = [row[f"rewards/{name}/mean"] for name in trained_on]
        assert row["reward"] == pytest.approx(sum(parts)), "the true reward is only watched"
    assert task.judge.seen == task.judge.parsed == 16


def test_unparsed_verdicts_are_counted_and_finite(place: dict[str, str], tmp_path: Path) -> None:
    args = options(place, judge_model=place["random_judge"], judge_check=False, judge_patience=100)
    for row in train(build_real_task(args), tmp_path):
        assert row["judge/unparsed"] == 1
        assert row["rewards/judge/mean"] == 0
        assert torch.isfinite(torch.tensor(row["reward"]))


def test_groups_that_teach_nothing_are_shown(place: dict[str, str], tmp_path: Path) -> None:
    args = options(place, model=place["random_judge"])
    (row, _) = train(build_real_task(args), tmp_path)
    assert row["frac_reward_zero_std"] == 1
    assert row["grad_norm"] == 0


def test_judge_that_never_parses_is_an_error_before_and_in_training(
    place: dict[str, str], tmp_path: Path
) -> None:
    args = options(place, judge_model=place["random_judge"], judge_patience=2)
    with pytest.raises(ValueError, match="no readable score on a test case"):
        build_real_task(args)
    args.judge_check = False
    with pytest.raises(RuntimeError, match="in the first 2 batches"):
        train(build_real_task(args), tmp_path)


def test_monitor_functions_give_fractions(place: dict[str, str]) -> None:
    task = build_real_task(options(place))
    columns = {"question": ["q"] * 2, "solution": ["s"] * 2, "reference": ["7", "8"]}
    texts = ["<reasoning>x</reasoning><answer>7</answer>"] * 2
    assert task.proxy(texts, columns) == [0.75, 0.75]
    assert task.true(texts, columns) == [1.0, 0.0]
    assert task.is_formatted(texts[0])


def test_plain_text_models_and_no_pad_token(place: dict[str, str], tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False, pad=False)
    model = save(tmp_path / "plain", make_model(tokenizer), tokenizer)
    args = options(place, model=model, judge_model=model, judge_check=False)
    task = build_real_task(args)
    assert task.processing_class.pad_token == task.processing_class.eos_token
    assert isinstance(task.train_dataset[0]["prompt"], str)
    train(task, tmp_path / "run", max_steps=2)


def test_bad_data_stops_before_models_are_loaded(place: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"question": "a"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: no column 'answer'"):
        build_real_task(options(place, dataset=str(path)))
    path.write_text(json.dumps(ROWS[0]) + "\n{broken\n" + json.dumps(ROWS[1]))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not JSON"):
        build_real_task(options(place, dataset=str(path)))
    task = build_real_task(options(place, dataset=str(path), bad_rows="skip"))
    assert task.notes == [f"{path}: 1 bad rows skipped"]
    path.write_text(json.dumps(ROWS[0]))
    with pytest.raises(ValueError, match="too few to hold one out"):
        build_real_task(options(place, dataset=str(path)))


def test_overlap_of_training_and_held_out_data_is_noted(place: dict[str, str]) -> None:
    task = build_real_task(options(place, eval_dataset=place["dataset"], eval_limit=4))
    assert len(task.train_dataset) == 4
    assert "4 of the 4 held-out questions are in the training data" in task.notes[0]


def test_missing_options_are_named() -> None:
    with pytest.raises(ValueError, match="needs --dataset, --judge-model as well"):
        build_real_task(RealTaskConfig(model="some/model"))
    with pytest.raises(ValueError, match="at least 1 row must be held out"):
        build_real_task(RealTaskConfig("a/b", "c/d", "e/f", eval_limit=0))


@pytest.mark.parametrize("which", ["model", "judge_model"])
def test_broken_model_folders(place: dict[str, str], tmp_path: Path, which: str) -> None:
    flag = "--" + which.replace("_", "-")
    tokenizer = make_tokenizer()

    def error(name: Path | str) -> str:
        with pytest.raises(ValueError, match=flag) as caught:
            build_real_task(options(place, **{which: str(name)}))
        return str(caught.value)

    assert "no such folder" in error(tmp_path / "missing")
    assert "a file" in error(place["dataset"])
    assert "no config.json" in error(tmp_path)
    bare = save(tmp_path / "bare", make_model(tokenizer), None)
    assert "no tokenizer in this folder" in error(bare)
    (Path(bare) / "tokenizer.json").write_text("{}")
    assert "the tokenizer cannot be loaded" in error(bare)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in error(tmp_path / "adapter")
    pickled = Path(save(tmp_path / "pickled", make_model(tokenizer), tokenizer))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "no *.safetensors" in error(pickled)
    tokenizer.eos_token = None
    endless = save(tmp_path / "endless", make_model(make_tokenizer()), tokenizer)
    assert "no end-of-text token" in error(endless)
    small = make_model(make_tokenizer())
    small.resize_token_embeddings(100)
    assert "the model knows 100" in error(save(tmp_path / "small", small, make_tokenizer()))


def test_hub_name_that_cannot_be_loaded(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, **options: Any) -> None:
        assert options["trust_remote_code"] is False
        raise OSError(f"{name} is not cached\nand more lines")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(
        ValueError, match=r"--model a/b: the tokenizer cannot.*\(a/b is not cached\)"
    ):
        build_real_task(options(place, model="a/b"))


def test_recipe_is_readable_and_known_to_trl() -> None:
    import dataclasses

    from integrations.recipe import load

    recipe = load("gsm8k")
    assert recipe.steps == 1000
    assert set(recipe.trainer) <= {field.name for field in dataclasses.fields(GRPOConfig)}
    from integrations.launch import with_accumulation

    trainer = with_accumulation(recipe.trainer, {}, recipe.completions_per_step)
    config = GRPOConfig(output_dir="unused", **{**trainer, "bf16": False, "use_cpu": True})
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 256
    assert config.generation_batch_size == 256


def test_special_tags_are_an_error(place: dict[str, str], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(TAGS), special_tokens=True)
    model = save(tmp_path / "special", make_model(tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"cannot write <reasoning>(.|\n)*tokenizer\.add_tokens"):
        build_real_task(options(place, model=model))


def test_too_long_completions_are_an_error(place: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"Set --max_completion_length to at most \d+"):
        build_real_task(options(place), max_completion_length=2040)


@pytest.mark.skipif(
    not os.environ.get("FLATOPT_DATA"), reason="FLATOPT_DATA is not set to a folder with gsm8k/"
)
def test_two_steps_on_gsm8k(place: dict[str, str], tmp_path: Path) -> None:
    args = options(
        place,
        dataset=str(GSM8K / "train.jsonl"),
        limit=64,
        eval_dataset=str(GSM8K / "test.jsonl"),
        eval_limit=8,
    )
    task = build_real_task(args, max_completion_length=12)
    assert not task.notes
    for row in train(task, tmp_path):
        assert row["rewards/judge/mean"] == 1.5
        assert torch.isfinite(torch.tensor(row["reward"]))
