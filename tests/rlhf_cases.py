"""Tiny models and data on disk, and commands that are killed, for the tests of the RLHF loop."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

from integrations.rlhf.command import main
from tests.tiny_models import make_model, make_tokenizer, save

PROMPTS = [f"What is {i} plus {i + 3}?" for i in range(12)]
PAIRS = [
    {"prompt": p, "chosen": f" It is {2 * i + 3}.", "rejected": f" No idea, {i}."}
    for i, p in enumerate(PROMPTS)
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def classifier(tokenizer: PreTrainedTokenizerFast, labels: int = 1) -> Any:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore
        bos_token_id=None,
        initializer_range=0.5,
    )
    config.num_labels = labels
    return Qwen2ForSequenceClassification(config)


def broken(model: Any) -> Any:
    """Its scores are NaN."""
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    return model


def make_place(folder: Path) -> dict[str, str]:
    """A policy without a chat template, one with, classifiers, and data."""
    plain, chat = make_tokenizer(chat=False), make_tokenizer()
    chats = [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS]
    return {
        "model": save(folder / "policy", make_model(plain), plain),
        "chat": save(folder / "chat", make_model(chat), chat),
        "gold": save(folder / "gold", classifier(chat), chat),
        "three": save(folder / "three", classifier(chat, 3), chat),
        "nan": save(folder / "nan", broken(classifier(chat)), chat),
        "pairs": write(folder / "pairs.jsonl", PAIRS),
        "prompts": write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]),
        "chats": write(folder / "chats.jsonl", chats),
        "demos": write(
            folder / "demos.jsonl",
            [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS],
        ),
    }


def real(place: dict[str, str], output: Path, *more: str, model: str = "model") -> list[str]:
    """A command on the tiny real models."""
    return ["--recipe", "smoke", "--model", place[model], "--output", str(output), *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def killed(arguments: list[str], arm_the_trap: Callable[[], None]) -> None:
    """Run the command in a process of its own that kills itself where the trap says."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            arm_the_trap()
            status = 10 + main(arguments)
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, f"it was to be killed, and ended with {status}"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, calls: int) -> Callable[[], None]:
    """A trap: the process dies right after the n-th call of `owner.name`."""

    def arm() -> None:
        real, count = getattr(owner, name), [0]

        def counted(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            count[0] += 1
            if count[0] == calls:
                kill()
            return result

        setattr(owner, name, counted)

    return arm
