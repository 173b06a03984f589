"""`python -m integrations ladder`, end to end: matrix, kills and resumes, options, bad input."""

import csv
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import integrations.ladder.measure as measure
import integrations.ladder.task as task
import integrations.loop as loop
from integrations.__main__ import main as integrations_main
from integrations.ladder import main
from integrations.ladder.measure import saved_row
from integrations.worlds.ladder.scores import STAGES

# so much learnt that counts differ from zero, and from each other
RECIPE = """
ladder: {steps_per_stage: 2, away_steps: 2, cell: 60, ordinary: 20, probe: 10, batch: 40}
world:
  {gaming: 0.5, ledger_gaming: 0.3, broken: 0.1, demonstrations: 3000, steps: 150, batch: 64,
   width: 32, heads: 2, layers: 1}
trainer:
  use_cpu: true
  bf16: false
  gradient_checkpointing: false
  report_to: none
  disable_tqdm: true
  per_device_train_batch_size: 16
  num_generations: 4
  num_iterations: 1
  steps_per_generation: 1
  gradient_accumulation_steps: 1
  max_completion_length: 12
  temperature: 1.0
  top_k: 0
  loss_type: dr_grpo
  scale_rewards: none
  learning_rate: 3.0e-3
  lr_scheduler_type: constant
  max_grad_norm: 1.0e+9
  logging_steps: 1
  save_steps: 1
  save_total_limit: 2
methods:
  kl: {beta: 0.1}
  reset: {beta: 0.1, every: 1}
  gr: {ratio: 1.0, exclude: [embed_tokens, lm_head]}
"""
ROWS = ["0-start", "1-agree", "2-flatter", "3-checklist", "4-forbidden", "5-away"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ladder") / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def command(recipe: str, output: Path, *more: str) -> list[str]:
    return ["--recipe", recipe, "--output", str(output), *more]


@pytest.fixture(scope="module")
def compared(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, run once; the tests only read it."""
    output = tmp_path_factory.mktemp("compared") / "run"
    assert main(command(recipe, output, "--method", "none", "gr")) == 0
    return output


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def matrix(output: Path, run: str) -> Any:
    return read(output / run / "summary.json")["matrix"]


def metrics(output: Path, run: str) -> list[dict[str, Any]]:
    """The rows of a run without what is measured by the clock."""
    lines = (output / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "step_time"} for x in lines]


def table(output: Path) -> list[dict[str, str]]:
    with (output / "matrix.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The roots of (share - p)^2 = z^2 p (1 - p) / n, in place of the usual closed form."""
    z, share = 1.96, successes / trials
    a = 1 + z * z / trials
    b = -(2 * share + z * z / trials)
    root = math.sqrt(b * b - 4 * a * share * share)
    return max(0.0, (-b - root) / (2 * a)), min(1.0, (-b + root) / (2 * a))


def test_the_matrix_has_every_policy_stage_and_kind(compared: Path) -> None:
    rows = table(compared)
    assert len(rows) == 2 * len(ROWS) * len(STAGES) * 3
    assert {row["method"] for row in rows} == {"none", "gr"}
    for run in ("none-seed0", "gr-seed0"):
        assert list(matrix(compared, run)) == ROWS
        assert sorted(p.stem for p in (compared / run / "rows").iterdir()) == ROWS[1:]
        assert sorted(p.name for p in (compared / run / "stages").iterdir()) == ROWS[1:]
        assert not list((compared / run / "stages").rglob("training_args.bin"))
        assert any("gamed" in row for row in metrics(compared, run))
    assert matrix(compared, "none-seed0")["0-start"] == matrix(compared, "gr-seed0")["0-start"]
    assert matrix(compared, "none-seed0")["5-away"] != matrix(compared, "gr-seed0")["5-away"]
    assert [p.name for p in (compared / "start").iterdir()] == ["policy-0-eval-0.json"]
    assert (compared / "matrix.png").stat().st_size > 1000
    assert set(read(compared / "summary.json")["methods"]) == {"none", "gr"}
    assert "gr/penalty_ratio" in metrics(compared, "gr-seed0")[-1]


def test_the_numbers_of_the_table(compared: Path) -> None:
    sizes = {"gameable": 60, "ordinary": 20, "told": 10}
    gamed = 0
    for row in table(compared):
        n, count = int(row["n"]), int(row["gamed"])
        cell = matrix(compared, f"{row['method']}-seed0")[row["policy"]][row["stage"]]
        assert n == sizes[row["prompts"]] == cell[row["prompts"]]["n"]
        assert count == cell[row["prompts"]]["gamed"] <= n
        assert float(row["rate"]) == count / n
        found = (float(row["low"]), float(row["high"]))
        assert found == pytest.approx(wilson(count, n), abs=1e-9)
        assert 0 <= found[0] <= count / n + 1e-12
        assert count / n - 1e-12 <= found[1] <= 1
        assert int(row["undetected"]) <= count
        assert 0 <= float(row["true"]) <= 1
        if row["prompts"] == "ordinary":
            assert count == 0
            assert row["proxy"] == row["true"]
        gamed += count
    assert gamed > 0  # else nothing above was put to the test


def test_a_fresh_run_gives_the_same_matrix(recipe: str, compared: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(command(recipe, again, "--method", "none")) == 0
    assert matrix(again, "none-seed0") == matrix(compared, "none-seed0")
    assert metrics(again, "none-seed0") == metrics(compared, "none-seed0")
    # other prompts and completions on the same policies
    other = tmp_path / "other"
    given = command(recipe, other, "--method", "none", "--eval_seed", "1")
    assert main(given) == 0
    # the noise of another draw, not the same numbers again
    assert matrix(other, "none-seed0") != matrix(compared, "none-seed0")
    assert metrics(other, "none-seed0") == metrics(compared, "none-seed0")


def killed(arguments: list[str], owner: Any, name: str, calls: int, before: bool) -> None:
    """Run the command in a process that kills itself at the n-th call of `owner.name`."""
    child = os.fork()
    if child == 0:
        try:
            real: Callable[..., Any] = getattr(owner, name)
            count = [0]

            def counted(*given: Any, **options: Any) -> Any:
                count[0] += 1
                if before and count[0] == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*given, **options)
                if count[0] == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(owner, name, counted)
            main(arguments)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, f"it was to be killed at {name}, and ended with {status}"


def test_killed_at_any_point_it_ends_at_the_same_matrix(
    recipe: str, compared: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    fresh = command(recipe, parts, "--method", "gr")
    again = [*fresh, "--resume"]
    killed(fresh, task, "keep", 1, before=False)  # the first snapshot, and no checkpoint of it
    killed(again, loop, "write_text", 3, before=True)  # a checkpoint without its mark
    killed(again, task.shutil, "rmtree", 1, before=False)
    killed(again, task.os, "replace", 2, before=True)  # a snapshot that is not yet in its place
    killed(again, loop, "save_whole", 2, before=False)
    killed(again, task, "measure_row", 2, before=False)  # measured, and not yet written
    killed(again, measure, "write_text", 2, before=False)
    kept = sorted((parts / "gr-seed0" / "rows").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    assert kept  # rows that are not measured again
    assert main(again) == 0
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert matrix(parts, "gr-seed0") == matrix(compared, "gr-seed0")
    assert metrics(parts, "gr-seed0") == metrics(compared, "gr-seed0")


def test_other_methods_combinations_and_seeds(recipe: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    methods = ("reset", "gr", "matched", "gr+kl")
    small = ["--cell", "5", "--steps_per_stage", "1", "--away_steps", "0", "--policy_seed", "0"]
    assert main(command(recipe, output, *small, "--method", *methods)) == 0
    for method in methods:
        found = matrix(output, f"{method}-seed0")
        assert list(found) == ROWS[:-1]  # nothing was trained away
        assert len(metrics(output, f"{method}-seed0")) == 4
    lengths = {
        method: [json.loads(x)["length"] for x in (file).read_text().splitlines()]
        for method in ("gr", "matched")
        for file in [output / f"{method}-seed0" / "steps.jsonl"]
    }
    assert lengths["matched"] == pytest.approx(lengths["gr"], rel=1e-3)
    # a second command joins the comparison
    assert main(command(recipe, output, *small, "--method", "true", "--resume")) == 0
    assert len({row["method"] for row in table(output)}) == len(methods) + 1


def test_all_stages_at_once(recipe: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = ("--method", "none", "--order", "parallel", "--cell", "5", "--seed", "0", "1")
    assert main(command(recipe, output, *given, "--policy_seed", "0")) == 0
    for run in ("none-seed0", "none-seed1"):
        assert list(matrix(output, run)) == ["0-start", "1-all", "2-away"]
        rows = metrics(output, run)
        assert len(rows) == 4 * 2 + 2
        seen = {stage for stage in STAGES if any(f"level/{stage}/true" in row for row in rows)}
        assert seen == set(STAGES) - {"ledger"}
    assert {row["method"] for row in table(output)} == {"none parallel"}
    assert len({row["seed"] for row in table(output)}) == 2


def test_another_size_of_the_cells_is_refused(
    recipe: str, compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (compared / "none-seed0" / "summary.json").read_bytes()
    given = command(recipe, compared, "--method", "none", "--cell", "70", "--resume")
    assert main(given) == 2
    assert "differ in: ladder" in capsys.readouterr().err
    assert main(command(recipe, compared, "--method", "none")) == 2
    assert "--resume" in capsys.readouterr().err
    assert (compared / "none-seed0" / "summary.json").read_bytes() == before


def test_a_row_that_was_measured_otherwise_is_measured_again(tmp_path: Path) -> None:
    path, made = tmp_path / "rows" / "row.json", []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"times": len(made)}

    assert saved_row(path, {"cell": 5}, make) == {"times": 1}
    assert saved_row(path, {"cell": 5}, make) == {"times": 1}
    assert saved_row(path, {"cell": 6}, make) == {"times": 2}
    assert saved_row(path, {"cell": 6}, make) == {"times": 2}


def test_the_report_reads_the_folder(compared: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert integrations_main(["report", str(compared), "--output", str(page)]) == 0
    text = page.read_text()
    assert "none-seed0" in text
    assert "gr-seed0" in text
    for name in ("stages", "rows", "start/policy"):
        assert f"seed0/{name}" not in text  # no run of its own


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--cell", "0"], "cell must be at least 1"),
        (["--steps_per_stage", "0"], "steps_per_stage must be at least 1"),
        (["--away_steps", "-1"], "away_steps must be at least 0"),
        (["--eval_seed", "-1"], "eval_seed must be at least 0"),
        (["--policy_seed", "-1"], "--policy_seed takes"),
        (["--seed", "1", "1"], "--seed takes different"),
        (["--max_steps", "5"], "use --steps_per_stage"),
        (["--num_train_epochs", "2"], "use --steps_per_stage"),
        (["--shuffle_dataset", "True"], "set by the ladder"),
        (["--num_generations", "5"], "no multiple of num_generations 5"),
        (["--num_iterations", "2"], "leave out --num_iterations"),
        (["--steps_per_generation", "2"], "--steps_per_generation 1"),
        (["--completions_per_step", "32"], "--steps_per_generation 2"),
        (["--generation_batch_size", "32"], "--generation_batch_size"),
        (["--max_completion_length", "5000"], "measured at 12 tokens"),
        (["--max_completion_length", "6"], "measured at 12 tokens"),
        (["--temperature", "0"], "above 0"),
        (["--ratio", "-1"], "ratio"),
        (["--exclude", "nothing"], "--exclude nothing"),
        (["--beta", "0.1"], "--beta has no effect"),
        (["--save_steps", "3", "--logging_steps", "2"], "multiple of logging_steps"),
        (["--learning_rte", "1"], "did you mean --learning_rate?"),
        (["--model", "no/such/folder"], "no such folder"),
        (["--jobs", "0"], "--jobs"),
        (["--method", "sgd"], "unknown method"),
        (["--method", "gr", "gr"], "twice"),
        (["--method", "matched"], "--method gr matched"),
        (["--method", "kl", "--algorithm", "expert"], "--algorithm grpo"),
        (["--recipe", "none"], "unknown recipe"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main(command(recipe, tmp_path / "run", "--method", "gr", *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ladder: {cell: many}", "cell must be int"),
        ("ladder: {cell: 0}", "cell must be at least 1"),
        ("ladder: {cells: 5}", "cells"),
        ("ladder: {model: m}", "model"),
        ("ladder: {seed: 1}", "seed"),
        ("world: {widht: 3}", "widht"),
        ("world: {width: wide}", "width"),
        ("world: {gaming: 1.5}", "gaming"),
        ("expert: {samples: 1}\nworld: {steps: 1}", "samples"),
        ("methods: {sgd: {}}", "sgd"),
        ("ladder: {cell: 5}", "--model"),
        ("ladder: [", "YAML"),
    ],
)
def test_a_broken_recipe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    algorithm = ["--algorithm", "expert"] if "expert" in text else []
    assert main(command(str(path), tmp_path / "run", "--method", "none", *algorithm)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
