"""Read question-answer data in GSM8K's form and turn it into prompts for a policy.

A row has `question` and `answer`, a worked solution whose last line is `#### N`. Every row is
checked while it is read, so that a broken one is an error here and not in hour two of a run.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .rewards.number import format_number, parse_number

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
DEFAULT_CONFIG = {"openai/gsm8k": "main"}

SYSTEM = (
    "Solve the maths problem. Think first, then give the result, in exactly this form:\n"
    "<reasoning>\nyour steps\n</reasoning>\n<answer>\nthe number alone\n</answer>"
)
EXAMPLE_QUESTION = (
    "A baker fills 3 trays with 8 rolls each and sells 9 of the rolls. How many rolls are left?"
)
EXAMPLE_REPLY = (
    "<reasoning>\n3 trays of 8 rolls are 3 * 8 = 24 rolls. After selling 9, 24 - 9 = 15 are left.\n"
    "</reasoning>\n<answer>\n15\n</answer>"
)

_MARKS = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Question:
    """One checked row. `solution` is free of calculator marks; `reference` is the result alone.

    `level` is the row's own difficulty, "" where it has none.
    """

    question: str
    solution: str
    reference: str
    level: str = ""


@dataclass
class Questions:
    """The rows of one source, and what was left out with the reason for each."""

    source: str
    rows: list[Question] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


class BadRow(ValueError):
    """A row that cannot be used; the message names the file, the row and what to change."""


def strip_marks(text: str) -> str:
    """Remove calculator marks.

    >>> strip_marks("48/2 = <<48/2=24>>24 clips")
    '48/2 = 24 clips'
    """
    return _MARKS.sub("", text)


def check_row(row: Any, where: str) -> Question:
    """Check one row; `where` names it in the error."""
    if not isinstance(row, dict):
        raise BadRow(
            f'{where}: not an object. Write {{"question": "...", "answer": "... #### 72"}}.'
        )
    for column in ("question", "answer"):
        if column not in row:
            raise BadRow(
                f"{where}: no column '{column}' (found: {', '.join(map(str, row)) or 'none'}). "
                f"Rename the column that holds it to '{column}'."
            )
        if not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise BadRow(f"{where}: '{column}' is {kind}, not text. Put it in quotes.")
    question = row["question"].strip()
    body, mark, last = row["answer"].rpartition("####")
    if not question:
        raise BadRow(f"{where}: 'question' is empty. Fill it in or delete the row.")
    reference = parse_number(last) if mark else None
    if reference is None:
        shown = row["answer"].strip()[-40:]
        raise BadRow(
            f"{where}: 'answer' ends in {shown!r}. End it with a last line '#### N', N the correct "
            "number alone, e.g. '#### 72'."
        )
    level = "" if row.get("level") is None else str(row["level"])
    return Question(question, strip_marks(body).strip(), format_number(reference), level)


def load_questions(
    source: str | Path,
    split: str = "train",
    limit: int | None = None,
    bad_rows: Literal["error", "skip"] = "error",
    check: Callable[[Any, str], Question] = check_row,
) -> Questions:
    """Read the first `limit` good rows of `source`.

    `source` is a .jsonl, .json or .parquet file, or the name of a data set on the hub
    (`openai/gsm8k`, or `owner/name:config`), of which `split` is taken; `split` has no meaning for
    a file. The hub is asked only where no such file exists and the name has the form of a hub name.
    With `bad_rows="skip"` bad rows are counted and shown, and at least one good row must remain.
    `check` turns a row into a Question or raises BadRow: another form than GSM8K's.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or leave it out to read all rows.")
    if bad_rows not in ("error", "skip"):
        raise ValueError(f"bad_rows={bad_rows!r}: give 'error' or 'skip'.")
    questions = Questions(str(source))
    for where, row in raw_rows(str(source), split):
        if limit is not None and len(questions.rows) >= limit:
            break
        try:
            if isinstance(row, BadRow):
                raise row
            questions.rows.append(check(row, where))
        except BadRow as error:
            if bad_rows == "error":
                raise BadRow(
                    f"{error} Or leave such rows out: bad_rows='skip' (--bad-rows skip)."
                ) from None
            questions.skipped.append(str(error))
    if questions.skipped:
        shown = "\n  ".join(questions.skipped[:5])
        more = len(questions.skipped) - 5
        tail = f"\n  ... and {more} more" if more > 0 else ""
        count = f"{len(questions.skipped)} bad rows skipped, {len(questions)} kept"
        logger.warning("%s: %s:\n  %s%s", source, count, shown, tail)
    if not questions.rows:
        raise ValueError(f"{source}: no usable row. Each row needs 'question' and 'answer'.")
    return questions


