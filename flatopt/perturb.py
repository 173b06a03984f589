"""Shift lists of parameters and restore them bit for bit; norms; shared random numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)

# Step length ||theta' - theta|| / ||theta|| at which the forward difference is most accurate, by
# the precision in which the gradients are computed (docs/how-to-choose.md). A shorter step drowns
# in rounding, a longer one in the third derivative.
DEFAULT_RADIUS = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 3e-4}


# Elements of float32 weights looked at for the realised step: rounding there is the same everywhere
SAMPLE = 1_000_000

# Coordinates looked at for the share whose sign GR reverses: enough for half a per cent
SIGNS = 16_384


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gradients of that dtype are kept and combined: at least float32."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def _plain(tensors: Sequence[Tensor]) -> bool:
    """True where torch's multi-tensor kernels are safe: no tensor subclass such as DTensor."""
    return all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)


def _local(value: Tensor) -> Tensor:
    """A norm over shards (DTensor) as the same plain number on every rank."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]


def _joint_norm(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([_local(n).to(device) for n in norms]))


@torch.no_grad()
def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of a list of tensors as one vector: 0-dim, float32 or wider.

    The tensors may differ in dtype and device; the result is on the device of the first.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.device, t.dtype), []).append(t)
    parts: list[Tensor] = []
    for (_, dtype), group in groups.items():
        if _plain(group):
            parts.extend(torch._foreach_norm(group, 2, dtype=wide(dtype)))
        else:
            parts.extend(torch.linalg.vector_norm(t, dtype=wide(dtype)) for t in group)
    if len({p.dtype for p in parts}) > 1:
        parts = [p.double() for p in parts]
    return _joint_norm(parts, tensors[0].device)


@torch.no_grad()
def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner product of two lists of tensors as vectors: 0-dim, on the device of the first."""
    device = left[0].device
    total = torch.zeros((), dtype=wide(left[0].dtype), device=device)
    for a, b in zip(left, right, strict=True):
        a, b = a.to(wide(a.dtype)), b.to(wide(b.dtype))
        if _plain((a, b)) and a.is_contiguous() and b.is_contiguous():
            part = torch.dot(a.view(-1), b.view(-1))
        else:
            part = _local((a * b).sum())
        total += part.to(device)
    return total


@torch.no_grad()
def share_reversed(
    before: Sequence[Tensor], added: Sequence[Tensor], weight: float
) -> Tensor | None:
    """Share of the coordinates, where not 0, that change sign from g to g + weight * d.

    Of an even sample of about `SIGNS` coordinates: 0-dim. None for shards (DTensor).
    """
    if not (_plain(before) and _plain(added)):
        return None
    # an odd stride, lest it fall on the same column of every matrix
    stride = sum(g.numel() for g in before) // SIGNS | 1
    device, dtype = before[0].device, wide(before[0].dtype)

    def sample(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1)[::stride].to(device, dtype) for t in tensors])

    g, d = sample(before), sample(added)
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


@contextmanager
def displaced(
    params: Sequence[Tensor], directions: Sequence[Tensor], alpha: float, measure: bool = False
) -> Iterator[Tensor | None]:
    """``theta + alpha * direction`` inside, theta outside, bit for bit, also after an error.

    The values are changed in place, so storage pointers (flat buffers, DDP buckets, FSDP views,
    compiled graphs) stay valid. Low-precision weights are shifted in float32 and rounded once.
    Costs one copy of ``params``.

    Args:
        params: tensors to shift; directions: of the same shapes; alpha: multiple of them.
        measure: also compute what is yielded.

    Yields:
        With ``measure``, the length of the shift that survived rounding / the intended one (0-dim
        tensor): over all weights of 16 bits, over a sample of `SAMPLE` wider ones.
    """
    backup = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            _shift(params, directions, alpha)
            realised = _realised(params, backup, directions, alpha) if measure and params else None
        # inside an outer autocast block the 16-bit copies of the old weights would be used again
        torch.clear_autocast_cache()
        yield realised
    finally:
        with torch.no_grad():
            for p, value in zip(params, backup, strict=True):
                p.copy_(value)
        torch.clear_autocast_cache()


def _realised(
    params: Sequence[Tensor], backup: Sequence[Tensor], directions: Sequence[Tensor], alpha: float
) -> Tensor:
    """Length of the actual shift / of the intended one."""
    actual, intended, seen = [], [], 0
    for p, b, d in zip(params, backup, directions, strict=True):
        if seen >= SAMPLE and p.dtype not in LOW_PRECISION:
            continue
        # one tensor at a time: a list of differences would be a third copy of the weights
        actual.append(torch.linalg.vector_norm(p.to(wide(p.dtype)) - b))
        intended.append(torch.linalg.vector_norm(d))
        seen += p.numel()
    device = params[0].device
    return _joint_norm(actual, device) / (abs(alpha) * _joint_norm(intended, device))


def _shift(params: Sequence[Tensor], directions: Sequence[Tensor], alpha: float) -> None:
    exact = [(p, d) for p, d in zip(params, directions, strict=True) if p.dtype == d.dtype]
    if exact:
        targets, steps = [p for p, _ in exact], [d for _, d in exact]
        if _plain(targets) and _plain(steps):
            torch._foreach_add_(targets, steps, alpha=alpha)
        else:
            for p, d in exact:
                p.add_(d, alpha=alpha)
    for p, d in zip(params, directions, strict=True):
        if p.dtype != d.dtype:
            p.copy_(p.to(d.dtype).add_(d, alpha=alpha))


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


def looks_low_precision(grads: Sequence[Tensor], sample: int = 4096) -> bool | None:
    """True where float32 gradients carry only bf16/fp16 information, as autocast leaves them.

    Under autocast each matrix is cast to 16 bits, so its float32 gradient is a 16-bit number (or a
    sum of a few): the last bits of the mantissa are zero. In a gradient computed in float32, the
    last 4 bits are all zero in 1 element of 16. Integers and other round numbers would fool this
    test, so only matrices count, and most of their elements must agree. None: too few finite
    elements other than zero to tell.
    """
    seen = zeros = 0
    for g in grads:
        if g.dtype != torch.float32 or g.dim() < 2 or g.is_sparse or not _plain((g,)):
            continue
        flat = g.detach().reshape(-1)[:sample]
        bits = flat.view(torch.int32)[(flat != 0) & flat.isfinite()]
        seen += bits.numel()
        zeros += int((bits & 0xF == 0).sum())
        if seen >= sample:
            break
    return zeros > 0.5 * seen if seen >= 256 else None


def multiplies_in_tf32(params: Sequence[Tensor]) -> bool:
    """True where products of these float32 matrices are computed with TF32's 10 bits, on CUDA."""
    if not any(p.device.type == "cuda" and p.dtype == torch.float32 for p in params):
        return False
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set by torch's newer switch, which forbids asking the older one
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def low_precision(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool | None:
    """True where gradients are computed with 16 bits or TF32; None where nothing tells yet."""
    if any(p.dtype in LOW_PRECISION for p in params) or multiplies_in_tf32(params):
        return True
    if any(torch.is_autocast_enabled(kind) for kind in {p.device.type for p in params}):
        return True
    return looks_low_precision([g for g in grads if g is not None])


def default_radius(params: Sequence[Tensor], low: bool) -> float:
    """The step length for these parameters, where none was given."""
    if low:
        return DEFAULT_RADIUS[torch.bfloat16]
    double = all(p.dtype == torch.float64 for p in params)
    return DEFAULT_RADIUS[torch.float64 if double else torch.float32]
