"""Small problems in float64, optimizers to wrap, and the reference step, shared by all tests."""

import copy
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatopt import GradRegOptimizer, gradreg_gradient


class Problem:
    """A tiny network with three fixed batches; the loss of several is the sum of theirs."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, bias: bool = True, layer: nn.Module | None = None
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 5, bias=bias), layer or nn.Tanh(), nn.Linear(5, 2, bias=bias)
        ).to(dtype)
        self.batches = [
            (torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype)) for _ in range(3)
        ]
        self.params = list(self.model.parameters())
        self.factor = 1.0  # multiplies the loss
        self.calls = 0  # forward passes so far

    def copy(self) -> "Problem":
        """The same problem with its own parameters."""
        other = copy.deepcopy(self)
        other.params = list(other.model.parameters())
        return other

    def loss(self, batch: int = 0) -> Tensor:
        """Mean squared error on one batch."""
        self.calls += 1
        x, y = self.batches[batch]
        return self.factor * ((self.model(x) - y) ** 2).mean()

    def backward(self, micro: int = 1) -> Tensor:
        """Accumulate the gradients of the first ``micro`` batches; the sum of the losses."""
        total = torch.zeros((), dtype=self.params[0].dtype)
        for batch in range(micro):
            loss = self.loss(batch)
            loss.backward()
            total += loss.detach()
        return total

    def closure(self, optimizer: Optimizer, micro: int = 1) -> Callable[[], Any]:
        """What torch.optim asks for: zero_grad, losses, backward, the loss."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            return self.backward(micro)

        return closure

    def simple(self, strength: float, eps: float, micro: int = 1) -> list[Tensor]:
        """The gradient that flatopt/simple.py gives."""
        return gradreg_gradient(
            lambda: cast(Tensor, sum(self.loss(b) for b in range(micro))),
            self.params,
            strength,
            eps,
        )

    def grads(self) -> list[Tensor]:
        """Copies of ``.grad``."""
        return [p.grad.clone() for p in self.params if p.grad is not None]

    def values(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.params]


def two_phases(problem: Problem, optimizer: GradRegOptimizer, micro: int = 1) -> None:
    """g1 and the further passes, up to but without step()."""
    optimizer.zero_grad()
    problem.backward(micro)
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            problem.backward(micro)


def gr_step(problem: Problem, optimizer: GradRegOptimizer, how: str, micro: int = 1) -> None:
    """One whole step, by "closure" or "perturbed"."""
    if how == "closure":
        optimizer.step(problem.closure(optimizer, micro))
    else:
        two_phases(problem, optimizer, micro)
        optimizer.step()


def set_grads(params: Iterable[Tensor], grads: Iterable[Tensor]) -> None:
    """Put copies of ``grads`` into ``.grad``."""
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """||left - right|| / ||right||, in float64, of lists of tensors as vectors."""
    a, b = (torch.cat([t.detach().double().flatten() for t in side]) for side in (left, right))
    return float((a - b).norm() / b.norm())


def same(left: Any, right: Any) -> bool:
    """Bitwise equality of nested dicts, lists and tensors, as in optimizer states."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _torch_bases() -> dict[str, tuple[str, str, dict[str, Any]]]:
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for name, kind in sorted(vars(torch.optim).items()):
        if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
            continue
        if name in ("Optimizer", "LBFGS", "SparseAdam"):  # abstract, or refused
            continue
        options = {"momentum": 0.9} if name == "SGD" else {}
        found[name] = ("torch.optim", name, {"lr": 0.01, **options})
        if name not in ("Muon", "Adafactor"):
            found[f"{name}-foreach"] = ("torch.optim", name, {**found[name][2], "foreach": True})
        if name in ("SGD", "Adam", "AdamW", "Adagrad"):
            found[f"{name}-fused"] = ("torch.optim", name, {**found[name][2], "fused": True})
    return found


BASES = {
    **_torch_bases(),
    "AdamWScheduleFree": ("schedulefree", "AdamWScheduleFree", {"lr": 0.01}),
    "Lion": ("pytorch_optimizer", "Lion", {"lr": 0.01}),
}


def make_base(name: str, params: Iterable[Any]) -> Optimizer:
    """An optimizer of `BASES`; skips the test where its package is not installed."""
    module, kind, options = BASES[name]
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.skip(f"{module} is not installed")
    base = getattr(found, kind)(params, **options)
    if hasattr(base, "train"):  # schedulefree steps in its training mode only
        base.train()
    return base


def problem_for(name: str, dtype: torch.dtype = torch.float64) -> Problem:
    """A problem that this base can step: Muon takes matrices only."""
    return Problem(dtype, bias=name != "Muon")
