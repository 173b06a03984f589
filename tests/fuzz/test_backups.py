"""What a shift leaves behind: counts of steps, swapped memory, random rounding."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flatopt import GradRegOptimizer
from flatopt.backup import Backup, Copied, Counted, cut, spans
from flatopt.rounding import Dither
from tests.fuzz import PATHS, examples, on_path

NARROW = (torch.bfloat16, torch.float16)
# zeros, denormals, infinities and a NaN of both signs, and their neighbours, as 16 bits
SPECIAL = [b + n for b in (0x0000, 0x0080, 0x0400, 0x7C00, 0x7F80, 0x7FC0) for n in (-1, 0, 1)]
PATTERNS = st.one_of(
    st.integers(-(2**15), 2**15 - 1),
    st.sampled_from([b for b in SPECIAL if b >= 0] + [b - 2**15 for b in SPECIAL if b >= 0]),
)


def narrow(patterns: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Floats with these bits."""
    return torch.tensor(patterns, dtype=torch.int16).view(dtype)


def bits(t: Tensor) -> list[int]:
    return t.detach().contiguous().view(torch.int16).flatten().tolist()


def shift(p: Tensor, moved: Tensor, backup: Backup, ranges: int | None = None) -> None:
    """Write ``moved`` to ``p`` range by range; only some of the ranges, as when interrupted."""
    for span in spans(p, moved)[:ranges]:
        backup.save(span, cut(p, span), cut(moved, span))
        cut(p, span).copy_(cut(moved, span))


@examples(200)
@given(
    pairs=st.one_of(st.just(0), st.integers(12, 40)).flatmap(
        lambda n: st.lists(st.tuples(PATTERNS, PATTERNS), min_size=n, max_size=max(n, 5))
    ),
    steps=st.lists(st.integers(-128, 127), min_size=40, max_size=40),
    jump=st.sampled_from([None, -40_000, -129, 128, 300, 2**15]),
    dtype=st.sampled_from(NARROW),
    transposed=st.booleans(),
)
def test_a_backup_leads_back_to_the_same_bits(
    pairs: list[tuple[int, int]],
    steps: list[int],
    jump: int | None,
    dtype: torch.dtype,
    transposed: bool,
) -> None:
    old = [a for a, _ in pairs]
    new = [b for _, b in pairs]
    if jump is not None:  # all but one in eight counts fit into a byte
        far = [s + jump * (i % 8 == 3) for i, s in enumerate(steps)]
        new = [(a + s + 2**15) % 2**16 - 2**15 for a, s in zip(old, far, strict=False)]
    p, moved = narrow(old, dtype), narrow(new, dtype)
    if transposed and len(old) % 2 == 0:
        p, moved = p.view(-1, 2).t(), moved.view(-1, 2).t()
    before = bits(p)
    for copied, path, ranges in itertools.product((True, False), PATHS, (None, 0, 1, 3)):
        with on_path(path):
            backup = Copied(torch.empty_like(p)) if copied else Counted(p)
            shift(p, moved, backup, ranges)
            backup.restore(p)
            assert bits(p) == before
            backup.restore(p)  # a second time, after an interruption
        assert bits(p) == before


def test_a_write_meanwhile_is_noticed() -> None:
    p = torch.ones(4, dtype=torch.bfloat16)
    backup = Counted(p)
    shift(p, torch.full_like(p, 1.5), backup)
    p.add_(1.0)
    with pytest.raises(RuntimeError, match="written to inside perturbed"):
        backup.restore(p)


def test_slices_of_one_buffer_come_back() -> None:
    # which count their writes together
    flat = torch.linspace(0.5, 2.0, 8).bfloat16()
    params, before = [nn.Parameter(flat[:4]), nn.Parameter(flat[4:])], bits(flat)
    optimizer = GradRegOptimizer(
        torch.optim.SGD(params, lr=0.1), strength=0.1, radius=0.1, memory="lean"
    )
    quadratic(params)
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            assert bits(flat) != before
            quadratic(params)
    assert bits(flat) == before


def test_a_lean_pass_in_16_bits_that_raises_leaves_no_mixed_gradient() -> None:
    # one of the two second gradients is used up already
    params = [nn.Parameter(torch.linspace(0.5, 2.0, n).bfloat16()) for n in (3, 4)]
    before = [bits(p) for p in params]
    optimizer = GradRegOptimizer(
        torch.optim.SGD(params, lr=0.1), strength=0.1, difference="forward", memory="lean"
    )
    quadratic(params)

    def work() -> None:
        quadratic(params[:1])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), optimizer.perturbed():
        work()
    assert [p.grad for p in params] == [None, None]
    assert [bits(p) for p in params] == before


