"""attach and policy gradients: what the second gradient is of samples drawn at theta."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flatopt import attach
from tests.trainer_cases import RADIUS, STRENGTH, make_trainer, model_path, train
from tests.trainer_oracle import completion_logps, difference, loss_of, oracle


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_each_kind_of_samples_is_its_own_penalty(
    kind: str, accumulation: int, tmp_path: Path
) -> None:
    gradients = {}
    for samples in ("importance", "sequence", "score"):
        trainer = make_trainer(kind, tmp_path, accumulation=accumulation)
        attach(trainer, STRENGTH, radius=RADIUS, samples=samples)
        run = train(trainer)
        gradients[samples] = run.gradients[0]
        expected = oracle(
            kind, run.before, run.batches[:accumulation], STRENGTH, loss=loss_of(kind, samples)
        )
        assert difference(run.gradients[0], expected.combined) < 1e-4
    assert difference(gradients["score"], gradients["importance"]) > 0.05
    gap = difference(gradients["sequence"], gradients["importance"])
    assert gap > 0.05 if kind == "grpo" else gap == 0.0


@pytest.mark.parametrize("samples", ["importance", "score"])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_reused_samples_keep_the_old_policy(kind: str, samples: str, tmp_path: Path) -> None:
    # Steps 2 to 4 learn from samples of step 1: their ratio is not 1 at theta either.
    trainer = make_trainer(
        kind, tmp_path, steps=4, num_iterations=2, steps_per_generation=2, learning_rate=2e-3
    )
    attach(trainer, STRENGTH, radius=1e-3, samples=samples)
    run = train(trainer)
    assert run.generations == 1
    name = "old_logps" if kind == "rloo" else "old_per_token_logps"
    for step in range(4):
        first, replayed = run.batches[2 * step : 2 * step + 2]
        if samples == "importance":
            assert torch.equal(first[name], replayed[name])
        expected = oracle(
            kind,
            run.begun[step],
            [first],
            STRENGTH,
            loss=loss_of(kind, samples),
            radius=1e-3,
        )
        assert difference(run.gradients[step], expected.combined) < 2e-4
    assert torch.equal(run.batches[0][name], run.batches[4][name])  # not written to
    assert run.history[3]["clip_ratio/region_mean"] >= 0


def _with_kl(model: Any, batch: dict[str, Any], accumulation: int) -> torch.Tensor:
    logps = completion_logps(model, batch)
    gap, ratio = batch["ref_per_token_logps"] - logps, logps - batch["old_per_token_logps"]
    kl = (gap.exp() - gap - 1) * ratio.exp() * batch["completion_mask"]
    return loss_of("grpo")(model, batch, accumulation) + 0.1 * kl.sum() / 24 / accumulation


def test_a_reference_model_and_the_kl_term(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, model=model_path(), beta=0.1, accumulation=2)
    attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    # At theta the KL term has no gradient: it is g2 alone that feels it.
    expected = oracle("grpo", run.before, run.batches[:2], STRENGTH, loss=_with_kl)
    without = oracle("grpo", run.before, run.batches[:2], STRENGTH)
    assert difference(expected.gradient, without.gradient) < 1e-5
    assert difference(run.gradients[0], expected.combined) < 1e-4
    assert difference(run.gradients[0], without.combined) > 1e-2


def test_the_adaptive_entropy_bonus_advances_once_a_step(tmp_path: Path) -> None:
    runs = []
    for strength in (None, STRENGTH):
        trainer = make_trainer(
            "grpo",
            tmp_path,
            accumulation=2,
            use_adaptive_entropy=True,
            entropy_coef=0.01,
            entropy_target=5.0,
            entropy_coef_delta=0.02,
        )
        if strength:
            attach(trainer, strength, radius=RADIUS)
        runs.append(train(trainer))
    plain, run = (r.trainer for r in runs)
    assert run.entropy_coef == plain.entropy_coef == pytest.approx(0.03)
    assert run._last_world_entropy == plain._last_world_entropy
    assert run._entropy_window_stats is None
    entries = [r.history[0] for r in runs]
    for key in ("entropy_coef", "entropy", "policy_loss", "loss"):
        assert entries[0][key] == entries[1][key]


def test_a_narrow_clip_is_warned_of(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, epsilon=3e-4)
    with pytest.warns(UserWarning, match="clips the ratio"):
        attach(trainer, STRENGTH)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_exact_product_is_refused_before_training(kind: str, tmp_path: Path) -> None:
    # a double backward would see the token ratio alone, and TRL's kernels have none
    trainer = make_trainer(kind, tmp_path)
    with pytest.raises(ValueError, match='difference="central"'):
        attach(trainer, STRENGTH, difference="exact")
    attach(trainer, STRENGTH, difference="central")
