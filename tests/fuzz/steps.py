"""One step of random parameters, in a random way; and what rounding may take from it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from flatopt import GradRegOptimizer
from flatopt.precision import DEFAULT_RADIUS
from tests.fuzz import MODES, PATHS
from tests.fuzz.oracle import length
from tests.fuzz.problems import Case, storage

WIDE = (torch.float64, torch.float32)
STRENGTHS = st.sampled_from([0.01, 0.3, 1.0])


class Passes:
    """One step up to, but without, the base: what was seen before, inside and after its passes."""

    def __init__(self, case: Case, optimizer: GradRegOptimizer, buffers: bool = False) -> None:
        self.case, self.optimizer = case, optimizer
        self.buffers = [torch.empty_like(p) for p in case.params] if buffers else None
        self.before = self._layout()
        self.theta = [p.detach().clone() for p in case.params]
        self._backward()
        self.g1 = [None if p.grad is None else p.grad.clone() for p in case.params]
        self.points: list[list[Tensor]] = []
        for _ in range(optimizer.passes):
            with optimizer.perturbed():
                self.points.append([p.detach().clone() for p in case.params])
                self._backward()
        self.after = self._layout()

    def _backward(self) -> None:
        self.case.backward()
        if self.buffers is not None:  # the same memory in each pass, as DDP's buckets are
            for p, buffer in zip(self.case.params, self.buffers, strict=True):
                if p.grad is not None and p.grad is not buffer:
                    p.grad = buffer.copy_(p.grad)

    def _layout(self) -> list[tuple[int, tuple[int, ...], list[int]]]:
        # lists of bytes compare NaN and -0.0 as well
        return [(p.data_ptr(), p.stride(), storage(p).tolist()) for p in self.case.params]


def radius_used(radius: float | None, moved: Sequence[Tensor]) -> float:
    """The documented default by dtype, where none is given."""
    if radius is not None:
        return radius
    dtypes = {p.dtype for p in moved}
    if dtypes & {torch.bfloat16, torch.float16}:
        return DEFAULT_RADIUS[torch.bfloat16]
    return DEFAULT_RADIUS[torch.float64 if dtypes == {torch.float64} else torch.float32]


def rounding(values: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> float:
    """Bound on the length of what is lost in rounding ``values`` to ``dtypes``, by one ulp each."""
    total = 0.0
    for v, dtype in zip(values, dtypes, strict=True):
        info = torch.finfo(dtype)
        ulp = info.eps * v.double().abs().clamp(min=info.smallest_normal)
        total += float((ulp**2).sum())
    return math.sqrt(total)


@st.composite
def excluded_ones(draw: st.DrawFn, case: Case) -> list[int]:
    """Indices left out of the perturbation, not all of the live ones."""
    picked = [i for i in range(len(case.params)) if draw(st.integers(0, 3)) == 0]
    return [i for i in picked if i != case.live()[0]]


def make(
    case: Case,
    excluded: Sequence[int],
    strength: float,
    radius: float | None,
    difference: str,
    mode: dict[str, Any] | None = None,
) -> GradRegOptimizer:
    return GradRegOptimizer(
        torch.optim.SGD(case.params, lr=0.1),
        strength=strength,
        radius=radius,
        difference=difference,
        exclude=[case.params[i] for i in excluded],
        **(mode or {}),
    )


@st.composite
def ways(draw: st.DrawFn, exact: bool = True) -> tuple[str, dict[str, Any], str]:
    """A difference, a mode in which it can be had, and a path through the code."""
    mode = draw(st.sampled_from(MODES))
    kinds = ["forward", "central"]
    if exact and mode.get("memory") != "lean":
        kinds.append("exact")
    return draw(st.sampled_from(kinds)), mode, draw(st.sampled_from(PATHS))


def adds_up(mode: dict[str, Any], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether the second gradient is added to the first one in its own precision."""
    return mode.get("memory") == "lean" and all(d in WIDE for d in dtypes)


def lost_in_adding(
    weight: float, grads: Sequence[Sequence[Tensor]], dtypes: Sequence[torch.dtype]
) -> float:
    """Bound on what the lean mode's sum of gradients, multiplied by ``weight``, loses."""
    ulps = [[torch.finfo(d).eps * v for v, d in zip(g, dtypes, strict=True)] for g in grads]
    return 4.0 * (1.0 + weight) * sum(length(u) for u in ulps)
