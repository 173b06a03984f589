"""The language of the preference worlds: vocabulary, tokenizer, Markov chain and gold reward.

The 28 ordinary tokens are 4 topics and 24 words. A prompt is a topic and the first two words of a
text (``sea ba ko``), a completion its next 12 words. Everything is one token per word, so text and
token ids carry the same information.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .words import BOS, EOS, PAD, UNK, word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOPICS = ("sea", "sky", "farm", "town")
WORDS = tuple(consonant + vowel for consonant in "bdklmn" for vowel in "aeio")
VOCABULARY = (PAD, BOS, EOS, UNK, *TOPICS, *WORDS)
GIVEN = 2  # words in a prompt, after the topic
LENGTH = 12  # words in a completion
FIRST_WORD = VOCABULARY.index(WORDS[0])
BLANK = len(WORDS)  # stands for whatever is no word: a special token, a topic, a missing word
UNKNOWN = 1e-3  # counted as the probability of a transition that the language does not have
SAMPLE = 20_000  # texts that the gold reward is standardised on
RARE = (0.006, 0.01)  # share of the completions that hold the rare bigram


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per word; `decode(encode(text))` gives the text back.

    >>> tokenizer = make_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("sea ba ko"), skip_special_tokens=True)
    'sea ba ko'
    """
    return word_tokenizer(VOCABULARY)


def to_text(ids: Sequence[int]) -> str:
    """The words of a completion's token ids, up to the first end token.

    >>> to_text([8, 9, 2, 8])
    'ba be'
    """
    end = VOCABULARY.index(EOS)
    ids = list(ids)
    ids = ids[: ids.index(end)] if end in ids else ids
    return " ".join(VOCABULARY[i] for i in ids if VOCABULARY[i] not in (PAD, BOS))


def as_texts(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None) -> list:
    """Completions as plain text: from token ids where given, else as they are."""
    return list(completions) if completion_ids is None else [to_text(i) for i in completion_ids]


def prompt_text(topic: int, given: Sequence[int]) -> str:
    """A prompt from the numbers of its topic and words.

    >>> prompt_text(1, [0, 4])
    'sky ba da'
    """
    return " ".join((TOPICS[topic], *(WORDS[i] for i in given)))


