"""The sentences of the generated word problems: themes with names, things and phrasings.

In a sentence `{a}` and `{b}` are numbers (at least 2, so plurals are right), `{e}` an equation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Texts = tuple[str, ...]
# kind of operation, sentence, line of the solution, question (empty: the story goes on)
Ending = tuple[str, str, str, str]

GIRLS: Texts = (
    *("Anna", "Maria", "Emma", "Lisa", "Sarah", "Julia", "Nina", "Grace"),
    *("Olivia", "Sophia", "Mia", "Carla", "Rosa", "Jane", "Betty", "Amy"),
)
BOYS: Texts = (
    *("Tom", "John", "James", "Mark", "Peter", "Paul", "Sam", "Ben"),
    *("Jack", "Carlos", "David", "Leo", "Adam", "Henry", "Mike", "Tim"),
)


@dataclass(frozen=True)
class Theme:
    """One kind of story; all sentences of a theme fit behind each other."""

    words: Mapping[str, Texts]  # drawn once per story
    plain: Texts  # openings with one quantity {a}
    sums: Texts  # openings with {a} + {b}
    products: Texts  # openings with {a} * {b}
    changes: Mapping[str, Texts]  # add, sub, mul and div (by {b}, said as {part})
    line: str  # how a step is written in the solution
    ask: Texts
    endings: tuple[Ending, ...]
    pairs: tuple[tuple[Ending, Ending], ...] = ()


_HOLDS = "{name} has {e} {things}."

THINGS = Theme(
    words={
        "things": (
            *("apples", "marbles", "cookies", "books", "pencils", "stickers", "oranges", "stamps"),
            *("toys", "cards", "shells", "flowers", "candies", "coins", "balloons", "eggs"),
            *("muffins", "crayons", "stones", "tickets"),
        ),
        "boxes": ("boxes", "bags", "baskets", "packs"),
        "place": ("bag", "room", "kitchen", "house", "school"),
    },
    plain=(
        "{name} has {a} {things}.",
        "{name} starts the week with {a} {things}.",
        "There are {a} {things} in {name}'s {place}.",
        "{name} collected {a} {things} last month.",
        "{friend} gave {name} {a} {things} for {his} birthday.",
        "{name} keeps {a} {things} in a drawer.",
    ),
    sums=(
        "{name} has {a} red {things} and {b} blue {things}.",
        "{name} bought {a} {things} on Monday and {b} {things} on Friday.",
        "{name} has {a} {things} at home and {b} {things} at school.",
        "{name} got {a} {things} from {friend} and {b} {things} from {his} aunt.",
        "{name} has {a} big {things} and {b} small {things}.",
    ),
    products=(
        "{name} buys {a} {boxes} with {b} {things} in each.",
        "{name} has {a} {boxes} of {b} {things} each.",
        "{name} gets {b} {things} every day for {a} days.",
        "{a} friends give {name} {b} {things} each.",
        "{name} has {a} shelves and puts {b} {things} on each of them.",
    ),
    changes={
        "add": (
            "{He} buys {b} more {things}.",
            "{friend} gives {him} {b} more.",
            "{He} finds {b} more {things} in the {place}.",
            "{He} wins {b} {things} in a game.",
            "Then {he} gets another {b} {things} from {his} mother.",
        ),
        "sub": (
            "{He} gives {b} of them to {friend}.",
            "{He} loses {b} of them.",
            "{He} sells {b} {things} at the market.",
            "Then {friend} takes {b} of the {things}.",
            "{He} throws away {b} old {things}.",
        ),
        "mul": (
            "A year later {he} has {b} times as many {things}.",
            "With some luck {he} makes that {b} times as many.",
            "{He} trades each of them for {b} other {things}.",
        ),
        "div": (
            "{He} keeps only {part} of them.",
            "At the end of the day only {part} of the {things} are left.",
        ),
    },
    line=_HOLDS,
    ask=(
        "How many {things} does {name} have now?",
        "How many {things} does {name} have in the end?",
        "How many {things} are there now?",
        "Now how many {things} does {he} have?",
    ),
    endings=(
        (
            "div",
            "{He} shares the {things} equally among {b} friends.",
            "Each friend gets {e} {things}.",
            "How many {things} does each friend get?",
        ),
        (
            "div",
            "{He} puts them in {boxes} of {b} {things} each.",
            "{name} needs {e} {boxes}.",
            "How many {boxes} does {he} need?",
        ),
        (
            "mul",
            "{He} sells all the {things} for ${b} each.",
            "{name} gets {e} dollars.",
            "How many dollars does {name} get?",
        ),
        (
            "add",
            "{friend} has {b} more {things} than {name}.",
            "{friend} has {e} {things}.",
            "How many {things} does {friend} have?",
        ),
        (
            "mul",
            "{friend} has {b} times as many {things} as {name}.",
            "{friend} has {e} {things}.",
            "How many {things} does {friend} have?",
        ),
        (
            "sub",
            "{friend} has {b} fewer {things} than {name}.",
            "{friend} has {e} {things}.",
            "How many {things} does {friend} have?",
        ),
        (
            "sub",
            "{He} needs {b} of them for a party.",
            "{name} can give away {e} {things}.",
            "How many {things} can {he} give away?",
        ),
    ),
    pairs=(
        (
            (
                "add",
                "{friend} has {b} more {things} than {name}.",
                "{friend} has {e} {things}.",
                "",
            ),
            ("both", "", "Together they have {e} {things}.", "How many do they have together?"),
        ),
        (
            (
                "mul",
                "{friend} has {b} times as many {things} as {name}.",
                "{friend} has {e} {things}.",
                "",
            ),
            (
                "both",
                "",
                "Together they have {e} {things}.",
                "How many {things} do they have in all?",
            ),
        ),
        (
            ("mul", "{He} sells the {things} for ${b} each.", "{name} gets {e} dollars.", ""),
            (
                "sub",
                "Then {he} spends ${b} on lunch.",
                "{name} has {e} dollars left.",
                "How many dollars are left?",
            ),
        ),
    ),
)

MONEY = Theme(
    words={
        "gift": ("a hat", "a book", "a toy", "lunch", "a shirt", "a game", "shoes", "a ball"),
        "job": ("cleaning cars", "cutting grass", "walking dogs", "selling newspapers"),
    },
    plain=(
        "{name} has ${a} in {his} pocket.",
        "{name} has saved ${a}.",
        "{name} gets ${a} from {his} grandmother.",
        "{name} earned ${a} by {job}.",
    ),
    sums=(
        "{name} earned ${a} on Saturday and ${b} on Sunday.",
        "{name} has ${a} in {his} pocket and ${b} in the bank.",
        "{name} gets ${a} for {job} and ${b} for helping {friend}.",
    ),
    products=(
        "{name} earns ${b} an hour by {job} and works {a} hours.",
        "{name} saves ${b} every week for {a} weeks.",
        "{name} sells {a} tickets for ${b} each.",
        "{name} has {a} customers and each of them pays {him} ${b}.",
    ),
    changes={
        "add": (
            "Then {his} father gives {him} ${b} more.",
            "{He} earns ${b} more by {job}.",
            "{friend} pays {him} back ${b}.",
            "Then {he} finds ${b} on the street.",
        ),
        "sub": (
            "{He} spends ${b} on {gift}.",
            "{He} pays ${b} for {gift}.",
            "{He} lends ${b} to {friend}.",
            "{He} gives ${b} to charity.",
        ),
        "mul": (
            "By the end of the year {he} has {b} times as much money.",
            "{He} works hard and makes that {b} times as much.",
        ),
        "div": (
            "{He} spends some of it and keeps {part} of it.",
            "{He} gives money to {his} sister and has {part} of it left.",
        ),
    },
    line="{name} has {e} dollars.",
    ask=(
        "How many dollars does {name} have now?",
        "How much money does {name} have in dollars?",
        "How many dollars are left?",
        "How much money does {he} have in the end?",
    ),
    endings=(
        (
            "div",
            "{He} spends all of it on books for ${b} each.",
            "{name} buys {e} books.",
            "How many books does {he} buy?",
        ),
        (
            "div",
            "{He} shares the money equally among {b} children.",
            "Each child gets {e} dollars.",
            "How many dollars does each child get?",
        ),
        (
            "add",
            "{friend} has ${b} more than {name}.",
            "{friend} has {e} dollars.",
            "How many dollars does {friend} have?",
        ),
        (
            "mul",
            "{friend} has {b} times as much money as {name}.",
            "{friend} has {e} dollars.",
            "How many dollars does {friend} have?",
        ),
        (
            "sub",
            "{He} wants to keep ${b}.",
            "{name} can spend {e} dollars.",
            "How many dollars can {he} spend?",
        ),
    ),
    pairs=(
        (
            ("add", "{friend} has ${b} more than {name}.", "{friend} has {e} dollars.", ""),
            (
                "both",
                "",
                "Together they have {e} dollars.",
                "How much money do they have together?",
            ),
        ),
        (
            ("mul", "{friend} has {b} times as much.", "{friend} has {e} dollars.", ""),
            (
                "both",
                "",
                "Together they have {e} dollars.",
                "How many dollars do they have in total?",
            ),
        ),
    ),
)

WORK = Theme(
    words={
        "did": ("read", "wrote", "printed", "copied"),
        "things": ("pages", "letters", "stories", "notes"),
    },
    plain=(
        "{name} {did} {a} {things} on Monday.",
        "{name} {did} {a} {things} in the morning.",
        "Last week {name} {did} {a} {things}.",
    ),
    sums=(
        "{name} {did} {a} {things} in the morning and {b} in the afternoon.",
        "{name} {did} {a} {things} on Monday and {b} on Tuesday.",
        "{name} {did} {a} long {things} and {b} short {things}.",
    ),
    products=(
        "{name} {did} {b} {things} a day for {a} days.",
        "{name} {did} {b} {things} an hour for {a} hours.",
        "{name} {did} {a} {things} in an hour and worked {b} hours.",
    ),
    changes={
        "add": (
            "Then {he} {did} {b} more.",
            "In the evening {he} {did} {b} more {things}.",
            "With the help of {friend} {he} adds {b} {things}.",
        ),
        "sub": (
            "{b} of the {things} do not count.",
            "{He} has to do {b} of them again.",
            "{friend} {did} {b} of these {things} for {him}.",
        ),
        "mul": (
            "{He} does the same for {b} weeks.",
            "In a month {he} does {b} times as many.",
        ),
        "div": (
            "Only {part} of them are for school.",
            "But {part} of the {things} is all that {he} can use.",
        ),
    },
    line="That makes {e} {things}.",
    ask=(
        "How many {things} is that?",
        "How many {things} are that in total?",
        "How many {things} does that make for {name}?",
    ),
    endings=(
        (
            "div",
            "It takes {name} an hour for every {b} {things}.",
            "It takes {name} {e} hours.",
            "How many hours does it take?",
        ),
        (
            "mul",
            "Each of the {things} takes {b} minutes.",
            "It takes {name} {e} minutes.",
            "How many minutes does it take?",
        ),
        (
            "add",
            "{friend} {did} {b} {things} more than {name}.",
            "{friend} {did} {e} {things}.",
            "How many are that for {friend}?",
        ),
        (
            "mul",
            "{friend} {did} {b} times as many {things}.",
            "{friend} {did} {e} {things}.",
            "How many are that for {friend}?",
        ),
    ),
)

# A story about things is drawn twice as often: it has the most phrasings.
THEMES = (THINGS, THINGS, MONEY, WORK)
