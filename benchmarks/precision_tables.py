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
                if not lengths:  # another model was measured with more methods
                    cells.append("")
                    continue
                errors = {
                    radius: statistics.fmean(_joined(found, "error"))
                    for (radius,), found in lengths.items()
                }
                best = min(errors, key=lambda radius: errors[radius])
                cosines = _joined(lengths[(best,)], "cosine")
                at = f" at {_length(best)}" if len(errors) > 1 else ""
                cells.append(f"{_mean_and_least(cosines)}, error {errors[best]:.2g}{at}")
            table.append([method, *cells])
        lines += [f"**{MODES[mode]}**: cosine with H g", ""]
        lines += _table(["method", *(name for (name,) in names)], table)
    return "\n".join(lines)


def gauge(rows: Sequence[Row]) -> str:
    """Central differences in 16 bits: the same step for all batches, or by least even / odd."""
    names = ("central", "central, stochastic")  # the rounding that flatopt has in each mode
    tried = [row for row in rows if row["method"] in names and row["mode"] != "float32"]
    tried = [row for row in tried if row["mode"] == "autocast" or row["method"] == names[1]]
    radii = sorted({row["radius"] for row in tried})
    table = []
    for (name, mode), part in _group(tried, _name, lambda r: r["mode"]).items():
        cells = [
            _mean_and_least(_joined([r for r in part if r["radius"] == radius], "cosine"))
            for radius in radii
        ]
        chosen = [
            min((row["even_to_odd"][batch], row["cosine"][batch]) for row in same)[1]
            for same in _group(part, lambda r: r["loss"]).values()
            for batch in range(len(same[0]["cosine"]))
        ]
        table.append([f"{name}, {mode}", *cells, _mean_and_least(chosen)])
    heads = ["cosine with H g", *(_length(radius) for radius in radii), "least even / odd"]
    return "\n".join(_table(heads, table))


def _mean_and_least(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} (least {min(values):.3f})"


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
