"""The scenarios in several processes: by torchrun, by accelerate launch, DDP and FSDP2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integrations.launch import check_jobs, with_accumulation
from integrations.watch import monitor
from integrations.watch.monitor import Monitor
from tests.recipe_cases import (
    ROOT,
    TORCHRUN,
    command,
    difference,
    environment,
    launched,
    make_place,
    names,
    rows,
    run,
    weights,
)

Place = dict[str, str]
NAME = "rules-gsm8k-0.5b"
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
)
FSDP = {
    "ACCELERATE_USE_FSDP": "true",  # what accelerate launch --use_fsdp sets
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def two(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave."""
    output = tmp_path_factory.mktemp("two") / "runs"
    done = launched(command(NAME, place, output, "--method", "gr"), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("results in") == 1, "only one process speaks"
    return output


def lengths(folder: Path) -> list[float]:
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["length"] for line in lines]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_two_processes_leave_one_run(two: Path) -> None:
    folder = two / "gr-seed0"
    settings = read(folder / "settings.json")["config"]
    assert settings["gradient_accumulation_steps"] == 1, "8 completions, 2 x 4 at once"
    assert [row["step"] for row in rows(folder)] == [1, 2]
    assert rows(folder)[0]["gr/penalty_ratio"] > 0
    assert (folder / "checkpoint-2" / "rng_state_1.pth").exists(), "both were there"
    assert read(folder / "summary.json")["final"]


def test_evaluation_is_that_of_one_process(two: Path, place: Place, tmp_path: Path) -> None:
    assert run(command(NAME, place, tmp_path / "one", "--method", "none")) == 0
    assert read(two / "start" / "evaluation.json") == read(
        tmp_path / "one" / "start" / "evaluation.json"
    )
    assert (two / "start" / "rank1-samples.jsonl").read_text(), "the second one has done its share"


