"""Reward models compared on real solutions: Bradley-Terry (BT), GRM and BT with GR.

    python -m integrations.results.rewards --data FOLDER --output runs/reward-models

FOLDER holds GSM8K's train.jsonl (text for the small language model that every reward model starts
from) and example_model_solutions.jsonl (right and wrong solutions by a 6B and a 175B model). The
reward models are trained on pairs of the 6B model and tested on other questions: its own pairs
(held_out) and those of the 175B model (shift).

Rule, fixed beforehand: four candidates a method; the highest mean pair accuracy on the validation
questions, over the tuning seeds, wins (then the lowest loss). GRM and GR take BT's learning
rate. Validation questions are in no other part of any seed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import fingerprint, write_text
from ..reward_models.solution_pairs import solution_pairs
from ..rules.solution_lm import MAX_LENGTH, build_lm, read_questions
from .rewards_page import baselines, flat, group_accuracies, likelihood, write_page

if TYPE_CHECKING:
    from datasets import Dataset

FILES = ("train.jsonl", "example_model_solutions.jsonl")
VALIDATION, VALIDATION_SEED = 0.2, 1000  # share of the questions; which ones
HELD_OUT = 0.4  # of the other questions, drawn anew for each seed
PARTS = ("train", "held_out", "shift")
FITTED = 40  # training pairs that a trained model is shown again, to see what it has fitted


@dataclass(frozen=True)
class Setting:
    """One method with its settings; `config` are fields of RewardConfig or GRMConfig."""

    label: str
    method: str  # bt, grm or gr
    config: dict[str, Any] = field(default_factory=dict)
    ratio: float | None = None  # of gradient regularization


@dataclass(frozen=True)
class Plan:
    """Seeds, shares of the training pairs, and the size of everything."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning: tuple[int, ...] = (50, 51)
    shares: tuple[float, ...] = (1.0, 0.25)
    tuning_share: float = 0.5  # halfway between them, on a scale of ratios
    epochs: dict[float, int] = field(default_factory=lambda: {1.0: 1, 0.5: 1, 0.25: 2})
    lm: dict[str, Any] = field(default_factory=dict)  # fields of LMSettings
    trainer: dict[str, Any] = field(default_factory=dict)  # win over a setting's


SMOKE = Plan(
    seeds=(0, 1),
    tuning=(50,),
    lm={"vocabulary": 300, "width": 16, "layers": 1, "epochs": 0.01, "apart": 2},
    trainer={"max_steps": 2},  # the first is at a learning rate of 0
)


def candidates(method: str, base: dict[str, Any]) -> list[Setting]:
    """The four settings of a method; `base` is BT's choice, for the other two."""
    if method == "bt":
        rates = (1e-4, 3e-4, 1e-3, 3e-3)
        return [Setting(f"bt lr={lr:g}", "bt", {"learning_rate": lr}) for lr in rates]
    if method == "grm":
        weights = (0.001, 0.01, 0.1, 0.5)
        return [Setting(f"grm w={w:g}", "grm", base | {"lm_weight": w}) for w in weights]
    if method == "gr":
        return [Setting(f"gr ratio={r:g}", "gr", base, ratio=r) for r in (0.03, 0.1, 0.3, 1.0)]
    raise ValueError(f"method={method!r}: give bt, grm or gr.")


# ---- data ---------------------------------------------------------------------------------------


@functools.cache  # it reads the whole file
def split(source: Path, seed: int) -> Mapping[str, Dataset]:
    """train, held_out and shift of one seed, and validation, whose questions no other part has."""
    apart = solution_pairs(source, held_out=VALIDATION, seed=VALIDATION_SEED)
    kept = set(apart["held_out"]["prompt"]) | set(apart["shift"]["prompt"])
    parts = solution_pairs(source, held_out=HELD_OUT, seed=seed)
    made: dict[str, Any] = {"validation": apart["held_out"]}
    for name in PARTS:
        rows = [i for i, prompt in enumerate(parts[name]["prompt"]) if prompt not in kept]
        if not rows:
            raise ValueError(f"{source}: no pair is left for part '{name}'. Give more questions.")
        made[name] = parts[name].select(rows)
    made["train"] = made["train"].shuffle(seed=seed)
    return made


def first(pairs: Dataset, count: int) -> Dataset:
    """The first pairs: of a training set, which is shuffled, a smaller part is in a larger one."""
    return pairs.select(range(min(count, len(pairs))))


