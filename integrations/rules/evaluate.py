"""pass@1 over k samples a question, with intervals, by level; resumable, over several processes.

Questions are written in fixed batches, each with a random seed of its own, so that the result does
not depend on how often the work was broken off or on how many processes share it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache import fingerprint, write_text
from ..evaluate import wilson
from ..processes import is_main, rank, wait, world_size
from ..progress import Say, silent
from ..watch.monitor import read_rows

QUINTILES = ("hardest", "hard", "middle", "easy", "easiest")
SAMPLES, RESULT = "samples.jsonl", "evaluation.json"
TOLD = {"start": "start policy", "run": "evaluation"}


@dataclass
class Evaluation:
    """Held-out questions, and how completions of them are written and graded.

    `complete(model, prompts, seed)` gives a text for each prompt; `correct(texts, columns)` and
    `formatted(text)` grade them. `columns` holds one list per column, a value per question; a
    column `level` is the questions' own difficulty.
    """

    prompts: Sequence[Any]
    columns: dict[str, list[Any]]
    complete: Callable[[Any, list[Any], int], list[str]]
    correct: Callable[[list[str], dict[str, list[Any]]], list[float]]
    formatted: Callable[[str], bool]
    samples: int = 4  # completions per question
    batch: int = 64  # completions written at once
    seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # what else decides the completions

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"eval_samples={self.samples}: at least 1 completion per question")
        if not self.prompts:
            raise ValueError("no held-out question to evaluate on; hold out at least 1")

    def groups(self) -> list[range]:
        """The questions of each batch."""
        size = max(1, self.batch // self.samples)
        return [
            range(start, min(start + size, len(self.prompts)))
            for start in range(0, len(self.prompts), size)
        ]

    def name(self, stream: str) -> str:
        """A fingerprint of all that decides the rows: those of another evaluation are not mixed in.

        `stream` is "start" or "run": their completions have random seeds of their own.
        """
        plain = {"prompts": list(self.prompts), "columns": self.columns, "facts": self.facts}
        numbers = {"samples": self.samples, "seed": self.seed, "batch": self.batch}
        return fingerprint(plain | numbers | {"stream": stream})


def pass_at_1(shares: Sequence[float], samples: int) -> dict[str, Any]:
    """Mean of the questions' shares of right samples, with a 95 % interval over questions.

    A Wilson interval whose number of trials is the one at which independent trials would have the
    variance seen between questions: k samples of one question count as 1 trial where they all
    agree, as k where questions do not differ. None for no question.

    >>> pass_at_1([1.0, 0.0, 0.5, 0.5], samples=2)["mean"]
    0.5
    """
    n = len(shares)
    if not n:
        return {"n": 0, "mean": None, "low": None, "high": None}
    mean = statistics.fmean(shares)
    trials = float(n)
    if n > 1 and 0 < mean < 1:
        variance = statistics.variance(shares) / n
        most = n * samples
        trials = min(most, max(n, mean * (1 - mean) / variance)) if variance > 0 else most
    low, high = wilson(min(1.0, max(0.0, mean)), max(1, round(trials)))
    return {"n": n, "mean": mean, "low": low, "high": high}


def write_samples(
    evaluation: Evaluation, model: Any, folder: Path, say: Say = silent, stream: str = "run"
) -> list[dict[str, Any]]:
    """One row per question: `right` and `formatted`, a 0 or 1 per sample, and the `texts`.

    Rows that `folder` holds already are kept; each process writes a file of its own.
    """
    key = evaluation.name(stream)
    parts = sorted(folder.glob(f"*{SAMPLES}"))
    done = {row["index"] for part in parts for row in read_rows(part) if row["key"] == key}
    wait()  # every process has seen the same files before one of them grows
    mine = folder / (SAMPLES if world_size() == 1 else f"rank{rank()}-{SAMPLES}")
    folder.mkdir(parents=True, exist_ok=True)
    if mine.exists():  # a line that was cut in the middle would hide those after it
        kept = [json.dumps(row) + "\n" for row in read_rows(mine)]
        write_text(mine, "".join(kept))
    groups = evaluation.groups()
    with mine.open("a", encoding="utf-8") as file:
        for number, group in enumerate(groups):
            if number % world_size() != rank() or done.issuperset(group):
                continue
            for row in _one_group(evaluation, model, stream, number, group):
                file.write(json.dumps({"key": key} | row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            say(TOLD[stream], number + 1, len(groups), "writing and grading")
    wait()
    rows: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob(f"*{SAMPLES}")):
        rows |= {row["index"]: row for row in read_rows(part) if row["key"] == key}
    missing = set(range(len(evaluation.prompts))) - rows.keys()
    assert not missing, f"questions without samples: {sorted(missing)[:5]}"
    wait()
    return [rows[index] for index in sorted(rows)]


def _one_group(
    evaluation: Evaluation, model: Any, stream: str, number: int, group: range
) -> list[dict[str, Any]]:
    k = evaluation.samples
    prompts = [evaluation.prompts[i] for i in group for _ in range(k)]
    # Not the start policy's seeds: half of its samples chose the quintiles, and a policy that
    # changed little would draw them again.
    seed = int(fingerprint([evaluation.seed, stream, number]), 16) % 2**31
    texts = evaluation.complete(model, prompts, seed)
    columns = {
        name: [values[i] for i in group for _ in range(k)]
        for name, values in evaluation.columns.items()
    }
    right = evaluation.correct(texts, columns)
    rows = []
    for place, index in enumerate(group):
        here = slice(place * k, (place + 1) * k)
        formatted = [int(evaluation.formatted(text)) for text in texts[here]]
        row = {"index": index, "right": right[here], "formatted": formatted}
        rows.append(row | {"texts": texts[here]})
    return rows


def quintiles(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[float], int]:
    """The difficulty of each question by a policy's own pass rate: QUINTILES, a fifth each.

    The first half of the samples decides the quintile; the share of right ones among the other
    half is returned beside it, with how many samples that are. A question that is in the hardest
    fifth by bad luck would otherwise seem to improve by itself. Questions of the same rate are
    put in an order that does not depend on anything else of them.
    """
    half = len(rows[0]["right"]) // 2
    if not half:
        raise ValueError("quintiles need at least 2 samples of each question")
    rates = [statistics.fmean(row["right"][:half]) for row in rows]
    rng = random.Random("quintiles")
    order = sorted(range(len(rows)), key=lambda i: (rates[i], rng.random()))
    names = [""] * len(rows)
    for place, i in enumerate(order):
        names[i] = QUINTILES[place * len(QUINTILES) // len(rows)]
    fresh = [row["right"][half:] for row in rows]
    return names, [statistics.fmean(values) for values in fresh], len(fresh[0])


def by_group(
    groups: Sequence[Any], shares: Sequence[float], samples: int, order: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """pass@1 of each group of questions."""
    names = list(order) or sorted(set(groups), key=str)
    return [
        {"level": name}
        | pass_at_1([s for g, s in zip(groups, shares, strict=True) if g == name], samples)
        for name in names
    ]


def summarise(
    evaluation: Evaluation, rows: Sequence[dict[str, Any]], levels: Sequence[str] | None = None
) -> dict[str, Any]:
    """pass@1 over all questions, by the questions' own level and by the start policy's quintile."""
    shares = [statistics.fmean(row["right"]) for row in rows]
    formatted = [statistics.fmean(row["formatted"]) for row in rows]
    lengths = [len(text) for row in rows for text in row["texts"]]
    k = evaluation.samples
    result: dict[str, Any] = {
        "questions": len(rows),
        "samples": k,
        "pass_at_1": pass_at_1(shares, k),
        "formatted": pass_at_1(formatted, k),
        "characters": statistics.fmean(lengths),
        "solved_once": sum(share > 0 for share in shares) / len(shares),
    }
    if "level" in evaluation.columns:
        result["by_level"] = by_group(evaluation.columns["level"], shares, k)
    if levels:
        result["by_quintile"] = by_group(levels, shares, k, QUINTILES)
    return result


def evaluate_start(
    evaluation: Evaluation, load: Callable[[], Any], folder: Path, say: Say = silent
) -> dict[str, Any]:
    """pass@1 of the start policy and the quintile of each question, once for all arms.

    Written to `folder`/evaluation.json; `load()` gives the model, only if there is work to do.
    """
    key, path = evaluation.name("start"), folder / RESULT
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["key"] != key:
            raise ValueError(
                f"{path} is of another start policy, other questions or other sampling. Choose "
                "another --output: one folder compares methods from one start."
            )
        return result
    rows = write_samples(evaluation, load(), folder, say, "start")
    result = summarise(evaluation, rows) | {"key": key}
    if evaluation.samples > 1:  # with one sample, the choice would be the measurement
        levels, fresh, count = quintiles(rows)
        result["quintiles"] = levels
        result["by_quintile"] = by_group(levels, fresh, count, QUINTILES)
    if is_main():
        write_text(path, json.dumps(result, indent=2, allow_nan=False))
    wait()
    return result


def evaluate_run(
    evaluation: Evaluation, model: Any, folder: Path, start: Path, say: Say = silent
) -> dict[str, Any]:
    """pass@1 of a trained policy into `folder`/evaluation.json, beside the start policy's."""
    path = start / RESULT
    base = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if base is not None and base["key"] != evaluation.name("start"):
        base = None  # of another start policy or other questions
    levels = base.get("quintiles") if base else None
    rows = write_samples(evaluation, model, folder / "evaluation", say)
    result = summarise(evaluation, rows, levels) | {"key": evaluation.name("run")}
    if base is not None:
        result["base"] = {k: v for k, v in base.items() if k not in ("key", "quintiles", "base")}
    if is_main():
        write_text(folder / RESULT, json.dumps(result, indent=2, allow_nan=False))
    return result
