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

from .latex import MAX_ANSWER, balanced, boxes, case_apart, clean, is_text, unit
from .number import parse_exact
from .verifier import VERIFIER, Verdict

MAX_DEPTH = 12  # of brackets; the parser takes exponential time on deep ones

_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+|[A-Za-z]_(?:\w|\{\w+\})|[A-Za-z]\([A-Za-z]\))\s*(?:=|\\in(?![a-zA-Z]))"
)
_JOINED = re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")
# What could put a second value beside the first.
_SECOND = (
    re.compile(
        r"\\(?:(?:thick)?(?:approx|sim)[a-z]*|equiv|cong|doteq\w*|triangleq|to|implies|iff|neq?|not)"
        r"(?![a-zA-Z])"
    ),
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
    unit: str  # what `clean` took off


@lru_cache(maxsize=65536)
def read_reference(reference: str) -> Reference:
    r"""Read a reference; ValueError where `check_reference` refuses it.

    >>> read_reference("\\$1,000").number, read_reference("\\text{(B)}").words
    (Fraction(1000, 1), 'b')
    """
    if not reference.strip() or len(reference) > MAX_ANSWER:
        raise ValueError(
            f"The reference {reference[:60]!r} has {len(reference)} characters; it must have 1 to "
            f"{MAX_ANSWER}. Give the final answer alone, not the solution."
        )
    text = clean(reference)
    if boxes(text) != [] or not balanced(text):
        raise ValueError(
            f"The reference {reference[:60]!r} is not one answer: it has a box with text around "
            "it, several boxes, or a brace without its partner. Give the final answer alone."
        )
    number = _number(text)
    words = _words(reference) if number is None and is_text(reference) else None
    if not re.search(r"\w|∅|∞", text if words is None else words):
        raise ValueError(
            f"The reference {reference[:60]!r} says nothing: it has no letter and no digit. Give "
            "the final answer."
        )
    return Reference(text, number, words, _base(text), unit(reference))


def check_reference(text: str) -> None:
    r"""Refuse a reference that `boxed_correctness` could not use; it takes microseconds.

    ValueError for a text that is empty, too long or without a letter and a digit, for a box with
    text around it or several boxes, and for braces that do not pair. Whether math-verify
    understands a formula is not asked.

    >>> check_reference("\\boxed{\\frac{1}{2}}")
    >>> try:
    ...     check_reference("\\boxed{1} or \\boxed{2}")
    ... except ValueError as error:
    ...     print(str(error)[-28:])
    Give the final answer alone.
    """
    read_reference(text)


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
    text = _without_unit(clean(answer), gold.unit)
    if gold.text == text:
        return "equal"
    if not _count(_SECOND[1], gold.text):
        text = _without_names(text, gold.text)
    if gold.number is not None:
        return _said(_number(text) == gold.number)
    if gold.base is not None:
        return _said(_base(text) == gold.base or text == gold.base[0])
    if _is_hedge(text, gold.text) or _depth(text) > max(MAX_DEPTH, _depth(gold.text)):
        return "different"
    return VERIFIER.compare(*case_apart(gold.text, text))


def _number(text: str) -> Fraction | None:
    """Like `parse_exact`, and `(12)`; not `(1,000)`, which may be a point."""
    bare = text[1:-1] if text.startswith("(") and text.endswith(")") and "," not in text else text
    return parse_exact(bare)


def _without_unit(answer: str, unit: str) -> str:
    """`12 inches` is 12 where the reference is `12 \\text{ inches}`; no other bare word is."""
    rest = answer[: -len(unit)].rstrip() if unit and answer.endswith(unit) else ""
    return rest if rest and not rest[-1].isalpha() else answer


def _without_names(answer: str, reference: str) -> str:
    """Without `x=` in front; of a list, without the one name that all its values have.

    A list is so read only where the reference is one: `x=2, x=3` must not be right for 2 or 3.
    """
    name = _NAME.match(answer)
    if name is None:
        return answer
    values = _items(answer)
    if len(values) > 1 and len(_items(reference)) > 1:
        names = [_NAME.match(value) for value in values]
        if len({n and "".join(n[0].split()) for n in names}) == 1:
            rest = [value[n.end() :].strip() for value, n in zip(values, names, strict=True) if n]
            return ", ".join(rest)
    return answer[name.end() :].strip()


def _items(text: str) -> list[str]:
    """The values of a list, cut at the commas outside all brackets.

    >>> _items("2 \\\\text{ or } 3"), _items("(1,2)")
    (['2', '3'], ['(1,2)'])
    """
    items, depth = [""], 0
    for c in _JOINED.sub(",", text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            items.append("")
        else:
            items[-1] += c
    return [item.strip() for item in items]


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
