"""Exclusions and settings: what they mean, and how wrong ones are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flatopt import GradRegOptimizer
from flatopt.guards import excluded_ids
from tests.cases import Problem, distance, gr_step, same, two_phases


def make(problem: Problem, difference: str = "forward", **options: object) -> GradRegOptimizer:
    base = torch.optim.Adam(problem.params, lr=0.1)
    settings: dict = {"strength": 0.1, "difference": difference, **options}
    return GradRegOptimizer(base, **settings)


# ---- excluded parameters ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["names", "prefix", "one name", "params", "tensor", "iterator"])
def test_excluded_parameters(form: str) -> None:
    problem = Problem()
    weight, bias = problem.model[2].parameters()
    forms = {
        "names": ["2.weight", "2.bias"],
        "prefix": ["2"],
        "one name": "2",
        "params": [weight, bias],
        "tensor": weight,
        "iterator": problem.model[2].parameters(),
    }
    left_out = [weight] if form == "tensor" else [weight, bias]
    base = torch.optim.SGD(problem.model.named_parameters(), lr=0.1)
    optimizer = GradRegOptimizer(base, strength=0.1, eps=1e-2, exclude=forms[form])
    inside = [p for p in problem.params if all(p is not q for q in left_out)]
    problem.backward()
    g1 = problem.grads()
    before = problem.values()
    with optimizer.perturbed():
        moved = [not torch.equal(p, b) for p, b in zip(problem.params, before, strict=True)]
        problem.backward()
    assert moved == [any(p is q for q in inside) for p in problem.params]
    for p, g in zip(problem.params, g1, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g) == any(p is q for q in left_out)
    problem.params = inside  # GR over the others alone
    assert distance(problem.grads(), problem.simple(0.1, 1e-2)) < 1e-12


def test_every_parameter_excluded() -> None:
    problem, plain = Problem(), Problem()
    optimizer = make(problem, exclude=problem.params)
    for _ in range(2):
        two_phases(problem, optimizer)  # the first is thrown away
    optimizer.step()
    assert "every parameter is excluded" in (optimizer.stats.skipped or "")
    base = torch.optim.Adam(plain.params, lr=0.1)
    base.step(plain.closure(base))
    assert same(problem.values(), plain.values())


class Tower(nn.Module):
    """Names with several parts, one of them the beginning of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(4, 3)
        self.embed = nn.Linear(3, 3)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(12))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("item", "count"),
    [("embed_tokens", 1), ("embed", 2), ("layers.1", 2), ("layers", 24), ("layers.1.bias", 1)],
)
def test_names_match_whole_parts_anywhere(item: str, count: int, compiled: bool) -> None:
    inner = nn.ModuleDict({"model": Tower()})
    model = torch.compile(inner, backend="eager") if compiled else inner
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)  # type: ignore[union-attr]
    assert len(excluded_ids([item], base.param_groups)) == count
    assert GradRegOptimizer(base, exclude=item).exclude == (item,)
    if compiled:
        assert len(excluded_ids([f"_orig_mod.model.{item}"], base.param_groups)) == count
    for part in ("embed_token", "ayers", "layers.1.", "layer", ""):
        with pytest.raises(ValueError, match="no parameter is named"):
            GradRegOptimizer(base, exclude=[part])


