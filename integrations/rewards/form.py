"""Rewards on the form of `<reasoning>...</reasoning><answer>...</answer>`, and how it is read.

None of these functions raises, whatever a completion holds, and each takes linear time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")

REASONING_KEYWORDS = (
    "first", "second", "third", "next", "then", "finally",
    "therefore", "thus", "hence", "because", "since", "suppose",
)  # fmt: skip

_WORD = re.compile(r"\w")
_KEYWORD = re.compile(rf"\b(?:{'|'.join(REASONING_KEYWORDS)})\b")
_SENTENCE_END = re.compile(r"[.!?\n]+")
_LEAST_WORDS = 4  # a sentence with fewer is a bare keyword, not a step


@dataclass(frozen=True)
class Blocks:
    """A completion cut at its four tags."""

    before: str
    reasoning: str
    between: str
    answer: str
    after: str


def completion_text(completion: Any) -> str:
    """The text of a TRL completion: a string, or a list of chat messages; "" for anything else.

    Only the messages of the assistant count where a message names its role: what a tool or a user
    said is not the policy's.

    >>> completion_text([{"role": "assistant", "content": "4"}, {"role": "tool", "content": "5"}])
    '4'
    """
    parts: list[str] = []
    waiting: list[Any] = [completion]
    seen: set[int] = set()
    while waiting:  # not recursion: a list can be nested deeper than Python's stack
        item = waiting.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        if not isinstance(item, dict | list | tuple) or id(item) in seen:
            continue
        seen.add(id(item))  # a list can hold itself
        if isinstance(item, dict):
            if item.get("role", "assistant") == "assistant":
                content = item.get("content")
                waiting.append(item.get("text") if content is None else content)
        else:
            waiting.extend(reversed(item))
    return "".join(parts)


def split_blocks(text: str) -> Blocks | None:
    """Cut `text` at the four tags; None unless each tag stands there once, in the right order."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    starts = [text.index(tag) for tag in TAGS]
    if starts != sorted(starts):
        return None
    ends = [start + len(tag) for start, tag in zip(starts, TAGS, strict=True)]
    return Blocks(
        before=text[: starts[0]],
        reasoning=text[ends[0] : starts[1]],
        between=text[ends[1] : starts[2]],
        answer=text[ends[2] : starts[3]],
        after=text[ends[3] :],
    )


def extract_answer(text: str) -> str | None:
    """Return what stands in the one `<answer>` block; None where there is none, or more than one.

    Two answer blocks are a hedge: taking the first or the last would pay for guessing.

    >>> extract_answer("so <answer> 72 </answer>"), extract_answer("<answer>72</answer>" * 2)
    ('72', None)
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    start, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
    return text[start:end].strip() if start <= end else None


def has_soft_format(text: str) -> bool:
    """Both blocks, in order, neither of them empty; other text around them is allowed."""
    blocks = split_blocks(text)
    return (
        blocks is not None
        and _WORD.search(blocks.reasoning) is not None
        and _WORD.search(blocks.answer) is not None
    )


def has_strict_format(text: str) -> bool:
    """The soft format, and nothing but white space before, between and after the blocks."""
    blocks = split_blocks(text)
    if blocks is None or not has_soft_format(text):
        return False
    return not (blocks.before + blocks.between + blocks.after).strip()


def strict_format(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """1 where the completion is the two blocks and nothing else, else 0.

    >>> strict_format([], ["<reasoning>6 * 12</reasoning><answer>72</answer>", "72"])
    [1.0, 0.0]
    """
    return [1.0 if has_strict_format(completion_text(c)) else 0.0 for c in completions]


def soft_format(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where both blocks are there in order, whatever stands around them, else 0.

    >>> soft_format([], ["Sure! <reasoning>6 * 12</reasoning><answer>72</answer>", "72"])
    [1.0, 0.0]
    """
    return [1.0 if has_soft_format(completion_text(c)) else 0.0 for c in completions]


def tag_count(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """0.125 per tag that stands there once, less 0.001 per character after the end, at least 0.

    Without the floor a long tail after `</answer>` costs more than all rewards together.

    >>> tag_count([], ["<answer>72</answer>", "<answer>72</answer> Bye.", "72"])
    [0.25, 0.246, 0.0]
    """
    return [_tag_count(completion_text(c)) for c in completions]


def _tag_count(text: str) -> float:
    present = sum(text.count(tag) == 1 for tag in TAGS)
    tail = len(text.rpartition("</answer>")[2].strip()) if "</answer>" in text else 0
    return max(0.0, 0.125 * present - 0.001 * tail)


def reasoning_keywords(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """1/3 per distinct keyword of reasoning, at most 1.

    Keywords: `REASONING_KEYWORDS`, whole words, upper or lower case. A sentence pays for its first
    keyword only and must have four words, so neither one word again and again nor a bare list of
    keywords pays.

    >>> text = "First, 6 * 12 is 72. Then we add 3. Therefore the sum is 75."
    >>> reasoning_keywords([], [text, "First. Then. Thus.", "First we add 1. First we add 2."])
    [1.0, 0.0, 0.3333333333333333]
    """
    return [_reasoning_keywords(completion_text(c)) for c in completions]


def _reasoning_keywords(text: str) -> float:
    found: set[str] = set()
    for sentence in _SENTENCE_END.split(text.lower()):
        if len(sentence.split(maxsplit=_LEAST_WORDS)) >= _LEAST_WORDS:
            found.update(_KEYWORD.findall(sentence)[:1])
    return min(3, len(found)) / 3
