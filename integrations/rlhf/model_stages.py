"""The stages before RL on real models; SFT and reward model are built here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..cache import write_text
from ..reward_models.preferences import check_preferences
from ..reward_models.trainer import BadReward
from ..rewards.correctness import completion_text
from ..rewards.pretrained import load_tokenizer
from .files import data_fingerprint, model_fingerprint, read_rows
from .options import RlhfConfig
from .pairs import copy_pairs, label_pairs, sample_pairs
from .stages import Stage, Work, make_stage
from .task import device_of, read_demonstrations

VERSION = 1  # to be raised when a change of code changes what is built


def real_stages(config: RlhfConfig, root: Path) -> list[Stage]:
    """The stages of a real run below `root`, in the order in which they are run.

    Which there are depends on what is given: with preferences the pairs are the file's, with
    `sft="none"` the model is the SFT policy, and an existing reward model is only measured.
    """
    base = {"version": VERSION, "model": model_fingerprint(config.model), "seed": config.stage_seed}
    source = config.prompts or config.preferences
    prompts = {
        "prompts": data_fingerprint(source),
        "split": config.split,
        "limit": config.limit,
        "eval_prompts": config.eval_prompts,
    }
    stages: list[Stage] = []

    def add(name: str, build: Callable[[Work], None], *after: Stage, **settings: Any) -> Stage:
        stages.append(make_stage(root, name, base | settings, build, after))
        return stages[-1]

    labels: Stage | None = None
    sft: tuple[Stage, ...] = ()
    if config.preferences:
        given = data_fingerprint(config.preferences)
        labels = add(
            "labels",
            lambda work: copy_pairs(config, work),
            **prompts,
            preferences=given,
            bad_rows=config.bad_rows,
        )
    if config.sft_kind != "none":
        chosen = config.sft_kind == "chosen"
        sft = (
            add(
                "sft",
                lambda work: _sft(config, labels.folder if chosen and labels else None, work),
                *((labels,) if chosen and labels else ()),
                demonstrations=None if chosen else data_fingerprint(config.sft_kind),
                split=config.split,
                limit=config.limit,
                steps=config.sft_steps,
                batch=config.sft_batch_size,
                lr=config.sft_lr,
                max_length=config.max_length,
            ),
        )
    policy = str(sft[0].folder) if sft else config.model
    if labels is None:
        pairs = add(
            "pairs",
            lambda work: sample_pairs(config, policy, work),
            *sft,
            **prompts,
            pairs=config.pairs,
            tokens=config.tokens,
            batch=config.sample_batch_size,
        )
        labels = pairs  # unlabelled texts are enough to standardise an existing reward model
        if config.judge_model or config.gold_model:
            labels = add(
                "labels",
                lambda work: label_pairs(config, pairs.folder, work),
                pairs,
                judge=model_fingerprint(config.judge_model),
                gold=None if config.judge_model else model_fingerprint(config.gold_model),
                batch=[config.sample_batch_size, config.score_batch_size],
                judge_new_tokens=config.judge_new_tokens if config.judge_model else None,
                max_length=config.max_length,
            )
    made = labels.folder
    training = {} if config.reward_model else {
        "method": config.reward_method,
        "amount": config.amount,
        "steps": config.reward_steps,
        "batch": config.reward_batch_size,
        "lr": config.reward_lr,
    }  # fmt: skip
    add(
        "reward",
        lambda work: _reward(config, policy, made, work),
        labels,
        *(() if config.reward_model else sft),
        reward_model=model_fingerprint(config.reward_model),
        gold=model_fingerprint(config.gold_model),
        score_batch=config.score_batch_size,
        max_length=config.max_length,
        **training,
    )
    return stages


def _sft(config: RlhfConfig, labels: Path | None, work: Work) -> None:
    from .training import fine_tune, trainer_options

    if labels is not None:
        pairs = read_rows(labels / "pairs.jsonl")
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    else:
        rows = read_demonstrations(config)
    options = trainer_options(
        work,
        config.sft_steps,
        config.sft_batch_size,
        config.sft_lr,
        config.save_every,
        config.stage_seed,
    )
    tokenizer = load_tokenizer(config.model, "--model")
    fine_tune(config.model, tokenizer, rows, config.max_length, options, work)


def _reward(config: RlhfConfig, policy: str, labels: Path, work: Work) -> None:
    """Train the reward model, or take the given one; measure mean and sd on the pairs' texts."""
    from datasets import Dataset

    from .scorer import Scorer
    from .training import train_reward_model, trainer_options

    rows = read_rows(labels / "pairs.jsonl")
    if not config.reward_model:
        check_preferences(Dataset.from_list(rows), "pairs")
        options = trainer_options(
            work,
            config.reward_steps,
            config.reward_batch_size,
            config.reward_lr,
            config.save_every,
            config.stage_seed,
        )
        tokenizer = load_tokenizer(policy, "--model")
        train_reward_model(
            policy,
            tokenizer,
            rows,
            config.max_length,
            config.reward_method,
            config.amount,
            options,
            work,
        )
    given: Any = {
        "device": device_of({}),
        "batch": config.score_batch_size,
        "length": config.max_length,
    }
    if config.reward_model:
        scorer = Scorer(config.reward_model, **given)
    else:
        scorer = Scorer(str(work.folder), "trained reward model", **given)
    facts: dict[str, Any] = {"pairs": len(rows), "proxy": _spread(scorer, rows)}
    if config.gold_model:
        facts["gold"] = _spread(Scorer(config.gold_model, "--gold_model", **given), rows)
    test = labels / "test.jsonl"
    held_out = read_rows(test) if test.exists() else []
    if held_out:
        facts["test"] = _quality(scorer, held_out)
    write_text(work.folder / "facts.json", json.dumps(facts, indent=2, allow_nan=False))


def _texts(rows: list[dict[str, Any]], column: str) -> list[str]:
    return [completion_text(row[column]) for row in rows]


def _spread(scorer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation of the scores of all texts of the pairs."""
    columns = ("chosen", "rejected") if "chosen" in rows[0] else ("first", "second")
    prompts, scores = [row["prompt"] for row in rows], []
    for column in columns:
        scores += scorer(prompts, _texts(rows, column), f"pairs.jsonl, column '{column}'")
    sd = stdev(scores)
    if not sd > 0:
        raise BadReward(
            f"{scorer.option} {scorer.name} gives every completion of the pairs the score "
            f"{scores[0]}, so there is nothing to learn from. Give another reward model."
        )
    return {"mean": fmean(scores), "sd": sd}


def _quality(scorer: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and Bradley-Terry loss on the pairs of held-out prompts."""
    import torch

    from ..reward_models.metrics import bt_loss, pair_accuracy

    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (
        torch.tensor(scorer(prompts, _texts(rows, c), f"test.jsonl, column '{c}'"))
        for c in ("chosen", "rejected")
    )
    margins = chosen - rejected
    return {"pairs": len(rows), "accuracy": pair_accuracy(margins), "bt_loss": bt_loss(margins)}
