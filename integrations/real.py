"""A real task: a policy, a question data set and an LLM judge from paths or hub names, for TRL."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from .data import Questions, load_questions, prompt_dataset
from .rewards import (
    JudgeReward,
    PaperJudgeReward,
    correctness,
    integer_answer,
    soft_format,
    strict_format,
    tag_count,
)
from .rewards.correctness import TAGS, has_strict_format
from .rewards.pretrained import load_config, load_tokenizer, max_positions

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


FORM_REWARDS = (integer_answer, strict_format, soft_format, tag_count)


@dataclass
class RealTaskConfig:
    """The options of a real task, as TRL's parser reads them from YAML and command line."""

    model: str = ""  # the policy: folder or hub name
    dataset: str = ""  # file or hub name, GSM8K's form
    judge_model: str = ""  # the judge: folder or hub name
    judge_kind: Literal["hardened", "paper"] = "hardened"  # paper: its holes too, to see the hacks
    split: str = "train"
    limit: int | None = None
    eval_dataset: str | None = None  # default: the last eval_limit rows of `dataset`, held out
    eval_split: str = "test"
    eval_limit: int = 64
    bad_rows: Literal["error", "skip"] = "error"
    judge_batch_size: int = 16
    judge_max_input_tokens: int | None = None
    judge_max_new_tokens: int = 64
    judge_patience: int = 3  # batches without one readable score, then an error
    judge_check: bool = True  # ask the judge for one verdict before training


