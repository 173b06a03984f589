"""Rewards on the answer: equal to the reference, as a number, as mathematics or as a string.

Each is a TRL reward function: called with `prompts`, `completions` and the columns of the data set,
it returns one float per completion. None raises, whatever the completion says; each stays inside
its `REWARD_RANGES`. ValueError is for a data set without a usable reference.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .form import (
    TAGS,
    Blocks,
    completion_text,
    extract_answer,
    has_soft_format,
    has_strict_format,
    soft_format,
    split_blocks,
    strict_format,
    tag_count,
)
from .latex import MAX_ANSWER, boxes, clean
from .math_answer import compare
from .number import parse_exact

__all__ = [
    "TAGS",
    "Blocks",
    "boxed_answer",
    "boxed_correctness",
    "completion_text",
    "correctness",
    "extract_answer",
    "has_soft_format",
    "has_strict_format",
    "integer_answer",
    "is_correct",
    "soft_format",
    "split_blocks",
    "strict_format",
    "string_equality",
    "tag_count",
]

LogMetric = Callable[[str, float], None]

MAX_SPELLINGS = 8  # of one answer in boxes; more are not looked at

_BARE_WORDS = re.compile(r"[A-Za-z]{2,}(?:\s+[A-Za-z]+)*|\W*")


def boxed_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`; None without one, and for boxes that differ.

    Different boxes are a hedge, since nobody can say which one is meant; `72` and `72.0` are the
    same answer. A box that is never closed is None too.

    >>> boxed_answer("so \\boxed{72}. In all \\boxed{72.0}"), boxed_answer("\\boxed{1} \\boxed{2}")
    ('72.0', None)
    """
    found = boxes(text) or []
    distinct = set(found)
    if not 1 <= len(distinct) <= MAX_SPELLINGS or any(len(box) > MAX_ANSWER for box in distinct):
        return None
    cleaned = [clean(box) for box in distinct]
    numbers = [parse_exact(box) for box in cleaned]
    values = {box if n is None else n for box, n in zip(cleaned, numbers, strict=True)}
    return found[-1] if len(values) == 1 else None


def is_correct(text: str, reference: str) -> bool:
    """Whether the answer in the one `<answer>` block equals `reference`: see `math_answer`.

    ValueError where the reference is empty, or words and no number or formula.

    >>> is_correct("<answer>$72.00</answer>", "72"), is_correct("<answer>72 or 73</answer>", "72")
    (True, False)
    """
    return _verdict(text, reference) == "equal"


def _verdict(text: str, reference: str) -> str:
    if _BARE_WORDS.fullmatch(reference.strip()):
        raise ValueError(
            f"The reference {reference!r} is not a number. Load the data with "
            "integrations.data.load_questions, which checks every row."
        )
    return compare(reference, extract_answer(text) or "")


def correctness(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """2 where the one `<answer>` block equals the reference, else 0: the true reward.

    Logs `rules/timeouts`, the fraction of the batch for which math-verify could not tell in time.

    >>> correctness([], ["<answer>1/2</answer>", "<answer>0.49</answer>"], ["0.5", "0.5"])
    [2.0, 0.0]
    """
    if reference is None:
        raise _no_reference("correct number")
    rows = zip(completions, reference, strict=True)
    return _rewards([_verdict(completion_text(c), str(r)) for c, r in rows], log_metric)


def boxed_correctness(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[str] | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    r"""2 where the last `\boxed{...}` equals the reference, else 0: the true reward of MATH.

    Boxes that differ are a hedge and give 0: see `boxed_answer`. Logs `rules/timeouts` like
    `correctness`.

    >>> boxed_correctness([], ["So \\boxed{\\frac{1}{\\sqrt{3}}}."], ["\\frac{\\sqrt{3}}{3}"])
    [2.0]
    """
    if reference is None:
        raise _no_reference("answer, in LaTeX,")
    answers = [boxed_answer(completion_text(c)) for c in completions]
    rows = zip(answers, reference, strict=True)
    return _rewards([compare(str(r), a or "") for a, r in rows], log_metric)


def string_equality(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    reference: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
    """2 where the answer is the very string of the reference, else 0: the paper's reward.

    It is here to reproduce the paper's runs. It calls `72.0`, `$72` and `1,000` wrong, and it pays
    for hedges: of several answer blocks it reads the last, and without tags the whole text.

    >>> texts = ["<answer>71</answer><answer>72</answer>", "72", "<answer>72.0</answer>"]
    >>> string_equality([], texts, ["72"] * 3)
    [2.0, 2.0, 0.0]
    """
    if reference is None:
        raise _no_reference("correct answer")
    answers = [
        completion_text(c).rpartition("<answer>")[2].partition("</answer>")[0].strip()
        for c in completions
    ]
    return [2.0 if a == str(r) else 0.0 for a, r in zip(answers, reference, strict=True)]


def integer_answer(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """0.5 where the answer is a whole number (right or wrong), else 0.

    >>> integer_answer([], ["<answer>73.0</answer>", "<answer>7.3</answer>", "73"])
    [0.5, 0.0, 0.0]
    """
    answers = [extract_answer(completion_text(c)) or "" for c in completions]
    numbers = [parse_exact(clean(a)) if len(a) <= MAX_ANSWER else None for a in answers]
    return [0.5 if n is not None and n.denominator == 1 else 0.0 for n in numbers]


def _rewards(verdicts: list[str], log_metric: LogMetric | None) -> list[float]:
    # Logged at 0 too: TRL gathers metrics by name, so every process must have the same names.
    if verdicts and log_metric is not None:
        log_metric("rules/timeouts", sum(v == "timeout" for v in verdicts) / len(verdicts))
    return [2.0 if verdict == "equal" else 0.0 for verdict in verdicts]


def _no_reference(what: str) -> ValueError:
    return ValueError(
        f"The data set has no column 'reference' (the {what} of a row). Build it with\n"
        "    rows = load_questions(path)\n    dataset = prompt_dataset(rows, tokenizer)\n"
        "of integrations.data, which adds the column."
    )
