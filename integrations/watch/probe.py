"""How sharp the reward is where the policy stands, on fresh samples: for claim C1 of the results.

Every few steps the policy writes fresh completions of fixed prompts; on them are measured the
gradient of the expected proxy (its norm and how much of it is signal), the sharpness, and how
accurate the proxy is there. The run itself is not touched: random state, gradients and weights are
as before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import write_text
from ..tasks import Task, generate, prompt_tensors
from .monitor import finite, read_rows

FILE = "probe.jsonl"


def until_end(ids: Tensor, end: int) -> Tensor:
    """1 for the tokens of each completion up to its first end token, 0 for the padding behind it.

    >>> until_end(torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8]]), 2).tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    """
    ends = (ids == end).long()
    return (ends.cumsum(1) - ends == 0).long()


def log_probs(model: Any, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """Log-probability of each completion, (n,): the sum over its tokens. `first`: prompt length."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, first - 1 : -1].float()
    chosen = ids[:, first:]
    each = logits.gather(-1, chosen[..., None])[..., 0] - logits.logsumexp(-1)
    return (each * mask[:, first:]).sum(1)


def sharpness(
    model: Any, expected: Callable[[], float], count: int, radius: float, generator: torch.Generator
) -> tuple[float, float]:
    """max over `count` random directions of J(phi) - J(phi + e), with ||e|| = radius * ||phi||.

    `expected()` returns J of the model as it is. The weights are put back bit for bit. The second
    number is ||e|| / sqrt(number of weights): times the gradient norm, and times 2.07 (the mean
    largest of 32 normal numbers), it is what a linear J would give.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in params]
    length = math.sqrt(sum(float(p.square().sum()) for p in kept)) * radius
    here, worst = expected(), -math.inf
    try:
        for _ in range(count):
            noise = [torch.randn(p.shape, generator=generator).to(p) for p in kept]
            norm = math.sqrt(sum(float(e.square().sum()) for e in noise))
            for p, at, e in zip(params, kept, noise, strict=True):
                p.data.copy_(at + e * (length / norm))
            worst = max(worst, here - expected())
    finally:
        for p, at in zip(params, kept, strict=True):
            p.data.copy_(at)
    return worst, length / math.sqrt(sum(p.numel() for p in kept))


@dataclass
class Sample:
    """Completions of one policy: ids, mask (n, tokens), `start` of the completion; (n,) rewards."""

    ids: Tensor
    mask: Tensor
    start: int
    proxy: Tensor
    gold: Tensor
    advantage: Tensor  # proxy less the mean of the others of its prompt
    logged: dict[str, float]  # accuracy and loss of the proxy


class Probe:
    """Measures every `every` steps of a trainer, before the first step too; rows in probe.jsonl.

    groups, size: prompts, and completions of each. directions, radii: of the sharpness. J is the
    mean advantage of a second set of samples, reweighted by pi_{phi+e} / pi_phi (normalised to mean
    1): only near phi does that estimate J(phi + e), so the radii are small.
    """

    def __init__(
        self,
        trainer: Any,
        task: Task,
        folder: Path,
        every: int = 20,
        groups: int = 32,
        size: int = 8,
        directions: int = 32,
        radii: Sequence[float] = (0.01, 0.05),
    ) -> None:
        from transformers import TrainerCallback

        self.trainer, self.task, self.path = trainer, task, folder / FILE
        self.groups, self.size = groups, size
        self.directions, self.radii = directions, radii
        self.prompts = list(task.data["prompt"][-groups:])
        probe = self

        class At(TrainerCallback):
            """Calls the probe before the first step and after every `every` steps."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 0:
                    probe.write(0)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step % every == 0:
                    probe.write(state.global_step)

        trainer.add_callback(At())

    def write(self, step: int) -> None:
        """Measure, and append the row; rows from `step` on (of a killed run) are dropped."""
        rows = [row for row in read_rows(self.path) if row["step"] < step]
        text = [json.dumps(row, allow_nan=False) for row in [*rows, finite(self.measure(step))]]
        write_text(self.path, "\n".join(text) + "\n")

    def measure(self, step: int) -> dict[str, Any]:
        """One row: proxy, gold, gradient norm, signal share, sharpness, accuracy, loss."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng():
                return {"step": step} | self._measure(model, step)
        finally:
            model.train(training)

    def _measure(self, model: Any, step: int) -> dict[str, Any]:
        first = self._sample(model, 77_000 + step)
        second = self._sample(model, 78_000 + step)
        with torch.enable_grad():
            half = len(first.ids) // 2
            halves = [
                self._gradient(model, first, part) for part in (slice(half), slice(half, None))
            ]
        both = sum(float((a * b).sum()) for a, b in zip(*halves, strict=True))
        square = sum(float((a + b).square().sum()) / 4 for a, b in zip(*halves, strict=True))
        with torch.no_grad():
            # of other samples than the gradient, lest their noise make the two agree
            old = log_probs(model, second.ids, second.mask, second.start)

            def expected() -> float:
                weight = (log_probs(model, second.ids, second.mask, second.start) - old).exp()
                return float((weight * second.advantage).sum() / weight.sum())

            sharp: dict[str, float] = {}
            for radius in self.radii:
                generator = torch.Generator().manual_seed(77_000 + step)
                worst, unit = sharpness(model, expected, self.directions, radius, generator)
                sharp |= {f"sharpness_{radius:g}": worst, f"unit_{radius:g}": unit}
        return {
            "proxy": first.proxy.mean().item(),
            "true": first.gold.mean().item(),
            "grad_norm": math.sqrt(square),
            "grad_square": both,  # of independent halves: unbiased for ||grad J||^2
            "signal_share": both / square if square > 0 else None,
            **sharp,
            "spread": first.proxy.view(self.groups, self.size).std(1, correction=0).mean().item(),
            **first.logged,
        }

    def _sample(self, model: Any, seed: int) -> Sample:
        """Fresh completions of the probe's prompts, with their rewards."""
        task, n = self.task, self.groups * self.size
        prompts = [prompt for prompt in self.prompts for _ in range(self.size)]
        given = prompt_tensors(task.tokenizer, prompts)
        length = int(self.trainer.args.max_completion_length)
        rows = generate(model, task.tokenizer, prompts, seed, length, 1.0)
        texts = task.to_texts([], rows)
        completions = torch.tensor(rows)
        end: Any = task.tokenizer.eos_token_id
        written = until_end(completions, end)
        mask = torch.cat([given["attention_mask"], written], 1)
        logged: dict[str, float] = {}
        columns: dict[str, Any] = {"context": prompts, "log_metric": logged.__setitem__}
        proxy = torch.tensor(task.proxy(texts, columns))
        assert task.true is not None
        by_group = proxy.view(self.groups, self.size)
        left_out = self.size / (self.size - 1)  # the baseline is the mean of the others
        return Sample(
            ids=torch.cat([given["input_ids"], completions], 1),
            mask=mask,
            start=given["input_ids"].shape[1],
            proxy=proxy,
            gold=torch.tensor(task.true(texts, columns)),
            advantage=(by_group - by_group.mean(1, keepdim=True)).view(n) * left_out,
            logged=logged,
        )

    def _gradient(self, model: Any, sample: Sample, part: slice) -> Sequence[Tensor]:
        """The policy gradient of the expected proxy on some of the completions."""
        params = [p for p in model.parameters() if p.requires_grad]
        logps = log_probs(model, sample.ids[part], sample.mask[part], sample.start)
        return torch.autograd.grad((logps * sample.advantage[part]).mean(), params)
