"""Faults while a trainer with GR runs: Ctrl-C in a replay, rewards that fail, files that cannot be.

After each the weights are those with which the step began, and a training that is resumed from the
last checkpoint ends like one that was never disturbed.
"""

import asyncio
import math
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import tests.trainer_cases as trainer_cases
from flatopt import attach
from tests.trainer_cases import make_trainer, record, train
from tests.trainer_oracle import same

STEPS = 3


def make(kind: str, folder: Path, **settings: Any) -> Any:
    saves = {"save_strategy": "steps", "save_steps": 1}
    accumulation = 2 if kind == "sft" else 1
    trainer = make_trainer(
        kind, folder, steps=STEPS, accumulation=accumulation, dropout=0.2, **(saves | settings)
    )
    plug = attach(trainer, ratio=0.5)
    return trainer, plug


def check_resumed(kind: str, folder: Path, step: int) -> None:
    """The run in ``folder`` that broke off in this step (from 1) goes on as if it had not."""
    assert not (folder / f"checkpoint-{step}").exists()
    trainer, _ = make(kind, folder)
    rest = train(trainer, resume_from_checkpoint=str(folder / f"checkpoint-{step - 1}"))
    assert len(rest.gradients) == STEPS - step + 1
    assert same(rest.weights, whole_run(kind))


@cache
def whole_run(kind: str) -> dict[str, Any]:
    """The weights at the end of a training that is not disturbed."""
    with TemporaryDirectory() as folder:
        return train(make(kind, Path(folder), save_strategy="no")[0]).weights


# ---- Ctrl-C in a replay -------------------------------------------------------------------------


def _in_the_forward(trainer: Any, at: int) -> None:
    _at_loss(trainer, at, lambda loss: signal.raise_signal(signal.SIGINT))


def _in_the_backward(trainer: Any, at: int) -> None:
    def hook(_: torch.Tensor) -> None:
        signal.raise_signal(signal.SIGINT)

    _at_loss(trainer, at, lambda loss: loss.register_hook(hook))


def _at_loss(trainer: Any, at: int, action: Callable[[torch.Tensor], Any]) -> None:
    compute_loss, calls = trainer.compute_loss, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = compute_loss(*args, **kwargs)
        if calls == at:
            action(loss)
        return loss

    trainer.compute_loss = counted


@pytest.mark.parametrize("place", [_in_the_forward, _in_the_backward])
@pytest.mark.parametrize(("kind", "calls"), [("sft", (7, 8)), ("grpo", (4,))])
def test_ctrl_c_in_a_replay(
    kind: str, calls: tuple[int, ...], place: Callable[[Any, int], None], tmp_path: Path
) -> None:
    """In step 2; with accumulation, in the replay of either micro-batch."""
    for number in calls:
        folder = tmp_path / str(number)
        trainer, plug = make(kind, folder)
        run = record(trainer)
        place(trainer, number)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert len(run.begun) == 2
        assert same(run.weights, run.begun[1])
        assert "KeyboardInterrupt" in (plug.stats.skipped or "")
        assert all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())
        check_resumed(kind, folder, step=2)


# ---- reward functions ---------------------------------------------------------------------------

Change = Callable[[list[float]], Any]


def judge(change: Change, at: int = 2) -> Callable[..., Any]:
    """The reward of the tests, but for its call number ``at``."""
    calls, good = 0, trainer_cases.reward

    def judge(completion_ids: list[list[int]], **columns: Any) -> Any:
        nonlocal calls
        calls += 1
        values = good(completion_ids, **columns)
        return change(values) if calls == at else values

    return judge


