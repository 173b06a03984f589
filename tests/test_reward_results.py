"""The comparison of reward models on real solutions: the command in tiny, and what it rests on."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from integrations.results import rewards as results
from integrations.results import rewards_page as page
from integrations.reward_models.metrics import evaluate
from integrations.reward_models.model import start_reward_model
from integrations.rules import solution_lm

GSM8K = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_data(folder: Path) -> Path:
    """Rows of GSM8K's form: sums, and four models of which each is wrong now and then."""
    folder.mkdir()
    pairs, texts = [], []
    for i in range(60):
        row: dict[str, Any] = {
            "question": f"What is {i} + 1?",
            "ground_truth": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\nA: {i + 1}",
        }
        for k, model in enumerate(MODELS):
            right = (i >> (k % 2)) % 2 == 0 if k < 2 else (i >> (k % 2)) % 3 != 0
            row[model] = {
                "is_correct": right,
                "solution": f"By {model[:3]}{k}: {i} + 1 = {i + (1 if right else 2)}\nA: {i}",
            }
        pairs.append(row)
        texts.append({"question": f"What is {i} + 2?", "answer": f"It is {i + 2}.\n#### {i + 2}"})
    texts.append({"question": "What is 3 + 1?", "answer": "3 + 1 = 4\n#### 4"})  # a tested one
    write(folder / results.FILES[0], texts)
    write(folder / results.FILES[1], pairs)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The data, and the output of the whole command on it, in tiny."""
    root = tmp_path_factory.mktemp("rewards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        data, output = make_data(root / "data"), root / "out"
        arguments = ["--data", str(data), "--output", str(output), "--smoke"]
        assert results.main(arguments) == 0
        yield data, output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_measures_every_method_seed_and_share(made: tuple[Path, Path]) -> None:
    pages = made[1] / "page"
    rows = rows_of(pages / "runs.csv")
    plan = results.SMOKE
    found = {(r["method"], int(r["seed"]), float(r["share"]), r["part"]) for r in rows}
    wanted = {
        (method, seed, share, part)
        for method in ("bt", "grm", "gr")
        for seed in plan.seeds
        for share in plan.shares
        for part in results.PARTS
    }
    assert found == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["bt_loss"]) > 0
    sizes = {(r["seed"], r["share"]): int(r["trained_on"]) for r in rows}
    assert sizes["0", "0.25"] == round(0.25 * sizes["0", "1.0"])
    chosen = json.loads((pages / "chosen.json").read_text())
    assert set(chosen) == {"bt", "grm", "gr"}
    assert chosen["gr"]["config"] == chosen["bt"]["config"]
    assert chosen["gr"]["ratio"] in (0.03, 0.1, 0.3, 1.0)
    assert chosen["grm"]["config"].items() >= chosen["bt"]["config"].items()
    assert (pages / "accuracy.png").stat().st_size > 10_000


def test_tuning_sees_validation_pairs_of_tuning_seeds_alone(made: tuple[Path, Path]) -> None:
    data, output = made
    tuned = [json.loads(p.read_text()) for p in output.glob("tuning/*/*/result.json")]
    assert len(tuned) == 4 * 3 * len(results.SMOKE.tuning)
    assert {r["seed"] for r in tuned} == set(results.SMOKE.tuning)
    assert {part for r in tuned for part in r["parts"]} == {"validation"}
    told = [json.loads(p.read_text()) for p in output.glob("reported/*/*/result.json")]
    assert {r["seed"] for r in told}.isdisjoint(results.SMOKE.tuning)
    assert {part for r in told for part in r["parts"]} == set(results.PARTS)

    seeds = (*results.SMOKE.seeds, *results.SMOKE.tuning)
    splits = [results.split(data / results.FILES[1], seed) for seed in seeds]
    validation = set(splits[0]["validation"]["prompt"])
    for parts in splits:
        asked = {name: set(part["prompt"]) for name, part in parts.items()}
        assert asked["validation"] == validation
        others = asked["train"] | asked["held_out"] | asked["shift"]
        assert not validation & others
        assert not asked["train"] & (asked["held_out"] | asked["shift"])
    assert splits[0]["train"]["prompt"] != splits[1]["train"]["prompt"]


def test_finished_runs_are_kept_and_a_lost_one_comes_back_the_same(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = made
    arguments = ["--data", str(data), "--output", str(output), "--smoke"]
    lost = sorted(output.glob("reported/gr*/seed1/result.json"))[0]
    before = json.loads(lost.read_text())
    lost.unlink()
    trained = []
    train = results.train

    def count(setting: Any, seed: int, *rest: Any) -> Any:
        trained.append((setting.method, seed))
        return train(setting, seed, *rest)

    monkeypatch.setattr(results, "train", count)
    assert results.main(arguments) == 0
    assert trained == [("gr", 1)]
    assert json.loads(lost.read_text())["parts"] == before["parts"]


def test_no_two_candidates_train_the_same_model(made: tuple[Path, Path]) -> None:
    tuned = [json.loads(p.read_text()) for p in made[1].glob("tuning/*/*/result.json")]
    losses = {r["label"]: r["parts"]["validation"]["bt_loss"] for r in tuned}
    assert len(losses) == len(set(losses.values())) == 12


def test_results_of_other_settings_are_refused(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = made
    path = next(output.glob("tuning/bt*/*/result.json"))
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"fingerprint": "another"}))
    try:
        assert results.main(["--data", str(data), "--output", str(output), "--smoke"]) == 2
    finally:
        path.write_text(text)
    assert "other settings or data" in capsys.readouterr().err


def test_a_failed_run_is_a_row_and_not_the_end(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("rewards are not finite")

    monkeypatch.setattr(results, "train", fail)
    setting = results.candidates("bt", {})[0]
    lm = next((made[1].parent / "cache" / "flatopt").glob("solution-lm-*"))
    source = made[0] / results.FILES[1]
    sources = {"source": source, "output": tmp_path, "lm": lm, "pairs": "x"}
    runs = results.run_all("reported", [(setting, 0, 1.0)], sources, results.SMOKE)
    assert page.flat(runs)[0]["failed"] == "RuntimeError: rewards are not finite"
    assert "(1 failed)" in page.results_table(page.flat(runs), [], "shift")
    assert not list(tmp_path.glob("**/result.json"))  # so that it is tried again


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--smoke"]
    assert results.main(arguments) == 2
    assert "no file train.jsonl" in capsys.readouterr().err


def test_the_choice_is_by_accuracy_then_loss() -> None:
    settings = results.candidates("bt", {})
    numbers = [((0.6, 0.6), 0.7), ((0.5, 0.8), 0.7), ((0.8, 0.5), 0.6), ((0.9, 0.9), 0.1)]
    runs: list[dict[str, Any]] = [
        {
            "label": setting.label,
            "parts": {"validation": {"accuracy": accuracy, "bt_loss": loss}},
        }
        for setting, (accuracies, loss) in zip(settings, numbers, strict=True)
        for accuracy in accuracies
    ]
    assert results.choose(settings, runs).label == settings[3].label
    runs[-1] = {"label": settings[3].label, "failed": "it broke"}
    assert results.choose(settings, runs).label == settings[2].label


def pairs(*rows: tuple[str, str, str, str]) -> Dataset:
    names = ("chosen", "rejected", "chosen_source", "rejected_source")
    return Dataset.from_list([{"prompt": "q\n"} | dict(zip(names, r, strict=True)) for r in rows])


def test_length_and_author_baselines_by_hand(made: tuple[Path, Path]) -> None:
    lm = next((made[1].parent / "cache" / "flatopt").glob("solution-lm-*"))
    train = pairs(
        ("a", "bb", "6b_x", "6b_y"), ("a", "bbb", "6b_x", "6b_y"), ("aa", "b", "6b_y", "6b_x")
    )
    tested = pairs(
        ("a", "bbb", "175b_x", "175b_y"),  # the shorter is right
        ("a", "bb", "175b_y", "175b_x"),  # the shorter is right
        ("aa", "bb", "175b_y", "175b_x"),  # a tie
        ("aaa", "b", "175b_x", "175b_y"),  # the longer is right
    )
    parts = {"train": train, "held_out": tested, "shift": tested.select([0])}
    rows = {
        (r["baseline"], r["part"]): r["accuracy"]
        for r in page.baselines(parts, page.likelihood(lm), 0)
    }
    assert rows["longer wins", "held_out"] == (0 + 0 + 0.5 + 1) / 4
    assert rows["length", "train"] == pytest.approx(2 / 3)  # shorter wins there
    assert rows["length", "held_out"] == (1 + 1 + 0.5 + 0) / 4
    assert rows["length", "shift"] == 1
    assert rows["author", "train"] == pytest.approx(2 / 3)  # x is right twice of three times
    assert rows["author", "held_out"] == 2 / 4


def test_groups_by_hand() -> None:
    train = pairs(("a", "b", "6b_x", "6b_y"))
    tested = pairs(
        ("aaa", "b", "175b_x", "175b_y"),
        ("aaa", "b", "175b_y", "175b_x"),
        ("a", "bbb", "175b_x", "175b_y"),
        ("aa", "bb", "175b_x", "175b_y"),
    )
    margins = torch.tensor([1.0, -1.0, 0.0, 2.0])
    assert page.group_accuracies(tested, train, margins) == {
        "longer": 0.5,
        "shorter": 0.5,
        "usual": pytest.approx((1 + 0.5 + 1) / 3),
        "unusual": 0.0,
    }
    assert page.group_accuracies(tested.select([2]), train, margins[2:3])["longer"] is None


def test_measured_as_by_evaluate(made: tuple[Path, Path]) -> None:
    lm = next((made[1].parent / "cache" / "flatopt").glob("solution-lm-*"))
    parts = results.split(made[0] / results.FILES[1], 0)
    model, tokenizer = start_reward_model(lm, lm_head=False), AutoTokenizer.from_pretrained(lm)
    expected = evaluate(model, tokenizer, {"shift": parts["shift"]})["shift"]
    found = results.measure(model, parts["shift"], parts["train"], lm)
    assert {k: v for k, v in found.items() if k != "groups"} == expected


def test_likelihood_is_the_models_own_loss_on_the_solution(made: tuple[Path, Path]) -> None:
    lm = next((made[1].parent / "cache" / "flatopt").glob("solution-lm-*"))
    tokenizer = AutoTokenizer.from_pretrained(lm)
    model = AutoModelForCausalLM.from_pretrained(lm)
    one = pairs(("It is 12, then 7.", "No: 9", "6b_x", "6b_y"))
    losses = []
    for column in ("chosen", "rejected"):
        ids = tokenizer("q\n" + one[0][column] + "<eos>", return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : len(tokenizer("q\n").input_ids)] = -100
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    found = page.likelihood_margins(one, page.likelihood(lm))
    assert found.tolist() == pytest.approx([losses[1] - losses[0]], abs=1e-5)


def test_paired_differences_match_seeds() -> None:
    def row(method: str, seed: int, accuracy: float, share: float = 1.0) -> dict[str, Any]:
        head = {"method": method, "label": method, "seed": seed, "share": share}
        return head | {"part": "shift", "accuracy": accuracy, "bt_loss": 0.7}

    rows = [row("bt", 0, 0.5), row("bt", 1, 0.6), row("gr", 1, 0.65), row("gr", 0, 0.4)]
    rows += [row("gr", 0, 0.9, 0.25), row("bt", 2, 0.5)]  # no partner
    found = page.differences(rows, "gr", 1.0, "shift", "accuracy")
    assert found == pytest.approx([-0.1, 0.05])
    assert "-0.100 +0.050 | -0.025 +- 0.106" in page.paired_table(rows)


def test_tested_questions_are_no_text_of_the_language_model(made: tuple[Path, Path]) -> None:
    source = made[0] / results.FILES[0]
    rows, dropped = solution_lm.read_questions(source, {"What is 3 + 1?", "What is 9 + 9?"})
    assert dropped == 1
    assert len(rows) == 60
    assert solution_lm.as_text(rows[3]) == "What is 3 + 2?\nIt is 5.\nA: 5"
    with pytest.raises(ValueError, match="too few"):
        solution_lm.build_lm(rows, apart=60)
    with pytest.raises(ValueError, match="multiple of 2"):
        solution_lm.build_lm(rows, width=10, heads=4, apart=2)


def test_the_tokenizer_keeps_texts_and_splits_digits() -> None:
    text = "Zoë paid $1,024.50 — 25% less.\n\n A: 768"
    tokenizer = solution_lm.train_tokenizer([text, "paid paid less less"] * 3, 300)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    for digit in "1024":
        assert tokenizer.convert_tokens_to_ids(digit) in ids
    assert len(tokenizer) <= 300
    with pytest.raises(ValueError, match="at least 258"):
        solution_lm.train_tokenizer([text], 100)


@pytest.mark.skipif(
    not os.environ.get("FLATOPT_DATA"), reason="FLATOPT_DATA is not set to a folder with gsm8k/"
)
def test_splits_and_baselines_of_gsm8k() -> None:
    source = GSM8K / results.FILES[1]
    parts = results.split(source, 0)
    sizes = {name: len(part) for name, part in parts.items()}
    assert 50 < sizes["validation"] < 90
    assert 140 < sizes["train"] < 200
    assert 90 < sizes["held_out"] < 140
    assert 100 < sizes["shift"] < 190
    author = page.author_margins(parts["shift"], parts["train"])
    assert (author > 0).double().mean() > 0.7  # verified solutions are right more often
    asked = {
        json.loads(line)["question"].strip()
        for line in source.read_text(encoding="utf-8").splitlines()
    }
    rows, dropped = solution_lm.read_questions(GSM8K / results.FILES[0], asked)
    assert (len(rows), dropped) == (7473, 0)
