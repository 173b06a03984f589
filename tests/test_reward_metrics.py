"""Measures of reward models: each against its definition written out, and whole evaluations."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from trl import RewardTrainer

from integrations.data import BadRow
from integrations.reward_models.metrics import (
    bt_loss,
    calibration,
    evaluate,
    excess_bt_loss,
    pair_accuracy,
    pair_ids,
    score,
)
from tests.reward_cases import make, pairs
from tests.tiny_models import make_tokenizer
from tests.trainer_cases import load_model, model_path

MARGINS = st.lists(st.floats(-30, 30), min_size=1, max_size=30)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def entropy_loss(p: float, q: float) -> float:
    """Expected loss of predicting q where the label is 1 with probability p."""
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def test_accuracy_and_loss_by_hand() -> None:
    margins = torch.tensor([2.0, -1.0, 0.0])
    assert pair_accuracy(margins) == 0.5
    expected = sum(-math.log(sigmoid(m)) for m in margins.tolist()) / 3
    assert bt_loss(margins) == pytest.approx(expected, rel=1e-12)
    assert bt_loss(torch.tensor([-800.0])) == 800  # no overflow


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_excess_loss_is_expected_loss_above_the_least(pairs: list[tuple[float, float]]) -> None:
    model, gold = torch.tensor(pairs, dtype=torch.double).unbind(1)
    excess = excess_bt_loss(model, gold)
    assert excess >= -1e-12
    p, q = gold.sigmoid().tolist(), model.sigmoid().tolist()
    both = [entropy_loss(a, b) - entropy_loss(a, a) for a, b in zip(p, q, strict=True)]
    assert excess == pytest.approx(sum(both) / len(both), abs=1e-6)
    assert excess_bt_loss(gold, gold) == 0


@given(MARGINS, st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_calibration_equals_the_sum_over_bins(values: list[float], bins: int) -> None:
    result = calibration(torch.tensor(values, dtype=torch.double), bins)
    inside: list[list[float]] = [[] for _ in range(bins)]
    for m in values:
        p = torch.tensor(abs(m), dtype=torch.double).sigmoid().item()
        right = 1.0 if m > 0 else 0.5 if m == 0 else 0.0
        index = sum(p >= edge for edge in result.edges[1:-1])
        inside[index].append(p - right)
    assert result.counts == [len(bin) for bin in inside]
    expected = sum(abs(sum(bin)) for bin in inside) / len(values)
    assert result.error == pytest.approx(expected, abs=1e-9)


def test_a_model_that_draws_the_labels_is_calibrated_and_an_overconfident_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    true = 2 * torch.randn(20000, generator=generator, dtype=torch.double)
    chosen = torch.rand(20000, generator=generator, dtype=torch.double) < true.sigmoid()
    margins = torch.where(chosen, true, -true)
    good, bold = calibration(margins), calibration(4 * margins)
    assert good.error < 0.02 < 0.1 < bold.error
    assert sum(good.counts) == 20000
    assert good.edges[0] == 0.5
    for accuracy, confidence in zip(good.accuracy, good.confidence, strict=True):
        assert accuracy is not None
        assert accuracy == pytest.approx(confidence, abs=0.05)
    json.dumps(asdict(calibration(torch.tensor([0.1]))), allow_nan=False)  # with empty bins


def test_margins_that_cannot_be_measured() -> None:
    for bad, message in [
        (torch.tensor([1.0, math.nan]), "pair 1 is nan"),
        (torch.tensor([-math.inf]), "pair 0 is -inf"),
        (torch.zeros(2, 2), r"shape \(2, 2\)"),
        (torch.zeros(0), "one number per pair"),
    ]:
        for measure in (pair_accuracy, bt_loss, calibration):
            with pytest.raises(ValueError, match=message):
                measure(bad)
    with pytest.raises(ValueError, match="2 margins, but 1 gold"):
        excess_bt_loss(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="bins=0"):
        calibration(torch.zeros(2), 0)


# ---- whole models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward() -> tuple[Any, Any]:
    path = model_path(0.0, False, True)
    return load_model(path, scores=True), PreTrainedTokenizerFast.from_pretrained(path)


def test_sets_are_measured_apart_as_trl_measures_them(tmp_path: Path, reward: tuple) -> None:
    model, tokenizer = reward
    sets = {"in": pairs(10), "out": pairs(7, 5, gold_chosen=1.0, gold_rejected=0.5)}
    results = evaluate(model, tokenizer, sets, batch_size=4)
    assert [results[k]["pairs"] for k in sets] == [10, 7]
    assert "excess_bt_loss" not in results["in"]
    assert results["out"]["excess_bt_loss"] > 0
    options: dict[str, Any] = {"data": pairs(4), "per_device_eval_batch_size": 100}
    trainer = make(tmp_path, RewardTrainer, model, **options)
    for name, dataset in sets.items():
        theirs = trainer.evaluate(dataset)
        assert results[name]["bt_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
        assert results[name]["accuracy"] == pytest.approx(theirs["eval_accuracy"])
        assert results[name]["mean_margin"] == pytest.approx(theirs["eval_margin"], rel=1e-4)


def test_scores_do_not_hang_on_batches_or_mode(reward: tuple) -> None:
    model, tokenizer = reward
    ids = [list(range(4, 4 + n)) for n in (3, 9, 1, 5)]
    one = score(model, ids, tokenizer.pad_token_id, 1)
    model.train()
    together = score(model, ids, tokenizer.pad_token_id, 4)
    assert model.training
    model.eval()
    torch.testing.assert_close(one, together)
    assert len(set(one.tolist())) == 4


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = make_tokenizer()
    row = {
        "prompt": [{"role": "user", "content": "How many?"}],
        "chosen": [{"role": "assistant", "content": "7"}],
        "rejected": [{"role": "assistant", "content": "8"}],
    }
    chosen, rejected = (str(tokenizer.decode(ids)) for ids in pair_ids(tokenizer, row))
    assert chosen == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n"
    assert rejected == chosen.replace("7", "8")


def test_long_pairs_are_left_out_and_counted(reward: tuple) -> None:
    model, tokenizer = reward
    result = evaluate(model, tokenizer, {"a": pairs(8)}, max_length=8)["a"]
    assert result["pairs"] + result["left_out"] == 8
    assert 0 < result["left_out"] < 8
    with pytest.raises(ValueError, match=r"a: every pair is longer than max_length=2"):
        evaluate(model, tokenizer, {"a": pairs(8)}, max_length=2)


def test_bad_models_and_data(reward: tuple) -> None:
    model, tokenizer = reward
    with pytest.raises(BadRow, match=r"out, row 0: 'chosen' is empty"):
        evaluate(model, tokenizer, {"in": pairs(2), "out": pairs(2, chosen=" ")})
    weight = model.score.weight.detach().clone()
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="in: margins: pair 0 is nan"):
        evaluate(model, tokenizer, {"in": pairs(2)})
    with torch.no_grad():
        model.score.weight.copy_(weight)
    for name, value, message in [("num_labels", 2, "2 labels"), ("pad_token_id", None, "no pad")]:
        before = getattr(model.config, name)
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=message):
            evaluate(model, tokenizer, {"in": pairs(2)})
        setattr(model.config, name, before)
