"""A command that is killed in any stage and resumed ends at the same weights, bit for bit."""

import json
from pathlib import Path

import pytest

import integrations.cache as cache
import integrations.loop as loop
import integrations.rlhf.evaluate as evaluation
import integrations.rlhf.files as files
import integrations.rlhf.training as training
import integrations.worlds.preferences as preferences
from integrations.rlhf.command import main
from tests.rlhf_cases import after, killed, make_place, real, same_weights


def results(folder: Path) -> dict:
    result = json.loads((folder / "evaluation.json").read_text())
    return {k: v for k, v in result.items() if k != "key"}


def test_real_models_killed_in_every_stage(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--prompts", place["prompts"], "--sft", place["demos"], "--gold_model", place["gold"]]
    more += ["--method", "gr+reset", "--reward_method", "grm", "--sample_batch_size", "4"]
    assert main(real(place, whole, *more)) == 0
    again = real(place, cut, *more, "--resume")
    # the last checkpoint of SFT is whole, its result is not yet there
    killed(again, after(training, "write_text", 2))
    (sft,) = (cut / "stages").glob(".sft-*.part/kept/checkpoint-4")
    assert (sft / "complete").exists()
    killed(again, after(files, "write_rows", 1))  # one batch of pairs
    assert len(list((cut / "stages").glob("sft-*"))) == 1
    (kept,) = (cut / "stages").glob(".pairs-*.part/kept/*.jsonl")
    assert kept.name == "0000000.jsonl"
    killed(again, after(training, "write_text", 1))  # the first checkpoint of the reward model
    assert not kept.exists(), "the stage went on and has finished"
    assert list((cut / "stages").glob(".reward-*.part/kept/checkpoint-2/complete"))
    killed(again, after(loop, "write_text", 1))  # the first checkpoint of RL
    folder = cut / "gr+reset-seed0"
    assert (folder / "checkpoint-2" / "complete").exists()
    killed(again, after(evaluation, "key_of", 1))  # measured, and not yet written
    assert (folder / "summary.json").exists()
    assert not (folder / "evaluation.json").exists()
    assert main(again) == 0
    assert same_weights(whole / folder.name, folder)
    assert results(whole / folder.name) == results(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["resumed_from"] == 2
    for name in ("sft", "reward"):
        (one,), (two,) = ((p / "stages").glob(f"{name}-*/model.safetensors") for p in (whole, cut))
        assert one.read_bytes() == two.read_bytes()
    assert not list((cut / "stages").glob(".*"))


def test_worlds_killed_in_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--recipe", "smoke", "--world", "B", "--method", "gr+kl", "--output"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    assert main([*command, str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    again = [*command, str(tmp_path / "cut"), "--resume"]
    for owner, name, calls in (
        (preferences.language, "make_tokenizer", 1),  # in SFT
        (preferences, "sample_pairs", 1),  # in pairs
        (preferences, "sample_pairs", 2),  # in labels, after pairs
        (preferences, "_trainer_options", 1),  # in the reward model
    ):
        killed(again, after(owner, name, calls))
    assert not list(cache.cache_root().glob("preference-reward-*"))
    killed(again, after(loop, "write_text", 2))  # the last checkpoint, before the summary
    assert main(again) == 0
    folder = Path("gr+kl-B0-seed0")
    assert same_weights(tmp_path / "whole" / folder, tmp_path / "cut" / folder)
    assert results(tmp_path / "whole" / folder) == results(tmp_path / "cut" / folder)
