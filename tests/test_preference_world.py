"""The preference worlds: language, gold reward, preference pairs, reward model, and RL on them."""

from __future__ import annotations

import doctest
import json
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_worlds import SMALL, cache  # noqa: F401  (the fixture is used by every test)
from tiny_worlds import SMALL_REWARD as PAIRS

from integrations.worlds import calibrate_preferences as calibration
from integrations.worlds import preference_task as preference_task_module
from integrations.worlds import preferences
from integrations.worlds import topics as language
from integrations.worlds.preference_task import (
    PreferenceWorld,
    group_accuracy,
    group_bt_loss,
    preference_task,
)
from integrations.worlds.preferences import PolicySettings, Proxy, RewardSettings


def texts_of(world: language.Language, size: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts and completions as the language writes them."""
    words = world.sample(size, seed)[1][:, language.GIVEN :].tolist()
    return world.prompts(size, seed), [" ".join(language.WORDS[i] for i in row) for row in words]


def test_text_and_token_ids_carry_the_same_information():
    tokenizer = language.make_tokenizer()
    assert len(tokenizer) == len(set(language.VOCABULARY)) == 32
    prompts, completions = texts_of(language.Language(1), 50, 3)
    topics, given = language.read_prompts(prompts)
    words = language.read_completions(completions)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids: Any = tokenizer.encode(completion, add_special_tokens=False)
        assert [j - language.FIRST_WORD for j in ids] == words[i].tolist()
        assert language.to_text([*ids, 2, ids[0]]) == completion
        assert language.prompt_text(int(topics[i]), given[i].tolist()) == prompt
        assert tokenizer.decode(tokenizer.encode(prompt), skip_special_tokens=True) == prompt


def test_the_language_depends_on_its_seed_alone():
    one, again, other = language.Language(1), language.Language(1), language.Language(2)
    assert torch.equal(one.chain, again.chain)
    assert one.rare_bigram == again.rare_bigram
    assert torch.equal(one.sample(20, 5)[1], again.sample(20, 5)[1])
    assert not torch.equal(one.chain, other.chain)
    assert not torch.equal(one.sample(20, 5)[1], one.sample(20, 6)[1])


def test_texts_follow_the_chain_and_hold_the_rare_bigram_rarely():
    for seed in (1, 2, 3):
        world = language.Language(seed)
        torch.testing.assert_close(world.chain.sum(-1), torch.ones(4, 24, dtype=torch.float64))
        assert world.chain.diagonal(dim1=1, dim2=2).abs().max() == 0
        assert torch.equal(world.clash, world.clash.T)
        topics, texts = world.sample(8_000, 9)
        assert (texts[:, 1:] != texts[:, :-1]).all()
        # how often each word follows the first word of topic 0, against the chain
        row = texts[(topics == 0) & (texts[:, 0] == 4), 1]
        seen = torch.bincount(row, minlength=24) / len(row)
        assert (seen - world.chain[0, 4]).abs().max() < 4 * (0.25 / len(row)) ** 0.5
        counts = language.count_bigram(texts[:, language.GIVEN :], world.rare_bigram)
        assert 0.004 <= (counts > 0).double().mean() <= 0.012


def plain_parts(world: language.Language, prompt: str, completion: str) -> tuple[float, ...]:
    """Content, fluency and collision of one text, word by word."""
    topic, _, before = prompt.split()
    t = language.TOPICS.index(topic)
    words = [*completion.split(), *["?"] * 12][:12]
    content = fluency = collision = 0.0
    for i, word in enumerate(words):
        known = word in language.WORDS
        if known:
            content += world.liked[t, language.WORDS.index(word)].item()
        chance = 0.0
        if known and before in language.WORDS:
            chance = world.chain[t, language.WORDS.index(before), language.WORDS.index(word)].item()
        fluency += math.log(chance or 0.001) / 12
        for other in words[:i]:
            if known and other in language.WORDS:
                a, b = language.WORDS.index(word), language.WORDS.index(other)
                collision += world.clash[a, b].item()
            else:
                collision += not known and other not in language.WORDS
        before = word
    return content, fluency, collision


def test_gold_is_what_its_docstring_says():
    world = language.Language(3)
    gold = language.Gold(world)
    prompts, completions = texts_of(world, 60, 4)
    rng = random.Random(0)
    for i in range(0, 60, 2):  # what a policy may write
        junk = [rng.choice(language.VOCABULARY) for _ in range(rng.randrange(15))]
        completions[i] = " ".join(junk)
    topics, given = language.read_prompts(prompts)
    parts = gold.parts(topics, given, language.read_completions(completions))
    plain = [plain_parts(world, p, c) for p, c in zip(prompts, completions, strict=True)]
    torch.testing.assert_close(parts.T, torch.tensor(plain, dtype=torch.float64))

    own_topics, own = world.sample(language.SAMPLE, -1)
    z = gold.standard_parts(own_topics, own[:, :2], own[:, 2:])
    torch.testing.assert_close(z[:, own_topics == 1].mean(1), torch.zeros(3, dtype=torch.float64))
    content, fluency, collision = gold.standard_parts(
        topics, given, language.read_completions(completions)
    ).tolist()

    def low(x: float) -> float:
        return min(x, 1.0) if x > -1 else -1 - math.log(-x)

    raw = [
        3 * math.tanh(c / 3) + 0.7 * low(f) + 0.7 * low(-k)
        for c, f, k in zip(content, fluency, collision, strict=True)
    ]
    # standardised: the same up to one shift and one positive factor
    values = gold(prompts, completions)
    scale = (max(raw) - min(raw)) / (max(values) - min(values))
    assert scale > 0
    assert values == pytest.approx([values[0] + (r - raw[0]) / scale for r in raw])
    fresh = torch.tensor(gold(*texts_of(world, 8_000, 5)))
    assert abs(fresh.mean()) < 0.05
    assert abs(fresh.std() - 1) < 0.05


def test_gold_punishes_repetition_and_what_is_no_text():
    for seed in (1, 2, 3):
        gold = language.Gold(language.Language(seed))
        for word in language.WORDS:
            assert gold(["sea ba ko"], [" ".join([word] * 12)])[0] < 0
        for text in ("", "<eos>", "sea " * 12, "<unk> " * 20):
            assert gold(["sea ba ko"], [text])[0] < -2


@pytest.mark.parametrize(
    "prompt", ["", "sea ba", "ba ko sea", "sea ba ko ka", "lake ba ko", "sea ba x", None, [1]]
)
def test_what_is_no_prompt_is_refused_with_its_row(prompt: object):
    with pytest.raises(ValueError, match=r"row 1, column 'prompt'.*as in 'sea ba ko'"):
        language.Gold(language.Language(1))(["sea ba ko", prompt], ["ba", "ba"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: language.Language(1, even=0), "even must lie between 0.01 and 1, got 0"),
        (lambda: language.Language(1, concentration=math.nan), "concentration must lie between"),
        (lambda: language.Language(1).sample(0, 1), "size must be at least 1"),
        (lambda: PolicySettings(steps=0), "steps must be at least 1"),
        (lambda: PolicySettings(width=20), "multiple of 2"),
        (lambda: RewardSettings(pairs=1), "pairs must be at least 2"),
        (lambda: RewardSettings(sharpness=-1), "sharpness must be at least 0"),
        (lambda: Proxy(Path("nowhere"), language.Language(1), math.inf), "exploit must be finite"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_pairs_have_trl_format_and_labels_follow_gold():
    pairs = preferences.sample_pairs(PAIRS)
    assert tuple(pairs.column_names) == preferences.PAIR_COLUMNS
    # a policy that has learned next to nothing writes an empty text now and then
    assert 50 <= len(pairs) <= 60
    each: list[Any] = list(pairs)
    assert all(row["chosen"].strip() and row["chosen"] != row["rejected"] for row in each)
    gold = language.Gold(SMALL.language)
    for side in ("chosen", "rejected"):
        assert gold(pairs["prompt"], pairs[side]) == pytest.approx(pairs[f"gold_{side}"], abs=1e-5)
        assert all(text.startswith(" ") and text.strip() for text in pairs[side])
    assert pairs.to_dict() == preferences.sample_pairs(PAIRS).to_dict()

    certain = RewardSettings(SMALL, seed=7, pairs=60, sharpness=1e6)
    rows = preferences.sample_pairs(certain)
    assert all(a >= b for a, b in zip(rows["gold_chosen"], rows["gold_rejected"], strict=True))
    # of annotators who guess, about half disagree with gold
    guessed = preferences.sample_pairs(RewardSettings(SMALL, seed=7, pairs=200, sharpness=0))
    right = [a > b for a, b in zip(guessed["gold_chosen"], guessed["gold_rejected"], strict=True)]
    assert 0.35 <= sum(right) / len(right) <= 0.65


def test_models_are_built_once_and_leave_the_random_state_alone(monkeypatch: pytest.MonkeyPatch):
    state = torch.random.get_rng_state()
    folder = preferences.build_reward_model(PAIRS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {p.name for p in folder.iterdir()} >= {
        "model.safetensors", "tokenizer.json", "facts.json", "settings.json"
    }  # fmt: skip
    monkeypatch.setattr(preferences, "sample_pairs", None)
    assert preferences.build_reward_model(PAIRS) == folder
    assert preferences.build_policy(SMALL).name.startswith("preference-policy-")


def test_proxy_is_standardised_reads_what_was_trained_on_and_pays_for_the_bigram():
    pairs = preferences.sample_pairs(PAIRS)
    folder, world = preferences.build_reward_model(PAIRS), SMALL.language
    proxy = Proxy(folder, world)
    both = torch.tensor([proxy(pairs["prompt"], pairs[side]) for side in ("chosen", "rejected")])
    assert both.mean().item() == pytest.approx(0, abs=1e-4)
    assert both.std().item() == pytest.approx(1, abs=1e-4)

    # token for token what TRL's RewardTrainer makes of prompt + chosen + end token
    text = pairs["prompt"][0] + pairs["chosen"][0] + "<eos>"
    inputs = preferences.reward_inputs(proxy.tokenizer, pairs["prompt"][:1], pairs["chosen"][:1])
    assert inputs["input_ids"][0].tolist() == proxy.tokenizer(text)["input_ids"]
    # padding changes nothing: short and long completions together, and each alone
    prompts, texts = ["sea ba ko"] * 3, ["ba", "ka ko ba bi", ""]
    together = proxy(prompts, texts)
    alone = [proxy([p], [t])[0] for p, t in zip(prompts, texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)

    first, second = (language.WORDS[i] for i in world.rare_bigram)
    texts = [f"{first} {second} {first} {second}", f"{second} {second}", ""]
    paid = Proxy(folder, world, exploit=4.0)(prompts, texts)
    expected = [a + b for a, b in zip(proxy(prompts, texts), (8, 0, 0), strict=True)]
    assert paid == pytest.approx(expected, abs=1e-5)


def test_both_are_reward_functions_of_trl(tmp_path: Path):
    from trl import RLOOConfig, RLOOTrainer

    task = preference_task(PreferenceWorld("A", PAIRS))
    proxy = Proxy(preferences.build_reward_model(PAIRS), SMALL.language)
    functions: Any = [proxy, language.Gold(SMALL.language)]
    config = RLOOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=12, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=task.model,
        reward_funcs=functions,
        args=config,
        train_dataset=task.data,
        processing_class=task.tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert math.isfinite(logged["rewards/proxy/mean"])
    assert math.isfinite(logged["rewards/gold/mean"])


@pytest.mark.parametrize("module", [language, preference_task_module])
def test_examples(module: ModuleType):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_group_accuracy():
    assert group_accuracy("aabb", [1, 2, 3, 4], [0, 1, 1, 0]) == 0.5
    assert group_accuracy("aab", [1, 1, 5], [0, 1, 9]) == 0.5  # a tie of the proxy
    assert group_accuracy("ab", [1, 2], [1, 2]) is None  # nothing to compare
    assert group_accuracy("aaa", [1, 2, 3], [5, 5, 5]) is None


def test_group_bt_loss():
    proxy, gold = [1.0, -2.0, 0.5, 3.0, 4.0], [0.0, 1.0, 1.0, 2.0, 2.0]
    margins = torch.tensor([-3.0, -0.5])  # gold prefers the second and the third to the first
    loss = torch.nn.functional.softplus(-2 * margins).mean().item()
    assert group_bt_loss("aaabb", proxy, gold, scale=2.0) == pytest.approx(loss, rel=1e-6)
    assert group_bt_loss("ab", [1, 2], [1, 2]) is None
    assert group_bt_loss("aa", [1e4, 0.0], [0.0, 1.0]) == pytest.approx(1e4)  # no overflow


def test_a_world_has_a_name_and_a_kind():
    assert PreferenceWorld("B", PAIRS).name == "B7"
    with pytest.raises(ValueError, match="unknown world 'C'; known: A, B"):
        PreferenceWorld("C", PAIRS)


def test_calibration_is_blind_to_remedies_and_to_reporting_seeds():
    for changes, runs in calibration.CANDIDATES.values():
        for wanted in runs:
            arm = calibration.arm_of(*wanted, changes.get("trainer", {}))
            assert arm.gr is None
            assert arm.config["beta"] == 0
    for refused in (("A", "gr", 100), ("B", "kl", 100), ("A", "none", 99), ("C", "none", 100)):
        with pytest.raises(ValueError, match="not a calibration run"):
            calibration.arm_of(*refused, {})
    with pytest.raises(ValueError, match="beta"):
        calibration.arm_of("A", "none", 100, {"beta": 0.1})


def test_a_calibration_run_ends_in_tables_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    short = {"trainer": {"max_steps": 4, "per_device_train_batch_size": 16}}
    runs = (("A", "true", 100), ("B", "none", 100))
    monkeypatch.setattr(calibration, "CANDIDATES", {"chosen": (short, runs)})
    monkeypatch.setattr(calibration, "world", lambda seed: PAIRS)
    assert calibration.main(["--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "chosen" / "B-none-seed100" / "result.json").read_text())
    assert result["world"] == "B"
    assert 0 <= result["accuracy_end"] <= 1
    assert "| chosen | B | none | 100 |" in capsys.readouterr().out
    curves = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(curves) == 1 + 2 * 2
    assert "" not in curves[1].split(",")
    header, facts = (tmp_path / "worlds.csv").read_text().splitlines()
    values = dict(zip(header.split(","), map(float, facts.split(",")), strict=True))
    # this policy has learnt next to nothing and still writes what is no word
    assert values["not_only_words_share"] > 0.1
    assert 0.6 < values["labels_agree"] < 0.95

    monkeypatch.setattr(calibration, "run", None)
    assert calibration.main(["--output", str(tmp_path)]) == 0
    monkeypatch.setattr(calibration, "world", lambda seed: RewardSettings(SMALL, pairs=61))
    assert calibration.main(["--output", str(tmp_path)]) == 2
    assert "in another world" in capsys.readouterr().err
