"""The stage frame: whole or not at all, resumed from scratch files, rebuilt by what changes."""

import json
import os
from pathlib import Path

import pytest

from integrations.rlhf.files import in_batches, read_rows, write_rows
from integrations.rlhf.stages import Stage, Work, make_stage, run_stage, run_stages


def chain(root: Path, log: list[str], first: int = 1, second: int = 1) -> list[Stage]:
    """Two stages that write what they were built from."""

    def one(work: Work) -> None:
        log.append("one")
        (work.folder / "value").write_text(str(first))

    def two(work: Work) -> None:
        log.append("two")
        read = (stages[0].folder / "value").read_text()
        (work.folder / "value").write_text(f"{read} {second}")

    stages = [make_stage(root, "one", {"value": first}, one)]
    stages.append(make_stage(root, "two", {"value": second}, two, stages))
    return stages


def test_finished_stages_are_kept_and_changes_upstream_rebuild(tmp_path: Path) -> None:
    log: list[str] = []
    stages = chain(tmp_path, log)
    run_stages(stages)
    run_stages(chain(tmp_path, log))
    assert log == ["one", "two"]
    assert (stages[1].folder / "value").read_text() == "1 1"
    changed = chain(tmp_path, log, first=2)
    run_stages(changed)
    assert log == ["one", "two"] * 2
    assert (changed[1].folder / "value").read_text() == "2 1"
    run_stages(chain(tmp_path, log, second=5))
    assert log == [*["one", "two"] * 2, "two"], "what did not change is not built again"
    assert not list(tmp_path.glob(".*")), "nothing but results is left"
    saved = json.loads((stages[1].folder / "settings.json").read_text())
    assert saved == {"stage": "two", "value": 1, "after": [stages[0].folder.name]}


def test_one_stage_alone_and_what_it_is_missing(tmp_path: Path) -> None:
    log: list[str] = []
    stages = chain(tmp_path, log)
    stages.append(make_stage(tmp_path, "three", {}, lambda work: None, stages[1:]))
    for name in ("two", "three"):
        with pytest.raises(
            ValueError, match=f"stage {name} needs the result of stage one"
        ) as error:
            run_stages(stages, only=name, command="run --output x")
        assert "run --output x --stage one" in str(error.value)
    assert not log
    run_stages(stages, only="one")
    run_stages(stages, only="two")
    assert log == ["one", "two"]


def test_a_stage_that_dies_leaves_its_scratch_and_no_result(tmp_path: Path) -> None:
    made: list[tuple[int, int]] = []

    def batch(start: int, end: int) -> list[dict[str, int]]:
        if start == 4 and len(made) == 2:
            os._exit(9)  # as a kill: nothing is cleaned up
        made.append((start, end))
        return [{"row": i} for i in range(start, end)]

    def build(work: Work) -> None:
        (work.folder / "half").write_text("written before it dies")
        write_rows(work.folder / "rows", in_batches(work, "rows", "", 7, 2, batch))
        (work.folder / "half").unlink()

    stage = make_stage(tmp_path, "rows", {}, build)
    child = os.fork()
    if child == 0:
        run_stage(stage)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not stage.folder.exists()
    assert (stage.scratch / "result" / "half").exists()
    run_stage(stage)
    assert made == [(4, 6), (6, 7)], "the batches before were kept"
    assert read_rows(stage.folder / "rows") == [{"row": i} for i in range(7)]
    assert sorted(p.name for p in stage.folder.iterdir()) == ["rows", "settings.json"]


def test_a_failing_stage_is_not_taken_for_finished(tmp_path: Path) -> None:
    calls: list[int] = []

    def build(work: Work) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no")

    stage = make_stage(tmp_path, "x", {}, build)
    with pytest.raises(RuntimeError, match="no"):
        run_stage(stage)
    assert not stage.finished
    run_stage(stage)
    assert stage.finished
