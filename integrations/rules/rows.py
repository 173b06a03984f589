"""Rows of mathematics for rule-based RL: GSM8K's form and MATH's, and the prompts for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..data import (
    EXAMPLE_QUESTION,
    EXAMPLE_REPLY,
    SYSTEM,
    BadRow,
    Question,
    Questions,
    check_row,
    load_questions,
    raw_rows,
    takes_system_turn,
)
from ..rewards.latex import boxes
from ..rewards.math_answer import check_reference

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Form = Literal["gsm8k", "math"]
FORMS = ("gsm8k", "math")
STYLES = ("one-shot", "zero-shot", "question")

MATH_SYSTEM = (
    "Solve the problem. Reason step by step, and write the final result once, within \\boxed{}."
)
MATH_EXAMPLE = "Let $f(x) = 2x - 1$. For which $x$ is $f(x) = \\frac{1}{2}$?"
MATH_REPLY = (
    "We need $2x - 1 = \\frac{1}{2}$. First, add $1$ to both sides: $2x = \\frac{3}{2}$. "
    "Therefore $x = \\frac{3}{4}$.\nThe result is $\\boxed{\\frac{3}{4}}$."
)


def check_math_row(row: Any, where: str) -> Question:
    r"""Check a row of MATH: `problem`, `solution` with its result in ``\boxed{}``, `level` if any.

    A column `answer` (as in MATH-500) is the result where the row has one.
    """
    if not isinstance(row, dict):
        raise BadRow(f'{where}: not an object. Write {{"problem": "...", "solution": "..."}}.')
    for column in ("problem", "solution"):
        if not isinstance(row.get(column), str) or not row[column].strip():
            found = ", ".join(map(str, row)) or "none"
            raise BadRow(f"{where}: no text in column '{column}' (columns: {found}). Fill it in.")
    solution, answer = row["solution"].strip(), row.get("answer")
    if answer is None or answer == "":
        found = boxes(solution) or []
        if len(set(found)) > 1:
            raise BadRow(
                f"{where}: 'solution' has {len(set(found))} different results in \\boxed{{}}. "
                "Leave one, or write the result alone into a column 'answer'."
            )
        result = found[0] if found else ""
    elif isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise BadRow(f"{where}: 'answer' is {answer!r}. Write the result as text or a number.")
    else:
        result = str(answer).strip()
    if not result:
        raise BadRow(
            f"{where}: 'solution' has no result in \\boxed{{}}. Write the result there, or alone "
            "into a column 'answer'."
        )
    try:
        check_reference(result)
    except ValueError as error:
        raise BadRow(f"{where}: the result cannot be compared with: {error}") from None
    level = "" if row.get("level") is None else str(row["level"])
    return Question(row["problem"].strip(), solution, result, level)


def form_of(source: str, split: str) -> Form:
    """Whether a source has MATH's columns or GSM8K's, from its first row."""
    for _, row in raw_rows(source, split):
        if isinstance(row, dict):  # not a broken line
            return "math" if "problem" in row and "question" not in row else "gsm8k"
    return "gsm8k"


def load_rows(
    source: str,
    split: str,
    limit: int | None,
    bad_rows: Literal["error", "skip"],
    form: Form,
) -> Questions:
    """The first `limit` good rows of a file or hub data set, in the given form."""
    check = check_math_row if form == "math" else check_row
    return load_questions(source, split, limit, bad_rows, check)


def build_prompt(
    question: str, tokenizer: PreTrainedTokenizerBase, form: Form, style: str
) -> str | list[dict[str, str]]:
    """The prompt: as messages where the tokenizer has a chat template, else as text.

    Styles: "one-shot" (instruction, an example, the question: the paper's), "zero-shot"
    (instruction and question), "question" (the question alone, for a policy that has learnt the
    form from demonstrations).
    """
    if style not in STYLES:
        raise ValueError(f"prompt={style!r}: give one of {', '.join(STYLES)}")
    math = form == "math"
    system = MATH_SYSTEM if math else SYSTEM
    example, reply = (MATH_EXAMPLE, MATH_REPLY) if math else (EXAMPLE_QUESTION, EXAMPLE_REPLY)
    if tokenizer.chat_template is None:
        shot = f"Problem: {example}\n{reply}\n\n" if style == "one-shot" else ""
        head = "" if style == "question" else f"{system}\n\n"
        return f"{head}{shot}Problem: {question}\n"
    last = {"role": "user", "content": question}
    if style == "question":
        return [last]
    shots = [{"role": "user", "content": example}, {"role": "assistant", "content": reply}]
    messages = [*(shots if style == "one-shot" else []), last]
    if takes_system_turn(tokenizer):
        return [{"role": "system", "content": system}, *messages]
    # templates that refuse or drop a system turn: the instruction opens the first user turn
    first = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
    return [first, *messages[1:]]


def prompt_rows(
    questions: Questions, tokenizer: PreTrainedTokenizerBase, form: Form, style: str
) -> Dataset:
    """TRL's data set: `prompt`, and for the rewards `question`, `solution`, `reference`, `level`.

    `level` is there only if every row has one.
    """
    from datasets import Dataset

    levels = all(row.level for row in questions.rows)
    return Dataset.from_list(
        [
            {
                "prompt": build_prompt(row.question, tokenizer, form, style),
                "question": row.question,
                "solution": row.solution,
                "reference": row.reference,
                **({"level": row.level} if levels else {}),
            }
            for row in questions.rows
        ]
    )
