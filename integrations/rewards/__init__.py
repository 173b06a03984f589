"""Reward functions for TRL trainers: rules (correctness, format) and an LLM judge."""

from .correctness import (
    REWARD_RANGES,
    correctness,
    integer_answer,
    soft_format,
    strict_format,
    tag_count,
)
from .judge import JudgeReward

__all__ = [
    "REWARD_RANGES",
    "JudgeReward",
    "correctness",
    "integer_answer",
    "soft_format",
    "strict_format",
    "tag_count",
]
