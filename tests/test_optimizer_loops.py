"""Loops around a GradRegOptimizer: two optimizers, clipping, accelerate; waits for the device."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flatopt.window
from flatopt import GradRegOptimizer
from tests.cases import Problem, distance, gr_step, same, two_phases

EPS, STRENGTH = 1e-2, 0.1


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.1)


def pair(problem: Problem, strengths: tuple[float, float]) -> list[GradRegOptimizer]:
    """One optimizer for the first layer, one for the second."""
    return [
        GradRegOptimizer(sgd(params), strength, eps=EPS)
        for params, strength in zip(
            (problem.params[:2], problem.params[2:]), strengths, strict=True
        )
    ]


def test_two_optimizers() -> None:
    problem, whole = Problem(), Problem()
    a, b = pair(problem, (STRENGTH, STRENGTH))
    one = GradRegOptimizer(sgd(whole.params), STRENGTH, eps=EPS)
    for _ in range(3):
        a.zero_grad()
        b.zero_grad()
        problem.backward()
        with a.perturbed(), b.perturbed():
            problem.backward()
        a.step()
        b.step()
        gr_step(whole, one, "perturbed")
    assert distance(problem.values(), whole.values()) < 1e-12


def test_a_second_optimizer_of_strength_zero_keeps_its_gradient() -> None:
    problem, whole = Problem(), Problem()
    a, b = pair(problem, (STRENGTH, 0.0))
    one = GradRegOptimizer(sgd(whole.params), STRENGTH, eps=EPS, exclude=whole.params[2:])
    problem.backward()
    with a.perturbed(), b.perturbed():
        problem.backward()
    two_phases(whole, one)
    assert same(problem.grads(), whole.grads())


def test_clipping_in_a_hook_of_the_base() -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(sgd(problem.params), STRENGTH, eps=EPS)
    expected = problem.simple(STRENGTH, EPS)
    before = problem.values()

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(problem.params, 1e-3)

    optimizer.base.register_step_pre_hook(clip)
    gr_step(problem, optimizer, "closure")
    moved = [(b - a) / 0.1 for a, b in zip(problem.values(), before, strict=True)]
    length = float(torch.cat([g.flatten() for g in expected]).norm())
    assert distance(moved, [1e-3 / length * g for g in expected]) < 1e-5


def test_the_inner_optimizer_goes_on_after_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    problem, plain = Problem(), Problem()
    optimizer = GradRegOptimizer(sgd(problem.params), STRENGTH, eps=EPS)
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    for _ in range(2):
        prepared.zero_grad()
        problem.backward()
        with optimizer.perturbed():
            problem.backward()
        prepared.step()
    other = GradRegOptimizer(sgd(plain.params), STRENGTH, eps=EPS)
    for _ in range(2):
        gr_step(plain, other, "perturbed")
    assert same(problem.values(), plain.values())


class Reads(TorchDispatchMode):
    """Counts the single numbers that are fetched from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("difference", ["forward", "central", "exact"])
def test_a_step_waits_for_the_device_twice(
    difference: str, exclude: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(
        sgd(problem.params), difference=difference, exclude=problem.params[:1] if exclude else ()
    )
    gr_step(problem, optimizer, "closure")  # the precision is settled by the first gradient
    reads, original = [], flatopt.window.read

    def read(values: Any) -> list[float]:
        reads.append(len(values))
        return original(values)

    monkeypatch.setattr(flatopt.window, "read", read)
    with Reads() as mode:
        optimizer.zero_grad()
        problem.loss().backward()
        for _ in range(optimizer.passes):
            with optimizer.perturbed():
                problem.loss().backward()
    optimizer.step()
    assert mode.count == 0
    assert len(reads) == 2
