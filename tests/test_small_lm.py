"""The small language model: forms of its texts, a whole build in tiny, resume, bad input."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from integrations.data import Question
from integrations.rewards.correctness import extract_answer, has_strict_format
from integrations.rules import small_lm, small_lm_facts, small_lm_training
from integrations.rules.small_lm_training import completion, examples, texts
from integrations.worlds.word_problems import split_of, write

TINY: dict[str, Any] = {
    "problems": 200,
    "rl_train": 20,
    "rl_test": 12,
    "vocabulary": 700,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "lr": 0.01,
    "read": 30,
    "apart": 8,
    "bf16": False,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for GSM8K: other problems of the same form."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    write(path, 40, seed=5)
    return path


@pytest.fixture(scope="module")
def built(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("small") / "lm"
    state = torch.get_rng_state()
    facts = small_lm.build(folder, rows, rows, **TINY)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on
    return folder, facts


def test_share_of_broken_form() -> None:
    many = [Question(f"What is {i} + 1?", f"{i} + 1 = {i + 1}", str(i + 1)) for i in range(2000)]
    made = texts(many, 0.4, seed=0)
    replies = [text.partition("\n")[2] for text in made]
    strict = sum(map(has_strict_format, replies)) / len(replies)
    assert strict == pytest.approx(0.6, abs=0.04)
    assert all(has_strict_format(t.partition("\n")[2]) for t in texts(many, 0.0, seed=0))


def test_no_broken_form_is_strict_and_some_can_still_be_read() -> None:
    rng = random.Random(0)
    forms = {completion("2 + 3 = 5", "5", rng) for _ in range(200)}
    assert len(forms) == 6
    assert not any(map(has_strict_format, forms))
    assert sum(extract_answer(form) == "5" for form in forms) == 4


def test_of_generated_texts_only_the_reply_is_learnt(built: tuple[Path, dict]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built[0] / "model")
    text = texts([Question("What is 2 + 3?", "2 + 3 = 5", "5")], 0.0, seed=0)[0]
    generated, read = examples(tokenizer, [text, text], masked=1)
    learnt = [i for i in generated["labels"] if i != -100]
    assert tokenizer.decode(learnt) == completion("2 + 3 = 5", "5") + tokenizer.eos_token
    assert read["labels"] == read["input_ids"] == generated["input_ids"]
    long = text.replace("2", "2" * small_lm_training.MAX_LENGTH)
    assert examples(tokenizer, [long], masked=0) == []


def test_the_folder_serves_rl(built: tuple[Path, dict]) -> None:
    folder, facts = built
    assert sorted(p.name for p in folder.iterdir()) == [
        "facts.json",
        "model",
        "test.jsonl",
        "train.jsonl",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.num_parameters() == facts["parameters"]
    assert tokenizer.decode(tokenizer("3 + 47 = 50").input_ids) == "3 + 47 = 50"
    assert len(tokenizer("47").input_ids) == 2
    assert facts == json.loads((folder / "facts.json").read_text())
    assert facts["all"]["questions"] == TINY["rl_test"]
    assert {level: f["questions"] for level, f in facts["levels"].items()} == dict.fromkeys(
        "1234", 3
    )
    assert facts["gsm8k_test"]["questions"] == 40
    for split, count in (("train", TINY["rl_train"]), ("test", TINY["rl_test"])):
        lines = (folder / f"{split}.jsonl").read_text().splitlines()
        assert len(lines) == count
        assert {split_of(json.loads(line)["question"]) for line in lines} == {split}


def test_training_lowers_the_loss(built: tuple[Path, dict]) -> None:
    vocabulary = torch.tensor(float(TINY["vocabulary"]))
    assert built[1]["loss"] < torch.log(vocabulary) - 0.5  # an untrained model's loss is the log


def test_built_once(built: tuple[Path, dict], rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(small_lm, "train", fail)
    assert small_lm.build(built[0], rows, rows, **TINY) == built[1]
    with pytest.raises(ValueError, match="other settings"):
        small_lm.build(built[0], rows, rows, **{**TINY, "seed": 1})


def test_replies_are_seeded_and_do_not_hang_on_the_batch(built: tuple[Path, dict]) -> None:
    folder = built[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    questions = ["Tom has 3 apples.", "Anna has 12 big apples and 5 small apples. How many?"]

    def say(questions: list[str], **how: Any) -> list[str]:
        return small_lm_facts.replies(model, tokenizer, questions, **how)

    assert say(questions, seed=1) == say(questions, seed=1)
    assert say(questions, seed=1) != say(questions, seed=2)
    # padding on the left changes nothing
    assert say(questions, temperature=0.0) == [say([q], temperature=0.0)[0] for q in questions]


def test_shares_by_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def replies(model: Any, tokenizer: Any, questions: list[str], seed: int, t: float) -> list[str]:
        return ["<answer>5</answer>" if t else completion("so 5", "5") for _ in questions]

    monkeypatch.setattr(small_lm_facts, "replies", replies)
    rows = [
        {"question": "a", "answer": "#### 5", "level": 2},
        {"question": "b", "answer": "#### 6", "level": 1},
    ]
    found = small_lm_facts.sampled(None, None, rows)
    assert found["all"] == {
        "questions": 2,
        "accuracy": 0.5,
        "accuracy_cool": 0.5,
        "accuracy_greedy": 0.5,
        "strict_format": 0.0,
    }
    assert [found["levels"][level]["accuracy"] for level in "12"] == [0.0, 1.0]


def test_an_interrupted_training_goes_on(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_lm_training, "SAVE_STEPS", 4)
    whole = small_lm.build(tmp_path / "whole", rows, **TINY)
    from transformers import Trainer

    step = Trainer.training_step

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 10:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            small_lm.build(tmp_path / "again", rows, **TINY)
    assert not (tmp_path / "again" / "model").exists()
    again = small_lm.build(tmp_path / "again", rows, **TINY)
    assert again["loss"] == whole["loss"]
    assert again["all"] == whole["all"]


def test_training_goes_on_from_an_earlier_folder(
    built: tuple[Path, dict], rows: Path, tmp_path: Path
) -> None:
    more = small_lm.build(tmp_path / "more", rows, start=built[0], **{**TINY, "seed": 1})
    assert more["settings"]["start"] == built[1]["fingerprint"]
    assert more["loss"] < built[1]["loss"] - 0.2
    tokenizers = [(f / "model/tokenizer.json").read_text() for f in (built[0], tmp_path / "more")]
    assert tokenizers[0] == tokenizers[1]
    with pytest.raises(ValueError, match="no finished model"):
        small_lm.build(tmp_path / "none", rows, start=tmp_path, **TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apart": 40}, "give more rows"),
        ({"width": 30, "heads": 4}, "multiple of 2"),
        ({"broken": 1.5}, "between 0 and 1"),
        ({"problems": 0}, "problems=0"),
        ({"levels": (1, 7)}, "levels=.*give some of 1, 2, 3, 4"),
        ({"rl_levels": ()}, "rl_levels=.*give some of 1, 2, 3, 4"),
    ],
)
def test_bad_settings(rows: Path, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_lm.build(tmp_path / "lm", rows, **{**TINY, **change})
    assert not (tmp_path / "lm").exists()


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.jsonl")
    assert small_lm.main(["--gsm8k", missing, "--output", str(tmp_path / "lm")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_command_prints_the_facts(
    built: tuple[Path, dict], rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        text
        for name, value in TINY.items()
        if name != "bf16"
        for text in ("--" + name.replace("_", "-"), str(value))
    ]
    given = ["--gsm8k", str(rows), "--gsm8k-test", str(rows), "--output", str(built[0])]
    assert small_lm.main([*given, *flags, "--no-bf16"]) == 0
    assert json.loads(capsys.readouterr().out)["all"] == built[1]["all"]
