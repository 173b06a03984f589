"""Read one number written by a person or a model: `72`, `72.0`, `$72`, `1,000`, `-3.5`, `1/2`."""

import re
from decimal import Decimal
from fractions import Fraction

# Longer digit strings are no school maths, and unbounded ones cost quadratic time to convert.
MAX_CHARS = 40

_NUMBER = re.compile(
    r"(?P<sign>[+-]?) ?[$€£]? ?(?P<inner>[+-]?)"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r" ?[%€£]?\.?"
)

_QUOTIENT = re.compile(
    r"\\frac ?\{([^{}]+)\} ?\{([^{}]+)\}|\\frac ?([0-9]) ?([0-9])|([^/]+)/([^/]+)"
)
_MIXED = re.compile(r"([0-9]{1,15}) ?(\\frac.+)|([0-9]{1,15}) ([0-9]+ ?/ ?[0-9]+)")
_SCIENTIFIC = re.compile(
    r"([^\\×*]+)(?:\\times|\\cdot|×|\*) ?10 ?\^ ?(?:\{ ?([+-]?[0-9]{1,2}) ?\}|([0-9]))\.?"
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


def parse_exact(text: str) -> Fraction | None:
    r"""Like `parse_number`, and fractions too: 1/2, \frac{1}{2}, 1 1/2; also 8.64 \times 10^4.

    Nothing else is computed: `60+12` and `2^3` are None. A percent sign is dropped as in
    `parse_number`, so 50% is 50 and not 1/2.

    >>> [str(parse_exact(t)) for t in ("72.0", "1/2", "-\\frac{1}{2}", "1 1/2", "60+12")]
    ['72', '1/2', '-1/2', '3/2', 'None']
    """
    stripped = " ".join(text.replace("\u2212", "-").split())
    if len(stripped) > 2 * MAX_CHARS:
        return None
    value = parse_number(stripped)
    if value is not None:
        return Fraction(value)
    power = _SCIENTIFIC.fullmatch(stripped)
    if power is not None:
        value = parse_number(power[1])
        return (
            None if value is None else Fraction(value) * Fraction(10) ** int(power[2] or power[3])
        )
    negative, rest = stripped.startswith("-"), stripped.removeprefix("-").strip()
    mixed = _MIXED.fullmatch(rest)
    if mixed is None:
        quotient = _quotient(rest)
        return None if quotient is None else -quotient if negative else quotient
    part = _quotient(mixed[2] or mixed[4])
    if part is None or part < 0:  # "1 -1/2" would be a difference
        return None
    whole = int(mixed[1] or mixed[3]) + part
    return -whole if negative else whole


def _quotient(text: str) -> Fraction | None:
    match = _QUOTIENT.fullmatch(text.removesuffix(".").removesuffix("%").strip())
    if match is None:
        return None
    top, bottom = (parse_number(part) for part in match.groups() if part is not None)
    return None if top is None or not bottom else Fraction(top) / Fraction(bottom)


def format_number(value: Decimal) -> str:
    """Write a number in one form: no exponent, no trailing zeros, no negative zero.

    >>> [format_number(Decimal(t)) for t in ("72.0", "1000", "-0")]
    ['72', '1000', '0']
    """
    if not value:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
