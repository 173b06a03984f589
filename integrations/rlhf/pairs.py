"""Pairs of a real RLHF run: from a file, or sampled and labelled by judge or gold model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cache import write_text
from ..rewards.pretrained import load_tokenizer
from .files import in_batches, key_of, read_rows, write_rows
from .options import RlhfConfig
from .stages import Work
from .task import device_of, read_preferences, read_prompts


def copy_pairs(config: RlhfConfig, work: Work) -> None:
    """The checked pairs of the file; those of held-out prompts apart."""
    _, held_out = read_prompts(config)
    apart = {key_of(prompt) for prompt in held_out}
    rows = read_preferences(config)
    test = [row for row in rows if key_of(row["prompt"]) in apart]
    train = [row for row in rows if key_of(row["prompt"]) not in apart]
    if not train:
        raise ValueError(f"{config.preferences}: every pair has a held-out prompt; add pairs.")
    write_rows(work.folder / "pairs.jsonl", train)
    write_rows(work.folder / "test.jsonl", test)
    work.say("labels", len(rows), len(rows), "pairs of the file checked")


def load_policy(name: str, tokenizer: Any, device: str) -> Any:
    """A causal LM that samples from its whole distribution, whatever settings it ships with."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from ..evaluate import end_tokens

    model: Any = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.float32,  # of every policy that is compared, whatever it was saved in
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=end_tokens(model, tokenizer)
    )
    return model.to(device).eval()


def sample_pairs(config: RlhfConfig, policy: str, work: Work) -> None:
    """Two completions of the SFT policy for each prompt; equal and empty ones are dropped."""
    from ..tasks import generate

    tokenizer: Any = load_tokenizer(policy, "--model")
    prompts, _ = read_prompts(config)
    total = config.pairs or len(prompts)
    model = load_policy(policy, tokenizer, device_of({}))

    def make(start: int, end: int) -> list[dict[str, Any]]:
        some = [prompts[i % len(prompts)] for i in range(start, end)]
        seed = 1_000_003 * config.stage_seed + start
        both = [prompt for prompt in some for _ in range(2)]
        ids = generate(model, tokenizer, both, seed, config.tokens, 1.0)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            {"prompt": prompt, "first": texts[2 * i], "second": texts[2 * i + 1]}
            for i, prompt in enumerate(some)
        ]

    half = max(1, config.sample_batch_size // 2)
    rows = in_batches(work, "pairs", "the SFT policy writes", total, half, make)
    full = [row for row in rows if row["first"].strip() and row["second"].strip()]
    kept = [row for row in full if row["first"].strip() != row["second"].strip()]
    counts = {"sampled": len(rows), "empty": len(rows) - len(full), "equal": len(full) - len(kept)}
    if not kept:
        raise ValueError(
            f"no pair can be compared: of {len(rows)} sampled ones {counts['empty']} have an empty "
            f"completion and {counts['equal']} two equal ones. Check --model and --sft."
        )
    write_rows(work.folder / "pairs.jsonl", kept)
    write_text(work.folder / "counts.json", json.dumps(counts | {"kept": len(kept)}))


def label_pairs(config: RlhfConfig, pairs: Path, work: Work) -> None:
    """Which of the two is better, by the judge or the gold model; ties are dropped and counted."""
    rows = read_rows(pairs / "pairs.jsonl")
    make, size = _by_judge(config, rows), config.sample_batch_size
    text = "the judge compares"
    if make is None:
        make, size, text = _by_gold(config, rows), config.score_batch_size, "the gold model scores"
    verdicts = in_batches(work, "labels", text, len(rows), size, make)
    labelled = []
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict["first"] not in (0.0, 1.0):
            continue
        sides = ("first", "second") if verdict["first"] else ("second", "first")
        chat = not isinstance(row["prompt"], str)
        pair: dict[str, Any] = {"prompt": row["prompt"]}
        for column, side in zip(("chosen", "rejected"), sides, strict=True):
            reply = row[side]
            pair[column] = [{"role": "assistant", "content": reply}] if chat else reply
            if "gold" in verdict:
                pair[f"gold_{column}"] = verdict["gold"][side == "second"]
        labelled.append(pair)
    counts = {
        "pairs": len(rows),
        "ties": sum(v["first"] == 0.5 for v in verdicts),
        "unparsed": sum(v["first"] is None for v in verdicts),
        "kept": len(labelled),
    }
    if not labelled:
        raise ValueError(
            f"no pair is left: of {len(rows)} pairs {counts['ties']} are ties and "
            f"{counts['unparsed']} have no readable verdict. Give another judge or gold model."
        )
    write_rows(work.folder / "pairs.jsonl", labelled)
    write_text(work.folder / "counts.json", json.dumps(counts))


def _by_judge(config: RlhfConfig, rows: list[Any]) -> Any:
    if config.judge_model is None:
        return None
    from ..rewards.preference_judge import PreferenceJudge

    judge = PreferenceJudge.from_pretrained(
        config.judge_model,
        option="--judge_model",
        device=device_of({}),
        batch_size=config.sample_batch_size,
        max_new_tokens=config.judge_new_tokens,
        patience=config.judge_patience,
    )

    def make(start: int, end: int) -> list[dict[str, Any]]:
        part = rows[start:end]
        columns = ([row[k] for row in part] for k in ("prompt", "first", "second"))
        return [{"first": c.first, "cut": c.cut} for c in judge.compare(*columns)]

    return make


def _by_gold(config: RlhfConfig, rows: list[Any]) -> Any:
    from .scorer import Scorer

    assert config.gold_model is not None
    gold = Scorer(
        config.gold_model,
        "--gold_model",
        device=device_of({}),
        batch=config.score_batch_size,
        length=config.max_length,
    )

    def make(start: int, end: int) -> list[dict[str, Any]]:
        part = rows[start:end]
        prompts = [row["prompt"] for row in part]
        a, b = (
            gold(prompts, [row[k] for row in part], f"pairs from {start}, column '{k}'")
            for k in ("first", "second")
        )
        wins = [((x > y) + (x >= y)) / 2 for x, y in zip(a, b, strict=True)]
        return [{"first": w, "gold": [x, y]} for w, x, y in zip(wins, a, b, strict=True)]

    return make
