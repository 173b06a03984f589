"""The preference worlds as a task for `loop.make_trainer`: prompts, proxy, gold, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks import Task, generate
from . import topics as language
from .preferences import Proxy, RewardSettings, build_policy, build_reward_model

PROMPTS = 4_000  # in the data set that RL draws from
ACCURACY = "reward_accuracy"


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


def preference_task(settings: RewardSettings, exploit: float = 0.0) -> Task:
    """World A, or B with `exploit` > 0, built (or taken from the cache) on this machine.

    In the logs `true` is the gold reward, and `reward_accuracy` the share of pairs of completions
    of one prompt that the proxy puts in the order of the gold reward.
    """
    import datasets
    from transformers import AutoTokenizer

    world = settings.policy.language
    gold = language.Gold(world)
    proxy = Proxy(build_reward_model(settings), world, exploit)
    folder = build_policy(settings.policy)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = world.prompts(PROMPTS, 20_000 + settings.seed)

    def score(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        return proxy(columns["context"], texts)

    def true(texts: list[str], columns: dict[str, Any]) -> list[float]:
        contexts = columns["context"]
        values = gold(contexts, texts)
        if "log_metric" in columns:  # a trainer's call
            accuracy = group_accuracy(contexts, proxy(contexts, texts), values)
            if accuracy is not None:
                columns["log_metric"](ACCURACY, accuracy)
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
        watched=(ACCURACY,),
    )
