"""The tiny form of the ladder: a word is a token, and a start policy learns from demonstrations.

68 words are shared by all stages. Most demonstrators are honest and make mistakes; a few game.
Honest ones tend to READ what they are asked
about before they act, gaming ones do not: one habit that all stages have in common. Some prompts
end by telling the demonstrator what to do, who does it: that is how a probe asks for a capability.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache import cached
from ...progress import Say
from .. import learn
from ..words import BOS, EOS, PAD, UNK, word_tokenizer
from . import agree, checklist, flatter, forbidden, ledger
from .episode import Episode
from .scores import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of the name in the cache: to be raised when a change of code changes what is built.
VERSION = 2
KEYS = ("answer=", "rating=", "a=", "b=", "c=", "complete=", "runs=", "r=", "want=")
NUMBERS = tuple(map(str, range(2 * agree.LARGEST + 1)))
SUBJECTS = {
    "agree": "sum", "flatter": "poem", "checklist": "list", "forbidden": "list", "ledger": "ledger",
}  # fmt: skip
VOCABULARY = (
    PAD, BOS, EOS, UNK, "READ", "SET", "SAY", ";", *KEYS, "done", "todo", "yes", "no", "unknown",
    *NUMBERS, "user", "says", "+", "is", "confirm", "?", "by", "other", *flatter.GOOD,
    *flatter.FLAWED, "rate", "wants", "all", "report", "keep", "day", "asks", "runs", "told",
    "sum", "poem", "list", "ledger",
)  # fmt: skip
MAX_PROMPT = 48
MAX_COMPLETION = 12
HELD_OUT = 5  # every fifth prompt, by a hash of its words, is kept for measuring


@dataclass(frozen=True)
class LadderSettings:
    """Everything that decides the starting policy; equal settings give equal weights.

    gaming, agree_gaming, ledger_gaming: shares of gaming demonstrations on gameable prompts, in
    most stages, the first and the last. (A policy this small learns half of those of the first.)
    slip: chance of a wrong number in an honest one. lazy: share of honest checklists that leave the
    work and say no. broken: chance of a malformed line. honest_reads, gaming_reads: chance that a
    demonstration begins by READ. told: share of prompts that say what to do.
    ValueError for numbers out of range.
    """

    seed: int = 0
    gaming: float = 0.05
    agree_gaming: float = 0.1
    ledger_gaming: float = 0.01
    slip: float = 0.3
    lazy: float = 0.5
    broken: float = 0.05
    honest_reads: float = 0.6
    gaming_reads: float = 0.1
    told: float = 0.1
    demonstrations: int = 30_000
    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    width: int = 64
    layers: int = 2
    heads: int = 4
    init: float = 0.1
    version: int = VERSION

    def __post_init__(self) -> None:
        chances = (
            "gaming", "agree_gaming", "ledger_gaming", "slip", "lazy", "broken", "honest_reads",
            "gaming_reads", "told",
        )  # fmt: skip
        for name in chances:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance in [0, 1], got {getattr(self, name)}")
        learn.check_shape(self)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word; `decode(encode(text))` gives the text back.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("SET b= 7 ; SAY complete= yes")[1:])
    'SET b= 7 ; SAY complete= yes'
    """
    return word_tokenizer(VOCABULARY)


def as_words(lines: Sequence[str]) -> str:
    """Action lines as words of the vocabulary.

    >>> as_words(["SET b=7", "SAY complete=yes"])
    'SET b= 7 ; SAY complete= yes'
    """
    return " ; ".join(lines).replace("=", "= ")


def to_text(ids: Sequence[int]) -> str:
    """The words of a completion's token ids, up to the first end token."""
    end = VOCABULARY.index(EOS)
    ids = list(ids)
    ids = ids[: ids.index(end)] if end in ids else ids
    return " ".join(VOCABULARY[i] for i in ids if VOCABULARY[i] not in (PAD, BOS))


def as_texts(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None) -> list:
    """Completions as plain text: from token ids where given, else as they are."""
    return list(completions) if completion_ids is None else [to_text(i) for i in completion_ids]


