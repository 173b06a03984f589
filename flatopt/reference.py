"""The reference policy: a copy of the weights, swapped into the live model on demand, and reset."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatopt.schedule import ReferenceReset
from flatopt.shards import fresh_copies
from flatopt.vectors import wide

logger = logging.getLogger(__name__)


class Reference:
    """A copy of a policy's parameters, reset by a `ReferenceReset`. No second model is held.

    Made by ``GradRegOptimizer(..., reference=ReferenceReset(...))`` as ``optimizer.reference``,
    which counts its steps and resets it, and saves it in the optimizer's state_dict. Memory: one
    copy of the optimizer's parameters (two with ``ema_decay``), on the CPU with ``offload``. With
    LoRA these are the adapter's weights alone. Frozen parameters and buffers are the policy's own,
    and so are parameters that another optimizer steps.

    Attributes:
        params: gives the policy's parameters.
        snapshot: the reference's, copies of them.
        average: their running mean, with ``ema_decay``.
        steps: optimizer steps so far.
        resets: resets so far.
        since_reset: steps since the last one.
        metrics: what ``when`` is given beside the counters; set it, or let the trainer do so.
        decide: agrees on a decision of ``when`` among processes; the identity in a single one.

    Example:
        >>> from flatopt import GradRegOptimizer, ReferenceReset
        >>> policy = torch.nn.Linear(2, 2)
        >>> base = torch.optim.SGD(policy.parameters(), lr=0.1)
        >>> optimizer = GradRegOptimizer(base, strength=0.0, reference=ReferenceReset(every=2))
        >>> x = torch.ones(1, 2)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     policy(x).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.reference.swapped():   # for the KL term; without gradients
        ...     reference_output = policy(x)
        >>> torch.allclose(policy(x) - reference_output, torch.tensor(-0.3))  # one step since
        True
    """

    def __init__(self, params: Callable[[], Sequence[Tensor]], rule: ReferenceReset) -> None:
        if not isinstance(rule, ReferenceReset):
            raise TypeError(f"reference takes a ReferenceReset(every=...), got {rule!r}")
        self.rule, self.params = rule, params
        self.steps = self.resets = self.since_reset = 0
        self.metrics: dict[str, Any] = {}
        self.decide: Callable[[bool], bool] = bool
        self.snapshot: list[Tensor] = []
        self.average: list[Tensor] = []
        self.active = False
        self._follow()

    # ---- use ------------------------------------------------------------------------------------

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The reference's weights in the live model inside, the policy's outside, bit for bit.

        Gradients are off inside. Weights are exchanged one tensor at a time, also when an error is
        raised, so no further copy of the model is made.

        Raises:
            RuntimeError: inside another ``swapped()``.
        """
        if self.active:
            raise RuntimeError("swapped() was entered inside swapped(); leave the first block")
        self._follow()
        self.active = True
        done = 0
        try:
            with torch.no_grad():
                for i in range(len(self.snapshot)):
                    self._exchange(i)
                    done = i + 1
                torch.clear_autocast_cache()  # it holds 16-bit copies of the policy's weights
                with fresh_copies(self.params()):  # and FSDP2 gathered ones
                    yield
        finally:
            with torch.no_grad():
                for i in range(done):
                    self._exchange(i)
            torch.clear_autocast_cache()
            self.active = False

    def check_out(self) -> None:
        """Refuse to step the reference's weights in place of the policy's.

        Raises:
            RuntimeError: inside ``swapped()``.
        """
        if self.active:
            raise RuntimeError(
                "optimizer.step() inside reference.swapped() would step the reference; leave the "
                "`with` block first"
            )

    def _exchange(self, i: int) -> None:
        # .data: a graph that the policy's own forward pass has built stays usable, because the
        # values are back, bit for bit, before anything is differentiated
        live, kept = self.params()[i].data, self.snapshot[i]
        held = live.clone()
        live.copy_(kept)
        kept.copy_(held)

    @torch.no_grad()
    def after_step(self, base: Optimizer) -> None:
        """Count a step of the optimizer, move the average, reset if it is time."""
        self._follow()
        self.steps += 1
        self.since_reset += 1
        if self.rule.ema_decay is not None:
            for mean, p in zip(self.average, self.params(), strict=True):
                mean.lerp_(p.data.to(mean), 1.0 - self.rule.ema_decay)
        counters = {"step": self.steps, "since_reset": self.since_reset, "resets": self.resets}
        due = self.rule.due({**self.metrics, **counters})
        if self.rule.when is not None:
            due = self.decide(due)
        if due:
            self.reset()
            if self.rule.reset_optimizer:
                base.state.clear()

    @torch.no_grad()
    def reset(self) -> None:
        """Do now what the rule does on schedule."""
        rule, params = self.rule, [p.data for p in self.params()]
        if rule.target == "policy":  # Elastic Reset: policy <- average <- initial policy
            for p, mean, first in zip(params, self.average, self.snapshot, strict=True):
                p.copy_(rule.blend(p, mean.to(p.device)))
                mean.copy_(first)
        else:
            source = self.average if rule.source == "ema" else params
            for kept, new in zip(self.snapshot, source, strict=True):
                kept.copy_(rule.blend(kept, new.to(kept.device)))
        self.resets += 1
        self.since_reset = 0
        logger.info("reset %d of the reference policy, at step %d", self.resets, self.steps)

    # ---- copies and saved state -----------------------------------------------------------------

    @torch.no_grad()
    def _follow(self) -> None:
        """Copy parameters that the optimizer has been given since the last look."""
        for p in self.params()[len(self.snapshot) :]:
            place = torch.device("cpu") if self.rule.offload else p.device
            self.snapshot.append(p.detach().to(place, copy=True))
            if self.rule.ema_decay is not None:
                # in float32 at least: 16 bits would round the small steps of a running mean away
                self.average.append(p.detach().to(place, wide(p.dtype), copy=True))

    def state_dict(self) -> dict[str, Any]:
        """Copies of the weights and the counters."""
        return {
            "snapshot": [t.clone() for t in self.snapshot],
            "average": [t.clone() for t in self.average],
            "counters": [self.steps, self.resets, self.since_reset],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take over a saved reference; without one, say that it stays as it is.

        Raises:
            ValueError: the saved tensors are not of the shapes of this optimizer's parameters.
        """
        if not state:
            warnings.warn(
                "this checkpoint holds no reference policy (it was saved without reference=..., or "
                "by torch.distributed.checkpoint, beside which optimizer.reference.state_dict() "
                "must be saved): the reference stays what it was when the optimizer was made",
                stacklevel=4,
            )
            return
        self._follow()
        for name, own in (("snapshot", self.snapshot), ("average", self.average)):
            shapes = [tuple(t.shape) for t in state[name]]
            if own and shapes != [tuple(t.shape) for t in own]:
                raise ValueError(
                    f"the saved reference ({name}: {len(shapes)} tensors) does not fit the "
                    f"{len(own)} parameters of this optimizer; load a checkpoint of this model, "
                    "saved with the same reference=ReferenceReset(...)"
                )
            for mine, saved in zip(own, state[name], strict=False):
                mine.copy_(saved)
        self.steps, self.resets, self.since_reset = state["counters"]
