"""A policy batch in two independent halves: how much of a gradient is signal, and GR without noise.

The squared norm of a batch gradient holds the noise of the batch besides the gradient. The product
of the gradients of two halves with no prompt in common does not: their noises are independent.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from flatopt.optimizer import GradRegOptimizer
from flatopt.perturb import RNGState, displaced
from flatopt.precision import computed_in, default_radius
from flatopt.schedule import RatioStrength
from flatopt.trainer import LOGPS
from flatopt.vectors import dot, norm

STATE = (
    "flatopt.CrossBatchGR"  # in trainer_state.json; no name of a class, which Trainer would make
)


class Window:
    """The prepared inputs of the optimizer step in progress, one dict per micro-batch.

    Works with `flatopt.attach`, attached before or after: a replay comes when all micro-batches of
    its step have been seen, and is then not taken for a new one. Evaluation is left out.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.batches: list[dict[str, Any]] = []
        self._step: tuple[Any, int] = (None, -1)
        self._prepare = trainer._prepare_inputs
        trainer._prepare_inputs = self._prepared

    def _prepared(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._prepare(*args, **kwargs)
        trainer = self.trainer
        if not trainer.model.training:
            return inputs
        state, number = self._step
        if state is not trainer.state or number != trainer.state.global_step:
            self._step = (trainer.state, trainer.state.global_step)
            self.batches = []
        if len(self.batches) < trainer.current_gradient_accumulation_steps:
            self.batches.append(copy.copy(inputs))  # compute_loss may pop from it
        return inputs


@dataclass
class Half:
    """Whole prompt groups of a step: per micro-batch their inputs, and their share of the rows."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class Halves:
    """Gradients of the trainer's own loss on two halves of a step's batch, without a trace.

    All rows of one prompt lie in one half, because a group's baseline couples its samples. Each
    half's loss is the mean over its own rows (for losses by ``num_items_in_batch``, such as
    "dapo": its share of the rows of that normaliser), so that the mean of the two gradients,
    weighted by rows, is the gradient of the batch. For "bnpo", a mean over tokens, and with
    advantages scaled by the whole batch, that and the independence hold nearly.

    Args:
        trainer: a TRL GRPOTrainer or RLOOTrainer, before train(). `flatopt.attach` may be called
            before or after.

    Raises:
        ValueError: not such a trainer, one prompt per generation batch, several processes.
    """

    def __init__(self, trainer: Any) -> None:
        check_trainer(trainer)
        self.trainer = trainer
        self.window = Window(trainer)
        self._rng = RNGState.capture([])
        self._logps: Tensor | None = None  # of the last loss

    @property
    def params(self) -> list[Tensor]:
        """The trained parameters, in the order of all gradients here."""
        return [p for p in self.trainer.model.parameters() if p.requires_grad]

    def groups(self) -> int:
        """How many prompts the present step's batch has."""
        return len(set(_groups(self.window.batches)[0]))

    def split(self) -> tuple[Half, Half]:
        """The present step's batch in two halves of about the same number of rows.

        Raises:
            ValueError: fewer than two prompts, images, or no step in progress.
        """
        batches = self.window.batches
        if not batches:
            raise ValueError("no batch yet: call this within a training step, in a callback")
        if any("pixel_values" in batch for batch in batches):
            raise ValueError("halves of batches with images are not supported")
        groups, places = _groups(batches)
        if len(set(groups)) < 2:
            raise ValueError(
                "the batch of this step has one prompt only, and its samples share a baseline. Let "
                "per_device_train_batch_size * gradient_accumulation_steps hold two or more groups "
                "of num_generations"
            )
        rows: dict[Any, list[tuple[int, int]]] = {}
        for key, place in zip(groups, places, strict=True):
            rows.setdefault(key, []).append(place)
        sides: tuple[list[tuple[int, int]], ...] = ([], [])
        for members in sorted(rows.values(), key=len, reverse=True):  # stable: by first appearance
            min(sides, key=len).extend(members)
        return _half(batches, sides[0]), _half(batches, sides[1])

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """g_a and g_b at the present weights: one float32 tensor per trained parameter.

        ``.grad``, random numbers, buffers, metrics and counters are left as they were.

        Raises:
            ValueError: as for `split`.
        """
        a, b = self.split()
        with self.untraced():
            return self.gradient(a), self.gradient(b)

    def gradient(self, half: Half) -> list[Tensor]:
        """The gradient on one half at the present weights; to be called inside `untraced`.

        The first call notes the log-probs where the batch has no old ones: at other weights the
        loss then carries the ratio to the weights of that first call. Random numbers are the same
        in each call.
        """
        trainer, params = self.trainer, self.params
        total: list[Tensor] = [torch.zeros_like(p, dtype=torch.float32) for p in params]
        self._rng.restore()
        for inputs, weight in zip(half.parts, half.weights, strict=True):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, copy.copy(inputs))
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            for sum_, g in zip(total, grads, strict=True):
                if g is not None:
                    sum_.add_(g.float(), alpha=weight)
            if "old_logps" not in inputs and inputs.get("old_per_token_logps") is None:
                inputs["old_per_token_logps"] = self._logps
        return total

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Inside, losses are those of one micro-batch; outside, the trainer is as it was."""
        trainer, attributes = self.trainer, self.trainer.__dict__
        before = dict(attributes)
        self._rng = RNGState.capture([p.device for p in trainer.model.parameters()])
        buffers = [(b, b.clone()) for b in trainer.model.buffers()]
        logps = getattr(trainer, LOGPS)

        def noted(*args: Any, **kwargs: Any) -> Any:
            result = logps(*args, **kwargs)
            self._logps = result[0].detach()
            return result

        attributes[LOGPS] = noted
        attributes["_metrics"] = {mode: defaultdict(list) for mode in before["_metrics"]}
        attributes["current_gradient_accumulation_steps"] = 1
        try:
            with torch.enable_grad():
                yield
        finally:
            for name in set(attributes) - set(before):
                del attributes[name]
            attributes.update(before)
            for buffer, value in buffers:
                buffer.copy_(value)
            self._rng.restore()


def check_trainer(trainer: Any) -> None:
    """ValueError where the halves of a batch cannot be had from this trainer."""
    if not hasattr(trainer, LOGPS) or not hasattr(trainer, "num_generations"):
        raise ValueError(
            f"a TRL GRPOTrainer or RLOOTrainer is needed, not {type(trainer).__name__}"
        )
    if trainer.accelerator.num_processes > 1:
        raise ValueError("halves of a batch need a single process; this training has several")
    if trainer.args.generation_batch_size // trainer.num_generations < 2:
        raise ValueError(
            f"generation_batch_size={trainer.args.generation_batch_size} with num_generations="
            f"{trainer.num_generations} is one prompt at a time, which has no independent halves. "
            "Raise per_device_train_batch_size or gradient_accumulation_steps, or lower "
            "num_generations"
        )


def _groups(batches: Sequence[dict[str, Any]]) -> tuple[list[Any], list[tuple[int, int]]]:
    """The prompt of each row without padding, and where the row is: (micro-batch, row)."""
    keys, places = [], []
    for number, batch in enumerate(batches):
        prompts, masks = batch["prompt_ids"].tolist(), batch["prompt_mask"].tolist()
        for row, (ids, mask) in enumerate(zip(prompts, masks, strict=True)):
            keys.append(tuple(i for i, kept in zip(ids, mask, strict=True) if kept))
            places.append((number, row))
    return keys, places


def _half(batches: Sequence[dict[str, Any]], places: Sequence[tuple[int, int]]) -> Half:
    half = Half()
    for number, batch in enumerate(batches):
        rows = sorted(row for at, row in places if at == number)
        if not rows:
            continue
        size = len(batch["prompt_ids"])
        part = {name: _select(value, rows, size) for name, value in batch.items()}
        if part.get("num_items_in_batch") is not None:
            part["num_items_in_batch"] = part["num_items_in_batch"] * (len(rows) / size)
        half.parts.append(part)
        half.weights.append(len(rows) / len(places))
    return half


def _select(value: Any, rows: list[int], size: int) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == size:
        return value[torch.tensor(rows, device=value.device)]
    if isinstance(value, list) and len(value) == size:
        return [value[row] for row in rows]
    return value


def signal_share(g_a: Sequence[Tensor], g_b: Sequence[Tensor]) -> float:
    r"""How much of the squared norm of a batch gradient is the gradient itself: 1 all, 0 none.

    .. math:: g_a \cdot g_b \,/\, \|(g_a + g_b)/2\|^2

    The halves' noises are independent, so the numerator's expectation is the squared norm of the
    true gradient, where the denominator's has that of the noise besides. Single values scatter,
    also below 0; average them. NaN where both gradients are zero.

    >>> signal_share([torch.tensor([1.0, 1.0])], [torch.tensor([1.0, -1.0])])
    0.0
    """
    mean = [(a + b) / 2 for a, b in zip(g_a, g_b, strict=True)]
    square = float(norm(mean)) ** 2
    return float(dot(g_a, g_b)) / square if square else math.nan


class CrossBatchGR(TrainerCallback):
    r"""GR whose penalty is :math:`\frac12 g_a\cdot g_b` of two halves: without the batch's noise.

    The penalty gradient of GR on one batch is H g with the H and the g of that batch, and holds
    their covariance besides what it should be. Here H is of one half and g of the other:

    .. math:: p = \tfrac12 (H_b g_a + H_a g_b),\quad
              H_b g_a \approx (g_b(\theta + \epsilon g_a) - g_b)/\epsilon

    Samples and their old log-probs stay those of theta. p is added to the gradient before the
    trainer clips it, with the strength at which it is ``ratio`` times as long as the gradient, by
    the same running means as in `flatopt.attach`. Costs two more forward and backward passes of a
    batch. The logs get ``gr/grad_norm``, ``gr/penalty_ratio`` and ``gr/strength``; resuming a
    checkpoint restores the running means. A step whose batch has one prompt is a plain step.

    Args:
        trainer: as for `Halves`; this callback adds itself.
        ratio: length of the penalty relative to the gradient, >= 0.
        radius: ||theta' - theta|| / ||theta||; by default as in `flatopt.attach`.

    Raises:
        ValueError: as for `Halves`; a ratio or radius out of range; GR by `flatopt.attach` too.
    """

    def __init__(self, trainer: Any, ratio: float = 1.0, radius: float | None = None) -> None:
        if not (math.isfinite(ratio) and ratio >= 0):
            raise ValueError(f"ratio must be finite and >= 0, got {ratio}")
        if radius is not None and not (math.isfinite(radius) and radius > 0):
            raise ValueError(f"radius must be finite and > 0, got {radius}")
        self.halves = Halves(trainer)
        self.trainer, self.radius = trainer, radius
        self.rule = RatioStrength(ratio)
        self._training_step = trainer.training_step
        trainer.training_step = self._step
        trainer.add_callback(self)

    def penalty(self) -> list[Tensor]:
        """p on the present step's batch: one float32 tensor per trained parameter."""
        halves, params = self.halves, self.halves.params
        a, b = halves.split()
        with halves.untraced():
            g_a, g_b = halves.gradient(a), halves.gradient(b)
            if self.radius is None:
                bf16 = self.trainer.args.bf16
                self.radius = default_radius("16 bits" if bf16 else computed_in(params, g_a))
            shift = self.radius * (float(norm(params)) or 1.0)
            total = [torch.zeros_like(g) for g in g_a]
            for direction, half, at_theta in ((g_a, b, g_b), (g_b, a, g_a)):
                length = float(norm(direction))
                if not (math.isfinite(length) and length > 0):
                    continue  # no step along it: its product with H is zero
                with displaced(params, direction, shift / length):
                    shifted = halves.gradient(half)
                for sum_, new, old in zip(total, shifted, at_theta, strict=True):
                    sum_.add_(new - old, alpha=0.5 * length / shift)
        return total

    def _step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self._training_step(*args, **kwargs)
        if self.trainer.accelerator.sync_gradients and self.rule.ratio:
            self._add_penalty()
        return loss

    def _add_penalty(self) -> None:
        params = self.halves.params
        grad_norm = float(norm([p.grad for p in params if p.grad is not None]))
        strength = length = 0.0
        if math.isfinite(grad_norm) and self.halves.groups() > 1:
            added = self.penalty()
            length = float(norm(added))
            if math.isfinite(length):
                strength = self.rule.update(grad_norm, length)
                for p, part in zip(params, added, strict=True):
                    if p.grad is not None:
                        p.grad.add_(part.to(p.grad.dtype), alpha=strength)
        logged = {"grad_norm": grad_norm, "strength": strength}
        if strength and grad_norm:
            logged["penalty_ratio"] = strength * length / grad_norm
        for name, value in logged.items():
            self.trainer._metrics["train"][f"gr/{name}"].append(value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a second GR, and go on from the running means of a checkpoint."""
        optimizer: Any = kwargs.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's wrapper
        if isinstance(optimizer, GradRegOptimizer) and (
            optimizer.ratio_rule is not None or optimizer.strength != 0
        ):
            raise ValueError("this trainer has GR by flatopt.attach as well; use one of the two")
        saved = state.stateful_callbacks.get(STATE, {}) if state.global_step else {}
        self.rule.grad_norm = saved.get("grad_norm", 0.0)
        self.rule.product_norm = saved.get("product_norm", 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the running means where checkpoints take them from."""
        means = {"grad_norm": self.rule.grad_norm, "product_norm": self.rule.product_norm}
        state.stateful_callbacks[STATE] = means
