"""attach: the gradient that each trainer steps on equals an independent computation of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from flatopt import GradRegOptimizer, attach, gradreg_gradient
from tests.trainer_cases import (
    KINDS,
    RADIUS,
    STRENGTH,
    load_model,
    lora,
    make_trainer,
    model_path,
    train,
)
from tests.trainer_oracle import difference, length, loss_of, oracle, same, sft_loss


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_equals_the_oracle(kind: str, accumulation: int, tmp_path: Path) -> None:
    module = "score" if kind == "reward" else "lm_head"
    name = module + ".weight"
    plain = train(make_trainer(kind, tmp_path, accumulation=accumulation))
    trainer = make_trainer(kind, tmp_path, accumulation=accumulation)
    attach(trainer, STRENGTH, radius=RADIUS, exclude=module)
    run = train(trainer)

    assert len(plain.batches) == accumulation
    expected = oracle(kind, plain.before, plain.batches, STRENGTH, exclude=(name,))
    assert difference(plain.gradients[0], expected.gradient) < 1e-5
    assert difference(run.gradients[0], expected.combined) < 1e-4
    assert difference(run.gradients[0], expected.gradient) > 0.5
    assert torch.equal(run.gradients[0][name], plain.gradients[0][name])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_grpo_with_its_length_normalised_loss(accumulation: int, tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, accumulation=accumulation, loss_type="grpo")
    attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    expected = oracle(
        "grpo",
        run.before,
        run.batches[:accumulation],
        STRENGTH,
        loss=loss_of("grpo", loss_type="grpo"),
    )
    assert difference(run.gradients[0], expected.combined) < 1e-4
    assert difference(run.gradients[0], expected.gradient) > 0.5


@pytest.mark.parametrize(("rule", "passes"), [("central", 2), ("exact", 1)])
def test_the_other_differences(rule: str, passes: int, tmp_path: Path) -> None:
    trainer = make_trainer("plain", tmp_path, accumulation=2)
    attach(trainer, STRENGTH, difference=rule, radius=1e-4 if rule == "central" else None)
    run = train(trainer)
    assert run.losses_computed == 2 * (1 + passes)
    # Transformers computes norms in float32: .001 is what its forward difference can show.
    expected = oracle("plain", run.before, run.batches[:2], STRENGTH, radius=1e-5)
    assert difference(run.gradients[0], expected.combined) < 3e-3
    coarse = oracle("plain", run.before, run.batches[:2], STRENGTH)
    assert difference(run.gradients[0], coarse.combined) > 0.05


def test_the_last_window_of_an_epoch_is_shorter(tmp_path: Path) -> None:
    trainer = make_trainer(
        "reward", tmp_path, accumulation=2, size=12, steps=-1, num_train_epochs=2
    )
    attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    assert run.losses_computed == 2 * (2 + 1) * 2
    assert len(run.gradients) == 4
    for step, batches in ((1, run.batches[4:5]), (2, run.batches[6:8])):
        expected = oracle("reward", run.begun[step], batches, STRENGTH)
        assert difference(run.gradients[step], expected.combined) < 1e-4


def test_the_gradient_is_clipped_after_the_penalty(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=2, max_grad_norm=0.5)
    attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    expected = oracle("sft", run.before, run.batches[:2], STRENGTH)
    size = length(expected.combined.values())
    assert size > 1
    assert length(run.gradients[0].values()) <= 0.5 * (1 + 1e-6)
    clipped = {n: 0.5 / size * g for n, g in expected.combined.items()}
    assert difference(run.gradients[0], clipped) < 1e-4
    assert run.history[0]["grad_norm"] == pytest.approx(size, rel=1e-4)


def test_tied_weights_are_excluded_under_both_names(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, tied=True)
    attach(trainer, STRENGTH, radius=RADIUS, exclude=["lm_head"])
    run = train(trainer)
    name = "model.embed_tokens.weight"
    expected = oracle("sft", run.before, run.batches[:1], STRENGTH, exclude=(name,), tied=True)
    assert difference(run.gradients[0], expected.combined) < 1e-4
    plain = train(make_trainer("sft", tmp_path, tied=True))
    assert torch.equal(run.gradients[0][name], plain.gradients[0][name])


# ---- adapters -----------------------------------------------------------------------------------


def test_lora_steps_on_the_oracle_and_moves_nothing_else(tmp_path: Path) -> None:
    def trainer() -> Any:
        torch.manual_seed(0)
        return make_trainer("sft", tmp_path, accumulation=2, peft_config=lora())

    plain, regularized = train(trainer()), trainer()
    attach(regularized, STRENGTH, radius=RADIUS, exclude="layers.1.self_attn.v_proj")
    run = train(regularized)
    assert same(run.before, plain.before)
    trained = {n for n in run.before if "lora_" in n}
    kept = {n for n in trained if "layers.1.self_attn.v_proj" in n}
    assert run.gradients[0].keys() == trained
    assert len(kept) == 2
    frozen = run.before.keys() - trained
    assert same({n: run.weights[n] for n in frozen}, {n: run.before[n] for n in frozen})

    model = get_peft_model(load_model(model_path()), lora())
    model.load_state_dict(run.before, strict=False)
    named = {n: p for n, p in model.double().named_parameters() if n in trained - kept}
    batches = [b | {"num_items": b["num_items"].double()} for b in run.batches[:2]]

    def total() -> torch.Tensor:
        return sft_loss(model, batches[0], 2) + sft_loss(model, batches[1], 2)

    g1 = torch.autograd.grad(total(), list(named.values()))
    eps = RADIUS * length(named.values()) / length(g1)
    combined = gradreg_gradient(total, list(named.values()), STRENGTH, eps)
    found = {n: run.gradients[0][n] for n in named}
    assert difference(found, dict(zip(named, combined, strict=True))) < 1e-4
    assert difference(found, dict(zip(named, g1, strict=True))) > 1e-3
    assert same({n: run.gradients[0][n] for n in kept}, {n: plain.gradients[0][n] for n in kept})


# ---- optimizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "schedule_free_adamw"]
)
def test_any_optimizer_by_name_equals_the_wrapper_by_hand(optim: str, tmp_path: Path) -> None:
    trainer = make_trainer("plain", tmp_path, optim=optim, steps=3, lr_scheduler_type="linear")
    plug = attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    assert plug.optimizer is not None
    assert plug.optimizer is trainer.optimizer.optimizer
    assert trainer.optimizer.param_groups is plug.optimizer.base.param_groups

    reference = make_trainer("plain", tmp_path, optim=optim)
    reference.create_optimizer()
    optimizer = GradRegOptimizer(reference.optimizer, STRENGTH, radius=RADIUS)
    if optim == "schedule_free_adamw":
        optimizer.train()
    model = reference.model
    for step, batch in enumerate(run.batches[::2]):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 3)

        def closure(batch: dict[str, Any] = batch) -> Any:
            optimizer.zero_grad()
            loss = sft_loss(model, batch, 1)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert difference(run.weights, dict(model.named_parameters())) < 1e-4
    assert difference(run.weights, run.before) > 1e-3


def test_the_users_own_optimizer_and_scheduler(tmp_path: Path) -> None:
    model = load_model(model_path())
    base = torch.optim.SGD(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 0.5**step)
    trainer = make_trainer("sft", tmp_path, model=model, steps=2, optimizers=(base, scheduler))
    plug = attach(trainer, STRENGTH, radius=RADIUS)
    assert plug.optimizer is not None
    assert plug.optimizer.base is base
    run = train(trainer)
    for step, rate in ((0, 1e-2), (1, 5e-3)):
        expected = oracle("sft", run.begun[step], run.batches[2 * step : 2 * step + 1], STRENGTH)
        assert difference(run.gradients[step], expected.combined) < 1e-4
        assert run.history[step]["learning_rate"] == pytest.approx(rate)
    moved = {n: run.begun[1][n] - 5e-3 * g for n, g in run.gradients[1].items()}
    assert difference(run.weights, moved) < 1e-6