def test_rows_are_over_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Groups of four completions, two of each in either process."""

    class Trainer:
        num_generations = 4

    here = Monitor(
        judge=lambda texts, columns: [float(text) for text in texts],
        grade=None,
        is_formatted=lambda text: text == "1",
        to_texts=lambda completions, ids: list(completions),
        path=tmp_path / "metrics.jsonl",
        every=9,
    )
    here.trainer = Trainer()

    class State:
        global_step = 0

    here.proxy([], ["1", "1"], [], trainer_state=State())
    here.proxy([], ["2", "2"], [], trainer_state=State())
    theirs: Any = ({"proxy": [3.0, 3.0, 2.0, 2.0], "true": [], "format": [0.0] * 4},)
    theirs += ([[3.0, 3.0], [2.0, 2.0]], {}, [])
    monkeypatch.setattr(monitor, "gathered", lambda mine: [mine, theirs])
    row = here.row(2, {})
    assert row["proxy"] == 2.0
    assert row["format"] == 0.25
    assert row["spread"] == 0.5, "1 in the first group (1 1 3 3), 0 in the second (2 2 2 2)"
    assert here._seen == {"proxy": [], "true": [], "format": []}


@pytest.mark.parametrize(
    ("world", "each", "wanted", "expected"), [(1, 16, 256, 16), (4, 16, 256, 4), (4, 8, 1024, 32)]
)
def test_the_batch_stays_the_same(
    world: int, each: int, wanted: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    made = with_accumulation({"per_device_train_batch_size": each}, {}, wanted)
    assert made["gradient_accumulation_steps"] == expected
    given = {"per_device_train_batch_size": each // 2}
    made = with_accumulation({"per_device_train_batch_size": each}, given, wanted)
    assert made["gradient_accumulation_steps"] == 2 * expected, "the command line wins"


def test_batches_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    field = {"gradient_accumulation_steps": 3}
    assert with_accumulation({}, field, 256) == {}, "the command line wins over the recipe"
    with pytest.raises(ValueError, match="not both"):
        with_accumulation({}, field, None, 256)
    with pytest.raises(ValueError, match="not both"):
        with_accumulation(field, {}, 256)
    with pytest.raises(ValueError, match="at least 1"):
        with_accumulation({}, {}, None, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="--per_device_train_batch_size 32"):
        with_accumulation({"per_device_train_batch_size": 48}, {}, 256)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="cannot be shared by 3 devices"):
        with_accumulation({"per_device_train_batch_size": 16}, {}, 256)
    with pytest.raises(ValueError, match="--jobs"):
        check_jobs(2)
    check_jobs(1)


def test_rlhf_says_what_to_run_first(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from integrations import processes

    monkeypatch.setattr(processes, "_connect", lambda: pytest.fail("nothing to agree on yet"))
    monkeypatch.setattr("integrations.rlhf.command.decided_by_main", lambda decide: decide())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("integrations.rlhf.command.check_config", lambda *a: None)
    name = "rlhf-tldr-qwen-0.5b"
    assert run(command(name, place, tmp_path / "run", "--method", "none")) == 2
    text = capsys.readouterr().err
    assert "--stage before" in text
    assert "--method none" in text
    assert run(command(name, place, tmp_path / "run", "--stage", "sft")) == 2
    assert "without a launcher" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_recipe_in_two_processes(name: str, place: Place, tmp_path: Path) -> None:
    given = command(name, place, tmp_path / "run", "--method", "gr")
    if name.startswith("rlhf"):
        assert run([*given, "--stage", "before"]) == 0
        given.append("--resume")
    done = launched(given, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rows(tmp_path / "run" / "gr-seed0")) == 2
    if name.startswith("rlhf"):
        assert (tmp_path / "run" / "gr-seed0" / "evaluation.json").exists()


@pytest.mark.slow
def test_accelerate_launch_does_the_same(two: Path, place: Place, tmp_path: Path) -> None:
    done = launched(command(NAME, place, tmp_path / "run", "--method", "gr"), 2, ACCELERATE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(tmp_path / "run" / "gr-seed0") == rows(two / "gr-seed0")
    assert difference(weights(tmp_path / "run" / "gr-seed0"), weights(two / "gr-seed0")) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fsdp2_equals_ddp_and_resumes(place: Place, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    # not Adam: its first step has the signs of the gradient, also where that is rounding noise
    sgd = ("--optim", "sgd", "--learning_rate", "0.1")
    done = launched(command(NAME, place, tmp_path / "ddp", "--method", "gr", *sgd), 2)
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "run"
    given = command(NAME, place, output, "--method", "gr", "matched", *sgd)

    def go(*more: str) -> None:
        done = subprocess.run(
            [
                *(sys.executable, *TORCHRUN, "--nproc_per_node", "2"),
                *("-m", "tests.fsdp_launch", *given, *more),
            ],
            env=environment() | FSDP,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def loaded(folder: Path) -> dict[str, Any]:
        return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()

    go()
    folder = output / "gr-seed0"
    assert (folder / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir(), "sharded"
    whole = loaded(folder)
    assert difference(whole, loaded(tmp_path / "ddp" / "gr-seed0")) < 1e-5
    moved = lengths(output / "gr-seed0")
    assert min(moved) > 1e-3
    # up to the rounding of weights a hundred times as long as the step
    assert moved == pytest.approx(lengths(output / "matched-seed0"), rel=1e-5)
    for mark in ("checkpoint-2/complete", "summary.json"):  # killed in, and after the last step
        (folder / mark).unlink(missing_ok=True)
        (folder / "summary.json").unlink(missing_ok=True)
        (folder / "model" / "model.safetensors").unlink()
        go("--resume")
        assert difference(whole, loaded(folder)) == 0


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(place: Place, tmp_path: Path) -> None:
    breaks = tmp_path / "breaks.py"
    breaks.write_text(
        "import sys\n"
        "from integrations import processes\n"
        "from integrations.watch import monitor\n"
        "real = monitor.Monitor.proxy\n"
        "def proxy(self, *a, **k):\n"
        "    if processes.rank() == 1 and k['trainer_state'].global_step == 1:\n"
        "        raise OSError('no power')\n"
        "    return real(self, *a, **k)\n"
        "monitor.Monitor.proxy = proxy\n"
        "from integrations.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    given = command(NAME, place, tmp_path / "run", "--method", "gr")
    first = [sys.executable, *TORCHRUN, "--nproc_per_node", "2", str(breaks)]
    options: Any = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*first, *given], env=environment(), timeout=120, **options)
    assert done.returncode == 1
    assert "error (process 1 of 2): gr-seed0 failed: OSError: no power" in done.stderr
    # and the same command in two whole processes goes on where it was
    done = launched([*given, "--resume"], 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(tmp_path / "run" / "gr-seed0" / "summary.json")["resumed_from"] == 1
