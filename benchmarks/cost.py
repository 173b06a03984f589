"""Cost of a GR step in CPU time, as a ratio to the plain step and to two forward-backwards.

    python -m benchmarks.cost --tokens 512 8 --rounds 15

All methods run interleaved in one process on one thread, each on its own copy of the model; the
medians of CPU time are compared. Two forward-backwards and one base step are the least that a
method with a second gradient can cost.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flatopt import GradRegOptimizer

Step = Callable[[], None]


def build_model(hidden: int, layers: int, vocab: int) -> torch.nn.Module:
    """A random LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    return LlamaForCausalLM(config)


def make_steps(model: torch.nn.Module, batch: Tensor) -> dict[str, Step]:
    """One step function per method, each with a model and an AdamW of its own."""
    steps: dict[str, Step] = {}

    def closure_for(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = net(input_ids=batch, labels=batch).loss
            loss.backward()
            return loss

        return closure

    def adamw(net: torch.nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(net.parameters(), lr=1e-5, foreach=True)

    def stepping(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Step:
        closure = closure_for(net, optimizer)
        return lambda: optimizer.step(closure)  # type: ignore[arg-type,return-value]

    net = copy.deepcopy(model)
    steps["plain AdamW"] = stepping(net, adamw(net))

    net = copy.deepcopy(model)
    twice = adamw(net)
    twice_closure = closure_for(net, twice)

    def two_passes() -> None:
        twice_closure()
        twice_closure()
        twice.step()

    steps["2 forward-backwards + AdamW"] = two_passes
    for name, options in {
        "flatopt": {},
        "flatopt, central": {"difference": "central"},
        "flatopt, exact": {"difference": "exact"},
    }.items():
        net = copy.deepcopy(model)
        steps[name] = stepping(net, GradRegOptimizer(adamw(net), ratio=1.0, **options))
    try:
        from pytorch_optimizer import SAM
    except ImportError:
        print("pytorch_optimizer is not installed: its SAM is left out")
        return steps
    net = copy.deepcopy(model)
    sam = SAM(list(net.parameters()), torch.optim.AdamW, rho=0.05, lr=1e-5, foreach=True)
    sam_closure = closure_for(net, sam)

    def sam_step() -> None:
        sam_closure()
        sam.first_step(zero_grad=True)
        sam_closure()
        sam.second_step(zero_grad=True)

    steps["pytorch_optimizer SAM"] = sam_step
    return steps


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, the methods interleaved; two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        order = list(steps) if number % 2 else list(reversed(steps))
        for name in order:
            begin = time.process_time()
            steps[name]()
            if number >= 2:
                seconds[name].append(time.process_time() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 8])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(args.hidden, args.layers, args.vocab)
    count = sum(p.numel() for p in model.parameters())
    table = []
    for tokens in args.tokens:
        length = min(tokens, 128)
        batch = torch.randint(0, args.vocab, (max(tokens // length, 1), length))
        seconds = measure(make_steps(model, batch), args.rounds)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"\n{count / 1e6:.1f}M parameters, {tokens} tokens, {args.rounds} rounds, CPU time")
        print(f"{'method':<30}{'ms':>8}{'x plain':>9}{'x two passes':>14}")
        for name, value in median.items():
            row = {
                "method": name,
                "tokens": tokens,
                "parameters": count,
                "milliseconds": round(value * 1e3, 2),
                "to_plain": round(value / median["plain AdamW"], 3),
                "to_two_passes": round(value / median["2 forward-backwards + AdamW"], 3),
            }
            table.append(row)
            print(
                f"{name:<30}{row['milliseconds']:>8.1f}{row['to_plain']:>9.2f}"
                f"{row['to_two_passes']:>14.3f}"
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": table}, indent=2))


if __name__ == "__main__":
    main()
