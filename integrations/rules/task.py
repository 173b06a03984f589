"""The rules scenario's task: policy, questions, rule-based rewards, held-out evaluation.

Of a real model and a data set, or of the self-contained rule world (`worlds.rule_task`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..data import Questions
from ..processes import world_size
from ..tasks import Task, generate, sampling_of
from .evaluate import Evaluation
from .rows import FORMS, STYLES, Form, form_of, load_rows, prompt_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from ..worlds.rule_sums import RuleSettings

PAID = ("correctness", "string_equality", "boxed_correctness")
REWARDS = {
    "gsm8k": ["correctness", "integer_answer", "strict_format", "soft_format", "tag_count"],
    "math": ["boxed_correctness", "reasoning_keywords"],
}
# rewards that read the other form of completion
OTHER_FORM: dict[str, set[str]] = {
    "gsm8k": {"boxed_correctness"},
    "math": {"correctness", "integer_answer", "strict_format", "soft_format", "tag_count"},
}
TOP = 2.0  # what a right answer is paid


@dataclass
class RulesConfig:
    """The options of a rules task. `world` (fields of RuleSettings) or `model` and `dataset`."""

    world: dict[str, Any] | None = None
    model: str = ""  # the policy: folder or hub name
    dataset: str = ""  # file or hub name
    split: str = "train"
    limit: int | None = None
    eval_dataset: str | None = None  # default: the last eval_limit rows of `dataset`, held out
    eval_split: str = "test"
    eval_limit: int | None = None  # default: all of eval_dataset, or 64 rows of `dataset`
    bad_rows: Literal["error", "skip"] = "error"
    form: str = "auto"  # gsm8k, math, or from the first row's columns
    prompt: str = "one-shot"  # one-shot, zero-shot, question
    rewards: list[str] = field(default_factory=list)  # NAME or NAME=WEIGHT; default: by form
    form_weight: float = 1.0  # factor on all rewards but the paid correctness
    eval_samples: int = 4  # completions per held-out question; 0: no evaluation
    eval_batch: int = 64  # completions written at once in the evaluation
    eval_temperature: float | None = None  # default: the trainer's
    eval_seed: int = 0


def config_of(given: dict[str, Any]) -> RulesConfig:
    """The config, checked as far as that needs no file; ValueError says what to change."""
    config = RulesConfig(**given)
    if config.world is not None:
        return config
    missing = [name for name in ("model", "dataset") if not getattr(config, name)]
    if missing:
        flags = " and ".join("--" + name for name in missing)
        raise ValueError(
            f"a run on a real model also needs {flags}, e.g.\n"
            "    --model Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k"
        )
    if config.form not in ("auto", *FORMS):
        raise ValueError(f"--form {config.form}: give one of auto, {', '.join(FORMS)}")
    if config.prompt not in STYLES:
        raise ValueError(f"--prompt {config.prompt}: give one of {', '.join(STYLES)}")
    if config.eval_dataset is None and config.eval_split != "test":
        raise ValueError("--eval_split is of --eval_dataset: give both, or leave it out")
    if config.eval_temperature is not None and not config.eval_temperature > 0:
        raise ValueError(f"--eval_temperature must be above 0, got {config.eval_temperature}")
    for name in ("limit", "eval_limit", "eval_batch"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if config.eval_samples < 0:
        raise ValueError(f"--eval_samples must be at least 0, got {config.eval_samples}")
    return config


def weights_of(rewards: list[str], form: Form) -> dict[str, float]:
    """Reward names and their weights: `NAME` or `NAME=WEIGHT`, one correctness among them."""
    from ..rewards import RULES

    weights: dict[str, float] = {}
    for item in rewards or REWARDS[form]:
        name, given, number = item.partition("=")
        if name not in RULES:
            raise ValueError(f"--rewards {name}: unknown; known: {', '.join(RULES)}")
        if name in weights:
            raise ValueError(f"--rewards names {name} twice")
        try:
            weights[name] = float(number) if given else 1.0
        except ValueError:
            raise ValueError(f"--rewards {item}: write {name} or {name}=WEIGHT") from None
        if not math.isfinite(weights[name]) or (name in PAID and not weights[name] > 0):
            raise ValueError(f"--rewards {item}: the weight must be a positive number")
    paid = [name for name in weights if name in PAID]
    if len(paid) != 1:
        raise ValueError(
            f"--rewards needs exactly one of {', '.join(PAID)} (found: {', '.join(paid) or 'none'})"
        )
    wrong = sorted(set(weights) & OTHER_FORM[form])
    if wrong:
        where = {"gsm8k": "MATH's \\boxed{}", "math": "<answer> blocks, as for GSM8K"}[form]
        raise ValueError(
            f"--rewards {', '.join(wrong)}: for {where}; these rows are of form {form}"
        )
    return weights


def world_of(rules: dict[str, Any]) -> RuleSettings | None:
    """The settings of the rule world, or None for a real model."""
    if rules.get("world") is None:
        return None
    from ..worlds.rule_sums import RuleSettings

    return RuleSettings(**rules["world"])


def model_config(rules: dict[str, Any]) -> Any:
    """The config of the policy's model, without its weights."""
    from transformers import AutoConfig, LlamaConfig

    world = world_of(rules)
    if world is None:
        return AutoConfig.from_pretrained(rules["model"])
    from ..worlds.rule_sums import model_config as llama

    return LlamaConfig(**llama(world))


