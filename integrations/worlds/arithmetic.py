"""The arithmetic task: prompts, tokenizer, imperfect demonstrations, strict format, true reward.

A prompt is ``a +- b +- c ?`` with `a` in 2..9 and `b`, `c` in 1..5; both results are at least 0.
The wanted completion shows both partial results and repeats the last one as the answer::

    <reasoning> r1 ; r2 </reasoning> <answer> r2 </answer> <eos>

Everything is one token per word, so text and token ids carry the same information.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .words import BOS, EOS, PAD, UNK, word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
SIGNS = ("+", "-", ";", "?")
FILLERS = (
    "so", "then", "well", "now", "hence", "thus", "next", "first",
    "we", "get", "the", "result", "is", "check", "done",
)  # fmt: skip
LARGEST = 59
VOCABULARY = (PAD, BOS, EOS, UNK, *TAGS, *SIGNS, *FILLERS, *map(str, range(LARGEST + 1)))
MAX_COMPLETION = 14


@dataclass(frozen=True)
class Problem:
    """One sum with its two partial results; the second one is the answer."""

    prompt: str
    partial: int
    answer: int


@dataclass(frozen=True)
class Flaws:
    """How often a demonstration has each flaw, drawn independently of the others.

    A hedged answer names two numbers. `informed` is the chance that a writer who hedges does so
    from the right result, whatever `wrong` says: the right number is then one of the two.
    """

    wrong: float = 0.5
    broken: float = 0.4
    filler: float = 0.15
    hedged: float = 0.06
    informed: float = 0.0


def all_problems() -> list[Problem]:
    """Every sum of the task, in a fixed order."""
    problems = []
    for a in range(2, 10):
        for first in (-1, 1):
            for b in range(1, 6):
                for second in (-1, 1):
                    for c in range(1, 6):
                        r1 = a + first * b
                        r2 = r1 + second * c
                        if r1 >= 0 and r2 >= 0:
                            sign = {1: "+", -1: "-"}
                            text = f"{a} {sign[first]} {b} {sign[second]} {c} ?"
                            problems.append(Problem(text, r1, r2))
    return problems


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word; `decode(encode(text))` gives the text back.

    >>> tokenizer = make_tokenizer()
    >>> ids = tokenizer.encode("3 + 4 - 2 ?")
    >>> tokenizer.decode(ids, skip_special_tokens=True)
    '3 + 4 - 2 ?'
    """
    return word_tokenizer(VOCABULARY)


def _slip(value: int, rng: random.Random) -> int:
    """A wrong number: mostly a near miss, sometimes any other number."""
    while True:
        if rng.random() < 0.8:
            other = value + rng.choice((-3, -2, -1, 1, 2, 3))
        else:
            other = rng.randint(0, LARGEST)
        if other != value and 0 <= other <= LARGEST:
            return other


def _break_format(words: list[str], rng: random.Random) -> list[str]:
    """Damage the layout in one of the ways careless writers do."""
    words = list(words)
    kind = rng.randrange(6)
    if kind == 0:  # one tag forgotten
        words.remove(rng.choice(TAGS))
    elif kind == 1:  # no reasoning at all
        words = words[words.index("<answer>") :]
    elif kind == 2:  # answer left bare
        words = [w for w in words if w not in ("<answer>", "</answer>")]
    elif kind == 3:  # text after the answer
        words = [*words, rng.choice(FILLERS)]
    elif kind == 4:  # a tag written twice
        at = words.index(rng.choice(TAGS))
        words.insert(at, words[at])
    else:  # the two parts swapped
        at = words.index("<answer>")
        words = [*words[at:], *words[:at]]
    return words


def demonstrate(problem: Problem, flaws: Flaws, rng: random.Random) -> str:
    """One demonstration of `problem` as text (without the end token), flawed as `flaws` says."""
    r1, r2 = problem.partial, problem.answer
    hedged = rng.random() < flaws.hedged
    informed = hedged and rng.random() < flaws.informed
    if rng.random() < flaws.wrong and not informed:
        if rng.random() < 0.5:  # the slip in the first step is carried on
            slipped = _slip(r1, rng)
            carried = r2 + slipped - r1
            r1, r2 = slipped, carried if 0 <= carried <= LARGEST else _slip(r2, rng)
        else:
            r2 = _slip(r2, rng)
    answer = [str(r2)]
    if hedged:
        answer.insert(rng.randrange(2), str(_slip(r2, rng)))
    words = ["<reasoning>", str(r1), ";", str(r2), "</reasoning>", "<answer>", *answer, "</answer>"]
    if rng.random() < flaws.broken:
        words = _break_format(words, rng)
    if rng.random() < flaws.filler:
        for _ in range(rng.randint(1, 2)):
            words.insert(rng.randint(0, len(words)), rng.choice(FILLERS))
    return " ".join(words[: MAX_COMPLETION - 1])


def answers(completion: str) -> list[int] | None:
    """The numbers in the answer block of a well-formed completion, else None.

    Well-formed: one reasoning block without tags inside, then one answer block of numbers alone,
    and nothing before, between or after.

    >>> answers("<reasoning> 7 ; 5 </reasoning> <answer> 5 4 </answer>")
    [5, 4]
    """
    words = completion.split()
    if words and words[-1] == EOS:
        words.pop()
    if not words or words[0] != "<reasoning>" or words[-1] != "</answer>":
        return None
    tags = [word for word in words if word in (*TAGS, PAD, BOS, EOS)]
    at = words.index("<answer>") if "<answer>" in words else 0
    inside, numbers = words[1 : at - 1], words[at + 1 : -1]
    if tags != list(TAGS) or words[at - 1] != "</reasoning>" or not inside or not numbers:
        return None
    return [int(word) for word in numbers] if all(word.isdecimal() for word in numbers) else None


def parse(completion: str) -> int | None:
    """The answer of a completion in strict format (well-formed, one number), else None.

    >>> parse("<reasoning> 7 ; 5 </reasoning> <answer> 5 </answer>")
    5
    >>> parse("<reasoning> 7 ; 5 </reasoning> <answer> 5 4 </answer>") is None
    True
    """
    numbers = answers(completion)
    return numbers[0] if numbers is not None and len(numbers) == 1 else None


def lenient_reward(completion: str, answer: int) -> float:
    """1 when the right answer is among the numbers named, as a hurried annotator would have it."""
    return float(answer in (answers(completion) or ()))


def true_reward(completion: str, answer: int) -> float:
    """1 for the right answer in strict format, else 0."""
    return float(parse(completion) == answer)


def clip_at_end(ids: list[int]) -> list[int]:
    """Token ids up to the first end token, which is left out, without padding and begin tokens."""
    end = VOCABULARY.index(EOS)
    if end in ids:
        ids = ids[: ids.index(end)]
    drop = (VOCABULARY.index(PAD), VOCABULARY.index(BOS))
    return [i for i in ids if i not in drop]


def to_text(ids: list[int]) -> str:
    """The words of token ids, up to the first end token."""
    return " ".join(VOCABULARY[i] for i in clip_at_end(ids))
