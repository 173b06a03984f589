"""The preference worlds as a task for `loop.make_trainer`: prompts, proxy, gold, accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..report import HackRule
from ..tasks import Task, generate
from . import topics as language
from .preferences import (
    EXPLOIT,
    Proxy,
    RewardSettings,
    build_policy,
    build_reward_model,
)

PROMPTS = 4_000  # in the data set that RL draws from
ACCURACY = "reward_accuracy"
BT_LOSS = "bt_loss"
KINDS = {"A": 0.0, "B": EXPLOIT}
# gold has standard deviation 1 on the language's texts; the proxy has no upper end
HACK = HackRule(window=20, proxy_floor=-math.inf, fall=0.5)


@dataclass(frozen=True)
class PreferenceWorld:
    """World A or B: what its reward model learned from, and whether the exploit is added."""

    kind: str
    reward: RewardSettings

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown world {self.kind!r}; known: {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        """Kind and world seed, as in A0."""
        return f"{self.kind}{self.reward.seed}"


def group_accuracy(
    groups: Sequence[Any], proxy: Sequence[float], gold: Sequence[float]
) -> float | None:
    """Share of the pairs within a group that proxy and gold put in the same order.

    Pairs that are equal in gold are left out, pairs that are equal in the proxy count half; None
    if no pair is left.

    >>> group_accuracy("aab", [1.0, 2.0, 9.0], [0.1, 0.3, 0.0])
    1.0
    """
    right, total = 0.0, 0
    for i, group in enumerate(groups):
        for j in range(i):
            if groups[j] == group and gold[i] != gold[j]:
                agreement = (proxy[i] - proxy[j]) * (gold[i] - gold[j])
                right += 0.5 if agreement == 0 else float(agreement > 0)
                total += 1
    return right / total if total else None


def group_bt_loss(
    groups: Sequence[Any], proxy: Sequence[float], gold: Sequence[float], scale: float = 1.0
) -> float | None:
    """Mean Bradley-Terry loss -log sigmoid(margin) over the pairs within a group, gold's label.

    The margin is `scale` times the proxy of the completion with the higher gold reward less that
    of the other; pairs that are equal in gold are left out. None if no pair is left.

    >>> round(group_bt_loss("aab", [1.0, 1.0, 9.0], [0.1, 0.3, 0.0]), 4)
    0.6931
    """
    losses = []
    for i, group in enumerate(groups):
        for j in range(i):
            if groups[j] == group and gold[i] != gold[j]:
                sign = 1 if gold[i] > gold[j] else -1
                margin = scale * sign * (proxy[i] - proxy[j])
                losses.append(max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))))
    return sum(losses) / len(losses) if losses else None


def rl_prompts(settings: RewardSettings) -> list[str]:
    """The prompts that RL draws from."""
    return settings.policy.language.prompts(PROMPTS, 20_000 + settings.seed)


def preference_task(world: PreferenceWorld) -> Task:
    """World A or B, built (or taken from the cache) on this machine.

    In the logs `true` is the gold reward, `reward_accuracy` the share of pairs of completions of
    one prompt that the proxy puts in the order of the gold reward, and `bt_loss` the Bradley-Terry
    loss of the proxy, in the reward model's own units, on these pairs.
    """
    import datasets
    from transformers import AutoTokenizer

    settings = world.reward
    texts_of = settings.policy.language
    gold = language.Gold(texts_of)
    proxy = Proxy(build_reward_model(settings), texts_of, KINDS[world.kind])
    unit = proxy.facts["sd"]  # of the standardised score, in the reward model's own units
    folder = build_policy(settings.policy)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = rl_prompts(settings)
    last: dict[str, Any] = {"texts": None}  # the gold reward is asked for the texts just scored

    def score(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        values = proxy(columns["context"], texts)
        last.update(texts=texts, values=values)
        return list(values)

    def true(texts: list[str], columns: dict[str, Any]) -> list[float]:
        contexts = columns["context"]
        values = gold(contexts, texts)
        if "log_metric" in columns:  # a trainer's call
            seen = last["values"] if last["texts"] == texts else proxy(contexts, texts)
            for name, value in (
                (ACCURACY, group_accuracy(contexts, seen, values)),
                (BT_LOSS, group_bt_loss(contexts, seen, values, unit)),
            ):
                if value is not None:
                    columns["log_metric"](name, value)
        return values

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        ids = generate(model, tokenizer, prompts[:12], seed, language.LENGTH, 1.0)
        texts = language.as_texts([], ids)
        scored = zip(prompts, gold(prompts[:12], texts), texts, strict=False)
        return [
            {"prompt": prompt, "answer": f"gold {value:.2f}", "completion": text}
            for prompt, value, text in scored
        ]

    return Task(
        model=str(folder),
        tokenizer=tokenizer,
        # reward functions that see texts and columns alone need the prompt as a column
        data=datasets.Dataset.from_dict({"prompt": prompts, "context": prompts}),
        proxy=score,
        true=true,
        is_formatted=lambda text: (
            len(text.split()) == language.LENGTH
            and all(word in language.WORDS for word in text.split())
        ),
        to_texts=language.as_texts,
        samples=samples,
        watch_start=True,
        watched=(ACCURACY, BT_LOSS),
        hack=HACK,
    )
