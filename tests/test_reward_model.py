"""Reward models: checkpoints, resuming, and that what does not fit is said before training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
)
from trl import RewardConfig

from integrations.data import BadRow
from integrations.reward_models.grm import GRMTrainer
from integrations.reward_models.model import (
    LM_HEAD_FILE,
    has_lm_head,
    is_tied,
    load_reward_model,
    save_reward_model,
    start_reward_model,
)
from integrations.reward_models.trainer import BadReward, BTTrainer
from tests.reward_cases import make, pairs
from tests.trainer_cases import model_path, train

# ---- checkpoints --------------------------------------------------------------------------------


def scores(model: Any) -> Tensor:
    ids = torch.tensor([[5, 9, 17, 23, 1], [8, 30, 1, 0, 0]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=(ids != 0).long()).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_linear_checkpoint_is_a_standard_classifier(tmp_path: Path, tied: bool) -> None:
    trainer = make(tmp_path / "run", tied=tied, lm_weight=0.5)
    train(trainer)
    trainer.save_model(str(tmp_path / "one"))
    save_reward_model(trainer.model, tmp_path / "two", trainer.processing_class)
    for folder in (tmp_path / "one", tmp_path / "two"):
        load: Any = AutoModelForSequenceClassification.from_pretrained
        plain, info = load(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(scores(plain), scores(trainer.model))
        assert not has_lm_head(load_reward_model(folder))
        again = load_reward_model(folder, lm_head=True)
        assert torch.equal(again.lm_head.weight, trainer.model.lm_head.weight)
        assert is_tied(again) == tied
        assert (folder / LM_HEAD_FILE).exists() != tied
        assert not list(folder.glob(".*"))
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert make(tmp_path, model=again, tied=tied).train().training_loss > 0


def test_mlp_head_is_trained_with_dropout_and_loaded_again(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", reward_head="mlp")
    model = trainer.model
    assert [type(layer).__name__ for layer in model.score] == [
        "HeadDropout", "Linear", "ReLU", "Linear",
    ]  # fmt: skip
    assert model.score[1].weight.shape == (1024, 16)
    state = torch.ones(1, 16)
    model.train()
    assert not torch.equal(model.score(state), model.score(state))  # TRL did not switch it off
    before = model.score[3].weight.detach().clone()
    train(trainer)
    assert not torch.equal(model.score[3].weight, before)
    trainer.save_model(str(tmp_path / "saved"))
    again = load_reward_model(tmp_path / "saved", lm_head=True)
    assert torch.equal(scores(again), scores(model))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resumed_training_is_the_same(tmp_path: Path, tied: bool) -> None:
    options: dict[str, Any] = {"tied": tied, "lm_weight": 0.5, "max_steps": 4}
    options |= {"save_strategy": "steps", "save_steps": 2}
    whole = train(make(tmp_path / "whole", **options))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = make(tmp_path / "again", **options)
    run = train(resumed, resume_from_checkpoint=str(checkpoint))
    assert len(run.gradients) == 2
    assert all(torch.equal(run.weights[n], w) for n, w in whole.weights.items())
    assert is_tied(resumed.model) == tied


def test_the_best_checkpoint_brings_its_lm_head(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    options |= {"eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
    extra = {"eval_dataset": pairs(8, shift=3)}
    trainer = make(tmp_path, extra=extra, lm_weight=0.5, learning_rate=0.5, **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("-3")
    saved = load_reward_model(best, lm_head=True)
    assert torch.equal(trainer.model.lm_head.weight, saved.lm_head.weight)
    assert torch.equal(scores(trainer.model), scores(saved))


def test_saving_and_loading_what_is_not_there(tmp_path: Path) -> None:
    model = start_reward_model(model_path())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        save_reward_model(model, tmp_path / "full")
    save_reward_model(model, tmp_path / "model")
    (tmp_path / "model" / LM_HEAD_FILE).unlink()
    with pytest.raises(ValueError, match=f"no {LM_HEAD_FILE} in this folder"):
        load_reward_model(tmp_path / "model", lm_head=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "model"]


# ---- errors -------------------------------------------------------------------------------------


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    load: Any = AutoModelForSequenceClassification.from_pretrained
    load(model_path(), num_labels=3).save_pretrained(tmp_path / "three")
    for kind in (BTTrainer, GRMTrainer):
        with pytest.raises(ValueError, match="a classifier with 3 labels"):
            make(tmp_path, kind, str(tmp_path / "three"))
        with pytest.raises(ValueError, match=r"num_labels=3|no LM head"):
            make(tmp_path, kind, load(tmp_path / "three"))
    with pytest.raises(ValueError, match="a classifier with 3 labels"):
        load_reward_model(tmp_path / "three")
    load(model_path(), num_labels=1).save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="no LM head that could be kept"):
        start_reward_model(tmp_path / "one")
    with pytest.raises(ValueError, match="has no LM head, which lm_weight > 0 needs"):
        make(tmp_path, model=load(tmp_path / "one"))
    for kind in (BTTrainer, GRMTrainer):
        with pytest.raises(ValueError, match="LlamaForCausalLM generates text and gives no reward"):
            make(tmp_path, kind, AutoModelForCausalLM.from_pretrained(model_path()))
    with pytest.raises(ValueError, match="give 'linear' or 'mlp'"):
        start_reward_model(model_path(), "deep")  # pyright: ignore[reportArgumentType]


def test_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.0,
        initializer_range=0.5,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does more to its logits than its LM head"):
        start_reward_model(tmp_path)
    assert not has_lm_head(start_reward_model(tmp_path, lm_head=False))


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    for settings, message in [
        ({"lm_weight": 1.5}, "lm_weight=1.5: give a share"),
        ({"lm_beta": 0.0}, "lm_beta=0.0: give a positive"),
        ({"lm_loss": "kl"}, "lm_loss='kl': give one of sft, sft_nll, dpo_free, dpo"),
        ({"lm_logp": "max"}, "give 'sum' or 'mean'"),
        ({"reward_head": "deep"}, "give 'linear' or 'mlp'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **settings)
    with pytest.raises(TypeError, match="give a GRMConfig"):
        GRMTrainer(model_path(), RewardConfig(str(tmp_path), report_to="none", bf16=False))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="give a subclass of PairCollator"):
        make(tmp_path, extra={"data_collator": lambda rows: rows})


def test_data_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = pairs(8).to_list()
    rows[6]["rejected"] = rows[6]["chosen"]
    for kind in (BTTrainer, GRMTrainer):
        with pytest.raises(BadRow, match="train data set, row 6: 'chosen' equals 'rejected'"):
            make(tmp_path, kind, data=Dataset.from_list(rows))
        with pytest.raises(ValueError, match=r"8 of 8 pairs .* max_length=2 .* none is left"):
            make(tmp_path, kind, data=pairs(8), max_length=2)
        make(tmp_path, kind, data=pairs(8), max_length=8)
        assert "longer than max_length=8 tokens and are left out" in caplog.text
        caplog.clear()
    implicit = pairs(8).remove_columns("prompt")
    make(tmp_path, BTTrainer, data=implicit)
    with pytest.raises(ValueError, match="no column 'prompt', so where the response begins"):
        make(tmp_path, data=implicit)
    with pytest.raises(TypeError, match="IterableDataset: the text loss needs"):
        make(tmp_path, data=pairs(8).to_iterable_dataset())


@pytest.mark.parametrize("kind", [BTTrainer, GRMTrainer])
def test_nan_reward_stops_training(tmp_path: Path, kind: Any) -> None:
    trainer = make(tmp_path, kind)
    with torch.no_grad():
        trainer.model.score.weight[0, 0] = math.nan
    with pytest.raises(BadReward, match=r"step 0: .* NaN or infinity for 8 of 8 .* learning_rate"):
        trainer.train()
