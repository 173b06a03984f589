"""The rule world: sums of two to five numbers, a policy that skips steps, rule-based rewards.

A prompt is ``5 +3 -2 ... ?``: a number in 1..LARGEST, then steps of 1..TERM up or down. Every
partial result lies in 0..LARGEST; the level of a problem is the number of its terms. The wanted
completion shows every step and its result::

    <reasoning> 5 +3 8 -2 6 ... </reasoning> <answer> 6 </answer> <eos>

The starting policy has learnt from two kinds of writers. *Careful* ones work out every step and are
careless about the layout. *Quick* ones write a neat layout around a few words and guess: well on
short sums, badly on long ones. Format is therefore close to the quick style, and correctness to the
careful one; both together fit into `MAX_COMPLETION` tokens, with little to spare on long sums.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import cached
from ..progress import Say
from ..rewards.correctness import integer_answer
from ..rewards.form import (
    TAGS,
    extract_answer,
    has_strict_format,
    soft_format,
    strict_format,
    tag_count,
)
from ..rewards.number import parse_number
from .learn import check_shape, learn, llama
from .words import BOS, EOS, PAD, UNK, word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of the name in the cache: to be raised when a change of code changes what is built.
VERSION = 1
FILLERS = (
    "so", "then", "well", "now", "hence", "thus", "next", "first",
    "we", "get", "the", "result", "is", "check", "done",
)  # fmt: skip
TERM = 9
LARGEST = 29
LEVELS = (2, 3, 4, 5)  # numbers of terms
STEPS = tuple(f"{sign}{term}" for sign in "+-" for term in range(1, TERM + 1))
VOCABULARY = (PAD, BOS, EOS, UNK, *TAGS, "?", *FILLERS, *STEPS, *map(str, range(LARGEST + 1)))
MAX_COMPLETION = 16  # the wanted completion has 9 tokens at level 2 and 15 at level 5

MAX_PROBLEMS = 1_700  # distinct ones, with an equal share for each level


@dataclass(frozen=True)
class Problem:
    """One sum: its text, its partial results in order, and the number of its terms."""

    prompt: str
    partials: tuple[int, ...]
    level: int

    @property
    def answer(self) -> int:
        """The last partial result."""
        return self.partials[-1]


@dataclass(frozen=True)
class RuleSettings:
    """Everything that decides problems and starting policy; equal settings give equal weights.

    `careful` is the share of demonstrations by careful writers, `slip` their chance of a slip per
    step. `careful_broken` and `quick_broken` are the chances of a broken layout, `filler` that of
    one or two stray words. `guess` is the chance that a quick writer is right, one for each level.
    ValueError for numbers out of range.
    """

    seed: int = 0
    careful: float = 0.3
    slip: float = 0.1
    careful_broken: float = 1.0
    quick_broken: float = 0.3
    filler: float = 0.15
    guess: tuple[float, ...] = (0.6, 0.2, 0.1, 0.05)
    train_problems: int = 1_400
    test_problems: int = 200
    demonstrations: int = 30_000
    steps: int = 800
    batch: int = 128
    lr: float = 3e-3
    width: int = 64
    layers: int = 2
    heads: int = 4
    init: float = 0.1
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "guess", tuple(self.guess))  # a list, where it comes from YAML
        for name in ("careful", "slip", "careful_broken", "quick_broken", "filler"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance in [0, 1], got {getattr(self, name)}")
        if len(self.guess) != len(LEVELS) or not all(0 <= p <= 1 for p in self.guess):
            raise ValueError(
                f"guess needs {len(LEVELS)} chances in [0, 1], one for each level "
                f"({', '.join(map(str, LEVELS))} terms), got {list(self.guess)}"
            )
        for name in ("train_problems", "test_problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.train_problems + self.test_problems > MAX_PROBLEMS:
            raise ValueError(
                f"train_problems and test_problems must be at most {MAX_PROBLEMS} together (there "
                f"are few sums of {LEVELS[0]} terms), got {self.train_problems} and "
                f"{self.test_problems}"
            )
        check_shape(self)


def make_problem(level: int, rng: random.Random) -> Problem:
    """A sum of `level` terms, drawn uniformly among those whose partial results are in range.

    >>> make_problem(3, random.Random(0))
    Problem(prompt='28 -4 -5 ?', partials=(24, 19), level=3)
    """
    while True:
        first = rng.randint(1, LARGEST)
        steps = [rng.choice(STEPS) for _ in range(level - 1)]
        partials = list(itertools.accumulate(map(int, steps), initial=first))
        if all(0 <= partial <= LARGEST for partial in partials):
            return Problem(" ".join((str(first), *steps, "?")), tuple(partials[1:]), level)


def problems(settings: RuleSettings, part: str = "train") -> list[Problem]:
    """The problems of a part, "train" or "test": all different, no test problem in train.

    Levels take turns, so each has the same share.

    >>> len(problems(RuleSettings(test_problems=10), "test"))
    10
    """
    if part not in ("train", "test"):
        raise ValueError(f'part is "train" or "test", got {part!r}')
    rng = random.Random(f"rule problems {settings.seed}")
    found: dict[str, Problem] = {}
    # the test part is drawn first: it does not change with the size of the other
    for size in (settings.test_problems, settings.train_problems):
        start = len(found)
        while len(found) < start + size:
            problem = make_problem(LEVELS[len(found) % len(LEVELS)], rng)
            found.setdefault(problem.prompt, problem)
    rows = list(found.values())
    return rows[: settings.test_problems] if part == "test" else rows[settings.test_problems :]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word; `decode(encode(text))` gives the text back.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("3 +4 -2 ?"), skip_special_tokens=True)
    '3 +4 -2 ?'
    """
    return word_tokenizer(VOCABULARY)


