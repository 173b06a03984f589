"""What each process of a launch runs: `torchrun -m tests.distributed.worker FOLDER PART ...`."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from flatopt import ReferenceReset
from tests.distributed import checkpoints
from tests.distributed.cases import CASES, FAULTS
from tests.distributed.problem import (
    Case,
    Net,
    Sync,
    bits,
    fsdp_sync,
    optimizer_for,
    rows,
    train,
)


def sharded(model: nn.Module, **options: Any) -> Any:
    """FSDP2 on each block and on the rest."""
    for block in model.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        fully_shard(block, **options)
    return fully_shard(model, **options)


def build(case: Case) -> tuple[Any, Sync]:
    """The net under the case's engine, and what its backward passes are run in."""
    if case.engine == "ddp":
        model: Any = DistributedDataParallel(Net(), **case.options)
        return model, lambda last: nullcontext() if last else model.no_sync()
    options = dict(case.options)
    if case.bf16:
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    model = sharded(Net(), **options)
    return model, partial(fsdp_sync, model)


def run_case(case: Case, folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    model, sync = build(case)
    optimizer = optimizer_for(case, model)
    outcome = train(case, model, optimizer, rank=rank, world=world, sync=sync)
    torch.save(vars(outcome), folder / f"{case.name}.{rank}.pt")


def run_cases(folder: Path) -> None:
    """Every case; one that fails leaves its traceback in place of its outcome."""
    for case in CASES:
        try:
            run_case(case, folder)
        except Exception:
            text = traceback.format_exc()
            (folder / f"{case.name}.{dist.get_rank()}.txt").write_text(text)


def run_faults(folder: Path) -> None:
    """A forward or backward pass at theta' that raises; the batch is then done again."""
    for case in FAULTS:
        for where in case.fault_places:
            result = _faulty(case, where)
            torch.save(result, folder / f"fault {where} {case.name}.{dist.get_rank()}.pt")


def _faulty(case: Case, where: str) -> dict[str, Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    model, sync = build(case)
    optimizer = optimizer_for(case, model)
    run = partial(train, case, model, optimizer, rank=rank, world=world, sync=sync)
    run(steps=1)
    x, y = rows(rank, world, 1, 0, 1)
    before = [bits(p) for p in optimizer._params()]
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    gradient = [bits(p.grad) for p in optimizer._params()]

    def fail(*_: Any) -> None:
        raise ArithmeticError("as asked for")

    block = getattr(model, "module", model).blocks[0]
    hooks = {"forward": block.register_forward_pre_hook, "backward": _backward_hook(block)}
    handle = hooks[where](fail)
    raised = False
    try:
        with optimizer.perturbed():
            ((model(x) - y) ** 2).mean().backward()
    except ArithmeticError:
        raised = True
    handle.remove()
    now = [bits(p) for p in optimizer._params()]
    left = [bits(p.grad) for p in optimizer._params()]
    with torch.no_grad():
        again = ((model(x) - y) ** 2).mean()
    optimizer.zero_grad()
    return {
        "raised": raised,
        "restored": all(map(torch.equal, now, before)),
        "gradient kept": all(map(torch.equal, left, gradient)),
        "losses": (loss.item(), again.item()),
        "weights": run(first=1, steps=2).weights,
    }


def _backward_hook(block: Any) -> Callable[[Any], Any]:
    """Registers a hook that runs once the gradient of the block's output is there."""

    def register(fail: Callable[..., None]) -> Any:
        return block[0].register_full_backward_hook(fail)

    return register


def run_reference(folder: Path) -> None:
    """The policy, its reference and the policy again, on gathered copies that would be stale."""
    case = Case("fsdp", settings={"strength": 0.0, "reference": ReferenceReset(every=100)})
    model, sync = build(case)
    optimizer = optimizer_for(case, model)
    train(case, model, optimizer, rank=dist.get_rank(), world=dist.get_world_size(), sync=sync)
    x, _ = rows(0, 1, 0, 0, 1)
    assert optimizer.reference is not None
    with torch.no_grad():
        outputs = [model(x)]
        with optimizer.reference.swapped():
            outputs.append(model(x))
        outputs.append(model(x))
    torch.save(outputs, folder / f"reference.{dist.get_rank()}.pt")


def run_refusals(folder: Path) -> None:
    """What is refused in several processes: the texts."""
    exact = {"difference": "exact", "radius": None}
    for engine in ("ddp", "fsdp"):
        case = Case(engine, settings=exact)
        model, _ = build(case)
        optimizer = optimizer_for(case, model)
        text = ""
        try:
            train(case, model, optimizer, rank=dist.get_rank(), world=dist.get_world_size())
        except ValueError as error:
            text = str(error)
        torch.save(text, folder / f"refused {engine}.{dist.get_rank()}.pt")


def run_checkpoint(folder: Path) -> None:
    """Train, save in both forms on the way, and go on."""
    model = sharded(Net())
    optimizer = checkpoints.make_optimizer(model)
    run = partial(
        train,
        checkpoints.CASE,
        model,
        optimizer,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        sync=partial(fsdp_sync, model),
    )
    run(steps=checkpoints.BEFORE)
    for form, flat in checkpoints.FORMS.items():
        checkpoints.save(folder / form, flat, model, optimizer)
    outcome = run(first=checkpoints.BEFORE, steps=checkpoints.AFTER)
    torch.save(checkpoints.finished(outcome, optimizer), folder / f"straight.{dist.get_rank()}.pt")


def run_resume(folder: Path) -> None:
    """Go on from the saved run with fresh objects."""
    for form, flat in checkpoints.FORMS.items():
        model = sharded(Net())
        optimizer = checkpoints.make_optimizer(model)
        checkpoints.load(folder / form, flat, model, optimizer)
        outcome = train(
            checkpoints.CASE,
            model,
            optimizer,
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            sync=partial(fsdp_sync, model),
            first=checkpoints.BEFORE,
            steps=checkpoints.AFTER,
        )
        torch.save(
            checkpoints.finished(outcome, optimizer),
            folder / f"resumed {form}.{dist.get_rank()}.pt",
        )


def run_grpo_trainers(folder: Path) -> None:
    """GRPO under DDP."""
    from tests.distributed import trainers  # a heavy import, which the other parts do without

    trainers.begin(folder, fsdp=False)
    for accumulation, loss_type in trainers.GRPO:
        result = trainers.run_grpo(folder, dist.get_world_size(), accumulation, loss_type)
        torch.save(result, folder / f"grpo {accumulation} {loss_type}.{dist.get_rank()}.pt")


def run_fsdp_trainers(folder: Path) -> None:
    """Supervised training under FSDP2, with accumulation, and resumed."""
    from tests.distributed import trainers

    trainers.begin(folder, fsdp=True)
    world, rank = dist.get_world_size(), dist.get_rank()
    for accumulation in (1, 2):
        result = trainers.run_sft(folder, world, accumulation, **trainers.FSDP)
        torch.save(result, folder / f"sft {accumulation}.{rank}.pt")
    result = trainers.run_resumed(folder, world, **trainers.FSDP)
    torch.save(result, folder / f"resumed trainer.{rank}.pt")
    for name, text in trainers.refusals(folder, world).items():
        torch.save(text, folder / f"{name}.{rank}.pt")


def run_zero(folder: Path) -> None:
    """DeepSpeed's ZeRO."""
    from tests.distributed import zero

    zero.run_zero(folder)


PARTS: dict[str, Callable[[Path], None]] = {
    "cases": run_cases,
    "faults": run_faults,
    "reference": run_reference,
    "refusals": run_refusals,
    "checkpoint": run_checkpoint,
    "resume": run_resume,
    "zero": run_zero,
    "grpo": run_grpo_trainers,
    "fsdp trainer": run_fsdp_trainers,
}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    folder = Path(sys.argv[1])
    for part in sys.argv[2:]:
        try:
            PARTS[part](folder)
        except Exception:
            (folder / f"{part}.{dist.get_rank()}.txt").write_text(traceback.format_exc())
    dist.barrier()
    # The interpreter's teardown of gloo's threads aborts now and then; it is left out.
    sys.stdout.flush()
    time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
