"""Bad data and models of a real RLHF run: what is wrong is said, by row and column, beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest

from integrations.data import BadRow
from integrations.reward_models.trainer import BadReward
from integrations.rlhf.checks import check_inputs
from integrations.rlhf.command import main
from integrations.rlhf.files import hold_out, load_demonstrations, load_prompts
from integrations.rlhf.options import RlhfConfig
from integrations.rlhf.scorer import Scorer
from tests.rlhf_cases import PAIRS, PROMPTS, make_place, real, write


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_place(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": PAIRS[2]["chosen"]}, "line 3: 'chosen' equals 'rejected'"),
        ({"chosen": "  "}, "line 3: 'chosen' is empty. Fill it in"),
        ({"rejected": 7}, "line 3: 'rejected' is int, neither text nor a list"),
        ({"prompt": None}, "line 3: 'prompt' is NoneType"),
        ({"chosen": [{"role": "assistant", "content": "x"}]}, "'chosen' is messages"),
    ],
)
def test_broken_preferences_stop_the_command_before_any_stage(
    place: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    message: str,
) -> None:
    rows = [*PAIRS[:2], PAIRS[2] | change, *PAIRS[3:]]
    source = write(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "run"
    assert main(real(place, output, "--preferences", source)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "rows.jsonl" in error
    assert not output.exists()


def test_models_that_give_no_usable_score(
    place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, name, message in (
        ("--reward_model", "nan", "column 'chosen', row 0: --reward_model"),
        ("--gold_model", "nan", "column 'chosen', row 0: --gold_model"),
        ("--reward_model", "three", "a classifier with 3 labels; a reward model has one"),
        ("--gold_model", "model", "Qwen2ForCausalLM gives no score"),
        ("--judge_model", "missing", "no such folder"),
    ):
        output = tmp_path / "run"
        where = place.get(name, str(tmp_path / name))
        assert main(real(place, output, "--preferences", place["pairs"], option, where)) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()


def test_a_score_that_is_not_finite_names_the_row(place: dict[str, str]) -> None:
    scorer = Scorer(place["gold"])
    import torch

    with torch.no_grad():  # one word of the second row alone is broken
        token = scorer.tokenizer.encode("Z", add_special_tokens=False)[0]
        scorer.model.get_input_embeddings().weight[token] = float("inf")
    with pytest.raises(
        BadReward, match=r"rows\.jsonl, column 'rejected', row 1: .* gives nan for 'Z'"
    ):
        scorer(["a", "a", "a"], ["b", "Z", "c"], "rows.jsonl, column 'rejected'")
    assert len(scorer(["a", "a"], ["b", "c"])) == 2


def test_scores_do_not_hang_on_the_batch(place: dict[str, str]) -> None:
    texts = ["one", "a much longer reply than that", "", "two words"]
    many = Scorer(place["gold"], batch=4)(["Hello"] * 4, texts)
    single = [Scorer(place["gold"], batch=1)(["Hello"], [text])[0] for text in texts]
    assert many == pytest.approx(single, abs=1e-5)
    assert len(set(many)) == 4
    assert Scorer(place["gold"], length=5).ids("Hello", "a much longer reply")[-1] == (
        Scorer(place["gold"]).tokenizer.eos_token_id
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"line 2: no column 'prompt' \(found: text\)"),
        ({"prompt": ""}, "line 2: 'prompt' is empty"),
        ({"prompt": [{"role": "user"}]}, "line 2: 'prompt', message 1: not a message"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "ends with a turn of the assistant"),
        ({"prompt": [{"role": "user", "content": "x"}]}, "'prompt' is messages, but text in"),
        (["x"], "line 2: not an object"),
    ],
)
def test_broken_prompts(tmp_path: Path, row: Any, message: str) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": "good"}, row])
    with pytest.raises(BadRow, match=message):
        load_prompts(source)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "line 1: no column 'completion'"),
        ({"prompt": "x", "completion": " "}, "line 1: 'completion' is empty"),
        (
            {"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]},
            "'prompt' is text, 'completion' is messages",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "x"}],
                "completion": [{"role": "user", "content": "y"}],
            },
            "'completion' begins with a turn of role 'user'",
        ),
    ],
)
def test_broken_demonstrations(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        load_demonstrations(write(tmp_path / "rows.jsonl", [row]))


def test_held_out_prompts_are_not_trained_on() -> None:
    train, held_out = hold_out(["a", "b", "a", "c", "b"], 1, "file")
    assert (train, held_out) == (["a", "b"], ["c"])
    assert hold_out(["a", "b", "c"], 64, "file") == (["a", "b"], ["c"])
    with pytest.raises(ValueError, match="file: 1 prompt is too few"):
        hold_out(["a", "a"], 1, "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "also needs --preferences FILE"),
        ({"prompts": "x"}, "nothing says which completion is better"),
        ({"prompts": "x", "gold_model": "y", "sft": "chosen"}, "--sft chosen learns from"),
        ({"preferences": "x", "pairs": 3}, "--pairs: the pairs are those of --preferences"),
        ({"preferences": "x", "reward_method": "rank"}, "is not one of bt, grm, gr"),
        ({"preferences": "x", "reward_model": "y", "reward_method": "gr"}, "is there already"),
        ({"preferences": "x", "reward_amount": 1.0}, "of the reward methods grm and gr"),
        ({"preferences": "x", "sft_steps": 0}, "--sft_steps must be at least 1"),
        ({"preferences": "x", "sft_lr": 0.0}, "--sft_lr must be positive"),
        ({"preferences": "x", "bad_rows": "fix"}, "give error or skip"),
        ({"preferences": "x", "limit": 0}, "--limit must be at least 1"),
    ],
)
def test_options_that_contradict_each_other(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RlhfConfig("model", **options)


def test_data_and_model_have_to_fit(place: dict[str, str], tmp_path: Path) -> None:
    gold: Any = {"gold_model": place["gold"]}
    with pytest.raises(ValueError, match="the prompts are chats, and its tokenizer has no chat"):
        check_inputs(RlhfConfig(place["model"], prompts=place["chats"], **gold))
    with pytest.raises(ValueError, match=r"Set --max_completion_length to at most \d+"):
        check_inputs(RlhfConfig(place["model"], prompts=place["prompts"], tokens=2040, **gold))
    mixed = RlhfConfig(place["chat"], place["pairs"], place["chats"])
    with pytest.raises(ValueError, match="--preferences holds texts, --prompts chats"):
        check_inputs(mixed)
    long = write(tmp_path / "two.jsonl", [{"prompt": p} for p in PROMPTS[:2]])
    notes = check_inputs(RlhfConfig(place["model"], prompts=long, tokens=8, **gold))
    assert notes == ["1 prompts are held out, half of the distinct ones"]


def test_other_errors_of_the_command(
    place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = real(place, tmp_path / "run", "--preferences", place["pairs"])
    for more, message in (
        (["--world", "A"], "--world is of the self-contained worlds"),
        (["--method", "true"], "method true trains on the gold reward: give --gold_model"),
        (["--stage", "pairs"], "this run has none; its stages are labels, sft, reward, rl"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert json.loads(json.dumps(PAIRS)) == PAIRS
