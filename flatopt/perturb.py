"""Shift parameters and put them back bit for bit; random-number state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from flatopt.backup import Backup, Keeper, Swapped, cut, spans
from flatopt.rounding import Dither, to_dtype
from flatopt.shards import fresh_copies, local
from flatopt.vectors import LOOKED_AT, LOW_PRECISION, ShardSums, wide


@contextmanager
def displaced(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    alpha: float,
    measure: bool = False,
    keeper: Keeper | None = None,
    dither: Dither | None = None,
) -> Iterator[Tensor | None]:
    """``theta + alpha * direction`` inside, theta outside, bit for bit, also after an error.

    The values are changed in place, so storage pointers (flat buffers, DDP buckets, FSDP views,
    compiled graphs) stay valid; but a CPU parameter that nobody else sees may lie elsewhere
    inside. Low-precision weights are shifted in float32 and rounded once.

    Args:
        params: tensors to shift.
        directions: of the same shapes.
        alpha: multiple of them.
        measure: also compute what is yielded.
        keeper: where the old values are kept; by default in a copy.
        dither: rounds 16-bit weights at random, so that the shift is right on average; without it
            they are rounded to the nearest.

    Yields:
        With ``measure``, the length of the shift that survived rounding / the intended one (0-dim
        tensor): over all weights of 16 bits, over some `LOOKED_AT` of wider ones.
    """
    keeper = keeper or Keeper()
    saved: list[tuple[Tensor, Backup]] = []
    lengths = _Lengths(alpha, params[0].device, len(params)) if measure and params else None
    try:
        with torch.no_grad():
            for p, d in zip(params, directions, strict=True):
                _shift(p, d, alpha, keeper, dither, saved, lengths)
            realised = lengths.ratio() if lengths is not None else None
        # inside an outer autocast block the 16-bit copies of the old weights would be used again
        torch.clear_autocast_cache()
        with fresh_copies(params):
            yield realised
    finally:
        late: KeyboardInterrupt | None = None
        while saved:
            try:
                with torch.no_grad():
                    _restore(saved)
            except KeyboardInterrupt as caught:  # before it had begun
                late = caught
        torch.clear_autocast_cache()
        if late is not None:
            raise late


def _shift(
    param: Tensor,
    direction: Tensor,
    alpha: float,
    keeper: Keeper,
    dither: Dither | None,
    saved: list[tuple[Tensor, Backup]],
    lengths: "_Lengths | None",
) -> None:
    """Move one tensor, each range of it saved before anything is written to it."""
    p, d = local(param), local(direction)
    if d.shape != p.shape:
        raise RuntimeError(f"a direction of shape {tuple(d.shape)} for one of {tuple(p.shape)}")
    backup = keeper.begin(p)
    saved.append((p, backup))
    if isinstance(backup, Swapped):
        torch.add(p, d, alpha=alpha, out=backup.space)
        if lengths is not None:
            few = slice(0, lengths.few)
            old, new, step = (t.reshape(-1)[few] for t in (p, backup.space, d))
            lengths.add(param, new, old, step)
        p.data = backup.space
        increment_version(p)  # a graph that was made at theta must not be used at theta'
    else:
        _write(param, p, d, alpha, backup, dither, lengths)


def _write(
    param: Tensor,
    p: Tensor,
    d: Tensor,
    alpha: float,
    backup: Backup,
    dither: Dither | None,
    lengths: "_Lengths | None",
) -> None:
    """Move one tensor in its own memory."""
    narrow = p.dtype in LOW_PRECISION
    for span in spans(p, d):
        part, step = cut(p, span), cut(d, span)
        look = lengths is not None and (narrow or span is None or span.start < lengths.few)
        old = part.clone() if look else None
        if narrow:
            moved = to_dtype(part.float().add_(step, alpha=alpha), p.dtype, dither)
            backup.save(span, part, moved)
            part.copy_(moved)
        else:
            backup.save(span, part, None)
            part.add_(step, alpha=alpha)
        if lengths is not None and old is not None:
            few = slice(None) if narrow else slice(0, lengths.few)
            lengths.add(param, *(t.reshape(-1)[few] for t in (part, old, step)))


def _restore(saved: list[tuple[Tensor, Backup]]) -> None:
    """Put all values back, the last shifted first; to the end, whatever comes meanwhile.

    A Ctrl-C in here would leave a part of the model perturbed: it is let out afterwards.
    """
    late: BaseException | None = None
    tried = 0
    while saved:
        try:
            p, backup = saved[-1]
            backup.restore(p)
            saved.pop()
            tried = 0
        except KeyboardInterrupt as caught:
            late = caught  # restoring again is harmless
        except BaseException as caught:
            late, tried = late or caught, tried + 1
            if tried > 1:  # this one cannot be put back; the others must be
                saved.pop()
                tried = 0
    if late is not None:
        raise late


class _Lengths:
    """Length of the actual shift / of the intended one, from the ranges that were looked at."""

    def __init__(self, alpha: float, device: torch.device, count: int) -> None:
        self.alpha = alpha
        # of each wide tensor so many elements, because one alone may have no gradient
        self.few = max(LOOKED_AT // count, 1)
        self.actual, self.intended = ShardSums(device), ShardSums(device)

    def add(self, param: Tensor, part: Tensor, old: Tensor, step: Tensor) -> None:
        change = part.to(wide(part.dtype)) - old
        self.actual.add(param, torch.linalg.vector_norm(change))
        self.intended.add(param, torch.linalg.vector_norm(step, dtype=wide(step.dtype)))

    def ratio(self) -> Tensor:
        actual, intended = self.actual.norm(), abs(self.alpha) * self.intended.norm()
        return torch.where(intended > 0, actual / intended, torch.ones_like(actual))


@dataclass
class RNGState:
    """Random-number state of the CPU and of the given accelerator devices.

    Both passes of a GR step must draw the same dropout masks; otherwise the difference of the two
    gradients is mostly that noise.

    Example:
        >>> state = RNGState.capture([])
        >>> a = torch.rand(3)
        >>> state.restore()
        >>> bool((torch.rand(3) == a).all())
        True
    """

    cpu: Tensor
    devices: dict[torch.device, Tensor]

    @classmethod
    def capture(cls, devices: Sequence[torch.device]) -> "RNGState":
        """The present state; ``devices`` other than accelerators are ignored."""
        kept: dict[torch.device, Tensor] = {}
        for device in dict.fromkeys(devices):
            module = getattr(torch, device.type, None)
            if device.type not in ("cpu", "meta") and hasattr(module, "get_rng_state"):
                kept[device] = module.get_rng_state(device)  # type: ignore[union-attr]
        return cls(torch.get_rng_state(), kept)

    def restore(self) -> None:
        """Go back to the captured state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            getattr(torch, device.type).set_rng_state(state, device)
