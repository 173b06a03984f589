"""Preference data: what is read, what each kind of bad row says, and pairs of GSM8K solutions."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from integrations.data import BadRow
from integrations.reward_models.preferences import (
    check_pair,
    check_preferences,
    load_preferences,
)
from integrations.reward_models.solution_pairs import solution_pairs

SOLUTIONS = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k" / "example_model_solutions.jsonl"
TEXT = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TALK = {
    "prompt": [turn("user", "Name a colour.")],
    "chosen": [turn("assistant", "Red.")],
    "rejected": [turn("assistant", "Seven.")],
}


def write(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("row", [TEXT, TALK], ids=["text", "messages"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_both_formats_are_read_from_all_kinds_of_file(
    tmp_path: Path, suffix: str, row: dict[str, Any]
) -> None:
    path = tmp_path / f"pairs{suffix}"
    rows = [row, row | {"note": "not used"} if suffix != ".parquet" else row, row]
    if suffix == ".jsonl":
        write(path, rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        Dataset.from_list(rows).to_parquet(path)
    assert load_preferences(path).to_list() == [row] * 3
    assert len(load_preferences(path, limit=2)) == 2


def test_numbers_are_kept(tmp_path: Path) -> None:
    row = TEXT | {"margin": 1, "gold_chosen": 0.5, "gold_rejected": -1}
    dataset = load_preferences(write(tmp_path / "pairs.jsonl", [row]))
    assert dataset[0] == TEXT | {"margin": 1.0, "gold_chosen": 0.5, "gold_rejected": -1.0}


BROKEN = [
    ('{"prompt": "a", ', "not JSON"),
    ("[1, 2]", "not an object"),
    ({"prompt": "a", "chosen": "b"}, "no column 'rejected'.*found: prompt, chosen"),
    ({"chosen": "a b", "rejected": "a c"}, "no column 'prompt'.*extract_prompt"),
    (TEXT | {"prompt": " \n"}, "'prompt' is empty"),
    (TEXT | {"rejected": ""}, "'rejected' is empty"),
    (TEXT | {"chosen": 7}, "'chosen' is int, neither text nor a list of messages"),
    (TEXT | {"chosen": None}, "'chosen' is NoneType"),
    (TEXT | {"rejected": "Red. "}, "'chosen' equals 'rejected'"),
    (TEXT | {"chosen": TALK["chosen"]}, "'prompt' is text, 'chosen' is messages"),
    (TEXT | {"margin": "1"}, "'margin' is '1'. Give a finite number"),
    (TEXT | {"margin": 1.0}, "column 'margin' is in .*line 3 but not in .*line 1"),
    (TEXT | {"gold_chosen": 1.0}, "'gold_chosen' alone"),
    (TALK, "'chosen' is messages, but text in .*line 1"),
    (TALK | {"prompt": []}, "'prompt' is an empty list"),
    (TALK | {"prompt": ["hello"]}, "'prompt', message 1: not a message"),
    (TALK | {"chosen": [{"role": "assistant"}]}, "'chosen', message 1: not a message"),
    (TALK | {"chosen": [turn("assistant", None)]}, "message 1: 'content' is NoneType, not text"),
    (TALK | {"rejected": [turn("assistant", " ")]}, "message 1: 'content' is empty"),
    (TALK | {"chosen": TALK["prompt"]}, "begins with a turn of role 'user'"),
    (TALK | {"rejected": TALK["chosen"]}, "'chosen' equals 'rejected'"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_bad_row_names_file_line_and_change(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "pairs.jsonl", [TEXT, "", row, TEXT])
    with pytest.raises(BadRow, match=message) as error:
        load_preferences(path)
    assert f"{path}, line 3" in str(error.value)
    assert "bad_rows='skip'" in str(error.value)


def test_bad_rows_are_skipped_counted_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "pairs.jsonl", [TEXT, *(row for row, _ in BROKEN), TEXT])
    assert len(load_preferences(path, bad_rows="skip")) == 2
    assert f"{len(BROKEN)} bad rows skipped, 2 kept" in caplog.text
    assert f"and {len(BROKEN) - 5} more" in caplog.text


def test_sources_and_options_that_do_not_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_preferences(tmp_path / "missing.jsonl")
    path = write(tmp_path / "pairs.jsonl", ["{}"])
    with pytest.raises(ValueError, match="no usable row"):
        load_preferences(path, bad_rows="skip")
    with pytest.raises(ValueError, match="limit=0"):
        load_preferences(path, limit=0)
    with pytest.raises(ValueError, match="give 'error' or 'skip'"):
        load_preferences(path, bad_rows="drop")  # pyright: ignore


def test_hub_is_asked_for_name_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list:
        asked.append((name, config, split))
        return [TEXT, TEXT | {"chosen": ""}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(load_preferences("owner/pairs:small", split="test", limit=1)) == 1
    with pytest.raises(BadRow, match=r"owner/pairs, train row 2: 'chosen' is empty"):
        load_preferences("owner/pairs")
    assert asked == [("owner/pairs", "small", "test"), ("owner/pairs", None, "train")]


def test_loaded_data_set_is_checked() -> None:
    check_preferences(Dataset.from_list([TEXT, TEXT]))
    check_preferences(Dataset.from_list([TALK]))
    with pytest.raises(BadRow, match=r"mine, row 1: 'chosen' is empty"):
        check_preferences(Dataset.from_list([TEXT, TEXT | {"chosen": ""}]), "mine")
    implicit = {"chosen": "a b", "rejected": "a c"}
    with pytest.raises(BadRow, match="no column 'prompt'"):
        check_preferences(Dataset.from_list([implicit]))
    check_preferences(Dataset.from_list([implicit]), implicit=True)
    with pytest.raises(ValueError, match="no row"):
        check_preferences(Dataset.from_list([]))
    talk = {"chosen": TALK["prompt"] + TALK["chosen"], "rejected": TALK["prompt"]}
    assert check_pair(talk, "here", implicit=True) == talk


def solution(right: bool, text: str) -> dict[str, Any]:
    return {"is_correct": right, "solution": text}


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is {i} + 1?",
            "ground_truth": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}",
            "small_a": solution(True, f"It is <<1=1>>{i + 1}."),
            "small_b": solution(False, f"It is {i}."),
            "small_c": solution(False, f"It is {i + 2}."),
            "large": solution(i % 2 == 0, f"Surely {i + 1 + i % 2}."),
            "large_b": solution(False, f"Surely {i - 1}."),
        }
        for i in range(count)
    ]


SMALL, LARGE = ("small_a", "small_b", "small_c"), ("large", "large_b")


def test_right_and_wrong_solutions_of_a_question_are_paired(tmp_path: Path) -> None:
    path = write(tmp_path / "solutions.jsonl", questions(20))
    parts = solution_pairs(path, SMALL, LARGE, held_out=0.3)
    asked = {name: set(part["prompt"]) for name, part in parts.items()}
    assert len(asked["train"]) == 14
    assert len(asked["held_out"]) == 6
    assert not asked["train"] & (asked["held_out"] | asked["shift"])
    assert len(parts["train"]) == 2 * 14  # one right with two wrong ones
    row = parts["held_out"][0]
    number = int(row["prompt"].split()[2])
    assert row["chosen"] == f"It is {number + 1}."
    assert row["rejected"] in (f"It is {number}.", f"It is {number + 2}.")
    assert row["chosen_source"] == "small_a"
    assert set(parts["train"]["rejected_source"]) == {"small_b", "small_c"}
    assert set(parts["shift"]["source"]) == {"large+large_b"}
    for part in parts.values():
        check_preferences(part)


def test_pairs_are_seeded_and_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "solutions.jsonl", questions(20))

    def parts(**options: Any) -> dict[str, Any]:
        made = solution_pairs(path, SMALL, LARGE, **options)
        return {str(k): v.to_list() for k, v in made.items()}

    assert parts(seed=1) == parts(seed=1)
    assert parts(seed=1) != parts(seed=2)
    one = parts(max_pairs=1)["train"]
    assert len(one) == len({row["prompt"] for row in one}) == 14
    human = parts(human=True, max_pairs=99)
    assert len(human["train"]) == 4 * 14
    assert {row["chosen_source"] for row in human["train"]} == {"small_a", "human"}
    assert "<<" not in json.dumps(human)


def test_bad_solutions_say_what_to_change(tmp_path: Path) -> None:
    def build(rows: list, **options: Any) -> None:
        solution_pairs(write(tmp_path / "s.jsonl", rows), SMALL, LARGE, **options)

    good = questions(3)
    for row, message in [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not an object"),
        ({"question": "a"}, "line 2: no column 'ground_truth'"),
        (good[0] | {"question": ""}, "line 2: 'question' is no text or empty"),
        (good[0] | {"large": "yes"}, "line 2: 'large' is not a labelled solution"),
        (good[0] | {"small_b": solution(True, "")}, "line 2: 'small_b' is not a labelled"),
        (
            good[0] | {"small_b": solution(False, "It is 1.")},
            "line 2: the same solution is labelled right in 'small_a' and wrong in 'small_b'",
        ),
    ]:
        with pytest.raises(BadRow, match=message):
            build([good[1], row, good[2]])
    for options, message in [
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"max_pairs": 0}, "max_pairs=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(good, **options)
    with pytest.raises(ValueError, match="fewer than 2 questions"):
        build([good[0], good[0]])
    with pytest.raises(ValueError, match=r"no question of part 'shift'.*human=True"):
        build([good[1], questions(4)[3]])
    with pytest.raises(ValueError, match="at least one model's column"):
        solution_pairs(tmp_path / "s.jsonl", (), LARGE)


@pytest.mark.skipif(
    not os.environ.get("FLATOPT_DATA"), reason="FLATOPT_DATA is not set to a folder with gsm8k/"
)
def test_pairs_of_gsm8k_solutions() -> None:
    parts = solution_pairs(SOLUTIONS)
    assert len(parts["train"]) + len(parts["held_out"]) == 357  # one model right, the other wrong
    assert 100 < len(parts["shift"]) < 436
    more = solution_pairs(SOLUTIONS, human=True)
    assert len(more["train"]) > 4 * len(parts["train"])
    for part in (*parts.values(), *more.values()):
        check_preferences(part)
