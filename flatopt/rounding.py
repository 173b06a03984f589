"""Float32 numbers to 16 bits: to the nearest, or at random so that they are right on average."""

import torch
from torch import Tensor

# bits of a float32 mantissa that the 16-bit format does not have
_LOST_BITS = {torch.bfloat16: 16, torch.float16: 13}


class Dither:
    r"""Stochastic rounding: up with the probability of the part that is cut off.

    .. math:: E[\mathrm{round}(x)] = x

    A shift much shorter than the spacing of 16-bit numbers then moves a few weights by a whole
    spacing, instead of none at all: it survives on average. The random numbers are its own (those
    of the user's program are not touched) and depend on ``seed`` only, so that all processes of a
    training shift their copies of the weights alike.

    Example:
        >>> x = torch.full((10_000,), 1.001)  # between the bf16 numbers 1 and 1.0078
        >>> abs(float(Dither(0).round(x, torch.bfloat16).double().mean()) - 1.001) < 3e-4
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def round(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``x`` (float32, finite) in ``dtype`` (bfloat16 or float16); overwrites ``x``."""
        lost = _LOST_BITS[dtype]
        bits = x.view(torch.int32)
        noise = torch.empty_like(bits).random_(0, 1 << lost, generator=self._generator(x.device))
        # sign and magnitude: the carry of the addition rounds the magnitude up
        bits.add_(noise).bitwise_and_(-(1 << lost))
        return x.to(dtype)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


def to_dtype(x: Tensor, dtype: torch.dtype, dither: Dither | None) -> Tensor:
    """``x`` in 16 bits, to the nearest where ``dither`` is None; may overwrite ``x``."""
    return x.to(dtype) if dither is None else dither.round(x, dtype)