# ---- runs ---------------------------------------------------------------------------------------


def train(
    setting: Setting, seed: int, pairs: Dataset, lm: Path, given: dict[str, Any], folder: Path
) -> Any:
    """The trained reward model of one run; `given` are fields of its config."""
    from transformers import AutoTokenizer, PrinterCallback
    from trl import RewardConfig

    import flatopt

    from ..reward_models.grm import GRMConfig, GRMTrainer
    from ..reward_models.model import start_reward_model
    from ..reward_models.trainer import BTTrainer

    grm = setting.method == "grm"
    options: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": 4,  # few pairs: rather more steps than larger ones
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "max_length": MAX_LENGTH,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    config: Any = GRMConfig if grm else RewardConfig
    kind: Any = GRMTrainer if grm else BTTrainer
    trainer = kind(
        start_reward_model(lm, lm_head=grm, seed=seed),
        args=config(**(options | setting.config | given)),
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(lm),
    )
    trainer.remove_callback(PrinterCallback)
    if setting.ratio is not None:
        flatopt.attach(trainer, ratio=setting.ratio)
    trainer.train()
    return trainer.model


def measure(model: Any, pairs: Dataset, train: Dataset, lm: Path) -> dict[str, Any]:
    """The metrics of one part, `left_out` (pairs that are too long), and accuracies by group."""
    from transformers import AutoTokenizer

    from ..reward_models.metrics import pair_ids, score, summarise

    tokenizer: Any = AutoTokenizer.from_pretrained(lm)
    both = [pair_ids(tokenizer, row) for row in pairs.to_list()]
    keep = [i for i, pair in enumerate(both) if max(map(len, pair)) <= MAX_LENGTH]
    sequences = [both[i][side] for side in (0, 1) for i in keep]
    chosen, rejected = score(model, sequences, tokenizer.pad_token_id).chunk(2)
    found = summarise(chosen - rejected) | {"left_out": len(both) - len(keep)}
    found["groups"] = group_accuracies(pairs.select(keep), train, chosen - rejected)
    return found


def run(
    setting: Setting, seed: int, share: float, phase: str, sources: dict[str, Any], plan: Plan
) -> dict[str, Any]:
    """One run, or its result where it has ended: metrics of the parts that the phase may see."""
    folder = sources["output"] / phase / f"{setting.label}-{share:g}".replace(" ", "_")
    folder = folder / f"seed{seed}"
    given = {"num_train_epochs": plan.epochs[share]} | plan.trainer
    settings = {
        "setting": asdict(setting),
        "seed": seed,
        "share": share,
        "trainer": given,
        "lm": sources["lm"].name,
        "pairs": sources["pairs"],
        "split": [VALIDATION, VALIDATION_SEED, HELD_OUT, FITTED],
    }
    result = folder / "result.json"
    if result.exists():
        done = json.loads(result.read_text())
        if done["fingerprint"] != fingerprint(settings):
            raise ValueError(
                f"{result}: of a run with other settings or data. Give another --output, or delete "
                "that folder."
            )
        return done
    begun = time.perf_counter()
    parts = dict(split(sources["source"], seed))
    parts["train"] = first(parts["train"], max(1, round(share * len(parts["train"]))))
    lm, pairs = sources["lm"], len(parts["train"])
    model = train(setting, seed, parts["train"], lm, given, folder)
    trained = time.perf_counter()
    seen = ("validation",) if phase == "tuning" else PARTS
    measured = {}
    for name in seen:
        shown = first(parts["train"], FITTED) if name == "train" else parts[name]
        measured[name] = measure(model, shown, parts["train"], lm)
    done = {"label": setting.label, "method": setting.method, "seed": seed, "share": share}
    done |= {"trained_on": pairs, "parts": measured, "seconds": trained - begun}
    done["fingerprint"] = fingerprint(settings)
    write_text(result, json.dumps(done, indent=2))
    return done