def raw_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    """Yield (name of the row, row); a row that is not JSON comes as a BadRow."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{source}: a folder. Give a file in it, e.g. {source}/{split}.jsonl")
    if not path.exists() and path.suffix not in SUFFIXES and HUB_NAME.fullmatch(source):
        return _hub_rows(source, split)
    if not path.exists():
        raise FileNotFoundError(
            f"{source}: no such file. Give a {', '.join(SUFFIXES)} file, or the name of a data set "
            "on the hub such as openai/gsm8k."
        )
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".json":
        return _json_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise ValueError(f"{source}: unknown kind of file. Give one of {', '.join(SUFFIXES)}.")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                yield where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield where, BadRow(f"{where}: not UTF-8. Save the file as UTF-8.")
            except (json.JSONDecodeError, RecursionError) as error:
                problem = getattr(error, "msg", "nested too deeply")
                advice = "Write one JSON object per line."
                yield where, BadRow(f"{where}: not JSON ({problem}). {advice}")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadRow(
            f"{path}, line {error.lineno}: not JSON ({error.msg}). Write one list of objects; a "
            "file with one object per line must be named .jsonl."
        ) from None
    except UnicodeDecodeError:
        raise BadRow(f"{path}: not UTF-8. Save the file as UTF-8.") from None
    except RecursionError:
        raise BadRow(f"{path}: nested too deeply. Write a list of objects: [...]") from None
    if not isinstance(rows, list):
        raise BadRow(
            f"{path}: the file holds {type(rows).__name__}. Write a list of objects: [...]"
        )
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0]
        raise BadRow(f"{path}: not a readable parquet file ({problem}). Write it again.") from None
    rows = table.to_pylist()
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or DEFAULT_CONFIG.get(name), split=split)
    except Exception as error:  # many kinds: no network, no such name, config or split
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source}, split {split}: cannot be loaded ({problem}). Check name, split and network "
            f"(a config is written {name}:config), or download it and give the file."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source}, {split} row {number}", row


def takes_system_turn(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template writes a system turn; some refuse it, some drop it silently."""
    messages = [{"role": "system", "content": "\x01"}, {"role": "user", "content": "\x02"}]
    try:
        return "\x01" in str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may raise anything; all of it means "no"
        return False


def build_prompt(question: str, tokenizer: "PreTrainedTokenizerBase") -> str | list[dict[str, str]]:
    """Write the prompt: form, example, question; as messages where there is a chat template."""
    if tokenizer.chat_template is None:
        return f"{SYSTEM}\n\nProblem: {EXAMPLE_QUESTION}\n{EXAMPLE_REPLY}\n\nProblem: {question}\n"
    example = {"role": "assistant", "content": EXAMPLE_REPLY}
    last = {"role": "user", "content": question}
    if takes_system_turn(tokenizer):
        first = {"role": "user", "content": EXAMPLE_QUESTION}
        return [{"role": "system", "content": SYSTEM}, first, example, last]
    return [{"role": "user", "content": f"{SYSTEM}\n\n{EXAMPLE_QUESTION}"}, example, last]


def prompt_dataset(questions: Questions, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """Return TRL's data set: `prompt`, and for the rewards `question`, `solution`, `reference`."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": build_prompt(row.question, tokenizer),
                "question": row.question,
                "solution": row.solution,
                "reference": row.reference,
            }
            for row in questions.rows
        ]
    )
