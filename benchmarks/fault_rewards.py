"""A reward function that fails in the middle of a run of the judge loop (TRL's GRPO with GR)."""

import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_runs import Drill
from benchmarks.fault_steps import same

STEPS = 4


class JudgeIsDown(Exception):
    """What a judge behind a network raises."""


def _down(_: list[float]) -> Any:
    raise JudgeIsDown("the judge is down")


def _late(_: list[float]) -> Any:
    raise TimeoutError("the judge took more than 60 s")


CHANGES: dict[str, Callable[[list[float]], Any]] = {
    "raises": _down,
    "times out": _late,
    "too few values": lambda v: v[:-1],
    "too many values": lambda v: [*v, 1.0],
    "one value": lambda v: v[:1],
    "no values": lambda v: [],
    "NaN": lambda v: [math.nan] * len(v),
    "one is infinite": lambda v: [math.inf, *v[1:]],
}


def _trainer(folder: Path) -> Any:
    from integrations.loop import make_trainer
    from integrations.results.judge_plan import Setting, make_arm

    config = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    arm = make_arm(Setting("gr", "gr", config, recipe="smoke", steps=STEPS), seed=0, judge=0)
    return make_trainer(arm, arm.task(), folder)


def _weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def reward_drills(tries: int, seed: int) -> list[Drill]:
    """Each way of failing, at a random step; the run is resumed where it broke off.

    A reward that is not finite raises nothing: its batch is left out and the run goes on.
    """
    from transformers import TrainerCallback

    rng = random.Random(seed)
    drills = []
    with tempfile.TemporaryDirectory() as place:
        whole, _ = _trainer(Path(place) / "whole")
        whole.train()
        for number in range(tries):
            name = list(CHANGES)[number % len(CHANGES)]
            step = rng.randrange(2, STEPS + 1)
            folder = Path(place) / str(number)
            trainer, monitor = _trainer(folder)
            good = monitor.proxy
            before: list[torch.Tensor] = []

            class Look(TrainerCallback):
                def on_step_begin(self, *_: Any, before: list = before, **kwargs: Any) -> None:
                    before[:] = [p.detach().clone() for p in kwargs["model"].parameters()]

            def proxy(*args: Any, good: Any = good, name: str = name, at: int = step, **more: Any):
                values = good(*args, **more)
                now = more["trainer_state"].global_step + 1
                return CHANGES[name](values) if now == at else values

            trainer.add_callback(Look())
            trainer.reward_funcs[0] = proxy
            error = None
            try:
                trainer.train()
            except (JudgeIsDown, TimeoutError, ValueError, RuntimeError) as raised:
                error = f"{type(raised).__name__}: {raised}"
            finite = all(bool(p.isfinite().all()) for p in trainer.model.parameters())
            if error is None:
                drills.append(Drill(name, None, step, identical=finite or False))
                continue
            intact = finite and same(_weights(trainer), before)
            again, _ = _trainer(folder)
            again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step - 1}"))
            drills.append(
                Drill(name, error, step - 1, intact and same(_weights(again), _weights(whole)))
            )
    return drills
