r"""Find the `\boxed{...}` of a completion and take the dressing off a LaTeX answer; linear time."""

import re

# Answers are at most this long; the longest references of MATH have about 150 characters.
MAX_ANSWER = 300

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_WRAPPERS = re.compile(
    r"\\(?:boxed|fbox|text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|mathsf)\s*\{"
)
_UNIT = re.compile(
    r"\s*\\(?:text|textrm|mbox|mathrm)\s*\{(?P<words>[A-Za-z/.\s]{1,24})\}(?:\^(?:[23]|\{[23]\}))?$"
)
_NO_UNIT = frozenset(
    ("or", "and", "not", "but", "maybe", "no", "than", "if")
)  # these join two answers
_DEGREE = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|°)$")
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])"), ""),
    (re.compile(r"\{,\}|,\\!\s*"), ","),  # thousands: 1{,}000 and 1,\!000
    (re.compile(r"\\!|(?<=\d)\\,(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])"), " "),
    (re.compile(r"(?<!\\)\\([$%])"), r"\1"),
    (re.compile("\u2212"), "-"),
)


def boxes(text: str) -> list[str] | None:
    r"""What stands in each outermost `\boxed{...}` or `\fbox{...}`; None where one is not closed.

    `\{` and `\}` are no braces; a box in a box is part of the outer one.

    >>> boxes("so \\boxed{3} and \\boxed{\\frac{1}{2}}"), boxes("\\boxed{3"), boxes("3")
    (['3', '\\frac{1}{2}'], None, [])
    """
    found: list[str] = []
    depth, start = 0, -1  # start: of the open box; depth: braces that are open within it
    for token in _TOKEN.finditer(text):
        opens = token[0].endswith("{") and token[0] != r"\{"
        if start < 0:
            if opens and len(token[0]) > 1:
                start, depth = token.end(), 1
        elif opens:
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if not depth:
                found.append(text[start : token.start()].strip())
                start = -1
    return None if start >= 0 else found


def clean(text: str) -> str:
    r"""Take off what does not change the value: `$...$`, `\boxed{}`, spacing, unit, full stop.

    A unit is `\text{...}` (or `\mathrm`, `\mbox`) of letters at the end, or a degree sign. Words
    outside `\text` stay, and so does all that joins two answers.

    >>> [clean(t) for t in ("$\\dfrac{1}{2}$", "72\\text{ cm}^2", "90^\\circ", "1{,}000")]
    ['\\frac{1}{2}', '72', '90', '1,000']
    """
    text = _unwrapped(text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _unwrapped(text)
    unit = _UNIT.search(text)
    if unit is not None and not _NO_UNIT & set(unit["words"].lower().split()):
        rest = text[: unit.start()]
        if rest and not rest.endswith(("^", "_", "{", "\\")):
            text = rest
    degree = _DEGREE.search(text)
    return (text if degree is None else text[: degree.start()]).strip()


def is_text(answer: str) -> bool:
    r"""Whether the whole answer is words: `\text{...}`, or letters as in `even`.

    >>> [is_text(t) for t in ("\\text{Evelyn}", "even", "\\text{(B)}", "xy", "\\sqrt{2}")]
    [True, True, True, False, False]
    """
    wrapper = _WRAPPERS.match(answer.strip())
    if wrapper is not None and "text" in wrapper[0] and answer.strip() != _unwrapped(answer):
        return True
    return re.fullmatch(r"[A-Za-z]{4,}(?:[ '-][A-Za-z]+)*", _unwrapped(answer)) is not None


def _unwrapped(text: str) -> str:
    r"""Without the `$`, `\(` or `\boxed{` that enclose the whole text, however many there are."""
    while True:
        text = text.strip().removesuffix(".").strip()
        wrapper = _WRAPPERS.match(text)
        if wrapper is not None and _closes_at_end(text, wrapper.end()):
            text = text[wrapper.end() : -1]
        elif len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text.strip("$"):
            text = text.strip("$")
        elif len(text) > 4 and text[:2] + text[-2:] in (r"\(\)", r"\[\]"):
            text = text[2:-2]
        else:
            return text


def _closes_at_end(text: str, start: int) -> bool:
    """Whether the brace that is open at `start` is closed by the last character."""
    depth = 1
    for token in _TOKEN.finditer(text, start):
        if token[0].endswith("{") and token[0] != r"\{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if not depth:
                return token.end() == len(text)
    return False
