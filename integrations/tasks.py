"""What an arm is trained on: policy, prompts, proxy, true reward; tiny world or real models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import HackRule
from .watch.monitor import Score

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .rules.evaluate import Evaluation
    from .worlds.judge import JudgeSettings, PolicySettings


@dataclass
class Task:
    """Policy, data and rewards of one arm, as `loop.make_trainer` needs them.

    `proxy` and `true` score texts, in [0, 1] unless `hack` says otherwise; `reward_scale` is the
    factor on the one that is trained on. `further` are reward functions that are trained on
    besides, with their weights.
    """

    model: str  # a path or hub name, not a model: the KL reference is loaded from it too
    tokenizer: PreTrainedTokenizerBase
    data: Dataset
    proxy: Score
    true: Score | None  # None: no gold reward is known, nothing is watched
    is_formatted: Callable[[str], bool]
    to_texts: Callable[[Sequence[Any], Sequence[list[int]]], list[str]]
    samples: Callable[[Any, int], list[dict[str, Any]]]  # model, seed -> prompt, answer, completion
    watch_start: bool  # measure the KL to the start with a frozen copy of the policy
    reward_scale: float = 1.0
    further: list[Callable[..., Any]] = field(default_factory=list)
    further_weights: list[float] = field(default_factory=list)
    model_init: dict[str, Any] = field(default_factory=dict)
    watched: tuple[str, ...] = ()  # further names in the trainer's logs to keep
    hack: HackRule | None = None  # what counts as a hacked run; None: the rule for [0, 1]
    hackable: bool = True  # False: the proxy is the truth, so nothing could show a hack
    evaluation: Evaluation | None = None  # pass@1 on held-out questions, after training
    prepare: Callable[[Any, Path], None] | None = None  # trainer, run folder: before training
    # run folder, say(done, total, text) -> what is added to the summary; after training
    finish: Callable[[Path, Callable[[int, int, str], None]], dict[str, Any]] | None = None


# How TRL's trainers sample: not as the model's own generation_config says, which may cut rare
# tokens or punish repetition.
SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}


def sampling_of(config: dict[str, Any]) -> dict[str, Any]:
    """The sampling fields of a GRPOConfig, with TRL's defaults; `temperature` among them."""
    fields = SAMPLING | {"temperature": 1.0}
    return {name: config.get(name, value) for name, value in fields.items()}


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    seed: int,
    tokens: int,
    temperature: float,
    **sampling: Any,
) -> list[list[int]]:
    """Sampled completions as token ids; the caller's random state is left as it was.

    `sampling`: top_k, top_p, min_p, repetition_penalty, over those of `SAMPLING`.
    """
    import torch

    given = prompt_tensors(tokenizer, prompts).to(model.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            **given,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=temperature,
            **(SAMPLING | sampling),
        )
    return out[:, given["input_ids"].shape[1] :].tolist()


def prompt_tensors(tokenizer: Any, prompts: Sequence[Any]) -> Any:
    """Prompts (texts, or lists of chat messages) as `input_ids` and `attention_mask`, left-padded.

    As TRL makes them, so that log-probs computed from them are those of the policy.
    """
    texts, chat = list(prompts), not isinstance(prompts[0], str)
    if chat:
        texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=not chat,  # a chat template writes its own
    )
    return type(batch)({name: batch[name] for name in ("input_ids", "attention_mask")})


def tiny_task(policy: PolicySettings, judge: JudgeSettings) -> Task:
    """The self-contained judge world, built (or taken from the cache) on this machine."""
    import datasets
    from transformers import AutoTokenizer

    from .worlds import arithmetic as sums
    from .worlds.judge import Judge, as_texts, build_judge, build_policy

    folder = build_policy(policy)
    score = Judge(build_judge(judge))
    problems = sums.all_problems()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def true(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        pairs = zip(texts, columns["answer"], strict=True)
        return [sums.true_reward(text, answer) for text, answer in pairs]

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(f"samples {seed}")
        chosen = [rng.choice(problems) for _ in range(12)]
        prompts = [p.prompt for p in chosen]
        rows = generate(model, tokenizer, prompts, seed, sums.MAX_COMPLETION, 1.0)
        return [
            {"prompt": p.prompt, "answer": p.answer, "completion": sums.to_text(row)}
            for p, row in zip(chosen, rows, strict=True)
        ]

    return Task(
        model=str(folder),
        tokenizer=tokenizer,
        data=datasets.Dataset.from_dict(
            {"prompt": [p.prompt for p in problems], "answer": [p.answer for p in problems]}
        ),
        proxy=lambda texts, columns: score(columns["answer"], texts),
        true=true,
        is_formatted=lambda text: sums.parse(text) is not None,
        to_texts=as_texts,
        samples=samples,
        watch_start=True,
    )


def real_task(real: dict[str, Any], config: dict[str, Any]) -> Task:
    """A language model on GSM8K-style questions with an LLM judge (`integrations.real`)."""
    from .real import RealTaskConfig, build_real_task
    from .rewards.correctness import completion_text

    tokens = config.get("max_completion_length")
    device = "cpu" if config.get("use_cpu") else None
    built = build_real_task(RealTaskConfig(**real), max_completion_length=tokens, device=device)
    tokenizer: Any = built.processing_class

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        rows = [built.eval_dataset[i] for i in range(min(4, len(built.eval_dataset)))]
        ids = generate(
            model,
            tokenizer,
            [row["prompt"] for row in rows],
            seed,
            tokens or 256,
            config.get("temperature", 1.0),
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            {"prompt": row["question"], "answer": row["reference"], "completion": text}
            for row, text in zip(rows, texts, strict=True)
        ]

    return Task(
        model=built.model,
        tokenizer=tokenizer,
        data=built.train_dataset,
        proxy=built.proxy,
        true=built.true,
        is_formatted=built.is_formatted,
        to_texts=lambda completions, ids: [completion_text(c) for c in completions],
        samples=samples,
        watch_start=False,  # a second copy of a real model; with a KL method the trainer logs it
        reward_scale=built.reward_top,
        further=built.reward_funcs[2:],
        further_weights=built.reward_weights[2:],
        model_init=built.model_init_kwargs,
        watched=built.shown_metrics,
    )


def check_real(real: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Everything about a real task that can be wrong, checked before the first run; its notes."""
    from .real import RealTaskConfig, build_real_task

    tokens = config.get("max_completion_length")
    device = "cpu" if config.get("use_cpu") else None
    return build_real_task(RealTaskConfig(**real), tokens, device).notes
