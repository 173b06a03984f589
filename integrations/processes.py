"""The processes of one launch (torchrun, accelerate launch): which this is, waiting, agreeing.

Without a launcher there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
PATIENCE = 3.0  # seconds in which the launcher ends the others, once one process has ended


def rank() -> int:
    """The number of this process within the launch, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes the files that there is one of."""
    return rank() == 0


def _connect() -> Any:
    """torch.distributed, with the processes connected."""
    import torch.distributed as dist

    if not dist.is_initialized():
        from accelerate import PartialState

        PartialState()  # the launcher's environment says which backend
    return dist


def wait() -> None:
    """Wait until every process of the launch has come here."""
    if world_size() > 1:
        _connect().barrier()


def decided_by_main(decide: Callable[[], T]) -> T:
    """What `decide()` gives in the main process, in all of them; its ValueError in all of them.

    For what looks at files or changes them: the others may see another state of the disk.

    >>> decided_by_main(lambda: 3)
    3
    """
    if world_size() == 1:
        return decide()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = decide()
        except (ValueError, OSError) as error:
            box[1] = str(error)
    dist = _connect()
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise ValueError(box[1])
    return box[0]


def gathered(value: T) -> Sequence[T]:
    """The values of all processes, in their order.

    >>> gathered({"a": 1})
    [{'a': 1}]
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    _connect().all_gather_object(found, value)
    return found


def complain(error: BaseException) -> int:
    """Print an error of the input, once for the launch; the exit status for it."""
    if not is_main():
        # where the main process has the same error, the launcher ends this one before it prints
        time.sleep(PATIENCE)
    where = "" if world_size() == 1 else f" (process {rank()} of {world_size()})"
    print(f"error{where}: {error}", file=sys.stderr)
    return 2


def end_all(message: str) -> NoReturn:
    """Print what went wrong and end; the launcher then ends the others, which wait for this one."""
    print(f"error (process {rank()} of {world_size()}): {message}", file=sys.stderr, flush=True)
    os._exit(1)  # an orderly end would wait for a collective operation that never comes


def finish() -> None:
    """Wait for all, and let go of the connection: no process needs the others from here on."""
    if world_size() > 1:
        dist = _connect()
        dist.barrier()
        dist.destroy_process_group()
