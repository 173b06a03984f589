"""Cost of a GR step, as a ratio to the plain step and to two forward-backwards.

    python -m benchmarks.cost --sizes 6M 28M --tokens 8 64 512 --rounds 15
    python -m benchmarks.cost --micro 4 --methods plain "flatopt, fraction 1/4" --tokens 512
    python -m benchmarks.cost --device cuda --dtype bfloat16 --sizes 0.1B 0.4B --tokens 512 4096

All methods run interleaved in one process, on one model and one base optimizer, as in a training
run. On the CPU the CPU time of the process is taken, on a GPU the wall time of a step that has
finished. The ratios are taken within each round and their median and quartiles shown, so that a
machine which is slower for a while slows both sides. Two forward-backwards and one base step are
the least that a method with a second gradient can cost.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_methods import (
    BASES,
    FLOOR,
    METHODS,
    PLAIN,
    SAM,
    SIZES,
    Step,
    build_model,
    make_base,
    make_batches,
    make_step,
)
from integrations.results.page import fill

Row = dict[str, Any]
SPECIAL = ("fraction", "halves", "strength 0", "offload", "flatopt, forward")
DEFAULT = [m for m in METHODS if not any(word in m for word in SPECIAL)]
# what makes two rows the same measurement, of which the later one counts
KEY = ("method", "parameters", "tokens", "micro_batches", "base", "device", "dtype", "threads")


def measure(steps: dict[str, Step], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each method's step, interleaved; two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        order = list(steps) if number % 2 else list(reversed(steps))
        for name in order:
            begin = _now(device)
            steps[name].run()
            if number >= 2:
                seconds[name].append((_now(device) - begin) / steps[name].steps)
    return seconds


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def ratios(values: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratios within the rounds."""
    each = [a / b for a, b in zip(values, to, strict=True)]
    if len(each) < 2:
        return each[0], each[0], each[0]
    low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    return statistics.median(each), low, high


