"""GradRegOptimizer is a torch.optim.Optimizer: signatures, schedulers, hooks, live properties."""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler

from flatopt import GradRegOptimizer
from tests.cases import Problem, gr_step, make_base, same, two_phases


def make(problem: Problem, **options: Any) -> GradRegOptimizer:
    base = torch.optim.SGD(problem.params, lr=0.1, momentum=0.9)
    return GradRegOptimizer(base, **{"strength": 0.1, **options})


def overridden() -> list[str]:
    ours = GradRegOptimizer.__mro__[: GradRegOptimizer.__mro__.index(Optimizer)]
    return sorted(
        name
        for name in {name for kind in ours for name in vars(kind)}
        if inspect.isfunction(getattr(GradRegOptimizer, name))
        and inspect.isfunction(vars(Optimizer).get(name))
        and name != "__init__"
    )


def test_methods_are_found() -> None:
    wanted = {"step", "zero_grad", "state_dict", "load_state_dict", "add_param_group"}
    assert wanted <= set(overridden())


@pytest.mark.parametrize("name", overridden())
def test_signature(name: str) -> None:
    ours, theirs = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(c, name)).parameters.values()
        ]
        for c in (GradRegOptimizer, torch.optim.SGD if name == "step" else Optimizer)
    )
    assert ours == theirs


def test_no_method_of_the_base_class_is_left_to_a_missing_attribute() -> None:
    optimizer = make(Problem())
    plain = torch.optim.SGD(Problem().params, lr=0.1)
    assert isinstance(optimizer, Optimizer)
    for name in vars(plain):
        assert hasattr(optimizer, name), name


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o)], o),
    "ConstantLR": lr_scheduler.ConstantLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "LinearLR": lr_scheduler.LinearLR,
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
}


def test_every_scheduler_is_covered() -> None:
    found = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind)
        and issubclass(kind, (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau))
        and not name.startswith("_")
    }
    assert found - {"LRScheduler", "SWALR"} == set(SCHEDULERS)


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_scheduler(name: str) -> None:
    rates = []
    for wrap in (False, True):
        problem = Problem()
        optimizer: Optimizer = torch.optim.SGD(problem.params, lr=0.1, momentum=0.9)
        if wrap:
            optimizer = GradRegOptimizer(optimizer, strength=0.0)
        scheduler = SCHEDULERS[name](optimizer)
        seen = []
        for _ in range(5):
            optimizer.step(problem.closure(optimizer))
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen.append((scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]))
        rates.append((seen, problem.values()))
    assert same(rates[0], rates[1])
    assert len({str(pair) for pair in rates[1][0]}) > 1


def test_hooks_are_called_once_each() -> None:
    problem = Problem()
    optimizer = make(problem)
    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        def hook(*args: Any) -> None:
            assert args[0] is optimizer
            calls[name] += 1

        return hook

    handles = [
        getattr(optimizer, f"register_{name}_hook")(count(name))
        for name in (
            "step_pre",
            "step_post",
            "state_dict_pre",
            "load_state_dict_pre",
            "load_state_dict_post",
        )
    ]
    handles.append(optimizer.register_state_dict_post_hook(lambda o, s: {**s, "note": 1}))
    gr_step(problem, optimizer, "closure")
    state = optimizer.state_dict()
    assert state.pop("note") == 1
    optimizer.load_state_dict(state)
    assert set(calls.values()) == {1}
    assert len(calls) == 5
    for handle in handles:
        handle.remove()
    gr_step(problem, optimizer, "closure")
    assert "note" not in optimizer.state_dict()
    assert set(calls.values()) == {1}


def test_hooks_of_the_base_see_the_combined_gradient() -> None:
    problem = Problem()
    optimizer = make(problem, eps=1e-2)
    expected = problem.simple(0.1, 1e-2)
    seen: list[torch.Tensor] = []
    optimizer.base.register_step_pre_hook(lambda *args: seen.extend(problem.grads()))
    gr_step(problem, optimizer, "closure")
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(seen, expected, strict=True))
    assert len(seen) == len(expected)


def test_properties_are_those_of_the_base() -> None:
    problem = Problem()
    optimizer = make(problem)
    for name in ("state", "param_groups", "defaults"):
        assert getattr(optimizer, name) is getattr(optimizer.base, name)
    optimizer.param_groups[0]["lr"] = 0.0
    before = problem.values()
    gr_step(problem, optimizer, "perturbed")
    assert same(problem.values(), before)
    assert len(optimizer.state) == len(problem.params)
    groups = [dict(g) for g in optimizer.param_groups]
    optimizer.param_groups = groups
    assert optimizer.base.param_groups is groups


def test_added_parameters_are_perturbed_and_stepped() -> None:
    problem = Problem()
    first, rest = problem.params[:2], problem.params[2:]
    base = torch.optim.SGD(first, lr=0.1)
    optimizer = GradRegOptimizer(base, strength=0.1)
    optimizer.add_param_group({"params": rest, "lr": 0.01})
    assert [g["lr"] for g in base.param_groups] == [0.1, 0.01]
    before = problem.values()
    problem.backward()
    with optimizer.perturbed():
        assert not any(torch.equal(p, b) for p, b in zip(problem.params, before, strict=True))
        problem.backward()
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(problem.params, before, strict=True))


def test_unknown_attributes_are_those_of_the_base() -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(make_base("AdamWScheduleFree", problem.params), strength=0.1)
    for _ in range(3):
        gr_step(problem, optimizer, "closure")
    trained = problem.values()
    optimizer.eval()
    assert not same(problem.values(), trained)
    optimizer.train()
    assert all(torch.allclose(a, b) for a, b in zip(problem.values(), trained, strict=True))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = optimizer.no_such_name


@pytest.mark.parametrize("how", ["closure", "perturbed"])
def test_returns_the_first_loss(how: str) -> None:
    problem = Problem()
    optimizer = make(problem)
    expected = problem.copy().loss()
    if how == "closure":
        loss = optimizer.step(closure=problem.closure(optimizer))
        assert isinstance(loss, torch.Tensor)
        assert torch.equal(loss, expected)
    else:
        two_phases(problem, optimizer)
        assert optimizer.step() is None


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none: bool) -> None:
    problem = Problem()
    optimizer = make(problem)
    problem.backward()
    optimizer.zero_grad(set_to_none=to_none)
    for p in problem.params:
        assert p.grad is None if to_none else p.grad is not None and not p.grad.any()
    # and gradients cleared in place change nothing in a step
    fresh = Problem()
    problem.backward()
    optimizer.zero_grad(set_to_none=to_none)
    problem.backward()
    with optimizer.perturbed():
        optimizer.zero_grad(set_to_none=to_none)
        problem.backward()
    optimizer.step()
    gr_step(fresh, make(fresh), "closure")
    assert same(problem.values(), fresh.values())


def test_passes_accumulate_inside_perturbed() -> None:
    problem = Problem()
    optimizer = make(problem)
    problem.backward(2)
    with optimizer.perturbed():
        assert all(p.grad is None for p in problem.params)
        problem.backward()
        first = problem.grads()
        problem.loss(1).backward()
        assert not same(problem.grads(), first)


def test_repr_names_the_rule_and_the_base() -> None:
    text = repr(make(Problem()))
    assert "strength=0.1" in text
    assert "SGD" in text
    assert "ratio=1.0" in repr(make(Problem(), strength=None))
