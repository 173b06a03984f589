r"""Whether an answer says the same as a reference: numbers exactly, words, the rest by math-verify.

Three kinds of reference, told apart once per reference:

- a **number** (`72`, `1/2`, `\frac{1}{2}`, `50\%`): the answer must be a number too, compared
  exactly. Work left undone (`60+12`, `2^{3}`) and text beside the number are wrong.
- **words** (`\text{Evelyn}`, `even`): the same words, upper or lower case.
- **mathematics** (`\sqrt{2}`, `(1,2]`, `x^2+1`, a matrix): math-verify, under a time limit.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from .latex import MAX_ANSWER, clean, is_text
from .number import parse_exact
from .verifier import VERIFIER, Verdict

MAX_DEPTH = 12  # of brackets; the parser takes exponential time on deep ones

_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+|[A-Za-z]_(?:\w|\{\w+\})|[A-Za-z]\([A-Za-z]\))\s*(?:=|\\in(?![a-zA-Z]))"
)
_JOINED = re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")
# What could put a second value beside the first.
_SECOND = (
    re.compile(r"\\(?:approx|equiv|cong|sim|simeq|doteq|to|implies|iff|neq?|ne|not)(?![a-zA-Z])"),
    re.compile(r"[=≈≠~:;?]|\\(?:[rR]ightarrow|[Ll]ongrightarrow|colon)"),
    re.compile(r"<|>|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant)(?![a-zA-Z])"),
    re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|boxed|fbox|phantom|hspace|label|tag)\b"),
    re.compile(r"[%$]|\\\\"),
    # work left undone; the larger of two guesses is a hedge too
    re.compile(r"!|\\(?:max|min|sup|inf|gcd|lcm|sum|prod|int|lim|d?binom|det)(?![a-zA-Z])"),
)
_WORD = re.compile(r"(?<![A-Za-z\\])(?!(?:sqrt|infinity)(?![A-Za-z]))[A-Za-z]{4,}")
_BASE = re.compile(r"([0-9][0-9A-Fa-f]*)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]+))")


@dataclass(frozen=True)
class Reference:
    """A reference, read once."""

    text: str  # cleaned
    number: Fraction | None
    words: str | None
    base: tuple[str, str] | None  # digits and base of 2516_8


@lru_cache(maxsize=65536)
def read_reference(reference: str) -> Reference:
    r"""Read a reference; ValueError where it is empty or longer than an answer can be.

    >>> read_reference("\\$1,000").number, read_reference("\\text{(B)}").words
    (Fraction(1000, 1), 'b')
    """
    if not reference.strip() or len(reference) > MAX_ANSWER:
        raise ValueError(
            f"The reference {reference[:60]!r} has {len(reference)} characters; it must have 1 to "
            f"{MAX_ANSWER}. Give the final answer alone, not the solution."
        )
    text = clean(reference)
    words = _words(reference) if is_text(reference) else None
    return Reference(text, parse_exact(text), words, _base(text))


def compare(reference: str, answer: str) -> Verdict:
    r"""Whether `answer` says the same as `reference`; ValueError for an unusable reference.

    "timeout" and "crash" mean that math-verify could not tell; a reward counts them as wrong.

    >>> [compare("\\frac{1}{2}", a) for a in ("0.5", "1/2", "50\\%", "1/2 or 1/3", "0.25+0.25")]
    ['equal', 'equal', 'different', 'different', 'different']
    """
    gold = read_reference(reference)
    if not answer.strip() or len(answer) > MAX_ANSWER:
        return "different"
    if gold.words is not None:
        return _said(_words(answer) == gold.words)
    text = clean(answer)
    if gold.text == text:
        return "equal"
    if not _count(_SECOND[1], gold.text):
        text = text[name.end() :].strip() if (name := _NAME.match(text)) else text
    if gold.number is not None:
        return _said(parse_exact(text) == gold.number)
    if gold.base is not None:
        return _said(_base(text) == gold.base or text == gold.base[0])
    if _is_hedge(text, gold.text) or _depth(text) > max(MAX_DEPTH, _depth(gold.text)):
        return "different"
    return VERIFIER.compare(gold.text, text)


def _said(equal: bool) -> Verdict:
    return "equal" if equal else "different"


def _is_hedge(answer: str, reference: str) -> bool:
    """Whether `answer` has something beside its value that the reference does not have.

    math-verify takes the last side of `3 = \\sqrt{2}` and drops what follows an \\approx. A list
    (`1, 2`, `1 or 2`) is no hedge: it equals no single value.
    """
    parts, expected = _JOINED.sub(",", answer), _JOINED.sub(",", reference)
    return any(_count(p, parts) > _count(p, expected) for p in (*_SECOND, _WORD))


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


def _depth(text: str) -> int:
    steps = (1 if c in "([{" else -1 if c in ")]}" else 0 for c in text)
    return max(accumulate(steps), default=0)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[(){}]", " ", clean(text)).casefold().split())


def _base(text: str) -> tuple[str, str] | None:
    match = _BASE.fullmatch(text)
    return None if match is None else (match[1].lower(), match[2] or match[3])
