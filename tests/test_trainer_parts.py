"""attach with fraction, halves and lean memory: the micro-batches of a step as parts of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flatopt import attach
from tests.trainer_cases import RADIUS, STRENGTH, make_trainer, train
from tests.trainer_oracle import difference


def one_step(tmp_path: Path, kind: str = "sft", **options: Any) -> Any:
    accumulation = options.pop("accumulation", 4)
    trainer = make_trainer(kind, tmp_path, accumulation=accumulation, steps=1, optim="sgd")
    plug = attach(trainer, STRENGTH, radius=RADIUS, **options)
    run = train(trainer)
    assert plug.stats.skipped is None
    return run


def named(model: Any) -> list[tuple[str, Any]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_lean_equals_fast(kind: str, tmp_path: Path) -> None:
    runs = [one_step(tmp_path / m, kind, memory=m) for m in ("lean", "fast")]
    assert difference(runs[0].gradients[0], runs[1].gradients[0]) < 1e-5


@pytest.mark.parametrize(("fraction", "replays"), [(0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4)])
def test_fraction_replays_the_first_micro_batches(
    fraction: float, replays: int, tmp_path: Path
) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=4, steps=1, optim="sgd")
    calls: list[int] = []
    step = trainer.training_step

    def counting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = counting
    attach(trainer, STRENGTH, radius=RADIUS, fraction=fraction)
    train(trainer)
    assert len(calls) == 4 + replays


def test_fraction_of_equal_micro_batches_is_the_whole(tmp_path: Path) -> None:
    """All rows alike: the part's penalty is that of the batch."""
    runs = []
    for fraction in (0.25, 0.5, 1.0):
        trainer = make_trainer("sft", tmp_path / str(fraction), accumulation=4, steps=1)
        row = trainer.train_dataset[0]
        trainer.train_dataset = trainer.train_dataset.map(
            lambda _, row=row: row, load_from_cache_file=False
        )
        attach(trainer, STRENGTH, radius=RADIUS, fraction=fraction)
        runs.append(train(trainer).gradients[0])
    assert difference(runs[0], runs[2]) < 1e-4
    assert difference(runs[1], runs[2]) < 1e-4


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("how", [{"fraction": 0.25}, {"batch": "halves"}])
def test_parts_differ_from_the_whole_and_leave_g1_alone(
    how: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    part = one_step(tmp_path / "part", kind, **how)
    whole = one_step(tmp_path / "whole", kind)
    plain = make_trainer(kind, tmp_path / "plain", accumulation=4, steps=1, optim="sgd")
    g1 = train(plain).gradients[0]
    added = {n: part.gradients[0][n] - g for n, g in g1.items()}
    usual = {n: whole.gradients[0][n] - g for n, g in g1.items()}
    size = torch.cat([t.flatten() for t in usual.values()]).norm()
    assert torch.cat([t.flatten() for t in added.values()]).norm() > 0.05 * size
    assert difference(added, usual) > 1e-2


def test_parts_need_accumulation(tmp_path: Path) -> None:
    for how in ({"fraction": 0.25}, {"batch": "halves"}):
        trainer = make_trainer("sft", tmp_path, accumulation=1, steps=1)
        with pytest.raises(ValueError, match="gradient_accumulation_steps=4"):
            attach(trainer, STRENGTH, **how)  # type: ignore[arg-type]


def test_halves_run_the_second_half_first(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=4, steps=1, optim="sgd")
    seen: list[list[int]] = []
    loss = trainer.compute_loss

    def noting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs["input_ids"].flatten().tolist())
        return loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = noting
    attach(trainer, STRENGTH, radius=RADIUS, batch="halves")
    train(trainer)
    first = seen[:4]
    assert seen[4:] == [*first[2:], *first[:2]]
    assert len({tuple(ids) for ids in first}) == 4


def test_a_part_weighs_what_its_labels_weigh(tmp_path: Path) -> None:
    """Losses are divided by the labels of the whole step, so micro-batches weigh by theirs."""
    trainer = make_trainer("sft", tmp_path, accumulation=4, steps=1, optim="sgd")
    plug = attach(trainer, STRENGTH, radius=RADIUS, fraction=0.25)
    counts: list[int] = []
    shares: list[float] = []
    loss = trainer.compute_loss

    def noting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(int((inputs["labels"][..., 1:] != -100).sum()))
        if len(counts) == 2:
            assert plug.optimizer is not None
            assert plug.optimizer._part is not None
            shares.append(plug.optimizer._part.share)
        return loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = noting
    train(trainer)
    assert shares == [pytest.approx(counts[0] / sum(counts[:4]))]


def test_lean_memory_of_16_bit_weights_takes_one_micro_batch(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, accumulation=2, steps=1)
    trainer.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=1"):
        attach(trainer, STRENGTH, memory="lean")
