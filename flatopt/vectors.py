"""Lists of tensors as one vector: norms, inner products, samples; plain tensors and shards."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatopt.shards import is_shard, local

LOW_PRECISION = (torch.bfloat16, torch.float16)

# Elements of float32 weights looked at for the realised step: rounding there is the same everywhere
LOOKED_AT = 65_536

# Models with more elements than this are measured by samples where that is enough
SAMPLE = 1_000_000

# Coordinates looked at for the share whose sign GR reverses: enough for half a per cent
SIGNS = 8_192

# Length of a run of neighbouring elements in a sample: a prime
RUN = 251

# Elements of a tensor worked on at a time: three such ranges stay in a CPU's cache
PIECE = 262_144


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gradients of that dtype are combined: at least float32."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def plain(tensors: Sequence[Tensor]) -> bool:
    """True where torch's multi-tensor kernels are safe: no tensor subclass such as DTensor."""
    return all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


def owned(t: Tensor) -> bool:
    """True where nothing else can lie in the tensor's memory: no view, no shard, no bucket."""
    return (
        plain((t,))
        and not t._is_view()
        and t.layout == torch.strided
        and t.untyped_storage().nbytes() == t.numel() * t.element_size()
    )


def layout(t: Tensor) -> Any:
    """How a DTensor lies on its mesh, ``(mesh, placements)``; None for a plain tensor."""
    return (t.device_mesh, t.placements) if is_shard(t) else None  # type: ignore[attr-defined]


def _over_shards(total: Tensor, where: Any) -> Tensor:
    """A sum over this process's shards as the sum over all of them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = where
    kinds = [Replicate() if p.is_replicate() else Partial() for p in placements]
    return DTensor.from_local(total, mesh, kinds).full_tensor()


class ShardSums:
    """Norms and inner products of the parts of vectors, added up over parts and processes.

    One exchange between processes for all tensors that lie alike, not one for each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}

    def add(self, tensor: Tensor, norm: Tensor, dot: Tensor | None = None) -> None:
        """The norm (and inner product) of one range of ``tensor``, of this process."""
        norms, dots = self.parts.setdefault(layout(tensor), ([], []))
        norms.append(norm)
        if dot is not None:
            dots.append(dot)

    def norm(self) -> Tensor:
        """The norm of the whole vector: 0-dim."""
        found = []
        for where, (norms, _) in self.parts.items():
            here = torch.linalg.vector_norm(_stacked(norms, self.device))
            found.append(here if where is None else _over_shards(here**2, where).sqrt())
        if not found:
            return torch.zeros((), device=self.device)
        return found[0] if len(found) == 1 else torch.linalg.vector_norm(torch.stack(found))

    def dot(self) -> Tensor:
        """The inner product of the whole vectors: 0-dim."""
        total = torch.zeros((), device=self.device)
        for where, (_, dots) in self.parts.items():
            if not dots:
                continue
            here = _stacked(dots, self.device).sum()
            total = total + (here if where is None else _over_shards(here, where))
        return total


def _stacked(values: Sequence[Tensor], device: torch.device) -> Tensor:
    """0-dim tensors as one, of the widest dtype among them."""
    if len({v.dtype for v in values}) > 1:
        values = [v.double() for v in values]
    return torch.stack([v.to(device) for v in values])


@torch.no_grad()
def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of a list of tensors as one vector: 0-dim, float32 or wider.

    The tensors may differ in dtype, device and sharding; the result is on the first one's device.
    """
    groups: dict[Any, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.device, t.dtype), []).append(t)
    sums = ShardSums(tensors[0].device)
    for (_, dtype), group in groups.items():
        here = [local(t) for t in group]
        if plain(here):
            norms = torch._foreach_norm(here, 2, dtype=wide(dtype))
        else:
            norms = [torch.linalg.vector_norm(t, dtype=wide(dtype)) for t in here]
        for t, n in zip(group, norms, strict=True):
            sums.add(t, n)
    return sums.norm()


@torch.no_grad()
def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner product of two lists of tensors as vectors: 0-dim, on the device of the first."""
    sums = ShardSums(left[0].device)
    for a, b in zip(left, right, strict=True):
        sums.add(a, torch.zeros(()), dot_of(local(a), local(b)))
    return sums.dot()


def dot_of(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two tensors (or shards) of this process, in float32 or wider."""
    a, b = a.to(wide(a.dtype)), b.to(wide(b.dtype))
    if plain((a, b)) and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a * b).sum()


def thinned(t: Tensor) -> Tensor:
    """A sixteenth of the elements, in short runs evenly spread; of a small tensor all.

    Runs, because a CPU reads whole cache lines; their period divides no usual width.
    """
    period = 16 * RUN
    rows = t.numel() // period
    if rows < 16 or not t.is_contiguous():
        return t
    return t.view(-1)[: rows * period].view(rows, period)[:, :RUN]


@torch.no_grad()
def thinned_norm(tensors: Sequence[Tensor]) -> Tensor:
    """About the `norm` of plain tensors: exact for few elements, else from `thinned` ones."""
    if not plain(tensors) or sum(t.numel() for t in tensors) <= 16 * SAMPLE:
        return norm(tensors)
    sums = ShardSums(tensors[0].device)
    for t in tensors:
        few = thinned(t).to(wide(t.dtype)).contiguous()
        grown = math.sqrt(t.numel() / max(few.numel(), 1))
        sums.add(t, grown * torch.linalg.vector_norm(few))
    return sums.norm()


def even_sample(tensors: Sequence[Tensor], size: int) -> Tensor:
    """About ``size`` coordinates of a list of plain tensors, evenly spread, as one wide vector."""
    # an odd stride, lest it fall on the same column of every matrix
    stride = sum(t.numel() for t in tensors) // size | 1
    device, dtype = tensors[0].device, wide(tensors[0].dtype)
    return torch.cat([t.reshape(-1)[::stride].to(device, dtype) for t in tensors])


def reversed_between(g: Tensor, d: Tensor, weight: float) -> Tensor:
    """Share of the coordinates, where g is not 0, at which g and g + weight * d differ in sign."""
    # signs, because the product of two small gradients would underflow
    return (g.sign() * (g + weight * d).sign() < 0).sum() / (g != 0).sum().clamp(min=1)


@torch.no_grad()
def read(values: Sequence[Tensor]) -> list[float]:
    """0-dim tensors of any float dtype and device as floats, with one wait for the device."""
    widest = values[0].dtype
    for v in values[1:]:
        widest = torch.promote_types(widest, v.dtype)
    device = values[0].device
    return torch.stack([v.to(device=device, dtype=widest) for v in values]).tolist()
