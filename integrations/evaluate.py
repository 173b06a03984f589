"""What RL has made of a policy: gold, win rate against the SFT policy, KL, reward accuracy.

Both policies write several completions to each held-out prompt. Prompts, not completions, are
counted as independent: standard errors and intervals are over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .progress import Say, silent
from .reward_models.metrics import bt_loss, pair_accuracy
from .tasks import generate, prompt_tensors
from .watch.monitor import finite, policy_kl

# a score for each completion, from prompts and completions
Scores = Callable[[list[Any], list[str]], list[float]]
# 1 where the first of two completions of a prompt is better, .5 for a tie, None where unknown
Compare = Callable[[list[Any], list[str], list[str]], list[float | None]]


@dataclass
class Bench:
    """What a policy is measured on: held-out prompts, the rewards, and how to read completions.

    `unit`: how much of the reward model's own scale one unit of `proxy` is. The win rate goes by
    `gold` where there is one, else by `judge`, else by `proxy`.
    """

    tokenizer: Any
    prompts: list[Any]
    tokens: int  # the longest completion
    to_text: Callable[[list[int]], str]
    proxy: Scores
    gold: Scores | None = None
    judge: Compare | None = None
    unit: float = 1.0
    samples: int = 4  # completions per prompt and policy
    batch: int = 128  # completions generated at once
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: pairs within a prompt need at least 2")
        if not self.prompts:
            raise ValueError("no held-out prompt to evaluate on; hold out at least 1")


def wilson(share: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval of a share of `trials` independent trials, by default at 95 %.

    >>> [round(x, 4) for x in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    if trials < 1 or not 0 <= share <= 1:
        raise ValueError(f"share {share} of {trials} trials: give a share in [0, 1] of at least 1")
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    half *= z / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Mean of (prompts, samples) values and its standard error, from the means of the prompts."""
    means = values.double().mean(1)
    if len(means) < 2:
        return means.mean().item(), None
    return means.mean().item(), (means.std() / math.sqrt(len(means))).item()


