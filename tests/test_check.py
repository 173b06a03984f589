"""gradreg_check: what it measures, recommends and refuses, and that it leaves no trace."""

import pytest
import torch
from torch import nn

from flatopt import gradreg_check
from tests.cases import Problem, same


def closure(problem: Problem):
    def run() -> None:
        problem.model.zero_grad()
        problem.backward()

    return run


def test_float32() -> None:
    problem = Problem(torch.float32)
    result = gradreg_check(problem.model, closure(problem))
    assert result.used.radius == 3e-6
    assert result.used.cosine > 0.999
    assert result.used.realised_step == pytest.approx(1.0, abs=0.01)
    assert result.precision != "16 bits"
    assert (
        result.recommended_radius
        == result.best.radius
        == min(result.grid, key=lambda r: r.error).radius
    )
    lines = str(result).splitlines()
    assert lines[0] == "forward difference, gradients computed in float32"
    assert lines[1].split() == ["radius", "cosine", "error", "realised", "step"]
    assert len(lines) == 2 + len(result.grid)
    assert sum("<- used" in line for line in lines) == 1
    assert sum("<- recommended" in line for line in lines) == 1


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_error_grows_with_the_radius(difference: str) -> None:
    problem = Problem()
    result = gradreg_check(problem.model, closure(problem), difference=difference, radius=1e-3)
    assert result.used.radius == 1e-3
    errors = {r.radius: r.error for r in result.grid}
    factor = 10 if difference == "forward" else 100
    assert errors[1e-2] / errors[1e-3] == pytest.approx(factor, rel=0.2)


def test_strength_from_its_norms() -> None:
    # L = sum(3 w^2 / 2): H = 3, so |g| / |Hg| = 1/3
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    result = gradreg_check([w], lambda: (1.5 * w**2).sum().backward())
    assert result.grad_norm / result.product_norm == pytest.approx(1 / 3)
    assert result.used.radius == 1e-7


def test_raises_with_the_radius_to_use() -> None:
    problem = Problem(torch.float32)
    with pytest.raises(ValueError, match=r"Use GradRegOptimizer\(..., radius=") as caught:
        gradreg_check(problem.model, closure(problem), radius=1e-9)
    assert "wanted >= 0.9" in str(caught.value)
    assert "<- recommended" in str(caught.value)
    result = gradreg_check(problem.model, closure(problem), radius=1e-9, raise_error=False)
    assert result.used.cosine < 0.9


@pytest.mark.parametrize(
    ("dtype", "advice"), [(torch.float32, "difference='central' or"), (torch.bfloat16, "16 bits")]
)
def test_raises_where_no_radius_is_accurate(dtype: torch.dtype, advice: str) -> None:
    problem = Problem(dtype)
    with pytest.raises(ValueError, match=advice):
        gradreg_check(problem.model, closure(problem), min_cosine=1.1)


def test_leaves_no_trace() -> None:
    problem = Problem(layer=nn.Dropout(0.5))
    problem.backward(2)
    before, grads = problem.values(), problem.grads()
    state = torch.get_rng_state()
    gradreg_check(problem.model, closure(problem), exclude=[problem.params[0]], raise_error=False)
    assert same(problem.values(), before)
    assert same(problem.grads(), grads)
    assert torch.equal(torch.get_rng_state(), state)


def test_uses_the_same_random_numbers_at_each_point() -> None:
    problem = Problem(layer=nn.Dropout(0.5))
    torch.manual_seed(1)
    assert gradreg_check(problem.model, closure(problem)).used.cosine > 0.999


def test_nothing_to_check() -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="all are frozen or excluded"):
        gradreg_check(problem.model, closure(problem), exclude=problem.params)
    with pytest.raises(ValueError, match="'forward' or 'central'"):
        gradreg_check(problem.model, closure(problem), difference="exact")
    with pytest.raises(RuntimeError, match=r"must compute the loss and call loss.backward\(\)"):
        gradreg_check(problem.model, lambda: None)
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="H g is exactly zero"):
        gradreg_check([w], lambda: w.sum().backward())


def test_buffers_are_as_before() -> None:
    problem = Problem(layer=nn.BatchNorm1d(5))
    problem.backward()
    before = {n: b.clone() for n, b in problem.model.named_buffers()}
    assert len(before) == 3
    gradreg_check(problem.model, closure(problem), raise_error=False)
    assert same(dict(problem.model.named_buffers()), before)


def test_bad_arguments() -> None:
    problem = Problem()
    for exclude in ("0", ["0.weight"], problem.model[0], problem.model, 3):
        with pytest.raises(TypeError, match="exclude takes parameters, got"):
            gradreg_check(problem.model, closure(problem), exclude=exclude)  # type: ignore[arg-type]
    for radius in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="radius must be a finite number > 0"):
            gradreg_check(problem.model, closure(problem), radius=radius)
    one = gradreg_check(problem.model, closure(problem), exclude=problem.params[0])  # type: ignore[arg-type]
    assert one == gradreg_check(problem.model, closure(problem), exclude=[problem.params[0]])
