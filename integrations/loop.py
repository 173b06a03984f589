"""One arm trained with TRL's GRPOTrainer or RLOOTrainer, resumable after a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arm import Arm
from .cache import fingerprint, write_text
from .controls import Control
from .monitor import Monitor, read_rows
from .report import environment, summarise, write_samples
from .tasks import Task

# fields of GRPOConfig that RLOOConfig does not have, and that recipes may hold for GRPO
GRPO_ONLY = ("loss_type", "scale_rewards")
Say = Callable[[dict[str, Any]], None]


def quiet() -> None:
    """Keep the progress bars and notices of the libraries out of our own progress display."""
    import logging
    import warnings

    import datasets
    import transformers

    # trl 1.16 still says gradient_checkpointing where transformers 5.23 says activation_...
    old = r".*gradient_checkpointing\w*` is deprecated"
    warnings.filterwarnings("ignore", message=old, category=FutureWarning)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)


def _callback(monitor: Monitor) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Writes a row at each log, and marks each checkpoint as whole."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                control.should_log = True  # the steps since the last log make a row too

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            monitor.write(state.global_step, kwargs.get("logs") or {})

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # written last: a checkpoint without this mark is taken for a broken one
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete", "")

    return Watch()


def trainer_classes(name: str | None) -> tuple[Any, Any]:
    """Config and trainer of TRL: "rloo", or None for GRPO."""
    import trl

    if name == "rloo":
        return trl.RLOOConfig, trl.RLOOTrainer
    return trl.GRPOConfig, trl.GRPOTrainer


def without_grpo(given: dict[str, Any]) -> dict[str, Any]:
    """A config for RLOO: without the losses and scalings of GRPO, which recipes hold.

    ValueError for another field that RLOOConfig does not have: leaving it out would change the run.
    """
    known = {f.name for f in dataclasses.fields(trainer_classes("rloo")[0])}
    given = {k: v for k, v in given.items() if k not in GRPO_ONLY}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: a field of GRPOConfig that RLOO does not have. Take it out, or "
            "use --trainer grpo"
        )
    return given


def trainer_config(arm: Arm, task: Task, folder: Path) -> Any:
    """The config of the arm's trainer."""
    given = dict(arm.config)
    proxy_weight, true_weight = given.pop("reward_weights")
    weights = [task.reward_scale * proxy_weight]
    if task.true is not None:
        weights.append(task.reward_scale * true_weight)
    elif true_weight:
        raise ValueError("method true trains on the gold reward, and this task has none")
    given["reward_weights"] = [*weights, *task.further_weights]
    if task.model_init:
        given["model_init_kwargs"] = task.model_init
    config, _ = trainer_classes(arm.trainer)
    if arm.trainer == "rloo":
        given = without_grpo(given)
    return config(output_dir=str(folder), seed=arm.seed, **given)


def make_trainer(arm: Arm, task: Task, folder: Path, say: Say | None = None) -> tuple[Any, Monitor]:
    """The trainer of an arm with its reward functions, log and, for GR, the wrapped optimizer."""
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback

    quiet()
    torch.set_num_threads(arm.threads)
    config = trainer_config(arm, task, folder)
    control = Control(**(arm.control or {}))
    monitor = Monitor(
        judge=task.proxy,
        grade=task.true,
        is_formatted=task.is_formatted,
        to_texts=task.to_texts,
        path=folder / "metrics.jsonl",
        every=int(config.logging_steps),
        watched=task.watched,
        shape=control.shape,
        say=say,
    )
    _, trainer_class = trainer_classes(arm.trainer)
    gold = [] if task.true is None else [monitor.true]
    trainer = trainer_class(
        model=task.model,
        reward_funcs=[monitor.proxy, *gold, *task.further],
        args=config,
        train_dataset=task.data,
        processing_class=task.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    monitor.trainer = trainer
    if task.watch_start:
        start: Any = AutoModelForCausalLM.from_pretrained(task.model).eval()
        monitor.start = start.to(trainer.accelerator.device)
    control.apply(trainer)
    if arm.watch is not None:
        from .probe import Probe

        Probe(trainer, task, folder, **arm.watch)
    if arm.alarm is not None:
        from .alarm import AlarmRule
        from .hack_monitor import HackMonitor

        watch = HackMonitor(
            trainer,
            AlarmRule(**arm.alarm["rule"]),
            proxy="proxy",
            gold="true" if task.true else None,
            share_every=arm.alarm.get("share_every"),
            start=monitor.start,
            stop=bool(arm.alarm.get("stop")),
            path=folder / "monitor.jsonl",
        )
        monitor.watch = watch
    trainer.add_callback(_callback(monitor))
    if arm.gr is not None or arm.reference is not None:
        import flatopt

        rule = flatopt.ReferenceReset(**arm.reference) if arm.reference else None
        flatopt.attach(trainer, **(arm.gr or {"strength": 0.0}), reference=rule)
    return trainer, monitor


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "complete").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def alarm_of(checkpoint: Path) -> dict[str, Any] | None:
    """The state of the alarm that a checkpoint holds, or None."""
    from .hack_monitor import STATE

    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return (state.get("stateful_callbacks", {}).get(STATE) or {}).get("alarm")