def slow_judge(at: int = 2) -> Callable[..., Any]:
    """An asynchronous reward that gives its server a twentieth of a second."""
    calls, good = 0, trainer_cases.reward

    async def judge(completion_ids: list[list[int]], **columns: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            await asyncio.wait_for(asyncio.sleep(60), 0.05)
        return good(completion_ids, **columns)

    return judge


def _raise(_: list[float]) -> Any:
    raise ConnectionError("the judge is down")


def _hang(_: list[float]) -> Any:
    """It never answers; the user presses Ctrl-C."""

    def ring(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


FAILING: dict[str, tuple[Callable[[], Callable[..., Any]], type[BaseException], str]] = {
    "raises": (lambda: judge(_raise), ConnectionError, "the judge is down"),
    "times out": (slow_judge, TimeoutError, "^$"),
    "hangs until Ctrl-C": (lambda: judge(_hang), KeyboardInterrupt, "^$"),
    "one value too few": (lambda: judge(lambda v: v[:-1]), ValueError, "3 rewards, but 4"),
    "one value too many": (lambda: judge(lambda v: [*v, 1.0]), ValueError, "5 rewards, but 4"),
    "one value for all": (lambda: judge(lambda v: v[:1]), ValueError, "1 rewards, but 4"),
    "no values": (lambda: judge(lambda v: []), ValueError, "0 rewards, but 4"),
    "None": (lambda: judge(lambda v: None), TypeError, "NoneType"),
    "text": (lambda: judge(lambda v: ["good"] * len(v)), ValueError, "str"),
}


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("name", FAILING)
def test_a_reward_function_that_fails(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_reward, error, message = FAILING[name]
    whole_run(kind)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_cases, "reward", make_reward())
        trainer, _ = make(kind, tmp_path)
        run = record(trainer)
        with pytest.raises(error, match=message):
            trainer.train()
    assert len(run.begun) == 2
    assert same(run.weights, run.begun[1])
    check_resumed(kind, tmp_path, step=2)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("values", "skipped"),
    [
        # TRL leaves such completions out: where all are, the gradient is zero
        (lambda v: [None] * len(v), 1.0),
        (lambda v: [math.nan] * len(v), 1.0),
        (lambda v: [None, *v[1:]], 0.0),
        (lambda v: [math.nan, *v[1:]], 0.0),
        # these make the gradient zero or NaN
        (lambda v: [math.inf, *v[1:]], 1.0),
        (lambda v: [-math.inf] * len(v), 1.0),
    ],
)
def test_rewards_that_are_no_numbers(
    values: Change,
    skipped: float,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_cases, "reward", judge(values))
    trainer, _ = make(kind, tmp_path, save_strategy="no")
    run = record(trainer)
    trainer.train()
    assert run.history[1]["gr/skipped"] == skipped
    assert all(p.isfinite().all() for p in run.weights.values())
    assert run.history[2]["gr/skipped"] == 0.0
    assert not same(run.begun[2], run.weights)


# ---- places that cannot be written --------------------------------------------------------------


def unwritable(folder: Path) -> Path:
    """A folder that nobody can make, root neither: below a regular file."""
    (folder / "file").write_text("")
    return folder / "file" / "run"


def test_a_trainer_whose_folder_cannot_be_made(tmp_path: Path) -> None:
    trainer, _ = make("sft", tmp_path / "good")
    trainer.args.output_dir = str(unwritable(tmp_path))
    run = record(trainer)
    with pytest.raises(OSError, match="file"):
        trainer.train()
    assert len(run.gradients) == 1  # the first save
    assert all(p.isfinite().all() for p in run.weights.values())
    trainer.args.output_dir = str(tmp_path / "good")
    trainer.train()
    assert (tmp_path / "good" / f"checkpoint-{STEPS}").is_dir()


@pytest.mark.parametrize("scenario", ["judge", "rlhf"])
@pytest.mark.parametrize("output", ["below a file", "a file", "/proc/nothing"])
def test_a_command_whose_folder_cannot_be_made(
    output: str, scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from integrations.__main__ import main

    below = unwritable(tmp_path)
    path = {"below a file": below, "a file": below.parent}.get(output, Path(output))
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([scenario, "--recipe", "smoke", "--output", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(path) in said
    assert said.count("\n") == 1  # no traceback
    assert sorted(p.name for p in tmp_path.iterdir()) == before
