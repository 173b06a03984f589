"""GRM: losses against their definition, weight 0 is Bradley-Terry bit for bit, GR, PEFT."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from trl import RewardTrainer

import flatopt
from integrations.reward_models.grm import GRMTrainer, text_loss
from integrations.reward_models.grm_data import PairCollator, response_starts
from integrations.reward_models.model import (
    response_logps,
    start_reward_model,
)
from integrations.reward_models.trainer import BTTrainer
from tests.reward_cases import make, pairs
from tests.tiny_models import make_tokenizer
from tests.trainer_cases import model_path, train

CHECKED: list[tuple[str, str]] = [
    (loss, form) for loss in ("sft", "sft_nll", "dpo_free", "dpo") for form in ("sum", "mean")
]


# ---- losses -------------------------------------------------------------------------------------


def test_response_logps_equal_a_loop_in_float64() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 6, 4, dtype=torch.double)
    head = torch.nn.Linear(4, 9, dtype=torch.double)
    ids = torch.randint(9, (3, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6])
    expected = []
    for row in range(3):
        total = 0.0
        for t in range(1, 6):
            if mask[row, t]:
                scores = (head.weight @ hidden[row, t - 1] + head.bias).detach().exp()
                total += math.log(scores[ids[row, t]] / scores.sum())
        expected.append(total)
    found = response_logps(hidden, head, ids, mask)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    half = response_logps(hidden.bfloat16(), head.bfloat16(), ids, mask)
    assert half.dtype == torch.float32


def oracle(loss: str, form: str, weight: float, beta: float, row: dict[str, Any]) -> Tensor:
    """The loss of one pair, from separate unpadded passes of separate models in float64."""
    path = model_path()
    causal = AutoModelForCausalLM.from_pretrained(path, dtype=torch.double).eval()
    with torch.no_grad():
        # the reference of this test: the same model, moved
        moved = AutoModelForCausalLM.from_pretrained(path, dtype=torch.double).eval()
        moved.lm_head.weight.mul_(1.5)
        logps: dict[str, list[float]] = {}
        for name, model in (("model", causal), ("reference", moved)):
            for side in ("chosen", "rejected"):
                ids = torch.tensor(row[f"{side}_ids"])
                table = model(ids[None]).logits[0].log_softmax(-1)
                each = [float(table[t - 1, ids[t]]) for t in range(3, len(ids))]
                total = math.fsum(each) / (len(each) if form == "mean" else 1)
                logps.setdefault(name, []).append(total)
    (c, r), (rc, rr) = logps["model"], logps["reference"]

    def softplus(x: float) -> float:
        return math.log1p(math.exp(-abs(x))) + max(x, 0)

    text = {
        "sft": softplus(-beta * c),
        "sft_nll": -c,
        "dpo_free": softplus(-beta * (c - r)),
        "dpo": softplus(-beta * ((c - r) - (rc - rr))),
    }[loss]
    rewards = [float(row["score"](torch.tensor(row[f"{s}_ids"]))) for s in ("chosen", "rejected")]
    bt = softplus(-(rewards[0] - rewards[1]))
    return torch.tensor(weight * text + (1 - weight) * bt, dtype=torch.double)


@pytest.mark.parametrize(("loss", "form"), CHECKED)
def test_loss_of_a_batch_equals_the_oracle(tmp_path: Path, loss: str, form: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.double)
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    trainer = make(
        tmp_path,
        model=start_reward_model(model_path(), seed=3, dtype=torch.double),
        data=pairs(4),
        extra={"reference": reference} if loss == "dpo" else None,
        lm_loss=loss,
        lm_logp=form,
        lm_weight=0.3,
        lm_beta=0.2,
        per_device_eval_batch_size=3,
    )
    model = trainer.model
    plain = AutoModelForSequenceClassification.from_pretrained(
        model_path(), num_labels=1, dtype=torch.double
    )
    plain.score.weight.data.copy_(model.score.weight)
    rows = [dict(row) for row in trainer.train_dataset]
    assert all(row["chosen_start"] == row["rejected_start"] == 3 for row in rows)

    def score(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return plain(ids[None]).logits[0, 0]

    expected = torch.stack([oracle(loss, form, 0.3, 0.2, r | {"score": score}) for r in rows])
    model.train()
    found = trainer.compute_loss(model, trainer.data_collator(rows))
    # the reference's log-probs travel in float32
    torch.testing.assert_close(
        found, expected.mean(), rtol=1e-6 if loss == "dpo" else 1e-12, atol=0
    )
    found.backward()
    assert model.lm_head.weight.grad.norm() > 0
    assert model.score.weight.grad.norm() > 0


def test_text_losses_by_hand() -> None:
    chosen, rejected = torch.tensor([-2.0]), torch.tensor([-5.0])
    assert float(text_loss("sft_nll", chosen, rejected, 0.1)) == 2
    for kind, argument in [("sft", -0.2), ("dpo_free", 0.3), ("dpo", 0.2)]:
        found = text_loss(kind, chosen, rejected, 0.1, 1.0)
        assert float(found) == pytest.approx(math.log1p(math.exp(-argument)), rel=1e-6)
    with pytest.raises(ValueError, match="give one of sft"):
        text_loss("ppo", chosen, rejected, 0.1)


def test_the_initial_model_is_dpos_reference_unless_one_is_given(tmp_path: Path) -> None:
    own = make(tmp_path, lm_loss="dpo", lm_logp="mean", extra={"eval_dataset": pairs(5)})
    causal = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    other = make(tmp_path, lm_loss="dpo", lm_logp="mean", extra={"reference": causal})
    for column in ("reference_chosen", "reference_rejected"):
        found, expected = own.train_dataset[column], other.train_dataset[column]
        assert list(found) == pytest.approx(list(expected), rel=1e-5)
    first = train(own).history[0]
    assert first["text_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert own.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="the reference was the model before training"):
        own.evaluate(pairs(3))
    assert other.evaluate(pairs(3))["eval_loss"] > 0
    # rows that bring their own are not computed again
    data = own.train_dataset.remove_columns("reference_chosen")
    with pytest.raises(ValueError, match="column 'reference_rejected' alone"):
        make(tmp_path, lm_loss="dpo", data=data)
    data = data.add_column("reference_chosen", [7.0] * len(data))
    given = make(tmp_path, lm_loss="dpo", data=data)
    assert set(given.train_dataset["reference_chosen"]) == {7.0}


# ---- Bradley-Terry, GR, PEFT --------------------------------------------------------------------


def test_weight_0_is_trls_bradley_terry_bit_for_bit(tmp_path: Path) -> None:
    runs = [train(make(tmp_path, RewardTrainer)), train(make(tmp_path, BTTrainer))]
    runs.append(train(make(tmp_path, lm_weight=0.0)))
    kept = start_reward_model(model_path(), seed=5)  # with an LM head that is left alone
    before = kept.lm_head.weight.detach().clone()
    runs.append(train(make(tmp_path, model=kept, lm_weight=0.0)))
    assert torch.equal(kept.lm_head.weight, before)
    for run in runs[1:]:
        assert len(run.gradients) == 3
        for found, expected in zip(run.gradients, runs[0].gradients, strict=True):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[n], expected[n]) for n in expected)
        assert all(torch.equal(run.weights[n], w) for n, w in runs[0].weights.items())
        assert [h.get("loss") for h in run.history] == [h.get("loss") for h in runs[0].history]
    grm = train(make(tmp_path))
    assert any(not torch.equal(grm.weights[n], w) for n, w in runs[0].weights.items())


@pytest.mark.parametrize("kind", [BTTrainer, GRMTrainer])
def test_gradient_regularization_attaches(tmp_path: Path, kind: Any) -> None:
    plain = train(make(tmp_path, kind, max_steps=1))
    trainer = make(tmp_path, kind, max_steps=1)
    flatopt.attach(trainer, ratio=1.0)
    run = train(trainer)
    assert run.history[0]["gr/penalty_ratio"] == pytest.approx(1, rel=1e-3)
    assert run.history[0]["gr/grad_norm"] > 0
    assert run.history[0]["loss"] == plain.history[0]["loss"]
    names = ["model.layers.0.mlp.up_proj.weight", *["lm_head.weight"] * (kind is GRMTrainer)]
    for name in names:
        assert not torch.equal(run.weights[name], plain.weights[name])
        assert not torch.equal(run.weights[name], run.before[name])


def test_peft_trains_adapter_and_head(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS"
    )
    trainer = make(tmp_path, extra={"peft_config": config}, lm_weight=0.5)
    run = train(trainer)
    moved = {n for n, w in run.weights.items() if not torch.equal(w, run.before[n])}
    assert any("lora_B" in n for n in moved)
    assert any("score" in n for n in moved)
    assert not any("lm_head" in n for n in moved)
    assert run.history[0]["text_loss"] > 0
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


# ---- the response -------------------------------------------------------------------------------


def test_response_of_a_chat_is_the_assistants_turn() -> None:
    tokenizer = make_tokenizer()
    prompt = [{"role": "user", "content": "How many?"}]
    row: dict[str, Any] = {"prompt": prompt}
    for side, text in (("chosen", "7 of them"), ("rejected", "8")):
        turns = [*prompt, {"role": "assistant", "content": text}]
        encoded: Any = tokenizer.apply_chat_template(turns, return_dict=True)
        row[f"{side}_ids"] = encoded["input_ids"]
    row |= response_starts(row, tokenizer)
    batch = PairCollator(pad_token_id=0)([row, row])
    assert batch["response_mask"].shape == batch["input_ids"].shape
    for i, text in enumerate(["7 of them"] * 2 + ["8"] * 2):
        kept = batch["input_ids"][i][batch["response_mask"][i].bool()]
        assert tokenizer.decode(kept) == text + "<|im_end|>\n"
    row["chosen_ids"] = row["chosen_ids"][: row["chosen_start"]]
    with pytest.raises(ValueError, match=r"'chosen' response to the prompt.*no token of its own"):
        response_starts(row, tokenizer)
