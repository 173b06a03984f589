"""A saved state that is another's, or damaged, is refused; the optimizer stays as it was."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatopt import GradRegOptimizer
from tests.cases import same

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01),
}


class Job:
    """A small net whose optimizer has taken two steps."""

    def __init__(self, base: str = "AdamW", width: int = 5, layers: int = 2) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        self.optimizer = GradRegOptimizer(BASES[base](self.net.parameters()), ratio=1.0)
        self.x = torch.randn(4, width)
        self.step()
        self.step()

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = (self.net(self.x) ** 2).mean()
        loss.backward()
        return loss

    def step(self) -> None:
        self.optimizer.step(self.closure)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self.optimizer.state_dict())


def damaged(**numbers: Any) -> dict[str, Any]:
    """A good state, but for the numbers of GR."""
    state = Job().state()
    return state | {"gradreg": state["gradreg"] | numbers}


FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "another model, as many parameters": (lambda: Job(width=7).state(), "another model"),
    "another model, more parameters": (lambda: Job(layers=3).state(), "size of optimizer's group"),
    "SGD's": (lambda: Job("SGD").state(), "another optimizer"),
    "RMSprop's": (lambda: Job("RMSprop").state(), "another optimizer"),
    "Adagrad's": (lambda: Job("Adagrad").state(), "another optimizer"),
    "a model's": (lambda: Job().net.state_dict(), "not the state of an optimizer"),
    "empty": (dict, "not the state of an optimizer"),
    "None": (lambda: None, "not the state of an optimizer"),
    "a list": (lambda: [1, 2], "not the state of an optimizer"),
    "half": (lambda: {"param_groups": Job().state()["param_groups"]}, "not the state"),
    "GR's numbers are text": (lambda: Job().state() | {"gradreg": "?"}, "damaged"),
    "a count that is none": (lambda: damaged(steps_taken="three"), "damaged"),
    "an average that is NaN": (lambda: damaged(grad_norm=math.nan), "damaged"),
    "an average that is infinite": (lambda: damaged(product_norm=math.inf), "damaged"),
    "a negative average": (lambda: damaged(product_norm=-1.0), "damaged"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_state_is_refused_whole(name: str) -> None:
    make, message = FOREIGN[name]
    foreign = make()
    job, twin = Job(), Job()
    job.step()  # so that nothing of the foreign state can be equal by chance
    twin.step()
    before = job.state()
    with pytest.raises(ValueError, match=message):
        job.optimizer.load_state_dict(foreign)
    assert same(job.state(), before)
    job.step()
    twin.step()
    assert same(list(job.net.parameters()), list(twin.net.parameters()))
    assert same(job.state(), twin.state())


@pytest.mark.parametrize("base", BASES)
def test_the_state_of_the_bare_base_starts_gr_afresh(base: str) -> None:
    state = copy.deepcopy(Job(base).optimizer.base.state_dict())
    job = Job(base)
    job.step()
    job.optimizer.load_state_dict(state)
    assert job.optimizer.steps_taken == 0
    assert same(copy.deepcopy(job.optimizer.base.state_dict())["state"], state["state"])
    job.step()
    assert job.optimizer.stats.skipped is None
    assert job.optimizer.stats.numbers()["penalty_ratio"] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_the_base_of_the_same_kind_loads_the_wrappers_state(base: str) -> None:
    state = Job(base).state()
    bare = BASES[base](Job(base).net.parameters())
    bare.load_state_dict(state)
    assert same(bare.state_dict()["state"], state["state"])


def test_a_state_file_cut_off_anywhere_is_not_read(tmp_path: Any) -> None:
    whole = io.BytesIO()
    torch.save(Job().state(), whole)
    data = whole.getvalue()
    job = Job()
    before = job.state()
    path = tmp_path / "optimizer.pt"
    for size in range(0, len(data), len(data) // 23):
        path.write_bytes(data[:size])
        with pytest.raises((RuntimeError, EOFError, OSError, ValueError)):
            job.optimizer.load_state_dict(torch.load(path, weights_only=True))
    assert same(job.state(), before)
