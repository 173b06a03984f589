"""A small model with an optimizer, in whose steps `fault_steps` puts faults."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flatopt import GradRegOptimizer

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """How a step is taken.

    Attributes:
        peer: pytorch_optimizer's SAM in place of flatopt; the other fields but `dtype` are unused.
        how: "closure" or "two-phase".
        options: further arguments of `GradRegOptimizer`.
    """

    peer: bool = False
    how: str = "closure"
    dtype: str = "float32"
    difference: str = "forward"
    options: tuple[tuple[str, Any], ...] = (("ratio", 1.0),)

    @property
    def lean(self) -> bool:
        """g2 is added onto g1, which is then gone."""
        return not self.peer and dict(self.options).get("memory") == "lean"

    @property
    def passes(self) -> int:
        """Backward passes of one step."""
        return 3 if self.difference == "central" and not self.peer else 2


# every setting of `GradRegOptimizer` in which faults are tried
OPTIONS: list[dict[str, Any]] = [
    {"ratio": 1.0},
    {"strength": 0.1},
    {"ratio": 1.0, "memory": "lean"},
    {"ratio": 1.0, "memory": "lean", "offload": True},
    {"strength": 0.1, "offload": True},
]
SETTINGS = [
    Setting(how=how, dtype=dtype, difference=difference, options=tuple(options.items()))
    for how in ("closure", "two-phase")
    for dtype in DTYPES
    for difference in ("forward", "central", "exact")
    for options in OPTIONS
    if not (difference == "exact" and "memory" in options)  # refused: g1 is gone
]


class Net(nn.Module):
    """A trunk with dropout and three heads; the last is used by a fault only."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.25)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))


@dataclass
class Trap:
    """At which call of the closure (from 1), at which place, what is done; once."""

    call: int = 0
    place: str = ""
    action: Callable[["Job"], None] | None = None
    sprung: bool = False

    def step_on(self, place: str, job: "Job") -> None:
        """Spring if this is the place and the call that the trap waits for."""
        if job.calls == self.call and place == self.place and self.action is not None:
            self.sprung = True
            self.action(job)


@dataclass
class Job:
    """A model, its batch and its optimizer; `faults` change what the closure computes."""

    net: Net
    optimizer: Any
    setting: Setting
    batch: tuple[Tensor, Tensor]
    trap: Trap = field(default_factory=Trap)
    calls: int = 0
    factor: float = 1.0
    heads: tuple[int, ...] = (0, 1)
    spoil: Callable[[Tensor], Tensor] | None = None  # of the gradient of the trunk's weight

    @property
    def params(self) -> list[Tensor]:
        """The net's parameters."""
        return list(self.net.parameters())

    def closure(self) -> Tensor:
        """What torch.optim asks for, with the trap's places in it."""
        self.calls += 1
        self.optimizer.zero_grad()
        return self.backward()

    def backward(self) -> Tensor:
        """One forward and backward pass."""
        self.trap.step_on("before the forward", self)
        x, y = self.batch
        hidden = torch.tanh(self.net.drop(self.net.trunk(x)))
        self.trap.step_on("in the forward", self)
        outputs = [self.net.heads[h](hidden) for h in self.heads]
        loss = sum((((o - y) ** 2).mean() for o in outputs), torch.zeros((), dtype=y.dtype))
        loss = loss * self.factor
        self.trap.step_on("before the backward", self)

        def in_the_backward(grad: Tensor) -> Tensor:
            self.trap.step_on("in the backward", self)
            return grad

        hidden.register_hook(in_the_backward)  # the heads' gradients are there, the trunk's are not
        handle = self.net.trunk.weight.register_hook(lambda g: self.spoil(g) if self.spoil else g)
        loss.backward()
        handle.remove()
        self.trap.step_on("after the backward", self)
        return loss.detach()

    def step(self, seed: int) -> None:
        """One step; ``seed`` sets its dropout masks."""
        torch.manual_seed(seed)
        self.calls = 0
        if self.setting.peer:
            self.closure()
            self.optimizer.step(self.closure)
        elif self.setting.how == "closure":
            self.optimizer.step(self.closure)
        else:
            self.closure()
            rng = torch.get_rng_state()
            for _ in range(self.optimizer.passes):
                torch.manual_seed(seed)
                self.calls += 1
                with self.optimizer.perturbed():
                    self.backward()
            torch.set_rng_state(rng)
            self.optimizer.step()

    def plain_step(self, seed: int) -> None:
        """What a step without its GR term is: g1, and the base optimizer."""
        torch.manual_seed(seed)
        self.calls = 0
        self.closure()
        self.optimizer.base.step()
        self.optimizer.zero_grad()
        self.optimizer.steps_taken += 1

    def mend(self) -> None:
        """Take the fault out and drop the batch, as a user would."""
        self.trap, self.factor, self.heads, self.spoil = Trap(), 1.0, (0, 1), None
        self.optimizer.zero_grad()


def make_job(setting: Setting, seed: int, warm: int) -> Job:
    """A job whose optimizer has taken ``warm`` steps."""
    torch.manual_seed(seed)
    net = Net().to(DTYPES[setting.dtype])
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    batch = (x.to(DTYPES[setting.dtype]), y.to(DTYPES[setting.dtype]))
    if setting.peer:
        from pytorch_optimizer import SAM

        optimizer: Any = SAM(list(net.parameters()), torch.optim.AdamW, rho=0.05, lr=0.01)
    else:
        base = torch.optim.AdamW(net.parameters(), lr=0.01)
        optimizer = GradRegOptimizer(base, difference=setting.difference, **dict(setting.options))
    job = Job(net, optimizer, setting, batch)
    for number in range(warm):
        job.step(seed + number)
    job.optimizer.zero_grad()
    return job
