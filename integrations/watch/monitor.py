"""What is watched during a run: proxy and true reward, format, judge AUC, KL to the start policy.

The monitor hands TRL its two reward functions, keeps what they saw since the last log, and turns
each of the trainer's logs into one strict-JSON row of ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processes import gathered, is_main

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# one list of values per call, from the texts of the completions and the data set's columns
Score = Callable[[list[str], dict[str, list[Any]]], list[float]]

TRAINER_NAMES = {
    "loss": "loss",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "zero_std_groups",
    "kl": "kl_reference",
    "step_time": "step_time",
    "learning_rate": "learning_rate",
}


def auc(scores: Sequence[float], labels: Sequence[float]) -> float | None:
    """Chance that a right completion outscores a wrong one, ties half; None with one class only.

    >>> auc([0.9, 0.2, 0.5], [1, 0, 0])
    1.0
    >>> auc([0.9, 0.2], [1, 1]) is None
    True
    """
    order = sorted(range(len(scores)), key=scores.__getitem__)
    positives = sum(1 for label in labels if label > 0.5)
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    rank_sum, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        middle = (start + end + 1) / 2  # tied scores share the mean of their ranks
        rank_sum += middle * sum(1 for i in order[start:end] if labels[i] > 0.5)
        start = end
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _classes(labels: Sequence[float]) -> bool:
    """Whether labels are all 0 or 1, so that a share of right ones means something."""
    return all(label in (0.0, 1.0) for label in labels)


def spreads(values: Sequence[float], size: int) -> list[float]:
    """Standard deviations of the rewards within the groups of `size` completions of one prompt.

    >>> spreads([1.0, 3.0, 2.0, 2.0], 2)
    [1.0, 0.0]
    """
    if size < 2 or len(values) % size:
        return []
    return [statistics.pstdev(values[i : i + size]) for i in range(0, len(values), size)]


def finite(value: Any) -> Any:
    """`value` as strict JSON allows it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a half-written last line (a killed run) is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def policy_kl(
    policy: PreTrainedModel,
    start: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    first: int,
) -> float:
    """KL(policy || start) in nats per completion, on completions the policy has just written.

    At each visited position the sum over the whole vocabulary is taken, so that only the choice
    of positions is sampled. `ids`, `mask`: (batch, prompt + completion); `first`: prompt length.
    """
    import torch

    with torch.no_grad():
        kept = mask[:, first:].bool()
        new = policy(input_ids=ids, attention_mask=mask).logits[:, first - 1 : -1].float()
        old = start(input_ids=ids, attention_mask=mask).logits[:, first - 1 : -1].float()
        new, old = new.log_softmax(-1), old.log_softmax(-1)
        each = (new.exp() * (new - old)).sum(-1)
        return ((each * kept).sum() / len(ids)).item()


