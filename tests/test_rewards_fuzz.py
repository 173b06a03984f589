"""No rule raises or leaves its range: 10,000 texts of tags, numbers, LaTeX and broken unicode."""

import math
import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from integrations.rewards import REWARD_RANGES, RULES
from integrations.rewards.form import TAGS
from integrations.rewards.verifier import VERIFIER

PIECES = [
    *TAGS, "72", "72", "1,000", "$", "\n", " ", "<", ">", "</", "-", ".", "\\boxed{", "}", "{",
    "{1}{2}", "1/2", "\\", "\\text{", "^", "_", "\\sqrt", "=", "\\approx", "%", ",", "(", "]", "or",
    "\\left", "$$", "\\(", "\\)", "\ud800", "\udfff", "\x00", "\u2212", "\u202e", "\U0001f600",
    "\u0663", "\\begin{pmatrix}", "&", "\\\\", "x", "\u00e9", "9" * 50, "\\frac", "\u2028",
    "Therefore we add it all. ", "Then it is so much. ",
]  # fmt: skip
MATHS = [
    "2", "x", "\\sqrt{2}", "\\sqrt", "\\pi", "i", "+", "-", "^", "^{2}", "_", "\\frac{1}{2}", "/",
    "(", ")", "[", "]", ",", "\\{", "\\}", "\\cup", "\\infty", "\\cdot", "|", "\\sin", "\\log",
    "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\u00e9", "\ud800", "^{x}", "0",
]  # fmt: skip
WRAPPED = ("{}", "{}", "<reasoning>a</reasoning><answer>{}</answer>", "so \\boxed{{{}}}")
BATCH, BATCHES = 100, 200


def text_of(draw: random.Random) -> str:
    pieces = draw.choices(PIECES, k=min(20, int(draw.expovariate(0.3))))
    if draw.random() < 0.2:
        pieces.append(chr(draw.randrange(0x110000)) * draw.randrange(4))
    return draw.choice(WRAPPED).format("".join(pieces))


def check(completions: list[Any], references: list[str], found: Counter[str]) -> None:
    rewards: dict[str, list[float]] = {}
    for name, rule in RULES.items():
        values = rule(prompts=[""], completions=completions, reference=references)
        low, high = REWARD_RANGES[name]
        assert len(values) == len(completions)
        assert all(math.isfinite(value) and low <= value <= high for value in values)
        found[name] += sum(value > 0 for value in values)
        rewards[name] = values
    pairs = zip(rewards["strict_format"], rewards["soft_format"], strict=True)
    assert all(strict <= soft for strict, soft in pairs)


def test_ten_thousand_texts() -> None:
    seen: set[str] = set()
    found: Counter[str] = Counter()

    # A seed and not the texts: drawn piece by piece, one in ten batches would be a new one.
    @settings(max_examples=BATCHES, deadline=None, database=None)
    @given(st.integers(min_value=0, max_value=2**64))
    def run(seed: int) -> None:
        draw = random.Random(seed)
        texts = [text_of(draw) for _ in range(BATCH)]
        seen.update(texts)
        check(texts, ["72", "1000"] * (BATCH // 2), found)

    run()
    assert len(seen) > 10_000  # short texts occur more than once
    assert all(found[name] > 10 for name in RULES), found


def test_texts_that_math_verify_reads() -> None:
    draw = random.Random(0)
    before = VERIFIER.comparisons
    texts = [
        "\\boxed{" + "".join(draw.choices(MATHS, k=draw.randrange(1, 6))) + "}" for _ in range(90)
    ]
    check(texts, ["x^2+1", "(1,2]", "\\sqrt{2}"] * 30, Counter())
    assert VERIFIER.comparisons > before + 30


PARTS = st.dictionaries(st.sampled_from(["content", "text", "type", "role"]), st.text() | st.none())
COMPLETIONS = st.none() | st.integers() | st.floats() | PARTS | st.lists(PARTS | st.text())


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(COMPLETIONS, min_size=5, max_size=5))
def test_completions_that_are_no_texts(completions: list[Any]) -> None:
    check(completions, ["72"] * 5, Counter())
