"""Start processes with torchrun, and read what they left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def launch(folder: Path, processes: int, *parts: str) -> Path:
    """Run parts of `tests.distributed.worker` in several processes; what they save is in `folder`.

    ``folder`` is also the place for whatever a part reads.
    """
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            *torchrun,
            *("--nproc_per_node", str(processes)),
            *("-m", "tests.distributed.worker", str(folder), *parts),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    for part in parts:
        for trouble in folder.glob(f"{part}.*.txt"):
            pytest.fail(f"{trouble.stem}: {trouble.read_text()}")
    return folder


def left_by(folder: Path, name: str, processes: int) -> list[Any]:
    """What each process saved under a name; fails with the process's traceback."""
    for rank in range(processes):
        trouble = folder / f"{name}.{rank}.txt"
        if trouble.exists():
            pytest.fail(f"process {rank}: {trouble.read_text()}")
    return [
        torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(processes)
    ]
