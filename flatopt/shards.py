"""Sharded parameters (DTensor, FSDP2): gathered copies that are out of date, precision, sums."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def is_shard(tensor: Any) -> bool:
    """True for a DTensor, without importing torch.distributed.tensor where nobody uses it."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


@contextmanager
def fresh_copies(params: Iterable[Tensor]) -> Iterator[None]:
    """Around code that runs the model while its shards hold other values than usual.

    FSDP2 (``torch.distributed.fsdp.fully_shard``) gathers shards for a forward pass, and may keep
    the gathered copy for the next one: a forward without a backward pass leaves the root module
    gathered, and so does an error. A pass at theta' would run at theta then, or a pass after it at
    theta'. So copies are dropped on entry and on exit. After an error FSDP2 is also told to forget
    the unfinished iteration, which it asks for (``reset_iter_state``).

    Does nothing where no parameter is sharded. No communication.

    Args:
        params: the parameters whose values the caller has changed, and puts back after the block.
    """
    modules = _fsdp_modules() if any(is_shard(p) for p in params) else []
    _drop_copies(modules)
    try:
        yield
    except BaseException:
        for module in modules:
            _forget_iteration(module)
        raise
    finally:
        _drop_copies(modules)


def _drop_copies(modules: Iterable[Any]) -> None:
    for module in modules:
        module.reshard()


def _forget_iteration(module: Any) -> None:
    for group in getattr(module._get_fsdp_state(), "_fsdp_param_groups", ()):
        for shard in group.fsdp_params:
            # not reduced yet; torch 2.13's own reset leaves it, and the next backward adds to it
            gathered = getattr(shard, "_unsharded_param", None)
            if gathered is not None:
                gathered.grad = None
    try:
        module.reset_iter_state()
    except AttributeError:  # a torch before 2.13 has no such thing
        return
    except RuntimeError:  # not a root, which does it for its whole model
        return


def _fsdp_modules() -> list[Any]:
    """Every module of this process on which ``fully_shard`` was called.

    An optimizer knows parameters only, and a parameter does not know its module; torch keeps the
    modules in a table of its own.
    """
    table = getattr(
        sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", {}
    )
    return [module for module in list(table) if hasattr(module, "reshard")]


def gathers_in_16_bits(params: Iterable[Tensor]) -> bool:
    """True where FSDP2's `MixedPrecisionPolicy` casts these parameters to 16 bits for compute."""
    ids = {id(p) for p in params if is_shard(p)}
    for module in _fsdp_modules() if ids else ():
        policy = getattr(module._get_fsdp_state(), "_mp_policy", None)
        if getattr(policy, "param_dtype", None) in _LOW_PRECISION and any(
            id(p) in ids for p in module.parameters()
        ):
            return True
    return False


def check_one_process(params: Iterable[Tensor]) -> None:
    """Refuse the exact product where gradients are reduced over processes.

    DDP and FSDP reduce a gradient outside the graph, so its second derivative is lost: the product
    would be zero, or that of this process alone.

    Raises:
        ValueError: sharded parameters, or more than one process.
    """
    distributed = torch.distributed
    several = (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
    if several or any(is_shard(p) for p in params):
        raise ValueError(
            'the exact Hessian product (difference="exact", gradreg_check) needs a single process: '
            "DDP and FSDP reduce gradients outside the graph, and their second derivative is lost. "
            'Use difference="central", and check the model and batch in one process'
        )


def local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor; a plain tensor itself."""
    return tensor.to_local() if is_shard(tensor) else tensor


def over_shards(counts: Sequence[int], tensor: Any) -> list[int]:
    """Counts made on the shards of ``tensor``, added up: the same numbers in every process."""
    if not is_shard(tensor):
        return list(counts)
    from torch.distributed.tensor import DTensor, Partial, Replicate

    device, mesh = tensor.to_local().device, tensor.device_mesh
    kinds = [Replicate() if p.is_replicate() else Partial() for p in tensor.placements]
    part = torch.tensor(counts, device=device)
    return DTensor.from_local(part, mesh, kinds).full_tensor().tolist()
