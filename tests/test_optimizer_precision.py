"""GradRegOptimizer in 16 bits: bf16 weights, autocast, the default radius, mixed dtypes."""

import copy
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatopt.precision
from flatopt import GradRegOptimizer
from flatopt.precision import (
    DEFAULT_RADIUS,
    computed_in,
    looks_low_precision,
    multiplies_in_tf32,
)
from flatopt.rounding import Dither
from tests.cases import Problem, distance, gr_step, same


class Wide:
    """A net large enough to tell a 16-bit gradient from a 32-bit one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 8)).to(dtype)
        self.params: list[Tensor] = list(self.model.parameters())
        self.x = torch.randn(3, 16, 24, dtype=dtype)
        self.autocast = False

    def backward(self, micro: int = 1) -> None:
        for batch in range(micro):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = (self.model(self.x[batch]).float() ** 2).mean() / micro
            loss.backward()

    def step(self, optimizer: GradRegOptimizer, micro: int = 1) -> None:
        optimizer.zero_grad()
        self.backward(micro)
        for _ in range(optimizer.passes):
            with optimizer.perturbed():
                self.backward(micro)
        optimizer.step()


@contextmanager
def warnings_about(text: str) -> Iterator[list[warnings.WarningMessage]]:
    found: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    assert all(text in str(w.message) for w in caught)
    found.extend(caught)


def used_radius(net: Wide, micro: int = 1, **options: Any) -> float:
    optimizer = GradRegOptimizer(torch.optim.SGD(net.params, lr=0.0), strength=0.1, **options)
    net.step(optimizer, micro)
    return optimizer.stats.numbers()["radius"]


@pytest.mark.parametrize("dtype", DEFAULT_RADIUS)
def test_default_radius_by_dtype(dtype: torch.dtype) -> None:
    assert used_radius(Wide(dtype)) == pytest.approx(DEFAULT_RADIUS[dtype], rel=1e-3)
    assert used_radius(Wide(dtype), radius=0.01) == pytest.approx(0.01, rel=1e-3)


def test_default_radius_of_mixed_dtypes() -> None:
    net = Wide()
    net.params.append(torch.ones(3, dtype=torch.float64, requires_grad=True))
    net.params[-1].grad = torch.ones(3, dtype=torch.float64)
    assert used_radius(net) == pytest.approx(DEFAULT_RADIUS[torch.float32])
    net.params.append(torch.ones(3, dtype=torch.bfloat16, requires_grad=True))
    assert used_radius(net) == pytest.approx(
        DEFAULT_RADIUS[torch.float32]
    )  # without a gradient it is not perturbed


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_autocast_is_seen_in_the_gradients(autocast: bool, micro: int) -> None:
    net = Wide()
    net.autocast = autocast
    net.backward(micro)
    grads = [p.grad for p in net.params if p.grad is not None]
    assert looks_low_precision(grads) is autocast
    expected = DEFAULT_RADIUS[torch.bfloat16 if autocast else torch.float32]
    assert used_radius(net, micro) == pytest.approx(expected)


def test_precision_is_not_judged_by_an_empty_or_broken_gradient() -> None:
    # a first step without signal, or with NaN, must not settle the radius of all later ones
    for autocast, broken in [(True, 0.0), (False, float("nan")), (False, float("inf"))]:
        net = Wide()
        optimizer = GradRegOptimizer(torch.optim.SGD(net.params, lr=0.0), strength=0.1)
        for p in net.params:
            p.grad = torch.full_like(p, broken)
        with optimizer.perturbed():
            pass
        optimizer.step()
        net.autocast = autocast
        net.step(optimizer)
        expected = DEFAULT_RADIUS[torch.bfloat16 if autocast else torch.float32]
        assert optimizer.stats.numbers()["radius"] == pytest.approx(expected)


def test_a_net_too_small_to_tell_autocast_says_that_nothing_was_added() -> None:
    torch.manual_seed(0)
    net = Wide()
    net.model = nn.Sequential(nn.Linear(24, 4), nn.Tanh(), nn.Linear(4, 2))
    net.params = list(net.model.parameters())
    net.autocast = True
    base = torch.optim.SGD(net.params, lr=0.0)
    optimizer = GradRegOptimizer(base, ratio=1.0, radius=1e-9)
    net.step(optimizer)
    assert "g2 equals g1 exactly" in (optimizer.stats.skipped or "")
    assert "radius=3e-4" in (optimizer.stats.skipped or "")
    assert optimizer.stats.numbers()["strength"] == 0.0
    assert optimizer.state_dict()["gradreg"]["product_norm"] == 0.0
    assert optimizer.state_dict()["gradreg"]["grad_norm"] == 0.0
    g1 = [p.grad.clone() for p in net.params if p.grad is not None]
    optimizer.zero_grad()
    net.backward()
    assert same(g1, [p.grad for p in net.params])
    optimizer.radius = 3e-4
    net.step(optimizer)
    assert optimizer.stats.skipped is None


class OnCuda:
    """What of a parameter the question of TF32 looks at."""

    def __init__(self, dtype: torch.dtype = torch.float32, kind: str = "cuda") -> None:
        self.dtype, self.device = dtype, torch.device(kind)

    def dim(self) -> int:
        return 2


def test_tf32_is_low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [OnCuda(), OnCuda(torch.float64), OnCuda(kind="cpu")]
    for precision, expected in [("highest", False), ("high", True), ("medium", True)]:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda p=precision: p)
        assert [multiplies_in_tf32([c]) for c in cases] == [expected, False, False]  # type: ignore[list-item]
        assert (computed_in([cases[0]], []) == "tf32") is expected  # type: ignore[list-item]

    def refuse() -> str:
        raise RuntimeError("a mix of the older and the newer settings")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    for precision, expected in [("tf32", True), ("ieee", False)]:
        monkeypatch.setattr(
            torch.backends.cuda, "matmul", types.SimpleNamespace(fp32_precision=precision)
        )
        assert multiplies_in_tf32([cases[0]]) is expected  # type: ignore[list-item]


def test_tf32_sets_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatopt.precision, "multiplies_in_tf32", lambda params: True)
    assert used_radius(Wide()) == pytest.approx(DEFAULT_RADIUS[torch.bfloat16])


@pytest.mark.parametrize("mode", ["bf16", "autocast", "float32"])
def test_eps_in_16_bits_warns_once(mode: str) -> None:
    net = Wide(torch.bfloat16 if mode == "bf16" else torch.float32)
    net.autocast = mode == "autocast"
    base = torch.optim.SGD(net.params, lr=0.1)
    optimizer = GradRegOptimizer(base, strength=0.1, eps=1e-3)
    with warnings_about("Leave eps out: the default radius 0.0003") as found:
        for _ in range(3):
            net.step(optimizer)
    assert len(found) == (mode != "float32")
    if found:  # it points at the user's line
        assert found[0].filename == __file__


def test_bf16_combination_is_in_float32() -> None:
    net = Wide(torch.bfloat16)
    before, pointers = [p.detach().clone() for p in net.params], [p.data_ptr() for p in net.params]
    net.backward()
    g1 = [p.grad.float() for p in net.params if p.grad is not None]
    base = torch.optim.SGD(net.params, lr=0.0)
    optimizer = GradRegOptimizer(base, strength=0.1, radius=3e-3, difference="forward")
    g2: list[Tensor] = []
    with optimizer.perturbed():
        shifted = [p.detach().clone() for p in net.params]
        net.backward()
        g2 += [p.grad.float() for p in net.params if p.grad is not None]
    assert same([p.detach() for p in net.params], before)
    assert [p.data_ptr() for p in net.params] == pointers
    length = torch.cat([g.flatten() for g in g1]).norm()
    eps = 3e-3 * torch.cat([p.float().flatten() for p in before]).norm() / length
    dither = Dither(0)  # of the first pass of the first step
    expected = [
        dither.round(p.float().add(g, alpha=float(eps)), torch.bfloat16)
        for p, g in zip(before, g1, strict=True)
    ]
    assert same(shifted, expected)
    for p, a, b in zip(net.params, g1, g2, strict=True):
        assert p.grad is not None
        assert p.grad.dtype == torch.bfloat16
        combined = a + 0.1 / eps * (b - a)
        # one rounding to 8 bits, of a value known to float32
        assert torch.allclose(p.grad.float(), combined, rtol=2**-8, atol=1e-6)
    moved = torch.cat([(a.float() - b.float()).flatten() for a, b in zip(shifted, before)])  # noqa: B905
    realised = float(moved.norm() / (eps * length))
    assert optimizer.stats.numbers()["realised_step"] == pytest.approx(realised, rel=1e-4)


def test_realised_step_shows_a_step_that_rounds_away() -> None:
    net = Wide(torch.bfloat16)
    for radius, low, high in [(1e-6, 0.0, 0.5), (3e-2, 0.95, 1.05)]:
        optimizer = GradRegOptimizer(
            torch.optim.SGD(net.params, lr=0.0), strength=0.1, radius=radius
        )
        net.step(optimizer)
        assert low <= optimizer.stats.numbers()["realised_step"] <= high


def penalty(net: Wide, **options: Any) -> Tensor:
    """What GR adds to the gradient, as one vector."""
    net.backward()
    g1 = [p.grad.double() for p in net.params if p.grad is not None]
    net.step(GradRegOptimizer(torch.optim.SGD(net.params, lr=0.0), strength=30.0, **options))
    g = [p.grad.double() for p in net.params if p.grad is not None]
    return torch.cat([(b - a).flatten() for a, b in zip(g1, g, strict=True)])


@pytest.mark.parametrize("mode", ["bf16", "autocast"])
def test_default_radius_is_above_the_rounding_noise(mode: str) -> None:
    net, true = Wide(torch.bfloat16 if mode == "bf16" else torch.float32), Wide(torch.float64)
    with torch.no_grad():
        for p, q in zip(true.params, net.params, strict=True):
            p.copy_(q)
    true.x = net.x.double()
    net.autocast = mode == "autocast"
    exact = penalty(true, difference="exact")
    default, short = (
        float(torch.cosine_similarity(penalty(net, radius=radius), exact, dim=0))
        for radius in (None, DEFAULT_RADIUS[torch.float32])
    )
    assert default > 0.25 > 2 * short


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16,) * 2])
def test_foreach_over_mixed_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    problem = Problem(torch.float32)
    problem.model[0].to(dtypes[0])
    problem.model[2].to(dtypes[1])
    cast = problem.model[2].register_forward_pre_hook(lambda _, args: (args[0].to(dtypes[1]),))
    problem.batches = [(x.to(dtypes[0]), y.to(dtypes[1])) for x, y in problem.batches]
    plain = copy.deepcopy(problem)
    plain.params = list(plain.model.parameters())
    assert cast is not None
    base = torch.optim.SGD(problem.params, lr=0.1, foreach=True)
    optimizer = GradRegOptimizer(base, strength=1e-2, radius=1e-2)
    gr_step(problem, optimizer, "closure")
    assert optimizer.stats.skipped is None
    assert [p.dtype for p in problem.params] == [p.dtype for p in plain.params]
    assert 0 < distance(problem.values(), plain.values()) < 0.5


def test_one_autocast_block_around_both_passes() -> None:
    # autocast keeps 16-bit copies of the weights in its block: theta' must not meet theta's
    def reversed_share(*, outside: bool) -> float:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
        )
        x, y = torch.randn(64, 16), torch.randn(64, 1)
        optimizer = GradRegOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), ratio=1.0)

        def closure() -> float:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(x).float() - y).square().mean()
            loss.backward()
            return loss.item()

        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            optimizer.step(closure)
        assert optimizer.stats.skipped is None
        return optimizer.stats.numbers()["reversed"]

    assert reversed_share(outside=True) == reversed_share(outside=False) > 0
