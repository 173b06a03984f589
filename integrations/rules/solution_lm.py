"""A small language model of worked solutions, with a tokenizer of its own, trained from scratch.

It is what the reward models of `integrations.results.rewards` start from where no pretrained model
is at hand: it has read the same kind of text, and it cannot solve the questions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..cache import cached, fingerprint
from ..data import Question, load_questions
from ..rewards.number import parse_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of the name in the cache: to be raised when a change of code changes what is built.
VERSION = 1
PAD, EOS = "<pad>", "<eos>"
MAX_LENGTH = 512  # tokens; longer texts are cut
ANSWER = "\nA: "  # how the models of example_model_solutions.jsonl write their result


@dataclass(frozen=True)
class LMSettings:
    """Everything that decides the language model; `texts` is the fingerprint of its texts."""

    texts: str
    vocabulary: int = 2048
    width: int = 96
    layers: int = 3
    heads: int = 4
    epochs: float = 1.0
    batch: int = 16
    lr: float = 3e-3
    seed: int = 0
    apart: int = 200  # texts that are not trained on, to measure the loss on
    version: int = VERSION


def read_questions(path: Path, without: Collection[str]) -> tuple[list[Question], int]:
    """The rows of `path` whose question is not among `without`, and how many are."""
    rows = load_questions(path).rows
    kept = [row for row in rows if row.question not in without]
    return kept, len(rows) - len(kept)


def as_text(row: Question) -> str:
    """Question, solution and result in the form of the models' solutions."""
    return f"{row.question}\n{row.solution}{ANSWER}{row.reference}"


def texts_fingerprint(rows: Sequence[Question]) -> str:
    """A short hash of the texts in their order."""
    return fingerprint([as_text(row) for row in rows])


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` tokens; each digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet) + 2:
        raise ValueError(f"vocabulary={size}: give at least {len(alphabet) + 2}, a token per byte.")
    core: Any = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_lm(rows: Sequence[Question], **settings: Any) -> Path:
    """The folder of the language model and its tokenizer, trained by TRL's SFTTrainer on first use.

    `settings` are fields of `LMSettings`. The last `apart` rows are not trained on; facts.json
    says what the model makes of them: `loss` (nats per token), `solved` (share of the first 50
    questions whose result it gets right, greedily), and `parameters`, `tokens` (of the training
    texts).
    """
    made = LMSettings(texts_fingerprint(rows), **settings)
    if not 0 < made.apart < len(rows):
        raise ValueError(
            f"{len(rows)} questions with solutions, {made.apart} of them to be held apart: too "
            "few. Give more rows."
        )
    if made.width % (2 * made.heads):
        raise ValueError(f"width {made.width} must be a multiple of 2 * heads ({made.heads}).")
    return cached("solution-lm", made, lambda folder: _train(folder, rows, made))


def _train(folder: Path, rows: Sequence[Question], settings: LMSettings) -> None:
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from ..loop import quiet

    quiet()
    read, apart = rows[: -settings.apart], rows[-settings.apart :]
    tokenizer: Any = train_tokenizer([as_text(row) for row in read], settings.vocabulary)
    sets = {}
    for name, part in (("train", read), ("apart", apart)):
        ids = tokenizer([as_text(row) + EOS for row in part])["input_ids"]
        sets[name] = Dataset.from_dict({"input_ids": ids})
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=8 * settings.width // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # the trainer seeds the caller's random state, which is to be left as it was
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as scratch:
        torch.manual_seed(settings.seed)
        model: Any = LlamaForCausalLM(config)
        options: Any = {
            "output_dir": scratch,
            "num_train_epochs": settings.epochs,
            "per_device_train_batch_size": settings.batch,
            "per_device_eval_batch_size": settings.batch,
            "train_sampling_strategy": "group_by_length",  # a third less padding to compute
            "learning_rate": settings.lr,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "max_length": MAX_LENGTH,
            "seed": settings.seed,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": False,  # `quiet` would switch it off, and this takes minutes
        }
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**options),
            train_dataset=sets["train"],
            eval_dataset=sets["apart"],
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    facts = {
        "loss": loss,
        "solved": solved(model, tokenizer, apart[:50]),
        "parameters": model.num_parameters(),
        "tokens": sum(map(len, sets["train"]["input_ids"])),
    }
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "facts.json").write_text(json.dumps(facts, indent=2))


def solved(model: Any, tokenizer: Any, rows: Sequence[Question], most: int = 150) -> float:
    """Share of the questions whose result the model gets right, greedily, in `most` tokens."""
    import torch

    model.eval()
    right = 0
    for row in rows:  # one by one: no padding on the left, which the training never had
        ids = tokenizer(row.question + "\n", return_tensors="pt").input_ids
        with torch.inference_mode():
            output = model.generate(ids, do_sample=False, max_new_tokens=most)
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        found = parse_number(text.rpartition(ANSWER)[2]) if ANSWER in text else None
        right += found is not None and found == parse_number(row.reference)
    return right / len(rows)