@examples(100)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    dtype=st.sampled_from(NARROW),
    seed=st.integers(0, 100),
)
def test_random_rounding_goes_to_a_neighbour_and_repeats(
    values: list[float], dtype: torch.dtype, seed: int
) -> None:
    x = torch.tensor(values)
    state = torch.get_rng_state()
    first, second = (Dither(seed).round(x.clone(), dtype) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert bits(first) == bits(second)
    nearest = x.to(dtype)
    tiny = torch.finfo(dtype).smallest_normal
    ulp = torch.finfo(dtype).eps * x.abs().clamp(min=tiny).double()
    assert ((first.double() - x.double()).abs() <= ulp).all()
    exact = nearest.float() == x  # a number that 16 bits hold stays
    assert torch.equal(first[exact], nearest[exact])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [1.0003, -3.3, 0.0123])
def test_random_rounding_is_right_on_average(dtype: torch.dtype, value: float) -> None:
    x = torch.full((40_000,), value)
    found = Dither(1).round(x.clone(), dtype).double()
    assert len(found.unique()) == 2
    assert bits(Dither(2).round(x.clone(), dtype)) != bits(Dither(1).round(x.clone(), dtype))
    error = float(found.std()) / len(x) ** 0.5
    assert abs(float(found.mean()) - float(x[0].double())) < 5 * error


def quadratic(params: Sequence[Tensor]) -> None:
    sum((p.double() ** 2).sum() for p in params).backward()  # type: ignore[union-attr]


@examples(100)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    aliased=st.lists(st.booleans(), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    fails=st.booleans(),
    path=st.sampled_from(PATHS),
)
def test_an_alias_sees_the_shift_and_pointers_come_back(
    sizes: list[int], aliased: list[bool], dtype: torch.dtype, fails: bool, path: str
) -> None:
    # a parameter that is alone in its memory lies elsewhere meanwhile; with an alias it must not
    params = [nn.Parameter(torch.ones(n, dtype=dtype) + n) for n in sizes]
    alias = [p.detach() if has else None for p, has in zip(params, aliased, strict=False)]
    pointers = [p.data_ptr() for p in params]
    theta = [p.detach().clone() for p in params]
    optimizer = GradRegOptimizer(torch.optim.SGD(params, lr=0.1), strength=0.1, radius=0.1)

    def look() -> None:
        for p, seen, was, value in zip(params, alias, pointers, theta, strict=True):
            if p.numel():
                assert not torch.equal(p, value)
                assert (p.data_ptr() == was) == (seen is not None)
            assert seen is None or torch.equal(p, seen)
        quadratic(params)
        if fails:
            raise ZeroDivisionError

    def step() -> None:
        optimizer.zero_grad()
        quadratic(params)
        with optimizer.perturbed():
            look()

    with on_path(path):
        for _ in range(2):  # the memory is used again
            if fails:
                with pytest.raises(ZeroDivisionError):
                    step()
            elif sum(sizes):
                step()
            assert [p.data_ptr() for p in params] == pointers
            assert all(torch.equal(p, v) for p, v in zip(params, theta, strict=True))
    for p, seen in zip(params, alias, strict=True):
        assert seen is None or seen.data_ptr() == p.data_ptr()


@examples(30)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(2_000, 6_000), min_size=1, max_size=3),
    options=st.sampled_from([{}, {"difference": "central"}, {"memory": "lean"}]),
    path=st.sampled_from(PATHS),
)
def test_a_large_model_is_measured_by_a_sample(
    seed: int, sizes: list[int], options: dict[str, Any], path: str
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> list[Tensor]:
        return [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]

    params, scales = [nn.Parameter(v) for v in draw()], [1.5 + v.sin() for v in draw()]
    optimizer = GradRegOptimizer(torch.optim.SGD(params, lr=0.1), ratio=0.5, radius=1e-3, **options)

    def backward() -> None:
        pairs = zip(params, scales, strict=True)
        sum((0.5 * s * p**2).sum() for p, s in pairs).backward()  # type: ignore[union-attr]

    with on_path(path), pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("flatopt.vectors.SAMPLE", "flatopt.window.SAMPLE", "flatopt.lean.SIGNS"):
            monkeypatch.setattr(name, 300)
        monkeypatch.setattr("flatopt.vectors.RUN", 3)
        for step in range(2):
            for p in params:
                p.grad = None
            backward()
            for _ in range(optimizer.passes):
                with optimizer.perturbed():
                    backward()
            g = torch.cat([s * p.detach() for p, s in zip(params, scales, strict=True)])
            h = torch.cat([s**2 * p.detach() for p, s in zip(params, scales, strict=True)])
            numbers = optimizer.stats.numbers()
            # the sum is exact for the strength that was used, which is about the right one
            found = torch.cat([p.grad for p in params if p.grad is not None])
            size = numbers["strength"] * float(h.norm())
            assert float((found - g - numbers["strength"] * h).norm()) <= 1e-6 * size + 1e-9
            if step or "memory" not in options:  # the first lean step has hardly a penalty
                assert size == pytest.approx(0.5 * float(g.norm()), rel=0.3)
            assert numbers["penalty_norm"] == pytest.approx(size, rel=0.3)
            assert numbers["curvature"] == pytest.approx(float(g @ h / (g @ g)), rel=0.3)
            optimizer.step()
