"""What the state machine expects: its own weights, gradients and base, and no flatopt."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.fuzz.oracle import PlainGR, Rules, Split, gradient, length
from tests.fuzz.problems import Loss

LOSSES = [Loss(seed) for seed in range(4)]
SHARE = 0.25  # of the first part of a batch, in its weight
ODD = 3  # index of the parameter that some batches do not use

Groups = list[dict[str, Any]]
BASES: dict[str, Callable[[Groups], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
    # a large eps, because Adam multiplies the rounding of the smallest gradients
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02, eps=1e-2),
}


def start_values() -> list[Tensor]:
    """A vector, a transposed matrix, a scalar, one that is used now and then, a frozen one."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3,), (2, 3), (), (2,), (2,))
    found = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    found[1] = found[1].t()
    return [v.requires_grad_(i != 4) for i, v in enumerate(found)]


@dataclass(frozen=True)
class Batch:
    """One batch: which loss, with what noise on the weights, on the first ``count`` parameters."""

    which: int
    noise: float
    count: int
    odd: bool = True  # the odd parameter enters, by a term of its own
    factor: float = 1.0

    def loss(self, values: Sequence[Tensor]) -> Tensor:
        chosen = [v * (1.0 + self.noise) for i, v in enumerate(values[: self.count]) if i != ODD]
        total = LOSSES[self.which](chosen)
        if self.odd:
            total = total + torch.sin(values[ODD] * (1.0 + self.noise)).sum()
        return self.factor * total


def together(batches: Sequence[Batch]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The sum of the batches' losses."""

    def loss(values: Sequence[Tensor]) -> Tensor:
        nothing = sum(0.0 * v.sum() for v in values)  # for an empty part
        total = sum((batch.loss(values) for batch in batches), start=nothing)
        assert isinstance(total, Tensor)
        return total

    return loss


@dataclass
class Model:
    """The weights that flatopt should have, and the gradient that should be in ``.grad``.

    Attributes:
        batches: those behind the gradient in ``.grad``. done: passes finished on them.
        marked: how many of them are the first part; None where `mark_part` did not say.
        opened: the share of the strength and the means before the first pass.
        grads: what ``.grad`` holds, by index of the parameter; None where the base may not step.
            Unknown between the passes of one step.
    """

    rules: Rules
    kind: str
    excluded: list[int]
    values: list[Tensor] = field(default_factory=start_values)
    batches: list[Batch] = field(default_factory=list)
    done: int = 0
    marked: int | None = None
    opened: tuple[float, tuple[float, float]] | None = None
    grads: dict[int, Tensor] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plain = PlainGR(self.rules)
        self.base = BASES[self.kind]([{"params": self.values}])

    @property
    def passes(self) -> int:
        """Passes that the present step needs."""
        return self.points if self.plain.share() else 0

    @property
    def points(self) -> int:
        """Passes of a step with GR, whether or not this one is."""
        return self.rules.points

    @property
    def lean(self) -> bool:
        return self.rules.memory == "lean"

    @property
    def parts(self) -> bool:
        """Whether the passes take parts of a batch."""
        return self.rules.fraction < 1.0 or self.rules.batch == "halves"

    @property
    def phase(self) -> str:
        """How far the present step is: "empty", "g1", "between" two passes, "combined"."""
        if self.done:
            return "combined" if self.done == self.points else "between"
        return "g1" if self.batches else "empty"

    def live(self) -> list[int]:
        return sorted(self.grads) if self.grads is not None else []

    def theta(self) -> list[Tensor]:
        return [v.detach().clone() for v in self.values]

    def drop(self, to_none: bool = True) -> None:
        """zero_grad: the gradients are gone, or zero."""
        known = {} if to_none or self.grads is None else self.grads
        self.grads = {i: torch.zeros_like(g) for i, g in known.items()}
        self.batches = []
        self._forget_passes()

    def _forget_passes(self) -> None:
        self.done, self.marked, self.opened, self.plain.norms = 0, None, None, None

    def mark(self) -> None:
        """mark_part; of a plain step nothing is noted."""
        self.marked = len(self.batches) if self.plain.share() else self.marked

    def replayed(self) -> list[Batch]:
        """The batches of the next pass."""
        if not self.parts or self.marked is None:
            return self.batches
        second = self.rules.batch == "halves" and self.done < self.points // 2
        return self.batches[self.marked :] if second else self.batches[: self.marked]

    def backward(self, batch: Batch) -> None:
        """Add the gradient of a batch to ``.grad``."""
        self.batches.append(batch)
        self._first_gradient()

    def again(self) -> None:
        """A pass failed: ``.grad`` holds g1 again; where it was overwritten, nothing."""
        shiftable = any(bool(g.any()) for i, g in self.g1().items() if i not in self.excluded)
        self._forget_passes()
        if self.lean and shiftable:
            self.grads = None
        else:
            self._first_gradient()

    def seen(self, batches: Sequence[Batch]) -> set[int]:
        """Indices of the parameters to which these batches give a gradient."""
        found = {i for b in batches for i in range(b.count) if i != ODD or b.odd}
        return {i for i in found if self.values[i].requires_grad}

    def g1(self) -> dict[int, Tensor]:
        """The gradient of the batches, and zeros from an earlier one."""
        live = sorted(self.seen(self.batches) | set(self.grads or {}))
        return dict(zip(live, gradient(together(self.batches), self.theta(), live), strict=True))

    def _first_gradient(self) -> None:
        assert self.grads is not None
        self.grads = self.g1()

    def one_pass(self, shifted: Sequence[Batch] | None = None, absent: Sequence[int] = ()) -> None:
        """A finished pass; after the last one ``.grad`` holds the combined gradient."""
        self.opened = self.opened or (self.plain.share(), self.plain.means)
        self.done += 1
        if self.done == self.points:
            loss, live, split = together(self.batches), self.live(), None
            other = None if shifted is None else together(shifted)
            if self.parts:
                assert self.marked is not None
                first, second = self.batches[: self.marked], self.batches[self.marked :]
                split = Split(together(first), together(second), SHARE)
                here = self.seen(first)
                if self.rules.batch == "halves":
                    here &= self.seen(second)
                absent = [i for i in live if i not in here]
            found = self.plain.combined(
                loss, self.theta(), live, self.excluded, other, absent, split, self.opened
            )
            self.grads = None if found is None else dict(zip(live, found, strict=True))

    def clip(self, bound: float) -> None:
        """clip_grad_norm_."""
        assert self.grads is not None
        factor = min(1.0, bound / (length(list(self.grads.values())) + 1e-6))
        self.grads = {i: g * factor for i, g in self.grads.items()}

    def step(self) -> None:
        """The base's step with what is in ``.grad``; the gradients stay there."""
        if self.grads is not None:
            for i, v in enumerate(self.values):
                v.grad = self.grads[i].clone() if i in self.grads else None
            self.base.step()
        self.plain.taken()
        self._forget_passes()

    def add(self, value: Tensor, options: dict[str, Any]) -> None:
        """add_param_group."""
        self.values.append(value.detach().clone().requires_grad_())
        self.base.add_param_group({"params": [self.values[-1]], **options})

    def state(self) -> tuple[Any, int, tuple[float, float]]:
        """A copy of what a checkpoint must hold."""
        return copy.deepcopy(self.base.state_dict()), self.plain.steps, self.plain.means

    def load(self, state: tuple[Any, int, tuple[float, float]]) -> None:
        base, self.plain.steps, self.plain.means = copy.deepcopy(state)
        self.base.load_state_dict(base)
