"""Trainings within a stage: supervised fine-tuning and reward models, resumable after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..cache import write_text
from ..loop import last_checkpoint, quiet
from ..progress import tell
from .stages import Work


def device_options() -> dict[str, Any]:
    """Options of a trainer for this machine: float32 weights, bfloat16 arithmetic on a GPU."""
    gpu = torch.cuda.is_available()
    return {"use_cpu": not gpu, "bf16": gpu, "gradient_checkpointing": gpu}


def trainer_options(work: Work, steps: int, batch: int, lr: float, save: int, seed: int) -> Any:
    """Options that the trainings of the stages share; checkpoints go to the scratch folder."""
    return {
        "output_dir": str(work.scratch),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": lr,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": save,
        "save_total_limit": 2,  # the one before the last survives a kill during saving
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **device_options(),
    }


def train(trainer: Any, work: Work, name: str, text: str) -> None:
    """Train from the last whole checkpoint in the scratch folder, or from the start."""
    from transformers import PrinterCallback, TrainerCallback

    class Mark(TrainerCallback):
        """Marks each checkpoint as whole."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # written last: a checkpoint without this mark is taken for a broken one
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete", "")

    checkpoint = last_checkpoint(work.scratch)
    for path in work.scratch.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)  # killed while it was written, or older
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(tell(work.say, name, text, every=1))
    trainer.add_callback(Mark())
    if checkpoint and int(checkpoint.name.split("-")[1]) >= trainer.args.max_steps:
        trainer._load_from_checkpoint(str(checkpoint))  # train() would add a step
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def fine_tune(
    model: str,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    max_length: int,
    options: Any,
    work: Work,
) -> None:
    """Supervised fine-tuning on rows with prompt and completion; the loss is on completions."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    quiet()
    policy = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    trainer = SFTTrainer(
        model=policy,
        args=SFTConfig(max_length=max_length, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    train(trainer, work, "sft", "learning from demonstrations")
    trainer.save_model(str(work.folder))
    tokenizer.save_pretrained(work.folder)


def train_reward_model(
    start: str,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    max_length: int,
    method: str,
    amount: float,
    options: Any,
    work: Work,
) -> None:
    """A reward model from the causal LM `start`: "bt", "grm" (`amount`: share of the text loss) or
    "gr" (`amount`: ratio of gradient regularization)."""
    from datasets import Dataset

    import flatopt

    from ..reward_models.grm import GRMConfig, GRMTrainer
    from ..reward_models.model import start_reward_model

    quiet()
    grm = method == "grm"
    model = start_reward_model(start, lm_head=grm, seed=options["seed"], use_safetensors=True)
    trainer = GRMTrainer(
        model,
        # without a text loss this is Bradley-Terry, bit for bit
        GRMConfig(lm_weight=amount if grm else 0.0, max_length=max_length, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    if method == "gr":
        flatopt.attach(trainer, ratio=amount)
    train(trainer, work, "reward", "learning the pairs")
    trainer.save_model(str(work.folder))
    tokenizer.save_pretrained(work.folder)
