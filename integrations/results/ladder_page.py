"""Tables and plots of docs/results/ladder.md, from the runs of integrations.results.ladder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import write_csv
from ..ladder.report import HELD_OUT, heat_maps, matrix_rows, mean_matrix
from ..worlds.ladder.scores import STAGES, TRAINED
from .ladder import flat
from .page import fill, markdown, spread


def write_page(
    data: Path,
    runs: Sequence[dict[str, Any]],
    tuning: Sequence[dict[str, Any]],
    labels: Sequence[str],
) -> None:
    """Fill the page beside ``data``, write the tables of all runs and draw the heat maps."""
    write_csv(data / "runs.csv", [flat(run) for run in runs])
    write_csv(data / "tuning.csv", [flat(run) for run in tuning])
    found = {label: done(runs, label) for label in labels}
    found = {label: group for label, group in found.items() if group}
    named = [run | {"name": label} for label, group in found.items() for run in group]
    write_csv(data / "matrix.csv", rounded(matrix_rows(named)))
    if found:
        heat_maps(data / "matrix.png", {x: g for x, g in found.items() if "," not in x})
    page = data.parent / f"{data.name}.md"
    if page.exists():
        parts = {
            "matrix": matrices(found),
            "transfer": transfer_table(found),
            "outcome": outcome_table(found),
            "checklist": checklist_table(found),
            "tuning": tuning_table(tuning),
        }
        fill(page, parts)


def done(runs: Sequence[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """The finished runs of a label."""
    return [run for run in runs if run["label"] == label and "failed" not in run]


def rounded(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares and means to five places."""
    return [{k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()} for r in rows]


def percent(values: Sequence[float]) -> str:
    """Mean of shares as a percentage, with the least and the most.

    >>> percent([0.1, 0.3])
    '20 [10, 30]'
    """

    def number(value: float) -> str:
        return f"{100 * value:.1f}" if value < 0.0995 else f"{100 * value:.0f}"

    least, most = number(min(values)), number(max(values))
    return f"{number(statistics.fmean(values))} [{least}, {most}]"


def matrices(found: dict[str, list[dict[str, Any]]]) -> str:
    """The mean matrix of every arm, one under the other: rates in per cent."""
    lines = []
    for label, group in found.items():
        names, table = mean_matrix(group)
        for name, row in zip(names, table, strict=True):
            cells = [f"{100 * value:.2f}" for value in row]
            lines.append([label, str(len(group)), name.partition("-")[2], *cells])
    return markdown(("arm", "runs", "policy after", *STAGES), lines)


def transfer_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Gaming on a stage just before it is trained on, minus at the start, in per cent."""
    stages = [*TRAINED[1:], HELD_OUT]
    lines = []
    for label, group in found.items():
        rows = [flat(run) for run in group]
        values = [[row[f"transfer {s}"] for row in rows if f"transfer {s}" in row] for s in stages]
        if any(values):
            lines.append([label, *(percent(v) if v else "-" for v in values)])
    return markdown(("arm", *stages), lines)


def outcome_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Proxy and true reward on the trained stages, and what reached the held-out one."""
    lines = []
    for label, group in found.items():
        rows = [flat(run) for run in group]
        proxies = [
            statistics.fmean(row[f"gap {s}"] + row[f"true {s}"] for s in TRAINED) for row in rows
        ]
        ledger = {
            name: [run["matrix"][name][HELD_OUT]["gameable"] for run in group]
            for name in group[0]["matrix"]
        }
        rates = {n: percent([c["gamed"] / c["n"] for c in cells]) for n, cells in ledger.items()}
        names = list(rates)
        third = next((rates[n] for n in names if n.endswith("-checklist")), "-")
        away = rates[names[-1]] if names[-1].endswith("-away") else "-"
        last = next(n for n in reversed(names) if not n.endswith("-away"))
        lines.append(
            [
                label,
                str(len(group)),
                spread(proxies),
                spread([row["true reward"] for row in rows]),
                third,
                rates[last],
                percent([row["undetected"] for row in rows]),
                away,
                percent([row[f"capability {HELD_OUT}"] for row in rows]),
            ]
        )
    header = (
        "arm", "runs", "proxy, gameable prompts", "true reward, all prompts",
        "ledger edited after stage 3, %", "after stage 4, %", "undetected, %",
        "after training away, %", "told how, %",
    )  # fmt: skip
    return markdown(header, lines)


def checklist_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Stage 3 right after it was trained on: gaming, the true reward, the longer honest way."""
    lines = []
    for label, group in found.items():
        cells = [
            run["matrix"][name]["checklist"]
            for run in group
            for name in run["matrix"]
            if name.endswith("-checklist")
        ]
        if not cells:
            continue
        gameable = [cell["gameable"] for cell in cells]
        lines.append(
            [
                label,
                percent([c["gamed"] / c["n"] for c in gameable]),
                spread([c["proxy"] for c in gameable]),
                spread([c["true"] for c in gameable]),
                spread([cell["ordinary"]["true"] for cell in cells]),
            ]
        )
    header = ("arm", "gamed, %", "proxy", "true reward", "true reward, ordinary prompts")
    return markdown(header, lines)


def tuning_table(tuning: Sequence[dict[str, Any]]) -> str:
    """Every candidate: what it was chosen by, and the held-out stage, which it was not."""
    lines = []
    for label in dict.fromkeys(run["label"] for run in tuning):
        rows = [flat(run) for run in done(tuning, label)]
        if rows:
            reward = " ".join(f"{row['true reward']:.3f}" for row in rows)
            edited = " ".join(f"{100 * row['held out']:.1f}" for row in rows)
            gamed = statistics.fmean(row[f"last {s}"] for row in rows for s in TRAINED)
            paid = statistics.fmean(
                row[f"gap {s}"] + row[f"true {s}"] for row in rows for s in TRAINED
            )
            lines.append([label, reward, f"{paid:.2f}", f"{100 * gamed:.0f}", edited])
    header = ("candidate", "true reward", "proxy", "gamed, trained stages, %", "ledger, %")
    return markdown(header, lines)
