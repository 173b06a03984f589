"""Generated word problems: right solutions, disjoint splits, enough variety, equal by seed."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from integrations.data import load_questions
from integrations.worlds import word_problem_texts as texts
from integrations.worlds.word_problems import (
    LARGEST,
    LEVELS,
    MOST,
    SPLITS,
    generate,
    split_of,
    write,
)

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
ROWS = generate(4000, seed=1)


def skeleton(question: str) -> str:
    """A question without its numbers, names and things."""
    names = "|".join(texts.GIRLS + texts.BOYS)
    things = "|".join(word for theme in texts.THEMES for word in theme.words.get("things", ()))
    question = re.sub(rf"\b({names})\b", "NAME", question)
    question = re.sub(rf"\b({things})\b", "THINGS", question)
    return re.sub(r"\d+", "N", question)


def results(row: dict) -> list[tuple[int, str, int, int]]:
    """The equations of a solution."""
    found = EQUATION.findall(row["answer"])
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in found]


def test_each_line_is_one_right_equation_and_the_last_gives_the_answer() -> None:
    for row in ROWS:
        *lines, last = row["answer"].splitlines()
        steps = results(row)
        assert len(lines) == len(steps) == row["level"]
        for a, sign, b, c in steps:
            right = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            assert right == c
            assert 2 <= c <= MOST[row["level"]]
        assert last == f"#### {steps[-1][3]}"


def test_each_step_starts_from_the_result_before_it() -> None:
    for row in ROWS:
        steps = results(row)
        for before, step in pairwise(steps):
            assert step[0] == before[3]


def test_the_numbers_of_an_equation_stand_in_the_question_or_were_worked_out() -> None:
    parts = {"half": 2, "third": 3, "quarter": 4}
    for row in ROWS:
        known = {int(n) for n in re.findall(r"\d+", row["question"])}
        known |= {n for word, n in parts.items() if re.search(rf"\b{word}\b", row["question"])}
        assert max(known) <= max(LARGEST[row["level"]], 12)
        for a, _, b, c in results(row):
            assert {a, b} <= known
            known.add(c)


def test_no_placeholder_is_left() -> None:
    assert not [row for row in ROWS if re.search(r"[{}]|  |\$\D", row["question"] + row["answer"])]


@pytest.mark.parametrize("level", LEVELS)
def test_many_skeletons_of_each_level(level: int) -> None:
    rows = [row for row in ROWS if row["level"] == level]
    assert len(rows) == len(ROWS) // len(LEVELS)
    assert len({skeleton(row["question"]) for row in rows}) >= 60


def test_questions_differ_and_levels_are_dealt_in_turn() -> None:
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    assert [row["level"] for row in ROWS[:5]] == [1, 2, 3, 4, 1]
    assert {row["level"] for row in generate(6, levels=[2, 3])} == {2, 3}


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    found = {
        split: {row["question"] for seed in (0, 1) for row in generate(300, seed, split=split)}
        for split in SPLITS
    }
    for split, questions in found.items():
        assert {split_of(question) for question in questions} == {split}
    assert not found["train"] & found["sft"]
    assert not found["train"] & found["test"]


def test_equal_by_seed_and_a_longer_draw_goes_on() -> None:
    assert generate(50, seed=7) == generate(80, seed=7)[:50]
    assert generate(50, seed=7) != generate(50, seed=8)


def test_written_rows_are_read_as_gsm8k(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = write(path, 20, seed=2, split="test")
    read = load_questions(path).rows
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert [row.question for row in read] == [row["question"] for row in rows]
    assert all(
        row["answer"].endswith(f"#### {q.reference}") for row, q in zip(rows, read, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "at least 1"),
        ({"levels": [5]}, "levels=.*1, 2, 3, 4"),
        ({"levels": []}, "levels="),
        ({"split": "dev"}, "sft, train, test"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"count": 3, **change})
