"""Expert iteration: write completions, keep each prompt's best by the proxy, imitate them; repeat.

Imitation is TRL's SFTTrainer on the very tokens that were sampled, the end token among them;
flatopt.attach works on it as on any trainer. Every round begins with a fresh optimizer. A round is
the unit of resuming: its policy and its row of numbers appear on disk together, and a run that was
killed goes on after its last whole round, with the same results.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..arm import Arm
from ..cache import write_text
from ..processes import world_size
from ..tasks import Task, generate, prompt_tensors, sampling_of
from ..watch.monitor import finite, read_rows
from .config import LadderConfig, Phase, config_of, phases
from .form import Form, form_of
from .task import STAGES_FOLDER, ladder_task, phase_rows, proxy, true

ROUNDS_FOLDER = "rounds"
ROW = "row.json"  # in a round's folder: what is written to metrics.jsonl
IGNORED = -100  # the label of a token that is not imitated
Say = Callable[[dict[str, Any]], None]
# fields of the arm's GRPOConfig that the imitation shares
SHARED = (
    *("use_cpu", "bf16", "gradient_checkpointing", "learning_rate", "lr_scheduler_type", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "report_to"),
    "disable_tqdm",
)


@dataclass(frozen=True)
class Rounds:
    """The sizes of expert iteration; all at least 1, samples at least 2.

    rounds: for each stage. prompts, samples: prompts of a round, completions of each.
    steps, batch: gradient steps of imitation and completions in each, among the best completions
    of the prompts where one is better than another. A batch goes through the model in parts of
    per_device_train_batch_size.
    """

    rounds: int = 4
    prompts: int = 240
    samples: int = 8
    steps: int = 15
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("rounds", "prompts", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"expert: {name} must be at least 1, got {getattr(self, name)}")
        if self.samples < 2:
            raise ValueError(f"expert: samples must be at least 2, got {self.samples}")


def best(values: list[float], samples: int, rng: random.Random) -> list[int]:
    """The index of the best completion of each prompt, ties drawn; none where all are equal.

    >>> best([0.0, 1.0, 0.5, 0.5], 2, random.Random(0))
    [1]
    """
    chosen = []
    for start in range(0, len(values), samples):
        group = values[start : start + samples]
        top = max(group)
        if min(group) < top:
            chosen.append(start + rng.choice([i for i, v in enumerate(group) if v == top]))
    return chosen


def schedule(config: LadderConfig) -> list[tuple[str, Phase, str | None]]:
    """The rounds of a run: name, phase, and at the end of a phase the name of its snapshot.

    >>> for name, _, snapshot in schedule(LadderConfig(model="-", steps_per_stage=2))[:2]:
    ...     print(name, snapshot)
    1-agree-1 None
    1-agree-2 1-agree
    """
    return [
        (f"{number}-{phase.name}-{turn}", phase, f"{number}-{phase.name}" if last else None)
        for number, phase in enumerate(phases(config), start=1)
        for turn in range(1, phase.steps + 1)
        for last in (turn == phase.steps,)
    ]


def run_expert(arm: Arm, folder: Path, say: Say | None = None) -> None:
    """Train the arm in `folder`, from its last whole round on; as `loop.run_arm`.

    ValueError under a launcher: the rounds run in one process.
    """
    from transformers import AutoModelForCausalLM

    from ..loop import quiet, tell_further
    from ..report import environment, summarise, write_samples

    if world_size() > 1:
        raise ValueError("expert iteration runs in one process: start it without a launcher")
    quiet()
    assert arm.ladder is not None
    config = config_of(arm.ladder)
    form, task = form_of(config, arm.config), ladder_task(arm.ladder, arm.config)
    rounds, begin = Rounds(**config.expert), time.perf_counter()
    plan, policy, resumed_from = schedule(config), task.model, 0
    for number, (name, phase, snapshot) in enumerate(plan, start=1):
        place = folder / ROUNDS_FOLDER / name
        if place.is_dir():
            resumed_from = number
        else:
            _round(arm, form, task, rounds, phase, number, policy, place)
        row = _write_metrics(folder, [round_name for round_name, *_ in plan[:number]])
        if say:
            say(row | {"of": len(plan)})
        if snapshot is not None and not (folder / STAGES_FOLDER / snapshot).is_dir():
            if not any(place.iterdir()):
                raise ValueError(
                    f"{folder / STAGES_FOLDER / snapshot} is missing, and the round that made it "
                    f"was gone on from. Delete {folder} and start that run again"
                )
            _whole(folder / STAGES_FOLDER / snapshot, lambda work, of=place: _copy(of, work))
        previous, policy = policy, str(place)
        if previous != task.model:
            _forget(Path(previous))
    samples = {}
    for when, source in (("before", task.model), ("after", policy)):
        model: Any = AutoModelForCausalLM.from_pretrained(source, **_loading(task)).eval()
        samples[when] = task.samples(model.to(_device(arm)), arm.seed)
    write_samples(folder / "samples.md", samples)
    summary: dict[str, Any] = {"method": arm.method, "seed": arm.seed, "judge": None}
    summary |= {"trainer": arm.trainer}
    summary |= summarise(read_rows(folder / "metrics.jsonl"), task.hack)
    summary |= {"hacked": None, "hack_step": None, "gap_step": None}
    summary |= {"seconds": round(time.perf_counter() - begin, 1), "resumed_from": resumed_from}
    assert task.finish is not None
    summary |= task.finish(folder, tell_further(say))
    summary |= {"settings": arm.plain(), "environment": environment()}
    # written last and whole: the run counts as finished from here on
    write_text(folder / "summary.json", json.dumps(finite(summary), indent=2, allow_nan=False))


def _loading(task: Task) -> dict[str, Any]:
    """Arguments of from_pretrained; float32 as in TRL's GRPO, whatever lies on disk."""
    return {"dtype": "float32"} | task.model_init


