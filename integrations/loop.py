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
from .processes import decided_by_main, is_main, wait
from .report import environment, summarise, write_samples
from .resume import advance_sampler
from .tasks import Task
from .watch.monitor import Monitor, read_rows

# fields of GRPOConfig that RLOOConfig does not have, and that recipes may hold for GRPO
GRPO_ONLY = ("loss_type", "scale_rewards")
LOGS = ("metrics.jsonl", "steps.jsonl")  # a row per log, a row per step; cut back on resuming
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
            wait()  # each process writes its random state
            if is_main():
                mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete"
                write_text(mark, "")

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
    control.apply(trainer, folder)
    if arm.watch is not None:
        from .watch.probe import Probe

        Probe(trainer, task, folder, **arm.watch)
    if arm.alarm is not None:
        from .watch.alarm import AlarmRule
        from .watch.hack_monitor import HackMonitor

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
    if task.prepare is not None:
        task.prepare(trainer, folder)
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
    from .watch.hack_monitor import STATE

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


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; the others are deleted, and what was logged after it."""
    checkpoint = last_checkpoint(folder)
    for path in folder.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)  # killed while it was written, or older
    for name in LOGS:
        if checkpoint is None:
            (folder / name).unlink(missing_ok=True)
        elif (folder / name).exists():
            _cut_back(folder / name, int(checkpoint.name.split("-")[1]))
    return checkpoint


def save_whole(trainer: Any, folder: Path) -> None:
    """The trained model as one folder that `from_pretrained` reads, also under FSDP2."""
    if getattr(trainer, "is_fsdp_enabled", False):
        # by default each process would keep its shards; the checkpoints do
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    wait()


def run_arm(arm: Arm, folder: Path, say: Say | None = None) -> None:
    """Train the arm in `folder` from its last checkpoint, or from the start if there is none.

    Under a launcher every process calls it; the first one writes the files.
    """
    from transformers import AutoModelForCausalLM

    from .renamed import RestoreRenamed

    if arm.trainer == "expert":
        from .ladder.expert import run_expert

        run_expert(arm, folder, say)
        return

    checkpoint = decided_by_main(lambda: newest_checkpoint(folder))
    task = arm.task()
    trainer, monitor = make_trainer(arm, task, folder, say)
    resumed_from = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    begin = time.perf_counter()
    watched_alarm = None
    if checkpoint and (resumed_from >= trainer.args.max_steps > 0 or stopped(arm, checkpoint)):
        # killed after its last step: train() would take one more
        _load(trainer, checkpoint)
        watched_alarm = alarm_of(checkpoint)
    else:
        if checkpoint:
            advance_sampler(trainer, checkpoint)
            trainer.add_callback(RestoreRenamed(trainer, checkpoint))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - begin
    model_folder = folder / "model"
    save_whole(trainer, model_folder)
    samples = {}
    for when, source in (("before", task.model), ("after", str(model_folder))):
        evaluated = when == "after" and task.evaluation is not None
        if not (is_main() or evaluated):
            continue
        model: Any = AutoModelForCausalLM.from_pretrained(source, **task.model_init).eval()
        model = model.to(trainer.accelerator.device)
        if is_main():
            samples[when] = task.samples(model, arm.seed)
        if evaluated:
            from .rules.evaluate import evaluate_run

            assert task.evaluation is not None
            evaluate_run(task.evaluation, model, folder, folder.parent / "start")
    if is_main():
        write_samples(folder / "samples.md", samples)
        summary = summary_of(arm, task, monitor, watched_alarm)
        summary |= {"seconds": round(seconds, 1), "resumed_from": resumed_from}
        if task.finish is not None:
            summary |= task.finish(folder, tell_further(say))
        summary |= {"settings": arm.plain(), "environment": environment()}
        # written last and whole: the run counts as finished from here on
        write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    wait()


def tell_further(say: Say | None) -> Callable[[int, int, str], None]:
    """`say` for work after the last step: done, total, what."""

    def tell(done: int, total: int, text: str) -> None:
        if say:
            say({"step": done, "of": total, "text": text})

    return tell


def _load(trainer: Any, checkpoint: Path) -> None:
    """The weights of a checkpoint into a trainer that will not train."""
    from .renamed import restore_renamed

    if not getattr(trainer, "is_fsdp_enabled", False):
        trainer._load_from_checkpoint(str(checkpoint))
        restore_renamed(trainer.model, checkpoint)
        return
    import torch
    from accelerate.utils import load_fsdp_model

    # FSDP2 shards a model together with an optimizer only; this one never steps
    idle = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    trainer.model, _ = trainer.accelerator.prepare(trainer.model, idle)
    plugin = trainer.accelerator.state.fsdp_plugin
    load_fsdp_model(plugin, trainer.accelerator, trainer.model, str(checkpoint))


def summary_of(
    arm: Arm, task: Task, monitor: Monitor, alarm: dict[str, Any] | None
) -> dict[str, Any]:
    """What a finished run has come to, without times and settings."""
    judge = arm.judge.index if arm.judge else None
    summary: dict[str, Any] = {"method": arm.method, "seed": arm.seed, "judge": judge}
    if arm.trainer:
        summary["trainer"] = arm.trainer
    if arm.world:
        summary |= {"world": arm.world.kind, "world_seed": arm.world.reward.seed}
    summary |= summarise(read_rows(monitor.path), task.hack)
    if not task.hackable:
        summary |= {"hacked": None, "hack_step": None, "gap_step": None}
    if arm.alarm is not None:
        state = alarm if alarm else monitor.watch.alarm.state()
        summary["alarm"] = {name: state[name] for name in ("fired_at", "reason")}
    return summary
