"""Tiny preference data and reward trainers, for the tests of reward models."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import RewardConfig

from integrations.reward_models.grm import GRMConfig, GRMTrainer
from tests.trainer_cases import model_path, sentence


def pairs(size: int = 24, shift: int = 0, **columns: Any) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": sentence(i, 3) + " ",
                "chosen": sentence(i + 11 + shift, 2 + i % 4),
                "rejected": sentence(i + 23 + shift, 5 - i % 3),
            }
            | columns
            for i in range(size)
        ]
    )


def make(
    folder: Path,
    kind: Any = GRMTrainer,
    model: Any = None,
    data: Any = None,
    tied: bool = False,
    extra: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A small trainer of `kind`; the model is given by name unless it is given."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    config: Any = GRMConfig if kind is GRMTrainer else RewardConfig
    path = model_path(0.0, tied)
    return kind(
        model=path if model is None else model,
        args=config(**(options | settings)),
        train_dataset=pairs() if data is None else data,
        processing_class=AutoTokenizer.from_pretrained(path),
        **(extra or {}),
    )
