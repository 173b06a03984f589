"""The evaluation against numbers computed by hand, and on two small policies."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from integrations.evaluate import (
    Bench,
    evaluate_policy,
    group_margins,
    mean_and_error,
    reward_quality,
    wilson,
    win_rate,
)
from integrations.rlhf.evaluate import as_csv, as_markdown, means
from integrations.worlds.preference_task import group_accuracy, group_bt_loss
from integrations.worlds.topics import LENGTH, WORDS, Language, make_tokenizer, to_text


def test_wilson_by_its_definition() -> None:
    # the limits are the shares p whose test statistic against the found share is exactly z
    for share, trials in ((0.5, 10), (0.9, 40), (0.0, 7), (1.0, 7)):
        for limit in wilson(share, trials):
            if 0 < limit < 1:
                z = (share - limit) / math.sqrt(limit * (1 - limit) / trials)
                assert abs(z) == pytest.approx(1.96, rel=1e-9)
    assert wilson(0.0, 7)[0] == 0
    assert wilson(1.0, 7)[1] == 1
    with pytest.raises(ValueError, match="at least 1"):
        wilson(0.5, 0)


def test_numbers_by_hand() -> None:
    ours = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 5.0]])
    theirs = torch.tensor([[0.0, 2.0], [0.0, 1.0], [4.0, 4.0]])
    # prompt 1: 1>0, 1<2, 2>0, 2=2 -> 2.5 of 4; 2: tie, loss, tie, loss -> 1 of 4; 3: 2 of 4
    assert win_rate(ours, theirs)["win_rate"] == pytest.approx(5.5 / 12)
    assert win_rate(ours, theirs)["win_low"] == pytest.approx(wilson(5.5 / 12, 3)[0])
    mean, error = mean_and_error(ours)  # prompt means 1.5, 0, 4: mean 11/6
    assert mean == pytest.approx(11 / 6)
    squares = sum((x - 11 / 6) ** 2 for x in (1.5, 0, 4))
    assert error == pytest.approx(math.sqrt(squares / 2 / 3))
    assert mean_and_error(ours[:1]) == (1.5, None)


def test_pairs_of_a_prompt_by_hand() -> None:
    proxy = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    gold = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 2.0]])
    # prompt 1: (3 over 1) right, (2 over 1) right, the two of gold 1 are no pair;
    # prompt 2: (1 over 0) tie, (2 over 1): 0 - 5, (2 over 0): 0 - 5
    assert sorted(group_margins(proxy, gold, 2.0).tolist()) == [-10, -10, 0, 2, 4]
    quality = reward_quality(proxy, gold, 2.0)
    assert quality["pairs"] == 5
    assert quality["accuracy"] == pytest.approx(2.5 / 5)
    losses = [math.log(1 + math.exp(-m)) for m in (-10, -10, 0, 2, 4)]
    assert quality["bt_loss"] == pytest.approx(sum(losses) / 5)
    # the trainer's log measures the same in another way
    groups = [i for i in range(2) for _ in range(3)]
    flat = proxy.flatten().tolist(), gold.flatten().tolist()
    assert quality["accuracy"] == group_accuracy(groups, *flat)
    assert quality["bt_loss"] == pytest.approx(group_bt_loss(groups, *flat, 2.0))
    assert reward_quality(proxy, torch.zeros(2, 3))["accuracy"] is None


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    tokenizer: Any = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def share_of_first_half(prompts: list[Any], texts: list[str]) -> list[float]:
    good = set(WORDS[: len(WORDS) // 2])
    return [sum(word in good for word in text.split()) / LENGTH for text in texts]


def bench(**changes: Any) -> Bench:
    settings: dict[str, Any] = {
        "tokenizer": make_tokenizer(),
        "prompts": Language(3).prompts(10, 5),
        "tokens": LENGTH,
        "to_text": to_text,
        "proxy": share_of_first_half,
        "gold": lambda prompts, texts: [-x for x in share_of_first_half(prompts, texts)],
        "samples": 3,
        "batch": 7,
    }
    bench = Bench(**settings | changes)
    bench.tokenizer.padding_side = "left"
    return bench


def test_a_policy_against_another() -> None:
    start, policy = model(1), model(2)
    said: list[tuple[int, int]] = []
    given = bench()
    result = evaluate_policy(
        policy, start, given, lambda n, done, total, text="": said.append((done, total))
    )
    again = evaluate_policy(policy, start, bench())
    assert result == again, "the same seeds, the same numbers"
    assert said[0] == (0, 60)
    assert said[-1] == (60, 60)
    # the proxy is the opposite of gold: never right
    assert result["gold"] == pytest.approx(-result["proxy"])
    assert result["accuracy"] == 0.0
    assert result["win_by"] == "gold"
    mirrored = evaluate_policy(policy, start, bench(gold=None))
    assert mirrored["win_by"] == "proxy"
    assert mirrored["win_rate"] == pytest.approx(1 - result["win_rate"])
    assert mirrored["gold"] is mirrored["accuracy"] is None
    assert result["kl"] > 0.1
    other = evaluate_policy(policy, start, bench(seed=1))
    assert other["proxy"] != result["proxy"]


def test_a_policy_against_itself() -> None:
    result = evaluate_policy(model(1), model(1), bench(samples=8))
    assert result["kl"] == pytest.approx(0, abs=1e-6)
    # other random numbers for either: they write different texts, and win about equally often
    assert result["gold"] != result["gold_sft"]
    assert result["win_low"] < 0.5 < result["win_high"]


def test_kl_is_that_of_the_written_tokens_alone() -> None:
    start, policy = model(1), model(2)
    given = bench(samples=2)
    result = evaluate_policy(policy, start, given)
    # again by hand, row by row without padding, up to the first end token
    torch.manual_seed(0)
    from integrations.evaluate import end_tokens, sample

    rows = sample(policy, given, end_tokens(start, given.tokenizer), lambda done: None, stream=1)
    assert any(len(row) < LENGTH for row in rows), "some end early, or this tests nothing"
    total = 0.0
    for i, row in enumerate(rows):
        prompt = given.tokenizer(given.prompts[i // 2])["input_ids"]
        ids = torch.tensor([[*prompt, *row]])
        with torch.no_grad():
            new, old = (
                m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (policy, start)
            )
        total += (new.exp() * (new - old)).sum().item()
    assert result["kl"] == pytest.approx(total / len(rows), rel=1e-4)


def test_the_judge_decides_where_there_is_no_gold() -> None:
    asked: list[tuple[list[Any], list[str], list[str]]] = []

    def judge(prompts: list[Any], ours: list[str], theirs: list[str]) -> list[float | None]:
        asked.append((prompts, ours, theirs))
        return [1.0, 1.0, 0.5, None, 0.0, 1.0, None, 1.0, 1.0, 1.0]

    result = evaluate_policy(model(2), model(1), bench(gold=None, judge=judge))
    assert [len(part) for part in asked[0]] == [10, 10, 10]
    assert result["win_by"] == "judge"
    assert result["judged"] == 8
    assert result["win_rate"] == pytest.approx(6.5 / 8)


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        bench(samples=1)
    with pytest.raises(ValueError, match="no held-out prompt"):
        bench(prompts=[])


def test_tables() -> None:
    row = evaluate_policy(model(2), model(1), bench())
    row |= {"method": "gr+kl", "trainer": "rloo", "seed": 0, "world": "A", "world_seed": 3}
    other = row | {"seed": 1, "gold": None, "gold_error": None}
    lines = as_markdown([row, other]).splitlines()
    assert lines[2].startswith("| A3 | gr+kl (rloo) | 0 |")
    assert lines[3].count("|") == lines[0].count("|")
    text = as_csv([row, other]).splitlines()
    assert len(text) == 3
    assert text[1].startswith("A3,gr+kl,rloo,0,")
    (line,) = means([row, other])
    assert line["runs"] == 2
    assert line["gold"] == row["gold"]
