"""Files that are whole or not there, and a folder cache for things that are built once."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """The user's cache folder for flatopt: ``$XDG_CACHE_HOME/flatopt`` or ``~/.cache/flatopt``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flatopt"


def fingerprint(settings: Any) -> str:
    """A short hash of a dataclass (or of plain JSON data): equal settings, equal hash."""
    plain = settings
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        plain = dataclasses.asdict(settings)
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's files are its owner's alone
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table; columns in the order in which they first occur."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def cached(kind: str, settings: Any, build: Callable[[Path], None]) -> Path:
    """The folder ``<kind>-<hash of settings>``; `build(folder)` fills it if it is not there yet.

    The folder is filled under a temporary name and moved into place in one step, so a build that
    is killed leaves nothing that could be taken for a finished one. Of two processes that build
    the same thing at once the first to finish wins, and both get the same folder.
    """
    final = cache_root() / f"{kind}-{fingerprint(settings)}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        build(work)
        plain = dataclasses.asdict(settings)
        (work / "settings.json").write_text(json.dumps(plain, indent=2, default=str))
        try:
            os.replace(work, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final
