"""RLHF on real models: the options, and the task of an RL run on what the stages have left."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reward_models.preferences import load_preferences
from ..rewards.correctness import completion_text
from ..rewards.pretrained import load_tokenizer
from .files import (
    data_fingerprint,
    hold_out,
    key_of,
    load_demonstrations,
    load_prompts,
)
from .options import RlhfConfig

if TYPE_CHECKING:
    from ..evaluate import Bench
    from ..tasks import Task

SHOWN = 12  # prompts whose completions are shown before and after


def read_preferences(config: RlhfConfig) -> list[dict[str, Any]]:
    """The checked pairs of `preferences`."""
    assert config.preferences is not None
    bad: Any = config.bad_rows
    rows: Any = load_preferences(config.preferences, config.split, config.limit, bad)
    return list(rows)


def read_prompts(config: RlhfConfig) -> tuple[list[Any], list[Any]]:
    """The prompts of RL and those that are held out."""
    source = config.prompts or config.preferences
    assert source is not None
    if config.prompts:
        prompts = load_prompts(config.prompts, config.split, config.limit)
    else:
        prompts = [row["prompt"] for row in read_preferences(config)]
    return hold_out(prompts, config.eval_prompts, source)


def read_demonstrations(config: RlhfConfig) -> list[dict[str, Any]]:
    """The demonstrations of `sft`, but for held-out prompts; ValueError if none is left."""
    held_out = {key_of(prompt) for prompt in read_prompts(config)[1]}
    rows = load_demonstrations(config.sft_kind, config.split, config.limit)
    rows = [row for row in rows if key_of(row["prompt"]) not in held_out]
    if not rows:
        raise ValueError(f"--sft {config.sft_kind}: each of its prompts is held out for evaluation")
    return rows


def device_of(config: dict[str, Any]) -> str:
    """Where reward models and judges are held, given the trainer's config."""
    import torch

    return "cpu" if config.get("use_cpu") or not torch.cuda.is_available() else "cuda"


def standard(scorer: Any, mean: float, sd: float) -> Any:
    """Scores of mean 0 and standard deviation 1 on the pairs."""

    def score(prompts: list[Any], texts: list[str]) -> list[float]:
        return [(value - mean) / sd for value in scorer(prompts, texts)]

    return score


def _rewards(rlhf: dict[str, Any], device: str) -> tuple[Any, Any, dict[str, Any]]:
    """Proxy, gold (or None) and the facts about them, from the folder of stage reward."""
    from .scorer import Scorer

    config = RlhfConfig(**rlhf["options"])
    facts = json.loads((Path(rlhf["reward"]) / "facts.json").read_text(encoding="utf-8"))
    given: Any = {"device": device, "batch": config.score_batch_size, "length": config.max_length}
    proxy = standard(Scorer(config.reward_model or rlhf["reward"], **given), **facts["proxy"])
    gold = None
    if config.gold_model:
        gold = standard(Scorer(config.gold_model, "--gold_model", **given), **facts["gold"])
    return proxy, gold, facts


def describe(config: RlhfConfig, folders: dict[str, Path]) -> dict[str, Any]:
    """What an arm carries of a real run: options, folders of the stages, a hash of the prompts."""
    options = {k: v for k, v in asdict(config).items() if v is not None}
    return {
        "model": config.model,  # whose parameters the policy has
        "options": options,
        "policy": str(folders["sft"].resolve()) if "sft" in folders else config.model,
        "reward": str(folders["reward"].resolve()),
        "data": data_fingerprint(config.prompts or config.preferences),
    }


def build_task(rlhf: dict[str, Any], config: dict[str, Any]) -> Task:
    """The RL task of what `describe` gives; the stages before it must be there."""
    import math

    import datasets

    from ..report import HackRule
    from ..tasks import Task, generate
    from ..worlds.preference_task import ACCURACY, BT_LOSS, group_accuracy, group_bt_loss

    options = RlhfConfig(**rlhf["options"])
    proxy, gold, facts = _rewards(rlhf, device_of(config))
    unit = facts["proxy"]["sd"]
    tokenizer: Any = load_tokenizer(rlhf["policy"], "--model")
    prompts, held_out = read_prompts(options)

    def true(texts: list[str], columns: dict[str, Any]) -> list[float]:
        contexts = columns["context"]
        values = gold(contexts, texts)
        if "log_metric" in columns:  # a trainer's call
            seen = proxy(contexts, texts)
            accuracy = group_accuracy(contexts, seen, values)
            loss = group_bt_loss(contexts, seen, values, unit)
            for name, value in ((ACCURACY, accuracy), (BT_LOSS, loss)):
                if value is not None:
                    columns["log_metric"](name, value)
        return values

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        shown = held_out[:SHOWN]
        temperature = config.get("temperature", 1.0)
        ids = generate(model, tokenizer, shown, seed, options.tokens, temperature)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        scores = (gold or proxy)(shown, texts)
        label = "gold" if gold else "proxy"
        return [
            {"prompt": prompt, "answer": f"{label} {value:.2f}", "completion": text}
            for prompt, value, text in zip(shown, scores, texts, strict=True)
        ]

    return Task(
        model=rlhf["policy"],
        tokenizer=tokenizer,
        data=datasets.Dataset.from_dict({"prompt": prompts, "context": prompts}),
        proxy=lambda texts, columns: proxy(columns["context"], texts),
        true=true if gold else None,
        is_formatted=lambda text: bool(text.strip()),
        to_texts=lambda completions, ids: [completion_text(c) for c in completions],
        samples=samples,
        watch_start=False,  # a second copy of a real model; the evaluation measures it
        model_init={"use_safetensors": True},
        watched=(ACCURACY, BT_LOSS) if gold else (),
        # both rewards have standard deviation 1 on the pairs, and no upper end
        hack=HackRule(proxy_floor=-math.inf, fall=0.5),
    )


def build_bench(rlhf: dict[str, Any], config: dict[str, Any], **settings: Any) -> Bench:
    """What the policies of a real run are evaluated on: the held-out prompts."""
    from ..evaluate import Bench
    from ..rewards.preference_judge import PreferenceJudge

    options, device = RlhfConfig(**rlhf["options"]), device_of(config)
    proxy, gold, facts = _rewards(rlhf, device)
    tokenizer: Any = load_tokenizer(rlhf["policy"], "--model")
    judge = None
    if options.judge_model and gold is None:
        judge = PreferenceJudge.from_pretrained(
            options.judge_model,
            option="--judge_model",
            device=device,
            batch_size=options.sample_batch_size,
            max_new_tokens=options.judge_new_tokens,
            patience=options.judge_patience,
        )
    _, held_out = read_prompts(options)
    limit = settings.pop("prompts", None)
    return Bench(
        tokenizer=tokenizer,
        prompts=held_out[:limit],
        tokens=options.tokens,
        to_text=lambda row: tokenizer.decode(row, skip_special_tokens=True),
        proxy=proxy,
        gold=gold,
        judge=judge,
        unit=facts["proxy"]["sd"],
        batch=options.sample_batch_size,
        **settings,
    )
