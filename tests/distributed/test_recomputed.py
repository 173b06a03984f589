"""Gradient checkpointing and offloaded activations leave a step as it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.utils.checkpoint import checkpoint

from tests.distributed.problem import Case, Net, Outcome, error, optimizer_for, train


class DropoutNet(Net):
    """The net with dropout in its blocks, and ``around`` called on each of them."""

    def __init__(self, around: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(b, nn.Dropout(0.2)) for b in self.blocks)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        for block in self.blocks:
            x = x + self.around(block, x)
        return self.head(x)


def plainly(block: Any, x: Tensor) -> Tensor:
    return block(x)


def reentrant(block: Any, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=True)


def non_reentrant(block: Any, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def run(
    how: str,
    around: Callable[[Any, Tensor], Tensor] = plainly,
    wrapper: Callable[[nn.Module], nn.Module] | None = None,
    context: AbstractContextManager[Any] | None = None,
    **settings: Any,
) -> Outcome:
    case = Case(how=how, micro=2, settings=settings)
    model = DropoutNet(around)
    if wrapper is not None:
        model.blocks = nn.ModuleList(wrapper(block) for block in model.blocks)
    optimizer = optimizer_for(case, model)
    torch.manual_seed(3)
    # entered anew around each backward pass
    return train(case, model, optimizer, sync=lambda last: context or nullcontext())


def apart(left: Outcome, right: Outcome) -> float:
    """The relative error, whatever wrappers have put into the names."""
    numbered = [{str(i): w for i, w in enumerate(o.weights.values())} for o in (left, right)]
    return error(*numbered)


WAYS: dict[str, dict[str, Any]] = {
    "reentrant": {"around": reentrant},
    "non-reentrant": {"around": non_reentrant},
    "reentrant wrapper": {
        "wrapper": partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT)
    },
    "non-reentrant wrapper": {"wrapper": checkpoint_wrapper},
    "offload wrapper": {"wrapper": offload_wrapper},
    "save_on_cpu": {"context": save_on_cpu()},
}


# The wrapper's copies of transposed matrices are contiguous, and multiplied in another order
ROUNDING = {"offload wrapper": 1e-6}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_step_is_unchanged(way: str, difference: str) -> None:
    plain = run("closure", difference=difference)
    other = run("closure", difference=difference, **WAYS[way])
    assert apart(other, plain) <= ROUNDING.get(way, 0.0)
    assert other.restored
    assert other.moved
    assert apart(plain, run("closure", strength=0.0)) > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_names_are_found_behind_wrappers(way: str) -> None:
    names = ("blocks.0", "head")
    plain = run("closure", exclude=names)
    assert apart(run("closure", exclude=names, **WAYS[way]), plain) <= ROUNDING.get(way, 0.0)
    assert apart(plain, run("closure")) > 1e-4


@pytest.mark.parametrize("way", [w for w in WAYS if not w.startswith("reentrant")])
def test_exact_product_through_recomputation(way: str) -> None:
    exact: dict[str, Any] = {"difference": "exact", "radius": None}
    assert apart(run("closure", **exact, **WAYS[way]), run("closure", **exact)) < 1e-6


@pytest.mark.parametrize("way", [w for w in WAYS if w.startswith("reentrant")])
def test_exact_product_is_refused_through_reentrant_checkpoints(way: str) -> None:
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        run("closure", difference="exact", radius=None, **WAYS[way])
