"""Question data: what is read, and that each kind of broken input says where and what to change."""

import json
import os
from pathlib import Path

import pytest

from integrations.data import (
    BadRow,
    Question,
    build_prompt,
    load_questions,
    prompt_dataset,
    takes_system_turn,
)
from integrations.rewards.number import parse_number
from tests.tiny_models import ROWS, make_tokenizer

GSM8K = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"
needs_gsm8k = pytest.mark.skipif(
    not os.environ.get("FLATOPT_DATA"), reason="FLATOPT_DATA is not set to a folder with gsm8k/"
)


def write(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_all_kinds_of_file_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write(path, ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    questions = load_questions(path)
    assert [row.reference for row in questions.rows] == ["7", "12", "1000", "4.5"]
    assert questions.rows[0] == Question(ROWS[0]["question"], "Tom has 3 + 4 = 7 marbles.", "7")
    assert len(load_questions(path, limit=2)) == 2


GOOD = ROWS[0]
BROKEN = [
    ('{"question": "a", ', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1, 2]", "not an object"),
    ({"question": "a", "solution": "#### 7"}, "no column 'answer'.*found: question, solution"),
    ({"prompt": "a", "answer": "#### 7"}, "no column 'question'"),
    ({"question": " \n", "answer": "#### 7"}, "'question' is empty"),
    ({"question": 7, "answer": "#### 7"}, "'question' is int, not text"),
    ({"question": "a", "answer": None}, "'answer' is NoneType, not text"),
    ({"question": "a", "answer": "7"}, "last line '#### N'"),
    ({"question": "a", "answer": "#### seven"}, "last line '#### N'"),
    ({"question": "a", "answer": "#### 7\nor so"}, "last line '#### N'"),
    ({"question": "a", "answer": "#### "}, "last line '#### N'"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_bad_row_names_file_line_and_change(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "data.jsonl", [GOOD, "", row, GOOD])
    with pytest.raises(BadRow, match=message) as error:
        load_questions(path)
    assert f"{path}, line 3" in str(error.value)
    assert "bad_rows='skip'" in str(error.value)


def test_bad_rows_are_skipped_counted_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "data.jsonl", [GOOD, *(row for row, _ in BROKEN), GOOD])
    questions = load_questions(path, bad_rows="skip")
    assert len(questions) == 2
    assert len(questions.skipped) == len(BROKEN)
    assert f"{len(BROKEN)} bad rows skipped, 2 kept" in caplog.text
    assert "and 7 more" in caplog.text


def test_no_good_row_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ["{}"])
    with pytest.raises(ValueError, match="no usable row"):
        load_questions(path, bad_rows="skip")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no usable row"):
        load_questions(tmp_path / "empty.jsonl")


def test_byte_order_mark_and_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(load_questions(path)) == 1
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(BadRow, match=r"line 2: not UTF-8"):
        load_questions(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"question": "a",}]', "line 1: not JSON"),
        ("x.json", '{"question": "a"}\n{"question": "b"}', r"must be named \.jsonl"),
        ("x.json", '{"rows": []}', "Write a list of objects"),
        ("x.parquet", "no parquet", "not a readable parquet file"),
        ("x.csv", "question,answer", r"unknown kind of file. Give one of \.jsonl"),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path / name)


def test_source_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_questions(tmp_path / "missing.jsonl")
    with pytest.raises(FileNotFoundError, match="name of a data set on the hub"):
        load_questions("no-such-thing")
    with pytest.raises(ValueError, match=r"a folder. Give a file in it.*/test\.jsonl"):
        load_questions(tmp_path, split="test")


def test_wrong_options(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    with pytest.raises(ValueError, match="limit=0: give at least 1"):
        load_questions(path, limit=0)
    with pytest.raises(ValueError, match="give 'error' or 'skip'"):
        load_questions(path, bad_rows="ignore")  # pyright: ignore


def test_hub_is_asked_for_name_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list:
        asked.append((name, config, split))
        if name == "owner/gone":
            raise ConnectionError("offline mode is enabled")
        return [ROWS[0], {"question": "a"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(load_questions("openai/gsm8k", split="test", limit=1)) == 1
    with pytest.raises(BadRow, match=r"owner/set:small, train row 2: no column 'answer'"):
        load_questions("owner/set:small")
    assert asked == [("openai/gsm8k", "main", "test"), ("owner/set", "small", "train")]
    with pytest.raises(ValueError, match=r"offline mode is enabled.*download it and give the file"):
        load_questions("owner/gone")


def test_prompt_is_chat_where_there_is_a_template() -> None:
    tokenizer = make_tokenizer()
    prompt = build_prompt("How many?", tokenizer)
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]  # type: ignore[index]
    assert prompt[-1]["content"] == "How many?"  # type: ignore[index]
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    assert not takes_system_turn(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    )
    prompt = build_prompt("How many?", tokenizer)
    assert [message["role"] for message in prompt] == ["user", "assistant", "user"]  # type: ignore[index]
    assert "<answer>" in prompt[0]["content"]  # type: ignore[index]


def test_prompt_is_text_without_a_template() -> None:
    prompt = build_prompt("How many?", make_tokenizer(chat=False))
    assert isinstance(prompt, str)
    assert prompt.endswith("Problem: How many?\n")


def test_dataset_has_the_columns_of_the_rewards(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    dataset = prompt_dataset(load_questions(path), make_tokenizer())
    assert dataset.column_names == ["prompt", "question", "solution", "reference"]
    assert "<<" not in "".join(dataset["solution"])


@needs_gsm8k
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_row_of_gsm8k_is_read(split: str, count: int) -> None:
    questions = load_questions(GSM8K / f"{split}.jsonl")
    assert len(questions) == count
    assert all(parse_number(row.reference) is not None for row in questions.rows)
    assert not any("<<" in row.solution or "####" in row.solution for row in questions.rows)
