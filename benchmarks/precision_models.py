"""What `benchmarks.precision` measures on: two language models, their batches, two losses."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """Sizes of the models, batches and training; the defaults take minutes on one core."""

    hidden: int = 192
    layers: int = 4
    vocab: int = 1024
    steps: int = 2000
    train_rows: int = 16
    length: int = 64  # tokens of a row
    rows: int = 8  # of a measured batch; completions, where the loss is a policy gradient
    prompt: int = 16  # tokens of a row that are the prompt, in a policy-gradient batch
    wide_hidden: int = 960
    wide_layers: int = 2
    wide_length: int = 32
    first_seed: int = 1000  # of the measured batches, one after the other


# the sizes that a trained model depends on
TRAINING = ("hidden", "layers", "vocab", "steps", "train_rows", "length")


@dataclass(frozen=True)
class Subject:
    """One model with its batches.

    Attributes:
        name: its row in the tables. model: in float32, without dropout.
        text: where its tokens come from. parameters: their number.
        batches: for each loss, its batches.
    """

    name: str
    model: LlamaForCausalLM
    text: str
    parameters: int
    batches: dict[str, list["Batch"]]


# ---- text ---------------------------------------------------------------------------------------


def read_texts() -> tuple[str, list[str], list[str]]:
    """Name, training texts and held-out texts: GSM8K where FLATOPT_DATA has it, else made up."""
    folder = Path(os.environ.get("FLATOPT_DATA", "")) / "gsm8k"
    if os.environ.get("FLATOPT_DATA") and (folder / "train.jsonl").exists():
        train, held_out = (_gsm8k(folder / f"{part}.jsonl") for part in ("train", "test"))
        return "GSM8K", train, held_out
    sums = [_sum(number) for number in range(6000)]
    return "generated sums", sums[:5000], sums[5000:]


def _gsm8k(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [f"{row['question']}\n{row['answer']}\n" for row in rows]


def _sum(number: int) -> str:
    names, things = ("Ann", "Tom", "Eve", "Bob", "Kim"), ("pens", "eggs", "cups", "coins")
    a, b = number * 7919 % 97 + 2, number * 104729 % 89 + 2
    name, thing = names[number % 5], things[number // 5 % 4]
    if number % 3:
        return f"{name} has {a} {thing} and gets {b} more. How many?\n{a} + {b} = {a + b}\n"
    return f"{name} buys {a} bags of {b} {thing}. How many {thing}?\n{a} * {b} = {a * b}\n"


def _tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(  # pyright: ignore
        vocab_size=vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _stream(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts behind each other, as token ids."""
    return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in e.ids])


def _rows(stream: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(stream) - length, (rows,), generator=generator)
    return torch.stack([stream[s : s + length] for s in starts.tolist()])


# ---- losses -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what is computed on them.

    Without advantages, the mean cross-entropy of every next token. With one advantage per row,
    GRPO's loss on the tokens after the prompt, on policy:
    ``-mean(advantage * pi(token) / pi_old(token))``.
    """

    tokens: Tensor
    prompt: int = 1
    advantages: Tensor | None = None

    def bind(self, model: nn.Module) -> Callable[[], Tensor]:
        """The loss as a function of the model's weights.

        The old log-probs are those of the model now, in its precision: the ratio is 1 at theta and
        differs from 1 at theta'.
        """
        if self.advantages is None:
            return lambda: -self._log_probs(model).mean()
        weights = self.advantages[:, None]
        with torch.no_grad():
            old = self._log_probs(model)
        return lambda: -(weights * torch.exp(self._log_probs(model) - old)).mean()

    def halves(self) -> tuple["Batch", "Batch"]:
        """Every other row: the loss is the mean of theirs."""
        return self._part(0), self._part(1)

    def _part(self, first: int) -> "Batch":
        advantages = None if self.advantages is None else self.advantages[first::2]
        return Batch(self.tokens[first::2], self.prompt, advantages)

    def _log_probs(self, model: nn.Module) -> Tensor:
        # float32 or wider from the logits on, as transformers computes its losses
        logits = model(input_ids=self.tokens, use_cache=False).logits[:, self.prompt - 1 : -1]
        if logits.dtype != torch.float64:
            logits = logits.float()
        targets = self.tokens[:, self.prompt :]
        return logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


@torch.no_grad()
def _complete(model: nn.Module, prompts: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Sample from the model, at temperature 1, until rows have `length` tokens."""
    tokens = prompts
    while tokens.shape[1] < length:
        probs = model(input_ids=tokens, use_cache=False).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probs, 1, generator=generator)], 1)
    return tokens


