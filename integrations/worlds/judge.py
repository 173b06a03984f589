"""The judge world: a starting policy taught by imperfect demonstrations, and a learned judge.

The judge sees the reference answer and the completion and gives the probability that the
completion is right. It learns from few labelled demonstrations, so it is accurate where the
starting policy writes and wrong in places that only an optimizer will find.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import cached
from . import arithmetic as task
from .learn import llama

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Part of the name in the cache: to be raised when a change of code changes what is built.
VERSION = 1

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class PolicySettings:
    """Everything that decides the starting policy; two equal settings give the same weights."""

    seed: int = 0
    wrong: float = 0.5
    broken: float = 0.25
    filler: float = 0.15
    hedged: float = 0.02
    demonstrations: int = 30_000
    steps: int = 700
    batch: int = 128
    lr: float = 3e-3
    width: int = 64
    layers: int = 2
    heads: int = 4
    init: float = 0.02
    version: int = VERSION

    def flaws(self) -> task.Flaws:
        """How often each flaw is in the demonstrations."""
        return task.Flaws(self.wrong, self.broken, self.filler, self.hedged)


@dataclass(frozen=True)
class JudgeSettings:
    """Everything that decides the judge. `index` numbers independent judges of the same kind."""

    index: int = 0
    wrong: float = 0.5
    broken: float = 0.25
    filler: float = 0.15
    hedged: float = 0.1
    informed: float = 0.9
    lenient: bool = True  # annotators accept a hedged answer that names the right number
    demonstrations: int = 1_000
    steps: int = 400
    batch: int = 64
    lr: float = 3e-3
    width: int = 32
    layers: int = 2
    heads: int = 4
    init: float = 0.02
    version: int = VERSION

    def flaws(self) -> task.Flaws:
        """How often each flaw is in the judge's training data."""
        return task.Flaws(self.wrong, self.broken, self.filler, self.hedged, self.informed)


def model_config(settings: PolicySettings | JudgeSettings) -> dict[str, Any]:
    """The settings as arguments of LlamaConfig."""
    return llama(task.VOCABULARY, settings)


def _pad(rows: Sequence[Sequence[int]], pad: int, width: int) -> torch.Tensor:
    """Rows of token ids as one (rows, width) tensor, padded on the right."""
    import torch

    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def _fit(
    model: torch.nn.Module,
    settings: PolicySettings | JudgeSettings,
    size: int,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    generator: torch.Generator,
    say: Callable[[int, int], None],
) -> None:
    """AdamW with a cosine learning rate; each batch is drawn with replacement."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps))
    model.train()
    for step in range(settings.steps):
        index = torch.randint(size, (settings.batch,), generator=generator)
        optimizer.zero_grad()
        loss_of(index).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        say(step + 1, settings.steps)
    model.eval()


def _new_model(kind: str, settings: PolicySettings | JudgeSettings, seed: int) -> PreTrainedModel:
    """Fresh weights that depend on `seed` alone; the caller's random state is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "policy":
            return LlamaForCausalLM(LlamaConfig(**model_config(settings)))
        config: dict[str, Any] = model_config(settings) | {"num_labels": 1}
        return LlamaForSequenceClassification(LlamaConfig(**config))


