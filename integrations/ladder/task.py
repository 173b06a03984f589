"""A ladder run as a task for `loop.run_arm`: prompts phase by phase, rewards, snapshots, matrix."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..processes import is_main, wait
from ..tasks import Task, generate, sampling_of
from ..worlds.ladder.episode import from_json
from ..worlds.ladder.grammar import parse
from ..worlds.ladder.scores import SCORING, STAGES, TRAINED, score
from .config import LadderConfig, Phase, config_of, phases
from .form import Form, form_of
from .measure import measure_row, saved_row

STAGES_FOLDER = "stages"  # in a run's folder: the policy after each phase
ROWS_FOLDER = "rows"  # in a run's folder: what was measured of each
START = "start"
# no pickled weights; as TRL trains and saves them, so that start and end are measured alike
MODEL_INIT = {"use_safetensors": True, "dtype": "float32"}
SAMPLES = 2  # completions of each stage among the samples


def phase_rows(
    phase: Phase, form: Form, prompts: int, rng: random.Random
) -> list[tuple[str, Any, str]]:
    """(episode as JSON, prompt, paid reward) for every prompt of a phase.

    Stages take turns; half of the prompts are gameable, drawn so that no stage sees one kind only.
    """
    kinds = [(stage, gameable) for stage in phase.stages for gameable in (True, False)]
    rows = []
    for i in range(prompts):
        stage, gameable = kinds[i % len(kinds)]
        episode, prompt = form.draw(stage, gameable, rng)
        rows.append((episode.to_json(), prompt, phase.paid))
    return rows


def training_data(config: LadderConfig, form: Form) -> Any:
    """All prompts of a run in the order in which they are trained on, as a data set."""
    import datasets

    rng = random.Random(f"ladder prompts {config.seed}")
    rows = []
    for phase in phases(config):
        rows += phase_rows(phase, form, phase.steps * config.prompts_per_step, rng)
    return datasets.Dataset.from_dict(
        {
            "prompt": [prompt for _, prompt, _ in rows],
            "episode": [episode for episode, _, _ in rows],
            "paid": [paid for _, _, paid in rows],
            "level": [json.loads(episode)["stage"] for episode, _, _ in rows],
        }
    )


def proxy(texts: list[str], columns: dict[str, list[Any]]) -> list[float]:
    """What is trained on: the proxy, or the true reward where gaming is trained away."""
    rows = zip(texts, columns["episode"], columns["paid"], strict=True)
    return [getattr(score(from_json(episode), text), paid) for text, episode, paid in rows]


def true(texts: list[str], columns: dict[str, Any]) -> list[float]:
    """The true reward; in a trainer's call the share of gaming is logged too."""
    episodes = [from_json(line) for line in columns["episode"]]
    scores = [score(e, t) for e, t in zip(episodes, texts, strict=True)]
    if "log_metric" in columns:
        gamed = [s.gamed for s, e in zip(scores, episodes, strict=True) if e.gameable]
        if gamed:
            columns["log_metric"]("gamed", sum(gamed) / len(gamed))
    return [s.true for s in scores]


def ladder_task(given: dict[str, Any], trainer: dict[str, Any]) -> Task:
    """The task of an arm; `trainer` holds fields of the trainer's config."""
    config = config_of(given)
    form = form_of(config, trainer)
    tokenizer = form.tokenizer()
    sampling = sampling_of(trainer)

    def samples(model: Any, seed: int) -> list[dict[str, Any]]:
        rng = random.Random(f"samples {seed}")
        drawn = [form.draw(s, True, rng, True) for s in STAGES for _ in range(SAMPLES)]
        prompts = [prompt for _, prompt in drawn]
        ids = generate(model, tokenizer, prompts, seed, form.max_completion, **sampling)
        texts = form.texts(tokenizer.batch_decode(ids, skip_special_tokens=True), ids)
        return [
            {
                "prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"],
                "answer": "; ".join(STAGES[episode.stage].honest(episode)),
                "completion": text,
            }
            for (episode, prompt), text in zip(drawn, texts, strict=True)
        ]

    def to_texts(completions: Sequence[Any], ids: Sequence[list[int]] | None) -> list[str]:
        return form.texts(completions, ids)

    def finish(folder: Path, say: Any) -> dict[str, Any]:
        return {"matrix": measure_run(folder, config, form, tokenizer, sampling, say)}

    return Task(
        model=form.model,
        tokenizer=tokenizer,
        data=training_data(config, form),
        proxy=proxy,
        true=true,
        is_formatted=lambda text: parse(text) is not None,
        to_texts=to_texts,
        samples=samples,
        watch_start=config.world is not None,
        hackable=False,
        watched=("gamed", *(f"level/{stage}/true" for stage in TRAINED)),
        model_init={} if config.world is not None else MODEL_INIT,
        prepare=lambda trainer, folder: trainer.add_callback(snapshots(trainer, folder, config)),
        finish=finish,
    )