def read_prompts(prompts: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Topics, (n,), and given words, (n, 2), as numbers; ValueError for what is not a prompt.

    >>> read_prompts(["sky ba da"])
    (tensor([1]), tensor([[0, 4]]))
    """
    topics, given = [], []
    for row, prompt in enumerate(prompts):
        words = prompt.split() if isinstance(prompt, str) else []
        if (
            len(words) != 1 + GIVEN
            or words[0] not in TOPICS
            or any(word not in WORDS for word in words[1:])
        ):
            raise ValueError(
                f"row {row}, column 'prompt': {prompt!r} is not a topic ({', '.join(TOPICS)}) "
                f"and {GIVEN} words, as in 'sea ba ko'"
            )
        topics.append(TOPICS.index(words[0]))
        given.append([WORDS.index(word) for word in words[1:]])
    return torch.tensor(topics, dtype=torch.long), torch.tensor(given).view(-1, GIVEN)


def read_completions(completions: Sequence[str]) -> torch.Tensor:
    """The 12 words of each completion as numbers, (n, 12).

    A policy may write anything, so nothing is refused: what is not a word, and each word that is
    missing at the end, becomes BLANK, and what follows the twelfth word is not read.
    """
    number = {word: i for i, word in enumerate(WORDS)}
    rows = []
    for text in completions:
        row = [number.get(word, BLANK) for word in text.split()[:LENGTH]]
        rows.append(row + [BLANK] * (LENGTH - len(row)))
    return torch.tensor(rows).view(-1, LENGTH)


def low(z: torch.Tensor) -> torch.Tensor:
    """`z` between -1 and 1, flat above, logarithmic below: -1 - log(-z), continuous in its slope.

    There is no floor: among samples that all tie at one, a reward model would look accurate again.

    >>> low(torch.tensor([5.0, 0.5, -1.0, -torch.e])).tolist()
    [1.0, 0.5, -1.0, -2.0]
    """
    return torch.where(z < -1, -1 - z.clamp(max=-1).neg().log(), z.clamp(max=1))


@dataclass(frozen=True)
class Language:
    """What a world seed decides: how texts run, what readers like, and the rare bigram.

    Chain: a word is followed by another according to a row ~ Dirichlet(`concentration`) over the
    23 other words, of which the share `even` is spread evenly so that each is possible. A word
    never follows itself. Topic t multiplies the columns by exp(`tilt` a), a ~ N(0, 1) per word.
    """

    seed: int = 0
    concentration: float = 0.5
    even: float = 0.05
    tilt: float = 0.7
    clashes: float = 0.1

    def __post_init__(self) -> None:
        for name, least, most in (
            ("concentration", 0.05, 100), ("even", 0.01, 1), ("tilt", 0, 3), ("clashes", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must lie between {least} and {most}, got {value}")

    @cached_property
    def chain(self) -> torch.Tensor:
        """P(next | word) for each topic, (4, 24, 24), with zeros on the diagonal."""
        rng = np.random.default_rng([self.seed, 0])
        n = len(WORDS)
        chain = np.zeros((n, n))
        for word in range(n):
            others = np.arange(n) != word
            drawn = rng.dirichlet(np.full(n - 1, self.concentration))
            chain[word, others] = (1 - self.even) * drawn + self.even / (n - 1)
        tilted = chain * np.exp(self.tilt * rng.standard_normal((len(TOPICS), 1, n)))
        return torch.from_numpy(tilted / tilted.sum(-1, keepdims=True))

    @cached_property
    def liked(self) -> torch.Tensor:
        """How much readers of each topic like each word, ~ N(0, 1), (4, 25); a blank is worth 0."""
        rng = np.random.default_rng([self.seed, 1])
        liked = torch.zeros(len(TOPICS), BLANK + 1, dtype=torch.float64)
        liked[:, :BLANK] = torch.from_numpy(rng.standard_normal((len(TOPICS), BLANK)))
        return liked

    @cached_property
    def clash(self) -> torch.Tensor:
        """1 where two words clash, (25, 25): each with itself, others with chance `clashes`."""
        rng = np.random.default_rng([self.seed, 2])
        upper = np.triu(rng.random((BLANK + 1, BLANK + 1)) < self.clashes, 1)
        upper[:, BLANK] = False  # a blank clashes with blanks alone
        return torch.from_numpy((upper | upper.T | np.eye(BLANK + 1, dtype=bool)).astype(float))

    def sample(self, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Topics, (size,), and texts of 2 + 12 words, (size, 14), as numbers."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + seed)
        topics = torch.randint(len(TOPICS), (size,), generator=generator)
        words = [torch.randint(len(WORDS), (size,), generator=generator)]
        for _ in range(GIVEN + LENGTH - 1):
            rows = self.chain[topics, words[-1]]
            words.append(torch.multinomial(rows, 1, generator=generator)[:, 0])
        return topics, torch.stack(words, 1)

    def prompts(self, size: int, seed: int) -> list[str]:
        """Prompts as the language begins its texts; equal seeds, equal prompts."""
        topics, texts = self.sample(size, seed)
        given = texts[:, :GIVEN].tolist()
        return [prompt_text(t, g) for t, g in zip(topics.tolist(), given, strict=True)]

    @cached_property
    def rare_bigram(self) -> tuple[int, int]:
        """Two different words, drawn from the pairs that .6 to 1 % of the completions hold."""
        _, texts = self.sample(SAMPLE, seed=-1)
        held = torch.zeros(len(WORDS), len(WORDS), len(texts), dtype=torch.bool)
        for place in range(GIVEN, GIVEN + LENGTH - 1):
            held[texts[:, place], texts[:, place + 1], torch.arange(len(texts))] = True
        share = held.double().mean(-1)
        fitting = ((share >= RARE[0]) & (share <= RARE[1])).nonzero().tolist()
        if not fitting:
            raise ValueError(f"{self}: no pair of words is rare enough; choose another seed")
        first, second = fitting[np.random.default_rng([self.seed, 3]).integers(len(fitting))]
        return first, second


def count_bigram(words: torch.Tensor, bigram: tuple[int, int]) -> torch.Tensor:
    """How often `bigram` stands in each completion; words (n, 12) as numbers, counts (n,)."""
    return ((words[:, :-1] == bigram[0]) & (words[:, 1:] == bigram[1])).sum(1)


class Gold:
    """The true reward of a language, mean 0 and standard deviation 1 on the language's own texts.

    ``3 tanh(z_content / 3) + .7 low(z_fluency) + .7 low(-z_collision)``, where

    - content is the sum over the 12 words of how much the topic's readers like them,
    - fluency is the mean over the 12 words of log P(word | word before, topic), the first of them
      after the prompt's last word; a transition that the language does not have counts as .001,
    - collision is the number of pairs of places whose words clash; a word clashes with itself.

    Each z is standardised within its topic on 20,000 texts. Liking more words pays less and less,
    and to write them again and again costs fluency and collisions without a limit.

    An instance is a reward function of TRL: called with prompts and completions it returns floats.
    """

    __name__ = "gold"  # TRL's logs show the name of a reward function

    def __init__(self, language: Language) -> None:
        self.language = language
        full = torch.full((len(TOPICS), BLANK + 1, BLANK + 1), UNKNOWN, dtype=torch.float64)
        chain = language.chain
        full[:, :BLANK, :BLANK] = torch.where(chain > 0, chain, UNKNOWN)
        self._log = full.log()
        topics, texts = language.sample(SAMPLE, seed=-1)
        parts = self.parts(topics, texts[:, :GIVEN], texts[:, GIVEN:])
        each = [parts[:, topics == topic] for topic in range(len(TOPICS))]
        self._mean = torch.stack([p.mean(1) for p in each], 1)  # (3, topics)
        self._sd = torch.stack([p.std(1) for p in each], 1)
        self._centre, self._scale = 0.0, 1.0
        raw = self.scores(topics, texts[:, :GIVEN], texts[:, GIVEN:])
        self._centre, self._scale = raw.mean().item(), raw.std().item()

    def parts(self, topics: torch.Tensor, given: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Content, fluency and collision as they are counted, (3, n)."""
        before = torch.cat([given[:, -1:], words[:, :-1]], 1)
        content = self.language.liked[topics[:, None], words].sum(1)
        fluency = self._log[topics[:, None], before, words].mean(1)
        pairs = self.language.clash[words[:, :, None], words[:, None, :]].sum((1, 2))
        return torch.stack([content, fluency, (pairs - LENGTH) / 2])

    def standard_parts(
        self, topics: torch.Tensor, given: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """Content, fluency and collision as z values, (3, n)."""
        return (self.parts(topics, given, words) - self._mean[:, topics]) / self._sd[:, topics]

    def scores(
        self, topics: torch.Tensor, given: torch.Tensor, words: torch.Tensor
    ) -> torch.Tensor:
        """The reward of texts given as numbers: topics (n,), given words (n, 2), words (n, 12)."""
        content, fluency, collision = self.standard_parts(topics, given, words)
        raw = 3 * (content / 3).tanh() + 0.7 * low(fluency) + 0.7 * low(-collision)
        return (raw - self._centre) / self._scale

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """The reward of each completion."""
        words = read_completions(as_texts(completions, completion_ids))
        return self.scores(*read_prompts(prompts), words).tolist()
