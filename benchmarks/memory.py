"""Extra peak memory of a GR step over the base's step, in units of the parameters' bytes.

    python -m benchmarks.memory --results docs/results

On the CPU every allocation and release of torch's allocator is counted, by torch.profiler
(``profile_memory``), from before the model is built to the end of the measured step: exact, also
for temporary tensors inside an operation, and repeatable to the byte. On a GPU the allocator's own
peak is taken. Two steps come before the measured one, so the base's state and whatever a method
keeps between steps are there.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.cost_methods import (
    FLATOPT,
    METHODS,
    PLAIN,
    SAM,
    SIZES,
    build_model,
    make_base,
    make_batches,
    make_step,
)
from integrations.results.page import fill

Row = dict[str, Any]
MARK = "measured step"
BASES = ("AdamW", "SGD")
WITHOUT = "flatopt, every=4"  # a GR step of it is a step of "flatopt"
# Case: tokens per micro-batch, micro-batches, dtype, share of the layers that is frozen
CASES: dict[str, tuple[int, int, str, bool]] = {
    "weights dominate": (8, 4, "float32", False),
    "long activations": (256, 4, "float32", False),
    "half frozen": (8, 4, "float32", True),
    "bf16 weights": (8, 1, "bfloat16", False),
}
# Buffers beside weights, gradients and the base's state in the algorithm as published with the
# paper, counted in its code and not run here: a copy of g1, a copy of theta, g2, and the list of
# penalty gradients; with 16-bit weights the latter two are float32.
PUBLISHED = {"float32": 4.0, "bfloat16": 6.0}


def peak_bytes(prepare: Callable[[], Callable[[], None]], device: str = "cpu") -> int:
    """Most bytes alive at once during the step that `prepare` makes, all counted that it made.

    Args:
        prepare: builds everything, runs whatever must come before, and returns the step.
    """
    gc.collect()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        step = prepare()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = prepare()
        with record_function(MARK):
            step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return _peak(events)


def _peak(events: Sequence[dict[str, Any]]) -> int:
    (mark,) = (e for e in events if e.get("name") == MARK and "dur" in e)
    begin, end = mark["ts"], mark["ts"] + mark["dur"]
    changes = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    alive = peak = 0
    for event in sorted(changes, key=lambda e: e["args"]["Ev Idx"]):
        if event["ts"] > end:
            break
        if event["ts"] >= begin:
            peak = max(peak, alive)  # what was alive when the step began counts
        alive += event["args"]["Bytes"]
        if event["ts"] >= begin:
            peak = max(peak, alive)
    return peak


def step_peak(
    method: str, size: str, case: str, base: str, device: str = "cpu"
) -> tuple[int, int, int]:
    """Peak of one step in bytes, and the bytes of all and of the trained parameters."""
    tokens, micro, dtype, frozen = CASES[case]
    counts: list[int] = []

    def prepare() -> Callable[[], None]:
        model, vocab = build_model(size, getattr(torch, dtype), device)
        if frozen:
            _freeze_half(model)
        params = list(model.parameters())
        counts.append(sum(p.nbytes for p in params))
        counts.append(sum(p.nbytes for p in params if p.requires_grad))
        optimizer = make_base(model, base)
        batches = make_batches(vocab, tokens, micro, device, length=tokens)
        step = make_step(method, model, batches, optimizer, base)
        for _ in range(2):
            step.run()
        return step.run

    peak = peak_bytes(prepare, device)
    return peak, counts[0], counts[1]


def _freeze_half(model: torch.nn.Module) -> None:
    """Freeze tensors, biggest first, wherever that keeps the frozen half the smaller one."""
    params = sorted(model.parameters(), key=lambda p: -p.numel())
    limit, frozen = sum(p.numel() for p in params) / 2, 0
    for p in params:
        if frozen + p.numel() <= limit:
            p.requires_grad_(False)
            frozen += p.numel()


def run_case(size: str, case: str, base: str, methods: Sequence[str], device: str) -> list[Row]:
    """The rows of one case: every method's peak less that of the plain step."""
    plain, total, trained = step_peak(PLAIN, size, case, base, device)
    rows = []
    for method in methods:
        if CASES[case][1] == 1 and method in FLATOPT and FLATOPT[method].part < 1.0:
            continue  # one micro-batch has no parts
        peak = step_peak(method, size, case, base, device)[0]
        rows.append(
            {
                "method": method,
                "case": case,
                "base": base,
                "device": device,
                "parameter_bytes": total,
                "trained_bytes": trained,
                "plain_peak": plain,
                "extra_bytes": peak - plain,
                "extra": round((peak - plain) / trained, 3),
                "torch": torch.__version__,
            }
        )
    return rows


def table(rows: Sequence[Row], base: str) -> str:
    """One line per method, one column per case."""
    mine = [r for r in rows if r["base"] == base]
    cases = [c for c in CASES if any(r["case"] == c for r in mine)]
    cells = {(r["method"], r["case"]): f"{r['extra']:.2f}" for r in mine}
    lines = [f"| {base} | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for method in METHODS:
        if any(r["method"] == method for r in mine):
            found = [cells.get((method, case), "-") for case in cases]
            lines.append(f"| {method} | " + " | ".join(found) + " |")
    published = [f"{PUBLISHED[CASES[case][2]]:.0f}" for case in cases]
    lines.append("| published GR algorithm (buffers counted) | " + " | ".join(published) + " |")
    return "\n".join(lines)


def write_results(folder: Path, rows: Sequence[Row]) -> None:
    """``memory/peak.json`` and the tables of ``memory.md``."""
    data = folder / "memory" / "peak.json"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if (folder / "memory.md").exists():
        bases = list(dict.fromkeys(r["base"] for r in rows))
        fill(folder / "memory.md", {base.lower(): table(rows, base) for base in bases})


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print and write what the options ask for; the rows of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    everything = [m for m in (*FLATOPT, SAM) if m != WITHOUT]
    parser.add_argument("--size", choices=list(SIZES), default="6M")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=everything)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--results", type=Path, help="folder of memory.md, which is filled")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    rows: list[Row] = []
    for base in args.bases:
        for case in args.cases:
            rows += run_case(args.size, case, base, args.methods, args.device)
        print("\n" + table(rows, base), flush=True)
    if args.results:
        write_results(args.results, rows)
    return rows


if __name__ == "__main__":
    main()
