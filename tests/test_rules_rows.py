"""Rows of mathematics: GSM8K's and MATH's form, broken rows, and the prompts."""

import json
from pathlib import Path

import pytest
from tiny_models import make_tokenizer

from integrations.data import BadRow
from integrations.rules.rows import (
    build_prompt,
    check_math_row,
    form_of,
    load_rows,
    prompt_rows,
)

MATH = {"problem": "What is $1/4 + 1/4$?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}
GSM = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (7, "not an object"),
        ({"solution": "\\boxed{1}"}, "problem"),
        ({"problem": " ", "solution": "\\boxed{1}"}, "problem"),
        ({"problem": "p", "solution": 3}, "solution"),
        ({"problem": "p", "solution": "no box"}, "boxed"),
        ({"problem": "p", "solution": "\\boxed{}"}, "boxed"),
        ({"problem": "p", "solution": "\\boxed{{1}"}, "boxed"),  # never closed
        ({"problem": "p", "solution": "\\boxed{1} or \\boxed{2}"}, "2 different"),
        ({"problem": "p", "solution": f"\\boxed{{{'1' * 400}}}"}, "400 characters"),
        ({"problem": "p", "solution": "s", "answer": True}, "answer"),
        ({"problem": "p", "solution": "s", "answer": [1]}, "answer"),
    ],
)
def test_a_broken_math_row_is_refused_by_name(row: object, says: str) -> None:
    with pytest.raises(BadRow, match=f"line 3.*{says}"):
        check_math_row(row, "f.jsonl, line 3")


def test_a_math_row_keeps_its_level_and_its_own_answer() -> None:
    row = check_math_row(MATH | {"level": "Level 2"}, "row 1")
    assert (row.reference, row.level) == ("\\frac{1}{2}", "Level 2")
    assert check_math_row(MATH | {"answer": "0.5"}, "row 1").reference == "0.5"
    assert check_math_row(MATH | {"answer": 0, "level": 0}, "row 1").reference == "0"
    assert check_math_row(MATH | {"answer": 0, "level": 0}, "row 1").level == "0"
    assert (
        check_math_row({"problem": "p", "solution": "\\boxed{1}, \\boxed{1}"}, "").reference == "1"
    )


def test_the_form_follows_from_the_first_row_that_is_one(tmp_path: Path) -> None:
    for name, row, form in (("a", MATH, "math"), ("b", GSM, "gsm8k")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("broken\n" + json.dumps(row) + "\n")
        assert form_of(str(path), "train") == form
        assert len(load_rows(str(path), "train", None, "skip", form)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("form", ["gsm8k", "math"])
def test_a_prompt_holds_what_its_style_says(chat: bool, form: str) -> None:
    tokenizer = make_tokenizer(chat)
    told, shot = {"gsm8k": ("<answer>", "3 trays"), "math": ("within \\boxed", "both sides")}[form]
    for style, parts in (
        ("one-shot", (True, True)),
        ("zero-shot", (True, False)),
        ("question", (False, False)),
    ):
        prompt = build_prompt("Why?", tokenizer, form, style)  # type: ignore[arg-type]
        assert isinstance(prompt, list) is chat
        text = json.dumps(prompt).replace("\\\\", "\\")
        assert "Why?" in text
        assert (told in text, shot in text) == parts, style
        if chat:
            assert prompt[-1] == {"role": "user", "content": "Why?"}  # type: ignore[comparison-overlap]


def test_a_template_without_a_system_turn_gets_the_instruction_all_the_same() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    for style in ("one-shot", "zero-shot"):
        first = build_prompt("Why?", tokenizer, "gsm8k", style)[0]
        assert first["role"] == "user"  # type: ignore[index]
        assert "<answer>" in first["content"]  # type: ignore[index]


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="one-shot, zero-shot, question"):
        build_prompt("Why?", make_tokenizer(), "gsm8k", "two-shot")


def test_levels_become_a_column_only_where_every_row_has_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for rows, there in (([GSM | {"level": 1}, GSM], False), ([GSM | {"level": 1}] * 2, True)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read = load_rows(str(path), "train", None, "error", "gsm8k")
        data = prompt_rows(read, make_tokenizer(), "gsm8k", "question")
        assert ("level" in data.column_names) is there
