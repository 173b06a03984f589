"""`fraction` and halves in a trainer: which micro-batches of a step are a part."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from flatopt.old_logps import MicroBatch
from flatopt.optimizer import GradRegOptimizer
from flatopt.vectors import LOW_PRECISION

Batch = TypeVar("Batch")


def check_parts(trainer: Any, settings: dict[str, Any]) -> None:
    """ValueError where this training has no parts, or too many micro-batches for lean memory."""
    steps = getattr(trainer.args, "gradient_accumulation_steps", 1)
    narrow = any(p.dtype in LOW_PRECISION for p in trainer.model.parameters() if p.requires_grad)
    if settings.get("memory") == "lean" and narrow and steps > 1:
        raise ValueError(
            "memory='lean' with 16-bit weights takes one micro-batch a step: set "
            "gradient_accumulation_steps=1, keep the weights in float32 (bf16=True computes in 16 "
            "bits all the same), or use memory='fast'"
        )
    fraction, batch = settings.get("fraction", 1.0), settings.get("batch", "whole")
    if batch == "whole" and not (isinstance(fraction, float) and fraction < 1.0):
        return
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


def mark(
    optimizer: GradRegOptimizer, trainer: Any, batches: Sequence[MicroBatch], count: int
) -> None:
    """Note the gradient of the first ``count`` micro-batches; in DDP its mean over processes."""
    if not count:
        return
    optimizer.mark_part(_share(trainer, batches, count))
    processes = trainer.accelerator.num_processes
    if processes > 1 and not trainer.accelerator.sync_gradients and optimizer._part is not None:
        for g in optimizer._part.grads.values():  # DDP has not exchanged it yet
            torch.distributed.all_reduce(g)
            g.div_(processes)


def _share(trainer: Any, batches: Sequence[MicroBatch], count: int) -> float:
    """The part's weight in the loss: by items where the trainer divides by their number."""
    whole = trainer.current_gradient_accumulation_steps
    found = [_items(trainer, batch) for batch in batches]
    if count == whole or any(number is None for _, number in found):
        return count / whole
    processes = trainer.accelerator.num_processes
    part, number = torch.tensor(float(sum(items for items, _ in found))), found[0][1]
    if processes > 1:
        part = trainer.accelerator.reduce(part.to(trainer.accelerator.device), "sum")
        if not trainer.args.average_tokens_across_devices:  # the number is this process's alone
            number *= processes
    share = float(part) / number
    return share if 0.0 < share < 1.0 else count / whole


def _items(trainer: Any, batch: MicroBatch) -> tuple[int, Any]:
    """Items of one micro-batch, and what losses are divided by; (0, None) where that is a mean."""
    inputs = batch.inputs
    if not hasattr(inputs, "get"):
        return 0, None
    if "completion_mask" in inputs:  # GRPO: dapo and its like divide by all completion tokens
        number = inputs.get("num_items_in_batch")
        if getattr(trainer, "loss_type", "") not in ("cispo", "dapo", "vespo") or number is None:
            return 0, None
        mask = inputs["completion_mask"]
        mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
        steps = trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation
        return int(mask.sum()), float(torch.as_tensor(number).sum()) * steps
    number = batch.keywords.get("num_items_in_batch")
    if number is None and len(batch.arguments) > 2:
        number = batch.arguments[2]
    labels = inputs.get("shift_labels", inputs.get("labels"))
    if number is None or not isinstance(labels, torch.Tensor):
        return 0, None
    if "shift_labels" not in inputs and getattr(trainer, "_loss_shifts_labels", True):
        labels = labels[..., 1:]
    # DataParallel is given the number once per device, divided among them
    total = float(torch.as_tensor(number).sum())
    return (int((labels != -100).sum()), total) if total else (0, None)


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
