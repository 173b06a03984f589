"""Rule-based rewards on `<reasoning>...</reasoning><answer>...</answer>`: correctness and format.

Each function is a TRL reward function: called with `prompts`, `completions` and the columns of the
data set, it returns one float per completion. None of them raises, whatever the completion says;
each stays inside its `REWARD_RANGES`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .number import parse_number

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")

REWARD_RANGES = {
    "correctness": (0.0, 2.0),
    "integer_answer": (0.0, 0.5),
    "strict_format": (0.0, 1.0),
    "soft_format": (0.0, 1.0),
    "tag_count": (0.0, 0.5),
}

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Blocks:
    """A completion cut at its four tags."""

    before: str
    reasoning: str
    between: str
    answer: str
    after: str


def completion_text(completion: Any) -> str:
    """Return the text of a TRL completion: a string, or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, dict):
        content = completion.get("content")
        if content is None:
            content = completion.get("text")
        return completion_text(content)
    if isinstance(completion, list | tuple):
        return "".join(completion_text(part) for part in completion)
    return ""


def split_blocks(text: str) -> Blocks | None:
    """Cut `text` at the four tags; None unless each tag stands there once, in the right order."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    starts = [text.index(tag) for tag in TAGS]
    if starts != sorted(starts):
        return None
    ends = [start + len(tag) for start, tag in zip(starts, TAGS, strict=True)]
    return Blocks(
        before=text[: starts[0]],
        reasoning=text[ends[0] : starts[1]],
        between=text[ends[1] : starts[2]],
        answer=text[ends[2] : starts[3]],
        after=text[ends[3] :],
    )


def extract_answer(text: str) -> str | None:
    """Return what stands in the one `<answer>` block; None where there is none, or more than one.

    Two answer blocks are a hedge: taking the first or the last would pay for guessing.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    start, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
    return text[start:end].strip() if start <= end else None


def is_correct(text: str, reference: str) -> bool:
    """Whether the answer in `text` is the same number as `reference`."""
    expected = parse_number(reference)
    if expected is None:
        raise ValueError(
            f"The reference {reference!r} is not a number. Load the data with "
            "integrations.data.load_questions, which checks every row."
        )
    answer = extract_answer(text)
    return answer is not None and parse_number(answer) == expected


def has_soft_format(text: str) -> bool:
    """Both blocks, in order, neither of them empty; other text around them is allowed."""
    blocks = split_blocks(text)
    return (
        blocks is not None
        and _WORD.search(blocks.reasoning) is not None
        and _WORD.search(blocks.answer) is not None
    )


def has_strict_format(text: str) -> bool:
    """The soft format, and nothing but white space before, between and after the blocks."""
    blocks = split_blocks(text)
    if blocks is None or not has_soft_format(text):
        return False
    return not (blocks.before + blocks.between + blocks.after).strip()


def correctness(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
    """2 where the answer equals the reference as a number, else 0: the true reward."""
    if reference is None:
        raise ValueError(
            "The data set has no column 'reference' (the correct number of a row). Build it with\n"
            "    rows = load_questions(path)\n    dataset = prompt_dataset(rows, tokenizer)\n"
            "of integrations.data, which adds the column."
        )
    return [
        2.0 if is_correct(completion_text(c), str(r)) else 0.0
        for c, r in zip(completions, reference, strict=True)
    ]


def integer_answer(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """0.5 where the answer is a whole number (right or wrong), else 0."""
    answers = [extract_answer(completion_text(c)) for c in completions]
    numbers = [None if a is None else parse_number(a) for a in answers]
    return [0.5 if n is not None and n == n.to_integral_value() else 0.0 for n in numbers]


def strict_format(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """1 where the completion is the two blocks and nothing else, else 0."""
    return [1.0 if has_strict_format(completion_text(c)) else 0.0 for c in completions]


def soft_format(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where both blocks are there in order, whatever stands around them, else 0."""
    return [1.0 if has_soft_format(completion_text(c)) else 0.0 for c in completions]


def tag_count(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.125 per tag that stands there once, less 0.001 per character after the end, at least 0.

    Without the floor a long tail after `</answer>` costs more than all rewards together.
    """
    return [_tag_count(completion_text(c)) for c in completions]


def _tag_count(text: str) -> float:
    present = sum(text.count(tag) == 1 for tag in TAGS)
    tail = len(text.rpartition("</answer>")[2].strip()) if "</answer>" in text else 0
    return max(0.0, 0.125 * present - 0.001 * tail)
