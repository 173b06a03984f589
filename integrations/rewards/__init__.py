"""Reward functions for TRL trainers: rules (correctness, format) and LLM judges."""

from collections.abc import Callable

from .correctness import boxed_correctness, correctness, integer_answer, string_equality
from .form import reasoning_keywords, soft_format, strict_format, tag_count
from .judge import JudgeReward
from .paper_judge import PaperJudgeReward

RULES: dict[str, Callable[..., list[float]]] = {
    rule.__name__: rule
    for rule in (
        correctness,
        boxed_correctness,
        string_equality,
        integer_answer,
        strict_format,
        soft_format,
        tag_count,
        reasoning_keywords,
    )
}
"""The rules by name, for a command line."""

REWARD_RANGES = {
    "correctness": (0.0, 2.0),
    "boxed_correctness": (0.0, 2.0),
    "string_equality": (0.0, 2.0),
    "integer_answer": (0.0, 0.5),
    "strict_format": (0.0, 1.0),
    "soft_format": (0.0, 1.0),
    "tag_count": (0.0, 0.5),
    "reasoning_keywords": (0.0, 1.0),
}

__all__ = [
    "REWARD_RANGES",
    "RULES",
    "JudgeReward",
    "PaperJudgeReward",
    "boxed_correctness",
    "correctness",
    "integer_answer",
    "reasoning_keywords",
    "soft_format",
    "strict_format",
    "string_equality",
    "tag_count",
]
