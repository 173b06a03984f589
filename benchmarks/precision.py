"""How accurate estimates of H g are, by precision, method and step length.

    python -m benchmarks.precision                              # minutes on one core
    python -m benchmarks.precision --json docs/results/precision/table.json --docs docs/numerics.md

Every method estimates the product of the Hessian with the gradient, H g, on a small language model
that this program trains (and keeps in runs/), and on random weights as wide as a 0.36B model's; for
cross-entropy and a policy-gradient loss; on several batches. The reference is the exact product, by
double backward in float32 at the very same weights.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.precision_methods import (
    MODES,
    Problem,
    Tensors,
    alternating,
    both_sides,
    compare,
    even_to_odd,
    exact,
    flatopt,
    forward,
    make_problem,
    slope,
    wide_passes,
    wide_second,
)
from benchmarks.precision_models import Size, Subject, random_model, trained_model
from benchmarks.precision_tables import (
    FLATOPT,
    GRADIENT,
    RELEASED,
    full,
    gauge,
    put_between_markers,
    summary,
)

FORWARD = {
    "float32": (1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3),
    "16 bits": (1e-5, 1e-4, 3e-4, 1e-3, 1e-2),
}
CENTRAL = {
    "float32": (1e-6, 1e-5, 1e-4, 1e-3),
    "16 bits": (1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 1e-3),
}
# one length for the variants that are not tried at all
ONE = {"float32": 1e-5, "16 bits": 2e-4}
# which weights are perturbed: all, or the transformer blocks without embedding and head
MODELS = ("trained", "trained/blocks", "random")
RANDOM_BATCHES = 3  # at most: they differ little, and the model is the large one


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name, radius: what it is called; radius None where it has none or sets its own.
        run: the estimate of H g for a problem and a seed of the random bits, what it is compared
            with, and numbers that it reports.
    """

    name: str
    radius: float | None
    run: Callable[[Problem, int], tuple[Tensors, Tensors, dict[str, Any]]]


def _method(
    name: str, estimate: Callable[[Problem, int], Tensors], radius: float | None = None
) -> Method:
    return Method(name, radius, lambda p, seed: (estimate(p, seed), p.exact, {}))


def _central(name: str, radius: float, rounding: str) -> Method:
    def run(p: Problem, seed: int) -> tuple[Tensors, Tensors, dict[str, Any]]:
        ahead, behind = both_sides(p, p.eps(radius), rounding, seed)
        numbers = {"even_to_odd": even_to_odd(p, ahead, behind)}
        return slope(ahead, behind, p.eps(radius)), p.exact, numbers

    return Method(name, radius, run)


def _flatopt(name: str, wide: bool = False, **options: Any) -> Method:
    def run(p: Problem, seed: int) -> tuple[Tensors, Tensors, dict[str, Any]]:
        torch.manual_seed(seed)
        penalty, stats = flatopt(p, wide, **options)
        numbers = {"used_radius": stats.radius, "realised_step": stats.realised_step}
        return (
            penalty,
            p.exact,
            {name: float(value) for name, value in numbers.items() if value is not None},
        )

    return Method(name, options.get("radius"), run)


def methods(mode: str) -> Iterator[Method]:
    """Every method that makes sense in this mode."""
    kind = "float32" if mode == "float32" else "16 bits"
    one = ONE[kind]
    yield Method(GRADIENT, None, lambda p, seed: (p.g, p.exact_g, {}))
    yield _flatopt(FLATOPT)
    yield _flatopt('flatopt, memory="lean"', memory="lean")
    yield _method(RELEASED, lambda p, seed: forward(p, 1e-3))
    # autocast rounds the weights itself, to nearest
    roundings = ("nearest", "stochastic") if mode == "bfloat16" else ("nearest",)
    for rounding in roundings:
        label = f", {rounding}" if mode == "bfloat16" else ""
        for radius in FORWARD[kind]:
            yield _method(
                "forward" + label,
                lambda p, seed, r=radius, how=rounding: forward(p, p.eps(r), how, seed),
                radius,
            )
        for radius in CENTRAL[kind]:
            yield _central("central" + label, radius, rounding)
    yield _method("alternating halves", lambda p, seed: alternating(p, p.eps(one)), one)
    if mode == "float32":
        return
    yield _method("exact, double backward in this precision", lambda p, seed: exact(p))
    yield _method("central, passes in float32", lambda p, seed: wide_passes(p, p.eps(1e-5)), 1e-5)
    yield _method("forward, only g2 in float32", lambda p, seed: wide_second(p, p.eps(1e-5)), 1e-5)
    if mode == "autocast":
        name = "flatopt, central, autocast off in perturbed()"
        yield _flatopt(name, wide=True, difference="central", radius=1e-5)
        return
    yield _central("central, mirrored", one, "mirrored")

    def again(p: Problem, seed: int) -> tuple[Tensors, Tensors, dict[str, Any]]:
        first, second = (
            slope(*both_sides(p, p.eps(one), "stochastic", s), p.eps(one))
            for s in (seed, seed + 1000)
        )
        return first, second, {}

    yield Method("central, stochastic, against other random bits", one, again)


