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
from .worlds import arithmetic as task
from .worlds.judge import Judge, JudgeSettings, PolicySettings, build_judge, build_policy

if TYPE_CHECKING:
    from trl import GRPOTrainer

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Arm:
    """Everything that decides the numbers of one run, as plain data (it travels to processes)."""

    method: str
    seed: int
    policy: PolicySettings
    judge: JudgeSettings
    config: dict[str, Any] = field(default_factory=dict)  # fields of GRPOConfig
    gr: dict[str, Any] | None = None  # arguments of flatopt.attach, None: no GR
    threads: int = 1

    @property
    def name(self) -> str:
        return f"{self.method}-judge{self.judge.index}-seed{self.seed}"

    def plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


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


def make_trainer(arm: Arm, folder: Path, say: Say | None = None) -> tuple[GRPOTrainer, Monitor]:
    """The trainer of an arm with its reward functions, log and, for GR, the wrapped optimizer."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    quiet()
    torch.set_num_threads(arm.threads)
    policy_folder = build_policy(arm.policy)
    judge = Judge(build_judge(arm.judge))
    problems = task.all_problems()
    data = datasets.Dataset.from_dict(
        {"prompt": [p.prompt for p in problems], "answer": [p.answer for p in problems]}
    )
    config = GRPOConfig(output_dir=str(folder), seed=arm.seed, **arm.config)

    def grade(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
        pairs = zip(texts, columns["answer"], strict=True)
        return [task.true_reward(text, answer) for text, answer in pairs]

    monitor = Monitor(
        judge=lambda texts, columns: judge(columns["answer"], texts),
        grade=grade,
        is_formatted=lambda text: task.parse(text) is not None,
        path=folder / "metrics.jsonl",
        every=int(config.logging_steps),
        say=say,
    )
    # a path, not a model: with a KL term the trainer loads the reference from the same place
    trainer = GRPOTrainer(
        model=str(policy_folder),
        reward_funcs=[monitor.proxy, monitor.true],
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(policy_folder, padding_side="left"),
    )
    trainer.remove_callback(PrinterCallback)
    monitor.trainer = trainer
    start: Any = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
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


def sample(model: Any, tokenizer: Any, seed: int, count: int = 12) -> list[dict[str, Any]]:
    """A few completions on fixed problems, as the reward functions would see them."""
    import random

    import torch

    rng = random.Random(f"samples {seed}")
    chosen = [rng.choice(task.all_problems()) for _ in range(count)]
    given = tokenizer([p.prompt for p in chosen], return_tensors="pt", padding=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=given["input_ids"].to(model.device),
            attention_mask=given["attention_mask"].to(model.device),
            max_new_tokens=task.MAX_COMPLETION,
            do_sample=True,
            top_k=0,
        )
    rows = out[:, given["input_ids"].shape[1] :].tolist()
    return [
        {"prompt": p.prompt, "answer": p.answer, "completion": task.to_text(row)}
        for p, row in zip(chosen, rows, strict=True)
    ]


def prepare_folder(arm: Arm, folder: Path, resume: bool) -> None:
    """Make the run folder or check that it belongs to this arm; ValueError if it does not."""
    saved = folder / "settings.json"
    if saved.exists():
        old = json.loads(saved.read_text())
        if fingerprint(old) != fingerprint(arm.plain()):
            differ = sorted(k for k in old if old.get(k) != arm.plain().get(k))
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
    trainer, monitor = make_trainer(arm, folder, say)
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
    tokenizer = trainer.processing_class
    final = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    samples = {
        "before": sample(monitor.start, tokenizer, arm.seed),
        "after": sample(final, tokenizer, arm.seed),
    }
    write_samples(folder / "samples.md", samples)
    # written last and whole: the run counts as finished from here on
    summary = {"method": arm.method, "seed": arm.seed, "judge": arm.judge.index}
    summary |= summarise(read_rows(monitor.path))
    summary |= {"seconds": round(seconds, 1), "resumed_from": resumed_from}
    summary |= {"settings": arm.plain(), "environment": environment()}
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
