"""Old log-probs of a replayed micro-batch: which ratio the second gradient carries."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flatopt.perturb import RNGState


@dataclass
class MicroBatch:
    """What one replay needs: the prepared inputs, and the state of the trainer at the time."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    attributes: dict[str, Any]
    inputs: Any = field(default_factory=dict)
    rng: RNGState | None = None
    logps: Tensor | None = None


def keep_ratio(batch: MicroBatch, logps: Tensor) -> None:
    """Old log-probs such that the ratio at theta' is the one at theta: 1 on policy."""
    inputs = batch.inputs
    if batch.logps is None or inputs.get("old_logps", inputs.get("old_per_token_logps")) is None:
        inputs["old_per_token_logps"] = logps
        return
    change = logps - batch.logps
    if "old_logps" in inputs:  # RLOO: of the whole completion
        inputs["old_logps"] = inputs["old_logps"] + (change * inputs["completion_mask"]).sum(1)
    else:
        inputs["old_per_token_logps"] = inputs["old_per_token_logps"] + change


def sequence_ratio(batch: MicroBatch, logps: Tensor) -> None:
    """Old log-probs such that each token's ratio is moved by that of its whole completion.

    The loss then weighs the gradient of every token by pi_theta'(completion) over
    pi_theta(completion), as the gradient of the expected reward at theta' does.
    """
    inputs = batch.inputs
    if batch.logps is None or "old_logps" in inputs:  # RLOO: the ratio is the completion's already
        return
    mask = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    moved = ((logps - batch.logps) * mask).sum(1, keepdim=True)  # (batch, 1)
    old = inputs.get("old_per_token_logps")
    at_theta = 0.0 if old is None else batch.logps - old  # log ratio in g1; 0 on policy
    inputs["old_per_token_logps"] = logps - at_theta - moved


def fix_old_logps(batch: MicroBatch) -> None:
    """Old log-probs at theta, where the trainer would take them at the current parameters."""
    if batch.logps is None or "old_logps" in batch.inputs:
        return
    if batch.inputs.get("old_per_token_logps") is None:
        batch.inputs["old_per_token_logps"] = batch.logps
