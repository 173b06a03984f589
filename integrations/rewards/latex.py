r"""Find the `\boxed{...}` of a completion and take the dressing off a LaTeX answer; linear time."""

import re

# Answers are at most this long; the longest references of MATH have about 150 characters.
MAX_ANSWER = 300

# A box without braces holds one sign, as TeX reads it. `\boxed 12` boxes the 1 but means 12, so
# only a sign that stands alone is read.
_ALONE = r"(?:(?<=[a-z])[0-9]|\s+[0-9A-Z])(?=\s|$|[$;:!?)]|\\[)\]]|[.,](?![0-9]))"
_TOKEN = re.compile(rf"\\(?:boxed|fbox)(?:\s*\{{|{_ALONE})|\\.|[{{}}]", re.DOTALL)
_BARE_BOX = re.compile(rf"\\(?:boxed|fbox){_ALONE}")
_WRAPPERS = re.compile(
    r"\\(?:boxed|fbox|text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|mathsf)\s*\{"
)
_UNIT = re.compile(
    r"\s*\\(?:text|textrm|mbox|mathrm)\s*\{(?P<words>[A-Za-z/.\s]{1,24})\}(?:\^(?:[23]|\{[23]\}))?$"
)
_NO_UNIT = frozenset(
    ("or", "and", "not", "but", "maybe", "no", "than", "if")
)  # these join two answers
_LETTERS = re.compile(r"[A-Za-z]{4,}(?:[ '-][A-Za-z]+)*|[A-Z][a-z]{2}")
_SHORT = frozenset(("yes", "no", "odd", "all", "any", "one", "two", "six", "ten"))
_DEGREE = re.compile(r"\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|°)$")
_CAPITAL = re.compile(r"\\math(?:bb|cal|scr|frak)\s*(?:[A-Z]|\{[^{}]*\})|\\[A-Za-z]+|[A-Z]")
_RENAMED = "abcghjklmnpqstuvwyz"  # letters without a meaning of their own, as d, e and i have
_REPLACED = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])"), ""),
    (re.compile(r"\{,\}|,\\!\s*"), ","),  # thousands: 1{,}000 and 1,\!000
    (re.compile(r"\\!|(?<=\d)\\,(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])"), " "),
    (re.compile(r"(?<!\\)\\([$%])"), r"\1"),
    (re.compile(r"(?<!\\)\\$"), ""),  # what is left of a `\ ` at the end
    (re.compile("\u2212"), "-"),
)


def boxes(text: str) -> list[str] | None:
    r"""What stands in each outermost `\boxed{...}` or `\fbox{...}`; None where one is not closed.

    `\{` and `\}` are no braces; a box in a box is part of the outer one. `\boxed 7` without braces
    holds a single digit or capital letter.

    >>> boxes("so \\boxed{3} and \\boxed{\\frac{1}{2}}"), boxes("\\boxed{3"), boxes("3")
    (['3', '\\frac{1}{2}'], None, [])
    """
    found: list[str] = []
    depth, start = 0, -1  # start: of the open box; depth: braces that are open within it
    for token in _TOKEN.finditer(text):
        opens = token[0].endswith("{") and token[0] != r"\{"
        if start < 0:
            if token[0].startswith(("\\boxed", "\\fbox")) and not opens:
                found.append(token[0][-1])
            elif opens and len(token[0]) > 1:
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


def unit(text: str) -> str:
    r"""The unit that `clean` takes off, as somebody may write it without `\text`; '' without one.

    >>> unit("12 \\text{ inches}"), unit("72\\mathrm{cm}^{2}"), unit("72")
    ('inches', 'cm^2', '')
    """
    found = _UNIT.search(_unwrapped(text))
    if found is None:
        return ""
    power = found[0].rpartition("^")[2].strip("{}") if found[0].endswith(("2", "3", "}")) else ""
    words = " ".join(found["words"].split())
    return f"{words}^{power}" if power in ("2", "3") else words


def case_apart(reference: str, answer: str) -> tuple[str, str]:
    """Both texts with capital letters renamed where they hold the same small letter as well.

    math-verify reads `X` as `x`, so that `R-r` would be 0. Commands are left as they are.

    >>> case_apart("x^2+1", "X^2+1"), case_apart("AB", "BA")
    (('x^2+1', 'a^2+1'), ('AB', 'BA'))
    """
    letters = set(reference + answer)
    free = [a for a in _RENAMED if a not in letters and a.upper() not in letters]
    twice = sorted(a for a in letters if "A" <= a <= "Z" and a.lower() in letters)
    names = dict(zip(twice, free, strict=False))
    if not names:
        return reference, answer
    first, second = (
        _CAPITAL.sub(lambda m: names.get(m[0], m[0]), text) for text in (reference, answer)
    )
    return first, second


def is_text(answer: str) -> bool:
    r"""Whether the whole answer is words: `\text{...}`, or letters as in `even`.

    Two or three letters without `\text` are a product, as in `xy`, but for a name (`Ann`) and the
    words in `_SHORT`.

    >>> [is_text(t) for t in ("\\text{Evelyn}", "even", "\\text{(B)}", "xy", "\\sqrt{2}")]
    [True, True, True, False, False]
    """
    wrapper = _WRAPPERS.match(answer.strip())
    if wrapper is not None and "text" in wrapper[0] and answer.strip() != _unwrapped(answer):
        return True
    text = _unwrapped(answer)
    return text.lower() in _SHORT or _LETTERS.fullmatch(text) is not None


def _unwrapped(text: str) -> str:
    r"""Without the `$`, `\(`, `{` or `\boxed{` around the whole text, however many there are."""
    while True:
        text = text.strip().removesuffix(".").strip()
        wrapper = _WRAPPERS.match(text)
        if wrapper is not None and _closes_at_end(text, wrapper.end()):
            text = text[wrapper.end() : -1]
        elif text.startswith("{") and _closes_at_end(text, 1):
            text = text[1:-1]
        elif _BARE_BOX.fullmatch(text):
            text = text[-1]
        elif len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text.strip("$"):
            text = text.strip("$")
        elif len(text) > 4 and text[:2] + text[-2:] in (r"\(\)", r"\[\]"):
            text = text[2:-2]
        else:
            return text


def balanced(text: str) -> bool:
    r"""Whether each `{` has its `}`; `\{` and `\}` are no braces."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0].endswith("{") and token[0] != r"\{") - (token[0] == "}")
        if depth < 0:
            return False
    return depth == 0


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
