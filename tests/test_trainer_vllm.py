"""attach where TRL samples with vLLM: what is said, and what GR penalises (without vLLM)."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from flatopt import attach
from tests.trainer_cases import RADIUS, STRENGTH, make_trainer, train

WEIGHTED = r"multiplies the loss by pi_theta/pi_vLLM"


def sampled(trainer: Any, weight: float | None) -> Any:
    """As TRL's inputs are under use_vllm: old log-probs at theta and a weight per completion."""
    make = trainer._generate_and_score_completions
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = weight is not None

    def generate(inputs: Any) -> Any:
        trainer.use_vllm = False  # vLLM is not installed: the policy samples
        made = make(inputs)
        if weight is not None:
            trainer.use_vllm = True
            ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
            mask = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
            with torch.no_grad():
                made["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, made["completion_ids"].shape[1]
                )[0]
            made["importance_sampling_ratio"] = torch.full((len(ids), 1), weight)
        return made

    trainer._generate_and_score_completions = generate
    return trainer


def numbers(folder: Path, weight: float | None, samples: str) -> tuple[float, float]:
    """Norms of the gradient and of the penalty in the first step."""
    trainer = sampled(make_trainer("grpo", folder, steps=1), weight)
    plug = attach(trainer, STRENGTH, radius=RADIUS, samples=samples)
    train(trainer)
    found = plug.stats.numbers()
    return found["grad_norm"], found["penalty_norm"]


@pytest.mark.parametrize("samples", ["importance", "sequence", "score"])
def test_weights_of_one_change_nothing_and_others_weigh_the_penalty(
    samples: str, tmp_path: Path
) -> None:
    grad, penalty = numbers(tmp_path / "plain", None, samples)
    same = numbers(tmp_path / "one", 1.0, samples)
    assert same == pytest.approx((grad, penalty), rel=1e-3)
    double = numbers(tmp_path / "two", 2.0, samples)
    # the loss is doubled, and strength/2 * ||grad||^2 with it, four times
    assert double == pytest.approx((2 * grad, 4 * penalty), rel=1e-3)


@pytest.mark.parametrize("samples", ["importance", "score"])
def test_the_weighted_loss_is_named(samples: str, tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path)
    trainer.args.use_vllm = True
    with pytest.warns(UserWarning, match=WEIGHTED) as seen:
        attach(trainer, 0.1, samples=samples)
    text = str(seen[0].message)
    assert f"samples={samples!r}" in text
    assert "0 above 3" in text
    assert "vllm_importance_sampling_correction=False" in text
    assert seen[0].filename == __file__


@pytest.mark.parametrize("kind", ["no correction", "rloo", "no vllm", "no gr"])
def test_no_word_where_there_are_no_weights(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer("rloo" if kind == "rloo" else "grpo", tmp_path)
    trainer.args.use_vllm = kind != "no vllm"
    if kind == "no correction":
        trainer.args.vllm_importance_sampling_correction = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(trainer, 0.0 if kind == "no gr" else 0.1)


def test_a_mask_that_moves_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path)
    trainer.args.off_policy_mask_threshold = 0.5
    with pytest.raises(ValueError, match='samples="score"'):
        attach(trainer, 0.1)
    attach(trainer, 0.1, samples="score")
    trainer = make_trainer("grpo", tmp_path)
    trainer.args.off_policy_mask_threshold, trainer.args.use_vllm = 0.5, True
    with pytest.raises(ValueError, match=r"leave it out$"):
        attach(trainer, 0.1, samples="score")


def test_a_mask_of_tokens_that_moves_with_the_parameters_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, steps=1)
    trainer.args.top_entropy_quantile = 0.2
    with pytest.raises(ValueError, match="top_entropy_quantile"):
        attach(trainer, STRENGTH, radius=RADIUS)
    attach(trainer, 0.0)  # without GR there is one pass
