"""`python -m integrations rlhf --model ...`: from file, gold model and judge to the evaluation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from integrations.rewards.preference_judge import PreferenceJudge
from integrations.rlhf.command import main
from integrations.rlhf.files import read_rows
from tests.rlhf_cases import PROMPTS, make_place, real

Place = dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("models"))


def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def stage(output: Path, name: str) -> Path:
    (folder,) = (output / "stages").glob(f"{name}-*")
    return folder


def test_preferences_from_a_file(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = real(place, output, "--preferences", place["pairs"], "--reward_method", "gr")
    assert main([*given, "--method", "none", "gr+kl"]) == 0
    rows = read_rows(stage(output, "labels") / "pairs.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS[:-4], "four prompts are held out"
    facts = json.loads((stage(output, "reward") / "facts.json").read_text())
    assert facts["test"]["pairs"] == 4
    for method in ("none", "gr+kl"):
        result = evaluation(output / f"{method}-seed0")
        assert result["win_by"] == "proxy"
        assert result["gold"] is None
        assert result["prompts"] == 4
        assert result["kl"] > 0
        lines = (output / f"{method}-seed0" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 4
        assert json.loads(lines[0])["true"] is None
    assert "by the proxy" in (output / "evaluation.md").read_text()
    assert len((output / "evaluation.csv").read_text().splitlines()) == 3
    # nothing changes, so nothing is run again
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")}
    assert main([*given, "--method", "none", "gr+kl", "--resume"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")}


def test_gold_model_labels_chats_and_is_watched(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = real(
        place, output, "--prompts", place["chats"], "--gold-model", place["gold"], model="chat"
    )
    assert main([*given, "--method", "reset", "--trainer", "rloo"]) == 0
    rows = read_rows(stage(output, "labels") / "pairs.jsonl")
    assert rows
    assert all(row["gold_chosen"] > row["gold_rejected"] for row in rows)
    assert rows[0]["chosen"][0]["role"] == "assistant"
    counts = json.loads((stage(output, "pairs") / "counts.json").read_text())
    assert counts["sampled"] == 8
    assert counts["kept"] == 8 - counts["empty"] - counts["equal"]
    result = evaluation(output / "reset-rloo-seed0")
    assert result["win_by"] == "gold"
    assert 0 <= result["accuracy"] <= 1
    lines = (output / "reset-rloo-seed0" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["true"] is not None for line in lines)
    # the labels are the gold model's own: its scores, once more and one by one
    from integrations.rlhf.scorer import Scorer

    scorer = Scorer(place["gold"], batch=1)
    again = [scorer([row["prompt"]], [row["chosen"][0]["content"]])[0] for row in rows]
    assert again == pytest.approx([row["gold_chosen"] for row in rows], abs=1e-5)


def longer(self: PreferenceJudge, inputs: list[list[int]]) -> list[str]:
    """A judge that prefers the longer reply."""
    out = []
    for ids in inputs:
        text = self.tokenizer.decode(ids)
        a, b = (re.findall(rf"<reply_{x}>\n(.*?)\n</reply_{x}>", text, re.S)[-1] for x in "ab")  # type: ignore[call-overload]
        out.append(f"Better: {'A' if len(a) > len(b) else 'B'}\nIt is longer.")
    return out


def test_a_judge_labels_and_an_existing_reward_model_is_measured(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreferenceJudge, "_generate", longer)
    output = tmp_path / "run"
    more = ("--judge_model", place["chat"], "--reward_model", place["gold"], "--pairs", "10")
    given = real(place, output, "--prompts", place["prompts"], "--sft", place["demos"], *more)
    assert main([*given, "--method", "kl", "--steps", "2"]) == 0
    rows = read_rows(stage(output, "labels") / "pairs.jsonl")
    assert rows
    assert all(len(row["chosen"].strip()) >= len(row["rejected"].strip()) for row in rows)
    assert not (stage(output, "reward") / "model.safetensors").exists()
    result = evaluation(output / "kl-seed0")
    assert result["win_by"] == "judge"
    assert result["judged"] <= 4


def test_each_stage_alone(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = real(
        place, tmp_path / "run", "--prompts", place["prompts"], "--gold_model", place["gold"]
    )
    given += ["--sft", place["demos"], "--method", "none"]
    for name in ("evaluate", "rl", "reward", "labels", "pairs"):
        assert main([*given, "--stage", name]) == 2
        message = capsys.readouterr().err
        assert f"stage {name} needs the result of stage sft, which is not there" in message
        assert f"rlhf {' '.join(given)} --stage sft" in message
    assert main([*given, "--stage", "sft"]) == 0
    assert main([*given, "--stage", "labels"]) == 2
    assert "needs the result of stage pairs" in capsys.readouterr().err
    for name in ("pairs", "labels", "reward"):
        assert main([*given, "--stage", name]) == 0
        assert f"{name} is in " in capsys.readouterr().out
    assert main([*given, "--stage", "evaluate"]) == 2
    assert "needs the result of stage rl for none-seed0" in capsys.readouterr().err
    assert main([*given, "--stage", "rl"]) == 0
    assert not (tmp_path / "run" / "none-seed0" / "evaluation.json").exists()
    assert main([*given, "--stage", "evaluate"]) == 0
    assert evaluation(tmp_path / "run" / "none-seed0")["win_by"] == "gold"


def test_a_change_rebuilds_what_follows_and_no_more(place: Place, tmp_path: Path) -> None:
    from integrations.rlhf.model_stages import real_stages
    from integrations.rlhf.options import RlhfConfig

    def names(**changes: Any) -> dict[str, str]:
        options: dict[str, Any] = {
            "model": place["model"],
            "prompts": place["prompts"],
            "sft": place["demos"],
            "gold_model": place["gold"],
        }
        stages = real_stages(RlhfConfig(**options | changes), tmp_path)
        return {s.name: s.folder.name for s in stages}

    base = names()
    assert list(base) == ["sft", "pairs", "labels", "reward"]
    changed: dict[tuple[str, Any], set[str]] = {
        ("sft_lr", 1.0): {"sft", "pairs", "labels", "reward"},
        ("tokens", 9): {"pairs", "labels", "reward"},
        ("judge_model", place["chat"]): {"labels", "reward"},
        ("reward_lr", 1.0): {"reward"},
        ("prompts", place["chats"]): {"pairs", "labels", "reward"},
        ("judge_patience", 9): set(),
    }
    for (name, value), expected in changed.items():
        new = names(**{name: value})
        assert {k for k in base if new[k] != base[k]} == expected, name
    demos = Path(place["demos"])
    text = demos.read_text()
    demos.write_text(text + text.splitlines()[0] + "\n")
    assert names()["sft"] != base["sft"], "the file's content counts, not its name"
    demos.write_text(text)
    assert names() == base
