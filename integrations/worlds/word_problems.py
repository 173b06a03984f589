"""Generated word problems in GSM8K's form: a story, a worked solution, and a level of difficulty.

A problem is a chain: a story opens with a quantity, each sentence changes it by one operation, and
the last sentence asks for it. The level is the number of operations, 1 to 4; with it grow the
numbers. Sentences come from several themes, so one skeleton is seldom seen twice in a row.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import write_text
from .word_problem_texts import BOYS, GIRLS, THEMES, Theme

LEVELS = (1, 2, 3, 4)
LARGEST = {1: 20, 2: 20, 3: 30, 4: 50}  # the largest number in a question
MOST = {1: 100, 2: 200, 3: 300, 4: 500}  # the largest result of a step
FACTORS = (2, 3, 4, 5, 6, 7, 8, 9)  # of multiplications and divisions
PARTS = {2: "half", 3: "a third", 4: "a quarter"}
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "both": "+"}

# Tenths of all questions: a question belongs to the split that its text hashes to.
SPLITS = {"sft": range(7), "train": range(7, 9), "test": range(9, 10)}


@dataclass(frozen=True)
class _Step:
    """One operation of a chain: which one, its sentence, its line of the solution, the question.

    `line` and `ask` are empty where the theme's own serve.
    """

    kind: str  # a key of SIGNS, or "both": add what there was before the last step
    sentence: str
    line: str = ""
    ask: str = ""


def generate(
    count: int, seed: int = 0, levels: Sequence[int] = LEVELS, split: str = "sft"
) -> list[dict[str, Any]]:
    """`count` different problems: rows of `question`, `answer` ("... #### N") and `level`.

    The levels are dealt in turn, so each is met equally often. Equal arguments give equal rows.
    `split` is "sft", "train" or "test": a hash of the question decides which of them it belongs
    to, so rows of two splits never share a question, whatever their seeds. Questions that differ
    in names or numbers alone can fall into different splits.

    Raises ValueError for a count below 1, an unknown level or split.

    >>> row, = generate(1, seed=4, levels=[2])
    >>> print(row["question"])
    Betty has saved $18. Carla has $9 more than Betty. How much money do they have together?
    >>> print(row["answer"])
    Carla has 18 + 9 = 27 dollars.
    Together they have 27 + 18 = 45 dollars.
    #### 45
    """
    if count < 1:
        raise ValueError(f"count={count}: give at least 1.")
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels={list(levels)}: give some of {', '.join(map(str, LEVELS))}.")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: give one of {', '.join(SPLITS)}.")
    rng = random.Random(f"{seed} {split}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        level = levels[len(rows) % len(levels)]
        row = _draw(rng, level)
        if row is not None and split_of(row["question"]) == split:
            rows.setdefault(row["question"], row)
    return list(rows.values())


def write(
    path: Path, count: int, seed: int = 0, levels: Sequence[int] = LEVELS, split: str = "sft"
) -> list[dict[str, Any]]:
    """Write the rows of `generate` to `path`, one JSON object per line, and return them."""
    rows = generate(count, seed, levels, split)
    write_rows(path, rows)
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def split_of(question: str) -> str:
    """The split that a question belongs to, by a hash of its text.

    >>> split_of("Ava has 2 apples and buys 3 more. How many apples does Ava have?")
    'sft'
    """
    tenth = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
    return next(name for name, tenths in SPLITS.items() if tenth in tenths)


def _draw(rng: random.Random, level: int) -> dict[str, Any] | None:
    """One problem, or None where the numbers drawn do not fit (most often a division)."""
    theme = rng.choice(THEMES)
    words = _words(rng, theme)
    opening, steps = _plan(rng, theme, level)
    largest, most = LARGEST[level], MOST[level]
    told, values, expression = _open(rng, theme, opening, largest)
    sentences = [opening.format(**words, **told)]
    lines = [theme.line.format(e=expression, **words)] if expression else []
    ask = theme.ask
    for step in steps:
        done = _apply(rng, step, values, largest)
        if done is None or not 2 <= done[1] <= most:
            return None
        number, value = done
        told = {**words, "b": number, "part": PARTS.get(number, "")}
        sentences.append(step.sentence.format(**told))
        expression = f"{values[-1]} {SIGNS[step.kind]} {number} = {value}"
        lines.append((step.line or theme.line).format(e=expression, **told))
        values.append(value)
        ask = (step.ask,) if step.ask else ask
    if values[-1] > most:  # the opening alone can be too large
        return None
    sentences.append(rng.choice(ask).format(**words))
    question = " ".join(sentence for sentence in sentences if sentence)
    answer = "\n".join(lines) + f"\n#### {values[-1]}"
    return {"question": question, "answer": answer, "level": level}


def _open(
    rng: random.Random, theme: Theme, opening: str, largest: int
) -> tuple[dict[str, int], list[int], str]:
    """The numbers of an opening, the quantity it makes, and its equation (plain ones have none)."""
    if opening in theme.plain:
        first = rng.randint(2, largest)
        return {"a": first}, [first], ""
    first, second = rng.randint(2, largest), rng.randint(2, largest)
    value, sign = first + second, "+"
    if opening in theme.products:
        first, second = rng.choice(FACTORS), rng.choice((*FACTORS, 10, 12))
        value, sign = first * second, "*"
    return {"a": first, "b": second}, [value], f"{first} {sign} {second} = {value}"


def _words(rng: random.Random, theme: Theme) -> dict[str, str]:
    """Who and what a story is about."""
    boy = rng.random() < 0.5
    name = rng.choice(BOYS if boy else GIRLS)
    friend = rng.choice([other for other in BOYS + GIRLS if other != name])
    he, him, his = ("he", "him", "his") if boy else ("she", "her", "her")
    words = {"name": name, "friend": friend, "he": he, "him": him, "his": his, "He": he.title()}
    for key, choices in theme.words.items():
        words[key] = rng.choice(choices)
    return words


def _plan(rng: random.Random, theme: Theme, level: int) -> tuple[str, list[_Step]]:
    """The opening and the steps that make `level` operations together."""
    first = rng.random() < 0.5  # the opening is itself an operation
    opening = rng.choice(theme.sums + theme.products if first else theme.plain)
    left = level - first
    # the last one or two operations may turn to another person, a price, a share
    ending: list[_Step] = []
    if left >= 2 and theme.pairs and rng.random() < 0.3:
        first, second = rng.choice(theme.pairs)
        ending = [_Step(*first), _Step(*second)]
    elif left >= 1 and rng.random() < 0.5:
        ending = [_Step(*rng.choice(theme.endings))]
    changes: list[_Step] = []
    for _ in range(left - len(ending)):
        kind = rng.choice(("add", "add", "sub", "sub", "mul", "div"))
        told = {step.sentence for step in changes}
        new = [text for text in theme.changes[kind] if text not in told]
        changes.append(_Step(kind, rng.choice(new or theme.changes[kind])))
    return opening, changes + ending


def _apply(
    rng: random.Random, step: _Step, values: Sequence[int], largest: int
) -> tuple[int, int] | None:
    """The operand and the result of a step on the last of `values`; None where there is none."""
    value = values[-1]
    if step.kind == "both":
        return values[-2], value + values[-2]
    if step.kind == "add":
        number = rng.randint(2, largest)
        return number, value + number
    if step.kind == "sub":
        if value < 4:
            return None
        number = rng.randint(2, min(largest, value - 2))
        return number, value - number
    if step.kind == "mul":
        number = rng.choice(FACTORS)
        return number, value * number
    fits = PARTS if "{part}" in step.sentence else FACTORS
    fits = [number for number in fits if value % number == 0 and value // number > 1]
    if not fits:
        return None
    number = rng.choice(fits)
    return number, value // number