def _device(arm: Arm) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not arm.config.get("use_cpu") else "cpu"


def _write_metrics(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """metrics.jsonl from the rows of the rounds; the last row. So no kill can part the two."""
    lines = [(folder / ROUNDS_FOLDER / name / ROW).read_text(encoding="utf-8") for name in names]
    write_text(folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
    return json.loads(lines[-1])


def _whole(final: Path, fill: Callable[[Path], None]) -> None:
    """A folder that is there with all that `fill` puts into it, or not at all."""
    work = final.with_name(f".{final.name}")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir(parents=True)
    fill(work)
    os.replace(work, final)


def _copy(place: Path, work: Path) -> None:
    """The policy of a round, without its row."""
    shutil.copytree(place, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ROW))


def _forget(place: Path) -> None:
    """Delete the weights of a round that was gone on from; its row says that it is done."""
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ROW:
            path.unlink()


def _round(
    arm: Arm,
    form: Form,
    task: Task,
    rounds: Rounds,
    phase: Phase,
    number: int,
    policy: str,
    place: Path,
) -> None:
    """One round: the policy after it and its row of numbers lie in `place`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arm.threads)
    rng = random.Random(f"expert {arm.seed} {number}")
    drawn = phase_rows(phase, form, rounds.prompts, rng)
    repeated = [row for row in drawn for _ in range(rounds.samples)]
    prompts = [prompt for _, prompt, _ in repeated]
    model: Any = AutoModelForCausalLM.from_pretrained(policy, **_loading(task))
    model = model.to(_device(arm))
    seed = 1_000_003 * (arm.seed * 10_000 + number) % 2**31
    ids = _write(model.eval(), task.tokenizer, form, prompts, seed, sampling_of(arm.config))
    texts = form.texts(task.tokenizer.batch_decode(ids, skip_special_tokens=True), ids)
    columns: dict[str, list[Any]] = {
        "episode": [episode for episode, _, _ in repeated],
        "paid": [paid for _, _, paid in repeated],
    }
    paid, wanted = proxy(texts, columns), true(texts, columns)
    chosen = best(wanted if "true" in arm.method.split("+") else paid, rounds.samples, rng)
    row: dict[str, Any] = {
        "step": number,
        "proxy": sum(paid) / len(paid),
        "true": sum(wanted) / len(wanted),
        "format": sum(map(task.is_formatted, texts)) / len(texts),
        "auc": None,
        "kl_start": None,
        "kept": len(chosen) / rounds.prompts,
    }
    if chosen:
        rows = imitation_rows(task.tokenizer, [(prompts[i], ids[i]) for i in chosen])
        row |= _imitate(arm, task, rounds, model, rows, number)

    def fill(work: Path) -> None:
        model.save_pretrained(work)
        task.tokenizer.save_pretrained(work)
        (work / ROW).write_text(json.dumps(finite(row), allow_nan=False), encoding="utf-8")

    _whole(place, fill)


def _write(
    model: Any,
    tokenizer: Any,
    form: Form,
    prompts: Sequence[Any],
    seed: int,
    sampling: dict[str, Any],
) -> list[list[int]]:
    """A completion of each prompt as token ids, up to and with the end token."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = {ends} if isinstance(ends, int) else set(ends)
    found = []
    for start in range(0, len(prompts), form.batch):
        part = prompts[start : start + form.batch]
        found += generate(model, tokenizer, part, seed + start, form.max_completion, **sampling)
    return [until(ids, ends) for ids in found]


def until(ids: Sequence[int], ends: set[int]) -> list[int]:
    """Tokens up to and with the first end token; all of them where there is none.

    >>> until([5, 6, 2, 0, 0], {2}), until([5, 6], {2})
    ([5, 6, 2], [5, 6])
    """
    at = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: at + 1])


