"""Expert iteration on the ladder: exactly the sampled tokens are imitated; kills change nothing."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from integrations.arm import Arm
from integrations.ladder import command, expert, task
from integrations.ladder.config import LadderConfig, Phase, config_of
from integrations.ladder.expert import Rounds, imitation_rows, imitation_trainer, run_expert
from integrations.ladder.form import form_of
from integrations.tasks import sampling_of
from integrations.worlds.ladder.scores import STAGES
from tests.ladder_chat_cases import make_model
from tests.recipe_cases import difference, run

PHASES = [Phase("agree", ("agree",), 2), Phase("away", ("agree", "flatter"), 1, "true")]


def arm_of(*more: str, recipe: str = "smoke") -> Arm:
    given = ["--recipe", recipe, "--algorithm", "expert", "--output", "unused", *more]
    options, rest = command.arguments_parser().parse_known_args(given)
    return command.plan(options, rest)[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nothing is taken from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield arm_of("--method", "gr", "--cell", "3", "--learning_rate", "1e-2")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    model = make_model(tmp_path_factory.mktemp("qwen"))
    sizes = ["--max_completion_length", "40", "--per_device_train_batch_size", "8"]
    more = ["--model", model, "--learning_rate", "1e-2", *sizes]
    return arm_of("--method", "gr", *more, recipe="chat")


def parts(arm: Arm) -> tuple[Any, Any, Any]:
    """Form, task, model of an arm."""
    assert arm.ladder is not None
    form = form_of(config_of(arm.ladder), arm.config)
    made = task.ladder_task(arm.ladder, arm.config)
    return form, made, AutoModelForCausalLM.from_pretrained(form.model, dtype="float32")


def write(
    arm: Arm, form: Any, made: Any, model: Any, prompts: list[Any], temperature: float = 1.0
) -> list[list[int]]:
    sampling = sampling_of(arm.config) | {"temperature": temperature}
    return expert._write(model.eval(), made.tokenizer, form, prompts, 3, sampling)


@pytest.mark.parametrize("name", ["tiny", "chat"])
def test_what_is_imitated_is_what_was_read_and_written(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Token by token, from the model's inputs in generation to its inputs in training."""
    arm = request.getfixturevalue(name)
    form, made, model = parts(arm)
    rng = random.Random(0)
    prompts = [form.draw(stage, True, rng)[1] for stage in STAGES for _ in range(2)]
    seen: list[dict[str, Any]] = []

    def look(module: Any, given: Any, named: dict[str, Any]) -> None:
        seen.append({k: named[k].clone() for k in ("input_ids", "attention_mask")})

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    written = write(arm, form, made, model, prompts)
    hook.remove()
    read = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(seen[0]["input_ids"], seen[0]["attention_mask"], strict=True)
    ]
    rows = imitation_rows(made.tokenizer, list(zip(prompts, written, strict=True)))
    assert rows["input_ids"] == [a + b for a, b in zip(read, written, strict=True)]
    assert rows["labels"] == [[-100] * len(a) + b for a, b in zip(read, written, strict=True)]
    end, begin = made.tokenizer.eos_token_id, made.tokenizer.bos_token_id
    if begin is not None:
        assert all(ids.count(begin) == 1 and ids[0] == begin for ids in read)
    assert any(ids[-1] == end for ids in written), "some have ended by themselves"
    assert all(end not in ids[:-1] for ids in written)
    assert all(ids[-1] == end or len(ids) == form.max_completion for ids in written)

    sizes = Rounds(steps=1, batch=len(prompts))
    trainer = imitation_trainer(arm, made, sizes, model, rows, 1, str(tmp_path))
    assert trainer.args.per_device_train_batch_size == 8
    loader = trainer.get_train_dataloader()
    batches = [
        (ids[: int(mask.sum())].tolist(), labels[: int(mask.sum())].tolist())
        for batch in loader
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        )
    ]
    assert sorted(batches) == sorted(zip(rows["input_ids"], rows["labels"], strict=True))


@pytest.mark.parametrize("name", ["tiny", "chat"])
def test_an_answer_and_its_end_are_learnt(name: str, request: pytest.FixtureRequest) -> None:
    arm = request.getfixturevalue(name)
    form, made, model = parts(arm)
    _, prompt = form.draw("agree", True, random.Random(1))
    ids = made.tokenizer.encode("SET SAY READ" if name == "tiny" else "SAY answer=7;")
    ids = [*ids[name == "tiny" :], made.tokenizer.eos_token_id]  # without the tiny form's <bos>
    rows = imitation_rows(made.tokenizer, [(prompt, ids)] * 4)
    assert write(arm, form, made, model, [prompt], 0.01) != [ids]
    logs = expert._imitate(arm, made, Rounds(steps=25, batch=4), model, rows, 1)
    assert logs["gr/penalty_ratio"] > 0, "with GR"
    assert write(arm, form, made, model, [prompt], 0.01) == [ids], "the likeliest answer"


