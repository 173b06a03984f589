"""In which precision gradients are computed, and which step length and difference it asks for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flatopt.shards import gathers_in_16_bits, local, over_shards
from flatopt.vectors import LOW_PRECISION

# Step length ||theta' - theta|| / ||theta|| at which the difference is most accurate, by the
# precision in which the gradients are computed (docs/numerics.md). A shorter step drowns in
# rounding, a longer one in the third derivative.
DEFAULT_RADIUS = {torch.float64: 1e-7, torch.float32: 3e-6, torch.bfloat16: 3e-4}


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
        if g.dtype != torch.float32 or g.dim() < 2 or g.is_sparse:
            continue
        flat = local(g.detach()).reshape(-1)[:sample]
        bits = flat.view(torch.int32)[(flat != 0) & flat.isfinite()]
        counts = [bits.numel(), int((bits & 0xF == 0).sum())]
        # processes with other shards must come to the same answer
        seen, zeros = (a + b for a, b in zip((seen, zeros), over_shards(counts, g), strict=True))
        if seen >= sample:
            break
    return zeros > 0.5 * seen if seen >= 256 else None


def multiplies_in_tf32(params: Sequence[Tensor]) -> bool:
    """True where products of these float32 matrices are computed with TF32's 10 bits, on CUDA."""
    there = [p for p in params if p.device.type == "cuda" and p.dtype == torch.float32]
    if not there:
        return False
    if torch.backends.cudnn.allow_tf32 and any(p.dim() > 2 for p in there):  # convolutions
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set by torch's newer switch, which forbids asking the older one
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


def computed_in(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> str | None:
    """ "float64", "float32", "tf32", or "16 bits" (weights, or autocast); None: nothing tells yet.

    Example:
        >>> computed_in([torch.zeros(2, dtype=torch.bfloat16)], [])
        '16 bits'
    """
    if any(p.dtype in LOW_PRECISION for p in params):
        return "16 bits"
    if gathers_in_16_bits(params):
        return "16 bits"
    if any(torch.is_autocast_enabled(kind) for kind in {p.device.type for p in params}):
        return "16 bits"
    if params and all(p.dtype == torch.float64 for p in params):
        return "float64"
    narrow = looks_low_precision([g for g in grads if g is not None])
    if narrow:
        return "16 bits"
    if multiplies_in_tf32(params):
        return "tf32"
    return None if narrow is None else "float32"


def default_radius(precision: str | None) -> float:
    """The step length for gradients computed in that precision, where none was given."""
    if precision in ("16 bits", "tf32"):
        return DEFAULT_RADIUS[torch.bfloat16]
    return DEFAULT_RADIUS[torch.float64 if precision == "float64" else torch.float32]


def default_difference(precision: str | None) -> str:
    """Where gradients have 16 bits only the central difference is accurate enough."""
    return "central" if precision == "16 bits" else "forward"
