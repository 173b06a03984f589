"""Read one number written by a person or a model: `72`, `72.0`, `$72`, `1,000`, `-3.5`, `50%`."""

import re
from decimal import Decimal

# Longer digit strings are no school maths, and unbounded ones cost quadratic time to convert.
MAX_CHARS = 40

_NUMBER = re.compile(
    r"(?P<sign>[+-]?) ?[$€£]? ?(?P<inner>[+-]?)"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r" ?%?\.?"
)


def parse_number(text: str) -> Decimal | None:
    """Return the number that `text` is, or None where it is anything else.

    The whole text must be the number: `72 or 73` and `72 clips` are None, so that an answer cannot
    hedge. A currency sign, a percent sign and a final full stop are dropped (`50%` is 50);
    a comma must separate thousands (`1,00` is None).

    >>> [parse_number(t) for t in ("72", "$72.00", "1,000", "72 or 73")]
    [Decimal('72'), Decimal('72.00'), Decimal('1000'), None]
    """
    stripped = text.strip().replace("\u2212", "-")
    if len(stripped) > MAX_CHARS:
        return None
    match = _NUMBER.fullmatch(stripped)
    if match is None or (match["sign"] and match["inner"]):
        return None
    value = Decimal(match["digits"].replace(",", ""))
    return -value if "-" in (match["sign"], match["inner"]) else value


def format_number(value: Decimal) -> str:
    """Write a number in one form: no exponent, no trailing zeros, no negative zero.

    >>> [format_number(Decimal(t)) for t in ("72.0", "1000", "-0")]
    ['72', '1000', '0']
    """
    if not value:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
