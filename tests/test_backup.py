"""flatopt.backup and rounding: values come back bit for bit from every kind of backup."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flatopt import GradRegOptimizer, backup
from flatopt.backup import Copied, Counted, Keeper, Swapped, alone
from flatopt.perturb import displaced
from flatopt.rounding import Dither
from tests.test_perturb import bits, tensor_lists

KEEPERS = {
    "copy": lambda: Keeper(),
    "offload": lambda: Keeper(offload=True),
    "counts": lambda: Keeper(counts=True),
    "pool": lambda: Keeper(pool={}),
}


@pytest.mark.parametrize("kind", KEEPERS)
@settings(max_examples=60, deadline=None)
@given(
    params=tensor_lists(special=True),
    alpha=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, -1e3]),
    seed=st.integers(0, 9),
    fails=st.booleans(),
)
def test_every_backup_is_exact(
    kind: str, params: list[Tensor], alpha: float, seed: int, fails: bool
) -> None:
    torch.manual_seed(0)
    steps = [torch.randn(p.shape, dtype=torch.float64).to(p.dtype) for p in params]
    before = [(bits(p), p.data_ptr()) for p in params]
    try:
        with displaced(params, steps, alpha, True, KEEPERS[kind](), Dither(seed)):
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    for p, (value, pointer) in zip(params, before, strict=True):
        assert torch.equal(bits(p), value)
        assert p.data_ptr() == pointer


def test_many_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "PIECE", 7)
    for kind, make in KEEPERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            p = torch.randn(5, 11).to(dtype)
            p[0, :3] = 0.0
            value = bits(p)
            with displaced([p], [torch.randn(5, 11)], 1e-2, False, make(), Dither(1)):
                assert not torch.equal(bits(p), value), kind
            assert torch.equal(bits(p), value), kind


@pytest.mark.parametrize("kind", ["copy", "counts"])
def test_an_interruption_between_two_ranges(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "PIECE", 4)
    kinds = {"copy": Copied, "counts": Counted}
    for at in range(3):
        for after in (False, True):  # the range was saved, and not written to yet
            calls = []
            original = kinds[kind].save

            def save(self, span, part, moved, at=at, after=after, original=original, calls=calls):  # type: ignore[no-untyped-def]
                calls.append(span)
                if len(calls) == at + 1 and not after:
                    raise KeyboardInterrupt
                original(self, span, part, moved)
                if len(calls) == at + 1:
                    raise KeyboardInterrupt

            p = torch.linspace(1, 2, 12).bfloat16()
            value = bits(p)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
                patch.setattr(kinds[kind], "save", save)
                with displaced([p], [torch.ones(12)], 0.1, False, KEEPERS[kind]()):
                    pass
            assert torch.equal(bits(p), value)


@pytest.mark.parametrize("kind", KEEPERS)
def test_ctrl_c_while_values_are_put_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "PIECE", 4)
    params = [nn.Parameter(torch.linspace(1, 2, 12).to(d)) for d in (torch.float32, torch.bfloat16)]
    values = [bits(p) for p in params]
    original, left = torch.Tensor.copy_, [3]

    def copy_(self: Tensor, *args: object) -> Tensor:
        result = original(self, *args)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return result

    context = displaced(params, [torch.ones(12)] * 2, 0.1, False, KEEPERS[kind]())
    with pytest.raises(KeyboardInterrupt), context:  # noqa: PT012
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        left[0] = 2 if kind == "counts" else 1
    for p, value in zip(params, values, strict=True):
        assert torch.equal(bits(p), value)


def test_counts_take_half_the_memory() -> None:
    torch.manual_seed(0)
    p = (0.02 * torch.randn(1000, 1000)).bfloat16()
    moved = Dither(0).round(p.float() + 6e-6 * torch.randn(1000, 1000), p.dtype)
    counted = Counted(p)
    counted.save(None, p, moved)
    ((_, counts, far, old),) = counted.counts
    held = sum(t.numel() * t.element_size() for t in (counts, far, old))
    assert far.numel() > 0
    assert held < 0.51 * p.numel() * 2


def test_memory_is_used_again_and_forgotten_with_its_parameter() -> None:
    keeper = Keeper(pool={})
    p = nn.Parameter(torch.ones(8))
    assert keeper.pool is not None
    with displaced([p], [torch.ones(8)], 1.0, False, keeper):
        pass
    (space,) = keeper.pool.values()
    with displaced([p], [torch.ones(8)], 1.0, False, keeper):
        assert p.data_ptr() == space.data_ptr()
    keeper.forget_all_but([])
    assert keeper.pool == {}


def test_a_parameter_is_swapped_only_where_nobody_else_sees_its_memory() -> None:
    p = nn.Parameter(torch.ones(4))
    assert alone(p)
    view = p.detach()[1:]
    assert not alone(p)
    with displaced([p], [torch.ones(4)], 1.0, False, Keeper(pool={})):
        assert view.tolist() == [2.0, 2.0, 2.0]
    del view
    assert alone(p)
    array = p.detach().numpy()
    assert not alone(p)
    del array
    assert not alone(nn.Parameter(torch.ones(4, 4).t()))
    assert not alone(nn.Parameter(torch.ones(4).bfloat16()))
    assert not alone(nn.Parameter(torch.ones(8)[:4]))
    assert not alone(torch.ones(4).share_memory_().requires_grad_())
    assert isinstance(Keeper(pool={}).begin(p), Swapped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_at_random_is_right_on_average(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64) * torch.logspace(-3, 3, 64)
    total = torch.zeros(64, dtype=torch.float64)
    neighbours = True
    for seed in range(4000):
        y = Dither(seed).round(x.clone(), dtype)
        spacing = torch.finfo(dtype).eps * x.abs()
        neighbours &= bool(((y.float() - x).abs() <= spacing).all())
        total += y.double()
    assert neighbours
    error = (total / 4000 - x.double()) / x.abs().double()
    # a uniform rounding has a standard deviation of at most half the spacing
    assert error.abs().max() < 5 * 0.5 * torch.finfo(dtype).eps / math.sqrt(4000)


def test_rounding_keeps_what_is_representable_and_the_user_s_random_numbers() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e-30, math.inf, -math.inf])
    state = torch.get_rng_state()
    y = Dither(3).round(x.clone(), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    exact = [0, 1, 2, 3, 5, 6]
    assert torch.equal(y.float()[exact], x[exact])
    assert torch.equal(Dither(3).round(x.clone(), torch.bfloat16), y)


def test_both_passes_and_all_steps_round_differently_and_alike_everywhere() -> None:
    def shifted() -> list[Tensor]:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(400).bfloat16())
        optimizer = GradRegOptimizer(torch.optim.SGD([p], lr=0.0), strength=0.1)
        seen = []
        for _ in range(2):
            optimizer.zero_grad()
            (p.float() ** 2).sum().backward()
            for _ in range(optimizer.passes):
                with optimizer.perturbed():
                    seen.append(p.detach() - 0.0)
                    (p.float() ** 2).sum().backward()
            optimizer.step()
        return seen

    first, again = shifted(), shifted()
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    moved = [(t != first[0]).float().mean().item() for t in first[1:]]
    assert min(moved) > 0


@pytest.mark.parametrize("pool", [True, False])
def test_a_graph_made_at_theta_is_refused_at_theta_prime(pool: bool) -> None:
    w = nn.Parameter(torch.randn(4))
    loss = (w * w).sum()
    keeper = Keeper(pool={}) if pool else Keeper()
    stale = pytest.raises(RuntimeError, match="modified by an inplace operation")
    with stale, displaced([w], [torch.ones(4)], 0.1, False, keeper):
        loss.backward()