def rules_task(rules: dict[str, Any], config: dict[str, Any]) -> Task:
    """The task of an arm; `config` holds fields of GRPOConfig. Raises before weights are loaded."""
    given = config_of(rules)
    world = world_of(rules)
    if world is not None:
        return _world_task(world, given, config)
    return _real_task(given, config)


def _world_task(world: RuleSettings, given: RulesConfig, config: dict[str, Any]) -> Task:
    """The rule world, with its held-out problems as the evaluation."""
    from ..worlds import rule_sums as sums
    from ..worlds.rule_task import rule_task

    task = rule_task(world, form_weight=given.form_weight)
    task.hackable = False
    if not given.eval_samples:
        return task
    held = sums.problems(world, "test")
    tokens = config.get("max_completion_length") or sums.MAX_COMPLETION
    sampling = sampling_of(config)

    def complete(model: Any, prompts: list[Any], seed: int) -> list[str]:
        rows = generate(model, task.tokenizer, prompts, seed, tokens, **sampling)
        return [sums.to_text(row) for row in rows]

    assert task.true is not None
    task.evaluation = Evaluation(
        prompts=[p.prompt for p in held],
        columns={"answer": [p.answer for p in held], "level": [p.level for p in held]},
        complete=complete,
        correct=task.true,
        formatted=task.is_formatted,
        samples=given.eval_samples,
        batch=400,
        seed=given.eval_seed,
        facts={"tokens": tokens, "model": task.model} | sampling,
    )
    return task


