"""Two processes equal one that has the whole batch: DDP, FSDP2, checkpoints, trainers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flatopt.precision import DEFAULT_RADIUS
from tests.distributed import checkpoints, trainers
from tests.distributed.cases import BF16, DDP, FAULTS, FSDP
from tests.distributed.checks import (
    TOLERANCE,
    check_case,
    check_fault,
    check_resumed,
    movement,
    report,
    resumed_alone,
    same_end,
)
from tests.distributed.launch import launch, left_by
from tests.distributed.problem import Case, Net, alone, error, rows
from tests.trainer_cases import load_model, model_path

CASES = {case.name: case for case in (*DDP, *FSDP)}
PLACES = [
    pytest.param(case, where, id=f"{where} {case.name}")
    for case in FAULTS
    for where in case.fault_places
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two processes, which leave in it all that the tests look at."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(model_path(), folder / "model")
    parts = ("cases", "faults", "reference", "refusals", "checkpoint", "resume")
    return launch(folder, 2, *parts, "grpo", "fsdp trainer")


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(name: str, folder: Path) -> None:
    check_case(CASES[name], folder, 2)


def test_mixed_precision_is_found_out(folder: Path) -> None:
    """FSDP2 gathers in bf16: a float32 step would be lost in rounding."""
    expected = alone(Case("fsdp"))
    ours, theirs = left_by(folder, BF16.name, 2)
    assert ours["stats"]["radius"] == pytest.approx(DEFAULT_RADIUS[torch.bfloat16])
    assert error(theirs["gradient"], ours["gradient"]) == 0.0
    assert ours["difference"] == "central"
    assert ours["restored"]
    assert ours["moved"]
    assert error(ours["weights"], expected.weights) < 0.05


@pytest.mark.parametrize(("case", "where"), PLACES)
def test_nothing_is_left_of_a_pass_that_raised(case: Case, where: str, folder: Path) -> None:
    check_fault(case, where, folder, 2)


def test_reference_is_not_run_on_gathered_weights_of_the_policy(folder: Path) -> None:
    x, _ = rows(0, 1, 0, 0, 1)
    for policy, reference, again in left_by(folder, "reference", 2):
        torch.testing.assert_close(reference, Net()(x))
        assert not torch.allclose(policy, reference, atol=1e-2)
        assert torch.equal(policy, again)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_exact_product_is_refused(engine: str, folder: Path) -> None:
    for text in left_by(folder, f"refused {engine}", 2):
        assert "single process" in text
        assert 'difference="central"' in text


@pytest.mark.parametrize("form", checkpoints.FORMS)
@pytest.mark.filterwarnings("ignore:this checkpoint holds no reference policy")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # where one process loads
def test_checkpoint_resumes_on_two_processes_and_on_one(form: str, folder: Path) -> None:
    check_resumed(folder, folder, form, 2)
    straight = left_by(folder, "straight", 2)[0]
    report(f"resumed, {form}", 1, same_end(resumed_alone(folder, form), straight))


# ---- trainers -----------------------------------------------------------------------------------


def check_trainer(name: str, found: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    before = {n: p.detach() for n, p in load_model(model_path()).named_parameters()}
    for each in found:
        apart = error(each["weights"], alone["weights"])
        report(name, 2, apart)
        assert apart < TOLERANCE
        moved = (movement(w["weights"], before) for w in (each, alone))
        assert error(*moved) < 1e-3
        assert each["strengths"] == pytest.approx(alone["strengths"], rel=1e-3)
        assert all(strength > 0 for strength in alone["strengths"])


@pytest.mark.parametrize(("accumulation", "loss_type"), trainers.GRPO)
def test_grpo(accumulation: int, loss_type: str, folder: Path, tmp_path: Path) -> None:
    name = f"grpo {accumulation} {loss_type}"
    alone = trainers.run_grpo(tmp_path, 1, accumulation, loss_type)
    check_trainer(name, left_by(folder, name, 2), alone)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_under_fsdp(accumulation: int, folder: Path, tmp_path: Path) -> None:
    alone = trainers.run_sft(tmp_path, 1, accumulation)
    found = left_by(folder, f"sft {accumulation}", 2)
    check_trainer(f"SFT under FSDP2, accumulation {accumulation}", found, alone)
    names = {name for name, _ in load_model(model_path()).named_parameters()}
    excluded = {n for n in names if n.startswith("lm_head") or "layers.0." in n}
    for each in found:
        assert set(each["excluded"]) == excluded == set(alone["excluded"])


def test_trainer_under_fsdp_resumes(folder: Path) -> None:
    for straight, resumed in left_by(folder, "resumed trainer", 2):
        assert error(resumed, straight) == 0.0


def test_attach_refuses_the_first_fsdp(folder: Path) -> None:
    for text in left_by(folder, "fsdp1", 2):
        assert "FSDP1" in text
        assert "version" in text


def test_attach_refuses_a_reference_under_fsdp(folder: Path) -> None:
    for text in left_by(folder, "fsdp reference", 2):
        assert "before the weights are sharded" in text


def test_processes_agree(folder: Path) -> None:
    for name in CASES:
        ours, theirs = left_by(folder, name, 2)
        assert all(torch.equal(ours["weights"][n], theirs["weights"][n]) for n in ours["weights"])