def build_policy(settings: PolicySettings, progress: Progress | None = None) -> Path:
    """The folder of the starting policy and its tokenizer, trained on first use."""

    def build(folder: Path) -> None:
        import torch
        import torch.nn.functional as F

        tokenizer = task.make_tokenizer()
        problems = task.all_problems()
        rng = random.Random(f"policy demonstrations {settings.seed}")
        rows, starts = [], []
        for _ in range(settings.demonstrations):
            problem = rng.choice(problems)
            prompt = tokenizer.encode(problem.prompt)
            text = task.demonstrate(problem, settings.flaws(), rng)
            completion = tokenizer.encode(text, add_special_tokens=False)
            rows.append([*prompt, *completion, tokenizer.eos_token_id])
            starts.append(len(prompt))
        width = max(map(len, rows))
        pad = task.VOCABULARY.index(task.PAD)
        ids = _pad(rows, pad, width)  # (demonstrations, width)
        positions = torch.arange(width)
        # only the completion is learnt: the prompt is given, the padding is nothing
        wanted = (positions >= torch.tensor(starts)[:, None]) & (ids != pad)
        labels = ids.masked_fill(~wanted, -100)
        model = _new_model("policy", settings, settings.seed)

        def loss_of(index: torch.Tensor) -> torch.Tensor:
            batch = ids[index]
            logits = model(input_ids=batch, attention_mask=batch.ne(pad).long()).logits
            return F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[index][:, 1:].flatten(), ignore_index=-100
            )

        def say(done: int, total: int) -> None:
            if progress:
                progress(f"policy {settings.seed}", done, total)

        generator = torch.Generator().manual_seed(settings.seed)
        _fit(model, settings, len(rows), loss_of, generator, say)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cached("policy", settings, build)


def judge_inputs(answers: Sequence[int], completions: Sequence[str]) -> torch.Tensor:
    """Token ids the judge reads, (rows, width): the reference answer, the completion, the end."""
    ids = {token: i for i, token in enumerate(task.VOCABULARY)}
    rows = [
        [ids[str(answer)], *(ids.get(word, ids[task.UNK]) for word in text.split()), ids[task.EOS]]
        for answer, text in zip(answers, completions, strict=True)
    ]
    return _pad(rows, ids[task.PAD], max(map(len, rows)))


def build_judge(settings: JudgeSettings, progress: Progress | None = None) -> Path:
    """The folder of the judge model, trained on labelled demonstrations on first use."""

    def build(folder: Path) -> None:
        import torch
        import torch.nn.functional as F

        problems = task.all_problems()
        rng = random.Random(f"judge demonstrations {settings.index}")
        chosen = [rng.choice(problems) for _ in range(settings.demonstrations)]
        texts = [task.demonstrate(problem, settings.flaws(), rng) for problem in chosen]
        answers = [problem.answer for problem in chosen]
        label = task.lenient_reward if settings.lenient else task.true_reward
        pairs = zip(texts, answers, strict=True)
        labels = torch.tensor([label(text, answer) for text, answer in pairs])
        ids = judge_inputs(answers, texts)
        pad = task.VOCABULARY.index(task.PAD)
        model = _new_model("judge", settings, 10_000 + settings.index)

        def loss_of(index: torch.Tensor) -> torch.Tensor:
            batch = ids[index]
            logits = model(input_ids=batch, attention_mask=batch.ne(pad).long()).logits[:, 0]
            return F.binary_cross_entropy_with_logits(logits, labels[index])

        def say(done: int, total: int) -> None:
            if progress:
                progress(f"judge {settings.index}", done, total)

        generator = torch.Generator().manual_seed(settings.index)
        _fit(model, settings, len(texts), loss_of, generator, say)
        model.save_pretrained(folder)
        facts = {"demonstrations": len(texts), "share_labelled_right": labels.mean().item()}
        (folder / "facts.json").write_text(json.dumps(facts, indent=2))

    return cached("judge", settings, build)


class Judge:
    """The learned judge, ready to score: `judge(answers, completions)` gives values in (0, 1)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.pad = task.VOCABULARY.index(task.PAD)

    def __call__(self, answers: Sequence[int], completions: Sequence[str]) -> list[float]:
        import torch

        ids = judge_inputs(answers, completions)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=ids.ne(self.pad).long()).logits[:, 0]
        return logits.sigmoid().tolist()


def as_texts(completions: Sequence[Any], completion_ids: Sequence[list[int]] | None) -> list[str]:
    """Completions as plain text: from token ids where given, else from strings or chat turns."""
    if completion_ids is not None:
        return [task.to_text(list(ids)) for ids in completion_ids]
    return [text if isinstance(text, str) else text[-1]["content"] for text in completions]