class Monitor:
    """Reward functions and log for one run. `proxy` is trained on, `true` is only watched."""

    def __init__(
        self,
        judge: Score,
        grade: Score | None,
        is_formatted: Callable[[str], bool],
        to_texts: Callable[[Sequence[Any], Sequence[list[int]]], list[str]],
        path: Path,
        every: int,
        watched: Sequence[str] = (),
        shape: Callable[[list[float]], list[float]] | None = None,
        say: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`shape` turns the proxy into what is trained on; the rows show the proxy itself."""
        self.judge, self.grade, self.is_formatted = judge, grade, is_formatted
        self.to_texts, self.path, self.every, self.say = to_texts, path, every, say
        self.shape = shape
        self.watched = [name for name in watched if name not in TRAINER_NAMES]
        self.trainer: Any = None
        self.start: PreTrainedModel | None = None
        self.watch: Any = None  # the HackMonitor, if there is one
        self._seen: dict[str, list[float]] = {"proxy": [], "true": [], "format": []}
        self._batches: list[list[float]] = []  # the proxy, a list for each call
        self._levels: dict[str, list[float]] = {}  # the true reward by the prompts' level
        self._kl: list[float] = []

    def proxy(self, prompts: list, completions: list, completion_ids: list, **columns: Any) -> list:
        """The reward the policy is trained on."""
        texts = self.to_texts(completions, completion_ids)
        values = self.judge(texts, columns)
        self._seen["proxy"] += values
        self._seen["format"] += [float(self.is_formatted(text)) for text in texts]
        self._batches.append(values)
        if self._before_a_log(columns["trainer_state"].global_step):
            self._measure_kl(prompts, completion_ids)
        return values if self.shape is None else self.shape(values)

    def _before_a_log(self, step: int) -> bool:
        """Whether a log comes before completions are drawn again; `step`: how many are done."""
        arguments = getattr(self.trainer, "args", None)
        steps = getattr(arguments, "steps_per_generation", None) or 1
        steps *= getattr(arguments, "num_iterations", None) or 1
        return (step + steps) // self.every > step // self.every

    def true(self, prompts: list, completions: list, completion_ids: list, **columns: Any) -> list:
        """Whether the completion is really right. Its weight is 0 except in the control."""
        assert self.grade is not None
        values = self.grade(self.to_texts(completions, completion_ids), columns)
        self._seen["true"] += values
        for level, value in zip(columns.get("level") or (), values, strict=False):
            self._levels.setdefault(f"level/{level}/true", []).append(value)
        return values

    def _measure_kl(self, prompts: list[str], completion_ids: list[list[int]]) -> None:
        import torch

        if self.trainer is None or self.start is None:
            return
        tokenizer = self.trainer.processing_class
        given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        width = max(map(len, completion_ids))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in completion_ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in completion_ids])
        device = self.trainer.model.device
        both = torch.cat([given["input_ids"], ids], 1).to(device)
        both_mask = torch.cat([given["attention_mask"], mask], 1).to(device)
        first = given["input_ids"].shape[1]
        self._kl.append(policy_kl(self.trainer.model, self.start, both, both_mask, first))

    def _gather(self) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float]]:
        """What all processes have seen since the last row: values, levels, KL; then forgotten."""
        parts = gathered((self._seen, self._batches, self._levels, self._kl))
        self._seen = {name: [] for name in self._seen}
        self._batches, self._levels, self._kl = [], {}, []
        seen: dict[str, list[float]] = {}
        levels: dict[str, list[float]] = {}
        for mine, _, my_levels, _ in parts:
            for name, values in mine.items():
                seen.setdefault(name, []).extend(values)
            for name, values in my_levels.items():
                levels.setdefault(name, []).extend(values)
        # a group of completions may lie across processes: TRL deals them out in their order
        size = getattr(self.trainer, "num_generations", 1)
        calls = zip(*(batches for _, batches, _, _ in parts), strict=True)
        whole = [[value for part in call for value in part] for call in calls]
        seen["spread"] = [value for batch in whole for value in spreads(batch, size)]
        return seen, levels, [value for _, _, _, kl in parts for value in kl]

    def row(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        """One row for the batches since the last row; empties what was kept for it.

        Over the completions of all processes, which must all call it.
        """
        seen, levels, kl = self._gather()
        row: dict[str, Any] = {"step": step}
        row |= {name: sum(v) / len(v) if v else None for name, v in seen.items()}
        row["auc"] = auc(seen["proxy"], seen["true"]) if _classes(seen["true"]) else None
        row["kl_start"] = sum(kl) / len(kl) if kl else None
        # with GR the trainer's own norm may be that of the combined gradient: g1's is comparable
        row["grad_norm"] = logs.get("gr/grad_norm", logs.get("grad_norm"))
        row |= {new: logs.get(old) for old, new in TRAINER_NAMES.items()}
        row |= {name: logs[name] for name in self.watched if name in logs}
        row |= {k: value for k, value in logs.items() if k.startswith("gr/") or k == "step_length"}
        row |= {name: sum(v) / len(v) for name, v in sorted(levels.items())}
        return finite(row)

    def write(self, step: int, logs: dict[str, Any]) -> None:
        """Append the row for `step`; called from the trainer's log, in every process."""
        if not self._seen["proxy"]:
            return  # the closing log of the trainer, with times only
        row = self.row(step, logs)
        if not is_main():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.say:
            self.say(row)
