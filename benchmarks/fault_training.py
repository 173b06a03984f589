"""The run that `fault_runs` disturbs: a plain transformers Trainer with `flatopt.attach`.

It saves at every step, marks each checkpoint as whole when it is, and goes on from the last whole
one. The model is tiny, random, and has dropout, so the random numbers matter too.
"""

import os
import shutil
from pathlib import Path
from typing import Any

STEPS = 8


def quiet() -> None:
    """No progress bars and notices of transformers."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def build_model(width: int = 16) -> Any:
    """A random Llama whose dropout depends on the saved random numbers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def build_trainer(folder: Path, width: int = 16, steps: int = STEPS, **settings: Any) -> Any:
    """The trainer of a run, with GR and with the mark on whole checkpoints."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from flatopt import attach

    class MarkWhole(TrainerCallback):
        """Written last: a checkpoint without this file is taken for a broken one."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete").touch()

    ids = torch.randint(4, 60, (64, 8), generator=torch.Generator().manual_seed(2)).tolist()
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,  # the one before the last survives a kill during saving
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=build_model(width),
        args=TrainingArguments(**(options | settings)),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        callbacks=[MarkWhole()],
    )
    trainer.remove_callback(PrinterCallback)
    attach(trainer, ratio=0.5)
    return trainer


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint with the mark; those without it are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / "complete").exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The step at which a checkpoint was written; 0 for none."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def train(folder: Path, *callbacks: Any) -> int:
    """Train in ``folder`` to the end, from the last whole checkpoint; the step it began from."""
    import torch

    checkpoint = last_whole(folder)
    trainer = build_trainer(folder)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    torch.save(state, folder / ".final.part")
    os.replace(folder / ".final.part", folder / "final.pt")
    return step_of(checkpoint)
