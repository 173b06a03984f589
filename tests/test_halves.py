"""Halves of a policy batch: their gradients, the share of signal, and GR across them."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from flatopt import attach
from integrations.watch.halves import CrossBatchGR, Halves, signal_share
from tests.trainer_cases import load_model, make_trainer, model_path, train, weights
from tests.trainer_oracle import completion_logps, grpo_loss, length, rloo_loss, same

SIZE: dict[str, Any] = {"per_device_train_batch_size": 16}  # four prompts of four completions


class AtStep(TrainerCallback):
    """Calls a function where the trainer's gradient is ready."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.call()


def gap(left: list[Tensor], right: list[Tensor]) -> float:
    return length([a.double() - b.double() for a, b in zip(left, right, strict=True)]) / length(
        right
    )


def measured(trainer: Any, look: Any, **options: Any) -> Any:
    """What `look(halves)` gives in the last step of a training, and the halves."""
    halves, seen = Halves(trainer), []
    trainer.add_callback(AtStep(lambda: seen.append(look(halves))))
    train(trainer, **options)
    return seen[-1]


def both(halves: Halves) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    full = [p.grad.clone() for p in halves.params if p.grad is not None]
    assert len(full) == len(halves.params)
    return *halves.gradients(), full


CASES = [
    ("grpo", {"loss_type": "dr_grpo"}),
    ("grpo", {"loss_type": "grpo", "beta": 0.1}),
    ("grpo", {"loss_type": "dapo"}),
    ("rloo", {}),
]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_the_mean_of_the_halves_is_the_gradient(
    kind: str, settings: dict[str, Any], accumulation: int, tmp_path: Path
) -> None:
    trainer = make_trainer(kind, tmp_path, steps=2, accumulation=accumulation, **SIZE, **settings)
    a, b, full = measured(trainer, both)
    mean = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    assert gap(mean, full) < 2e-6
    assert gap(a, b) > 0.1


def test_unequal_halves_weigh_by_their_rows(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, per_device_train_batch_size=12)

    def look(halves: Halves) -> Any:
        sizes = [sum(len(p["advantages"]) for p in h.parts) for h in halves.split()]
        return sizes, *both(halves)

    (first, second), a, b, full = measured(trainer, look)
    assert sorted((first, second)) == [4, 8]
    mean = [(first * x + second * y) / 12 for x, y in zip(a, b, strict=True)]
    assert gap(mean, full) < 2e-6


def test_no_prompt_is_in_both_halves(tmp_path: Path) -> None:
    # the rows of a generation are shuffled over two optimizer steps, so groups are cut
    trainer = make_trainer("grpo", tmp_path, steps=3, steps_per_generation=2, **SIZE)

    def look(halves: Halves) -> Any:
        return [
            [tuple(row) for part in half.parts for row in part["prompt_ids"].tolist()]
            for half in halves.split()
        ]

    a, b = measured(trainer, look)
    assert not set(a) & set(b)
    assert len(a) + len(b) == 16


def test_a_half_is_the_loss_written_out(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, **SIZE)

    def look(halves: Halves) -> Any:
        a, _ = halves.split()
        (batch,) = a.parts
        batch = dict(batch)
        model = trainer.model
        batch["old_per_token_logps"] = completion_logps(model, batch).detach()
        loss = grpo_loss(model, batch, 1, "importance", "dr_grpo")
        return halves.gradients()[0], list(torch.autograd.grad(loss, halves.params))

    got, expected = measured(trainer, look)
    assert gap(got, expected) < 2e-6


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_look_leaves_no_trace_also_with_gr(kind: str, before: bool, tmp_path: Path) -> None:
    runs, batches = [], []
    for looks in (False, True):
        trainer = make_trainer(
            kind, tmp_path, steps=3, accumulation=2, dropout=0.1, **SIZE, num_iterations=2
        )
        halves = None
        if looks and before:
            halves = Halves(trainer)
        attach(trainer, 0.05, radius=1e-3)
        if looks and not before:
            halves = Halves(trainer)

        def look(halves: Any = halves) -> None:
            if halves is not None:
                batches.append([id(b["completion_ids"]) for b in halves.window.batches])
                assert all(math.isfinite(length(g)) for g in halves.gradients())

        trainer.add_callback(AtStep(look))
        runs.append(train(trainer))
    assert same(runs[0].weights, runs[1].weights)
    for left, right in zip(runs[0].gradients, runs[1].gradients, strict=True):
        assert same(left, right)
    assert all(torch.equal(x, y) for x, y in zip(runs[0].rng, runs[1].rng, strict=True))
    times = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for left, right in zip(runs[0].history, runs[1].history, strict=True):
        assert {k: v for k, v in left.items() if k not in times} == {
            k: v for k, v in right.items() if k not in times
        }
    # the live ones, no replays
    assert [(len(b), len(set(b))) for b in batches] == [(2, 2)] * 3


