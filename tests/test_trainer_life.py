"""attach: a training that is saved and resumed, run twice, broken off; and settings refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer
from transformers.training_args import OptimizerNames

from flatopt import GradRegOptimizer, attach
from flatopt.guards import name_matches
from tests.trainer_cases import (
    RADIUS,
    STRENGTH,
    load_model,
    make_trainer,
    model_path,
    record,
    train,
    weights,
)
from tests.trainer_oracle import difference, oracle, same


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_resuming_is_bit_exact(kind: str, tmp_path: Path) -> None:
    def trainer() -> Any:
        made = make_trainer(
            kind,
            tmp_path,
            accumulation=2,
            steps=4,
            lr_scheduler_type="linear",
            save_strategy="steps",
            save_steps=2,
        )
        attach(made, ratio=0.5)
        return made

    whole = train(trainer())
    checkpoint = tmp_path / "checkpoint-2"
    rest = train(trainer(), resume_from_checkpoint=str(checkpoint))
    assert len(rest.gradients) == 2
    assert same(rest.gradients[0], whole.gradients[2])
    assert same(rest.weights, whole.weights)
    states = [r.trainer.optimizer.state_dict() for r in (whole, rest)]
    assert states[0]["gradreg"]["steps_taken"] == 4
    assert _equal(*states)
    assert rest.history[2]["gr/strength"] == whole.history[2]["gr/strength"]

    # The averages of `ratio` are part of that: without them the strength is another.
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert saved.pop("gradreg")["steps_taken"] == 2
    del saved["param_groups"][0]["gradreg"]  # where torch.distributed.checkpoint finds them
    torch.save(saved, checkpoint / "optimizer.pt")
    other = train(trainer(), resume_from_checkpoint=str(checkpoint))
    assert not same(other.weights, whole.weights)


def test_checkpoints_pass_between_runs_with_and_without(tmp_path: Path) -> None:
    def run(*, regularized: bool, folder: str, **options: Any) -> Any:
        saves = {"save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer("sft", tmp_path / folder, steps=2, **saves)
        plug = attach(trainer, ratio=0.5) if regularized else None
        return plug, train(trainer, **options)

    _, plain = run(regularized=False, folder="plain")
    plug, with_gr = run(regularized=True, folder="gr")
    checkpoints = {n: str(tmp_path / n / "checkpoint-1") for n in ("plain", "gr")}
    plug, resumed = run(
        regularized=True, folder="other", resume_from_checkpoint=checkpoints["plain"]
    )
    assert plug is not None
    assert plug.optimizer is not None
    assert plug.optimizer.steps_taken == 1
    assert same(resumed.begun[0], plain.begun[1])
    _, resumed = run(regularized=False, folder="other", resume_from_checkpoint=checkpoints["gr"])
    assert same(resumed.begun[0], with_gr.begun[1])
    assert resumed.losses_computed == 1


def test_training_twice_wraps_once(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=2)
    plug = attach(trainer, STRENGTH, radius=RADIUS)
    run = record(trainer)
    trainer.train()
    trainer.train()
    assert isinstance(trainer.optimizer, AcceleratedOptimizer)
    assert trainer.optimizer.optimizer is plug.optimizer
    assert plug.optimizer is not None
    assert isinstance(plug.optimizer.base, torch.optim.AdamW)
    assert plug.optimizer.steps_taken == 2
    assert run.losses_computed == 8
    expected = oracle("sft", run.begun[1], run.batches[4:6], STRENGTH)
    assert difference(run.gradients[1], expected.combined) < 1e-4


def test_attaching_to_a_trainer_that_has_trained(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path)
    trainer.train()
    base = trainer.optimizer.optimizer
    plug = attach(trainer, STRENGTH, radius=RADIUS)
    run = train(trainer)
    assert isinstance(trainer.optimizer, AcceleratedOptimizer)
    assert trainer.optimizer.optimizer is plug.optimizer
    assert plug.optimizer is not None
    assert plug.optimizer.base is base
    expected = oracle("sft", run.before, run.batches[:1], STRENGTH)
    assert difference(run.gradients[0], expected.combined) < 1e-4


def test_a_new_model_for_each_training(tmp_path: Path) -> None:
    made = make_trainer("plain", tmp_path)
    trainer = Trainer(
        model_init=lambda: load_model(model_path()),
        args=made.args,
        train_dataset=made.train_dataset,
    )
    plug = attach(trainer, STRENGTH, exclude="lm_head")
    first = train(trainer).weights
    wrapped = plug.optimizer
    trainer.train()
    assert plug.optimizer is not wrapped
    assert plug.optimizer is not None
    parameters = {id(p) for p in trainer.model.parameters()}  # type: ignore[union-attr]
    assert {id(p) for g in plug.optimizer.param_groups for p in g["params"]} == parameters
    assert same(weights(trainer.model), first)


# ---- broken off ---------------------------------------------------------------------------------


class Broken(RuntimeError):
    pass


def _breaking(trainer: Any, call: int) -> None:
    """compute_loss raises, having done its work, at this call (from 1); and never again."""
    compute_loss, calls = trainer.compute_loss, 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = compute_loss(*args, **kwargs)
        if calls == call:
            raise Broken
        return loss

    trainer.compute_loss = broken


@pytest.mark.parametrize("call", [2, 3, 4])
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_an_error_leaves_the_trainer_as_it_was(kind: str, call: int, tmp_path: Path) -> None:
    plain = make_trainer(kind, tmp_path, accumulation=2)
    _breaking(plain, call)
    if call == 2:  # calls 3 and 4 would be replays
        with pytest.raises(Broken):
            plain.train()
    else:
        plain.log = lambda *args, **kwargs: None  # which would clear the metrics
        plain.train()

    trainer = make_trainer(kind, tmp_path, accumulation=2)
    plug = attach(trainer, STRENGTH, radius=RADIUS)
    run = record(trainer)
    _breaking(trainer, call)
    with pytest.raises(Broken):
        trainer.train()
    assert same(run.weights, run.before)
    assert getattr(trainer, "_step", 0) == getattr(plain, "_step", 0)
    assert trainer._total_train_tokens == plain._total_train_tokens
    metrics, theirs = (dict(t._metrics["train"]) for t in (trainer, plain))
    for one in (metrics, theirs):
        one.pop("step_time", None)
    assert metrics == theirs

    # What was recorded before the error is gone: the next window is whole.
    run = record(trainer)
    trainer.train()
    assert run.losses_computed == 4
    assert plug.stats.skipped is None
    expected = oracle(kind, run.before, run.batches[:2], STRENGTH)
    assert difference(run.gradients[0], expected.combined) < 1e-4


def test_an_error_in_a_replay_leaves_the_random_numbers(tmp_path: Path) -> None:
    plain = make_trainer("sft", tmp_path, accumulation=2, dropout=0.3)
    plain.train()
    expected = torch.get_rng_state()
    trainer = make_trainer("sft", tmp_path, accumulation=2, dropout=0.3)
    attach(trainer, STRENGTH)
    _breaking(trainer, 3)
    with pytest.raises(Broken):
        trainer.train()
    assert torch.equal(torch.get_rng_state(), expected)


# ---- refused ------------------------------------------------------------------------------------


def _refused(tmp_path: Path, error: type[Exception], match: str, **options: Any) -> None:
    trainer = make_trainer("plain", tmp_path)
    with pytest.raises(error, match=match):
        attach(trainer, **options)
    assert "training_step" not in trainer.__dict__  # as if it had not been tried
    attach(trainer, STRENGTH)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"samples": "both"}, ValueError, "samples must be"),
        ({"strength": 1.0, "ratio": 1.0}, ValueError, "strength or ratio"),
        ({"strength": -1.0}, ValueError, "strength"),
        ({"strength": 1.0, "radius": 1e-3, "eps": 1e-3}, ValueError, "radius or eps"),
        ({"strength": 1.0, "difference": "backward"}, ValueError, "difference"),
        ({"strength": 1.0, "radios": 1e-3}, TypeError, "radios"),
        ({"exclude": ["lm_head", "no_such_layer"]}, ValueError, "no_such_layer"),
        ({"exclude": "head"}, ValueError, "'head'"),
        ({"exclude": torch.nn.Linear(1, 1)}, TypeError, "takes names, got Linear"),
        ({"exclude": [torch.ones(1)]}, TypeError, "takes names, got Tensor"),
    ],
)
def test_settings_are_refused_before_training(
    options: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    _refused(tmp_path, error, match, **options)


@pytest.mark.parametrize(
    ("owner", "name", "match"),
    [
        ("args", "fp16", "bf16=True"),
        ("trainer", "is_deepspeed_enabled", "DDP"),
        ("trainer", "is_fsdp_enabled", "Use FSDP2"),
        ("optim", "lomo", "during the backward pass"),
        ("optim", "galore_adamw_layerwise", "during the backward pass"),
    ],
)
def test_engines_that_are_not_supported(owner: str, name: str, match: str, tmp_path: Path) -> None:
    trainer = make_trainer("plain", tmp_path)
    if owner == "optim":
        trainer.args.optim = OptimizerNames(name)
    else:
        setattr(trainer.args if owner == "args" else trainer, name, True)
    with pytest.raises(ValueError, match=match):
        attach(trainer, STRENGTH)


def test_what_is_not_a_trainer() -> None:
    with pytest.raises(TypeError, match="GradRegOptimizer"):
        attach(torch.nn.Linear(1, 1), STRENGTH)


def test_attaching_twice(tmp_path: Path) -> None:
    trainer = make_trainer("plain", tmp_path)
    attach(trainer, STRENGTH)
    with pytest.raises(ValueError, match="already"):
        attach(trainer, STRENGTH)


def test_an_optimizer_that_is_wrapped_already(tmp_path: Path) -> None:
    model = load_model(model_path())
    own = GradRegOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), STRENGTH)
    trainer = make_trainer("plain", tmp_path, model=model, optimizers=(own, None))
    with pytest.raises(TypeError, match="wrap the plain optimizer once"):
        attach(trainer, STRENGTH)
    assert "training_step" not in trainer.__dict__


@pytest.mark.parametrize(
    ("name", "item", "expected"),
    [
        ("lm_head.weight", "lm_head", True),
        ("lm_head.weight", "lm_head.weight", True),
        ("output_projection.weight", "output", False),
        ("my_output.weight", "output", False),
        ("output.weight", "output", True),
        ("model.layers.1.mlp.weight", "layers.1", True),
        ("model.layers.11.mlp.weight", "layers.1", False),
        ("base_model.model.lm_head.weight", "lm_head", True),
        ("module.base_model.model.lm_head.weight", "lm_head", True),
        ("_orig_mod.lm_head.weight", "lm_head", True),
        ("module.weight", "module.weight", True),
        ("lm_head.weight", "lm_head.bias", False),
    ],
)
def test_names_match_by_whole_parts(name: str, item: str, expected: bool) -> None:
    assert name_matches(name, item) is expected
