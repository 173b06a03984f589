"""attach(trainer, reference=...): the KL term's reference policy in GRPO and RLOO."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatopt import ReferenceReset, attach
from tests.cases import same
from tests.trainer_cases import lora, make_trainer, train
from tests.trainer_oracle import difference

BETA = 0.5
KINDS = ["grpo", "rloo"]


def policy(kind: str, folder: Path, *, steps: int = 5, **settings: Any) -> Any:
    return make_trainer(kind, folder, steps=steps, beta=BETA, learning_rate=3e-3, **settings)


def kl(history: list[dict[str, Any]]) -> list[float]:
    return [entry["kl"] for entry in history if "kl" in entry]


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return difference(a, b) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_hard_resets_equal_trls_own(kind: str, tmp_path: Path) -> None:
    own = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 2}
    expected = train(policy(kind, tmp_path / "a", **own))
    trainer = policy(kind, tmp_path / "b")
    attach(trainer, 0.0, reference=ReferenceReset(every=2))
    run = train(trainer)
    assert close(run.weights, expected.weights)
    assert kl(run.history) == pytest.approx(kl(expected.history), abs=1e-5)
    # nothing is left of the second model
    assert not isinstance(trainer.ref_model, torch.nn.Module)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_right_after_a_reset_and_not_before(kind: str, tmp_path: Path) -> None:
    trainer = policy(kind, tmp_path, steps=6)
    attach(trainer, 0.1, reference=ReferenceReset(every=3))
    history = train(trainer).history
    values = kl(history)
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[3] == pytest.approx(0.0, abs=1e-6)
    assert min(values[2], values[5]) > 1e-3
    resets = [entry["gr/reference_resets"] for entry in history if "kl" in entry]
    assert resets == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_reset_it_is_the_usual_reference(kind: str, tmp_path: Path) -> None:
    expected = train(policy(kind, tmp_path / "a"))
    trainer = policy(kind, tmp_path / "b")
    attach(trainer, 0.0, reference=ReferenceReset(every=100))
    assert close(train(trainer).weights, expected.weights)


def test_gr_and_a_reference_together(tmp_path: Path) -> None:
    usual = policy("grpo", tmp_path / "a", dropout=0.1)
    attach(usual, 0.1)
    expected = train(usual)
    trainer = policy("grpo", tmp_path / "b", dropout=0.1)
    attach(trainer, 0.1, reference=ReferenceReset(every=100))
    run = train(trainer)
    assert close(run.weights, expected.weights)
    assert run.losses_computed == expected.losses_computed == 10


@pytest.mark.parametrize("kind", KINDS)
def test_resets_with_peft_where_trl_has_none(kind: str, tmp_path: Path) -> None:
    trainer = policy(kind, tmp_path, steps=4, peft_config=lora())
    plug = attach(trainer, 0.0, reference=ReferenceReset(every=2))
    run = train(trainer)
    values = kl(run.history)
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[2] == pytest.approx(0.0, abs=1e-6)
    assert min(values[1], values[3]) > 1e-6
    assert plug.optimizer is not None
    assert plug.optimizer.reference is not None
    # the adapter alone is copied
    adapter = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert sum(t.numel() for t in plug.optimizer.reference.snapshot) == adapter
    assert adapter < sum(p.numel() for p in trainer.model.parameters()) / 2


@pytest.mark.parametrize("peft", [False, True])
def test_a_resumed_run_keeps_its_reference(peft: bool, tmp_path: Path) -> None:
    def trainer(steps: int = 5) -> Any:
        made = policy(
            "grpo",
            tmp_path,
            steps=steps,
            peft_config=lora() if peft else None,
            save_strategy="steps",
            save_steps=1,
        )
        attach(made, 0.1, reference=ReferenceReset(every=2))
        return made

    whole = train(trainer())
    resumed = train(trainer(), resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(list(resumed.weights.values()), list(whole.weights.values()))
    # the first entries come from the checkpoint
    assert kl(resumed.history) == kl(whole.history)


def test_training_again_goes_on_with_the_reference(tmp_path: Path) -> None:
    trainer = policy("grpo", tmp_path, steps=3)
    plug = attach(trainer, 0.0, reference=ReferenceReset(every=2))
    trainer.train()
    assert plug.optimizer is not None
    assert plug.optimizer.reference is not None
    kept = [t.clone() for t in plug.optimizer.reference.snapshot]
    trainer.args.max_steps = 0
    trainer.create_optimizer()
    assert same(plug.optimizer.reference.snapshot, kept)
    assert plug.optimizer.reference.steps == 3


def test_a_reset_on_the_trainers_metrics(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def when(metrics: dict[str, Any]) -> bool:
        seen.append(dict(metrics))
        return metrics.get("kl", 0.0) > 1e-3

    trainer = policy("grpo", tmp_path, steps=4)
    plug = attach(trainer, 0.0, reference=ReferenceReset(when=when, reset_optimizer=True))
    train(trainer)
    assert plug.optimizer is not None
    assert plug.optimizer.reference is not None
    assert plug.optimizer.reference.resets > 0
    # the log comes after the step: the first decision knows no metrics
    assert "reward" not in seen[0]
    assert "reward" in seen[1]


def test_elastic_reset_needs_no_kl(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, steps=3)
    before = {id(p): p.detach().clone() for p in trainer.model.parameters()}
    rule = ReferenceReset(every=3, source="ema", target="policy", ema_decay=0.5)
    plug = attach(trainer, 0.0, reference=rule)
    train(trainer)
    assert plug.optimizer is not None
    assert plug.optimizer.reference is not None
    reference = plug.optimizer.reference
    start = [before[id(p)] for p in reference.params()]
    assert same(reference.snapshot, start)
    assert same(reference.average, start)
    assert not same([p.detach() for p in reference.params()], start)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("grpo", {"beta": 0.0}, "KL term is off"),
        ("rloo", {"beta": 0.0}, "KL term is off"),
        ("sft", {}, "has no KL term"),
        ("grpo", {"beta": 0.1, "sync_ref_model": True}, "would both move"),
    ],
)
def test_a_reference_without_effect_is_refused(
    kind: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = make_trainer(kind, tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        attach(trainer, 0.0, reference=ReferenceReset())


def test_a_reference_is_a_rule(tmp_path: Path) -> None:
    trainer = policy("grpo", tmp_path)
    with pytest.raises(TypeError, match="ReferenceReset"):
        attach(trainer, 0.0, reference=200)