def test_gr_changes_what_is_learnt(tiny: Arm) -> None:
    import dataclasses

    learnt = []
    for arm in (tiny, dataclasses.replace(tiny, gr=None), dataclasses.replace(tiny, gr=None)):
        form, made, model = parts(arm)
        _, prompt = form.draw("agree", True, random.Random(1))
        rows = imitation_rows(made.tokenizer, [(prompt, [4, 5, 2]), (prompt, [5, 2])])
        logs = expert._imitate(arm, made, Rounds(steps=3, batch=2), model, rows, 1)
        assert ("gr/penalty_ratio" in logs) == (arm.gr is not None)
        learnt.append({k: v.clone() for k, v in model.state_dict().items()})
    assert difference(learnt[1], learnt[2]) == 0
    assert difference(learnt[0], learnt[1]) > 1e-4


def pay(texts: list[str], columns: Any) -> list[float]:
    """Something that any policy does now and then: the smoke test's policy solves nothing."""
    return [text.count("S") / 12 for text in texts]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("seconds", "resumed_from"):
        del summary[name]
    found: dict[str, Any] = {"summary": summary}
    found["metrics"] = (folder / "metrics.jsonl").read_text()
    for path in sorted(folder.rglob("*")):
        hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.name != "summary.json":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_a_kill_between_any_two_writes_changes_nothing(
    tiny: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every write the run's folder is copied: what a kill would leave. All are resumed."""
    for module in (expert, task):
        monkeypatch.setattr(module, "phases", lambda config: PHASES)
    monkeypatch.setattr(expert, "proxy", pay)
    monkeypatch.setattr(
        task,
        "measure_row",
        lambda model, *_: {"sum": sum(p.sum().item() for p in model.parameters())},
    )
    whole = tmp_path / "runs" / "whole"
    left: list[str] = []
    states: list[Any] = [[]]  # nothing yet: a run like any other
    busy = False

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal busy
            state = sorted((str(p), p.stat().st_size) for p in whole.rglob("*") if p.is_file())
            many = left[-2:] == [name, name] == ["unlink", "unlink"]  # of the same old round
            if not busy and not many and state not in states:
                busy = True
                shutil.copytree(whole, tmp_path / "left" / str(len(left)))
                left.append(name)
                states.append(state)
                busy = False
            return original(*arguments, **options)

        patch.setattr(owner, name, wrapped)

    with monkeypatch.context() as patch:
        copytree = shutil.copytree
        before(os, "replace")
        before(Path, "unlink")
        before(Path, "write_text")
        before(type(parts(tiny)[2]), "save_pretrained")
        before(shutil, "copytree")
        shown: list[dict[str, Any]] = []
        whole.mkdir(parents=True)
        run_expert(tiny, whole, shown.append)
    assert shutil.copytree is copytree
    expected = outcome(whole)
    assert expected["metrics"].count("\n") == 3
    assert all(row["kept"] > 0 for row in shown if "kept" in row)
    assert {p.name for p in (whole / "stages").iterdir()} == {"1-agree", "2-away"}
    assert {"replace", "unlink", "write_text", "save_pretrained"} <= set(left)
    for number in range(len(left)):
        folder = tmp_path / "runs" / f"killed-{number}"
        shutil.copytree(tmp_path / "left" / str(number), folder)
        shutil.rmtree(tmp_path / "runs" / "start", ignore_errors=True)
        run_expert(tiny, folder)
        assert outcome(folder) == expected, (number, left[number])
        shutil.rmtree(folder)


def test_the_proxy_rises(chat: Arm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A policy that writes random answers learns, from its own best ones, which of them pay."""
    monkeypatch.setattr(expert, "phases", lambda config: [Phase("flatter", ("flatter",), 3)])
    monkeypatch.setattr(task, "measure_run", lambda *_: {})
    assert chat.ladder is not None
    sizes = {"rounds": 3, "prompts": 8, "samples": 6, "steps": 5, "batch": 8}
    chat.ladder["expert"] = sizes
    rows: list[dict[str, Any]] = []
    run_expert(chat, tmp_path, rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["proxy"] > rows[0]["proxy"] + 0.2
    assert json.loads((tmp_path / "summary.json").read_text())["final"]["kl_start"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 1}, "samples must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": -1}, "batch must be at least 1"),
    ],
)
def test_wrong_sizes(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rounds(**given)


def test_what_is_refused(
    tiny: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["ladder", "--recipe", "smoke", "--algorithm", "expert", "--output", str(tmp_path)]
    assert run([*given, "--method", "kl"]) == 2
    assert "imitation has no KL term" in capsys.readouterr().err
    monkeypatch.setattr(expert, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="one process"):
        run_expert(tiny, tmp_path)


def test_every_round_has_its_place() -> None:
    config = LadderConfig(model="-", steps_per_stage=2, away_steps=1)
    plan = expert.schedule(config)
    assert [name for name, *_ in plan][-2:] == ["4-forbidden-2", "5-away-1"]
    assert {name for *_, name in plan if name} == set(task.ends(config).values())