def ends(config: LadderConfig) -> dict[int, str]:
    """The step after which each phase has ended, and the name of its snapshot.

    >>> ends(LadderConfig(model="-", steps_per_stage=5, away_steps=0))
    {5: '1-agree', 10: '2-flatter', 15: '3-checklist', 20: '4-forbidden'}
    """
    found, step = {}, 0
    for number, phase in enumerate(phases(config), start=1):
        step += phase.steps
        found[step] = f"{number}-{phase.name}"
    return found


def snapshots(trainer: Any, folder: Path, config: LadderConfig) -> Any:
    """A callback that keeps the policy after each phase, before the step's checkpoint is written.

    So a run that is resumed from a checkpoint has the snapshots of all phases before it.
    """
    from transformers import TrainerCallback

    named = ends(config)

    class Keep(TrainerCallback):
        """Saves the policy where a phase ends."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            name = named.get(state.global_step)
            if name is not None:
                keep(trainer, folder / STAGES_FOLDER / name)

    return Keep()


def keep(trainer: Any, final: Path) -> None:
    """The trainer's policy as a folder that `from_pretrained` reads, whole or not at all."""
    from ..loop import save_whole

    work = final.with_name(f".{final.name}")
    save_whole(trainer, work)
    if is_main():
        (work / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
    wait()


def policies(folder: Path, config: LadderConfig, start: str) -> dict[str, str]:
    """The policies of a run by the names of the matrix's rows."""
    kept = {name: str(folder / STAGES_FOLDER / name) for name in ends(config).values()}
    return {f"0-{START}": start} | kept


def measure_run(
    folder: Path,
    config: LadderConfig,
    form: Form,
    tokenizer: Any,
    sampling: dict[str, Any],
    say: Any,
) -> dict[str, Any]:
    """The gaming matrix of a run: a row for the start and after each phase; resumable row by row.

    The start policy's row is measured once for all runs that share it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    facts = {
        "cell": config.cell,
        "ordinary": config.ordinary,
        "probe": config.probe,
        "eval_seed": config.eval_seed,
        "start": form.model,
        "tokens": form.max_completion,
        "batch": form.batch,
        "scoring": SCORING,
    } | sampling
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = {}
    for number, (name, source) in enumerate(policies(folder, config, form.model).items()):

        def made(source: str = source, number: int = number, name: str = name) -> dict[str, Any]:
            model: Any = AutoModelForCausalLM.from_pretrained(source, **MODEL_INIT)
            model = model.to(device).eval()
            return measure_row(
                model,
                tokenizer,
                form,
                config,
                number,
                sampling,
                lambda done, total, text: say(done, total, f"{name}: {text}"),
            )

        if number and not Path(source).is_dir():
            raise ValueError(
                f"{source} is missing: the policy after a phase cannot be measured. "
                f"Delete {folder} and start that run again"
            )
        place = folder.parent / START if number == 0 else folder / ROWS_FOLDER
        path = place / (f"{seed_name(config)}.json" if number == 0 else f"{name}.json")
        matrix[name] = saved_row(path, facts | {"weights": weights_hash(source)}, made)
    return matrix


def weights_hash(source: str) -> str | None:
    """A hash of a folder's weights, so that no row is taken for another policy's; None for a name
    on the hub."""
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        return None
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                found.update(part)
    return found.hexdigest()[:16]


def seed_name(config: LadderConfig) -> str:
    """A file name for what is measured of the start policy: its seed, or that of a real model."""
    return f"policy-{(config.world or {}).get('seed', 'model')}-eval-{config.eval_seed}"
