"""Runs arms in one or several processes and shows one line of live progress for each."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .arm import Arm
from .loop import run_arm
from .processes import end_all, is_main, wait, world_size
from .worlds import rule_sums
from .worlds.judge import PolicySettings, build_judge, build_policy
from .worlds.ladder.tiny import LadderSettings
from .worlds.ladder.tiny import build_policy as build_ladder_policy
from .worlds.preferences import RewardSettings, build_reward_model

# the live line of a run: label, column of metrics.jsonl
SHOWN = (
    ("proxy", "proxy"),
    ("true", "true"),
    ("|g|", "grad_norm"),
    ("penalty", "gr/penalty_ratio"),
    ("KL", "kl_start"),
    ("H", "entropy"),
    ("AUC", "auc"),
)

_channel: Any = None  # where messages go: in a worker process, the queue to the parent


def _connect(channel: Any) -> None:
    global _channel
    _channel = channel


def say_here(name: str, done: int, total: int, text: str = "") -> None:
    """Show, from within a call of `run_calls`, how far it is."""
    _channel.put((name, done, total, text))


def _build(settings: Any, threads: int) -> None:
    """Build one policy, judge or reward model into the cache."""
    import torch

    from .loop import quiet

    quiet()
    torch.set_num_threads(threads)

    def say(name: str, done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            say_here(name, done, total, "learning from demonstrations")

    if isinstance(settings, RewardSettings):
        build_reward_model(settings, say_here)
    elif isinstance(settings, rule_sums.RuleSettings):
        rule_sums.build_policy(settings, say_here)
    elif isinstance(settings, LadderSettings):
        build_ladder_policy(settings, say_here)
    elif isinstance(settings, PolicySettings):
        build_policy(settings, say)
    else:
        build_judge(settings, say)


def _run(arm: Arm, folder: Path) -> None:
    total = int(arm.config["max_steps"])

    def say(row: dict[str, Any]) -> None:
        known = [(label, row.get(name)) for label, name in SHOWN]
        text = " ".join(f"{label} {value:.2g}" for label, value in known if value is not None)
        say_here(arm.name, row["step"], row.get("of", total), row.get("text", text))

    say_here(arm.name, 0, total, "starting")
    run_arm(arm, folder, say)


class _Screen:
    """Progress lines, fed by messages: (name, done, total, text)."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.lines: dict[str, TaskID] = {}

    def put(self, message: tuple[str, int, int, str]) -> None:
        name, done, total, text = message
        if name not in self.lines:
            self.lines[name] = self.progress.add_task(name, total=total, text=text)
        self.progress.update(self.lines[name], completed=done, total=total, text=text)

    def drain(self, channel: Any, wait: float) -> None:
        """Show what has arrived; wait for a first message up to `wait` seconds."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.put(channel.get(timeout=wait))
                wait = 0.0


def _message(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{at}"


Call = tuple[Any, ...]  # a function and its arguments


def _here(calls: dict[str, Call], screen: _Screen) -> dict[str, str]:
    """Run the calls one after the other in this process."""
    _connect(screen)
    failed = {}
    for name, (function, *arguments) in calls.items():
        try:
            function(*arguments)
        except Exception as error:  # the other runs go on; the message is reported at the end
            failed[name] = _message(error)
            if world_size() > 1:
                end_all(f"{name} failed: {failed[name]}")
    return failed


def _there(calls: dict[str, Call], screen: _Screen, pool: Any, channel: Any) -> dict[str, str]:
    """Run the calls in the worker processes."""
    failed = {}
    waiting = {name: pool.submit(*call) for name, call in calls.items()}
    while waiting:
        screen.drain(channel, 0.5)
        for name in [name for name, task in waiting.items() if task.done()]:
            error = waiting.pop(name).exception()
            if error is not None:
                failed[name] = _message(error)
    screen.drain(channel, 0.05)
    return failed


def run_all(waiting: list[tuple[Arm, Path]], jobs: int) -> dict[str, str]:
    """Build what the arms begin with, then run them; the messages of the arms that failed.

    Arms that follow another arm's steps come after it. Under a launcher all processes train each
    arm together, and a failure ends all of them.
    """
    if not waiting:
        return {}
    threads = waiting[0][0].threads
    settings = dict.fromkeys(s for arm, _ in waiting for s in arm.builds())
    builds: dict[str, Call] = {str(s): (_build, s, threads) for s in settings}
    failed = run_calls(builds, jobs) if is_main() else {}
    wait()  # the others find in the cache what the main process has built
    if failed:
        return failed
    later = [bool((arm.control or {}).get("match")) for arm, _ in waiting]
    for turn in (False, True):
        runs: dict[str, Call] = {
            arm.name: (_run, arm, folder)
            for (arm, folder), matched in zip(waiting, later, strict=True)
            if matched == turn
        }
        failed |= run_calls(runs, jobs)
    return failed


def run_calls(calls: dict[str, Call], jobs: int) -> dict[str, str]:
    """Run named calls, which tell by `say` how far they are; the messages of those that failed.

    In this process, or in `jobs` processes with a line of live progress for each call.
    """
    if not calls:
        return {}
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, disable=not is_main()) as progress:
        screen = _Screen(progress)
        if jobs == 1:
            return _here(calls, screen)
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager:
            channel = manager.Queue()
            with ProcessPoolExecutor(jobs, context, _connect, (channel,)) as pool:
                return _there(calls, screen, pool, channel)
