"""Reads run folders for the report; whatever is missing or broken becomes a note, not an error."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, float]
MARKS = ("settings.json", "metrics.jsonl")  # what a run folder holds from its beginning
INSIDE = ("checkpoint-", "model", "evaluation", ".")  # folders of a run that hold no other run
LARGEST = 1e100  # squares of larger numbers, as in a standard deviation, would overflow
STEPS = 1e12  # no run is longer; above, a step more would not change the number
DEPTH = 4  # folders between a given folder and its runs, at most


@dataclass
class Run:
    """One run as it was found.

    `rows`: the numbers of metrics.jsonl, each row with its `step`; `notes`: what could not be
    read. A run is finished when its summary.json is there, which is written last.
    """

    folder: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int | None:
        """How many steps were asked for."""
        steps = as_dict(self.settings.get("config")).get("max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def state(self) -> str:
        """'finished', 'unfinished' (still running, stopped or failed) or 'empty' (no row yet)."""
        if self.summary:
            return "finished"
        return "unfinished" if self.rows else "empty"

    @property
    def progress(self) -> str:
        """The state in words, with the last step that was logged.

        >>> Run(Path("gr-seed0"), "gr-seed0", rows=[{"step": 5.0}]).progress
        'unfinished, at step 5'
        """
        if not self.rows:
            return "empty" if self.state == "empty" else "finished, without metrics"
        of = f" of {self.steps}" if self.steps else ""
        at = f"{self.rows[-1]['step']:g}"
        return f"finished, {at} steps" if self.summary else f"unfinished, at step {at}{of}"


def as_dict(value: Any) -> dict[str, Any]:
    """`value`, or an empty dict where it is none: a file may hold anything."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """`value` as a number that can be averaged and drawn, else None.

    >>> number(True), number(float("nan")), number("1"), number(1e200), number(2)
    (None, None, None, None, 2.0)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not abs(value) < LARGEST:  # NaN too
        return None
    return float(value) if abs(value) > 1 / LARGEST else 0.0


def _is_run(folder: Path) -> bool:
    """Other folders have a settings.json too: those of a cached stage name no method."""
    if (folder / "metrics.jsonl").exists():
        return True
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True  # cut in the middle: to be listed
    return isinstance(settings, dict) and "method" in settings


def find_runs(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Run folders at or below `folders`, each once, with a short name that tells them apart."""
    found: dict[Path, str] = {}
    for root in folders:
        for place, inner, files in os.walk(root):
            inner.sort()
            folder = Path(place)
            if any(mark in files for mark in MARKS) and _is_run(folder):
                name = folder.relative_to(root).as_posix()
                name = folder.resolve().name if name == "." else name
                name = f"{root.resolve().name}/{name}" if len(folders) > 1 else name
                found.setdefault(folder.resolve(), name)
                inner.clear()
                continue
            if len(folder.relative_to(root).parts) >= DEPTH:
                inner.clear()
            inner[:] = [name for name in inner if not name.startswith(INSIDE)]
    return list(found.items())


def _text(path: Path, notes: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
        return None


def _json(path: Path, notes: list[str]) -> Any:
    text = _text(path, notes)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is no JSON (cut in the middle?)")
        return None


def read_rows(path: Path, notes: list[str]) -> list[Row]:
    """The numbers of a metrics file, by rising step; a later row of a step replaces the earlier."""
    text = _text(path, notes)
    rows: dict[float, Row] = {}
    lines, bad = (text or "").split("\n"), 0
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = as_dict(json.loads(line))
        except (ValueError, RecursionError):
            row = {}
        numbers = {str(k): n for k, v in row.items() if (n := number(v)) is not None}
        if 0 <= numbers.get("step", -1) < STEPS:
            rows[numbers["step"]] = numbers
        elif place < len(lines) - 1:  # a half-written last line is what a killed run leaves
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} line{'s' * (bad > 1)} could not be read")
    return [rows[step] for step in sorted(rows)]


def read_run(folder: Path, name: str) -> Run:
    """Everything that the report shows of one run."""
    run = Run(folder, name)
    run.settings = as_dict(_json(folder / "settings.json", run.notes))
    run.summary = as_dict(_json(folder / "summary.json", run.notes))
    run.settings = run.settings or as_dict(run.summary.get("settings"))
    if not run.settings and not run.notes:
        run.notes.append("settings.json is missing or unreadable")
    run.rows = read_rows(folder / "metrics.jsonl", run.notes)
    run.evaluation = as_dict(_json(folder / "evaluation.json", run.notes))
    run.samples = read_samples(folder, run.notes)
    return run


def read_samples(folder: Path, notes: list[str]) -> list[dict[str, str]]:
    """Completions before and after training: samples.json, else the table samples.md."""
    found = _json(folder / "samples.json", notes)
    if found is None:
        return parse_samples(_text(folder / "samples.md", notes) or "")
    rows = [as_dict(row) for row in found] if isinstance(found, list) else []
    names = ("prompt", "answer", "before", "after")
    return [{name: as_text(row.get(name)) for name in names} for row in rows if row]


def as_text(value: Any) -> str:
    """A prompt or a completion as text; of a chat, what each one says.

    >>> as_text([{"role": "user", "content": "1 + 1?"}])
    'user: 1 + 1?'
    """
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return "\n".join(f"{v.get('role', '')}: {as_text(v.get('content'))}" for v in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_samples(text: str) -> list[dict[str, str]]:
    """The rows of a samples.md.

    >>> parse_samples("| <code>1 + 1 ?</code> | <code>2</code> | <code>a</code> | <code>b</code> |")
    [{'prompt': '1 + 1 ?', 'answer': '2', 'before': 'a', 'after': 'b'}]
    """
    rows = []
    for line in text.split("\n"):
        cells = re.findall(r"<code>(.*?)</code>", line, re.DOTALL)
        if len(cells) == 4:
            texts = [html.unescape(cell.replace("<br>", "\n")) for cell in cells]
            names = ("prompt", "answer", "before", "after")
            rows.append(dict(zip(names, texts, strict=True)))
    return rows
