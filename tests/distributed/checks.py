"""What must hold between a run of several processes and one process, for both sets of tests."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.distributed import checkpoints
from tests.distributed.launch import left_by
from tests.distributed.problem import Case, Net, alone, error, train

TOLERANCE = 1e-5


def report(name: str, processes: int, found: float) -> None:
    """A line of the table in docs/distributed.md: pytest -rA shows it."""
    print(f"| {name} | {processes} | {found:.0e} |")


def check_case(case: Case, folder: Path, processes: int) -> None:
    """Weights and combined gradient are those of one process; weights came back bit for bit."""
    expected = alone(case)
    plain = alone(Case(case.engine, micro=case.micro, settings={"strength": 0.0}))
    for outcome in left_by(folder, case.name, processes):
        assert outcome["restored"]
        assert outcome["moved"]
        assert outcome["stats"].get("skipped") is None
        apart = error(outcome["weights"], expected.weights)
        report(case.name, processes, apart)
        assert apart < TOLERANCE
        assert error(outcome["gradient"], expected.gradient) < 1e-4
        assert error(outcome["weights"], plain.weights) > 1e-3


def check_fault(case: Case, where: str, folder: Path, processes: int) -> None:
    """After an error at theta' nothing of it is left."""
    expected = left_by(folder, Case(case.engine).name, processes)
    outcomes = left_by(folder, f"fault {where} {case.name}", processes)
    for outcome, straight in zip(outcomes, expected, strict=True):
        assert outcome["raised"]
        assert outcome["restored"]
        assert outcome["gradient kept"]
        first, again = outcome["losses"]
        assert first == again
        assert error(outcome["weights"], straight["weights"]) == 0.0


def check_resumed(saved: Path, resumed: Path, form: str, processes: int) -> None:
    """A resumed run ends where the uninterrupted one did, in all that is saved."""
    straight = left_by(saved, "straight", 2)[0]
    for found in left_by(resumed, f"resumed {form}", processes):
        report(f"resumed, {form}", processes, same_end(found, straight))


def same_end(found: dict[str, Any], straight: dict[str, Any]) -> float:
    """The error of the weights; the rest is checked on the way."""
    assert found["own"]["steps_taken"] == straight["own"]["steps_taken"] == 7
    for name in ("grad_norm", "product_norm"):
        left, right = (torch.tensor(run["own"][name]) for run in (found, straight))
        torch.testing.assert_close(left, right, rtol=1e-4, atol=0.0)
    assert error(found["reference"], straight["reference"]) < TOLERANCE
    apart = error(found["weights"], straight["weights"])
    assert apart < TOLERANCE
    return apart


def resumed_alone(folder: Path, form: str) -> dict[str, Any]:
    """Go on in this process from what several have saved."""
    model = Net()
    optimizer = checkpoints.make_optimizer(model)
    checkpoints.load(folder / form, checkpoints.FORMS[form], model, optimizer)
    outcome = train(
        checkpoints.CASE,
        model,
        optimizer,
        first=checkpoints.BEFORE,
        steps=checkpoints.AFTER,
    )
    return checkpoints.finished(outcome, optimizer)


def movement(weights: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w - before[name] for name, w in weights.items()}
