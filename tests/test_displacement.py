"""Step lengths: measured from the weights, and a run that follows another's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from integrations.matched import check_partners, paired, partner_of, read_lengths
from integrations.methods import resolve, split
from integrations.watch.monitor import Monitor
from tests.recipe_cases import command, difference, make_place, rows, run, weights

Place = dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def lengths(folder: Path) -> list[float]:
    lines = (folder / "steps.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return [row["length"] for row in found]


def moved(folder: Path, before: int, after: int) -> float:
    """Distance between the weights of two checkpoints."""
    a, b = (load_file(folder / f"checkpoint-{n}" / "model.safetensors") for n in (before, after))
    return sum(float((a[k].double() - b[k].double()).square().sum()) for k in a) ** 0.5


def given(place: Place, output: Path, *methods: str) -> list[str]:
    more = ("--steps", "3", "--save_total_limit", "9", "--adam_beta2", "0.9")
    return command("rules-gsm8k-0.5b", place, output, *more, "--method", *methods)


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matched one is named first, and comes second."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert run(given(place, output, "matched", "gr", "none")) == 0
    return output


def test_lengths_are_those_of_the_weights(finished: Path) -> None:
    for name in ("gr-seed0", "matched-seed0"):
        folder = finished / name
        assert lengths(folder)[1] == pytest.approx(moved(folder, 1, 2), rel=1e-6)
        assert lengths(folder)[2] == pytest.approx(moved(folder, 2, 3), rel=1e-6)
        shown = [row["step_length"] for row in rows(folder)]
        assert shown == pytest.approx(lengths(folder))
    assert not (finished / "none-seed0" / "steps.jsonl").exists()
    assert "step_length" not in rows(finished / "none-seed0")[0]


def test_matched_steps_are_as_long_as_gr_s_and_not_the_same(finished: Path) -> None:
    gr, matched = finished / "gr-seed0", finished / "matched-seed0"
    assert lengths(matched) == pytest.approx(lengths(gr), rel=1e-6)
    assert difference(weights(gr), weights(matched)) > 1e-4
    none = moved(finished / "none-seed0", 2, 3)
    assert abs(none / lengths(gr)[2] - 1) > 1e-3, "without matching the lengths differ"
    assert not any(name.startswith("gr/") for name in rows(matched)[0])


def test_resumed_matched_run_is_the_same(
    finished: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "broken"
    (output / "gr-seed0").mkdir(parents=True)
    record = (finished / "gr-seed0" / "steps.jsonl").read_text()
    (output / "gr-seed0" / "steps.jsonl").write_text(record)
    settings = (finished / "gr-seed0" / "settings.json").read_text()
    (output / "gr-seed0" / "settings.json").write_text(settings)
    proxy = Monitor.proxy

    def breaks(self: Monitor, *arguments: Any, **options: Any) -> list[float]:
        if options["trainer_state"].global_step == 2:
            raise OSError("no power")
        return proxy(self, *arguments, **options)

    arguments = [*given(place, output, "matched"), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "proxy", breaks)
        assert run(arguments) == 1
    # a step was taken after the last checkpoint, and is taken again
    (output / "matched-seed0" / "checkpoint-2" / "complete").unlink()
    assert len(lengths(output / "matched-seed0")) == 2
    assert run(arguments) == 0
    whole = finished / "matched-seed0"
    assert difference(weights(output / "matched-seed0"), weights(whole)) == 0
    assert lengths(output / "matched-seed0") == lengths(whole)


def test_names() -> None:
    assert split("kl+matched") == ("matched", "kl")
    assert partner_of("gr-seed0") is None
    assert partner_of("matched-A1-seed2") == "gr-A1-seed2"
    with pytest.raises(ValueError, match="control of gr"):
        split("gr+matched")
    recipe = {"gr": {"ratio": 1.0}}
    made = [resolve(name, {}, recipe, {}, {}) for name in ("gr", "matched", "none")]
    assert made[1].gr is None
    assert [m.control for m in paired(made)] == [{"step_length": True}, {"match": True}, None]
    assert paired(made, everywhere=True)[2].control == {"step_length": True}


def test_a_missing_record_says_what_to_run(tmp_path: Path) -> None:
    class Arm:
        name, method = "matched-seed0", "matched"

    with pytest.raises(ValueError, match="--method gr matched"):
        check_partners([Arm()], tmp_path)
    (tmp_path / "gr-seed0").mkdir()
    (tmp_path / "gr-seed0" / "steps.jsonl").write_text('{"step": 1, "length": 0.5}\n')
    check_partners([Arm()], tmp_path)
    assert read_lengths(tmp_path / "gr-seed0", 1) == {1: 0.5}
    with pytest.raises(ValueError, match="no length for step 2"):
        read_lengths(tmp_path / "gr-seed0", 2)


def test_16_bit_weights_are_measured_as_they_are(tmp_path: Path) -> None:
    """A target that rounds away is not claimed to have been reached."""
    from types import SimpleNamespace

    from integrations.displacement import StepLength

    class Trainer:
        def __init__(self) -> None:
            self.model = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)

        def add_callback(self, callback: Any) -> None:
            self.callback = callback

    torch.manual_seed(0)
    trainer = Trainer()
    made: Any = StepLength(trainer, tmp_path / "steps.jsonl", {1: 1e-6})
    state: Any = SimpleNamespace(global_step=0)
    before = trainer.model.weight.detach().clone()
    made.on_pre_optimizer_step(None, state, None)
    with torch.no_grad():
        trainer.model.weight.add_(0.01)
    made.on_optimizer_step(None, state, None)
    real = float((trainer.model.weight.detach() - before).float().norm())
    assert lengths(tmp_path) == pytest.approx([real])
