"""What a policy makes of word problems by sampling: accuracy and strict format, by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data import check_row
from ..rewards.correctness import has_strict_format, is_correct

PROMPT, COMPLETION = 100, 120  # tokens, at most
BATCH = 50


def prompt(question: str) -> str:
    r"""What the policy is given.

    >>> prompt("What is 2 + 3?")
    'Problem: What is 2 + 3?\n'
    """
    return f"Problem: {question}\n"


def replies(
    model: Any, tokenizer: Any, questions: Sequence[str], seed: int = 0, temperature: float = 1.0
) -> list[str]:
    """One sampled reply of at most `COMPLETION` tokens per question; greedy at temperature 0."""
    import torch

    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    texts: list[str] = []
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(questions), BATCH):
            part = [prompt(question) for question in questions[start : start + BATCH]]
            batch = tokenizer(part, return_tensors="pt", padding=True, padding_side="left")
            output = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=COMPLETION,
                **how,
            )
            new = output[:, batch.input_ids.shape[1] :]
            texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def sampled(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], seed: int = 0
) -> dict[str, Any]:
    """Shares of one sampled reply per row: `levels` (level: shares) and `all`.

    The shares, 0 to 1: `accuracy` and `strict_format` at temperature 1, `accuracy_cool` at .7 and
    `accuracy_greedy`. `questions` counts the rows.
    """
    checked = [check_row(dict(row), f"row {i}") for i, row in enumerate(rows, start=1)]
    questions = [row.question for row in checked]
    said = {
        name: replies(model, tokenizer, questions, seed, temperature)
        for name, temperature in (("", 1.0), ("_cool", 0.7), ("_greedy", 0.0))
    }
    marks = [
        {f"accuracy{n}": is_correct(texts[i], row.reference) for n, texts in said.items()}
        | {"strict_format": has_strict_format(said[""][i])}
        for i, row in enumerate(checked)
    ]
    levels = sorted({row["level"] for row in rows if "level" in row})
    by_level = {
        str(level): _shares(
            [m for m, row in zip(marks, rows, strict=True) if row["level"] == level]
        )
        for level in levels
    }
    return {"all": _shares(marks), "levels": by_level}


def _shares(marks: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    shares = {key: round(sum(m[key] for m in marks) / len(marks), 4) for key in marks[0]}
    return {"questions": len(marks), **shares}
