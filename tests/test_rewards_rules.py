"""Rule-based rewards: correctness and format on adversarial completions and real solutions."""

import json
import os
import time
from pathlib import Path

import pytest

from integrations.rewards import (
    correctness,
    integer_answer,
    soft_format,
    strict_format,
    tag_count,
)
from integrations.rewards.correctness import TAGS
from integrations.rewards.number import format_number, parse_number

GSM8K = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"

NUMBERS = [
    ("72", "72"),
    (" 72.0 ", "72"),
    ("72.", "72"),
    ("$72", "72"),
    ("$ 72.50", "72.5"),
    ("1,000", "1000"),
    ("-3", "-3"),
    ("-$3", "-3"),
    ("$-3", "-3"),
    ("\u22123", "-3"),
    ("50%", "50"),
    (".5", "0.5"),
    ("007", "7"),
    ("-0", "0"),
    ("", None),
    ("72 or 73", None),
    ("72 73", None),
    ("72 clips", None),
    ("1,00", None),
    ("1,000,00", None),
    ("--3", None),
    ("-$-3", None),
    ("7e3", None),
    ("nan", None),
    ("inf", None),
    ("\uff17\uff12", None),
    ("9" * 5000, None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_numbers(text: str, expected: str | None) -> None:
    value = parse_number(text)
    assert (None if value is None else format_number(value)) == expected


def work(answer: str, reasoning: str = "12 * 6 = 72.", end: str = "") -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>{end}"


# completion; correctness against 72, integer, strict, soft, tag count
CASES = [
    (work("72"), 2, 0.5, 1, 1, 0.5),
    (work("72.00", end="\n"), 2, 0.5, 1, 1, 0.5),
    (work("$72"), 2, 0.5, 1, 1, 0.5),
    (work("73"), 0, 0.5, 1, 1, 0.5),
    (work("7.2"), 0, 0, 1, 1, 0.5),
    (work("72 or 73"), 0, 0, 1, 1, 0.5),
    (work("seventy-two"), 0, 0, 1, 1, 0.5),
    (work("72", end=" I hope this helps."), 2, 0.5, 0, 1, 0.5 - 0.018),
    (work("72", end="x" * 1000), 2, 0.5, 0, 1, 0),
    ("Sure! " + work("72"), 2, 0.5, 0, 1, 0.5),
    (work("72", reasoning=""), 2, 0.5, 0, 0, 0.5),
    (work("72", reasoning=" \u200b. "), 2, 0.5, 0, 0, 0.5),
    (work(""), 0, 0, 0, 0, 0.5),
    (work("73") + work("72"), 0, 0, 0, 0, 0),
    (work("<answer>72</answer>"), 0, 0, 0, 0, 0.25),
    ("<answer>72</answer><reasoning>x</reasoning>", 2, 0.5, 0, 0, 0.5 - 0.024),
    (work("72", end="<answer>"), 0, 0, 0, 0, 0.375 - 0.008),
    ("</answer>72<answer>", 0, 0, 0, 0, 0.25 - 0.010),
    ("<answer>72", 0, 0, 0, 0, 0.125),
    ("72", 0, 0, 0, 0, 0),
    ("", 0, 0, 0, 0, 0),
]


@pytest.mark.parametrize(("text", "right", "integer", "strict", "soft", "tags"), CASES)
def test_rules(
    text: str, right: float, integer: float, strict: float, soft: float, tags: float
) -> None:
    for completion in (text, [{"role": "assistant", "content": text}]):
        assert correctness([""], [completion], ["72"]) == [right]
        assert integer_answer([""], [completion]) == [integer]
        assert strict_format([""], [completion]) == [strict]
        assert soft_format([""], [completion]) == [soft]
        assert tag_count([""], [completion]) == [pytest.approx(tags)]


@pytest.mark.parametrize("piece", [*TAGS, "<", "1,000", "-", "$ ", "<reasoning>x</reasoning>"])
def test_rules_take_linear_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    start = time.perf_counter()
    for rule in (integer_answer, strict_format, soft_format, tag_count):
        rule([""], [text])
    correctness([""], [f"<answer>{text}</answer>"], ["72"])
    assert time.perf_counter() - start < 2


def test_correctness_without_reference_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no column 'reference'(.|\n)*prompt_dataset"):
        correctness([""], ["72"])
    with pytest.raises(ValueError, match="'seven' is not a number"):
        correctness([""], ["72"], ["seven"])


@pytest.mark.skipif(
    not os.environ.get("FLATOPT_DATA"), reason="FLATOPT_DATA is not set to a folder with gsm8k/"
)
def test_correctness_agrees_with_the_labels_of_real_solutions() -> None:
    lines = (GSM8K / "example_model_solutions.jsonl").read_text().splitlines()
    agree = []
    for row in map(json.loads, lines):
        reference = row["ground_truth"].rpartition("A: ")[2].strip()
        for kind in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            answer = row[kind]["solution"].rpartition("A: ")[2].strip()
            reward = correctness([""], [work(answer)], [reference])[0]
            agree.append((reward > 0) == row[kind]["is_correct"])
    assert len(agree) == 4 * 1319
    assert all(agree)
