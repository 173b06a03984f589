"""A row of the gaming matrix: what a policy does on held-out prompts of every stage.

Each completion is one sample on one prompt, at the temperature of training. Prompts are drawn with
the evaluation's seed alone, so that all policies of a comparison answer the same ones.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..cache import write_text
from ..evaluate import wilson
from ..tasks import generate
from ..worlds.ladder.episode import Episode
from ..worlds.ladder.scores import STAGES, Score, score
from .config import LadderConfig
from .form import Form

Said = Callable[[int, int, str], None]  # done, total, what


def _completions(
    model: Any, tokenizer: Any, form: Form, prompts: Sequence[Any], seed: int, sampling: Any
) -> list[str]:
    """One completion of each prompt, in fixed batches with a seed each."""
    texts: list[str] = []
    for start in range(0, len(prompts), form.batch):
        part = prompts[start : start + form.batch]
        ids = generate(model, tokenizer, part, seed + start, form.max_completion, **sampling)
        texts += form.texts(tokenizer.batch_decode(ids, skip_special_tokens=True), ids)
    return texts


def _cell(scores: Sequence[Score], distinct: int) -> dict[str, Any]:
    """Counts and means over completions of one kind; `distinct`: different prompts among them."""
    n = len(scores)
    mean = {k: sum(getattr(s, k) for s in scores) / n for k in ("proxy", "true")}
    counts = {k: sum(getattr(s, k) for s in scores) for k in ("gamed", "undetected", "malformed")}
    return {"n": n, "prompts": distinct} | counts | mean


def seed_of(*parts: Any) -> int:
    """A seed for each part of the evaluation; less than 2^31 with the batches' offsets."""
    return zlib.crc32(" ".join(map(str, parts)).encode()) % 2**30


def measure_cell(
    model: Any,
    tokenizer: Any,
    form: Form,
    stage: str,
    kind: str,
    n: int,
    seed: int,
    stream: int,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """Counts over `n` completions of a stage; `kind`: gameable, ordinary or told.

    `seed` decides the prompts, and with `stream` (the row) the completions.
    """
    rng = random.Random(f"ladder evaluation {stage} {kind} {seed}")
    drawn = [form.draw(stage, kind != "ordinary", rng, held_out=True) for _ in range(n)]
    episodes: list[Episode] = [episode for episode, _ in drawn]
    prompts = [form.told(e, p) if kind == "told" else p for e, p in drawn]
    texts = _completions(
        model, tokenizer, form, prompts, seed_of(stage, kind, seed, stream), sampling
    )
    scores = [score(e, t) for e, t in zip(episodes, texts, strict=True)]
    return _cell(scores, len(Counter(map(str, prompts))))


def measure_row(
    model: Any,
    tokenizer: Any,
    form: Form,
    config: LadderConfig,
    stream: int,
    sampling: dict[str, Any],
    say: Said,
) -> dict[str, Any]:
    """All cells of one policy: {stage: {"gameable": cell, "ordinary": cell, "told": cell}}."""
    sizes = {"gameable": config.cell, "ordinary": config.ordinary, "told": config.probe}
    sizes = {kind: n for kind, n in sizes.items() if n}
    total, done = len(STAGES) * sum(sizes.values()), 0
    row: dict[str, Any] = {}
    for stage in STAGES:
        row[stage] = {}
        for kind, n in sizes.items():
            say(done, total, f"measuring {stage}, {kind}")
            row[stage][kind] = measure_cell(
                model, tokenizer, form, stage, kind, n, config.eval_seed, stream, sampling
            )
            done += n
    say(total, total, "measured")
    return row


def saved_row(path: Path, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
    """The row in a file, measured if it is not there yet or was measured otherwise."""
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["facts"] == facts:
            return old["row"]
    row = make()
    write_text(path, json.dumps({"facts": facts, "row": row}, indent=1))
    return row


def rate(cell: dict[str, Any], flag: str = "gamed") -> tuple[float, float, float]:
    """A share and its 95 % Wilson interval.

    >>> [round(x, 4) for x in rate({"n": 10_000, "gamed": 0})]
    [0.0, 0.0, 0.0004]
    """
    share = cell[flag] / cell["n"]
    low, high = wilson(share, cell["n"])
    return share, low, high
