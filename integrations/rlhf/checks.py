"""Everything about a real RLHF run that can be wrong, checked before the first stage."""

from __future__ import annotations

from typing import Any

from ..rewards.correctness import completion_text
from ..rewards.pretrained import load_config, load_tokenizer, max_positions
from .options import RlhfConfig
from .task import read_demonstrations, read_preferences, read_prompts


def _check_lengths(
    config: RlhfConfig, tokenizer: Any, prompts: list[Any], room: int | None
) -> None:
    chat = not isinstance(prompts[0], str)
    if chat and tokenizer.chat_template is None:
        raise ValueError(
            f"--model {config.model}: the prompts are chats, and its tokenizer has no chat "
            "template. Give an instruction-tuned model, or write the prompts as text."
        )
    longest, shortest = 0, 10**9
    for prompt in prompts:
        text = prompt
        if chat:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        size = len(tokenizer(text, add_special_tokens=not chat)["input_ids"])
        longest, shortest = max(longest, size), min(shortest, size)
    if config.max_length <= shortest:
        raise ValueError(
            f"--max_length {config.max_length}: the shortest prompt alone has {shortest} tokens, "
            "so that no completion would be left to learn from. Raise it."
        )
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
        reader = load_tokenizer(config.judge_model, "--judge_model")
        kinds = load_config(config.judge_model, reader, "--judge_model").architectures or []
        if not any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
            raise ValueError(
                f"--judge_model {config.judge_model}: {', '.join(kinds) or 'unknown'} is no causal "
                "LM, and cannot write a verdict. A classifier is a --gold_model"
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
        read_demonstrations(config)
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
    from .scorer import Scorer

    scorer = Scorer(name, option, batch=config.score_batch_size, length=config.max_length)
    scorer.check_prompt(prompts[0])
    few = config.score_batch_size
    if not pairs:
        scorer(prompts[:few], ["."] * len(prompts[:few]), f"{config.prompts}, column 'prompt'")
    for column in ("chosen", "rejected") if pairs else ():
        texts = [completion_text(row[column]) for row in pairs[:few]]
        where = f"{config.preferences}, column '{column}'"
        scorer([row["prompt"] for row in pairs[:few]], texts, where)