def run_all(
    phase: str,
    settings: Iterable[tuple[Setting, int, float]],
    sources: dict[str, Any],
    plan: Plan,
) -> list[dict[str, Any]]:
    """Run what is not finished, one after the other; a failed run becomes a row that says why."""
    from rich.progress import Progress

    tasks, results = list(settings), []
    with Progress() as progress:
        line = progress.add_task(phase, total=len(tasks))
        for setting, seed, share in tasks:
            progress.update(line, description=f"{phase}: {setting.label}, seed {seed}, {share:g}")
            row = {"label": setting.label, "method": setting.method, "seed": seed, "share": share}
            try:
                row = run(setting, seed, share, phase, sources, plan)
            except RuntimeError as error:  # training went wrong; wrong input is a ValueError
                row["failed"] = f"{type(error).__name__}: {error}"
                progress.console.print(f"[red]{setting.label}, seed {seed}: {row['failed']}")
            results.append(row)
            progress.advance(line)
    return results


def choose(settings: Sequence[Setting], runs: Sequence[dict[str, Any]]) -> Setting:
    """The setting with the highest mean validation accuracy, then the lowest mean loss."""

    def rank(setting: Setting) -> tuple[float, float]:
        mine = [run for run in runs if run["label"] == setting.label]
        if not mine or any("failed" in run for run in mine):
            return (-1.0, 0.0)
        found = [run["parts"]["validation"] for run in mine]
        accuracy = statistics.fmean(row["accuracy"] for row in found)
        return (round(accuracy, 9), -statistics.fmean(row["bt_loss"] for row in found))

    return max(settings, key=rank)


def tune(sources: dict[str, Any], plan: Plan) -> tuple[dict[str, Setting], list[dict[str, Any]]]:
    """The chosen setting of each method, and all tuning runs."""
    chosen: dict[str, Setting] = {}
    runs: list[dict[str, Any]] = []
    for method in ("bt", "grm", "gr"):
        settings = candidates(method, chosen["bt"].config if chosen else {})
        tasks = ((s, seed, plan.tuning_share) for s in settings for seed in plan.tuning)
        runs += run_all("tuning", tasks, sources, plan)
        chosen[method] = choose(settings, runs)
    return chosen, runs


# ---- command ------------------------------------------------------------------------------------


def prepare(data: Path, output: Path, plan: Plan) -> dict[str, Any]:
    """Check the data, then build the language model; what the runs need of both."""
    for name in FILES:
        if not (data / name).is_file():
            raise ValueError(f"--data {data}: no file {name} there. Give the folder of GSM8K.")
    source = data / FILES[1]
    for seed in (*plan.seeds, *plan.tuning):
        split(source, seed)
    with source.open(encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file if line.strip()]
    asked = {row["question"].strip() for row in pairs}
    rows, dropped = read_questions(data / FILES[0], asked)
    if dropped:
        print(f"{dropped} questions of {FILES[0]} are left out: they are among the tested ones.")
    lm = build_lm(rows, **plan.lm)
    return {"source": source, "output": output, "lm": lm, "pairs": fingerprint(pairs)}


def main(arguments: list[str] | None = None) -> int:
    """Tune, choose, report; 1 if a run failed, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of " + " and ".join(FILES))
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--pages", type=Path, help="tables and plot (default: OUTPUT/page)")
    parser.add_argument("--smoke", action="store_true", help="all of it in tiny, to see it work")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from ..loop import quiet

    quiet()
    torch.set_num_threads(1)  # the models are tiny
    plan, pages = SMOKE if options.smoke else Plan(), options.pages or options.output / "page"
    try:
        sources = prepare(options.data, options.output, plan)
        chosen, tuning = tune(sources, plan)
        tasks = [(s, seed, n) for n in plan.shares for seed in plan.seeds for s in chosen.values()]
        runs = run_all("reported", tasks, sources, plan)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    score = likelihood(sources["lm"])
    parts = ((seed, split(sources["source"], seed)) for seed in plan.seeds)
    simple = [row for seed, made in parts for row in baselines(made, score, seed)]
    tables = write_page(pages, flat(tuning), flat(runs), simple)
    record = {method: asdict(setting) for method, setting in chosen.items()}
    write_text(pages / "chosen.json", json.dumps(record, indent=2) + "\n")
    facts = json.loads((sources["lm"] / "facts.json").read_text())
    write_text(pages / "language_model.json", json.dumps(facts, indent=2) + "\n")
    for name, table in tables.items():
        print(f"{name}\n{table}\n")
    print(f"tables and plot in {pages}")
    return int(any("failed" in run for run in (*tuning, *runs)))


if __name__ == "__main__":
    raise SystemExit(main())
