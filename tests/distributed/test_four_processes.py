"""Four processes equal one, and go on from what two have saved."""

from pathlib import Path

import pytest

from tests.distributed import checkpoints
from tests.distributed.cases import DDP, FSDP
from tests.distributed.checks import check_case, check_resumed
from tests.distributed.launch import launch

pytestmark = pytest.mark.slow

CASES = {case.name: case for case in (*DDP, *FSDP)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    launch(folder, 2, "checkpoint")
    return launch(folder, 4, "cases", "resume")


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(name: str, folder: Path) -> None:
    check_case(CASES[name], folder, 4)


@pytest.mark.parametrize("form", checkpoints.FORMS)
def test_checkpoint_of_two_processes_resumes_on_four(form: str, folder: Path) -> None:
    check_resumed(folder, folder, form, 4)
