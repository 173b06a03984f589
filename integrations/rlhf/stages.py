"""Stages of a pipeline: each leaves one folder, whole or not at all, and can be run alone.

A stage is named by its settings and those of the stages before it, so that a change anywhere
builds anew what depends on it, and nothing else. A killed stage goes on from what it has kept in
its scratch folder; a finished one is never run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache import fingerprint, write_text
from ..progress import Say, silent

SETTINGS = "settings.json"


@dataclass
class Work:
    """What the build function of a stage is given.

    `folder` is empty and becomes the stage's folder; `scratch` is kept when the stage is killed
    (for checkpoints) and deleted once it has finished; `say` shows progress.
    """

    folder: Path
    scratch: Path
    say: Say = silent


@dataclass(frozen=True)
class Stage:
    """One stage: `build(work)` fills a folder. `after`: the stages whose results it reads."""

    name: str
    folder: Path
    settings: dict[str, Any]
    build: Callable[[Work], None]
    after: tuple[Stage, ...] = field(default=())

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.folder / SETTINGS).is_file()

    @property
    def scratch(self) -> Path:
        """Where checkpoints lie while the stage is being run."""
        return self.folder.with_name(f".{self.folder.name}.part")


def make_stage(
    root: Path,
    name: str,
    settings: dict[str, Any],
    build: Callable[[Work], None],
    after: Sequence[Stage] = (),
) -> Stage:
    """A stage in ``<root>/<name>-<hash>``, the hash being that of all that it depends on."""
    whole = {"stage": name, **settings, "after": [stage.folder.name for stage in after]}
    return Stage(name, root / f"{name}-{fingerprint(whole)}", whole, build, tuple(after))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process runs the same stage; the lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def run_stage(stage: Stage, say: Say = silent) -> Path:
    """The folder of the stage, built now unless it is there."""
    if stage.finished:
        return stage.folder
    stage.scratch.parent.mkdir(parents=True, exist_ok=True)
    with _alone(stage.scratch.with_suffix(".lock")):
        if stage.finished:  # by the process that was waited for
            return stage.folder
        work = Work(stage.scratch / "result", stage.scratch / "kept", say)
        shutil.rmtree(work.folder, ignore_errors=True)  # half written by a killed process
        work.folder.mkdir(parents=True)
        work.scratch.mkdir(exist_ok=True)
        stage.build(work)
        if not stage.finished:  # a build that uses a cache of its own has put it there already
            text = json.dumps(stage.settings, indent=2, default=str)
            write_text(work.folder / SETTINGS, text)
            os.replace(work.folder, stage.folder)
        shutil.rmtree(stage.scratch, ignore_errors=True)
    return stage.folder


def _missing(stage: Stage) -> Stage | None:
    """The first stage that has to be run before `stage` can be; None if there is none."""
    for earlier in stage.after:
        if not earlier.finished:
            return _missing(earlier) or earlier
    return None


def check_earlier(stage: Stage, command: str) -> None:
    """ValueError where a stage whose result `stage` reads is not finished."""
    earlier = _missing(stage)
    if earlier is not None:
        raise ValueError(
            f"stage {stage.name} needs the result of stage {earlier.name}, which is not there. "
            f"Make it with\n    {command} --stage {earlier.name}"
        )


def run_stages(
    stages: Sequence[Stage], say: Say = silent, only: str | None = None, command: str = ""
) -> None:
    """Run all stages in their order, or those named `only` alone.

    ValueError where one is to run alone and what it reads is missing; it names the `command` (a
    command line without --stage) that makes that.
    """
    for stage in stages:
        if only is not None and stage.name != only:
            continue
        if only is not None and not stage.finished:
            check_earlier(stage, command)
        run_stage(stage, say)
