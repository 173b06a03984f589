"""What the stages of an RLHF run read and write: prompts, demonstrations, JSON lines; all checked.

Every row is checked before anything is trained: a broken one is an error that names row and column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..cache import write_text
from ..data import BadRow, raw_rows
from ..reward_models.preferences import _check_text
from .stages import Work

Prompt = str | list[dict[str, str]]


def _column(row: Any, column: str, where: str, example: str) -> Any:
    if not isinstance(row, dict):
        raise BadRow(f"{where}: not an object. Write {example}.")
    if column not in row:
        found = ", ".join(map(str, row)) or "none"
        raise BadRow(
            f"{where}: no column '{column}' (found: {found}). Rename the column that holds it to "
            f"'{column}'."
        )
    _check_text(row[column], column, where)
    if isinstance(row[column], list):
        return [{"role": m["role"], "content": m["content"]} for m in row[column]]
    return row[column]


def check_prompt(row: Any, where: str) -> Prompt:
    """The prompt of a row; BadRow, which names `where` and the column, if it is unfit."""
    prompt = _column(row, "prompt", where, '{"prompt": "..."}')
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise BadRow(
            f"{where}: 'prompt' ends with a turn of the assistant. It ends where the policy is to "
            "reply; delete that turn."
        )
    return prompt


def check_demonstration(row: Any, where: str) -> dict[str, Any]:
    """Prompt and completion of a row; BadRow if one of them is unfit."""
    prompt = check_prompt(row, where)
    completion = _column(row, "completion", where, '{"prompt": "...", "completion": "..."}')
    if isinstance(prompt, list) != isinstance(completion, list):
        kinds = ["messages" if isinstance(v, list) else "text" for v in (prompt, completion)]
        raise BadRow(
            f"{where}: 'prompt' is {kinds[0]}, 'completion' is {kinds[1]}. Write both as text, or "
            "both as lists of messages."
        )
    if isinstance(completion, list) and completion[0]["role"] != "assistant":
        role = completion[0]["role"]
        raise BadRow(
            f"{where}: 'completion' begins with a turn of role {role!r}. Put it into 'prompt'."
        )
    return {"prompt": prompt, "completion": completion}


def _rows(
    source: str, split: str, limit: int | None, check: Callable[[Any, str], Any], kind: str
) -> Iterator[Any]:
    first: tuple[str, bool] | None = None
    for number, (where, row) in enumerate(raw_rows(source, split)):
        if number == limit:
            break
        if isinstance(row, BadRow):
            raise row
        value = check(row, where)
        chat = isinstance(value["prompt"] if isinstance(value, dict) else value, list)
        first = first or (where, chat)
        if chat != first[1]:
            kinds = ("messages", "text") if chat else ("text", "messages")
            raise BadRow(
                f"{where}: 'prompt' is {kinds[0]}, but {kinds[1]} in {first[0]}. Write all alike."
            )
        yield value
    if first is None:
        raise ValueError(f"{source}: no row. Each row needs {kind}.")


def load_prompts(source: str, split: str = "train", limit: int | None = None) -> list[Prompt]:
    """The prompts of a .jsonl, .json or .parquet file or a data set on the hub, all checked."""
    return list(_rows(source, split, limit, check_prompt, "a 'prompt'"))


def load_demonstrations(
    source: str, split: str = "train", limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows with prompt and completion for SFT, all checked."""
    return list(_rows(source, split, limit, check_demonstration, "'prompt' and 'completion'"))


def distinct(prompts: Sequence[Any]) -> list[Any]:
    """Each prompt once, in the order of first occurrence."""
    return list({key_of(prompt): prompt for prompt in prompts}.values())


def key_of(prompt: Any) -> str:
    """A prompt as something that can be looked up."""
    return json.dumps(prompt, sort_keys=True)


def hold_out(prompts: Sequence[Any], wanted: int, source: str) -> tuple[list[Any], list[Any]]:
    """(prompts to train on, the last `wanted` distinct ones, but at most half of them)."""
    if wanted < 1:
        raise ValueError(f"eval_prompts={wanted}: at least 1 prompt must be held out.")
    each = distinct(prompts)
    size = min(wanted, len(each) // 2)
    if not size:
        raise ValueError(
            f"{source}: {len(each)} prompt is too few to hold one out. Add rows with other prompts."
        )
    return each[:-size], each[-size:]


def data_fingerprint(source: str | None) -> str | None:
    """A hash of a data file's content; of a hub data set its name; None for None."""
    if source is None:
        return None
    path = Path(source).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else source


def model_fingerprint(name: str | None) -> Any:
    """What a model is known by: name, size and time of each file of a folder; a hub name."""
    if name is None or not Path(name).expanduser().is_dir():
        return name
    files = sorted(p for p in Path(name).expanduser().iterdir() if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as JSON lines, the whole file or nothing."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Any]:
    """The rows of a file that `write_rows` has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def in_batches(
    work: Work,
    name: str,
    text: str,
    total: int,
    size: int,
    make: Callable[[int, int], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The rows that `make(start, end)` gives for all of `total`, `size` at once.

    Each batch is kept in the scratch folder, so that a killed stage goes on where it was.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, total, size):
        end = min(start + size, total)
        kept = work.scratch / f"{start:07d}.jsonl"
        if not kept.exists():
            write_rows(kept, make(start, end))
        rows += read_rows(kept)
        work.say(name, end, total, text)
    return rows
