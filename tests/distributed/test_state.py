"""The wrapper's numbers in what torch.distributed.checkpoint keeps: state and parameter groups."""

import copy
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

from flatopt import GradRegOptimizer
from tests.distributed.problem import Case, Net, train

FORMS = [False, True]


def trained(base: type[Adam] | type[SGD] = Adam, steps: int = 3) -> tuple[Net, GradRegOptimizer]:
    model = Net()
    optimizer = GradRegOptimizer(base(model.named_parameters(), lr=0.01), ratio=0.5)
    train(Case(), model, optimizer, steps=steps)
    return model, optimizer


def fresh(base: type[Adam] | type[SGD] = Adam, **settings: Any) -> tuple[Net, GradRegOptimizer]:
    model = Net()
    settings = settings or {"ratio": 0.5}
    return model, GradRegOptimizer(base(model.named_parameters(), lr=0.01), **settings)


def numbers(optimizer: GradRegOptimizer) -> tuple[float, ...]:
    rule = optimizer.ratio_rule
    assert rule is not None
    return optimizer.steps_taken, rule.grad_norm, rule.product_norm


@pytest.mark.parametrize("flat", FORMS)
@pytest.mark.parametrize("base", [Adam, SGD])
def test_distributed_state_holds_them(base: type[Adam] | type[SGD], flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = trained(base)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, resumed = fresh(base)
    set_optimizer_state_dict(other, resumed, state, options=options)
    assert numbers(resumed) == numbers(optimizer)
    assert numbers(resumed)[0] == 3


@pytest.mark.parametrize("base", [Adam, SGD])
def test_setting_up_a_state_is_no_step(base: type[Adam] | type[SGD]) -> None:
    model, optimizer = fresh(base)
    for _ in range(2):
        get_optimizer_state_dict(model, optimizer)
    assert optimizer.steps_taken == 0
    model, optimizer = trained(base)
    optimizer.zero_grad()
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.steps_taken == 3


def test_step_with_a_gradient_counts_at_learning_rate_zero() -> None:
    model, optimizer = fresh()
    optimizer.param_groups[0]["lr"] = 0.0  # as in the first step of a warm-up
    train(Case(), model, optimizer, steps=1)
    assert optimizer.steps_taken == 1


def test_state_of_a_base_without_gr() -> None:
    model = Net()
    base = Adam(model.named_parameters(), lr=0.01)
    sum(p.sum() for p in model.parameters()).backward()  # pyright: ignore
    base.step()
    base.zero_grad()
    state = copy.deepcopy(get_optimizer_state_dict(model, base))
    other = Net()
    inner = Adam(other.named_parameters(), lr=0.5)
    set_optimizer_state_dict(other, inner, state)
    optimizer = GradRegOptimizer(inner, ratio=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 1.0
    # and of a wrapper that has steps behind it: they are forgotten
    _, started = trained()
    started.load_state_dict(base.state_dict())
    assert numbers(started) == (0, 0.0, 0.0)


def test_base_takes_the_state_of_the_wrapper() -> None:
    _, optimizer = trained()
    base = Adam(Net().named_parameters(), lr=0.5)
    base.load_state_dict(optimizer.state_dict())
    assert base.param_groups[0]["lr"] == 0.01
    # what the base then holds of the wrapper is of its time, and a new wrapper counts from 0
    again = GradRegOptimizer(base, ratio=0.5)
    assert again.state_dict()["param_groups"][0]["gradreg"]["steps_taken"] == 0


def test_numbers_in_the_groups_keep_up_with_the_steps() -> None:
    model, optimizer = trained()
    optimizer.state_dict()
    train(Case(), model, optimizer, steps=2, first=3)
    assert optimizer.base.state_dict()["param_groups"][0]["gradreg"]["steps_taken"] == 5


def test_saved_numbers_are_of_their_time() -> None:
    model, optimizer = trained()
    saved = optimizer.state_dict()
    train(Case(), model, optimizer, steps=2, first=3)
    assert saved["gradreg"]["steps_taken"] == 3
    assert saved["param_groups"][0]["gradreg"]["steps_taken"] == 3


def test_nothing_is_added_where_nothing_was_saved() -> None:
    model, optimizer = fresh(strength=0.0)
    train(Case(settings={"strength": 0.0}), model, optimizer, steps=2)
    assert "gradreg" not in optimizer.base.state_dict()["param_groups"][0]


def test_schedulers_and_new_groups() -> None:
    model, optimizer = trained()
    schedule = ExponentialLR(optimizer, 0.5)
    optimizer.state_dict()
    train(Case(), model, optimizer, steps=1, first=3)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    extra = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.1})
    state = optimizer.state_dict()
    assert "gradreg" not in state["param_groups"][1]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[1]["lr"] == 0.1
    assert optimizer.param_groups[1]["params"][0] is extra
    assert optimizer.steps_taken == 4
    assert len(list(model.parameters())) == len(optimizer.param_groups[0]["params"])
