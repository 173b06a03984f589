"""A start policy learns from demonstrations: a small Llama, TRL's SFT, completions only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..progress import Say, silent, tell
from .words import BOS, EOS, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def llama(vocabulary: Sequence[str], settings: Any, positions: int = 64) -> dict[str, Any]:
    """Arguments of `LlamaConfig` for a vocabulary that begins as `words.word_tokenizer` wants it.

    `settings` has `width`, `layers`, `heads` and `init` (the standard deviation of the weights).
    """
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        "max_position_embeddings": positions,
        "initializer_range": settings.init,
        "tie_word_embeddings": False,
        "pad_token_id": vocabulary.index(PAD),
        "bos_token_id": vocabulary.index(BOS),
        "eos_token_id": vocabulary.index(EOS),
    }


def check_shape(settings: Any) -> None:
    """ValueError where a policy's settings make no model or no training."""
    for name in ("demonstrations", "steps", "batch"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if not (settings.lr > 0 and settings.init > 0):
        raise ValueError(f"lr and init must be above 0, got {settings.lr} and {settings.init}")
    layers, heads, width = settings.layers, settings.heads, settings.width
    if min(layers, heads) < 1 or width < 1 or width % (2 * heads):
        raise ValueError(
            "layers and heads must be at least 1, width a multiple of 2 * heads; "
            f"got {layers}, {heads}, {width}"
        )


def learn(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: Sequence[str],
    demonstrations: Iterable[tuple[str, str]],
    settings: Any,
    name: str,
    progress: Say | None = None,
) -> None:
    """Train on (prompt, completion) texts, words apart; write policy and tokenizer to `folder`.

    `settings`: those of `llama`, and `seed`, `steps`, `batch`, `lr` (cosine). An end token is added
    to each completion; the loss is on completions alone.
    """
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from ..loop import quiet

    quiet()
    ids: dict[str, int] = {word: i for i, word in enumerate(vocabulary)}
    rows: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for text, answer in demonstrations:
        prompt, completion = [BOS, *text.split()], [*answer.split(), EOS]
        rows["input_ids"].append([ids[word] for word in (*prompt, *completion)])
        rows["completion_mask"].append([0] * len(prompt) + [1] * len(completion))
    # the trainer seeds the caller's random state, which is to be left as it was
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as scratch:
        torch.manual_seed(settings.seed)
        config = SFTConfig(
            output_dir=scratch,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            seed=settings.seed,
            completion_only_loss=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=LlamaForCausalLM(LlamaConfig(**llama(vocabulary, settings))),
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(tell(progress or silent, name, "learning from demonstrations"))
        trainer.train()
        trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
