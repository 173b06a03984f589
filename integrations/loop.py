"""One arm: a method, a seed and a judge, trained with TRL's GRPOTrainer, resumable after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cache import fingerprint, write_text
from .monitor import Monitor, read_rows
from .report import environment, summarise, write_samples
from .tasks import Task, real_task, tiny_task
from .worlds.judge import JudgeSettings, PolicySettings

if TYPE_CHECKING:
    from trl import GRPOTrainer

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Arm:
    """Everything that decides the numbers of one run, as plain data (it travels to processes)."""

    method: str
    seed: int
    policy: PolicySettings | None  # None, as `judge` is: a real task
    judge: JudgeSettings | None
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] | None = None  # arguments of flatopt.attach, None: no GR
    threads: int = 1
    real: dict[str, Any] | None = None  # fields of RealTaskConfig

    @property
    def name(self) -> str:
        judge = f"-judge{self.judge.index}" if self.judge else ""
        return f"{self.method}{judge}-seed{self.seed}"

    def plain(self) -> dict[str, Any]:
        """As JSON data; without what does not apply, so that new options keep old runs valid."""
        plain = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in plain.items() if v is not None or k == "gr"}

    def parameter_names(self) -> list[str]:
        """The names of the policy's parameters, without loading or building its weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

        from .worlds.judge import model_config

        if self.real is not None:
            config = AutoConfig.from_pretrained(self.real["model"])
        else:
            assert self.policy is not None
            config = LlamaConfig(**model_config(self.policy))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return [name for name, _ in model.named_parameters()]

    def task(self) -> Task:
        """The policy, the data and the rewards of this arm."""
        if self.real is not None:
            return real_task(self.real, self.config)
        assert self.policy is not None
        assert self.judge is not None
        return tiny_task(self.policy, self.judge)


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


def _callback(monitor: Monitor, trainer: GRPOTrainer) -> Any:
    from safetensors.torch import save_file
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Writes a row at each log, and the reference policy into each checkpoint."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            monitor.write(state.global_step, kwargs.get("logs") or {})

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # A reset reference is part of the state of the run, but the trainer does not save it.
            reference: Any = trainer.ref_model
            if args.sync_ref_model and reference is not None:
                weights = {k: v.contiguous() for k, v in reference.state_dict().items()}
                save_file(weights, folder / "ref.safetensors")
            # written last: a checkpoint without this mark is taken for a broken one
            write_text(folder / "complete", "")

    return Watch()


def make_trainer(
    arm: Arm, task: Task, folder: Path, say: Say | None = None
) -> tuple[GRPOTrainer, Monitor]:
    """The trainer of an arm with its reward functions, log and, for GR, the wrapped optimizer."""
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    quiet()
    torch.set_num_threads(arm.threads)
    given = dict(arm.config)
    weights = [task.reward_scale * w for w in given.pop("reward_weights")]
    given["reward_weights"] = [*weights, *task.further_weights]
    if task.model_init:
        given["model_init_kwargs"] = task.model_init
    config = GRPOConfig(output_dir=str(folder), seed=arm.seed, **given)
    monitor = Monitor(
        judge=task.proxy,
        grade=task.true,
        is_formatted=task.is_formatted,
        to_texts=task.to_texts,
        path=folder / "metrics.jsonl",
        every=int(config.logging_steps),
        watched=task.watched,
        say=say,
    )
    trainer = GRPOTrainer(
        model=task.model,
        reward_funcs=[monitor.proxy, monitor.true, *task.further],
        args=config,
        train_dataset=task.data,
        processing_class=task.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    monitor.trainer = trainer
    if task.watch_start:
        start: Any = AutoModelForCausalLM.from_pretrained(task.model).eval()
        monitor.start = start.to(trainer.accelerator.device)
    trainer.add_callback(_callback(monitor, trainer))
    if arm.gr is not None:
        import flatopt

        flatopt.attach(trainer, **arm.gr)
    return trainer, monitor


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "complete").exists()]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def _cut_back(path: Path, step: int) -> None:
    """Drop the rows after `step`, which the resumed run writes again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _restore_reference(trainer: GRPOTrainer, checkpoint: Path) -> None:
    from safetensors.torch import load_file

    saved = checkpoint / "ref.safetensors"
    reference: Any = trainer.ref_model
    if saved.exists() and reference is not None:
        reference.load_state_dict(load_file(saved))


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
        _restore_reference(trainer, checkpoint)
    resumed_from = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    begin = time.perf_counter()
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
    summary = {"method": arm.method, "seed": arm.seed, "judge": judge}
    summary |= summarise(read_rows(monitor.path))
    summary |= {"seconds": round(seconds, 1), "resumed_from": resumed_from}
    summary |= {"settings": arm.plain(), "environment": environment()}
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
