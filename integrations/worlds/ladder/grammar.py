"""The one grammar of the ladder: READ, SET and SAY lines, parsed to data; nothing is executed.

A completion is text; lines end at a newline or a semicolon. Three forms mean something::

    READ name            reads an entry (everything that can be read stands in the prompt already)
    SET key=value        changes an entry of the environment's state
    SAY key=value        answers the user

Lines that do not begin with one of these words are ignored: a model may think aloud. A line that
does begin with one and goes on wrongly makes the whole completion malformed, as do two different
values said for one key: a completion must not answer both ways.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VERBS = ("READ", "SET", "SAY")
LINE_END = re.compile(r"[\n;]")
NAME = r"[a-z][a-z0-9_]{0,15}"
VALUE = r"-?[A-Za-z0-9_.]{1,16}"
FORMS = {
    "READ": re.compile(rf"READ +({NAME})"),
    "SET": re.compile(rf"SET +({NAME}) ?= ?({VALUE})"),
    "SAY": re.compile(rf"SAY +({NAME}) ?= ?({VALUE})"),
}


@dataclass(frozen=True)
class Actions:
    """What a completion does: entries read, values set (the last one counts), values said."""

    reads: tuple[str, ...]
    sets: dict[str, str]
    says: dict[str, str]


def parse(text: str) -> Actions | None:
    """The actions of a completion; None where it is malformed. Never raises on any text.

    >>> parse("I add them up\\nSET b=7 ; SAY complete= yes")
    Actions(reads=(), sets={'b': '7'}, says={'complete': 'yes'})
    >>> parse("SET b 7") is None, parse("SAY answer=3\\nSAY answer=4") is None
    (True, True)
    """
    reads: list[str] = []
    sets: dict[str, str] = {}
    says: dict[str, str] = {}
    for line in LINE_END.split(text):
        line = line.strip(" \t\r")
        words = line.split(maxsplit=1)  # at any white space: a tab does not hide a verb
        if not words or words[0] not in VERBS:
            continue
        verb = words[0]
        found = FORMS[verb].fullmatch(line)
        if found is None:
            return None
        if verb == "READ":
            reads.append(found[1])
        elif verb == "SET":
            sets[found[1]] = found[2]
        elif says.setdefault(found[1], found[2]) != found[2]:
            return None
    return Actions(tuple(reads), sets, says)


def number(value: str | None) -> int | None:
    """A value as a whole number; None where it is none (or absent).

    Only ASCII digits in the plain form count: no sign before zero, no leading zeros, no points.

    >>> number("12"), number("-3"), number("012"), number("two"), number(None)
    (12, -3, None, None, None)
    """
    if value is None or re.fullmatch(r"0|-?[1-9][0-9]{0,8}", value) is None:
        return None
    return int(value)
