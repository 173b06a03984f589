"""Random lists of parameters, and a smooth loss on them whose derivatives are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "parameter", "strided", "transposed", "channels_last", "slice")
SHAPES = st.one_of(
    st.lists(st.integers(0, 4), max_size=2).map(tuple),
    st.tuples(*(st.integers(1, 2) for _ in range(4))),
)
LARGEST = 192  # elements of all parameters together


class Loss:
    """``x.A.x / 2 + b.x + sum c * sin(x + d)`` of all elements x of a list of tensors.

    A couples all of them. It is drawn once for `LARGEST` elements and cut to size, so parameters
    that come later do not change the terms of those before.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        root = draw(LARGEST, LARGEST)
        self.a = (root + root.T) / (2 * LARGEST**0.5)
        self.b, self.c, self.d = draw(LARGEST), draw(LARGEST), draw(LARGEST)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        x = torch.cat([t.double().reshape(-1) for t in tensors])
        n = len(x)
        wave = (self.c[:n] * torch.sin(x + self.d[:n])).sum()
        return 0.5 * x @ self.a[:n, :n] @ x + self.b[:n] @ x + wave

    def bounds(self, n: int) -> tuple[float, float, float]:
        """Upper bounds of the second, third and fourth derivative, for n elements."""
        wave = float(self.c[:n].abs().max()) if n else 0.0
        second = float(torch.linalg.matrix_norm(self.a[:n, :n], 2)) + wave if n else 0.0
        return second, wave, wave


@dataclass
class Case:
    """A list of parameters, and which of them enter the loss."""

    params: list[Tensor]
    used: list[bool]  # enters the loss
    loss: Loss

    def live(self) -> list[int]:
        """Indices of those that get a gradient."""
        return [i for i, p in enumerate(self.params) if self.used[i] and p.requires_grad]

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The loss at these values; parameters that are not used stay out."""
        return self.loss([v for v, used in zip(values, self.used, strict=True) if used])

    def backward(self) -> None:
        """Add the gradients to ``.grad``, as training code does."""
        self.value(self.params).backward()


def storage(t: Tensor) -> Tensor:
    """All bytes of a tensor's storage, also those that the tensor does not show; copied."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).clone()


@st.composite
def cases(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES, largest: int = 6) -> Case:
    """Parameters of several shapes, dtypes and layouts; some frozen, some outside the loss."""
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    buffers = {dtype: torch.randn(128, generator=generator).to(dtype) for dtype in dtypes}
    taken = dict.fromkeys(dtypes, 0)
    params: list[Tensor] = []
    for _ in range(draw(st.integers(1, largest))):
        dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
        layout = draw(st.sampled_from(LAYOUTS))
        t = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if layout == "strided" and t.dim():
            t = t.repeat_interleave(2, 0)[::2]
        elif layout == "transposed" and t.dim() == 2:
            t = t.t()
        elif layout == "channels_last" and t.dim() == 4:
            t = t.to(memory_format=torch.channels_last)
        elif layout == "slice" and taken[dtype] + t.numel() <= 128:
            # neighbours in one flat buffer, as FSDP and fused optimizers keep them
            start, taken[dtype] = taken[dtype], taken[dtype] + t.numel()
            t = buffers[dtype][start : taken[dtype]].view(shape)
        frozen = draw(st.integers(0, 4)) == 0
        params.append(
            nn.Parameter(t, requires_grad=not frozen)
            if layout == "parameter"
            else t.detach().requires_grad_(not frozen)
        )
    used = [draw(st.integers(0, 4)) > 0 for _ in params]
    case = Case(params, used, Loss(seed))
    if not case.live():  # at least one has a gradient, though its size may be 0
        params[0].requires_grad_()
        used[0] = True
    return case
