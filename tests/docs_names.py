"""What the documentation's examples take as given (a trainer, a process group, ...), for the tests.

`<!-- test: trainer -->` above a block gives it the names that `trainer` here supplies.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

Names = dict[str, Any]


@contextmanager
def folder() -> Iterator[Names]:
    """A folder for what a trainer writes."""
    with tempfile.TemporaryDirectory() as place:
        yield {"output_dir": place, "output": place}


@contextmanager
def trainer() -> Iterator[Names]:
    """A GRPO trainer of a tiny random model, two steps long, with a KL term."""
    from trainer_cases import make_trainer
    from transformers import TrainerCallback

    with folder() as places:
        settings = {"beta": 0.05, "per_device_train_batch_size": 8}
        made = make_trainer("grpo", Path(places["output"]), steps=2, **settings)
        yield places | {
            "trainer": made,
            "model": made.model,
            "TrainerCallback": TrainerCallback,
            "Path": Path,
            "copy_of_the_start_policy": copy.deepcopy(made.model),
        }


@contextmanager
def grpo() -> Iterator[Names]:
    """What `GRPOTrainer(model, reward_funcs, args=config, train_dataset=data)` needs."""
    with trainer() as given:
        made = given["trainer"]
        yield {
            "model": made.model,
            "reward_funcs": made.reward_funcs,
            "config": made.args,
            "data": made.train_dataset,
        }


def _training() -> Names:
    """A model, batches and a loss."""
    from flatopt import GradRegOptimizer

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    window = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    return {
        "torch": torch,
        "GradRegOptimizer": GradRegOptimizer,
        "model": model,
        "base": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "loss_fn": loss_fn,
        "batch": window[0],
        "window": window,
        "nullcontext": nullcontext,
    }


@contextmanager
def training() -> Iterator[Names]:
    """A model, an optimizer, batches, a loss; where CUDA is absent, its autocast does nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield _training()


@contextmanager
def _one_process() -> Iterator[None]:
    """A process group of one, for the page's remaining examples."""
    if dist.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as place:
        store = dist.FileStore(f"{place}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def ddp() -> Iterator[Names]:
    """`training` in a process group of one."""
    from torch.nn.parallel import DistributedDataParallel

    with _one_process():
        yield _training() | {"DistributedDataParallel": DistributedDataParallel}


@contextmanager
def fsdp() -> Iterator[Names]:
    """A model with blocks and a head, to be sharded over the CPUs of a process group of one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.lm_head = nn.Linear(4, 1)

    with _one_process():
        mesh = init_device_mesh("cpu", (1,))
        yield _training() | {
            "model": Net(),
            "fully_shard": lambda module: fully_shard(module, mesh=mesh),
        }


@contextmanager
def checkpoint() -> Iterator[Names]:
    """A model, an optimizer with a reference policy, and what saves them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    from flatopt import GradRegOptimizer, ReferenceReset

    given = _training()
    optimizer = GradRegOptimizer(given["base"], ratio=1.0, reference=ReferenceReset(every=2))
    with _one_process(), folder() as places:
        yield given | {
            "optimizer": optimizer,
            "folder": places["output"],
            "dcp": dcp,
            "get_model_state_dict": get_model_state_dict,
            "get_optimizer_state_dict": get_optimizer_state_dict,
        }


SUPPLIES: dict[str, Callable[[], AbstractContextManager[Names]]] = {
    f.__name__: f for f in (folder, trainer, grpo, training, ddp, fsdp, checkpoint)
}
