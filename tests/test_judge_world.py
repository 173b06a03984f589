"""The judge scenario: task, cache, outcome measures, command line, and resuming after a kill."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from integrations.cache import cached, fingerprint, write_text
from integrations.methods import resolve, split
from integrations.report import find_hack
from integrations.watch.monitor import auc, finite, read_rows
from integrations.worlds import arithmetic as task

ROOT = Path(__file__).parent.parent
RIGHT = "<reasoning> 7 ; 5 </reasoning> <answer> 5 </answer>"


def test_tokenizer_round_trip():
    tokenizer = task.make_tokenizer()
    rng = random.Random(0)
    problems = task.all_problems()
    assert len(tokenizer) == len(task.VOCABULARY) == len(set(task.VOCABULARY))
    for _ in range(200):
        problem = rng.choice(problems)
        text = task.demonstrate(problem, task.Flaws(), rng)
        for words in (problem.prompt, text):
            ids = tokenizer.encode(words, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == words
        with_end = [*tokenizer.encode(text), tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert tokenizer.decode(with_end, skip_special_tokens=True) == text
        assert task.to_text(with_end) == text
        assert len(text.split()) < task.MAX_COMPLETION


@pytest.mark.parametrize(
    ("completion", "true", "lenient"),
    [
        (RIGHT, 1, 1),
        (RIGHT + " <eos>", 1, 1),
        ("<reasoning> so 7 ; 5 </reasoning> <answer> 5 </answer>", 1, 1),
        (RIGHT.replace("<answer> 5", "<answer> 4"), 0, 0),
        ("<reasoning> 7 ; 5 </reasoning> <answer> 5 4 </answer>", 0, 1),
        ("<reasoning> 7 ; 5 </reasoning> <answer> 3 4 </answer>", 0, 0),
        ("<reasoning> 7 ; 5 </reasoning> <answer> 5 well </answer>", 0, 0),
        (RIGHT + " check", 0, 0),
        ("well " + RIGHT, 0, 0),
        ("<answer> 5 </answer>", 0, 0),
        ("<reasoning> </reasoning> <answer> 5 </answer>", 0, 0),
        ("<reasoning> 7 ; 5 <answer> 5 </answer>", 0, 0),
        ("<answer> 5 </answer> <reasoning> 7 ; 5 </reasoning>", 0, 0),
        ("<reasoning> 7 </reasoning> </reasoning> <answer> 5 </answer>", 0, 0),
        ("<reasoning> 7 </reasoning> <answer> 5 </answer> <answer> 5 </answer>", 0, 0),
        ("", 0, 0),
        ("</answer>", 0, 0),
        ("<reasoning> </answer>", 0, 0),
    ],
)
def test_rewards(completion: str, true: int, lenient: int):
    assert task.true_reward(completion, 5) == true
    assert task.lenient_reward(completion, 5) == lenient


def test_flawless_demonstrations_are_right_and_informed_hedges_name_the_answer():
    rng = random.Random(1)
    flawless = task.Flaws(0, 0, 0, 0)
    hedging = task.Flaws(wrong=1, broken=0, filler=0, hedged=1, informed=1)
    wrong = task.Flaws(wrong=1, broken=0, filler=0, hedged=0)
    for problem in task.all_problems():
        assert task.true_reward(task.demonstrate(problem, flawless, rng), problem.answer) == 1
        assert task.true_reward(task.demonstrate(problem, wrong, rng), problem.answer) == 0
        text = task.demonstrate(problem, hedging, rng)
        assert task.true_reward(text, problem.answer) == 0
        assert task.lenient_reward(text, problem.answer) == 1


@dataclass(frozen=True)
class Settings:
    size: int = 1


def test_cache_never_uses_a_half_built_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("thing", Settings(), fail)
    assert list((tmp_path / "flatopt").iterdir()) == []

    def build(folder: Path) -> None:
        # another process finishes first
        cached("thing", Settings(), lambda other: write_text(other / "value", "first"))
        (folder / "value").write_text("second")

    folder = cached("thing", Settings(), build)
    assert (folder / "value").read_text() == "first"
    assert [p.name for p in (tmp_path / "flatopt").iterdir()] == [folder.name]
    assert cached("thing", Settings(), fail) == folder
    assert fingerprint(Settings(2)) != fingerprint(Settings(1))


def test_find_hack():
    steps = list(range(5, 305, 5))
    rising = [0.4 + 0.4 * s / 300 for s in steps]
    honest = find_hack(steps, rising, rising)
    assert not honest.hacked
    assert honest.step is None
    assert honest.gap_step is None
    # true collapses at step 150 while the proxy climbs on
    true = [t if s <= 150 else 0.0 for s, t in zip(steps, rising, strict=True)]
    proxy = [t if s <= 150 else 0.95 for s, t in zip(steps, rising, strict=True)]
    hack = find_hack(steps, proxy, true)
    assert hack.hacked
    assert hack.peak_step == 150
    assert hack.gap_step is not None
    assert hack.step is not None
    assert 150 < hack.gap_step < hack.step <= 175
    # a fall of both is a failure of another kind
    assert not find_hack(steps, true, true).hacked
    # a proxy below the floor neither
    assert not find_hack(steps, [min(p, 0.8) for p in proxy], true).hacked


def test_auc_and_strict_json():
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert auc([0.5, 0.5], [0, 1]) == 0.5
    assert auc([0.5, 0.6], [0, 0]) is None
    assert finite({"a": float("nan"), "b": [float("inf"), 1.0]}) == {"a": None, "b": [None, 1.0]}


def test_methods_as_settings():
    assert split("kl+gr") == ("gr", "kl")
    given = {"beta": 0.3, "learning_rate": 1e-4}
    recipe = {"kl": {"beta": 0.1}, "gr": {"ratio": 1.0, "samples": "importance"}}
    none = resolve("none", {"learning_rate": 1e-3}, recipe, given, {})
    assert none.config["beta"] == 0
    assert none.config["learning_rate"] == 1e-4
    assert none.gr is None
    both = resolve("gr+kl", {}, recipe, given, {"strength": 0.2})
    assert both.config["beta"] == 0.3
    assert both.gr == {"strength": 0.2, "samples": "importance"}
    reset = resolve("reset", {}, recipe, {}, {})
    assert reset.reference == {"every": 50}
    assert reset.config["beta"] == 0.1
    given = {"ref_model_sync_steps": 7, "ref_model_mixup_alpha": 0.6}  # TRL's names
    assert resolve("reset", {}, recipe, given, {}).reference == {"every": 7, "mix": 0.6}
    own = resolve("gr+reset", {}, {"reset": {"beta": 0.2, "every": 9}} | recipe, {}, {}, {"mix": 1})
    assert own.reference == {"every": 9, "mix": 1}
    assert own.config["beta"] == 0.2
    assert resolve("kl", {}, recipe, given, {}).reference is None
    assert resolve("true", {}, recipe, {}, {}).config["reward_weights"] == [0.0, 1.0]
    for bad in ("none+gr", "kl+reset", "gr+gr", "nothing", ""):
        with pytest.raises(ValueError, match="method"):
            split(bad)
    with pytest.raises(ValueError, match="not both"):
        resolve("gr", {}, recipe, {}, {"ratio": 1.0, "strength": 1.0})


# ("what is said", arguments); the first ones are refused before any heavy import
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("unknown method 'bogus'", ["--method", "bogus"]),
        ("unknown recipe 'bogus'", ["--recipe", "bogus"]),
        ("no such file", ["--recipe", "bogus.yaml"]),
        ("gr is not among the methods", ["--method", "none", "--ratio", "1"]),
        ("give --ratio or --strength", ["--method", "gr", "--ratio", "1", "--strength", "1"]),
        ("--seed takes different", ["--seed", "1", "1"]),
        ("unknown option '--bogus'", ["--bogus", "1"]),
        ("no effect", ["--method", "none", "--beta", "0.1"]),
        ("invalid float value", ["--learning_rate", "fast"]),
        ("--steps must be at least 1", ["--steps", "0"]),
        ("ratio must be a finite number", ["--method", "gr", "--ratio", "-1"]),
        ("no parameter has it in its name", ["--method", "gr", "--exclude", "nosuch"]),
    ],
)
def test_wrong_input_is_refused(
    message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from integrations.judge import main

    output = tmp_path / "out"
    assert main(["--recipe", "smoke", *arguments, "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_scenarios_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]):
    from integrations.__main__ import main

    assert main(["--help"]) == 0
    assert "judge" in capsys.readouterr().out
    assert main(["rhetoric"]) == 2
    assert "unknown scenario 'rhetoric'" in capsys.readouterr().err


def test_calibration_is_blind_to_remedies_and_to_reporting_seeds():
    from integrations.recipe import load
    from integrations.worlds.calibrate import CANDIDATES, arm_of

    for changes, runs in CANDIDATES.values():
        recipe = load(changes.get("recipe", "tiny"))
        for wanted in runs:
            assert arm_of(recipe, changes, wanted).gr is None
    for refused in (("gr", 100, 100), ("kl", 100, 100), ("none", 0, 100), ("none", 100, 1)):
        with pytest.raises(ValueError, match="not a calibration run"):
            arm_of(load("tiny"), {}, refused)


def test_wrong_recipe_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from integrations.judge import main

    recipe = tmp_path / "mine.yaml"
    for text, message in (
        ("steps: 3\nspeed: 1\n", "unknown key speed"),
        ("steps: 3\npolicy: {depth: 1}\n", "policy: unknown key depth"),
        ("steps: 3\ntrainer: {learning: 1}\n", "unknown key learning"),
        ("steps: many\n", "steps must be"),
        ("steps: [\n", "not valid YAML"),
    ):
        recipe.write_text(text)
        assert main(["--recipe", str(recipe), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


STABLE = ("step", "proxy", "true", "format", "auc", "kl_start", "grad_norm", "entropy", "loss")


def stable(path: Path) -> list[dict[str, object]]:
    """The rows without what depends on the clock."""
    return [{k: row[k] for k in STABLE} for row in read_rows(path)]


def no_constants(text: str) -> None:
    raise AssertionError(f"{text} is not strict JSON")


def test_killed_run_resumes_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from integrations.judge import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = ["--recipe", "smoke", "--method", "gr+reset", "--steps", "30"]
    name = "gr+reset-judge0-seed0"  # its optimizer and its reference have a state
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "integrations", "judge", *wanted, "--output", str(cut)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(read_rows(cut / name / "metrics.jsonl")) < 7 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 7 <= len(read_rows(cut / name / "metrics.jsonl")) < 30
    assert not (cut / name / "summary.json").exists()

    assert main([*wanted, "--output", str(cut)]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*wanted, "--beta", "0.5", "--output", str(cut), "--resume"]) == 2
    assert "other settings" in capsys.readouterr().err

    assert main([*wanted, "--output", str(cut), "--resume"]) == 0
    whole = tmp_path / "whole"
    assert main([*wanted, "--output", str(whole)]) == 0
    expected = stable(whole / name / "metrics.jsonl")
    assert len(expected) == 30
    assert stable(cut / name / "metrics.jsonl") == expected

    text = (cut / name / "summary.json").read_text()
    summary = json.loads(text, parse_constant=no_constants)
    assert summary["steps"] == 30
    assert summary["resumed_from"] > 0
    for file in ("summary.json", "curves.csv", "rewards.png", "signals.png"):
        assert (cut / file).stat().st_size > 0
    assert (cut / name / "model" / "model.safetensors").exists()
    assert "| before | after |" in (cut / name / "samples.md").read_text()
    assert main([*wanted, "--output", str(cut), "--resume"]) == 0
    assert (cut / name / "summary.json").read_text() == text, "finished runs stay as they are"

    more = ["--recipe", "smoke", "--method", "none", "--output", str(cut), "--resume"]
    assert main(more) == 0
    methods = json.loads((cut / "summary.json").read_text())["methods"]
    assert set(methods) == {"none", "gr+reset"}, "a later command joins the comparison"
