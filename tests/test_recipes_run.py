"""Every recipe of a real model, run on small models: broken off, resumed, evaluated."""

import json
from pathlib import Path

import pytest
import yaml

from integrations.watch.monitor import Monitor
from tests.recipe_cases import (
    FOLDER,
    command,
    difference,
    make_place,
    names,
    rows,
    run,
    weights,
)

Place = dict[str, str]
# every recipe runs one method; together they run all, and gr in each scenario
METHODS = {
    "rules-gsm8k": "none",
    "rules-gsm8k-1.5b": "reset",
    "rules-math": "kl",
    "judge-gsm8k": "none",
    "judge-gsm8k-1.5b": "kl",
    "rlhf-alpaca-1.5b": "none",
    "rlhf-alpaca-3b": "kl",
    "rlhf-tldr-pythia-2.8b": "reset",
    "rlhf-tldr-qwen-0.5b": "reset",
    "rlhf-tldr-qwen-1.5b": "none",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("name", names())
def test_dry_run(name: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS.get(name, "gr")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*command(name, place, whole), "--method", method]) == 0
    arm = f"{method}-seed0"
    found = rows(whole / arm)
    assert [row["step"] for row in found] == [1, 2]
    assert ("gr/penalty_ratio" in found[0]) == (method == "gr")
    assert json.loads((whole / arm / "summary.json").read_text())["final"]
    settings = json.loads((whole / arm / "settings.json").read_text())["config"]
    assert settings["gradient_accumulation_steps"] == 2, "8 completions, 4 at once"

    given = [*command(name, place, broken), "--method", method]
    with monkeypatch.context() as patch:
        proxy = Monitor.proxy

        def breaks(self: Monitor, *arguments: object, **options: object) -> list[float]:
            if options["trainer_state"].global_step == 1:  # type: ignore[attr-defined]
                raise OSError("no power")
            return proxy(self, *arguments, **options)  # type: ignore[arg-type]

        patch.setattr(Monitor, "proxy", breaks)
        assert run(given) == 1
        assert not (broken / arm / "summary.json").exists()
    assert run([*given, "--resume"]) == 0
    assert json.loads((broken / arm / "summary.json").read_text())["resumed_from"] == 1
    assert difference(weights(whole / arm), weights(broken / arm)) == 0
    assert rows(broken / arm) == found
    if not name.startswith("judge"):
        a, b = (json.loads((f / arm / "evaluation.json").read_text()) for f in (whole, broken))
        for result in (a, b):
            result.pop("key", None)  # of rlhf: it names the folders of the stages
        assert a == b


@pytest.mark.parametrize("name", names())
def test_what_a_recipe_holds(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert recipe["completions_per_step"] in (256, 1024)
    trainer = recipe["trainer"]
    assert recipe["completions_per_step"] % trainer["per_device_train_batch_size"] == 0
    assert trainer["per_device_train_batch_size"] % trainer["num_generations"] == 0
    assert trainer["max_grad_norm"] == 1.0
    assert {"kl", "reset", "gr"} <= recipe["methods"].keys()
    if name == "rlhf-real":
        return
    assert "2602.18037" in text
    assert ("model" in recipe.get("task", {})) == (name not in ("rules-gsm8k", "judge-gsm8k"))
    for line in ("python -m", "--multi_gpu", "torchrun", "--fsdp_version 2", "--use_vllm true"):
        assert line in text, line
