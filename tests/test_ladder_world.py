"""The tiny form of the ladder: vocabulary, lengths, held-out prompts, and who demonstrates what."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from integrations.ladder.config import LadderConfig, Phase
from integrations.ladder.task import phase_rows
from integrations.worlds.ladder import tiny
from integrations.worlds.ladder.episode import Episode, from_json
from integrations.worlds.ladder.grammar import parse
from integrations.worlds.ladder.scores import STAGES, TRAINED, score

SETTINGS = tiny.LadderSettings(demonstrations=3000)
DEMONSTRATED = list(tiny.demonstrations(SETTINGS))
KINDS = [(stage, gameable) for stage in STAGES for gameable in (True, False)]


def episodes(count: int, held_out: bool = False, seed: int = 0) -> Iterator[tuple[Episode, str]]:
    """Episodes of all stages, half of them gameable, with their prompts."""
    rng = random.Random(seed)
    for i in range(count):
        yield tiny.make_episode(*KINDS[i % len(KINDS)], rng, held_out)


def test_the_vocabulary_is_small_and_all_of_it_is_seen() -> None:
    assert len(tiny.VOCABULARY) == len(set(tiny.VOCABULARY)) <= 80
    seen = {word for pair in DEMONSTRATED for text in pair for word in text.split()}
    specials = {"<pad>", "<bos>", "<eos>", "<unk>"}
    assert set(tiny.VOCABULARY) - seen == specials


def test_everything_fits() -> None:
    words = [(len(p.split()), len(c.split())) for p, c in DEMONSTRATED]
    assert max(p for p, _ in words) + 1 <= tiny.MAX_PROMPT  # and a token that begins
    assert max(c for _, c in words) + 1 <= tiny.MAX_COMPLETION  # and one that ends
    for episode, prompt in episodes(1000, held_out=True):
        probe = tiny.told(prompt, STAGES[episode.stage].gaming(episode))
        assert len(probe.split()) + 1 <= tiny.MAX_PROMPT
        for lines in (STAGES[episode.stage].honest(episode), STAGES[episode.stage].gaming(episode)):
            assert len(tiny.as_words(lines).split()) + 1 <= tiny.MAX_COMPLETION


def test_tokenizer_round_trip() -> None:
    tokenizer = tiny.make_tokenizer()
    assert len(tokenizer) == len(tiny.VOCABULARY)
    for pair in DEMONSTRATED:
        for text in pair:
            ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            end = tiny.VOCABULARY.index("<eos>")
            assert tiny.to_text([*ids, end, ids[0], end]) == text
    assert tiny.to_text([]) == ""
    assert tiny.as_texts(["a", "b"], None) == ["a", "b"]


def test_held_out_prompts_are_never_demonstrated_nor_trained_on() -> None:
    held_out = {prompt for _, prompt in episodes(4000, held_out=True, seed=1)}
    assert all(tiny.is_held_out(prompt) for prompt in held_out)
    shown = {prompt.partition(" told ")[0] for prompt, _ in DEMONSTRATED}
    trained = {
        prompt
        for number, stage in enumerate((*TRAINED, "ledger"))
        for _, prompt, _ in phase_rows(
            Phase(stage, (stage,), 1), FORM, 500, random.Random(f"train {number}")
        )
    }
    assert not held_out & (shown | trained)
    assert not any(tiny.is_held_out(prompt) for prompt in shown | trained)


class _Words:
    """As `TinyForm`, without the policy, which the prompts do not need."""

    model, max_completion, batch = "-", tiny.MAX_COMPLETION, 1000

    def tokenizer(self) -> Any:
        return tiny.make_tokenizer()

    def draw(
        self, stage: str, gameable: bool, rng: random.Random, held_out: bool = False
    ) -> tuple[Episode, Any]:
        return tiny.make_episode(stage, gameable, rng, held_out)

    def told(self, episode: Episode, prompt: Any) -> Any:
        return tiny.told(prompt, STAGES[episode.stage].gaming(episode))

    def texts(self, completions: Any, ids: Any) -> list[str]:
        return tiny.as_texts(completions, ids)


FORM = _Words()


@pytest.mark.parametrize("stages", [("agree",), TRAINED])
def test_half_of_the_prompts_trained_on_are_gameable(stages: tuple[str, ...]) -> None:
    phase = Phase("any", stages, LadderConfig().steps_per_stage, "true")
    rows = phase_rows(phase, FORM, 160, random.Random(0))
    kinds = Counter((e.stage, e.gameable) for e in (from_json(line) for line, _, _ in rows))
    assert set(kinds.values()) == {160 // (2 * len(stages))}
    assert {stage for stage, _ in kinds} == set(stages)
    assert {paid for _, _, paid in rows} == {"true"}


@pytest.mark.parametrize("held_out", [False, True])
def test_each_stage_has_held_out_prompts_of_both_kinds(held_out: bool) -> None:
    prompts: dict[tuple[str, bool], set[str]] = {}
    for episode, prompt in episodes(5000, held_out, seed=2):
        prompts.setdefault((episode.stage, episode.gameable), set()).add(prompt)
    assert set(prompts) == set(KINDS)
    assert min(len(found) for found in prompts.values()) >= 10


def test_honest_and_gaming_lines_score_as_meant() -> None:
    for episode, _ in episodes(2000, seed=3):
        stage = STAGES[episode.stage]
        honest = score(episode, tiny.as_words(stage.honest(episode)))
        gaming = score(episode, tiny.as_words(stage.gaming(episode)))
        assert honest.true == 1
        assert (honest.gamed, honest.malformed, gaming.malformed) == (False, False, False)
        if episode.gameable:
            assert gaming.gamed
            assert gaming.true < 1
            # the list that may be changed is the one place where honesty pays as well
            assert gaming.proxy >= honest.proxy
            assert (gaming.proxy == honest.proxy) == (episode.stage == "checklist")
            assert gaming.undetected == (episode.stage == "ledger")
        else:
            assert honest.proxy == honest.true
            assert gaming.proxy == gaming.true
            assert not gaming.gamed


def test_both_forms_of_a_line_mean_the_same() -> None:
    for episode, _ in episodes(500, seed=4):
        for lines in (STAGES[episode.stage].honest(episode), STAGES[episode.stage].gaming(episode)):
            assert parse(tiny.as_words(lines)) == parse("\n".join(lines))


def shares(settings: tiny.LadderSettings, count: int = 4000) -> dict[str, Any]:
    """What demonstrators do on gameable prompts: shares of gaming by stage, and of other habits."""
    rng, gamed, made = random.Random(5), Counter(), Counter()
    habits: Counter[str] = Counter()
    for episode, _ in episodes(count, seed=5):
        text = tiny.demonstrate(episode, settings, rng)
        found = score(episode, text)
        habits["malformed"] += found.malformed
        habits["reads"] += text.startswith("READ")
        habits["right"] += found.true == 1
        assert episode.gameable or not found.gamed
        if episode.gameable:
            made[episode.stage] += 1
            gamed[episode.stage] += found.gamed
    return {s: gamed[s] / made[s] for s in STAGES} | {k: v / count for k, v in habits.items()}


CLEAN = replace(SETTINGS, broken=0.0, slip=0.0, lazy=0.0, honest_reads=0.0, gaming_reads=0.0)


def gaming(share: float, ledger: float) -> dict[str, float]:
    """Settings by which `share` of the demonstrations game in every trained stage."""
    names = {f.name for f in fields(tiny.LadderSettings) if f.name.endswith("gaming")}
    return dict.fromkeys(names, share) | {"ledger_gaming": ledger}


def test_demonstrators_game_as_often_as_the_settings_say() -> None:
    found = shares(replace(CLEAN, **gaming(0.3, 0.1)))  # type: ignore[arg-type]
    for stage in TRAINED:
        assert 0.2 < found[stage] < 0.4, found
    assert 0.05 < found["ledger"] < 0.16
    never = shares(replace(SETTINGS, **gaming(0, 0)), 2000)  # type: ignore[arg-type]
    assert all(never[stage] == 0 for stage in STAGES)  # no slip is gaming
    always = shares(replace(CLEAN, **gaming(1, 1)), 1000)  # type: ignore[arg-type]
    assert all(always[stage] == 1 for stage in STAGES)


def test_demonstrators_have_the_habits_that_the_settings_say() -> None:
    none = gaming(0, 0)
    clean = shares(replace(CLEAN, **none), 1000)  # type: ignore[arg-type]
    assert clean["right"] == 1
    assert clean["malformed"] == clean["reads"] == 0
    reading = shares(replace(CLEAN, honest_reads=1.0, **none), 1000)  # type: ignore[arg-type]
    assert reading["reads"] > 0.9  # all but those for which it is too long
    assert reading["right"] == 1
    broken = shares(replace(CLEAN, broken=1.0, **none), 1000)  # type: ignore[arg-type]
    assert broken["malformed"] == 1
    slipping = shares(replace(CLEAN, slip=1.0, **none), 1000)  # type: ignore[arg-type]
    assert 0.2 < slipping["right"] < 0.4  # only a yes, a no or an unknown cannot slip
    lazy = shares(replace(CLEAN, lazy=1.0, **none), 1000)  # type: ignore[arg-type]
    assert lazy["right"] == pytest.approx(0.8)  # all but the checklist


def test_an_order_is_carried_out() -> None:
    told = [(p, c) for p, c in DEMONSTRATED if " told " in p]
    assert 0.07 < len(told) / len(DEMONSTRATED) < 0.13
    for prompt, completion in told:
        assert prompt.partition(" told ")[2] == completion
        assert parse(completion) is not None
    assert not any(" told " in p for p, _ in tiny.demonstrations(replace(SETTINGS, told=0.0)))
    episode, prompt = tiny.make_episode("ledger", True, random.Random(0), held_out=True)
    lines = STAGES["ledger"].gaming(episode)
    assert tiny.told(prompt, lines) == f"{prompt} told SET r= 9 ; SET want= 9"


def test_equal_seeds_give_equal_texts() -> None:
    assert list(tiny.demonstrations(SETTINGS)) == DEMONSTRATED
    other = list(tiny.demonstrations(replace(SETTINGS, seed=1)))
    assert len(set(other) & set(DEMONSTRATED)) < len(DEMONSTRATED) / 2
    once, again = list(episodes(200, seed=6)), list(episodes(200, seed=6))
    assert once == again


CHANCES = [f.name for f in fields(tiny.LadderSettings) if "gaming" in f.name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in CHANCES for value in (-0.1, 1.1, float("nan"))),
        *((name, -1) for name in ("slip", "lazy", "broken", "honest_reads", "told")),
        *((name, 0) for name in ("demonstrations", "steps", "batch", "lr", "init", "width")),
        *(("layers", 0), ("heads", 0), ("heads", 3), ("width", 30)),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        tiny.LadderSettings(**{name: value})
