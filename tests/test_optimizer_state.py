"""Saving, loading, copying and pickling a GradRegOptimizer in the middle of a run."""

import copy
import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flatopt import GradRegOptimizer, LinearStrength
from tests.cases import BASES, Problem, gr_step, make_base, problem_for, same, two_phases

RATIO: dict[str, Any] = {"ratio": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "ratio": RATIO,
    "schedule": {"strength": LinearStrength(0.0, 0.3, steps=5)},
    "warmup and every": {"ratio": 0.5, "warmup": 5, "every": 2},
}


def run(problem: Problem, optimizer: GradRegOptimizer, steps: int, seed: int = 0) -> None:
    for i in range(steps):
        gr_step(problem, optimizer, "closure", micro=1 + (seed + i) % 3)


@pytest.mark.parametrize("settings", sorted(SETTINGS))
@pytest.mark.parametrize("name", sorted(n for n in BASES if "-" not in n))
def test_resume_is_bit_identical(name: str, settings: str, tmp_path: Path) -> None:
    # float32: torch's own load_state_dict widens NAdam's float32 scalars to the parameters' dtype
    straight, resumed = (problem_for(name, torch.float32) for _ in range(2))
    whole = GradRegOptimizer(make_base(name, straight.params), **SETTINGS[settings])
    run(straight, whole, 3)
    torch.save(whole.state_dict(), tmp_path / "optimizer.pt")
    torch.save(straight.model.state_dict(), tmp_path / "model.pt")
    run(straight, whole, 4, seed=3)

    resumed.model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    again = GradRegOptimizer(make_base(name, resumed.params), **SETTINGS[settings])
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert again.steps_taken == 3
    run(resumed, again, 4, seed=3)
    assert same(resumed.values(), straight.values())
    assert same(again.state_dict(), whole.state_dict())


def test_state_dict_holds_no_weights() -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(torch.optim.SGD(problem.params, lr=0.1), ratio=0.5)
    run(problem, optimizer, 2)
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups", "gradreg"}
    assert all(isinstance(v, (int, float)) for v in state["gradreg"].values())
    assert same({k: state[k] for k in ("state", "param_groups")}, optimizer.base.state_dict())


def test_state_of_the_bare_base() -> None:
    problem = Problem()
    base = torch.optim.Adam(problem.params, lr=0.1)
    base.step(problem.closure(base))
    optimizer = GradRegOptimizer(torch.optim.Adam(problem.copy().params, lr=0.5), ratio=0.5)
    optimizer.steps_taken = 7
    optimizer.load_state_dict(base.state_dict())
    assert same(optimizer.base.state_dict(), base.state_dict())
    assert optimizer.steps_taken == 0
    # and back: the bare base ignores what is not its own
    base.load_state_dict(optimizer.state_dict())


def test_loading_leaves_the_given_dict_alone() -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(torch.optim.Adam(problem.params, lr=0.1), ratio=0.5)
    run(problem, optimizer, 1)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    assert same(state, kept)


def roundtrip(pair: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(pair)
    buffer = io.BytesIO()
    pickle.dump(pair, buffer)
    return pickle.loads(buffer.getvalue())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_copy_goes_on_alone(how: str, scheduled: bool) -> None:
    problem = Problem()
    base = torch.optim.Adam(problem.params, lr=0.1)
    optimizer = GradRegOptimizer(base, ratio=0.5, exclude=[problem.params[0]])
    if scheduled:  # a scheduler replaces `step` by a function bound to this very object
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    run(problem, optimizer, 2)
    two_phases(problem, optimizer)  # and gradients in flight are left behind
    before = problem.values()
    params, twin = roundtrip((problem.params, optimizer), how)
    other = Problem()
    with torch.no_grad():
        for p, value in zip(other.params, params, strict=True):
            p.copy_(value)
    assert twin.param_groups[0]["params"][0] is params[0]
    assert twin.exclude[0] is params[0]

    def closure() -> float:
        twin.zero_grad()
        with torch.no_grad():
            for p, value in zip(other.params, params, strict=True):
                p.copy_(value)
        other.model.zero_grad()
        loss = other.loss()
        loss.backward()
        for p, source in zip(params, other.params, strict=True):
            p.grad = source.grad
        return loss.item()

    twin.step(closure)
    assert same(problem.values(), before)
    optimizer.zero_grad()
    run(problem, optimizer, 1)
    assert same(problem.values(), [p.detach() for p in params])
    assert twin.steps_taken == optimizer.steps_taken == 3
    assert not twin._optimizer_step_pre_hooks


def test_copy_has_its_own_hooks() -> None:
    problem = Problem()
    optimizer = GradRegOptimizer(torch.optim.Adam(problem.params, lr=0.1), ratio=0.5)
    optimizer.register_step_pre_hook(lambda *args: None)
    for how in ("deepcopy", "pickle"):  # a lambda cannot be pickled
        twin = roundtrip(optimizer, how)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
        assert not twin._optimizer_step_pre_hooks


def test_distributed_checkpoint() -> None:
    # it sets up the state of a fresh optimizer by a step with zero gradients
    dcp = importlib.import_module("torch.distributed.checkpoint.state_dict")
    problem, other = Problem(), Problem()
    optimizer, fresh = (
        GradRegOptimizer(torch.optim.Adam(p.params, lr=0.1), strength=0.5) for p in (problem, other)
    )
    run(problem, optimizer, 3)
    state = copy.deepcopy(dcp.get_optimizer_state_dict(problem.model, optimizer))
    other.model.load_state_dict(problem.model.state_dict())
    dcp.set_optimizer_state_dict(other.model, fresh, state)
    assert "zero" in (fresh.stats.skipped or "")
    for each, which in ((problem, optimizer), (other, fresh)):
        run(each, which, 2)
    assert same(problem.values(), other.values())