def win_rate(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How often ours is higher, ties half, over all pairs of one prompt; both (prompts, samples).

    The interval takes the prompts as the trials. The shares of the prompts lie in [0, 1], so their
    variance is at most that of single wins: it is rather too wide than too narrow.
    """
    difference = (ours[:, :, None] - theirs[:, None, :]).double()
    share = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    low, high = wilson(share, len(ours))
    return {"win_rate": share, "win_low": low, "win_high": high}


def group_margins(proxy: Tensor, gold: Tensor, unit: float = 1.0) -> Tensor:
    """proxy(better) - proxy(worse) for each pair of one prompt that differs in gold, (pairs,).

    `proxy` and `gold`: (prompts, samples), at least two samples. `unit` is the factor to the reward
    model's own scale, in which its Bradley-Terry loss is meant.
    """
    first, second = torch.triu_indices(proxy.shape[1], proxy.shape[1], 1)
    better = (gold[:, first] - gold[:, second]).double().sign()
    margins = unit * better * (proxy[:, first] - proxy[:, second]).double()
    return margins[better != 0]


def reward_quality(proxy: Tensor, gold: Tensor, unit: float = 1.0) -> dict[str, float | None]:
    """Accuracy and Bradley-Terry loss of the proxy on `group_margins`; None without a pair."""
    margins = group_margins(proxy, gold, unit)
    if not len(margins):
        return {"accuracy": None, "bt_loss": None, "pairs": 0}
    return {
        "accuracy": pair_accuracy(margins),
        "bt_loss": bt_loss(margins),
        "pairs": len(margins),
    }


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """A completion's tokens up to and including its first end token."""
    stops = [i for i, token in enumerate(row) if token in ends]
    return row[: stops[0] + 1] if stops else row


def sample(
    model: Any, bench: Bench, ends: Sequence[int], say: Callable[[int], None], stream: int = 0
) -> list[list[int]]:
    """`bench.samples` completions of each prompt, prompt by prompt, as token ids.

    Two policies are given two `stream`s of random numbers, so that their completions are
    independent: with the same numbers two similar policies write the same texts.
    """
    repeated = [prompt for prompt in bench.prompts for _ in range(bench.samples)]
    rows: list[list[int]] = []
    for start in range(0, len(repeated), bench.batch):
        part = repeated[start : start + bench.batch]
        seed = 1_000_003 * (2 * bench.seed + stream) + start  # another one for each batch
        made = generate(model, bench.tokenizer, part, seed, bench.tokens, 1.0)
        rows += [_until_end(row, ends) for row in made]
        say(len(rows))
    return rows


def start_kl(policy: Any, sft: Any, bench: Bench, rows: list[list[int]]) -> float:
    """KL(policy || SFT policy), nats per completion, on completions of the policy."""
    repeated = [prompt for prompt in bench.prompts for _ in range(bench.samples)]
    pad, total = bench.tokenizer.pad_token_id, 0.0
    for start in range(0, len(rows), bench.batch):
        part = rows[start : start + bench.batch]
        given = prompt_tensors(bench.tokenizer, repeated[start : start + bench.batch])
        width = max(1, *map(len, part))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        both = torch.cat([given["input_ids"], ids], 1).to(policy.device)
        seen = torch.cat([given["attention_mask"], mask], 1).to(policy.device)
        total += len(part) * policy_kl(policy, sft, both, seen, given["input_ids"].shape[1])
    return total / len(rows)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's settings."""
    known = getattr(model.generation_config, "eos_token_id", None)
    many = known if isinstance(known, list) else [known]
    return sorted({i for i in (tokenizer.eos_token_id, *many) if isinstance(i, int)})


def evaluate_policy(
    policy: Any, sft: Any, bench: Bench, say: Say = silent, name: str = "evaluation"
) -> dict[str, Any]:
    """Compare `policy` with `sft`, two causal LMs in eval mode on one device.

    Returns plain numbers: gold, gold_error (standard error), gold_sft, gold_sft_error; win_rate,
    win_low, win_high (95 %) and win_by; kl (nats per completion); proxy, proxy_sft; accuracy,
    bt_loss and pairs of the proxy on the policy's own samples, and accuracy_sft, bt_loss_sft on
    those of the SFT policy; length (tokens). What needs a gold reward is None without one.
    """
    ends = end_tokens(sft, bench.tokenizer)
    half = len(bench.prompts) * bench.samples
    say(name, 0, 2 * half, "starting")
    old = sample(sft, bench, ends, lambda done: say(name, done, 2 * half, "the SFT policy writes"))
    rows = sample(
        policy, bench, ends, lambda done: say(name, half + done, 2 * half, "it writes"), stream=1
    )
    texts = [[bench.to_text(row) for row in some] for some in (old, rows)]
    repeated = [prompt for prompt in bench.prompts for _ in range(bench.samples)]

    def scored(score: Scores, of: list[str]) -> Tensor:
        return torch.tensor(score(repeated, of), dtype=torch.double).view(-1, bench.samples)

    old_proxy, new_proxy = (scored(bench.proxy, of) for of in texts)
    result: dict[str, Any] = {
        "prompts": len(bench.prompts),
        "samples": bench.samples,
        "eval_seed": bench.seed,
        "gold": None,
        "gold_error": None,
        "gold_sft": None,
        "gold_sft_error": None,
        "kl": start_kl(policy, sft, bench, rows),
        "proxy": new_proxy.mean().item(),
        "proxy_sft": old_proxy.mean().item(),
        "accuracy": None,
        "bt_loss": None,
        "pairs": 0,
        "accuracy_sft": None,
        "bt_loss_sft": None,
        "length": sum(map(len, rows)) / len(rows),
    }
    if bench.gold is not None:
        old_gold, new_gold = (scored(bench.gold, of) for of in texts)
        result["gold"], result["gold_error"] = mean_and_error(new_gold)
        result["gold_sft"], result["gold_sft_error"] = mean_and_error(old_gold)
        result |= reward_quality(new_proxy, new_gold, bench.unit)
        before = reward_quality(old_proxy, old_gold, bench.unit)
        result |= {f"{k}_sft": before[k] for k in ("accuracy", "bt_loss")}
        result |= {"win_by": "gold", **win_rate(new_gold, old_gold)}
    elif bench.judge is not None:
        result |= {"win_by": "judge", **_judged(bench, texts[1], texts[0])}
    else:
        result |= {"win_by": "proxy", **win_rate(new_proxy, old_proxy)}
    return finite(result)


def _judged(bench: Bench, ours: list[str], theirs: list[str]) -> dict[str, float | None]:
    """The win rate by the judge: one comparison per prompt, those without a verdict left out."""
    assert bench.judge is not None
    first = slice(None, None, bench.samples)  # a judge is slow
    verdicts = bench.judge(bench.prompts, ours[first], theirs[first])
    known = [v for v in verdicts if v is not None]
    if not known:
        return {"win_rate": None, "win_low": None, "win_high": None, "judged": 0}
    share = sum(known) / len(known)
    low, high = wilson(share, len(known))
    return {"win_rate": share, "win_low": low, "win_high": high, "judged": len(known)}