def measure(
    subject: Subject, modes: Sequence[str], blocks: bool, only: str = ""
) -> list[dict[str, Any]]:
    """One row per loss, mode and method whose name contains `only`, with all batches' numbers."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for loss, batches in subject.batches.items():
        for seed, batch in enumerate(batches):
            for mode in modes:
                problem = make_problem(subject.model, batch, mode, blocks)
                for method in methods(mode):
                    if only not in method.name:
                        continue
                    estimate, reference, numbers = method.run(problem, seed)
                    cosine, error = compare(estimate, reference)
                    row = rows.setdefault(
                        (loss, mode, method.name, str(method.radius)),
                        {
                            "model": subject.name,
                            "perturbed": "blocks" if blocks else "all",
                            "loss": loss,
                            "mode": mode,
                            "method": method.name,
                            "radius": method.radius,
                            "cosine": [],
                            "error": [],
                        },
                    )
                    row["cosine"].append(cosine)
                    row["error"].append(error)
                    for key, value in numbers.items():
                        row.setdefault(key, []).append(value)
            print(f"{loss}: batch {seed + 1} of {len(batches)} done", flush=True)
    return list(rows.values())


def merged(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], only: str
) -> list[dict[str, Any]]:
    """The new rows in the place of old ones of the same models, modes and methods; in order."""

    def group(row: dict[str, Any]) -> tuple[str, ...]:
        return row["model"], row["perturbed"], row["mode"]

    groups = {group(row) for row in new}
    kept = [row for row in old if only not in row["method"] or group(row) not in groups]
    labels = {mode: [(m.name, m.radius) for m in methods(mode)] for mode in MODES}

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        name = row["model"] + ("/blocks" if row["perturbed"] == "blocks" else "")
        label = (row["method"], row["radius"])
        losses = ("cross-entropy", "policy gradient")
        return (
            MODELS.index(name),
            losses.index(row["loss"]),
            MODES.index(row["mode"]),
            labels[row["mode"]].index(label),
        )

    return sorted([*kept, *new], key=place)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write what the options ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=Path("runs/precision"))
    parser.add_argument("--size", type=json.loads, default={}, help="sizes to change, as JSON")
    parser.add_argument("--json", type=Path, help="write every number as JSON, and as tables")
    parser.add_argument(
        "--only",
        default="",
        help="measure only methods with this in their name; --json's file has the others",
    )
    parser.add_argument("--docs", type=Path, help="put the short tables into this page")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    size, rows = replace(Size(), **args.size), []
    meta: dict[str, Any] = {"torch": torch.__version__, "size": vars(size), "models": {}}
    old = {**meta, "rows": []}
    if args.only and args.json is not None and args.json.exists():
        old = json.loads(args.json.read_text())
    if any(old[key] != meta[key] for key in ("torch", "size")):
        raise ValueError(f"{args.json} was measured with other sizes or another torch")
    meta["models"] = old["models"]
    for name in args.models:
        kind, _, blocks = name.partition("/")
        subject = (
            trained_model(args.cache, size, args.batches)
            if kind == "trained"
            else random_model(size, min(args.batches, RANDOM_BATCHES))
        )
        about = {"parameters": subject.parameters, "text": subject.text}
        if meta["models"].setdefault(kind, about) != about:
            raise ValueError(f"{args.json} was measured on {meta['models'][kind]}, not {about}")
        print(f"{name}: {subject.parameters / 1e6:.1f}M parameters, {subject.text}", flush=True)
        rows += measure(subject, args.modes, bool(blocks), args.only)
    rows = merged(old["rows"], rows, args.only) if args.only else rows
    tables = {"summary": summary(rows), "gauge": gauge(rows)}
    print("\n".join(tables.values()))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**meta, "rows": rows}, indent=1))
        args.json.with_suffix(".md").write_text(full(rows))
    if args.docs:
        for name, text in tables.items():
            put_between_markers(args.docs, name, text)


if __name__ == "__main__":
    main()
