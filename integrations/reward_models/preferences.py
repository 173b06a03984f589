"""Preference data in TRL's explicit form, read and checked row by row.

A row has `prompt`, `chosen` and `rejected`: texts, or lists of messages. Every row is checked
before anything is trained on it: a broken one is an error that names its row and its column.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from ..data import BadRow, raw_rows

logger = logging.getLogger(__name__)

TEXTS = ("prompt", "chosen", "rejected")
NUMBERS = ("margin", "gold_chosen", "gold_rejected")  # optional: TRL's margin, known true rewards


def check_pair(row: Any, where: str, implicit: bool = False) -> dict[str, Any]:
    """Return the columns of one pair that are used; BadRow, which names `where`, if one is unfit.

    With `implicit` the prompt may be missing: `chosen` and `rejected` then begin with it, which
    TRL's RewardTrainer takes too.
    """
    if not isinstance(row, dict):
        raise BadRow(
            f'{where}: not an object. Write {{"prompt": "...", "chosen": "...", '
            '"rejected": "..."}.'
        )
    texts = [c for c in TEXTS if not implicit or c != "prompt" or c in row]
    for column in texts:
        if column not in row:
            found = ", ".join(map(str, row)) or "none"
            advice = f"Rename the column that holds it to '{column}'."
            if column == "prompt" and {"chosen", "rejected"} <= set(row):
                advice = (
                    "If 'chosen' and 'rejected' begin with the prompt, split it off once with "
                    "dataset.map(trl.extract_prompt)."
                )
            raise BadRow(f"{where}: no column '{column}' (found: {found}). {advice}")
    for column in texts:
        _check_text(row[column], column, where)
    forms = {column: isinstance(row[column], list) for column in texts}
    if len(set(forms.values())) > 1:
        shown = ", ".join(f"'{c}' is {'messages' if m else 'text'}" for c, m in forms.items())
        raise BadRow(f"{where}: {shown}. Write all of them as text, or all as lists of messages.")
    if forms["chosen"] and "prompt" in texts and row["chosen"][0]["role"] != "assistant":
        role = row["chosen"][0]["role"]
        raise BadRow(
            f"{where}: 'chosen' begins with a turn of role {role!r}. It holds the reply alone; put "
            "the turns before the assistant's into 'prompt'."
        )
    if _same(row["chosen"], row["rejected"]):
        raise BadRow(
            f"{where}: 'chosen' equals 'rejected', so the pair prefers nothing. Delete the row."
        )
    numbers = [c for c in NUMBERS if row.get(c) is not None]
    for column in numbers:
        value = row[column]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise BadRow(f"{where}: '{column}' is {value!r}. Give a finite number.")
    golds = [c for c in numbers if c != "margin"]
    if len(golds) == 1:
        raise BadRow(
            f"{where}: '{golds[0]}' alone. Give gold_chosen and gold_rejected, or neither."
        )
    return {c: row[c] for c in texts} | {c: float(row[c]) for c in numbers}


def _check_text(value: Any, column: str, where: str) -> None:
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"{where}: '{column}' is empty. Fill it in or delete the row.")
        return
    if not isinstance(value, list):
        kind = type(value).__name__
        raise BadRow(
            f"{where}: '{column}' is {kind}, neither text nor a list of messages. Put it in "
            'quotes, or write [{"role": "user", "content": "..."}].'
        )
    if not value:
        raise BadRow(f"{where}: '{column}' is an empty list. Fill it in or delete the row.")
    for number, message in enumerate(value, start=1):
        name = f"{where}: '{column}', message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise BadRow(f'{name}: not a message. Write {{"role": "user", "content": "..."}}.')
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                kind = type(message[key]).__name__
                raise BadRow(f"{name}: '{key}' is {kind}, not text. Put it in quotes.")
            if not message[key].strip():
                raise BadRow(f"{name}: '{key}' is empty. Fill it in or delete the row.")


def _same(chosen: Any, rejected: Any) -> bool:
    """Equal but for white space around: a difference that no reader would call a preference."""
    if isinstance(chosen, str):
        return chosen.strip() == rejected.strip()
    plain = [[(m["role"], m["content"].strip()) for m in turns] for turns in (chosen, rejected)]
    return plain[0] == plain[1]


def _checked(
    rows: Iterable[tuple[str, Any]], bad_rows: str, implicit: bool
) -> Iterator[dict[str, Any] | str]:
    """Each good row as a dict, each row that is skipped as the reason."""
    first: tuple[str, dict[str, Any]] | None = None
    for where, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            pair = check_pair(row, where, implicit)
            if first is None:
                first = (where, pair)
            _check_alike(pair, where, *first)
        except BadRow as error:
            if bad_rows == "error":
                raise
            yield str(error)
        else:
            yield pair


def _check_alike(pair: dict[str, Any], where: str, other: str, model: dict[str, Any]) -> None:
    if set(pair) != set(model):
        column = sorted(set(pair) ^ set(model))[0]
        here, there = (where, other) if column in pair else (other, where)
        raise BadRow(
            f"{where}: column '{column}' is in {here} but not in {there}. Give it in all rows, or "
            "in none."
        )
    if isinstance(pair["chosen"], list) != isinstance(model["chosen"], list):
        kinds = ["text", "messages"]
        if isinstance(pair["chosen"], list):
            kinds.reverse()
        raise BadRow(
            f"{where}: 'chosen' is {kinds[0]}, but {kinds[1]} in {other}. Write all rows alike."
        )


def load_preferences(
    source: str | Path,
    split: str = "train",
    limit: int | None = None,
    bad_rows: Literal["error", "skip"] = "error",
) -> Dataset:
    """Read the first `limit` good pairs of `source` as TRL's preference data set.

    `source` is a .jsonl, .json or .parquet file, or the name of a data set on the hub
    (`owner/name`, `owner/name:config`), of which `split` is taken. Besides prompt, chosen and
    rejected the optional columns margin, gold_chosen and gold_rejected are kept. With
    `bad_rows="skip"` bad rows are counted and shown, and at least one good row must remain.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or leave it out to read all rows.")
    if bad_rows not in ("error", "skip"):
        raise ValueError(f"bad_rows={bad_rows!r}: give 'error' or 'skip'.")
    pairs: list[dict[str, Any]] = []
    skipped: list[str] = []
    try:
        for result in _checked(raw_rows(str(source), split), bad_rows, implicit=False):
            if isinstance(result, str):
                skipped.append(result)
                continue
            pairs.append(result)
            if len(pairs) == limit:
                break
    except BadRow as error:
        raise BadRow(f"{error} Or leave such rows out: bad_rows='skip'.") from None
    if skipped:
        shown = "\n  ".join(skipped[:5])
        more = f"\n  ... and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        count = f"{len(skipped)} bad rows skipped, {len(pairs)} kept"
        logger.warning("%s: %s:\n  %s%s", source, count, shown, more)
    if not pairs:
        raise ValueError(f"{source}: no usable row. Each row needs prompt, chosen and rejected.")
    return Dataset.from_list(pairs)


def check_preferences(dataset: Dataset, name: str = "dataset", implicit: bool = False) -> None:
    """Check every row of a loaded data set; BadRow names the first unfit one, counted from 0."""
    if len(dataset) == 0:
        raise ValueError(f"{name}: no row. Give at least one pair.")
    used: Any = [c for c in (*TEXTS, *NUMBERS) if c in dataset.column_names]
    rows = ((f"{name}, row {i}", row) for i, row in enumerate(dataset.select_columns(used)))
    for _ in _checked(rows, "error", implicit):
        pass