def test_the_window_is_that_of_the_step_in_a_second_training(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, **SIZE)
    halves, seen = Halves(trainer), []
    trainer.add_callback(AtStep(lambda: seen.append(halves.window.batches[0]["completion_ids"])))
    trainer.train()
    trainer.train()
    assert len(seen) == 2
    assert seen[0] is not seen[1]


def test_what_has_no_halves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GRPOTrainer or RLOOTrainer"):
        Halves(make_trainer("sft", tmp_path))
    with pytest.raises(ValueError, match="num_generations=4 is one prompt"):
        Halves(make_trainer("grpo", tmp_path))
    trainer = make_trainer("grpo", tmp_path, **SIZE)
    halves = Halves(trainer)
    with pytest.raises(ValueError, match="no batch yet"):
        halves.gradients()

    def look() -> None:
        (batch,) = halves.window.batches
        for name in ("prompt_ids", "prompt_mask"):
            batch[name] = batch[name][:1].expand_as(batch[name])
        with pytest.raises(ValueError, match="one prompt only"):
            halves.gradients()

    trainer.add_callback(AtStep(look))
    trainer.train()


def test_the_share_of_signal_is_right_on_average() -> None:
    torch.manual_seed(0)
    signal = torch.randn(50)
    a, b = (signal + 2 * torch.randn(4000, 50) for _ in range(2))
    squares = [float(((x + y) / 2).square().sum()) for x, y in zip(a, b, strict=True)]
    shares = [signal_share([x[:20], x[20:]], [y[:20], y[20:]]) for x, y in zip(a, b, strict=True)]
    products = [s * q for s, q in zip(shares, squares, strict=True)]
    assert sum(products) / 4000 == pytest.approx(float(signal.square().sum()), rel=0.05)
    assert signal_share([signal], [signal]) == pytest.approx(1.0)
    assert math.isnan(signal_share([signal * 0], [signal * 0]))


# ---- GR across the halves -----------------------------------------------------------------------


