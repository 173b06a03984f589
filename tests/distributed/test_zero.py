"""ZeroEngine: with a stand-in for DeepSpeed, and with DeepSpeed itself where it is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flatopt.precision import DEFAULT_RADIUS
from flatopt.zero import ZeroEngine
from tests.distributed.checks import report
from tests.distributed.launch import launch, left_by
from tests.distributed.problem import Case, Net, alone, error, optimizer_for
from tests.distributed.zero import ZERO, train_in

SETTINGS = [{}, {"difference": "central"}, {"exclude": "head"}, {"ratio": 0.5}, {"every": 2}]


class FakeEngine:
    """Keeps gradients to itself, as DeepSpeed does, in a single process."""

    def __init__(
        self, model: Net, stage: int = 1, accumulation: int = 1, fp16: bool = False
    ) -> None:
        self.module = model
        self.optimizer = optimizer_for(Case(), model).base
        self.kept: dict[Tensor, Tensor] = {}
        self.zero_optimization_stage = lambda: stage
        self.gradient_accumulation_steps = lambda: accumulation
        self.fp16_enabled = lambda: fp16

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def named_parameters(self) -> Any:
        return self.module.named_parameters()

    def backward(self, loss: Tensor) -> None:
        assert all(p.grad is None for p in self.module.parameters())
        loss.backward()
        for p in self.module.parameters():
            assert p.grad is not None
            # the same buffer each time, as of a partition
            self.kept.setdefault(p, torch.empty_like(p.grad)).copy_(p.grad)
            p.grad = None

    def step(self) -> None:
        for p, gradient in self.kept.items():
            assert p.grad is None
            p.grad = gradient.clone()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine(Net())
    utils: Any = ModuleType("deepspeed.utils")
    utils.safe_get_full_grad = engine.kept.get
    utils.safe_set_full_grad = lambda p, value: engine.kept[p].copy_(value)
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", utils)
    return engine


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("how", ["passes", "closure"])
def test_steps_are_those_of_the_plain_optimizer(
    how: str, settings: dict[str, Any], fake: FakeEngine
) -> None:
    case = Case(how=how, settings=settings)
    outcome = train_in(fake, fake.module, case, 0, 1)
    expected = alone(case)
    assert outcome.restored
    assert error(outcome.weights, expected.weights) == 0.0
    assert error(expected.weights, alone(Case(settings={"strength": 0.0})).weights) > 1e-3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"stage": 0}, "use DDP"),
        ({"stage": 3}, "FSDP2"),
        ({"fp16": True}, "bf16"),
        ({"accumulation": 4}, "larger micro-batches"),
    ],
    ids=str,
)
def test_engines_that_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ZeroEngine(FakeEngine(Net(), **settings))


def test_not_an_engine() -> None:
    with pytest.raises(TypeError, match=r"deepspeed\.initialize"):
        ZeroEngine(SimpleNamespace())


# ---- with DeepSpeed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (pip install deepspeed)")
    return launch(tmp_path_factory.mktemp("zero"), 2, "zero")


@pytest.mark.slow
@pytest.mark.parametrize("case", ZERO, ids=lambda case: case.name)
def test_two_processes_equal_one(case: Case, folder: Path) -> None:
    expected = alone(case)
    for outcome in left_by(folder, case.name, 2):
        apart = error(outcome["weights"], expected.weights)
        report(case.name, 2, apart)
        assert apart < 1e-5
        assert outcome["restored"]
        assert outcome["moved"]


@pytest.mark.slow
def test_bf16(folder: Path) -> None:
    for outcome in left_by(folder, "zero bf16", 2):
        assert outcome["restored"]
        assert outcome["stats"]["radius"] == pytest.approx(DEFAULT_RADIUS[torch.bfloat16])
        assert outcome["stats"].get("skipped") is None