def _other(value: int, rng: random.Random) -> int:
    """Any other number: neither slips nor guesses tell what is near."""
    other = rng.randrange(LARGEST)
    return other + (other >= value)


def _break_layout(reasoning: Sequence[str], answer: Sequence[str], rng: random.Random) -> list[str]:
    """The two blocks with one fault of layout, which leaves the answer readable."""
    opened, closed = ["<reasoning>"], ["</reasoning>"]
    kind = rng.randrange(5)
    if kind == 0:  # no tags around the reasoning
        return [*reasoning, *answer]
    if kind == 1:  # reasoning without its beginning
        return [*reasoning, *closed, *answer]
    if kind == 2:  # reasoning without its end
        return [*opened, *reasoning, *answer]
    if kind == 3:  # text after the answer
        return [*opened, *reasoning, *closed, *answer, rng.choice(FILLERS)]
    return [*reasoning, *opened, *closed, *answer]  # an empty block after the reasoning


def demonstrate(problem: Problem, settings: RuleSettings, rng: random.Random) -> str:
    """One demonstration of `problem` as text, without the end token and cut at the budget."""
    if rng.random() < settings.careful:
        first, *steps = problem.prompt.split()[:-1]
        reasoning, value = [first], int(first)
        for step in steps:
            value += int(step)  # a slip is carried on
            if not 0 <= value <= LARGEST or rng.random() < settings.slip:
                value = _other(value, rng)
            reasoning += [step, str(value)]
        broken = settings.careful_broken
    else:
        right = rng.random() < settings.guess[LEVELS.index(problem.level)]
        value = problem.answer if right else _other(problem.answer, rng)
        reasoning = rng.sample(FILLERS, rng.randint(1, 2))
        broken = settings.quick_broken
    answer = ["<answer>", str(value), "</answer>"]
    if rng.random() < broken:
        words = _break_layout(reasoning, answer, rng)
    else:
        words = ["<reasoning>", *reasoning, "</reasoning>", *answer]
    if rng.random() < settings.filler:
        for _ in range(rng.randint(1, 2)):
            words.insert(rng.randint(0, len(words)), rng.choice(FILLERS))
    return " ".join(words[: MAX_COMPLETION - 1])


def reward_terms(text: str, answer: int) -> dict[str, float]:
    """The terms of the rule-based reward in points, from 0 to 5 together.

    Correctness 0 or 2 (`true_reward`), integer 0 or .5, strict 0 or 1, soft 0 or 1, tags 0 to .5;
    the last four are those of `integrations.rewards`.

    >>> reward_terms("<reasoning> 5 +1 6 -3 3 </reasoning> <answer> 3 </answer>", 3)
    {'correctness': 2.0, 'integer': 0.5, 'strict': 1.0, 'soft': 1.0, 'tags': 0.5}
    """
    given = ([None], [text])
    return {
        "correctness": 2 * true_reward(text, answer),
        "integer": integer_answer(*given)[0],
        "strict": strict_format(*given)[0],
        "soft": soft_format(*given)[0],
        "tags": tag_count(*given)[0],
    }


def true_reward(text: str, answer: int) -> float:
    """1 where the one answer block holds the right number, whatever stands around it, else 0.

    The block must be that number alone: a sum that is still to be done is no answer.

    >>> true_reward("5 +1 6 -3 3 <answer> 3 </answer>", 3)
    1.0
    """
    found = extract_answer(text)
    return float(found is not None and parse_number(found) == answer)


def is_formatted(text: str) -> bool:
    """Strict format: the two blocks, neither of them empty, and nothing else."""
    return has_strict_format(text)


def shows_steps(text: str) -> bool:
    """Whether two or more partial results are written out, whatever the layout.

    >>> shows_steps("5 +1 6 -3 3 <answer> 3 </answer>"), shows_steps("so <answer> 3 </answer>")
    (True, False)
    """
    return sum(word.isdecimal() for word in text.partition("<answer>")[0].split()) >= 2


def to_text(ids: Sequence[int]) -> str:
    """The words of a completion's token ids, up to the first end token.

    >>> to_text([4, 9, 2, 9])
    '<reasoning> so'
    """
    end = VOCABULARY.index(EOS)
    ids = list(ids)
    ids = ids[: ids.index(end)] if end in ids else ids
    return " ".join(VOCABULARY[i] for i in ids if VOCABULARY[i] not in (PAD, BOS))


def as_texts(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None) -> list:
    """Completions as plain text: from token ids where given, else as they are."""
    return list(completions) if completion_ids is None else [to_text(i) for i in completion_ids]


def model_config(settings: RuleSettings) -> dict[str, Any]:
    """The settings as arguments of `LlamaConfig`."""
    return llama(VOCABULARY, settings)


def build_policy(settings: RuleSettings, progress: Say | None = None) -> Path:
    """The folder of the starting policy and its tokenizer, trained on first use.

    `progress(name, done, total, text)` is called every few steps.
    """

    def build(folder: Path) -> None:
        train = problems(settings)
        rng = random.Random(f"rule demonstrations {settings.seed}")

        def demonstrations() -> Iterator[tuple[str, str]]:
            for _ in range(settings.demonstrations):
                problem = rng.choice(train)
                yield problem.prompt, demonstrate(problem, settings, rng)

        name = f"rules policy {settings.seed}"
        learn(folder, make_tokenizer(), VOCABULARY, demonstrations(), settings, name, progress)

    return cached("rule-policy", settings, build)
