"""The rule world as a task for `loop.make_trainer`: prompts, correctness, terms of the form."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from ..rewards.correctness import integer_answer
from ..rewards.form import soft_format, strict_format, tag_count
from ..tasks import Task, generate
from . import rule_sums as sums

CORRECT = 2.0  # points for a right answer
FORM = (integer_answer, strict_format, soft_format, tag_count)  # up to 3 points together
STEPS = "shows_steps"
SAMPLES = 4  # completions of each held-out problem


def accuracy_name(level: int) -> str:
    """The name, in the logs, of the accuracy on problems of `level` terms."""
    return f"accuracy_{level}_terms"


def held_out(
    model: Any, tokenizer: Any, settings: sums.RuleSettings, seed: int
) -> dict[str, float]:
    """What the policy writes on problems that nothing was trained on: shares in [0, 1].

    `accuracy` and `strict` over all completions (four for each test problem, temperature 1), and
    the accuracy of each level under `accuracy_name`.
    """
    tested = sums.problems(settings, "test") * SAMPLES
    prompts = [problem.prompt for problem in tested]
    texts = [
        sums.to_text(row)
        for row in generate(model, tokenizer, prompts, seed, sums.MAX_COMPLETION, 1.0)
    ]
    right = [sums.true_reward(t, p.answer) for t, p in zip(texts, tested, strict=True)]
    shares = {
        "accuracy": sum(right) / len(right),
        "strict": sum(map(sums.is_formatted, texts)) / len(texts),
    }
    for level in sums.LEVELS:
        here = [value for value, p in zip(right, tested, strict=True) if p.level == level]
        if here:
            shares[accuracy_name(level)] = sum(here) / len(here)
    return shares


def _on_texts(term: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """`term` on what stands before the end token, under its own name, by which TRL logs it."""

    def reward(
        prompts: list, completions: list, completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        return term(prompts, sums.as_texts(completions, completion_ids))

    reward.__name__ = term.__name__
    return reward


def rule_task(
    settings: sums.RuleSettings, only: Sequence[str] | None = None, form_weight: float = 1.0
) -> Task:
    """The rule world, built (or taken from the cache) on this machine.

    Proxy and truth are the same here, correctness as 0 or 1; the first is paid 2 points. What makes
    the paid reward another one is the form: integer_answer, strict_format, soft_format and
    tag_count, together up to 3 points, each multiplied by `form_weight` (0: the control, which is
    paid for correctness alone). `only` names the terms of the form that are paid, the others being
    logged alone; None: all of them.

    In the logs `accuracy_<n>_terms` is the accuracy on problems of n terms, `shows_steps` the share
    of completions with written steps, `rewards/<term>/mean` the points of a term.
    """
    import datasets
    from transformers import AutoTokenizer

    names = [term.__name__ for term in FORM]
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise ValueError(f"unknown terms {', '.join(unknown)}; known: {', '.join(names)}")
    if not form_weight >= 0:
        raise ValueError(f"form_weight must be at least 0, got {form_weight}")
    folder = sums.build_policy(settings)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    train = sums.problems(settings)

    def correct(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        pairs = zip(texts, columns["answer"], strict=True)
        return [sums.true_reward(text, answer) for text, answer in pairs]

    def true(texts: list[str], columns: dict[str, Any]) -> list[float]:
        values = correct(texts, columns)
        if "log_metric" in columns:  # a trainer's call
            for level in sums.LEVELS:
                pairs = zip(values, columns["level"], strict=True)
                here = [value for value, of in pairs if of == level]
                if here:
                    columns["log_metric"](accuracy_name(level), sum(here) / len(here))
            columns["log_metric"](STEPS, sum(map(sums.shows_steps, texts)) / len(texts))
        return values

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        chosen = random.Random(f"samples {seed}").sample(sums.problems(settings, "test"), 12)
        rows = generate(model, tokenizer, [p.prompt for p in chosen], seed, sums.MAX_COMPLETION, 1)
        return [
            {"prompt": p.prompt, "answer": p.answer, "completion": sums.to_text(row)}
            for p, row in zip(chosen, rows, strict=True)
        ]

    columns = ("prompt", "answer", "level")
    return Task(
        model=str(folder),
        tokenizer=tokenizer,
        data=datasets.Dataset.from_dict({c: [getattr(p, c) for p in train] for c in columns}),
        proxy=correct,
        true=true,
        is_formatted=sums.is_formatted,
        to_texts=sums.as_texts,
        samples=samples,
        watch_start=True,
        reward_scale=CORRECT,
        further=[_on_texts(term) for term in FORM],
        further_weights=[form_weight * (only is None or name in only) for name in names],
        watched=(
            "reward",
            *(f"rewards/{name}/mean" for name in names),
            *map(accuracy_name, sums.LEVELS),
            STEPS,
        ),
    )
