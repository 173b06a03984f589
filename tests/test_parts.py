"""`fraction` and batch="halves": the penalty on a part of the batch, or between halves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flatopt import GradRegOptimizer
from tests.cases import Problem, distance, same

STRENGTH = 0.3
KINDS = [("forward", 1e-6), ("central", 1e-8), ("exact", 1e-13)]


def optimizer_for(problem: Problem, **options: Any) -> GradRegOptimizer:
    return GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1), **options)


def gradient(problem: Problem, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, problem.params, create_graph=True))


def by_fraction(problem: Problem, optimizer: GradRegOptimizer, share: float = 1 / 3) -> None:
    """Three micro-batches, of which the first is replayed; weights by ``share``."""
    rest = (1 - share) / 2
    (share * problem.loss(0)).backward()
    optimizer.mark_part(share)
    (rest * problem.loss(1)).backward()
    (rest * problem.loss(2)).backward()
    for _ in range(optimizer.passes):
        with optimizer.perturbed():
            (share * problem.loss(0)).backward()


@pytest.mark.parametrize("share", [1 / 3, 0.7])
@pytest.mark.parametrize(("difference", "error"), KINDS)
def test_fraction_is_the_part_s_curvature_along_the_whole_gradient(
    difference: str, error: float, share: float
) -> None:
    problem = Problem()
    rest = (1 - share) / 2
    whole = share * problem.loss(0) + rest * (problem.loss(1) + problem.loss(2))
    g = [t.detach() for t in gradient(problem, whole)]
    along = sum((a * b).sum() for a, b in zip(gradient(problem, problem.loss(0)), g, strict=True))
    product = torch.autograd.grad(along, problem.params)  # type: ignore[arg-type]
    expected = [a + STRENGTH * h for a, h in zip(g, product, strict=True)]
    optimizer = optimizer_for(
        problem, strength=STRENGTH, difference=difference, fraction=share, radius=1e-6
    )
    by_fraction(problem, optimizer, share)
    assert distance(problem.grads(), expected) < error


@pytest.mark.parametrize(("difference", "error"), [("forward", 1e-9), ("central", 2e-3)])
def test_fraction_with_lean_memory(difference: str, error: float) -> None:
    found = []
    for memory in ("fast", "lean"):
        problem = Problem()
        optimizer = optimizer_for(
            problem, strength=STRENGTH, difference=difference, fraction=1 / 3, memory=memory
        )
        by_fraction(problem, optimizer)
        found.append(problem.grads())
    assert distance(*found) < error


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize(("difference", "error"), KINDS)
def test_halves_descend_the_product_of_their_gradients(
    difference: str, error: float, share: float
) -> None:
    problem = Problem()
    a, b = (gradient(problem, problem.loss(i)) for i in range(2))
    penalty = 0.5 * STRENGTH * sum((x * y).sum() for x, y in zip(a, b, strict=True))
    whole = share * problem.loss(0) + (1 - share) * problem.loss(1)
    expected = torch.autograd.grad(whole + penalty, problem.params)
    optimizer = optimizer_for(
        problem, strength=STRENGTH, difference=difference, batch="halves", radius=1e-6
    )
    before = problem.values()
    (share * problem.loss(0)).backward()
    optimizer.mark_part(share)
    ((1 - share) * problem.loss(1)).backward()
    count = optimizer.passes
    assert count == 2 * (2 if difference == "central" else 1)
    for number in range(count):
        with optimizer.perturbed():
            if number < count // 2:
                ((1 - share) * problem.loss(1)).backward()
            else:
                (share * problem.loss(0)).backward()
    assert same(problem.values(), before)
    assert distance(problem.grads(), expected) < error


def test_halves_with_an_absolute_step() -> None:
    # eps is a multiple of each half's own gradient, whatever its share
    problem, shares = Problem(), (0.25, 0.75)
    optimizer = optimizer_for(problem, strength=STRENGTH, eps=1e-2, batch="halves")
    start = problem.values()
    moved = []
    (shares[0] * problem.loss(0)).backward()
    optimizer.mark_part(shares[0])
    (shares[1] * problem.loss(1)).backward()
    for number in range(optimizer.passes):
        with optimizer.perturbed():
            moved.append([p.detach() - s for p, s in zip(problem.params, start, strict=True)])
            (shares[1 - number] * problem.loss(1 - number)).backward()
    for i in range(2):
        expected = [1e-2 * g for g in torch.autograd.grad(problem.loss(i), problem.params)]
        assert distance(moved[i], expected) < 1e-10


@pytest.mark.parametrize("batch", [{"fraction": 0.5}, {"batch": "halves"}])
def test_a_plain_step_costs_no_copy(batch: dict[str, Any]) -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, strength=0.0, **batch)
    problem.backward()
    optimizer.mark_part(0.5)
    assert optimizer._part is None
    assert optimizer.passes == 0
    optimizer.step()


def test_a_dropped_batch_takes_its_part_with_it() -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, strength=STRENGTH, fraction=0.5)
    problem.backward()
    optimizer.mark_part(0.5)
    optimizer.zero_grad()
    problem.backward()
    with pytest.raises(RuntimeError, match=r"without mark_part"), optimizer.perturbed():
        pass


@pytest.mark.parametrize("batch", [{"fraction": 0.5}, {"batch": "halves"}])
def test_misuse(batch: dict[str, Any]) -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, strength=STRENGTH, **batch)
    with pytest.raises(RuntimeError, match="a closure computes the whole batch"):
        optimizer.step(problem.closure(optimizer))
    with pytest.raises(RuntimeError, match="found no gradient"):
        optimizer.mark_part(0.5)
    problem.backward()
    with pytest.raises(RuntimeError, match=r"mark_part\(0\.\d+\)"), optimizer.perturbed():
        pass
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="share must be between"):
            optimizer.mark_part(share)
    optimizer.mark_part(0.5)
    with pytest.raises(RuntimeError, match="before the passes"), optimizer.perturbed():
        optimizer.mark_part(0.5)
    whole = optimizer_for(problem, strength=STRENGTH)
    with pytest.raises(RuntimeError, match="neither was given"):
        whole.mark_part(0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "at most 1"),
        ({"batch": "thirds"}, "whole, halves"),
        ({"memory": "tiny"}, "fast, lean"),
        ({"fraction": 0.5, "batch": "halves"}, "not both"),
    ],
)
def test_bad_settings(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        optimizer_for(Problem(), **options)


def test_an_error_on_opening_leaves_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, strength=STRENGTH, batch="halves")
    problem.backward()
    optimizer.mark_part(0.5)
    before = problem.grads()
    monkeypatch.setattr("flatopt.window.Window._alphas", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), optimizer.perturbed():
        pass
    assert same(problem.grads(), before)


def test_the_copy_of_the_part_is_let_go_after_the_last_pass() -> None:
    problem = Problem()
    optimizer = optimizer_for(problem, strength=STRENGTH, fraction=1 / 3)
    by_fraction(problem, optimizer)
    assert optimizer._part is None
    assert optimizer._window is None
