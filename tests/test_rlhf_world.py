"""`python -m integrations rlhf` in the preference worlds, at smoke size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from integrations.__main__ import main as start
from integrations.recipe import FOLDER
from integrations.results.rlhf_plan import Setting, make_arm
from integrations.rlhf import recipe as recipes
from integrations.rlhf.command import arguments_parser, main, make_plan
from integrations.rlhf.files import read_rows
from tests.rlhf_cases import weights


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def plan(*arguments: str) -> Any:
    given = ["--output", "unused", *arguments]
    return make_plan(*arguments_parser().parse_known_args(given), given)


def test_methods_in_both_worlds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    methods = ["none", "gr", "kl", "reset", "gr+kl"]
    given = ["rlhf", "--recipe", "smoke", "--world", "A", "B", "--method", *methods]
    assert start([*given, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for line in ("pairs 0", "labels 0", "policy 0", "reward model 0", "evaluate gr-A0-seed0"):
        assert line in shown, "every stage shows progress"
    ends = {}
    for kind in "AB":
        for method in methods:
            folder = output / f"{method}-{kind}0-seed0"
            result = json.loads((folder / "evaluation.json").read_text())
            assert (result["world"], result["method"]) == (kind, method)
            assert result["win_low"] <= result["win_rate"] <= result["win_high"]
            assert result["gold"] is not None
            ends[kind, method] = weights(folder)["lm_head.weight"]
            rows = read_rows(folder / "metrics.jsonl")
            assert ("gr/penalty_ratio" in rows[-1]) == ("gr" in method)
            assert (rows[-1]["kl_reference"] is None) == (method in ("none", "gr"))
    for method in methods[1:]:
        assert not torch.equal(ends["A", "none"], ends["A", method]), method
    assert len((output / "evaluation.csv").read_text().splitlines()) == 11
    assert (output / "evaluation.md").read_text().count("| B0 |") == 5
    assert {f"{m} ({k})" for m in methods for k in "AB"} == set(
        json.loads((output / "summary.json").read_text())["methods"]
    )


def test_rloo_resets_and_stages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--recipe", "smoke", "--trainer", "rloo", "--method", "gr+reset", "--reset_every", "2"]
    given += ["--world_seed", "3", "--output", str(tmp_path / "run"), "--steps", "2"]
    assert main([*given, "--stage", "rl"]) == 2
    message = capsys.readouterr().err
    assert "stage rl needs the result of stage sft" in message
    assert f"python -m integrations rlhf {' '.join(given)} --stage sft" in message
    for name in ("sft", "pairs", "labels", "reward", "rl", "evaluate"):
        assert main([*given, "--stage", name]) == 0
    folder = tmp_path / "run" / "gr+reset-A3-rloo-seed0"
    assert json.loads((folder / "settings.json").read_text())["reference"]["every"] == 2
    assert json.loads((folder / "evaluation.json").read_text())["trainer"] == "rloo"
    # the two files of pairs say the same, and the labels follow gold more often than not
    stages = {stage.name: stage.folder for stage in plan(*given).pipelines[0].stages()}
    pairs, labels = (read_rows(stages[name] / "pairs.jsonl") for name in ("pairs", "labels"))
    assert len(pairs) == len(labels) > 30
    for pair, label in zip(pairs, labels, strict=True):
        assert {pair["first"], pair["second"]} == {label["chosen"], label["rejected"]}
        assert pair["prompt"] == label["prompt"]
    assert sum(row["gold_chosen"] > row["gold_rejected"] for row in labels) > len(labels) / 2


def test_the_tiny_recipe_runs_what_the_page_reports() -> None:
    made = plan("--recipe", "tiny", "--method", "none", "gr", "kl", "gr+kl", "reset")
    assert [arm.world.name for arm in made.arms] == ["A0"] * 5 + ["B0"] * 5
    chosen = json.loads(Path("docs/results/rlhf/chosen_again.json").read_text())
    saving = ("save_strategy", "save_steps", "save_total_limit")
    for arm in made.arms:
        setting = Setting(**chosen[arm.method]) if arm.method != "none" else Setting("", "none")
        reported = make_arm(setting, arm.world.kind, 0, 0)
        ours = {k: v for k, v in arm.config.items() if k not in saving}
        assert ours == {k: v for k, v in reported.config.items() if k not in saving}
        assert (arm.world, arm.reference) == (reported.world, reported.reference)
        assert (arm.gr or {}).get("ratio") == (reported.gr or {}).get("ratio")
    for name in ("smoke", "real"):
        assert recipes.load(name).steps


def test_a_rule_raises_the_alarm_and_stops_the_run(tmp_path: Path) -> None:
    recipe = tmp_path / "alarmed.yaml"
    text = (FOLDER / "rlhf-smoke.yaml").read_text()
    rule = "\nalarm: {kl_limit: -1.0, smooth: 1, baseline: 1}\n"  # holds at the first row
    recipe.write_text(text + rule)
    given = ["--recipe", str(recipe), "--world", "A", "--method", "none", "--output"]
    assert main([*given, str(tmp_path / "log"), "--alarm", "log"]) == 0
    assert main([*given, str(tmp_path / "stop"), "--alarm", "stop"]) == 0
    steps = recipes.load("smoke").steps
    for name, last in (("log", steps), ("stop", 1)):
        folder = tmp_path / name / "none-A0-seed0"
        assert read_rows(folder / "metrics.jsonl")[-1]["step"] == last
        row = read_rows(folder / "monitor.jsonl")[0]
        assert {"proxy", "gold", "spread", "kl", "accuracy"} <= row.keys()


def test_what_is_given_wins_over_the_recipe() -> None:
    given = "--recipe smoke --method gr+reset --ratio 3 --reset-every 7 --reset_mix 0.5 --beta 0.7"
    given += " --learning_rate 0.5 --eval_prompts 9 --seed 4 5 --world B A --world_seed 1 2"
    made = plan(*given.split())
    arm = made.arms[0]
    assert (arm.gr["ratio"], arm.config["beta"], arm.config["learning_rate"]) == (3.0, 0.7, 0.5)
    assert arm.reference == {"every": 7, "mix": 0.5}
    assert made.evaluation["prompts"] == 9
    names = [arm.name for arm in made.arms]
    assert names == [f"gr+reset-{w}{n}-seed{s}" for w in "BA" for n in (1, 2) for s in (4, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "best"], "unknown method 'best'"),
        (["--method", "kl+reset"], "reset already has a KL term"),
        (["--seed", "1", "1"], "--seed takes different whole numbers"),
        (["--world_seed", "-1"], "--world_seed takes different whole numbers"),
        (["--method", "none", "--beta", "1"], "--beta has no effect"),
        (["--method", "kl", "--reset_every", "5"], "--reset_every: no effect"),
        (["--method", "reset", "--reset_mix", "2"], "mix is a share"),
        (["--method", "gr", "--ratio", "-1"], "ratio"),
        (["--method", "gr", "--exclude", "nothing"], "--exclude nothing: no parameter"),
        (["--trainer", "rloo", "--loss_type", "grpo"], "nor a field of TRL's RLOOConfig"),
        (["--num_generations", "3"], "divisible by num_generations"),
        (["--save_steps", "3", "--logging_steps", "2"], "must be a multiple of logging_steps"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--eval_samples", "1"], "--eval_samples must be at least 2"),
        (["--recipe", "huge"], "unknown recipe 'huge'; known: alpaca-0.5b"),
        (["--sft", "chosen"], "--sft is for real models: give --model too"),
        (["--recipe", "smoke", "--alarm", "log"], "--alarm needs a rule"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = tmp_path / "run"
    recipe = [] if "--recipe" in arguments else ["--recipe", "smoke"]
    assert main([*recipe, "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_recipes_with_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, message in (
        ("steps: 1\nrewards: {}", "unknown key rewards"),
        ("steps: none", "steps must be a whole number"),
        ("steps: 1\nreward: {seed: 3}", "reward: unknown key seed"),
        ("steps: 1\nreward: {pairs: many}", "pairs must be int, got 'many'"),
        ("steps: 1\nmethods: {gr: {beta: 1}}", "methods, gr: unknown key beta"),
        ("steps: 1\nreal: {model: x}", "real: unknown key model"),
        ("steps: [", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            recipes.load(str(path))


def test_another_run_in_the_folder_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["--recipe", "smoke", "--output", str(tmp_path)]) == 2
    assert "is not empty; add --resume" in capsys.readouterr().err
