"""Preference pairs from labelled model solutions of questions, with a shift to other models.

GSM8K comes with such solutions: example_model_solutions.jsonl holds four real language models'.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ..data import BadRow, raw_rows, strip_marks

HUMAN = "human"  # the source of a question's own worked solution


def solution_pairs(
    source: str | Path,
    train: Sequence[str] = ("6b_finetuning", "6b_verification"),
    shift: Sequence[str] = ("175b_finetuning", "175b_verification"),
    *,
    held_out: float = 0.3,
    max_pairs: int = 4,
    human: bool = False,
    seed: int = 0,
) -> DatasetDict:
    """Pair right with wrong model solutions of the same question, for reward models of arithmetic.

    A row of `source` has `question`, `ground_truth` and per model a column
    `{"is_correct": bool, "solution": text}`, as GSM8K's example_model_solutions.jsonl has it. The
    result has three parts: "train" (the `train` models on the train questions), "held_out" (the
    same models on the held-out questions: in distribution) and "shift" (the `shift` models on the
    held-out questions: out of distribution). No question is on both sides. `source` names the
    models of the part, `chosen_source` and `rejected_source` the two models of a pair: where one
    model is right more often than the other its style is a cue, which these columns let you see.

    At most `max_pairs` pairs per question are drawn. With `human` the question's own worked
    solution counts as a right one: more pairs, but then a human style is a cue as well.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: give a share of the questions between 0 and 1.")
    if max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs}: give at least 1.")
    if not train or not shift:
        raise ValueError("train and shift: give at least one model's column for each.")
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, row in raw_rows(str(source), "train"):
        if isinstance(row, BadRow):
            raise row
        rows.append((where, _check_solutions(row, where, (*train, *shift))))
    questions = sorted({row["question"] for _, row in rows})
    if len(questions) < 2:
        raise ValueError(f"{source}: fewer than 2 questions, so none can be held out. Give more.")
    random.Random(seed).shuffle(questions)
    count = min(max(1, round(held_out * len(questions))), len(questions) - 1)
    apart = set(questions[:count])
    result = DatasetDict()
    for part, models in (("train", train), ("held_out", train), ("shift", shift)):
        chosen = [(w, r) for w, r in rows if (r["question"] in apart) == (part != "train")]
        pairs = [p for w, r in chosen for p in _pairs(r, w, models, max_pairs, human, seed)]
        if not pairs:
            raise ValueError(
                f"{source}: no question of part '{part}' has both a right and a wrong solution by "
                f"{', '.join(models)}. Give more rows or models, another held_out, or human=True."
            )
        result[part] = Dataset.from_list(pairs)
    return result


def _check_solutions(row: Any, where: str, models: Sequence[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow(f'{where}: not an object. Write {{"question": "...", ...}}.')
    for column in ("question", "ground_truth", *models):
        if column not in row:
            found = ", ".join(map(str, row)) or "none"
            raise BadRow(
                f"{where}: no column '{column}' (found: {found}). Name the models' columns in "
                "`train` and `shift`."
            )
    for column in ("question", "ground_truth"):
        if not isinstance(row[column], str) or not row[column].strip():
            raise BadRow(f"{where}: '{column}' is no text or empty. Fill it in or delete the row.")
    for model in models:
        given = row[model]
        right = given.get("is_correct") if isinstance(given, dict) else None
        text = given.get("solution") if isinstance(given, dict) else None
        if not isinstance(right, bool) or not isinstance(text, str) or not text.strip():
            raise BadRow(
                f"{where}: '{model}' is not a labelled solution. Write "
                '{"is_correct": true, "solution": "..."}.'
            )
    return row


def _pairs(
    row: dict[str, Any], where: str, models: Sequence[str], most: int, human: bool, seed: int
) -> list[dict[str, str]]:
    right: dict[str, str] = {}  # text without calculator marks -> who wrote it
    wrong: dict[str, str] = {}
    for model in models:
        side = right if row[model]["is_correct"] else wrong
        side.setdefault(strip_marks(row[model]["solution"]).strip(), model)
    if human:
        right.setdefault(strip_marks(row["ground_truth"]).strip(), HUMAN)
    both = right.keys() & wrong.keys()
    if both:
        text = min(both)
        raise BadRow(
            f"{where}: the same solution is labelled right in '{right[text]}' and wrong in "
            f"'{wrong[text]}'. Correct one of the labels or delete the row."
        )
    pairs = [(chosen, rejected) for chosen in right for rejected in wrong]
    # seeded by the question too: what is drawn for one does not hang on which others are there
    random.Random(f"{seed} {row['question']}").shuffle(pairs)
    return [
        {
            "prompt": row["question"].strip() + "\n",
            "chosen": chosen,
            "rejected": rejected,
            "source": "+".join(models),
            "chosen_source": right[chosen],
            "rejected_source": wrong[rejected],
        }
        for chosen, rejected in pairs[:most]
    ]
