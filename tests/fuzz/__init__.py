"""Property tests: random parameters, settings and orders of calls against a plain oracle.

`FLATOPT_FUZZ=20` multiplies the number of examples and draws new ones in each run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import flatopt.backup
import flatopt.combine

# Options of GradRegOptimizer that may change what a step does by rounding only.
MODES: tuple[dict[str, Any], ...] = ({}, {"memory": "lean"}, {"offload": True})
# Ways through the code that large models or accelerators take: the multi-tensor kernels, and
# tensors worked on range by range.
PATHS = ("loops", "kernels", "ranges")
FACTOR = int(os.environ.get("FLATOPT_FUZZ", "1"))


def take_path(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let small tensors on a CPU go the way that ``name``, one of `PATHS`, says."""
    if name == "kernels":
        monkeypatch.setattr(flatopt.combine, "LOOPED", ())
    elif name == "ranges":
        monkeypatch.setattr(flatopt.backup, "PIECE", 2)


@contextmanager
def on_path(name: str) -> Iterator[None]:
    """`take_path` inside."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        take_path(monkeypatch, name)
        yield


def examples(number: int, calls: int = 50) -> settings:
    """Hypothesis settings for so many examples: the same ones in each run, unless multiplied.

    A state machine makes up to ``calls`` calls in each.
    """
    return settings(
        max_examples=number * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,  # no timed tests
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        stateful_step_count=calls,
    )