def run_case(
    size: str, tokens: int, methods: Sequence[str], rounds: int, args: argparse.Namespace
) -> list[Row]:
    """The rows of one model size and one number of tokens per micro-batch."""
    model, vocab = build_model(size, getattr(torch, args.dtype), args.device)
    batches = make_batches(vocab, tokens, args.micro, args.device)
    base = make_base(model, args.base)
    steps = {m: make_step(m, model, batches, base, args.base) for m in methods}
    seconds = measure(steps, rounds, args.device)
    rows = []
    for name, values in seconds.items():
        plain, *plain_quartiles = ratios(values, seconds[PLAIN])
        row = {
            "method": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": tokens,
            "micro_batches": args.micro,
            "base": args.base,
            "device": args.device,
            "dtype": args.dtype,
            "threads": args.threads,
            "milliseconds": round(statistics.median(values) * 1e3, 2),
            "to_plain": round(plain, 3),
            "to_plain_quartiles": [round(q, 3) for q in plain_quartiles],
            "rounds": rounds,
            "load": round(os.getloadavg()[0], 1),
            "torch": torch.__version__,
        }
        if FLOOR in seconds:
            floor, *floor_quartiles = ratios(values, seconds[FLOOR])
            row["to_floor"] = round(floor, 3)
            row["to_floor_quartiles"] = [round(q, 3) for q in floor_quartiles]
        rows.append(row)
    return rows


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Both, a new row in the place of an old one of the same measurement."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in KEY)

    found = {key(row): row for row in [*old, *new]}
    return sorted(found.values(), key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    case = tuple(row[name] for name in KEY if name != "method")
    return (*map(str, case[2:]), row["parameters"], row["tokens"], METHODS.index(row["method"]))


# ---- tables and the plot ------------------------------------------------------------------------


def count_name(parameters: int) -> str:
    """5767424 as 5.8M."""
    return f"{parameters / 1e6:.1f}M"


def _range(quartiles: Sequence[float]) -> str:
    return f"{quartiles[0]:.2f}-{quartiles[1]:.2f}"


def table(rows: Sequence[Row]) -> str:
    """All numbers, one line per method and case."""
    lines = [
        "| parameters | tokens | method | ms | x plain | quartiles | x floor | quartiles |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        micro = row["micro_batches"]
        floor = "| - | - |"
        if "to_floor" in row:
            floor = f"| {row['to_floor']:.3f} | {_range(row['to_floor_quartiles'])} |"
        lines.append(
            f"| {count_name(row['parameters'])} "
            f"| {f'{micro} x ' if micro > 1 else ''}{row['tokens']} "
            f"| {row['method']} | {row['milliseconds']:.1f} "
            f"| {row['to_plain']:.2f} | {_range(row['to_plain_quartiles'])} {floor}"
        )
    return "\n".join(lines)


def overhead_table(rows: Sequence[Row]) -> str:
    """What each method adds to the floor, in per cent; one column per case."""
    cases = list(dict.fromkeys((row["parameters"], row["tokens"]) for row in rows))
    names = [m for m in METHODS if m not in (PLAIN, FLOOR) and any(r["method"] == m for r in rows)]
    lines = [
        "| over two forward-backwards + base step | "
        + " | ".join(f"{count_name(p)}, {t} tokens" for p, t in cases)
        + " |",
        "|---" * (len(cases) + 1) + "|",
    ]
    cells = {(r["method"], r["parameters"], r["tokens"]): r.get("to_floor") for r in rows}
    for name in names:
        values = [cells.get((name, *case)) for case in cases]
        shown = ["-" if v is None else f"{(v - 1) * 100:+.1f} %" for v in values]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Overhead over the floor against tokens; a panel per model size, a line per method."""
    from matplotlib.figure import Figure

    sizes = sorted({row["parameters"] for row in rows})
    names = ["flatopt", "flatopt, lean", SAM]
    figure = Figure(figsize=(3.4 * len(sizes), 3.0), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for name in names:
            mine = sorted(
                (r for r in rows if r["parameters"] == size and r["method"] == name),
                key=lambda r: r["tokens"],
            )
            x = [r["tokens"] for r in mine]
            y = [(r["to_floor"] - 1) * 100 for r in mine]
            low, high = ([(r["to_floor_quartiles"][i] - 1) * 100 for r in mine] for i in (0, 1))
            panel.plot(x, y, marker="o", label=name)
            panel.fill_between(x, low, high, alpha=0.2)
        panel.set_xscale("log", base=2)
        panel.set_title(f"{count_name(size)} parameters")
        panel.set_xlabel("tokens per step")
        panel.axhline(0, color="grey", lw=0.7)
    panels[0].set_ylabel("% over two forward-backwards")
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_results(folder: Path, new: Sequence[Row]) -> None:
    """Merge the rows into ``cost/step.json``, then the plot and the tables of ``cost.md``."""
    data = folder / "cost" / "step.json"
    old = json.loads(data.read_text())["rows"] if data.exists() else []
    rows = merge(old, new)
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    usual = [r for r in rows if (r["device"], r["threads"], r["dtype"]) == ("cpu", 1, "float32")]
    single = [r for r in usual if r["micro_batches"] == 1]
    main = [r for r in single if r["base"] == "AdamW"]
    tables = {
        "overhead": overhead_table(main),
        "cost": table(main),
        "micro": table([r for r in usual if r["micro_batches"] > 1]),
        "fused": overhead_table([r for r in single if r["base"] == "AdamW, fused"]),
    }
    gpu = [r for r in rows if r["device"] == "cuda"]
    if gpu:
        tables["gpu"] = table(gpu)
    if any("to_floor" in r for r in main):
        plot(data.parent / "scaling.png", [r for r in main if "to_floor" in r])
    if (folder / "cost.md").exists():
        fill(folder / "cost.md", tables)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print and write what the options ask for; the rows of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["6M"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8], help="per micro-batch")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT)
    parser.add_argument("--base", choices=list(BASES), default="AdamW")
    parser.add_argument("--micro", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, help="folder of cost.md, which is filled")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    torch.set_num_threads(args.threads)
    methods = list(dict.fromkeys([PLAIN, *args.methods]))
    if SAM in methods and find_spec("pytorch_optimizer") is None:
        print("pytorch_optimizer is not installed: its SAM is left out")
        methods.remove(SAM)
    rows: list[Row] = []
    for size in args.sizes:
        for tokens in args.tokens:
            found = run_case(size, tokens, methods, args.rounds, args)
            rows += found
            print(f"\n{size}, {args.rounds} rounds, {args.base}, load {found[0]['load']}")
            print(table(found), flush=True)
            if args.results:
                write_results(args.results, found)
    return rows


if __name__ == "__main__":
    main()