def _batches(
    model: nn.Module, stream: Tensor, size: Size, rewarded: Tensor, count: int
) -> dict[str, list[Batch]]:
    found: dict[str, list[Batch]] = {"cross-entropy": [], "policy gradient": []}
    for number in range(count):
        generator = torch.Generator().manual_seed(size.first_seed + number)
        found["cross-entropy"].append(Batch(_rows(stream, size.rows, size.length, generator)))
        # Two prompts, half of the completions each. A completion's reward is the share of its
        # tokens in a fixed set; advantages are relative to the group and scaled by its deviation.
        prompts = _rows(stream, 2, size.prompt, generator).repeat_interleave(size.rows // 2, 0)
        sampled = _complete(model, prompts, size.length, generator)
        reward = rewarded[sampled[:, size.prompt :]].float().mean(1).view(2, -1)
        advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        found["policy gradient"].append(Batch(sampled, size.prompt, advantage.flatten()))
    return found


# ---- models -------------------------------------------------------------------------------------


def _llama(vocab: int, hidden: int, layers: int, intermediate: int, kv: int) -> LlamaForCausalLM:
    heads = max(hidden // 64, 1)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if heads % kv else heads // kv,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config)


def _subject(
    name: str, model: LlamaForCausalLM, text: str, batches: dict[str, list[Batch]]
) -> Subject:
    count = sum(p.numel() for p in model.parameters())
    return Subject(name, model, text, count, batches)


def trained_model(cache: Path, size: Size, batches: int) -> Subject:
    """A small Llama trained here on text, or loaded from `cache`."""
    text, train, held_out = read_texts()
    tokenizer = _tokenizer(train, size.vocab)
    vocab = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    model = _llama(vocab, size.hidden, size.layers, size.hidden * 8 // 3, 1)
    training = {name: getattr(size, name) for name in TRAINING}
    settings = json.dumps({"text": text, **training}, indent=2)
    weights, kept = cache / "model.pt", cache / "settings.json"
    if kept.exists() and kept.read_text() == settings:
        model.load_state_dict(torch.load(weights))
    else:
        _train(model, _stream(tokenizer, train), size)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
        kept.write_text(settings)
    stream = _stream(tokenizer, held_out)
    digits = [any(c.isdigit() for c in tokenizer.decode([i])) for i in range(vocab)]
    found = _batches(model.eval(), stream, size, torch.tensor(digits), batches)
    return _subject("trained", model, text, found)


def _train(model: LlamaForCausalLM, stream: Tensor, size: Size) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(size.steps):
        warm, done = min(step / 50 + 0.02, 1.0), step / size.steps
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        rows = _rows(stream, size.train_rows, size.length, generator)
        loss = Batch(rows).bind(model)()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == size.steps - 1:
            print(f"training step {step}: loss {loss.item():.3f}", flush=True)
    model.zero_grad(set_to_none=True)


def random_model(size: Size, batches: int, seed: int = 0) -> Subject:
    """Random weights, N(0, .02), with layers of a 0.36B model's width, on random tokens."""
    torch.manual_seed(seed)
    wide = size.wide_hidden
    model = _llama(size.vocab, wide, size.wide_layers, wide * 8 // 3, 3).eval()
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randint(0, size.vocab, (100_000,), generator=generator)
    rewarded = torch.arange(size.vocab) % 4 == 0
    found = _batches(model, stream, replace(size, length=size.wide_length), rewarded, batches)
    return _subject("random", model, "random tokens", found)
