"""Where values of shifted parameters are kept meanwhile: a copy, the CPU, or counts of steps."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from flatopt.vectors import LOW_PRECISION, PIECE, owned, plain

# Elements worked on at a time on an accelerator: bounds the temporary copies in float32
_LARGE_PIECE = 1 << 24


def spans(*tensors: Tensor) -> list[slice | None]:
    """The ranges in which tensors of one shape are worked on; ``[None]`` for all at once.

    Several operations on one range after another find it in a CPU's cache, and what they allocate
    is small.
    """
    size = PIECE if tensors[0].device.type == "cpu" else _LARGE_PIECE
    count = tensors[0].numel()
    if count <= size or not plain(tensors) or not all(t.is_contiguous() for t in tensors):
        return [None]
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def cut(t: Tensor, span: slice | None) -> Tensor:
    """The part of ``t`` in one of `spans`, as a view."""
    return t if span is None else t.view(-1)[span]


class Backup(Protocol):
    """Old values of one tensor, saved range by range before each range is written to."""

    def save(self, span: slice | None, part: Tensor, moved: Tensor | None) -> None:
        """Save ``part``, the range ``span`` of the tensor, which ``moved`` is to overwrite."""
        ...

    def restore(self, p: Tensor) -> None:
        """Put back what was saved, and nothing else."""
        ...


class Copied:
    """A copy, here or on the CPU."""

    def __init__(self, space: Tensor) -> None:
        self.space = space
        self.done = 0  # elements saved; those after them were not written to

    def save(self, span: slice | None, part: Tensor, moved: Tensor | None) -> None:
        """Copy `part` to where it stands in the tensor."""
        cut(self.space, span).copy_(part)
        self.done += part.numel()

    def restore(self, p: Tensor) -> None:
        """Copy back what was saved."""
        if self.done == p.numel():
            p.copy_(self.space)
        elif self.done:
            p.view(-1)[: self.done].copy_(self.space.view(-1)[: self.done])


class Counted:
    """By how many representable numbers each 16-bit weight moved: one byte each, and exact.

    The bit patterns of neighbouring floats of one sign are neighbouring integers, so old and new
    differ by a small one. Where it does not fit into a byte (weights near 0), the old value itself
    is kept; a range in which those are many is kept as a copy.
    """

    def __init__(self, p: Tensor) -> None:
        self.counts: list[tuple[slice | None, Tensor, Tensor, Tensor]] = []
        self.version = p._version  # goes up with each write: by one for each range
        self.shifted: int | None = None  # ranges written by the shift, once it is over

    def save(self, span: slice | None, part: Tensor, moved: Tensor | None) -> None:
        """Keep how many representable numbers lie between `part` and `moved`, for each weight."""
        assert moved is not None
        steps = moved.view(torch.int16) - part.view(torch.int16)  # modulo 2^16, so exact
        narrow = steps.to(torch.int8)
        far = (steps != narrow).reshape(-1).nonzero().view(-1)
        if 6 * far.numel() > part.numel():  # an index and a value each take more than a copy
            copy = part.clone()
            self.counts.append((span, copy, copy, copy))
        else:
            self.counts.append((span, narrow, far.to(torch.int32), part.reshape(-1)[far]))

    def restore(self, p: Tensor) -> None:
        """Go back by the counts; RuntimeError where somebody else wrote to the weight."""
        writes = p._version - self.version
        if self.shifted is None:
            self.shifted = writes
        if self.shifted > len(self.counts):
            raise RuntimeError(
                "a 16-bit weight was written to inside perturbed(): with memory='lean' it cannot "
                "be put back, since only the steps from it were kept. Use memory='fast'"
            )
        back = writes - self.shifted  # ranges put back by an earlier call that was interrupted
        for span, counts, far, old in self.counts[back : self.shifted]:
            part = cut(p, span)
            if far is old:
                part.copy_(old)
                continue
            value = (part.view(torch.int16) - counts.to(torch.int16)).view(p.dtype)
            part.copy_(value.reshape(-1).index_copy(0, far.long(), old).view(part.shape))


class Swapped:
    """No copy at all: the parameter lies in other memory meanwhile, its own is left as it is."""

    def __init__(self, p: Tensor, space: Tensor) -> None:
        self.own, self.space = p.data, space

    def save(self, span: slice | None, part: Tensor, moved: Tensor | None) -> None:
        """Nothing: the range is written to other memory."""

    def restore(self, p: Tensor) -> None:
        """Give the parameter its own memory again."""
        p.data = self.own
        increment_version(p)


def alone(p: Tensor) -> bool:
    """True where no other tensor lies in the memory of this CPU parameter, so it may be swapped."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or p.device.type != "cpu" or not owned(p) or not p.is_contiguous():
        return False
    if type(p) is not torch.nn.Parameter or p.is_shared() or p.dtype in LOW_PRECISION:
        return False
    fresh = torch.empty(1)
    storages = p.untyped_storage(), fresh.untyped_storage()
    users, expected = (count(storage._cdata) for storage in storages)
    return users == expected


class Keeper:
    """Makes backups.

    Args:
        offload: keep copies on the CPU.
        counts: keep 16-bit weights as `Counted`.
        pool: memory to be used again in the next step, for parameters on a CPU. New memory is dear
            there: the system hands it out page by page, at six times the cost of copying.
    """

    def __init__(
        self, offload: bool = False, counts: bool = False, pool: dict[int, Tensor] | None = None
    ) -> None:
        self.offload, self.counts, self.pool = offload, counts, pool

    def begin(self, p: Tensor) -> Copied | Counted | Swapped:
        """An empty backup for one plain tensor or local shard."""
        if self.counts and p.dtype in LOW_PRECISION and owned(p):  # views share a write counter
            return Counted(p)
        if self.offload and p.device.type != "cpu":
            pinned = p.device.type == "cuda"
            return Copied(torch.empty(p.shape, dtype=p.dtype, device="cpu", pin_memory=pinned))
        if self.pool is None or p.device.type != "cpu":
            return Copied(torch.empty_like(p))
        space = self.pool.get(id(p))
        if space is None or (space.shape, space.dtype, space.stride()) != (
            p.shape,
            p.dtype,
            p.stride(),
        ):
            space = self.pool[id(p)] = torch.empty_like(p).detach()
        return Swapped(p, space) if alone(p) else Copied(space)

    def forget_all_but(self, params: Iterable[Tensor]) -> None:
        """Drop the kept copies of other parameters than these."""
        if self.pool:
            known = {id(p) for p in params}
            for key in [k for k in self.pool if k not in known]:
                del self.pool[key]
