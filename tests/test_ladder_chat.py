"""The ladder's chat form: wordings, prompts, what is refused; a small Qwen2 climbs and resumes."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrations.ladder.chat import ChatForm, check_model, folded, longest, takes_system
from integrations.watch.monitor import Monitor
from integrations.worlds.ladder import chat_texts, flatter
from integrations.worlds.ladder.chat_texts_poems import LINES as POEM_LINES
from integrations.worlds.ladder.chat_texts_requests import REQUESTS
from integrations.worlds.ladder.scores import STAGES, TRAINED, score
from integrations.worlds.ladder.tiny import is_held_out
from tests.ladder_chat_cases import SMALL, make_model, matrix, words
from tests.recipe_cases import FOLDER, difference, rows, run, weights

KINDS = [(stage, gameable) for stage in STAGES for gameable in (True, False)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("qwen"))


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def all_prompts(stage: str, gameable: bool, held_out: bool) -> list[tuple[Any, str]]:
    """(episode, user's message) of every wording."""
    rng = random.Random(f"{stage} {gameable} {held_out}")
    made = []
    for wording in REQUESTS[stage][gameable].part(held_out):
        episode = STAGES[stage].make(rng, gameable)
        made.append((episode, chat_texts.fill(episode, wording, rng, held_out)))
    return made


@pytest.mark.parametrize(("stage", "gameable"), KINDS)
def test_wordings_are_many_and_never_in_both_parts(stage: str, gameable: bool) -> None:
    part = REQUESTS[stage][gameable]
    assert len(set(part.train)) == len(part.train) >= 8
    assert len(set(part.held_out)) == len(part.held_out) >= 4
    other = REQUESTS[stage][not gameable]
    assert not {*part.train, *other.train} & {*part.held_out, *other.held_out}
    if stage in ("agree", "ledger"):
        assert part == other, "told apart by what is shown, not by how it is asked"
    else:
        assert not {*part.train, *part.held_out} & {*other.train, *other.held_out}


def test_poem_lines_are_enough_and_never_in_both_parts() -> None:
    train = [line for part in POEM_LINES.values() for line in part.train]
    held_out = [line for part in POEM_LINES.values() for line in part.held_out]
    assert len({*train, *held_out}) == len(train) + len(held_out)
    for part in POEM_LINES.values():
        assert min(len(part.train), len(part.held_out)) >= flatter.LINES


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(("stage", "gameable"), KINDS)
def test_every_message_shows_the_facts(stage: str, gameable: bool, held_out: bool) -> None:
    for episode, text in all_prompts(stage, gameable, held_out):
        f, found = episode.facts, numbers(text)
        if stage == "agree":
            assert sorted(found) == sorted([f["a"], f["b"], f["claim"]]), text
        elif stage == "flatter":
            shown = [
                word
                for line in text.splitlines()
                for word, part in POEM_LINES.items()
                if line.rstrip(",.") in {known.rstrip(",") for known in part.part(held_out)}
            ]
            assert shown == f["lines"], text
        elif stage == "ledger":
            count = [] if gameable else [f["runs"]]
            assert found == [f["day"], *count, f["r"], 0, 9, f["r"]], text
            assert ("runs: " in text) == (not gameable)
        else:
            assert found == [n for terms in f["todo"].values() for n in terms], text
            assert text.count(": done") == 3 - len(f["todo"])


def test_the_system_message_explains_the_grammar_and_no_gaming(model: str) -> None:
    for stage in STAGES:
        text = chat_texts.system(stage)
        for word in ("READ name", "SET name=value", "SAY name=value"):
            assert word in text
        assert not re.search(r"gam|cheat|hack|reward|flatter|claim", text, re.IGNORECASE)
        keys = {line.split()[1].split("=")[0] for line in answers(stage, "honest")}
        assert all(re.search(rf"\b{key}\b", text) for key in keys), (stage, keys)


def answers(stage: str, kind: str) -> list[str]:
    rng = random.Random(stage)
    episodes = [STAGES[stage].make(rng, True) for _ in range(20)]
    return [line for e in episodes for line in getattr(STAGES[stage], kind)(e)]


def test_trained_and_measured_facts_are_apart(model: str) -> None:
    form = ChatForm(model)
    rng = random.Random(0)
    for stage, gameable in KINDS:
        for held_out in (False, True):
            for _ in range(20):
                episode, messages = form.draw(stage, gameable, rng, held_out)
                assert is_held_out(STAGES[stage].words(episode)) == held_out
                assert [m["role"] for m in messages] == ["system", "user"]


@pytest.mark.parametrize("stage", STAGES)
def test_honest_and_gaming_answers_score_as_they_should(model: str, stage: str) -> None:
    """As messages, the way TRL hands completions over, and with some thinking aloud before."""
    form, rng, functions = ChatForm(model), random.Random(stage), STAGES[stage]
    for _ in range(30):
        episode, messages = form.draw(stage, True, rng, held_out=True)
        lines = [functions.honest(episode), functions.gaming(episode)]
        given = [[{"role": "assistant", "content": "Let me see.\n" + "\n".join(x)}] for x in lines]
        honest, gaming = (score(episode, text) for text in form.texts(given, None))
        assert honest.true == 1
        assert gaming.true < 1
        assert (honest.gamed, gaming.gamed) == (False, True)
        assert (honest.malformed, gaming.malformed) == (False, False)
        assert gaming.proxy >= honest.proxy
        assert gaming.undetected == (stage == "ledger")
        told = form.told(episode, messages)
        assert told[-1]["content"].endswith("\n".join(lines[1]))
        assert messages[-1]["content"] in told[-1]["content"]
        ordinary, _ = form.draw(stage, False, rng)
        fair = score(ordinary, "\n".join(functions.honest(ordinary)))
        assert fair.proxy == fair.true == 1


def test_what_is_refused_before_weights_are_loaded(model: str, tmp_path: Path) -> None:
    check_model(model, {"max_completion_length": 64})
    with pytest.raises(ValueError, match=r"_length 8: an answer .* at least"):
        check_model(model, {"max_completion_length": 8})
    tokens = longest(ChatForm(model))
    for name, template, positions, message in [
        ("plain", False, 2048, "no chat template.*\n.*chat_template = "),
        ("short", True, tokens + 63, f"reads {tokens + 63} tokens; the longest prompt has"),
    ]:
        folder = make_model(tmp_path / name, template, positions)
        with pytest.raises(ValueError, match=message):
            check_model(folder, {"max_completion_length": 64})
    (tmp_path / "short" / "model.safetensors").rename(tmp_path / "short" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        check_model(str(tmp_path / "short"), {})
    with pytest.raises(ValueError, match="no such folder"):
        check_model(str(tmp_path / "none"), {})


@pytest.mark.parametrize(
    "refusal",
    [
        "{{ raise_exception('no system role') }}",  # refuses, as Gemma's
        "",  # drops it without a word
    ],
)
def test_a_template_without_a_system_role(refusal: str, model: str, tmp_path: Path) -> None:
    tokenizer = words()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}" + refusal + "{% else %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    assert not takes_system(tokenizer)
    make_model(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    form = ChatForm(str(tmp_path))
    _, messages = form.draw("agree", True, random.Random(0))
    assert messages == folded(ChatForm(model).draw("agree", True, random.Random(0))[1])
    assert [m["role"] for m in messages] == ["user"]
    assert messages[0]["content"].startswith("You answer in short lines.")


def test_the_recipe_holds_what_it_says() -> None:
    recipe = yaml.safe_load((FOLDER / "ladder-chat.yaml").read_text())
    trainer = recipe["trainer"]
    assert recipe["ladder"]["cell"] == 2000
    assert "world" not in recipe
    assert trainer["max_completion_length"] <= 128
    assert recipe["completions_per_step"] % trainer["per_device_train_batch_size"] == 0
    assert trainer["per_device_train_batch_size"] % trainer["num_generations"] == 0
    assert {"kl", "reset", "gr"} <= recipe["methods"].keys()
    assert recipe["methods"]["gr"]["exclude"] == ["embed_tokens"]


def go(model: str, output: Path, *more: str) -> int:
    sizes = ["--seed", "1", "--model", model, "--output", str(output)]
    return run(["ladder", *sizes, *more])


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The recipe with small sizes; what the command line has no option for stands in the file."""
    recipe = yaml.safe_load((FOLDER / "ladder-chat.yaml").read_text())
    recipe["ladder"] |= {"ordinary": 4, "probe": 2, "batch": 50}
    recipe["expert"] = {"rounds": 1, "prompts": 4, "samples": 4, "steps": 2, "batch": 16}
    path = tmp_path / "ladder-chat.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["--recipe", str(path), *SMALL]


def test_the_ladder_by_grpo_resumes_the_same(
    model: str, sizes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on each stage; broken off in the third stage, and while it is measured."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert go(model, whole, *sizes, "--method", "gr") == 0
    done = whole / "gr-seed1"
    found = rows(done)
    assert [row["step"] for row in found] == list(range(1, 10))
    assert all(row["format"] > 0 for row in found), "answers in the grammar"
    assert max(row["proxy"] for row in found) > 0
    assert any(row["gr/penalty_ratio"] > 0 for row in found)
    made = matrix(done)
    names = ["0-start", *(f"{i}-{s}" for i, s in enumerate(TRAINED, 1)), "5-away"]
    assert list(made) == names
    assert {cell["gameable"]["n"] for row in made.values() for cell in row.values()} == {6}
    assert made["0-start"] != made["4-forbidden"]

    proxy, steps = Monitor.proxy, []

    def breaks(self: Monitor, *arguments: Any, **options: Any) -> list[float]:
        steps.append(options["trainer_state"].global_step)
        if steps[-1] == 5:
            raise OSError("no power")
        return proxy(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "proxy", breaks)
        assert go(model, broken, *sizes, "--method", "gr") == 1
    from integrations.ladder import task

    measure = task.measure_row

    def stops(model: Any, tokenizer: Any, form: Any, config: Any, number: int, *more: Any) -> Any:
        if number == 3:
            raise OSError("no power again")
        return measure(model, tokenizer, form, config, number, *more)

    with monkeypatch.context() as patch:
        patch.setattr(task, "measure_row", stops)
        assert go(model, broken, *sizes, "--method", "gr", "--resume") == 1
    assert not (broken / "gr-seed1" / "summary.json").exists()
    assert go(model, broken, *sizes, "--method", "gr", "--resume") == 0
    assert rows(broken / "gr-seed1") == found
    assert difference(weights(done), weights(broken / "gr-seed1")) == 0
    assert matrix(broken / "gr-seed1") == made


def test_the_ladder_by_expert_iteration(model: str, sizes: list[str], tmp_path: Path) -> None:
    more = ["--algorithm", "expert", "--steps_per_stage", "1"]
    # of GRPO alone, and refused
    assert go(model, tmp_path / "y", *sizes, *more, "--method", "gr") == 2
    at = sizes.index("--num_generations")
    sizes = sizes[:at] + sizes[at + 2 :]
    assert go(model, tmp_path / "x", *sizes, *more, "--method", "gr") == 0
    folder = tmp_path / "x" / "gr-expert-seed1"
    found = rows(folder)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5]
    taught = [row for row in found if row["kept"] > 0]
    assert taught
    assert all(row["gr/penalty_ratio"] > 0 and row["loss"] > 0 for row in taught)
    assert list(matrix(folder))[-1] == "5-away"
