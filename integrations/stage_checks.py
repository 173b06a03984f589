"""Everything about a real RLHF run that can be wrong, checked before the first stage."""

from __future__ import annotations

from typing import Any

from .rewards.correctness import completion_text
from .rewards.pretrained import load_config, load_tokenizer, max_positions
from .rlhf_real import read_preferences, read_prompts
from .stage_data import load_demonstrations
from .stage_options import RlhfConfig


def _check_lengths(
    config: RlhfConfig, tokenizer: Any, prompts: list[Any], room: int | None
) -> None:
    chat = not isinstance(prompts[0], str)
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            f"--model {config.model}: the prompts are chats, and its tokenizer has no chat "
            "template. Give an instruction-tuned model, or write the prompts as text."
        )
    longest = 0
    for prompt in prompts:
        text = prompt
        if chat:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        longest = max(longest, len(tokenizer(text, add_special_tokens=not chat)["input_ids"]))
    if room is not None and longest + config.tokens > room:
        raise ValueError(
            f"The policy reads {room} tokens; the longest prompt has {longest} and a completion "
            f"may have {config.tokens}. Set --max_completion_length to at most {room - longest}, "
            "or shorten the prompts."
        )


def check_inputs(config: RlhfConfig) -> list[str]:
    """Check every input, cheapest first, before any stage is run; the notes for the user.

    ValueError (BadRow for data, BadReward for a score that is not finite) says what to change.
    """
    notes = []
    tokenizer = load_tokenizer(config.model, "--model")
    model_config = load_config(config.model, tokenizer, "--model")
    if config.judge_model:
        load_config(
            config.judge_model, load_tokenizer(config.judge_model, "--judge_model"), "--judge_model"
        )
    train, held_out = read_prompts(config)
    _check_lengths(config, tokenizer, [*train, *held_out], max_positions(model_config))
    pairs = read_preferences(config) if config.preferences else []
    if pairs and isinstance(pairs[0]["chosen"], str) != isinstance(train[0], str):
        kinds = ["texts", "chats"]
        if isinstance(train[0], str):
            kinds.reverse()
        raise ValueError(f"--preferences holds {kinds[0]}, --prompts {kinds[1]}. Write them alike.")
    if config.sft_kind not in ("chosen", "none"):
        load_demonstrations(config.sft_kind, config.split, config.limit)
    if len(held_out) < config.eval_prompts:
        notes.append(f"{len(held_out)} prompts are held out, half of the distinct ones")
    for name, option in (
        (config.reward_model, "--reward_model"),
        (config.gold_model, "--gold_model"),
    ):
        if name:
            _check_scorer(config, name, option, pairs, train)
    return notes


def _check_scorer(
    config: RlhfConfig, name: str, option: str, pairs: list[dict[str, Any]], prompts: list[Any]
) -> None:
    """Score a few rows now: a broken model would stop the run only hours later."""
    from .stage_scorer import Scorer

    scorer = Scorer(name, option, batch=config.score_batch_size, length=config.max_length)
    scorer.check_prompt(prompts[0])
    few = config.score_batch_size
    if not pairs:
        scorer(prompts[:few], ["."] * len(prompts[:few]), f"{config.prompts}, column 'prompt'")
    for column in ("chosen", "rejected") if pairs else ():
        texts = [completion_text(row[column]) for row in pairs[:few]]
        where = f"{config.preferences}, column '{column}'"
        scorer([row["prompt"] for row in pairs[:few]], texts, where)
