"""Resuming a model whose weights have other names on disk than in memory (Pythia, for one).

transformers 5 renames some weights when it saves and loads models; its Trainer, when it resumes,
loads by the names on disk and leaves out, with a notice in the log, what it does not find: the head
of a GPT-NeoX model would silently be that of the start of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


def _names_on_disk(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def restore_renamed(model: Any, checkpoint: Path) -> bool:
    """Put the checkpoint's weights into `model` where their names differ; whether they did.

    Args:
        model: a PreTrainedModel, not sharded; changed in place.
        checkpoint: a folder with `model*.safetensors`; with none (PEFT, FSDP) nothing is done.
    """
    found = _names_on_disk(checkpoint)
    if not found - set(model.state_dict()):
        return False
    # from_pretrained knows the new names
    source = type(model).from_pretrained(
        checkpoint, dtype=model.dtype, use_safetensors=True, trust_remote_code=False
    )
    with torch.no_grad():
        for name, p in source.state_dict().items():
            model.state_dict()[name].copy_(p)
    return True


class RestoreRenamed(TrainerCallback):
    """Runs `restore_renamed` once the Trainer has loaded what it finds."""

    def __init__(self, trainer: Any, checkpoint: Path | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step."""
        if self.checkpoint is not None:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            restore_renamed(model, self.checkpoint)
            self.checkpoint = None