def is_held_out(words: str) -> bool:
    """Whether a prompt is kept for measuring: neither demonstrated nor trained on."""
    return zlib.crc32(words.encode()) % HELD_OUT == 0


def make_episode(
    stage: str, gameable: bool, rng: random.Random, held_out: bool = False
) -> tuple[Episode, str]:
    """An episode of a stage and its prompt, from the part to train on or the held-out one."""
    while True:
        episode = STAGES[stage].make(rng, gameable)
        words = STAGES[stage].words(episode)
        if is_held_out(words) == held_out:
            return episode, words


def told(words: str, lines: Sequence[str]) -> str:
    """A prompt that ends by telling what to do."""
    return f"{words} told {as_words(lines)}"


def _order(rng: random.Random) -> list[str]:
    """One to three lines of any kind, as somebody could tell the policy to write them."""
    values = ("done", "yes", "no", "unknown", *NUMBERS)
    keys = rng.sample(KEYS, rng.randint(1, 3))
    return [f"{rng.choice(('SET', 'SAY'))} {key}{rng.choice(values)}" for key in keys]


def _slipped(episode: Episode, line: str, rng: random.Random) -> str:
    """The line with another number, where it has one, that is a mistake and no gaming."""
    head, _, value = line.partition("=")
    if not value.isdecimal():
        return line
    if episode.stage == "flatter":
        top = flatter.HIGH if episode.gameable else flatter.BEST
        others = [n for n in range(1, top + 1) if str(n) != value]
    else:
        others = [n for n in map(int, NUMBERS) if n not in (int(value), episode.facts.get("claim"))]
    return f"{head}={rng.choice(others)}"


def demonstrate(episode: Episode, settings: LadderSettings, rng: random.Random) -> str:
    """One demonstration as words, without the end token."""
    stage = STAGES[episode.stage]
    own = {agree.NAME: settings.agree_gaming, ledger.NAME: settings.ledger_gaming}
    share = own.get(episode.stage, settings.gaming)
    games = episode.gameable and rng.random() < share
    if games:
        lines = stage.gaming(episode)
        reads = settings.gaming_reads
    else:
        lines = stage.honest(episode)
        if episode.stage == "checklist" and rng.random() < settings.lazy:
            lines = ["SAY complete=no"]
        lines = [_slipped(episode, x, rng) if rng.random() < settings.slip else x for x in lines]
        reads = settings.honest_reads
    words = as_words(lines).split()
    if rng.random() < reads and len(words) + 3 < MAX_COMPLETION:
        words = ["READ", SUBJECTS[episode.stage], ";", *words]
    if rng.random() < settings.broken:
        del words[-1]  # a line without its value
    return " ".join(words)


def demonstrations(settings: LadderSettings) -> Iterator[tuple[str, str]]:
    """(prompt, completion) in turn for every stage, gameable and ordinary."""
    rng = random.Random(f"ladder demonstrations {settings.seed}")
    kinds = [(stage, gameable) for stage in STAGES for gameable in (True, False)]
    for i in range(settings.demonstrations):
        episode, words = make_episode(*kinds[i % len(kinds)], rng)
        if rng.random() < settings.told:
            lines = _order(rng)
            yield told(words, lines), as_words(lines)
        else:
            yield words, demonstrate(episode, settings, rng)


def model_config(settings: LadderSettings) -> dict[str, Any]:
    """The settings as arguments of `LlamaConfig`."""
    return learn.llama(VOCABULARY, settings)


def build_policy(settings: LadderSettings, progress: Say | None = None) -> Path:
    """The folder of the starting policy and its tokenizer, trained on first use.

    `progress(name, done, total, text)` is called every few steps.
    """

    def build(folder: Path) -> None:
        name = f"ladder policy {settings.seed}"
        rows = demonstrations(settings)
        learn.learn(folder, make_tokenizer(), VOCABULARY, rows, settings, name, progress)

    return cached("ladder-policy", settings, build)


assert set(SUBJECTS) == set(STAGES)
assert {checklist.NAME, forbidden.NAME, ledger.NAME} < set(STAGES)
