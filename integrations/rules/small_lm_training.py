"""The training of the small language model: its settings, its texts, the loop."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Question, check_row
from ..worlds import word_problems
from .small_lm_facts import prompt
from .solution_lm import EOS, train_tokenizer

MAX_LENGTH = 256  # tokens; longer texts are left out
SAVE_STEPS = 200  # between two checkpoints
# Part of the fingerprint: to be raised when a change of code changes what is built.
VERSION = 1


@dataclass(frozen=True)
class SmallLM:
    """Everything that decides the model; `gsm8k` is the fingerprint of the texts.

    `start` is the fingerprint of the model that training goes on from, empty where there is none;
    vocabulary, width, layers, heads and spread then have no meaning.
    """

    gsm8k: str
    start: str = ""
    problems: int = 40_000  # generated problems to train on
    levels: tuple[int, ...] = (1, 2, 1, 2, 3, 4)  # of these, dealt in turn: the easy ones twice
    rl_levels: tuple[int, ...] = word_problems.LEVELS  # of the questions for RL
    read: int = 2000  # rows of GSM8K to train on
    broken: float = 0.35  # share of the texts whose form is broken, so that form can be learnt
    rl_train: int = 2000
    rl_test: int = 400
    vocabulary: int = 2048
    width: int = 192
    layers: int = 4
    heads: int = 4
    epochs: float = 1.0
    batch: int = 16
    lr: float = 3e-3
    spread: float = 0.07  # standard deviation of the initial weights: near 1 / sqrt(width)
    bf16: bool = True
    seed: int = 0
    apart: int = 200  # rows of GSM8K that are not trained on, to measure the loss on
    version: int = VERSION


def completion(solution: str, reference: str, broken: random.Random | None = None) -> str:
    r"""The demonstrated reply; with `broken`, in one of six imperfect forms.

    >>> completion("2 + 3 = 5", "5")
    '<reasoning>\n2 + 3 = 5\n</reasoning>\n<answer>\n5\n</answer>'
    """
    reasoning = f"<reasoning>\n{solution}\n</reasoning>"
    answer = f"<answer>\n{reference}\n</answer>"
    if broken is None:
        return f"{reasoning}\n{answer}"
    return broken.choice(
        (
            f"{solution}\n{answer}",  # no reasoning block
            f"<reasoning>\n{solution}\n{answer}",  # a block left open
            f"{reasoning}\n{reference}",  # no answer block
            f"{solution}\n#### {reference}",  # GSM8K's own form
            f"{reasoning}\n{answer}\nThe answer is {reference}.",  # text behind the blocks
            f"{reasoning}\nSo the answer is\n{answer}",  # text between them
        )
    )


def texts(rows: Sequence[Question], broken: float, seed: int) -> list[str]:
    """Prompt and reply of each row, `broken` of them in an imperfect form."""
    rng = random.Random(seed)
    return [
        prompt(row.question)
        + completion(row.solution, row.reference, rng if rng.random() < broken else None)
        for row in rows
    ]


def examples(tokenizer: Any, texts: Sequence[str], masked: int) -> list[dict[str, list[int]]]:
    """Token ids and labels; of the first `masked` texts only the reply is to be learnt.

    What a generated question says is drawn at random: to learn it costs time and teaches nothing.
    """
    made = []
    for i, text in enumerate(texts):
        ids = tokenizer(text + EOS).input_ids
        given = len(tokenizer(text[: text.index("\n") + 1]).input_ids) if i < masked else 0
        if len(ids) <= MAX_LENGTH:
            made.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})
    return made


def train(
    work: Path, rows: Sequence[Question], made: SmallLM, start: Path | None = None
) -> tuple[Any, Any, dict]:
    """The trained model and its tokenizer, saved beside `work`, and what the training tells."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        LlamaConfig,
        LlamaForCausalLM,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )
    from transformers.trainer_utils import get_last_checkpoint

    problems = word_problems.generate(made.problems, made.seed, made.levels, "sft")
    generated = [check_row(row, "generated") for row in problems]
    corpus = {
        "train": texts([*generated, *rows[: made.read]], made.broken, made.seed),
        "apart": texts(rows[-made.apart :], 0.0, made.seed),
    }
    if start is None:
        tokenizer: Any = train_tokenizer(corpus["train"], made.vocabulary)
    else:
        tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.padding_side = "left"  # as sampling needs it
    tokenizer.init_kwargs["padding_side"] = "left"  # what is saved
    masked = {"train": len(generated), "apart": 0}
    sets = {
        name: Dataset.from_list(examples(tokenizer, part, masked[name]))
        for name, part in corpus.items()
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=made.width,
        intermediate_size=max(32, 8 * made.width // 96 * 32),
        num_hidden_layers=made.layers,
        num_attention_heads=made.heads,
        num_key_value_heads=made.heads,
        max_position_embeddings=2 * MAX_LENGTH,
        initializer_range=made.spread,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    options: Any = {
        "output_dir": str(work),
        "num_train_epochs": made.epochs,
        "per_device_train_batch_size": made.batch,
        "per_device_eval_batch_size": made.batch,
        "train_sampling_strategy": "group_by_length",  # a third less padding to compute
        "learning_rate": made.lr,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "seed": made.seed,
        "use_cpu": True,
        "bf16": made.bf16,  # arithmetic only: weights and optimizer stay in float32
        "save_steps": SAVE_STEPS,
        "save_total_limit": 1,
        "logging_steps": 50,
        "report_to": "none",
        "disable_tqdm": False,
    }
    # the trainer seeds the caller's random state, which is to be left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(made.seed)
        model: Any = (
            LlamaForCausalLM(config)
            if start is None
            else LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        )
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**options),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            train_dataset=sets["train"],
            eval_dataset=sets["apart"],
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
        loss = trainer.evaluate()["eval_loss"]
    _save(work.parent / "model", model, tokenizer)
    tokens = sum(map(len, sets["train"]["input_ids"]))
    return model, tokenizer, {"loss": loss, "tokens": tokens, "steps": trainer.state.global_step}


def _save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Save under another name and move into place, so that a folder named `model` is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, folder)
