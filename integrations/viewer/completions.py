"""Completions side by side: for each seed and prompt, before training and after it in each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .arms import Arm, place

LONGEST = 2_000  # characters of one text
BUDGET = 900_000  # characters of all texts together


@dataclass
class Answer:
    """What an arm wrote to a prompt; `before` only where it began with another completion."""

    number: int
    label: str
    text: str
    before: str | None = None


@dataclass
class Prompt:
    """One prompt with its reference answer, the start policy's completion, and those after it."""

    prompt: str
    answer: str
    before: str
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """The prompts of the runs that share their seeds."""

    name: str
    prompts: list[Prompt]


def cut(text: str) -> str:
    """The beginning of a text that is too long for a page, with what was left out.

    >>> cut("a" * 2005).lstrip("a")
    '… (5 characters more)'
    """
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… ({len(text) - LONGEST} characters more)"


def side_by_side(arms: Sequence[Arm]) -> tuple[list[Place], int]:
    """All prompts by place, and how many were left out because the page would be too large.

    Prompts are matched by their text and by how often it came before, so that the arms may have
    been stopped at different times or hold different prompts.
    """
    found: dict[str, dict[tuple[str, str, int], Prompt]] = {}
    for arm in arms:
        for run in arm.runs:
            prompts = found.setdefault(place(run), {})
            counts: dict[tuple[str, str], int] = {}
            for row in run.samples:
                pair = (row["prompt"], row["answer"])
                counts[pair] = counts.get(pair, 0) + 1
                before, after = cut(row["before"]), cut(row["after"])
                texts = (cut(pair[0]), cut(pair[1]), before)
                mine = prompts.setdefault((*pair, counts[pair]), Prompt(*texts))
                other = before if before != mine.before else None
                mine.answers.append(Answer(arm.number, arm.label, after, other))
    return _within_budget(found)


def _within_budget(
    found: dict[str, dict[tuple[str, str, int], Prompt]],
) -> tuple[list[Place], int]:
    """Prompts of all places in turn, until the budget is spent."""
    queues = {name: list(prompts.values()) for name, prompts in found.items() if prompts}
    kept: dict[str, list[Prompt]] = {name: [] for name in queues}
    left_out, spent = 0, 0
    for turn in range(max(map(len, queues.values()), default=0)):
        for name, prompts in queues.items():
            if turn >= len(prompts):
                continue
            size = _size(prompts[turn])
            if spent + size > BUDGET and spent:
                left_out += 1
                continue
            spent += size
            kept[name].append(prompts[turn])
    return [Place(name, prompts) for name, prompts in kept.items() if prompts], left_out


def _size(prompt: Prompt) -> int:
    texts = [prompt.prompt, prompt.answer, prompt.before]
    texts += [text for a in prompt.answers for text in (a.text, a.before or "")]
    return sum(len(text) + 120 for text in texts)  # with the tags around it
