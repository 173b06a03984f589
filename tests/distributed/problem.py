"""A small net, its batches, and training loops that are the same in one process and in several."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flatopt import GradRegOptimizer

ROWS = 24  # for 1, 2 or 4 processes, with 1 or 2 micro-batches
STRENGTH = 0.2  # the penalty is then about as long as the gradient
# Long enough that rounding of the difference is no part of the comparison: at 1e-5 one
# process with its rows in another order is 2e-5 off as well.
RADIUS = 1e-3


class Net(nn.Module):
    """Odd sizes, so that the shards of a matrix differ in size between the processes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(7, 9, dtype=dtype)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 13), nn.Tanh(), nn.Linear(13, 9)).to(dtype)
            for _ in range(2)
        )
        self.head = nn.Linear(9, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """One way to train."""

    engine: str = "ddp"  # or "fsdp"
    how: str = "passes"  # or "closure"
    micro: int = 1  # micro-batches to a step
    settings: dict[str, Any] = field(default_factory=dict)  # of GradRegOptimizer
    options: dict[str, Any] = field(default_factory=dict)  # of DDP or fully_shard
    forward_between: bool = False  # a forward pass without backward before each perturbed pass
    bf16: bool = False  # FSDP2's mixed precision

    @property
    def fault_places(self) -> tuple[str, ...]:
        """Where a pass is made to raise; DDP itself does not survive an unfinished backward."""
        return ("forward", "backward") if self.engine == "fsdp" else ("forward",)

    @property
    def in_parts(self) -> bool:
        """Whether the first micro-batch is a part by itself."""
        return bool(self.settings.keys() & {"fraction", "batch"})

    def replayed(self, number: int, passes: int) -> Sequence[int]:
        """The micro-batches of a pass."""
        if not self.in_parts:
            return range(self.micro)
        second = "batch" in self.settings and number < passes // 2
        return [1] if second else [0]

    @property
    def name(self) -> str:
        parts = [self.engine, self.how, f"micro{self.micro}"]
        parts += [f"{k}={v}" for k, v in (self.settings | self.options).items()]
        parts += ["forward between"] * self.forward_between + ["bf16"] * self.bf16
        return " ".join(parts)


def rows(rank: int, world: int, step: int, micro: int, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one micro-batch, or of this process's part of it."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(ROWS, 7, generator=generator)
    y = torch.randn(ROWS, 3, generator=generator)
    return x[micro::count][rank::world], y[micro::count][rank::world]


@dataclass
class Outcome:
    """What a run left: all weights, the gradient of the last step, and whether theta came back."""

    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]
    restored: bool  # after the passes every local weight had the bits of before
    moved: bool  # and in them other ones
    stats: dict[str, Any]
    difference: str | None = None


Sync = Callable[[bool], AbstractContextManager[Any]]


def train(
    case: Case,
    model: nn.Module,
    optimizer: GradRegOptimizer,
    *,
    rank: int = 0,
    world: int = 1,
    steps: int = 3,
    first: int = 0,
    sync: Sync = lambda last: nullcontext(),
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Outcome:
    """Train `steps` steps. ``sync(last)`` is entered around each ``backward(loss)``."""
    before: list[Tensor] = []
    found = {"restored": True, "moved": True}
    gradient: dict[str, Tensor] = {}

    def compare(*_: Any) -> None:  # after the passes, as the base is about to step
        now = [bits(p) for p in optimizer._params()]
        found["restored"] &= all(map(torch.equal, now, before))
        gradient.update({name: whole(p.grad) for name, p in named(model)})

    optimizer.base.register_step_pre_hook(compare)

    def backwards(step: int, micros: Sequence[int] = range(case.micro)) -> Tensor:
        total = torch.zeros(())
        for micro in micros:
            x, y = rows(rank, world, step, micro, case.micro)
            # the gradient of a part of the batch must be that of all processes
            with sync(micro == micros[-1] or case.in_parts):
                loss = ((model(x) - y) ** 2).mean() / case.micro
                backward(loss)
            total += loss.detach()
            if case.in_parts and micros == range(case.micro) and micro == 0:
                optimizer.mark_part(share=1 / case.micro)
        return total

    for step in range(first, first + steps):
        before[:] = [bits(p) for p in optimizer._params()]
        optimizer.zero_grad()
        if case.how == "closure":
            calls = 0

            def closure(step: int = step) -> float:
                nonlocal calls
                optimizer.zero_grad()
                found["moved"] &= calls == 0 or not _all_equal(optimizer, before)
                calls += 1
                return backwards(step).item()

            optimizer.step(closure)
            continue
        backwards(step)
        for number in range(optimizer.passes):
            if case.forward_between:
                with torch.no_grad():
                    model(rows(rank, world, step, 0, 1)[0])
            with optimizer.perturbed():
                found["moved"] &= not _all_equal(optimizer, before)
                backwards(step, case.replayed(number, optimizer.passes))
        optimizer.step()
    weights = {name: whole(p).clone() for name, p in named(model)}
    stats = optimizer.stats
    return Outcome(
        weights,
        gradient,
        found["restored"],
        found["moved"],
        stats.numbers(),
        stats.difference,
    )


def _all_equal(optimizer: GradRegOptimizer, before: list[Tensor]) -> bool:
    return all(torch.equal(bits(p), b) for p, b in zip(optimizer._params(), before, strict=True))


def named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters by the names of the bare net."""
    return ((name.removeprefix("module."), p) for name, p in model.named_parameters())


def bits(p: Any) -> Tensor:
    """A copy of the local weights, to be compared bit by bit."""
    local = (p.to_local() if hasattr(p, "to_local") else p).detach()
    return local.clone().view(torch.int16 if local.element_size() == 2 else torch.int32)


def whole(tensor: Any) -> Tensor:
    """The whole tensor of a sharded one: communication, so all processes must call it."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def error(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """||left - right|| / ||right||, over all tensors as one vector."""
    assert left.keys() == right.keys()
    a, b = (torch.cat([d[n].double().flatten() for n in sorted(d)]) for d in (left, right))
    return float((a - b).norm() / b.norm())


def optimizer_for(case: Case, model: nn.Module, base: str = "SGD") -> GradRegOptimizer:
    """GR around SGD with momentum, or around AdamW."""
    named_params = model.named_parameters()
    if base == "AdamW":
        inner: Any = torch.optim.AdamW(named_params, lr=1e-2)
    else:
        inner = torch.optim.SGD(named_params, lr=0.1, momentum=0.5)
    settings: dict[str, Any] = {"strength": STRENGTH, "radius": RADIUS} | case.settings
    if "ratio" in settings:
        del settings["strength"]
    return GradRegOptimizer(inner, **settings)


def alone(case: Case, **kwargs: Any) -> Outcome:
    """The same training in this process, on the whole batch."""
    model = Net()
    return train(case, model, optimizer_for(case, model), **kwargs)


@contextmanager
def fsdp_sync(model: Any, last: bool) -> Iterator[None]:
    """FSDP2's counterpart of ``no_sync``: gradients are reduced at the last backward only."""
    model.set_requires_gradient_sync(last)
    yield
