"""Runs many arms side by side for a results page: finished ones are kept, failed ones reported."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arm import Arm


def command_line(description: str | None, name: str) -> argparse.ArgumentParser:
    """The command line of a page's runs; `name` is that of its folders of runs and of data."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs", name))
    parser.add_argument("--data", type=Path, default=Path("docs/results", name))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--finished", action="store_true", help="report what is finished so far")
    return parser


@dataclass(frozen=True)
class Job:
    """One run: what is known of it before it has run, its arm, and where it goes."""

    facts: dict[str, Any]  # label, method, seed and the like: columns of the table of runs
    arm: Arm
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / "summary.json").exists()


def run_job(job: Job) -> dict[str, Any]:
    """Train the arm unless it is finished; its facts and its summary."""
    import warnings

    from ..loop import prepare_folder, run_arm

    warnings.simplefilter("ignore")
    prepare_folder(job.arm, job.folder, resume=True)
    if not job.done:
        run_arm(job.arm, job.folder)
    return summary_of(job)


def summary_of(job: Job) -> dict[str, Any]:
    """Facts and summary of a finished run."""
    summary = json.loads((job.folder / "summary.json").read_text(encoding="utf-8"))
    return {**summary, **job.facts, "folder": str(job.folder)}


def run_jobs(jobs: Sequence[Job], name: str, processes: int) -> list[dict[str, Any]]:
    """Run what is not finished; the summaries of all runs in order, `failed` in those that failed.

    Arms begin in the order given, a progress bar shows how many have ended.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results: dict[int, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(processes, context) as pool:
        line = progress.add_task(name, total=len(jobs))
        futures = {}
        for number, job in enumerate(jobs):
            if job.done:
                results[number] = summary_of(job)
                progress.update(line, advance=1)
            else:
                futures[pool.submit(run_job, job)] = number
        for future in as_completed(futures):
            number = futures[future]
            try:
                results[number] = future.result()
            except Exception as error:  # one failed run is reported, the others go on
                failed = f"{type(error).__name__}: {error}"
                results[number] = {**jobs[number].facts, "failed": failed}
                progress.console.print(f"[red]{jobs[number].facts}: {failed}")
            progress.update(line, advance=1, description=str(jobs[number].facts.get("label", name)))
    return [results[number] for number in range(len(jobs))]


def choose(
    families: dict[str, list[Any]],
    runs: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    score: Callable[[dict[str, Any]], float],
) -> dict[str, Any]:
    """The candidate of each family with the highest mean score; candidates have a `label`.

    ValueError unless every candidate has run on every seed: means over other seeds would be no
    comparison.
    """
    best: dict[str, Any] = {}
    for family, settings in families.items():
        scored = []
        for setting in settings:
            mine = [r for r in runs if r["label"] == setting.label and "failed" not in r]
            missing = sorted(set(seeds) - {run["seed"] for run in mine})
            if missing:
                raise ValueError(f"{setting.label} has not run on tuning seeds {missing}")
            scored.append((statistics.fmean(map(score, mine)), setting))
        best[family] = max(scored, key=lambda pair: pair[0])[1]
    return best
