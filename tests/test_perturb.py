"""flatopt.perturb: shifted lists of tensors are restored bit for bit; norms and inner products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatopt.perturb import RNGState, displaced
from flatopt.precision import looks_low_precision
from flatopt.vectors import SIGNS, dot, even_sample, norm, reversed_between, wide

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 6e-8, 3e38, -65504.0)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def tensor_lists(draw: st.DrawFn, special: bool = False) -> list[Tensor]:
    """Tensors of several shapes, dtypes and layouts; with ``special``, infinities and the like."""
    found = []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    for _ in range(draw(st.integers(1, 5))):
        t = torch.randn(draw(SHAPES), generator=generator, dtype=torch.float64)
        if special:
            values = torch.tensor([*SPECIAL, 1.0], dtype=torch.float64)
            chosen = torch.randint(len(values), t.shape, generator=generator)
            t = torch.where(t > 0.5, values[chosen], t)
        t = t.to(draw(st.sampled_from(DTYPES)))
        found.append(t.t() if t.dim() == 2 and draw(st.booleans()) else t)
    return found


def bits(t: Tensor) -> Tensor:
    sizes = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    return t.detach().contiguous().view(-1).view(sizes[t.element_size()]).clone()


@settings(max_examples=80, deadline=None)
@given(
    params=tensor_lists(special=True),
    alpha=st.floats(-1e3, 1e3),
    narrow=st.booleans(),
    fails=st.booleans(),
)
def test_restored_bit_for_bit(
    params: list[Tensor], alpha: float, narrow: bool, fails: bool
) -> None:
    torch.manual_seed(0)
    params = [p.requires_grad_() for p in params]
    steps = [torch.randn(p.shape, dtype=p.dtype if narrow else wide(p.dtype)) for p in params]
    before = [(bits(p), p.data_ptr(), p.stride()) for p in params]
    error = None
    try:
        with displaced(params, steps, alpha, measure=True) as realised:
            assert realised is not None
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError as caught:
        error = caught
    assert (error is not None) == fails
    for p, (value, pointer, stride) in zip(params, before, strict=True):
        assert torch.equal(bits(p), value)
        assert (p.data_ptr(), p.stride()) == (pointer, stride)


def test_restored_where_the_shift_itself_fails() -> None:
    params = [torch.ones(2), torch.ones(3)]
    with (
        pytest.raises(RuntimeError),
        displaced(params, [torch.ones(2), torch.ones(4)], 1.0),
    ):
        pass
    assert [p.tolist() for p in params] == [[1.0, 1.0], [1.0, 1.0, 1.0]]


@settings(max_examples=80, deadline=None)
@given(params=tensor_lists(), alpha=st.floats(-10, 10))
def test_shift(params: list[Tensor], alpha: float) -> None:
    torch.manual_seed(0)
    steps = [torch.randn(p.shape, dtype=wide(p.dtype)) for p in params]
    before = [p.double().clone() for p in params]
    with displaced(params, steps, alpha, measure=True) as realised:
        for p, b, d in zip(params, before, steps, strict=True):
            error = (p.double() - (b + alpha * d.double())).abs()
            # rounding of the product, and of the sum; 16-bit floats have a coarse least value
            bound = torch.finfo(p.dtype).eps * (b.abs() + (alpha * d.double()).abs())
            assert (error <= bound + torch.finfo(p.dtype).smallest_normal).all()
        moved = [(p.double() - b).norm() for p, b in zip(params, before, strict=True)]
        assert realised is not None
        intended = abs(alpha) * float(torch.stack([d.double().norm() for d in steps]).norm())
        if intended > 1e-30:
            length = float(realised) * intended
            expected = float(torch.stack(moved).norm())
            assert length == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_realised_step_looks_at_a_sample_of_wide_weights_and_at_all_narrow_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flatopt.perturb.LOOKED_AT", 4)  # two of each of two tensors
    lost = 1e-5  # rounded away beside 1e4, not beside 1
    for dtype, expected in ((torch.float32, 1.0), (torch.bfloat16, 0.0)):
        params = [torch.ones(4), torch.tensor([1.0, 1.0, 1e4, 1e4])]
        params = [p.to(dtype) for p in params]
        with displaced(params, [torch.ones(4)] * 2, lost, measure=True) as realised:
            assert realised is not None
            assert float(realised) == pytest.approx(expected, abs=2e-2)
    with displaced([torch.full((4,), 1e4)], [torch.ones(4)], lost, measure=True) as realised:
        assert realised is not None
        assert float(realised) == 0.0
    # where nothing was to move, nothing was lost
    with displaced([torch.ones(4)], [torch.zeros(4)], lost, measure=True) as realised:
        assert realised is not None
        assert float(realised) == 1.0


@settings(max_examples=80, deadline=None)
@given(tensors=tensor_lists())
def test_norm_and_dot(tensors: list[Tensor]) -> None:
    reference = sum(float((t.double() ** 2).sum()) for t in tensors)
    assert float(norm(tensors)) == pytest.approx(math.sqrt(reference), rel=1e-5)
    assert norm(tensors).dtype in (torch.float32, torch.float64)
    others = [torch.randn_like(t) for t in tensors]
    pairs = list(zip(tensors, others, strict=True))
    reference = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
    size = float(norm(tensors)) * float(norm(others))
    assert float(dot(tensors, others)) == pytest.approx(reference, abs=1e-5 * size + 1e-12)


def share_reversed(before: list[Tensor], added: list[Tensor], weight: float) -> Tensor:
    """Of an even sample, as `optimizer.stats.reversed`."""
    return reversed_between(even_sample(before, SIGNS), even_sample(added, SIGNS), weight)


def test_share_of_reversed_coordinates() -> None:
    g = [torch.tensor([[1.0, -1.0, 2.0], [0.0, 3.0, -4.0]]), torch.tensor(-1.0).double()]
    d = [torch.tensor([[-2.0, 1.0, -1.0], [5.0, -9.0, 1.0]]), torch.tensor(2.0).double()]
    # weight .6: of six coordinates that are not 0 the first, the fifth and the last turn round
    share = share_reversed(g, d, 0.6)
    assert share is not None
    assert float(share) == pytest.approx(3 / 6)
    # like Adam, it does not see a positive factor on a coordinate, however small
    factor = [1e-25 * (torch.rand_like(t) + 0.1) for t in g]
    smaller = ([f * t for f, t in zip(factor, ts, strict=True)] for ts in (g, d))
    assert share_reversed(next(smaller), next(smaller), 0.6) == share


def test_share_of_reversed_coordinates_is_that_of_an_even_sample() -> None:
    torch.manual_seed(0)
    g = [torch.randn(1000, 512), torch.randn(300, 401).t()]
    d = [torch.randn_like(t) for t in g]
    assert sum(t.numel() for t in g) > 5 * SIGNS
    whole = sum(int((a * (a + 2 * b) < 0).sum()) for a, b in zip(g, d, strict=True))
    share = share_reversed(g, d, 2.0)
    assert share is not None
    assert float(share) == pytest.approx(whole / sum(t.numel() for t in g), abs=0.01)


def test_norm_of_many_16_bit_numbers_is_wide() -> None:
    # 2^20 ones: a 16-bit sum of squares stops at 256
    assert norm([torch.ones(2**20, dtype=torch.bfloat16)]).item() == 1024.0
    big = torch.full((4,), 60000.0, dtype=torch.float16)
    assert norm([big]).item() == pytest.approx(120000.0, rel=1e-2)
    assert dot([big], [big]).item() == pytest.approx(120000.0**2, rel=1e-2)


def test_tensor_subclasses_take_the_plain_path() -> None:
    class Tagged(torch.Tensor):
        pass

    p = torch.tensor([3.0, 4.0]).as_subclass(Tagged)
    assert norm([p]).item() == 5.0
    assert dot([p], [p]).item() == 25.0
    with displaced([p], [p.clone()], 1.0):
        assert p.tolist() == [6.0, 8.0]
    assert p.tolist() == [3.0, 4.0]


def test_random_state() -> None:
    torch.manual_seed(0)
    state = RNGState.capture([torch.device("cpu"), torch.device("meta")])
    first = torch.rand(5)
    torch.rand(100)
    state.restore()
    assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize(
    ("dtype", "terms", "expected"),
    [
        (torch.float32, 1, False),
        (torch.bfloat16, 1, True),
        (torch.bfloat16, 3, True),
        (torch.float16, 1, True),
    ],
)
def test_precision_of_a_gradient(dtype: torch.dtype, terms: int, expected: bool) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(64, 64).to(dtype).float() for _ in range(terms)]
    total = torch.stack(parts).sum(0)
    assert looks_low_precision([total]) is expected
    assert looks_low_precision([65536.0 * total]) is expected


def test_precision_of_too_little() -> None:
    few, vector = torch.randn(3, 3), torch.randn(1000)
    zeros, broken = torch.zeros(64, 64), torch.full((64, 64), math.nan)
    assert looks_low_precision([few, vector, zeros, broken, few.double()]) is None
    mixed = torch.randn(64, 64)
    mixed[:60] = 0.0  # an embedding whose other rows were not used
    assert looks_low_precision([mixed]) is False