@dataclass
class RealTask:
    """What a GRPOTrainer needs, and which of its logged numbers to show."""

    model: str
    model_init_kwargs: dict[str, Any]
    processing_class: "PreTrainedTokenizerBase"
    train_dataset: "Dataset"
    eval_dataset: "Dataset"
    reward_funcs: list[Callable[..., list[Any]]]  # proxy, true, then the rewards for form
    reward_weights: list[float]
    judge: JudgeReward
    notes: list[str]  # what a user should see: rows skipped, questions in both data sets
    reward_top: float = 2.0  # proxy and true reward both lie in [0, reward_top]
    # frac_reward_zero_std: the fraction of groups that teach nothing, all rewards being equal
    shown_metrics: tuple[str, ...] = (
        "rewards/judge/mean",
        "rewards/correctness/mean",
        "rewards/strict_format/mean",
        "frac_reward_zero_std",
        "judge/unparsed",
        "judge/cut",
        "grad_norm",
        "completions/mean_length",
        "completions/clipped_ratio",
    )

    def proxy(self, texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """The judge's reward as a fraction of its top; an unparsed verdict that gives None is 0.

        The paper's judge has no top and no bottom: fractions above 1 and below 0 are hacks.
        """
        rewards = self.judge([], texts, **cast(dict[str, Any], columns))
        return [(reward or 0.0) / self.reward_top for reward in rewards]

    def true(self, texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """1 where the answer is right, else 0."""
        return [
            r / self.reward_top for r in correctness([], texts, **cast(dict[str, Any], columns))
        ]

    def is_formatted(self, text: str) -> bool:
        """Whether the completion is the two blocks and nothing else."""
        return has_strict_format(text)


def build_real_task(
    args: Any, max_completion_length: int | None = None, device: str | None = None
) -> RealTask:
    """Check all inputs, cheapest first, then load the judge. Raises ValueError with what to change.

    `args` is a RealTaskConfig or anything with some of its fields; `model`, `dataset` and
    `judge_model` must be given. With `max_completion_length` prompts and completions are checked
    against what the policy can read. `device` holds the judge; default: this process's GPU if any.
    """
    config = _config(args)
    tokenizer = load_tokenizer(config.model, "--model")
    model_config = load_config(config.model, tokenizer, "--model")
    load_tokenizer(config.judge_model, "--judge-model")  # fails in seconds, before any weights
    check_tags(tokenizer, config.model)
    train, held_out = _questions(config)
    notes = [
        f"{q.source}: {len(q.skipped)} bad rows skipped" for q in (train, held_out) if q.skipped
    ]
    both = {row.question for row in train.rows} & {row.question for row in held_out.rows}
    if both:
        notes.append(
            f"{len(both)} of the {len(held_out)} held-out questions are in the training data too, "
            "so the held-out score is too good."
        )
    for note in notes:
        logger.warning("%s", note)
    train_dataset = prompt_dataset(train, tokenizer)
    if max_completion_length is not None:
        longest = longest_prompt(train_dataset, tokenizer)
        check_length(longest, max_completion_length, max_positions(model_config))
    judge = _load_judge(config, device)
    if config.judge_check:
        first = train.rows[0]
        judge.check(first.question, first.solution, first.reference)
    return RealTask(
        model=config.model,
        model_init_kwargs={"use_safetensors": True},  # no pickled weights
        processing_class=tokenizer,
        train_dataset=train_dataset,
        eval_dataset=prompt_dataset(held_out, tokenizer),
        # The true reward is measured beside the others and has no weight: the policy never sees it.
        reward_funcs=[judge, correctness, *FORM_REWARDS],
        reward_weights=[1.0, 0.0, *[1.0] * len(FORM_REWARDS)],
        judge=judge,
        notes=notes,
    )


def _config(args: Any) -> RealTaskConfig:
    names = RealTaskConfig.__dataclass_fields__
    given = {n: getattr(args, n) for n in names if getattr(args, n, None) is not None}
    config = RealTaskConfig(**given)
    missing = [n for n in ("model", "dataset", "judge_model") if not getattr(config, n)]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise ValueError(
            f"A run on real models needs {flags} as well, e.g.\n"
            "    --model Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k "
            "--judge-model Qwen/Qwen2.5-1.5B-Instruct"
        )
    if config.judge_kind not in ("hardened", "paper"):
        raise ValueError(
            f"judge_kind={config.judge_kind!r}: give hardened, or paper for its holes."
        )
    if config.eval_limit < 1:
        raise ValueError(f"eval_limit={config.eval_limit}: at least 1 row must be held out.")
    return config


def _questions(config: RealTaskConfig) -> tuple[Questions, Questions]:
    """The training rows and the held-out rows."""
    train = load_questions(config.dataset, config.split, config.limit, config.bad_rows)
    if config.eval_dataset is not None:
        return train, load_questions(
            config.eval_dataset, config.eval_split, config.eval_limit, config.bad_rows
        )
    size = min(config.eval_limit, len(train) // 2)
    if not size:
        raise ValueError(
            f"{config.dataset}: {len(train)} row is too few to hold one out. Add rows, or give "
            "--eval-dataset FILE."
        )
    held_out = Questions(f"{config.dataset} (held out)", train.rows[-size:])
    return Questions(train.source, train.rows[:-size], train.skipped), held_out


def check_tags(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Tags that are special tokens would vanish: TRL decodes completions without those."""
    text = "".join(TAGS)
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = str(tokenizer.decode(ids, skip_special_tokens=True))
    lost = [tag for tag in TAGS if tag not in decoded]
    if lost:
        raise ValueError(
            f"--model {name}: its tokenizer cannot write {', '.join(lost)} (the text comes back as "
            f"{decoded[:60]!r}). If they are special tokens, add them as ordinary ones:\n"
            f"    tokenizer.add_tokens({lost})"
        )


def longest_prompt(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of tokens of the longest prompt, the chat template included."""
    prompts = dataset["prompt"]
    if tokenizer.chat_template is None:
        texts = list(prompts)
    else:
        texts = [
            str(tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True))
            for p in prompts
        ]
    return max(len(ids) for ids in tokenizer(texts)["input_ids"])  # pyright: ignore


def check_length(prompt: int, completion: int, positions: int | None) -> None:
    """Refuse prompts and completions that are together longer than the model's context."""
    if positions is None or prompt + completion <= positions:
        return
    room = positions - prompt
    advice = (
        f"Set --max_completion_length to at most {room}."
        if room > 0
        else "Shorten the questions, or give a model that reads more."
    )
    raise ValueError(
        f"The policy reads {positions} tokens; the longest prompt has {prompt} and a completion "
        f"may have {completion}. {advice}"
    )


def _load_judge(config: RealTaskConfig, device: str | None) -> JudgeReward:
    import torch

    if device is None and torch.cuda.is_available():
        # each process judges its own completions on its own GPU
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    kind = PaperJudgeReward if config.judge_kind == "paper" else JudgeReward
    return kind.from_pretrained(
        config.judge_model,
        device=device or "cpu",
        batch_size=config.judge_batch_size,
        max_input_tokens=config.judge_max_input_tokens,
        max_new_tokens=config.judge_max_new_tokens,
        patience=config.judge_patience,
    )