def test_unknown_exclusions() -> None:
    problem = Problem()
    named = torch.optim.SGD(problem.model.named_parameters(), lr=0.1)
    plain = torch.optim.SGD(problem.params, lr=0.1)
    with pytest.raises(ValueError, match=r"named '2.weigh'; known names begin with \['0.bias'"):
        GradRegOptimizer(named, exclude=["2.weigh"])
    with pytest.raises(ValueError, match=r"build it from model.named_parameters\(\)"):
        GradRegOptimizer(plain, exclude=["2.weight"])
    with pytest.raises(ValueError, match="does not step"):
        GradRegOptimizer(plain, exclude=[torch.ones(2)])
    with pytest.raises(TypeError, match=r"exclude=module.parameters\(\)"):
        GradRegOptimizer(plain, exclude=problem.model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got Linear; .* exclude=module.parameters\(\)"):
        GradRegOptimizer(plain, exclude=problem.model[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes parameters and names, got NoneType"):
        GradRegOptimizer(plain, exclude=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes parameters and names, got int"):
        GradRegOptimizer(plain, exclude=[0])  # type: ignore[list-item]


# ---- settings -----------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"strength": -1.0}, ValueError, "strength must be a finite number >= 0"),
    ({"strength": float("nan")}, ValueError, "strength must be a finite number"),
    ({"strength": float("inf")}, ValueError, "strength must be a finite number"),
    ({"strength": "much"}, TypeError, "a number or a callable"),
    ({"strength": 1.0, "ratio": 1.0}, ValueError, "strength or ratio, not both"),
    ({"ratio": -0.1}, ValueError, "ratio must be a finite number >= 0"),
    ({"radius": 1e-3, "eps": 1e-3}, ValueError, "radius or eps, not both"),
    ({"radius": 0.0}, ValueError, "radius must be a finite number > 0"),
    ({"eps": -1e-3}, ValueError, "eps must be a finite number > 0"),
    ({"eps": float("nan")}, ValueError, "eps must be a finite number > 0"),
    ({"max_ratio": 0.0}, ValueError, "max_ratio must be a finite number > 0"),
    ({"difference": "backward"}, ValueError, "one of auto, forward, central, exact"),
    ({"every": 0}, ValueError, "every must be a whole number >= 1"),
    ({"every": 1.5}, ValueError, "every must be a whole number >= 1"),
    ({"warmup": -1}, ValueError, "warmup must be a whole number >= 0"),
    ({"warmup": 0.5}, ValueError, "warmup must be a whole number >= 0"),
    ({"warmup": float("inf")}, ValueError, "warmup must be a whole number >= 0"),
    ({"warmup": float("nan")}, ValueError, "warmup must be a whole number >= 0"),
    ({"warmup": "3"}, TypeError, "warmup must be a whole number >= 0, got '3'"),
    ({"every": None}, TypeError, "every must be a whole number >= 1, got None"),
    ({"ratio": "1"}, TypeError, "ratio must be a finite number >= 0, got '1'"),
    ({"radius": "1e-3"}, TypeError, "radius must be a finite number > 0"),
    ({"eps": [1e-3]}, TypeError, "eps must be a finite number > 0"),
    ({"max_ratio": "2"}, TypeError, "max_ratio must be a finite number > 0"),
    ({"strength": np.float32("inf")}, ValueError, "strength must be a finite number"),
]


@pytest.mark.parametrize(("settings", "error", "text"), SETTINGS, ids=lambda v: str(v)[:40])
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    base = torch.optim.SGD(Problem().params, lr=0.1)
    with pytest.raises(error, match=text):
        GradRegOptimizer(base, **settings)


def test_numbers_of_numpy() -> None:
    problem, plain = Problem(), Problem()
    value: Any = np.float32(0.1)
    warmup: Any = np.int64(1)
    every: Any = np.float64(1.0)
    base = torch.optim.SGD(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(
        base, value, radius=value, max_ratio=value, warmup=warmup, every=every
    )
    same_base = torch.optim.SGD(plain.params, lr=0.1)
    other = GradRegOptimizer(same_base, float(value), radius=float(value), max_ratio=float(value))
    other.warmup = 1
    assert GradRegOptimizer(base, ratio=value).ratio_rule is not None
    for _ in range(2):
        gr_step(problem, optimizer, "closure")
        gr_step(plain, other, "closure")
    assert same(problem.values(), plain.values())


def test_bad_bases() -> None:
    params = Problem().params
    sgd = torch.optim.SGD(params, lr=0.1)
    for base, error, text in [
        (torch.optim.LBFGS(params), ValueError, "first-order optimizer such as AdamW"),
        (torch.optim.SparseAdam(params), ValueError, "sparse=False"),
        (params, TypeError, "must be a torch optimizer, got list; write"),
        (torch.optim.SGD, TypeError, "must be a torch optimizer"),
        (GradRegOptimizer(sgd), TypeError, "already a GradRegOptimizer"),
    ]:
        with pytest.raises(error, match=text):
            GradRegOptimizer(base)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_callable_strength_out_of_range(value: float) -> None:
    problem = Problem()
    optimizer = make(problem, strength=lambda step: value)
    with pytest.raises(ValueError, match=r"strength\(0\) returned"):
        optimizer.step(problem.closure(optimizer))


def test_step_without_any_gradient() -> None:
    with pytest.raises(RuntimeError, match="needs a second gradient"):
        make(Problem()).step()
