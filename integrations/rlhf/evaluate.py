"""The last stage: each run's policy is measured, and the runs are compared in one table."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arm import Arm
from ..cache import fingerprint, write_text
from ..progress import Say, silent

FILE = "evaluation.json"
COLUMNS = (
    "world", "method", "trainer", "seed", "eval_seed", "gold", "gold_error", "gold_sft",
    "win_rate", "win_low", "win_high", "win_by", "kl", "proxy", "accuracy", "bt_loss",
    "accuracy_sft", "bt_loss_sft",
    "length", "prompts", "samples",
)  # fmt: skip


def key_of(arm: Arm, settings: dict[str, Any]) -> str:
    """What an evaluation belongs to: the run's settings, and those of the evaluation."""
    return fingerprint({"arm": arm.plain(), "evaluation": settings})


def evaluated(arm: Arm, folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the run has been evaluated with these settings."""
    file = folder / FILE
    return file.exists() and json.loads(file.read_text())["key"] == key_of(arm, settings)


def evaluate_arm(arm: Arm, folder: Path, settings: dict[str, Any], say: Say = silent) -> None:
    """Write `evaluation.json` of a finished run; `settings`: prompts, samples, seed.

    With the same settings the numbers are the same, whenever and how often it is run.
    """
    import torch

    from ..evaluate import evaluate_policy
    from ..loop import quiet

    quiet()
    torch.set_num_threads(arm.threads)
    name = f"evaluate {arm.name}"
    if arm.world is not None:
        from .world_stages import policy_folder, world_bench

        bench, start = world_bench(arm.world, **settings), str(policy_folder(arm.world.reward))
    else:
        from .task import build_bench

        assert arm.rlhf is not None
        bench, start = build_bench(arm.rlhf, arm.config, **settings), arm.rlhf["policy"]
    from .pairs import load_policy
    from .task import device_of

    device = "cpu" if arm.world is not None else device_of(arm.config)
    sft, policy = (
        load_policy(place, bench.tokenizer, device) for place in (start, str(folder / "model"))
    )
    result = {"key": key_of(arm, settings), "method": arm.method, "seed": arm.seed}
    result |= {"trainer": arm.trainer or "grpo"}
    if arm.world is not None:
        result |= {"world": arm.world.kind, "world_seed": arm.world.reward.seed}
    result |= evaluate_policy(policy, sft, bench, say, name)
    write_text(folder / FILE, json.dumps(result, indent=2, allow_nan=False))


def read_results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The evaluations that are there."""
    files = [folder / FILE for folder in folders]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _world(row: dict[str, Any]) -> str:
    return f"{row['world']}{row['world_seed']}" if "world" in row else "-"


def _method(row: dict[str, Any]) -> str:
    return row["method"] + (" (rloo)" if row["trainer"] == "rloo" else "")


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        named = row | {"world": _world(row)}
        writer.writerow([named.get(name) for name in COLUMNS])
    return text.getvalue()


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def cells(row: dict[str, Any]) -> list[str]:
    """A run as the cells of a table, in the order of `HEAD`."""
    gold = _number(row["gold"])
    if row["gold_error"] is not None:
        gold += f" ± {_number(row['gold_error'])}"
    interval = f"{_number(row['win_rate'])} [{_number(row['win_low'])}, {_number(row['win_high'])}]"
    if row["win_by"] != "gold":
        interval += f" by the {row['win_by']}"
    return [
        _world(row),
        _method(row),
        str(row["seed"]),
        _number(row["gold_sft"]),
        gold,
        interval,
        _number(row["kl"]),
        _number(row["proxy"]),
        f"{_number(row['accuracy_sft'])} → {_number(row['accuracy'])}",
        f"{_number(row['bt_loss_sft'])} → {_number(row['bt_loss'])}",
    ]


AVERAGED = ("gold", "win_rate", "kl", "proxy", "accuracy", "bt_loss")
HEAD = (
    "world", "method", "seed", "gold of SFT", "gold ± s.e.", "wins over SFT [95 %]",
    "KL (nats)", "proxy", "reward accuracy", "BT loss",
)  # fmt: skip
NOTE = """\
Held-out prompts; the policy's own samples at temperature 1. Wins: share of pairs with the SFT
policy in which the gold reward is higher, ties half (where no gold reward is known the table says
by what). KL to the SFT policy, per completion. Reward accuracy and Bradley-Terry loss: the proxy
on pairs of completions of one prompt, labels by gold, on samples of the SFT policy → of the policy.
"""


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds of each kind of world, method and trainer: runs, and means of the numbers."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (str(row.get("world", "-")), _method(row))
        kinds.setdefault(key, []).append(row)
    out = []
    for (world, method), mine in kinds.items():
        line: dict[str, Any] = {"world": world, "method": method, "runs": len(mine)}
        for name in AVERAGED:
            known = [row[name] for row in mine if row[name] is not None]
            line[name] = statistics.fmean(known) if known else None
        out.append(line)
    return out


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of all runs."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + f"\n\n{NOTE}"


def write_tables(output: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """`evaluation.csv` and `evaluation.md` over all evaluated runs; the rows."""
    rows = read_results(folders)
    if rows:
        write_text(output / "evaluation.csv", as_csv(rows))
        write_text(output / "evaluation.md", as_markdown(rows))
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The means over runs as a table on the screen, narrow enough for 80 columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out prompts, means over runs; wins over the SFT policy")
    for title in ("world", "method", "runs", "gold", "wins", "KL", "proxy", "accuracy", "BT loss"):
        table.add_column(title, justify="left" if title in ("world", "method") else "right")
    for row in means(rows):
        numbers = [_number(row[name]) for name in AVERAGED]
        table.add_row(row["world"], row["method"], str(row["runs"]), *numbers)
    Console().print(table)
