"""How much of the GR term is left when it is taken on a part of the micro-batches.

    python -m benchmarks.fraction --results docs/results

On a small language model that `benchmarks.precision` trains (and keeps in runs/): the cosine of the
penalty that ``fraction=f`` gives with that of all micro-batches, for several windows of 16
micro-batches. Yardstick: the cosine of the penalties of two windows, which share no data. The
penalty is what GradRegOptimizer adds to the gradient.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.precision_models import Batch, Size, trained_model
from flatopt import GradRegOptimizer
from integrations.results.page import fill

Row = dict[str, Any]
HALVES = "halves"
YARDSTICK = "another window"


def penalty(
    model: nn.Module, window: Sequence[Batch], kind: float | str, blocks: bool = False
) -> list[Tensor]:
    """What GR adds to the mean gradient of the window, at ratio 1.

    Args:
        kind: the fraction, or "halves" for batch="halves". blocks: perturb the transformer blocks
            alone; what is added to the embeddings and the head is then 0.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    share = 0.5 if isinstance(kind, str) else kind
    options: dict[str, Any] = {"fraction": kind} if kind != HALVES else {"batch": HALVES}
    if share == 1.0:
        options = {}
    if blocks:
        options["exclude"] = [p for n, p in model.named_parameters() if ".layers." not in f".{n}"]
    gr = GradRegOptimizer(torch.optim.SGD(params, lr=0.0), ratio=1.0, **options)
    losses = [batch.bind(model) for batch in window]
    part = math.ceil(share * len(window))
    first, rest = losses[:part], losses[part:]

    def passes(which: Sequence[Any]) -> None:
        for loss in which:
            (loss() / len(losses)).backward()

    gr.zero_grad()
    passes(first)
    if rest:
        gr.mark_part(part / len(window))
        passes(rest)
    g = [_grad(p).clone() for p in params]
    for number in range(gr.passes):
        with gr.perturbed():
            passes(rest if kind == HALVES and number == 0 else first)
    added = [_grad(p) - a for p, a in zip(params, g, strict=True)]
    gr.zero_grad()
    return added


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Of two lists of tensors as vectors, summed in float64."""

    def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))

    return dot(left, right) / (dot(left, left) * dot(right, right)) ** 0.5


def compare(
    model: nn.Module,
    windows: Sequence[Sequence[Batch]],
    kinds: Sequence[float | str],
    blocks: bool = False,
) -> dict[str, list[float]]:
    """Cosines with the full penalty: per kind one for each window; and between windows."""
    found: dict[str, list[float]] = {str(kind): [] for kind in kinds}
    whole = []
    for window in windows:
        full = penalty(model, window, 1.0, blocks)
        for kind in kinds:
            found[str(kind)].append(cosine(penalty(model, window, kind, blocks), full))
        whole.append(full)
    found[YARDSTICK] = [cosine(a, b) for a, b in combinations(whole, 2)]
    return found


def make_rows(case: Row, found: dict[str, list[float]]) -> list[Row]:
    """One row per kind, with every window's cosine."""
    return [
        {
            **case,
            "kind": kind,
            "cosine": round(statistics.fmean(values), 3),
            "each": [round(v, 3) for v in values],
        }
        for kind, values in found.items()
        if values
    ]


def table(rows: Sequence[Row]) -> str:
    """One line per kind and loss."""
    lines = [
        "| GR term on | loss | tokens per micro-batch | perturbed | cosine with the full one "
        "| least | windows |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        each = row["each"]
        lines.append(
            f"| {_label(row['kind'], row['micro_batches'])} | {row['loss']} "
            f"| {row['tokens']} | {row['perturbed']} | {row['cosine']:.3f} "
            f"| {min(each):.3f} | {len(each)} |"
        )
    return "\n".join(lines)


def _label(kind: str, micro: int) -> str:
    if kind == YARDSTICK:
        return f"{micro} others (yardstick)"
    if kind == HALVES:
        return "each half along the other's gradient"
    return f"{round(float(kind) * micro)} of {micro} micro-batches"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print and write what the options ask for; the rows of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.125, 0.25, 0.5])
    parser.add_argument("--micro", type=int, default=16, help="micro-batches in a window")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=Size.steps, help="of the model's training")
    parser.add_argument("--hidden", type=int, default=Size.hidden)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--losses", nargs="+", default=["cross-entropy", "policy gradient"])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="of a micro-batch")
    parser.add_argument("--perturbed", nargs="+", default=["all", "blocks"])
    parser.add_argument("--cache", type=Path, default=Path("runs/precision"))
    parser.add_argument("--results", type=Path, help="folder of cost.md, which is filled")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = replace(Size(), steps=args.steps, hidden=args.hidden, layers=args.layers)
    kinds: list[float | str] = [*args.fractions, HALVES]
    rows: list[Row] = []
    kept: Row = {"rows": rows}
    for count in args.rows:
        size = replace(size, rows=count)
        subject = trained_model(args.cache, size, args.micro * args.windows)
        kept |= {"parameters": subject.parameters, "text": subject.text}
        for loss in args.losses:
            batches = subject.batches[loss]
            windows = [batches[i :: args.windows] for i in range(args.windows)]
            for perturbed in args.perturbed:
                found = compare(subject.model, windows, kinds, perturbed == "blocks")
                case = {"loss": loss, "tokens": count * size.length, "perturbed": perturbed}
                rows += make_rows({**case, "micro_batches": args.micro}, found)
                print(table(rows[-len(found) :]), flush=True)
    if args.results:
        data = args.results / "cost" / "fraction.json"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(kept, indent=1) + "\n")
        if (args.results / "cost.md").exists():
            fill(args.results / "cost.md", {"fraction": table(rows)})
    return rows


if __name__ == "__main__":
    main()
