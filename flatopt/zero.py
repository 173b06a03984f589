"""DeepSpeed's ZeRO stages 1 and 2 as the base of a `GradRegOptimizer`."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ZeroEngine(Optimizer):
    """A DeepSpeed engine in the shape of a torch optimizer, to be wrapped by `GradRegOptimizer`.

    The engine reduces gradients into partitions of its own and steps them itself, so no optimizer
    around or inside it sees a whole gradient. `backward` reads them into ``.grad`` with DeepSpeed's
    ``safe_get_full_grad``; ``step`` writes the combined ones back with ``safe_set_full_grad`` and
    lets the engine step. Every process holds whole gradients during a step: ZeRO's saving of
    optimizer states is kept, that of gradients (stage 2) is not.

    Learning rates, moments and checkpoints of the weights stay the engine's. `GradRegOptimizer`'s
    ``state_dict()`` then holds its own numbers alone: save it as the engine's ``client_state``.

    Args:
        engine: what ``deepspeed.initialize`` returned, with ZeRO stage 1 or 2, without fp16 and
            without gradient accumulation.

    Raises:
        ValueError: another stage, fp16, gradient accumulation.

    Example:
        >>> base = ZeroEngine(engine)  # doctest: +SKIP
        >>> optimizer = GradRegOptimizer(base, ratio=1.0)  # doctest: +SKIP
        >>> def closure():  # doctest: +SKIP
        ...     optimizer.zero_grad()
        ...     loss = loss_fn(engine, batch)
        ...     base.backward(loss)  # in place of engine.backward
        ...     return loss
        >>> loss = optimizer.step(closure)  # in place of engine.step  # doctest: +SKIP
    """

    def __init__(self, engine: Any) -> None:
        _check_engine(engine)
        self.engine = engine
        super().__init__([(n, p) for n, p in engine.module.named_parameters()], {})

    def backward(self, loss: Tensor) -> None:
        """The engine's backward pass, and its reduced gradients in ``.grad``."""
        from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

        for p in self._params():
            p.grad = None  # the engine takes it for one that is not reduced yet
        self.engine.backward(loss)
        for p in self._params():
            whole = safe_get_full_grad(p) if p.requires_grad else None
            if whole is not None:  # a copy: the next backward pass may fill the same buffer
                p.grad = whole.detach().to(p.dtype, copy=True).view_as(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Hand ``.grad`` to the engine, and let it step."""
        from deepspeed.utils import safe_set_full_grad  # pyright: ignore[reportMissingImports]

        for p in self._params():
            gradient, p.grad = p.grad, None
            if gradient is not None:
                safe_set_full_grad(p, gradient)
        self.engine.step()

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _check_engine(engine: Any) -> None:
    if not hasattr(engine, "zero_optimization_stage"):
        raise TypeError(
            f"ZeroEngine takes what deepspeed.initialize returned, got {type(engine).__name__}"
        )
    stage = engine.zero_optimization_stage()
    if stage not in (1, 2):
        raise ValueError(
            f"ZeroEngine needs ZeRO stage 1 or 2, got {stage}. Stage 3 partitions the weights too, "
            "which it does not follow: use PyTorch's FSDP2. Without ZeRO, use DDP"
        )
    if engine.fp16_enabled():
        raise ValueError("ZeroEngine does not support fp16: its loss scale changes; use bf16")
    if engine.gradient_accumulation_steps() != 1:
        raise ValueError(
            "ZeroEngine needs gradient_accumulation_steps=1: the engine adds up micro-batches in a "
            "buffer of its own, to which a second pass would add. Use larger micro-batches"
        )
