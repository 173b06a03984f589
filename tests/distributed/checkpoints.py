"""Save a run with torch.distributed.checkpoint, and go on from it, in any number of processes."""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from flatopt import GradRegOptimizer, ReferenceReset
from tests.distributed.problem import Case, Outcome, optimizer_for, whole

# All that the wrapper counts matters here: the averages of `ratio`, the step for the others.
SETTINGS = {"ratio": 0.5, "warmup": 4, "every": 2, "reference": ReferenceReset(every=4)}
CASE = Case("fsdp", settings=SETTINGS)
BEFORE, AFTER = 3, 4  # steps before and after the checkpoint
FORMS = {"nested": False, "flattened": True}


def make_optimizer(model: nn.Module) -> GradRegOptimizer:
    return optimizer_for(CASE, model, "AdamW")


def save(folder: Path, flat: bool, model: nn.Module, optimizer: GradRegOptimizer) -> None:
    """Write the model, the optimizer and its reference policy."""
    dcp.save(_content(flat, model, optimizer), checkpoint_id=str(folder))


def load(folder: Path, flat: bool, model: nn.Module, optimizer: GradRegOptimizer) -> None:
    """Take up what `save` has written."""
    content = _content(flat, model, optimizer)
    dcp.load(content, checkpoint_id=str(folder))
    set_model_state_dict(model, content["model"])
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    set_optimizer_state_dict(model, optimizer, content["optimizer"], options=options)
    assert optimizer.reference is not None
    optimizer.reference.load_state_dict(content["reference"])


def _content(flat: bool, model: nn.Module, optimizer: GradRegOptimizer) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    assert optimizer.reference is not None
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
        "reference": optimizer.reference.state_dict(),
    }


def finished(outcome: Outcome, optimizer: GradRegOptimizer) -> dict[str, Any]:
    """All that a run ends with, to be compared with another's."""
    assert optimizer.reference is not None
    kept = zip(outcome.weights, optimizer.reference.snapshot, strict=True)
    own = {k: v for k, v in optimizer.state_dict()["gradreg"].items() if k != "reference"}
    return {
        "weights": outcome.weights,
        "reference": {name: whole(t) for name, t in kept},
        "own": own,
    }
