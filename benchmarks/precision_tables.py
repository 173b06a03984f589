"""The tables of `benchmarks.precision`, in Markdown."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FLATOPT = "**flatopt, defaults**"
RELEASED = "released code: forward, eps=1e-3, nearest"
GRADIENT = "the gradient g itself"
MODES = {
    "float32": "float32",
    "autocast": "bf16 autocast over float32 weights",
    "bfloat16": "bf16 weights",
}


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _spread(values: Sequence[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.fmean(values):{form}} ({low:{form}}..{high:{form}})"


def _length(radius: float | None) -> str:
    return "" if radius is None else f"{radius:.1e}".replace(".0e", "e")


def _name(row: Row) -> str:
    return row["model"] + (", blocks" if row["perturbed"] == "blocks" else "")


def _group(rows: Iterable[Row], *keys: Callable[[Row], Any]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(key(row) for key in keys), []).append(row)
    return groups


def _label(row: Row) -> str:
    return f"{row['method']} {_length(row['radius'])}".strip()


def _joined(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows for value in row[key]]


def summary(rows: Sequence[Row]) -> str:
    """One row per method, at its step of least mean error; all losses and batches together."""
    lines: list[str] = []
    for (mode,), part in _group(rows, lambda r: r["mode"]).items():
        names = list(_group(part, _name))
        table = []
        for (method,), same in _group(part, lambda r: r["method"]).items():
            cells = []
            for (name,) in names:
                lengths = _group((r for r in same if _name(r) == name), lambda r: r["radius"])
                errors = {
                    radius: statistics.fmean(_joined(found, "error"))
                    for (radius,), found in lengths.items()
                }
                best = min(errors, key=lambda radius: errors[radius])
                cosines = _joined(lengths[(best,)], "cosine")
                at = f" at {_length(best)}" if len(errors) > 1 else ""
                cells.append(
                    f"{statistics.fmean(cosines):.3f} (least {min(cosines):.3f}), "
                    f"error {errors[best]:.2g}{at}"
                )
            table.append([method, *cells])
        lines += [f"**{MODES[mode]}**: cosine with H g", ""]
        lines += _table(["method", *(name for (name,) in names)], table)
    return "\n".join(lines)


def gauge(rows: Sequence[Row]) -> str:
    """The error of the central difference beside what can be seen of it without the exact H g."""
    central = [row for row in rows if "even_to_odd" in row and row["mode"] != "float32"]
    table = []
    for (name, mode, radius), part in _group(
        central, _name, lambda r: r["mode"], lambda r: r["radius"]
    ).items():
        error, seen = _joined(part, "error"), _joined(part, "even_to_odd")
        table.append([name, mode, _length(radius), _spread(error, ".2f"), _spread(seen, ".2f")])
    return "\n".join(_table(["model", "mode", "radius", "error", "even / odd"], table))


def full(rows: Sequence[Row]) -> str:
    """Every method and step: a table for each model, set of perturbed weights and mode."""
    lines: list[str] = []
    for (name, mode), part in _group(rows, _name, lambda r: r["mode"]).items():
        losses = [loss for (loss,) in _group(part, lambda r: r["loss"])]
        heads = [f"{loss}: {what}" for loss in losses for what in ("cosine", "error")]
        table = []
        for (label,), same in _group(part, _label).items():
            cells = [
                cell
                for row in same
                for cell in (_spread(row["cosine"], ".3f"), _spread(row["error"], ".2g"))
            ]
            table.append([label, *cells])
        lines += [f"**{name}, {MODES[mode]}**", ""]
        lines += _table(["method, radius", *heads], table)
    return "\n".join(lines)


def put_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands in `path` between ``<!-- name -->`` and the next ``<!-- end -->``."""
    page, begin, end = path.read_text(), f"<!-- {name} -->\n", "<!-- end -->"
    if page.count(begin) != 1:
        raise ValueError(f"{path} needs the line {begin.strip()} exactly once")
    before, rest = page.split(begin)
    if end not in rest:
        raise ValueError(f"{path} has no {end} after {begin.strip()}")
    path.write_text(before + begin + text.rstrip() + "\n" + rest[rest.index(end) :])
