"""A small language model that solves some word problems: the start of RL with rule-based rewards.

Trained from scratch on GSM8K's training texts and on generated word problems, on one CPU core:

    python -m integrations.rules.small_lm --gsm8k train.jsonl --output runs/small-lm

leaves `model/`, `train.jsonl` and `test.jsonl` (questions for RL, neither of them trained on) and
`facts.json`, which is written last. It is for machines with no pretrained model at hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache import fingerprint, write_text
from ..data import Question, check_row, load_questions
from ..worlds import word_problems
from .small_lm_facts import COMPLETION, PROMPT, prompt, sampled
from .small_lm_training import SmallLM, completion, train
from .solution_lm import EOS, texts_fingerprint


def build(
    folder: Path,
    gsm8k: Path,
    gsm8k_test: Path | None = None,
    start: Path | None = None,
    **settings: Any,
) -> dict:
    """Train the model into `folder` and return its facts; `settings` are fields of `SmallLM`.

    `start` is a folder made earlier: training goes on from its model, with a warm-up of its own.
    A finished folder with equal settings is left as it is, and an interrupted training goes on
    from its last checkpoint. The facts: `parameters`, `tokens` trained on, `loss` (nats per token
    of GSM8K rows held apart), `levels` and `all` (of 200 test questions: accuracy and the share in
    the strict format), `gsm8k_test` (of 50 rows, where the file is given), `train_seconds`,
    `sample_seconds`, `steps`, `settings` and their `fingerprint`.

    Raises ValueError where the settings are out of range, where too few rows remain, and where
    `folder` holds a model of other settings.
    """
    rows = load_questions(gsm8k).rows
    made = SmallLM(texts_fingerprint(rows), _mark(start) if start else "", **settings)
    _check(made, rows)
    hard = load_questions(gsm8k_test, limit=50).rows if gsm8k_test else []
    mark = {"settings": dataclasses.asdict(made), "fingerprint": fingerprint(made)}
    path = folder / "facts.json"
    if path.exists():
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("fingerprint") == mark["fingerprint"]:
            return facts
        raise ValueError(
            f"{folder} holds a model of other settings. Give another --output, or delete it."
        )
    begin = time.perf_counter()
    work = folder / f"training-{mark['fingerprint']}"
    model, tokenizer, trained = train(work, rows, made, start / "model" if start else None)
    trained["train_seconds"] = round(time.perf_counter() - begin, 1)
    for split, count in (("train", made.rl_train), ("test", made.rl_test)):
        word_problems.write_rows(folder / f"{split}.jsonl", _fitting(tokenizer, made, split, count))
    begin = time.perf_counter()
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()][:200]
    facts: dict[str, Any] = {**mark, "parameters": model.num_parameters(), **trained}
    facts |= sampled(model, tokenizer, test, made.seed)
    if hard:
        hard_rows = [{"question": r.question, "answer": f"#### {r.reference}"} for r in hard]
        facts["gsm8k_test"] = sampled(model, tokenizer, hard_rows, made.seed)["all"]
    facts["sample_seconds"] = round(time.perf_counter() - begin, 1)
    text = json.dumps(facts, indent=2)
    write_text(path, text)
    shutil.rmtree(work)
    return json.loads(text)  # as a later call reads them


def _mark(start: Path) -> str:
    """The fingerprint of a finished folder."""
    if not (start / "facts.json").exists():
        raise ValueError(f"{start} holds no finished model. Give a folder that has a facts.json.")
    return json.loads((start / "facts.json").read_text(encoding="utf-8"))["fingerprint"]


def _check(made: SmallLM, rows: Sequence[Question]) -> None:
    if made.apart < 1 or made.read < 1 or made.apart + made.read > len(rows):
        raise ValueError(
            f"{len(rows)} rows, {made.read} to read and {made.apart} to hold apart: give more rows."
        )
    if made.width % (2 * made.heads):
        raise ValueError(f"width {made.width} must be a multiple of 2 * heads ({made.heads}).")
    if not 0 <= made.broken <= 1:
        raise ValueError(f"broken={made.broken}: give a share between 0 and 1.")
    for name in ("problems", "rl_train", "rl_test"):
        if getattr(made, name) < 1:
            raise ValueError(f"{name}={getattr(made, name)}: give at least 1.")
    for name in ("levels", "rl_levels"):
        levels = getattr(made, name)
        if not levels or not set(levels) <= set(word_problems.LEVELS):
            known = ", ".join(map(str, word_problems.LEVELS))
            raise ValueError(f"{name}={list(levels)}: give some of {known}.")


def _fitting(tokenizer: Any, made: SmallLM, split: str, count: int) -> list[dict[str, Any]]:
    """`count` rows of a split whose prompt and reply stay within the limits of the RL runs."""
    rows = word_problems.generate(count + count // 10 + 8, made.seed, made.rl_levels, split)
    kept = []
    for row in rows:
        checked = check_row(row, f"generated {split}")
        reply = completion(checked.solution, checked.reference) + EOS
        lengths = [len(tokenizer(text).input_ids) for text in (prompt(checked.question), reply)]
        if lengths[0] <= PROMPT and lengths[1] <= COMPLETION:
            kept.append(row)
    if len(kept) < count:
        raise ValueError(
            f"Only {len(kept)} of {len(rows)} generated questions fit in {PROMPT} + {COMPLETION} "
            "tokens. Give a larger vocabulary, or leave out the highest level."
        )
    return kept[:count]


def _parser() -> argparse.ArgumentParser:
    fields = {field.name: field for field in dataclasses.fields(SmallLM)}
    parser = argparse.ArgumentParser(
        prog="python -m integrations.rules.small_lm", description=__doc__
    )
    parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--gsm8k-test", type=Path, help="its test.jsonl, to measure on 50 rows")
    parser.add_argument("--start", type=Path, help="an earlier --output, to go on from its model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    for name in ("levels", "rl_levels"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, nargs="+", default=fields[name].default)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    for name in ("problems", "rl_train", "rl_test", "vocabulary", "width", "layers", "heads"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=fields[name].default)
    for name in ("batch", "seed", "read", "apart"):
        parser.add_argument("--" + name, type=int, default=fields[name].default)
    for name in ("epochs", "lr", "spread", "broken"):
        parser.add_argument("--" + name, type=float, default=fields[name].default)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the folder and print its facts; exit status 2 with one line on bad input."""
    given = vars(_parser().parse_args(arguments))
    for name in ("levels", "rl_levels"):
        given[name] = tuple(given[name])
    try:
        facts = build(given.pop("output"), **given)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({k: v for k, v in facts.items() if k != "settings"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