def questions_of(given: RulesConfig, form: Form) -> tuple[Questions, Questions]:
    """Training rows and held-out rows, from two sources or the ends of one."""
    train = load_rows(given.dataset, given.split, given.limit, given.bad_rows, form)
    if given.eval_dataset is not None:
        held = load_rows(
            given.eval_dataset, given.eval_split, given.eval_limit, given.bad_rows, form
        )
        return train, held
    size = given.eval_limit or min(64, len(train) // 2)
    if not 0 < size < len(train):
        raise ValueError(
            f"{given.dataset}: {size} of {len(train)} rows cannot be held out. Give more rows (or "
            "a larger --limit), a smaller --eval_limit, or --eval_dataset FILE."
        )
    held = Questions(f"{given.dataset} (held out)", train.rows[-size:])
    return Questions(train.source, train.rows[:-size], train.skipped), held


def check_questions(train: Questions, held: Questions, config: dict[str, Any]) -> None:
    """ValueError for too few rows, contradictory ones, or an evaluation on the training rows."""
    references: dict[str, str] = {}
    for row in train.rows:
        if references.setdefault(_plain(row.question), row.reference) != row.reference:
            raise ValueError(
                f"{train.source}: one question has two results, {row.question[:60]!r}. Remove one."
            )
    if all(_plain(row.question) in references for row in held.rows):
        raise ValueError(
            f"{held.source}: every question is in the training data too. Give other held-out rows."
        )
    each = int(config.get("per_device_train_batch_size", 8)) * world_size()
    batch = each * int(
        config.get("steps_per_generation") or config.get("gradient_accumulation_steps") or 1
    )
    needed = batch // int(config.get("num_generations", 8))
    if len(train) < needed:
        raise ValueError(
            f"{train.source}: {len(train)} training rows, and one batch of completions draws "
            f"{needed}. Give more rows or smaller batches (--completions_per_step)."
        )


def _plain(question: str) -> str:
    """A question without what does not tell it from another: case and white space."""
    return " ".join(question.casefold().split())


def notes_of(train: Questions, held: Questions) -> list[str]:
    """What a user should see of the data: rows skipped, questions in both sets."""
    notes = [f"{q.source}: {len(q.skipped)} bad rows skipped" for q in (train, held) if q.skipped]
    seen = {_plain(row.question) for row in train.rows}
    both = sum(_plain(row.question) in seen for row in held.rows)
    notes.append(f"{len(train)} questions to train on, {len(held)} held out")
    if both:
        notes.append(
            f"{both} of the {len(held)} held-out questions are in the training data too, so "
            "pass@1 is too good."
        )
    return notes


def check_task(rules: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Everything that can be wrong with a real task's inputs; its notes."""
    given = config_of(rules)
    if given.world is not None:
        return []
    form = _form(given)
    train, held = questions_of(given, form)
    check_questions(train, held, config)
    _real_task(given, config)
    if form == "math":
        from ..rewards.verifier import VERIFIER

        VERIFIER.start()  # a broken installation is found now
    return notes_of(train, held)


def _form(given: RulesConfig) -> Form:
    if given.form != "auto":
        return given.form  # pyright: ignore[reportReturnType]
    return form_of(given.dataset, given.split)


def _real_task(given: RulesConfig, config: dict[str, Any]) -> Task:
    from ..real import check_length, check_tags, longest_prompt
    from ..rewards import RULES
    from ..rewards.correctness import completion_text, has_strict_format
    from ..rewards.pretrained import load_config, load_tokenizer, max_positions

    form = _form(given)
    weights = weights_of(given.rewards, form)
    tokenizer: Any = load_tokenizer(given.model, "--model")
    if form == "gsm8k":
        check_tags(tokenizer, given.model)
    train, held = questions_of(given, form)
    data = prompt_rows(train, tokenizer, form, given.prompt)
    held_data = prompt_rows(held, tokenizer, form, given.prompt)
    tokens = config.get("max_completion_length") or 256
    longest = max(longest_prompt(d, tokenizer) for d in (data, held_data))
    positions = max_positions(load_config(given.model, tokenizer, "--model"))
    check_length(longest, tokens, positions)

    paid = next(name for name in weights if name in PAID)
    true_name = "boxed_correctness" if form == "math" else "correctness"

    def score(name: str) -> Any:
        def scored(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
            return [value / TOP for value in RULES[name]([], texts, **columns)]

        return scored

    def formatted(text: str) -> bool:
        return "\\boxed{" in text if form == "math" else has_strict_format(text)

    sampling = sampling_of(config)
    if given.eval_temperature is not None:
        sampling["temperature"] = given.eval_temperature

    def complete(model: Any, prompts: list[Any], seed: int) -> list[str]:
        ids = generate(model, tokenizer, prompts, seed, tokens, **sampling)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        rows = [held_data[i] for i in range(min(8, len(held_data)))]
        texts = complete(model, [row["prompt"] for row in rows], seed)
        return [
            {"prompt": row["question"], "answer": row["reference"], "completion": text}
            for row, text in zip(rows, texts, strict=True)
        ]

    others = [name for name in weights if name != paid]
    return Task(
        model=given.model,
        tokenizer=tokenizer,
        data=data,
        proxy=score(paid),
        true=score(true_name),
        is_formatted=formatted,
        to_texts=lambda completions, ids: [completion_text(c) for c in completions],
        samples=samples,
        watch_start=False,  # a second copy of a real model; with a KL method the trainer logs it
        reward_scale=TOP * weights[paid],
        further=[RULES[name] for name in others],
        further_weights=[given.form_weight * weights[name] for name in others],
        # no pickled weights; as TRL trains and saves it, so that start and end are measured alike
        model_init={"use_safetensors": True, "dtype": "float32"},
        hackable=paid != true_name,
        watched=("reward", *(f"rewards/{name}/mean" for name in others), "rules/timeouts"),
        evaluation=evaluation_of(
            given,
            held_data,
            complete,
            score(true_name),
            formatted,
            {"model": given.model, "grader": true_name, "tokens": tokens} | sampling,
        ),
    )


def evaluation_of(
    given: RulesConfig,
    data: Dataset,
    complete: Any,
    correct: Any,
    formatted: Any,
    facts: dict[str, Any],
) -> Evaluation | None:
    """The evaluation on held-out rows, or None if none is wanted."""
    if not given.eval_samples:
        return None
    columns = {name: list(data[name]) for name in data.column_names if name != "prompt"}
    return Evaluation(
        prompts=list(data["prompt"]),
        columns=columns,
        complete=complete,
        correct=correct,
        formatted=formatted,
        samples=given.eval_samples,
        batch=given.eval_batch,
        seed=given.eval_seed,
        facts=facts,
    )


FIELDS = tuple(f.name for f in dataclasses.fields(RulesConfig))