def imitation_rows(
    tokenizer: Any, pairs: Sequence[tuple[Any, Sequence[int]]]
) -> dict[str, list[list[int]]]:
    """Columns `input_ids` and `labels` for SFT: what the policy read, then what it wrote.

    pairs: a prompt (text or chat messages) and the token ids of a completion. The prompt's tokens
    are those that `tasks.generate` gives the policy; they have no label.
    """
    prompts = [prompt_tensors(tokenizer, [p])["input_ids"][0].tolist() for p, _ in pairs]
    written = [list(ids) for _, ids in pairs]
    return {
        "input_ids": [read + ids for read, ids in zip(prompts, written, strict=True)],
        "labels": [[IGNORED] * len(read) + ids for read, ids in zip(prompts, written, strict=True)],
    }


def imitation_trainer(
    arm: Arm,
    task: Task,
    rounds: Rounds,
    model: Any,
    rows: dict[str, list[list[int]]],
    number: int,
    scratch: str,
) -> Any:
    """The SFTTrainer of a round, with GR where the arm has it."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    import flatopt

    batch = min(rounds.batch, len(rows["input_ids"]))
    at_once = min(batch, int(arm.config.get("per_device_train_batch_size", 8)))
    config = SFTConfig(
        output_dir=scratch,
        max_steps=rounds.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=batch // at_once,
        max_length=None,  # nothing is cut: the end token would be the first to go
        seed=arm.seed * 10_000 + number,
        save_strategy="no",
        logging_steps=rounds.steps,
        **{name: arm.config[name] for name in SHARED if name in arm.config},
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=task.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if arm.gr is not None:
        settings = {k: v for k, v in arm.gr.items() if k != "samples"}  # of policy gradients
        flatopt.attach(trainer, **settings)
    return trainer


def _imitate(
    arm: Arm,
    task: Task,
    rounds: Rounds,
    model: Any,
    rows: dict[str, list[list[int]]],
    number: int,
) -> dict[str, Any]:
    """A few steps of SFT; the trainer's last numbers."""
    with TemporaryDirectory() as scratch:
        trainer = imitation_trainer(arm, task, rounds, model, rows, number, scratch)
        trainer.train()
    logs: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        logs |= {k: v for k, v in entry.items() if k in ("loss", "grad_norm") or k[:3] == "gr/"}
    return logs