def stopped(arm: Arm, checkpoint: Path) -> bool:
    """Whether the alarm had stopped the run at this checkpoint."""
    if not (arm.alarm and arm.alarm.get("stop")):
        return False
    state = alarm_of(checkpoint)
    return bool(state) and state["fired_at"] is not None


def _cut_back(path: Path, step: int) -> None:
    """Drop the rows after `step`, which the resumed run writes again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def prepare_folder(arm: Arm, folder: Path, resume: bool) -> None:
    """Make the run folder or check that it belongs to this arm; ValueError if it does not."""
    saved = folder / "settings.json"
    if saved.exists():
        old = json.loads(saved.read_text())
        if fingerprint(old) != fingerprint(arm.plain()):
            new = arm.plain()
            differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            raise ValueError(
                f"{folder} holds a run of other settings (they differ in: {', '.join(differ)}). "
                "Choose another --output, or give the settings of the first run."
            )
        if not resume:
            raise ValueError(f"{folder} is not empty. Add --resume to continue it.")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run. Choose another --output.")
    else:
        write_text(saved, json.dumps(arm.plain(), indent=2))


def run_arm(arm: Arm, folder: Path, say: Say | None = None) -> None:
    """Train the arm in `folder` from its last checkpoint, or from the start if there is none."""
    from transformers import AutoModelForCausalLM

    checkpoint = last_checkpoint(folder)
    for path in folder.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)  # killed while it was written, or older
    task = arm.task()
    trainer, monitor = make_trainer(arm, task, folder, say)
    if checkpoint is None:
        monitor.path.unlink(missing_ok=True)
    else:
        _cut_back(monitor.path, int(checkpoint.name.split("-")[1]))
    resumed_from = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    begin = time.perf_counter()
    watched_alarm = None
    if checkpoint and (resumed_from >= trainer.args.max_steps > 0 or stopped(arm, checkpoint)):
        # killed after its last step: train() would take one more
        trainer._load_from_checkpoint(str(checkpoint))
        watched_alarm = alarm_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - begin
    model_folder = folder / "model"
    trainer.save_model(str(model_folder))
    samples = {}
    for when, source in (("before", task.model), ("after", str(model_folder))):
        model: Any = AutoModelForCausalLM.from_pretrained(source, **task.model_init).eval()
        samples[when] = task.samples(model.to(trainer.accelerator.device), arm.seed)
    write_samples(folder / "samples.md", samples)
    # written last and whole: the run counts as finished from here on
    judge = arm.judge.index if arm.judge else None
    summary: dict[str, Any] = {"method": arm.method, "seed": arm.seed, "judge": judge}
    if arm.trainer:
        summary["trainer"] = arm.trainer
    if arm.world:
        summary |= {"world": arm.world.kind, "world_seed": arm.world.reward.seed}
    summary |= summarise(read_rows(monitor.path), task.hack)
    if arm.alarm is not None:
        alarm = watched_alarm if watched_alarm else monitor.watch.alarm.state()
        summary["alarm"] = {name: alarm[name] for name in ("fired_at", "reason")}
    summary |= {"seconds": round(seconds, 1), "resumed_from": resumed_from}
    summary |= {"settings": arm.plain(), "environment": environment()}
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
