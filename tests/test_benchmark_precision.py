"""benchmarks.precision on models that take a second: the estimators, the losses, the tables."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import precision, precision_models
from benchmarks.precision_methods import (
    alternating,
    both_sides,
    compare,
    even_to_odd,
    exact,
    forward,
    make_problem,
    points,
    rounded,
    slope,
    wide_passes,
)
from benchmarks.precision_models import Batch, Size, random_model, trained_model
from benchmarks.precision_tables import FLATOPT, GRADIENT, put_between_markers

TINY = {
    "hidden": 64,
    "layers": 1,
    "vocab": 300,
    "steps": 3,
    "train_rows": 2,
    "length": 12,
    "rows": 4,
    "prompt": 4,
    "wide_hidden": 64,
    "wide_layers": 1,
    "wide_length": 12,
}


@pytest.fixture(autouse=True)
def generated_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATOPT_DATA", raising=False)


@pytest.fixture(scope="module")
def subject() -> precision_models.Subject:
    return random_model(Size(**TINY), batches=1)


def test_stochastic_rounding_goes_to_a_neighbour_and_is_right_on_average() -> None:
    value = torch.full((100_000,), 1.0 + 2**-9)  # a quarter of the way from 1 to 1 + 2^-7
    moved = rounded(value, torch.Generator().manual_seed(0)).float()
    assert set(moved.tolist()) == {1.0, 1.0 + 2**-7}
    share = (moved > 1).float().mean().item()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(value))
    assert rounded(value, None).float().unique().tolist() == [1.0]


def test_mirrored_points_are_shifted_by_opposite_amounts() -> None:
    generator = torch.Generator().manual_seed(0)
    p = 1.3 + 0.4 * torch.rand(1000, generator=generator)  # away from powers of 2
    p, g = p.bfloat16(), torch.randn(1000, generator=generator)
    ahead, behind = (t[0].float() - p.float() for t in points([p], [g], [1e-3, -1e-3], "mirrored"))
    assert ahead.abs().max() > 0
    assert torch.equal(ahead, -behind)
    first, second = (
        t[0].float() - p.float() for t in points([p], [g], [1e-3, -1e-3], "stochastic")
    )
    assert not torch.equal(first, -second)


@pytest.mark.parametrize("loss", ["cross-entropy", "policy gradient"])
def test_every_estimate_tends_to_the_exact_product_in_float32(
    subject: precision_models.Subject, loss: str
) -> None:
    p = make_problem(subject.model, subject.batches[loss][0], "float32")
    assert compare(p.g, p.exact_g) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert compare(exact(p), p.exact)[1] < 1e-6
    eps = p.eps(1e-4)
    ahead, behind = both_sides(p, eps)
    estimates = {
        "forward": forward(p, eps),
        "central": slope(ahead, behind, eps),
        "alternating": alternating(p, eps),
        "wide": wide_passes(p, eps),
    }
    errors = {name: compare(estimate, p.exact)[1] for name, estimate in estimates.items()}
    assert errors["central"] < 0.01
    assert errors["wide"] == pytest.approx(errors["central"])
    assert errors["central"] < errors["forward"] < 0.2
    assert errors["alternating"] < 0.2
    # the even part is what the forward difference has and the central one has not
    assert even_to_odd(p, ahead, behind) == pytest.approx(errors["forward"], rel=0.2)
    ten_times = compare(forward(p, 10 * eps), p.exact)[1]
    assert 5 < ten_times / errors["forward"] < 20  # first order


def test_only_the_blocks_are_perturbed_where_asked(subject: precision_models.Subject) -> None:
    batch = subject.batches["cross-entropy"][0]
    every, blocks = (make_problem(subject.model, batch, "bfloat16", b) for b in (False, True))
    assert len(every.params) - len(blocks.params) == 3  # embedding, last norm, head
    assert all(p.dtype == torch.bfloat16 for p in blocks.params)


def test_the_precision_of_a_mode_shows_in_its_gradient(subject: precision_models.Subject) -> None:
    batch = subject.batches["cross-entropy"][0]
    for mode in ("autocast", "bfloat16"):
        p = make_problem(subject.model, batch, mode)
        assert 1e-4 < compare(p.g, p.exact_g)[1] < 0.2


def test_the_halves_of_a_batch_average_to_the_whole(subject: precision_models.Subject) -> None:
    for batch in (b[0] for b in subject.batches.values()):
        whole, first, second = (b.bind(subject.model)() for b in (batch, *batch.halves()))
        assert torch.allclose(whole, (first + second) / 2, atol=1e-6)


def test_the_policy_gradient_is_the_score_functions_at_theta(
    subject: precision_models.Subject,
) -> None:
    model, batch = subject.model, subject.batches["policy gradient"][0]
    assert batch.advantages is not None
    loss = batch.bind(model)()
    head = model.lm_head.weight
    (found,) = torch.autograd.grad(loss, [head])
    rows = [
        Batch(batch.tokens[i : i + 1, :end], end - 1).bind(model)() * batch.advantages[i]
        for i in range(len(batch.tokens))
        for end in range(batch.prompt + 1, batch.tokens.shape[1] + 1)
    ]  # -advantage * log-prob of one token each
    (expected,) = torch.autograd.grad(torch.stack(rows).mean(), [head])
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.norm() > 1e-4


def test_the_trained_model_is_read_back_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Size(**TINY)
    first = trained_model(tmp_path, size, batches=1)

    def refuse(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(precision_models, "_train", refuse)
    second = trained_model(tmp_path, size, batches=1)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(AssertionError, match="trained again"):
        trained_model(tmp_path, Size(**{**TINY, "steps": 4}), batches=1)


def test_the_command_writes_numbers_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, numbers = tmp_path / "page.md", tmp_path / "data" / "table.json"
    parts = ("summary", "gauge")
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- end -->\nafter\n" for name in parts))
    options = {"cache": tmp_path / "model", "json": numbers, "docs": page, "size": json.dumps(TINY)}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    precision.main([*flags, "--batches", "1", "--models", "trained/blocks", "random"])
    text = page.read_text()
    printed = capsys.readouterr().out
    for name, chunk in zip(parts, text.split("after\n")[:-1], strict=True):
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->\n"
        assert chunk.startswith(begin)
        assert chunk.endswith("|" + end)
        assert chunk.removeprefix(begin).removesuffix(end) in printed
    assert "old" not in text
    table = numbers.with_suffix(".md").read_text()
    assert table.count("released code") == 4 * 3 // 2
    data = json.loads(numbers.read_text())
    assert data["models"]["trained"]["text"] == "generated sums"
    found = {(r["model"], r["perturbed"], r["loss"], r["mode"]) for r in data["rows"]}
    assert len(found) == 2 * 2 * 3
    for row in data["rows"]:
        assert len(row["cosine"]) == len(row["error"]) == 1
        assert all(math.isfinite(v) for v in row["cosine"] + row["error"]), row
        if row["method"] == GRADIENT and row["mode"] == "float32":
            assert row["error"] == [0.0]
        if row["method"] == FLATOPT:
            assert row["cosine"][0] > (0.99 if row["mode"] == "float32" else 0.5), row


def test_some_methods_can_be_measured_again_alone(tmp_path: Path) -> None:
    numbers = tmp_path / "table.json"
    options = {"json": numbers, "size": json.dumps(TINY), "models": "random", "modes": "float32"}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    precision.main([*flags, "--batches", "1"])
    first = json.loads(numbers.read_text())
    spoilt = json.loads(numbers.read_text())
    for row in spoilt["rows"]:
        row["error"] = [7.0]
    numbers.write_text(json.dumps(spoilt))
    precision.main([*flags, "--batches", "1", "--only", "flatopt"])
    for before, after in zip(first["rows"], json.loads(numbers.read_text())["rows"], strict=True):
        again = "flatopt" in before["method"]
        assert after == {**before, "error": before["error"] if again else [7.0]}
    options["size"] = json.dumps({**TINY, "prompt": 5})
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with pytest.raises(ValueError, match="other sizes or another torch"):
        precision.main([*flags, "--batches", "1", "--only", "flatopt"])


def test_a_page_without_the_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- precision -->\n")
    with pytest.raises(ValueError, match="end"):
        put_between_markers(page, "precision", "x")
    with pytest.raises(ValueError, match="exactly once"):
        put_between_markers(page, "other", "x")
    assert page.read_text() == "<!-- precision -->\n"
