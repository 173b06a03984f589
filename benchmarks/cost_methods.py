"""The steps that `benchmarks.cost` and `benchmarks.memory` compare, all on one model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatopt import GradRegOptimizer

PLAIN = "plain"
FLOOR = "2 forward-backwards + base"
SAM = "pytorch_optimizer SAM"

# hidden size, layers, vocabulary
SIZES = {
    "tiny": (64, 1, 64),
    "1M": (128, 4, 1024),
    "6M": (256, 6, 2048),
    "28M": (512, 8, 2048),
    "100M": (768, 12, 8192),
    "0.1B": (768, 12, 32000),
    "0.4B": (1024, 24, 32000),
}
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 1e-5, "foreach": True}),
    "AdamW, loop": (torch.optim.AdamW, {"lr": 1e-5, "foreach": False}),
    "AdamW, fused": (torch.optim.AdamW, {"lr": 1e-5, "fused": True}),
    "SGD": (torch.optim.SGD, {"lr": 1e-5, "foreach": True}),
}


@dataclass(frozen=True)
class GR:
    """Settings of one GradRegOptimizer.

    Attributes:
        options: its arguments. part: the share of the micro-batches after which `mark_part` is
            called; only they are replayed, but for "halves", which replays each half in turn.
        halves: batch="halves". steps: steps of one call; the cost is that of one.
    """

    options: dict[str, Any] = field(default_factory=dict)
    part: float = 1.0
    halves: bool = False
    steps: int = 1


FLATOPT: dict[str, GR] = {
    "flatopt": GR(),
    "flatopt, lean": GR({"memory": "lean"}),
    "flatopt, lean, forward": GR({"memory": "lean", "difference": "forward"}),
    "flatopt, offload": GR({"offload": True}),
    "flatopt, forward": GR({"difference": "forward"}),
    "flatopt, central": GR({"difference": "central"}),
    "flatopt, exact": GR({"difference": "exact"}),
    "flatopt, every=4": GR({"every": 4}, steps=4),
    "flatopt, strength 0": GR({"strength": 0.0}),
    "flatopt, fraction 1/4": GR({"fraction": 1 / 4}, part=1 / 4),
    "flatopt, fraction 1/4, lean": GR({"fraction": 1 / 4, "memory": "lean"}, part=1 / 4),
    "flatopt, halves": GR({"batch": "halves"}, part=1 / 2, halves=True),
}
METHODS = (PLAIN, FLOOR, *FLATOPT, SAM)


@dataclass(frozen=True)
class Step:
    """``run()`` makes ``steps`` steps."""

    run: Callable[[], None]
    steps: int = 1


def build_model(
    size: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[nn.Module, int]:
    """A random LlamaForCausalLM, without dropout, with SDPA attention; and its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, vocab = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
    )
    model = cast(nn.Module, LlamaForCausalLM(config))
    return model.to(device=device, dtype=dtype), vocab


def make_batches(
    vocab: int, tokens: int, micro: int, device: str = "cpu", length: int = 128
) -> list[Tensor]:
    """``micro`` micro-batches of ``tokens`` random tokens, in rows of at most ``length``."""
    generator = torch.Generator().manual_seed(0)
    shape = (max(tokens // length, 1), min(tokens, length))
    return [torch.randint(0, vocab, shape, generator=generator).to(device) for _ in range(micro)]


def make_base(model: nn.Module, base: str) -> torch.optim.Optimizer:
    """The base optimizer of that name over the parameters that require a gradient."""
    kind, options = BASES[base]
    return kind([p for p in model.parameters() if p.requires_grad], **options)


def make_step(
    method: str,
    model: nn.Module,
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    base: str = "AdamW",
) -> Step:
    """One method's step on these micro-batches, whose losses are averaged.

    Args:
        method: one of `METHODS`. optimizer: the base, made by `make_base`; pytorch_optimizer's SAM,
            which takes no optimizer, builds one of its own from the name ``base``.
    """

    def passes(which: Sequence[Tensor]) -> None:
        for batch in which:
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            (loss / len(batches)).backward()

    def plain() -> None:
        optimizer.zero_grad()
        passes(batches)
        optimizer.step()

    def floor() -> None:
        optimizer.zero_grad()
        passes(batches)
        optimizer.zero_grad()
        passes(batches)
        optimizer.step()

    if method == PLAIN:
        return Step(plain)
    if method == FLOOR:
        return Step(floor)
    if method == SAM:
        return Step(_sam_step(model, batches, base, passes))
    return _gr_step(FLATOPT[method], batches, optimizer, passes)


def _gr_step(
    settings: GR,
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    passes: Callable[[Sequence[Tensor]], None],
) -> Step:
    rule = {} if "strength" in settings.options else {"ratio": 1.0}
    gr = GradRegOptimizer(optimizer, **rule, **settings.options)
    part = max(int(settings.part * len(batches)), 1)
    first, rest = batches[:part], batches[part:]
    if settings.part < 1.0 and not rest:
        raise ValueError("a part of the micro-batches needs at least two of them")

    def one() -> None:
        gr.zero_grad()
        passes(first)
        if rest:
            gr.mark_part(part / len(batches))
            passes(rest)
        for number in range(gr.passes):
            with gr.perturbed():
                # the gradient of one half is taken at theta shifted along that of the other
                passes(rest if settings.halves and number == 0 else first)
        gr.step()

    def run() -> None:
        for _ in range(settings.steps):
            one()

    return Step(run, settings.steps)


def _sam_step(
    model: nn.Module,
    batches: Sequence[Tensor],
    base: str,
    passes: Callable[[Sequence[Tensor]], None],
) -> Callable[[], None]:
    from pytorch_optimizer import SAM as PeerSAM

    kind, options = BASES[base]
    params = [p for p in model.parameters() if p.requires_grad]
    sam = PeerSAM(params, kind, rho=0.05, **options)

    def run() -> None:
        sam.zero_grad()
        passes(batches)
        sam.first_step(zero_grad=True)
        passes(batches)
        sam.second_step()

    return run