def exact_penalty(kind: str, a: dict[str, Any], b: dict[str, Any], start: dict[str, Tensor]) -> Any:
    """1/2 (H_b g_a + H_a g_b) of the loss written out, by central differences in float64."""
    model = load_model(model_path()).double()
    model.load_state_dict(start)
    params = list(model.parameters())

    def double(batch: dict[str, Any]) -> dict[str, Any]:
        floats = {k: v.double() for k, v in batch.items() if torch.is_floating_point(v)}
        logps = completion_logps(model, batch | floats).detach()  # at theta
        whole = (logps * batch["completion_mask"]).sum(1)
        return batch | floats | {"old_per_token_logps": logps, "old_logps": whole}

    def gradient(batch: dict[str, Any]) -> tuple[Tensor, ...]:
        if kind == "grpo":
            return torch.autograd.grad(grpo_loss(model, batch, 1, "importance", "dr_grpo"), params)
        return torch.autograd.grad(rloo_loss(model, batch, 1, "importance"), params)

    def product(batch: dict[str, Any], along: tuple[Tensor, ...]) -> list[Tensor]:
        found = []
        for step in (1e-3, -2e-3):  # long, because the norms of a Llama compute in float32
            with torch.no_grad():
                torch._foreach_add_(params, along, alpha=step)
            found.append(gradient(batch))
        with torch.no_grad():
            torch._foreach_add_(params, along, alpha=1e-3)
        return [(x - y) / 2e-3 for x, y in zip(*found, strict=True)]

    a, b = double(a), double(b)
    across = product(b, gradient(a)), product(a, gradient(b))
    return [(x + y) / 2 for x, y in zip(*across, strict=True)]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_penalty_is_the_exact_product_across_the_halves(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(kind, tmp_path, **SIZE)
    gr = CrossBatchGR(trainer, ratio=0.5, radius=3e-5)
    seen: dict[str, Any] = {}
    add = gr._add_penalty

    def spy() -> None:
        (a,), (b,) = (half.parts for half in gr.halves.split())
        seen.update(a=dict(a), b=dict(b), grad=[p.grad.clone() for p in trainer.model.parameters()])
        before = weights(trainer.model)
        seen["penalty"] = gr.penalty()
        assert same(weights(trainer.model), before)
        add()

    gr._add_penalty = spy
    run = train(trainer)
    expected = exact_penalty(kind, seen["a"], seen["b"], run.before)
    assert gap(seen["penalty"], expected) < 5e-3
    # the gradient of the step, and what the logs say of it
    strength = 0.5 * length(seen["grad"]) / length(seen["penalty"])
    whole = [g + strength * p for g, p in zip(seen["grad"], seen["penalty"], strict=True)]
    assert gap(list(run.gradients[0].values()), whole) < 1e-5
    log = run.history[0]
    assert log["gr/grad_norm"] == pytest.approx(length(seen["grad"]), rel=1e-5)
    assert log["gr/strength"] == pytest.approx(strength, rel=1e-4)
    assert log["gr/penalty_ratio"] == pytest.approx(0.5, rel=1e-4)
    assert log["grad_norm"] == pytest.approx(length(whole), rel=1e-4)


def test_equal_halves_give_the_term_of_one_batch(tmp_path: Path) -> None:
    gradients = {}
    for name in ("cross", "attach"):
        trainer = make_trainer("grpo", tmp_path, **SIZE)
        prepare = trainer._prepare_inputs

        def twins(*args: Any, prepare: Any = prepare, **kwargs: Any) -> Any:
            """The rows of two of the prompts, each of them twice."""
            inputs = copy.copy(prepare(*args, **kwargs))
            ids = inputs["prompt_ids"]
            order = sorted(range(16), key=lambda i: (ids[i].tolist(), i))[:8]
            rows = torch.tensor(order * 2)
            for key, value in inputs.items():
                if isinstance(value, Tensor) and value.dim():
                    inputs[key] = value[rows].clone()
            return inputs

        trainer._prepare_inputs = twins
        if name == "cross":
            gr = CrossBatchGR(trainer, ratio=1.0, radius=1e-3)
            split = gr.halves.split

            def in_order(gr: CrossBatchGR = gr, split: Any = split) -> Any:
                a, b = split()
                (batch,) = gr.halves.window.batches
                for half, rows in ((a, slice(0, 8)), (b, slice(8, 16))):
                    half.weights = [1.0]
                    half.parts = [
                        {
                            k: v[rows] if isinstance(v, Tensor) and v.dim() else v
                            for k, v in batch.items()
                        }
                    ]
                return a, b

            gr.halves.split = in_order  # type: ignore[method-assign]
        else:
            attach(trainer, ratio=1.0, radius=1e-3)
        run = train(trainer)
        gradients[name] = list(run.gradients[0].values())
    assert gap(gradients["cross"], gradients["attach"]) < 1e-3


def test_gr_across_halves_resumes_with_its_running_means(tmp_path: Path) -> None:
    def trainer(steps: int) -> Any:
        settings = {"save_strategy": "steps", "save_steps": 2, "max_grad_norm": 0.01}
        made = make_trainer("grpo", tmp_path, steps=steps, **(SIZE | settings))
        return made, CrossBatchGR(made, ratio=2.0)

    whole, gr = trainer(4)
    run = train(whole)
    # clipped with the penalty in it
    assert all(length(g.values()) == pytest.approx(0.01, rel=1e-3) for g in run.gradients)
    again, other = trainer(4)
    rest = train(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(rest.weights, run.weights)
    assert other.rule == gr.rule
    assert other.rule.grad_norm > 0


def test_gr_across_halves_stands_alone(tmp_path: Path) -> None:
    for settings in ({"ratio": -1.0}, {"ratio": math.nan}, {"radius": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            CrossBatchGR(make_trainer("grpo", tmp_path, **SIZE), **settings)
    for first in (True, False):
        trainer = make_trainer("grpo", tmp_path, **SIZE)
        if first:
            attach(trainer, ratio=1.0)
        CrossBatchGR(trainer)
        if not first:
            attach(trainer, ratio=1.0)
        with pytest.raises(ValueError, match="use one of the two"):
            trainer.train()
