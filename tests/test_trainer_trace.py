"""attach: a replay leaves no trace in metrics, counters, buffers and random numbers."""

import gc
import math
import weakref
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from flatopt import TrainerPlug, attach
from flatopt.perturb import RNGState
from flatopt.trainer import _last_entries
from tests.trainer_cases import (
    KINDS,
    RADIUS,
    STRENGTH,
    lora,
    make_trainer,
    model_path,
    train,
)
from tests.trainer_oracle import difference, length, oracle, same


def _counters(trainer: Any) -> dict[str, Any]:
    """Plain attributes of the trainer, less timings."""
    return {
        k: v
        for k, v in trainer.__dict__.items()
        if isinstance(v, (bool, int, float, str)) and "time" not in k and "flos" not in k
    }


def without_timing(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without GR's own numbers, the gradient norm (which GR changes) and timings."""
    timing = ("step_time", "runtime", "per_second", "grad_norm")
    return {
        k: v
        for k, v in entry.items()
        if not k.startswith("gr/") and not any(t in k for t in timing)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_looks_the_same_from_outside(kind: str, tmp_path: Path) -> None:
    plain = train(make_trainer(kind, tmp_path, accumulation=2))
    trainer = make_trainer(kind, tmp_path, accumulation=2)
    attach(trainer, STRENGTH)
    run = train(trainer)

    assert run.losses_computed == 2 * plain.losses_computed == 4
    assert run.generations == plain.generations
    for ours, theirs in zip(run.batches, plain.batches, strict=False):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert value is ours[key] or torch.equal(torch.as_tensor(ours[key]), value), key
    assert without_timing(run.history[0]) == without_timing(plain.history[0])
    assert list(without_timing(run.history[0])) == list(without_timing(plain.history[0]))
    assert torch.equal(run.rng[0], plain.rng[0])
    assert _counters(trainer) == _counters(plain.trainer)
    assert trainer.state.num_input_tokens_seen == plain.trainer.state.num_input_tokens_seen
    for ours, theirs in zip(
        getattr(trainer, "_buffered_inputs", None) or [],
        getattr(plain.trainer, "_buffered_inputs", None) or [],
        strict=True,
    ):
        assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_the_trainer_itself(kind: str, tmp_path: Path) -> None:
    plain = train(make_trainer(kind, tmp_path, accumulation=2, steps=2))
    trainer = make_trainer(kind, tmp_path, accumulation=2, steps=2)
    attach(trainer, strength=0.0)
    run = train(trainer)
    assert run.losses_computed == plain.losses_computed == 4
    assert same(run.weights, plain.weights)
    assert not any(key.startswith("gr/") for entry in run.history for key in entry)


def test_steps_between_regularized_ones_are_plain(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=2, steps=4)
    attach(trainer, STRENGTH, every=2)
    run = train(trainer)
    assert run.losses_computed == 4 * 2 + 2 * 2
    assert ["gr/strength" in entry for entry in run.history[:4]] == [True, False, True, False]


# ---- random numbers -----------------------------------------------------------------------------


def _relative_change(plug: TrainerPlug, run: Any) -> float:
    """||g2 - g1|| / ||g1||, from what the plug reports."""
    stats = plug.stats.numbers()
    moved = [p for p in run.trainer.model.parameters() if p.requires_grad]
    eps = stats["radius"] * length(moved) / stats["grad_norm"]
    return stats["penalty_ratio"] / stats["strength"] * eps


REPEATED: list[tuple[str, str, dict[str, Any]]] = [
    ("sft", "", {"dropout": 0.3}),
    ("sft", "", {"neftune_noise_alpha": 5.0}),
    ("sft", "", {"loss_type": "dft"}),
    ("dpo", "", {"peft_config": lora()}),
    ("kto", "", {}),
    ("rloo", "importance", {"beta": 0.1}),
    ("rloo", "score", {"dropout": 0.3}),
    ("grpo", "importance", {"dropout": 0.3}),
    ("grpo", "score", {"dropout": 0.3}),
    ("grpo", "importance", {"beta": 0.1, "peft_config": lora()}),
    ("grpo", "importance", {"loss_type": "dapo", "importance_sampling_level": "sequence"}),
    ("grpo", "score", {"loss_type": "cispo"}),
    ("grpo", "importance", {"use_adaptive_entropy": True, "entropy_coef_delta": 0.5}),
]


@pytest.mark.parametrize(("kind", "samples", "settings"), REPEATED)
def test_a_replay_next_to_theta_repeats_the_gradient(
    kind: str, samples: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if "beta" in settings:
        settings = settings | {"model": model_path()}
    if "entropy_coef_delta" in settings:
        settings = settings | {"entropy_target": 5.0, "entropy_coef_max": 2.0}
    trainer = make_trainer(kind, tmp_path, accumulation=2, steps=2, **settings)
    plug = attach(trainer, STRENGTH, radius=1e-6, samples=samples or "importance")
    assert _relative_change(plug, train(trainer)) < 1e-2


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_with_other_dropout_masks_it_would_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RNGState, "restore", lambda self: None)
    trainer = make_trainer(kind, tmp_path, accumulation=2, dropout=0.3)
    plug = attach(trainer, STRENGTH, radius=1e-6)
    assert _relative_change(plug, train(trainer)) > 0.05


# ---- logs ---------------------------------------------------------------------------------------


class Collector(TrainerCallback):
    """The plug's numbers after each step."""

    def __init__(self) -> None:
        self.plug: TrainerPlug | None = None
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.plug is not None
        self.steps.append(self.plug.stats.numbers())


def test_logs_are_means_over_the_steps_since_the_last_one(tmp_path: Path) -> None:
    collector = Collector()
    trainer = make_trainer(
        "sft",
        tmp_path,
        steps=4,
        logging_steps=2,
        callbacks=[collector],
        eval_strategy="steps",
        eval_steps=1,
        eval_size=8,
    )
    collector.plug = attach(trainer, ratio=0.5)
    history = train(trainer).history
    logged = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    for entry, steps in zip(logged, (collector.steps[:2], collector.steps[2:]), strict=True):
        for name, value in steps[0].items():
            mean = (value + steps[1][name]) / 2
            assert entry[f"gr/{name}"] == pytest.approx(mean, rel=1e-5), name
        assert entry["gr/skipped"] == 0
    assert {"gr/grad_norm", "gr/penalty_ratio", "gr/strength", "gr/cosine"} <= logged[0].keys()
    assert all(math.isfinite(v) for k, v in logged[0].items() if k.startswith("gr/"))
    others = [entry for entry in history if "loss" not in entry]
    assert sum("eval_loss" in entry for entry in others) == 4
    assert not any(key.startswith("gr/") for entry in others for key in entry)


def test_nothing_grows_while_nothing_is_logged(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, steps=3, logging_strategy="no")
    plug = attach(trainer, ratio=0.5)
    train(trainer)
    assert plug._log_sums["grad_norm"][1] == 3
    assert all(isinstance(total, float) or total.dim() == 0 for total, _ in plug._log_sums.values())


def test_a_replay_copies_no_history_of_metrics() -> None:
    rows: defaultdict[str, list[float]] = defaultdict(list, {"loss": [1.0, 2.0], "none": []})
    metrics = {"train": rows, "eval": defaultdict(list)}
    kept = _last_entries(metrics)
    assert kept == {"train": {"loss": [2.0], "none": []}, "eval": {}}
    kept["train"]["new"].append(3.0)
    kept["train"]["loss"].append(3.0)
    assert metrics == {"train": {"loss": [1.0, 2.0], "none": []}, "eval": {}}


def test_random_numbers_of_all_devices_of_dataparallel() -> None:
    trainer = SimpleNamespace(model=torch.nn.Linear(1, 1), args=SimpleNamespace(n_gpu=1))
    plug = TrainerPlug.__new__(TrainerPlug)
    plug.trainer = trainer
    assert set(plug._devices()) == {torch.device("cpu")}
    trainer.args.n_gpu = 3
    assert set(plug._devices()) >= {torch.device("cuda", i) for i in range(3)}


def test_a_step_without_gradient_is_logged_as_skipped(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, accumulation=2)
    trainer.reward_funcs = [lambda completion_ids, **_: [1.0] * len(completion_ids)]
    plug = attach(trainer, STRENGTH)
    run = train(trainer)
    assert run.history[0]["gr/skipped"] == 1
    assert run.history[0]["gr/strength"] == 0
    assert plug.optimizer is not None
    assert plug.optimizer.steps_taken == 1


def test_evaluation_is_the_trainers_own(tmp_path: Path) -> None:
    entries = []
    for strength in (0.0, STRENGTH):
        trainer = make_trainer("grpo", tmp_path, eval_size=4, eval_on_start=True, num_generations=2)
        trainer.args.per_device_eval_batch_size = 2
        attach(trainer, strength)
        entries.append([without_timing(e) for e in train(trainer).history])
    (evaluated, first, *_), (evaluated_too, first_too, *_) = entries
    assert evaluated == evaluated_too
    assert "eval_loss" in evaluated
    assert first == first_too


# ---- memory and modes ---------------------------------------------------------------------------


def test_recorded_inputs_are_let_go(tmp_path: Path) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    trainer = make_trainer("plain", tmp_path, accumulation=2, steps=2)
    compute_loss = trainer.compute_loss

    def watch(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        kept.append(weakref.ref(inputs["input_ids"]))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = watch
    attach(trainer, STRENGTH)
    trainer.train()
    gc.collect()
    assert len(kept) == 8
    assert [ref() for ref in kept] == [None] * 8


def test_gradient_checkpointing(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=2, gradient_checkpointing=True)
    attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    assert trainer.model.is_gradient_checkpointing
    expected = oracle("sft", run.before, run.batches[:2], STRENGTH)
    assert difference(run.gradients[0], expected.combined) < 1e-4


@pytest.mark.parametrize(("bf16", "radius"), [(True, 3e-4), (False, 3e-6)])
def test_the_radius_follows_the_precision(bf16: bool, radius: float, tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, bf16=bf16)
    plug = attach(trainer, STRENGTH)
    train(trainer)
    assert plug.stats.numbers()["radius"] == pytest.approx(radius)
    assert plug.optimizer is not None
    assert plug.stats.difference == ("central" if bf16 else "forward")
    if bf16:
        assert plug.optimizer.precision == "16 bits"  # told, not left to a guess


def test_a_loss_may_take_its_inputs_apart(tmp_path: Path) -> None:
    # With label smoothing compute_loss pops the labels; "central" replays each batch twice.
    trainer = make_trainer("plain", tmp_path, accumulation=2, label_smoothing_factor=0.1)
    attach(trainer, STRENGTH, difference="central")
    batches = train(trainer).batches
    assert len(batches) == 6
    assert all("labels" in batch for batch in batches)
