"""The benchmarks of cost and memory: that they measure what they say, on tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from benchmarks import cost, fraction, memory
from benchmarks.cost_methods import (
    FLATOPT,
    FLOOR,
    METHODS,
    PLAIN,
    SAM,
    Step,
    build_model,
    make_base,
    make_batches,
    make_step,
)
from benchmarks.precision_models import Batch
from flatopt import hessian_product

MICRO = 4
# forward passes of one step on 4 micro-batches
PASSES = {
    PLAIN: 4,
    FLOOR: 8,
    "flatopt": 8,
    "flatopt, lean": 8,
    "flatopt, lean, forward": 8,
    "flatopt, offload": 8,
    "flatopt, forward": 8,
    "flatopt, central": 12,
    "flatopt, exact": 8,
    "flatopt, every=4": 5,  # 8 + 4 + 4 + 4 in four steps
    "flatopt, strength 0": 4,
    "flatopt, fraction 1/4": 5,
    "flatopt, fraction 1/4, lean": 5,
    "flatopt, halves": 8,
    SAM: 8,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_its_passes_and_steps_the_model(method: str) -> None:
    if method == SAM:
        pytest.importorskip("pytorch_optimizer")
    model, vocab = build_model("tiny")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    step = make_step(method, model, make_batches(vocab, 8, MICRO), make_base(model, "AdamW"))
    before = [p.detach().clone() for p in model.parameters()]
    step.run()
    assert len(calls) == PASSES[method] * step.steps
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)


def test_a_part_of_a_single_micro_batch_is_refused() -> None:
    model, vocab = build_model("tiny")
    with pytest.raises(ValueError, match="at least two"):
        make_step(
            "flatopt, halves", model, make_batches(vocab, 8, 1), make_base(model, "SGD"), "SGD"
        )


# ---- time ---------------------------------------------------------------------------------------


def test_methods_are_timed_in_turn_and_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])

    def taking(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    steps = {"a": Step(taking("a", 1.0)), "b": Step(taking("b", 6.0), steps=4)}
    assert cost.measure(steps, rounds=3) == {"a": [1.0] * 3, "b": [1.5] * 3}
    assert order == ["b", "a", "a", "b"] * 2 + ["b", "a"]


def test_ratios_are_taken_within_rounds() -> None:
    # a machine twice as slow in the second round changes nothing
    assert cost.ratios([3.0, 6.0, 3.0], [2.0, 4.0, 2.0]) == (1.5, 1.5, 1.5)
    assert cost.ratios([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == (2.0, 1.5, 2.5)


def test_the_command_writes_rows_tables_and_the_plot(tmp_path: Path) -> None:
    page = tmp_path / "cost.md"
    page.write_text("<!-- overhead -->\n<!-- end -->\nkept\n<!-- cost -->\n<!-- end -->\n")
    flags = ["--sizes", "tiny", "--rounds", "2", "--results", str(tmp_path), "--methods", FLOOR]
    for tokens in ("8", "4", "8"):
        rows = cost.main([*flags, "flatopt", "--tokens", tokens])
    written = json.loads((tmp_path / "cost" / "step.json").read_text())["rows"]
    assert [(r["tokens"], r["method"]) for r in written] == [
        (tokens, method) for tokens in (4, 8) for method in (PLAIN, FLOOR, "flatopt")
    ]
    assert written[3:] == rows  # measured again: the later rows count
    assert [r["to_floor"] for r in written if r["method"] == FLOOR] == [1.0, 1.0]
    over = (rows[2]["to_floor"] - 1) * 100
    text = page.read_text()
    assert f"| {over:+.1f} % |" in text
    assert "kept" in text
    assert text.count("| flatopt |") == 3
    assert (tmp_path / "cost" / "scaling.png").stat().st_size > 1000


# ---- memory -------------------------------------------------------------------------------------


def test_peak_counts_what_is_alive_and_nothing_that_was_freed() -> None:
    def prepare() -> Any:
        kept = torch.empty(1000)  # 4,000 bytes
        gone = torch.empty(70_000)
        del gone

        def step() -> None:
            a = torch.empty(3000)
            b = torch.empty(500)
            del a
            torch.empty(2000).add_(kept[:2000].sum())
            del b

        return step

    assert memory.peak_bytes(prepare) == 4 * (1000 + 3000 + 500)


def test_peak_sees_temporaries_inside_an_operation() -> None:
    def prepare() -> Any:
        x = [torch.ones(1000), torch.ones(3000)]
        return lambda: torch._foreach_sqrt(x)

    assert memory.peak_bytes(prepare) == 4 * 2 * (1000 + 3000)


def extra(method: str, case: str = "weights dominate") -> float:
    rows = memory.run_case("1M", case, "SGD", [method], "cpu")
    return rows[0]["extra_bytes"] / rows[0]["trained_bytes"]


def test_strength_zero_allocates_nothing() -> None:
    assert extra("flatopt, strength 0") == 0.0


@pytest.mark.parametrize(
    ("method", "most"),
    [("flatopt", 2.001), ("flatopt, lean", 1.05)],  # scalars and samples come on top
)
@pytest.mark.parametrize("case", ["weights dominate", "half frozen"])
def test_peak_memory_stays_within_the_promise(method: str, most: float, case: str) -> None:
    assert 0.5 < extra(method, case) <= most


def test_about_half_of_the_parameters_are_frozen() -> None:
    row = memory.run_case("1M", "half frozen", "SGD", [PLAIN], "cpu")[0]
    assert 0.5 <= row["trained_bytes"] / row["parameter_bytes"] < 0.55
    assert row["extra_bytes"] == 0  # the plain step beside itself, to the byte


# ---- the part of the micro-batches --------------------------------------------------------------


@pytest.fixture
def window() -> tuple[nn.Module, list[Batch]]:
    model, vocab = build_model("tiny")
    return model.eval(), [Batch(tokens) for tokens in make_batches(vocab, 64, MICRO, length=16)]


def test_the_penalty_is_along_the_exact_product(window: tuple[nn.Module, list[Batch]]) -> None:
    model, batches = window
    params = list(model.parameters())
    losses = [batch.bind(model) for batch in batches]
    loss = torch.stack([loss() for loss in losses]).mean()
    g = list(torch.autograd.grad(loss, params))

    def closure() -> None:
        model.zero_grad()
        torch.stack([loss() for loss in losses]).mean().backward()

    exact = hessian_product(closure, params, g)
    assert fraction.cosine(fraction.penalty(model, batches, 1.0), exact) > 0.99


def test_equal_micro_batches_need_only_one_of_them(window: tuple[nn.Module, list[Batch]]) -> None:
    model, (one, *_) = window
    found = fraction.compare(model, [[one] * MICRO], [0.25, fraction.HALVES])
    assert min(found["0.25"] + found[fraction.HALVES]) > 0.99


def test_other_micro_batches_give_another_penalty(window: tuple[nn.Module, list[Batch]]) -> None:
    model, batches = window
    found = fraction.compare(model, [batches, batches[:2]], [0.25, 0.5])
    assert max(found["0.25"]) < 0.99
    assert len(found[fraction.YARDSTICK]) == 1
    case = {"loss": "cross-entropy", "tokens": 64, "perturbed": "all", "micro_batches": MICRO}
    rows = fraction.make_rows(case, found)
    assert [row["kind"] for row in rows] == ["0.25", "0.5", fraction.YARDSTICK]
    assert "| 1 of 4 micro-batches | cross-entropy | 64 | all |" in fraction.table(rows)


def test_blocks_alone_leave_embeddings_and_head_unpenalised(
    window: tuple[nn.Module, list[Batch]],
) -> None:
    model, batches = window
    added = fraction.penalty(model, batches, 1.0, blocks=True)
    names = [name for name, _ in model.named_parameters()]
    touched = {name for name, t in zip(names, added, strict=True) if t.any()}
    assert touched == {name for name in names if ".layers." in name}


def test_every_method_is_in_the_counts() -> None:
    assert set(PASSES) == set(METHODS) == {PLAIN, FLOOR, *FLATOPT, SAM}
