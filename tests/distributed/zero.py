"""The ways to train under DeepSpeed that are compared with a single process."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from flatopt import GradRegOptimizer
from flatopt.zero import ZeroEngine
from tests.distributed.problem import ROWS, Case, Net, Outcome, optimizer_for, rows, train

ZERO = [
    Case("zero1"),
    Case("zero1", settings={"difference": "central"}),
    Case("zero2"),
    Case("zero2", settings={"exclude": "head"}),
    Case("zero2", settings={"ratio": 0.5}),
]


def engine_for(stage: int, model: Net, **config: Any) -> Any:
    """A DeepSpeed engine around the SGD of `optimizer_for`."""
    import deepspeed  # pyright: ignore[reportMissingImports]

    base = optimizer_for(Case(), model).base
    settings = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return deepspeed.initialize(model=model, optimizer=base, config=settings | config)[0]


def train_in(engine: Any, model: Net, case: Case, rank: int, world: int) -> Outcome:
    """Three steps of `train`, whose backward pass is the engine's."""
    base = ZeroEngine(engine)
    optimizer = optimizer_for(case, model)  # for its settings
    settings = {"strength": optimizer.strength, "radius": optimizer.radius} | case.settings
    if "ratio" in settings:
        del settings["strength"]
    optimizer = GradRegOptimizer(base, **settings)
    outcome = train(
        case, engine, optimizer, rank=rank, world=world, backward=base.backward, steps=3
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Outcome(weights, outcome.gradient, outcome.restored, outcome.moved, outcome.stats)


def run_zero(folder: Path) -> None:
    """Every case, and what is refused."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for case in ZERO:
        model = Net()
        engine = engine_for(int(case.engine[-1]), model)
        outcome = train_in(engine, model, case, rank, world)
        torch.save(vars(outcome), folder / f"{case.name}.{rank}.pt")
    model = Net().bfloat16()
    engine = engine_for(1, model, bf16={"enabled": True})
    base = ZeroEngine(engine)
    optimizer = GradRegOptimizer(base, strength=0.1)
    x, y = (t.bfloat16() for t in rows(rank, world, 0, 0, 1))
    before = [p.detach().clone() for p in model.parameters()]

    def closure() -> float:
        optimizer.zero_grad()
        loss = ((engine(x) - y) ** 2).mean()
        base.backward(loss)
        return loss.item()

    engine.step = lambda: None  # whether the weights came back is seen before the engine steps
    optimizer.step(closure)
    restored = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    result = {"restored": restored, "stats": optimizer.stats.numbers()}
    torch.save(result, folder / f"zero bf16.{rank}.pt")
