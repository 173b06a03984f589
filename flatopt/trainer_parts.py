"""`fraction` and halves in a trainer: which micro-batches of a step are a part."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from flatopt.optimizer import GradRegOptimizer

Batch = TypeVar("Batch")


def check_parts(trainer: Any, settings: dict[str, Any]) -> None:
    """ValueError where this training has no parts: one micro-batch a step, or sharded gradients."""
    fraction, batch = settings.get("fraction", 1.0), settings.get("batch", "whole")
    if batch == "whole" and not (isinstance(fraction, float) and fraction < 1.0):
        return
    steps = getattr(trainer.args, "gradient_accumulation_steps", 1)
    if steps < 2:
        raise ValueError(
            "fraction and batch='halves' work on the micro-batches of a step, and here a step has "
            "one: set gradient_accumulation_steps=4 and a fourth of per_device_train_batch_size"
        )
    if getattr(trainer, "is_fsdp_enabled", False):
        raise ValueError(
            "fraction and batch='halves' cannot be had under FSDP: gradients are sharded at the "
            "last micro-batch of a step only, so that of a part is never known"
        )


def first_part(optimizer: GradRegOptimizer, trainer: Any) -> int:
    """How many micro-batches of the present step are its first part; 0 where it has no parts."""
    count = trainer.current_gradient_accumulation_steps
    if optimizer.batch == "halves":
        return count // 2
    return math.ceil(optimizer.fraction * count) if optimizer.fraction < 1.0 else 0


def mark(optimizer: GradRegOptimizer, trainer: Any, count: int) -> None:
    """Note the gradient of the first ``count`` micro-batches; in DDP its mean over processes."""
    if not count:
        return
    optimizer.mark_part(count / trainer.current_gradient_accumulation_steps)
    processes = trainer.accelerator.num_processes
    if processes > 1 and not trainer.accelerator.sync_gradients and optimizer._part is not None:
        for g in optimizer._part.grads.values():  # DDP has not exchanged it yet
            torch.distributed.all_reduce(g)
            g.div_(processes)


@contextmanager
def as_whole(optimizer: GradRegOptimizer, whole: bool) -> Iterator[None]:
    """A last, short step of an epoch with one micro-batch: it has no halves."""
    batch = optimizer.batch
    if whole:
        optimizer.batch = "whole"
    try:
        yield
    finally:
        optimizer.batch = batch


def replayed(
    optimizer: GradRegOptimizer, window: Sequence[Batch], part: int, number: int
) -> Sequence[Batch]:
    """The micro-batches of pass ``number``."""
    if not part:
        return window
    if optimizer.batch == "halves" and number < optimizer.passes // 2:
        return window[part:]
    return window[:part]
