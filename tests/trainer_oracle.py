"""The trainers' losses written out, GR of them on a plain model (the oracle), and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from flatopt import gradreg_gradient
from tests.trainer_cases import BETA, RADIUS, load_model, model_path, reference_path


def token_logps(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """log pi of each token but the first, given those before it."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def completion_logps(model: Any, batch: dict[str, Any]) -> Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    return token_logps(model, ids, mask)[:, -batch["completion_ids"].shape[1] :]


def sft_loss(model: Any, batch: dict[str, Any], accumulation: int) -> Tensor:
    labels = batch["labels"][:, 1:]
    logps = token_logps(model, batch["input_ids"], batch.get("attention_mask"))
    return -logps[labels != -100].sum() / batch["num_items"]


def reward_loss(model: Any, batch: dict[str, Any], accumulation: int) -> Tensor:
    output = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
    chosen, rejected = output.logits.squeeze(-1).chunk(2)
    return -logsigmoid(chosen - rejected).mean() / accumulation


def dpo_loss(model: Any, batch: dict[str, Any], accumulation: int) -> Tensor:
    reference = load_model(reference_path()).to(next(model.parameters()).dtype)
    mask = batch["completion_mask"][:, 1:]

    def summed(m: Any) -> Tensor:
        return (token_logps(m, batch["input_ids"], batch.get("attention_mask")) * mask).sum(1)

    with torch.no_grad():
        old = summed(reference)
    chosen, rejected = (summed(model) - old).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected)).mean() / accumulation


def _policy_terms(ratio: Tensor, advantages: Tensor) -> Tensor:
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def rloo_loss(model: Any, batch: dict[str, Any], accumulation: int, samples: str) -> Tensor:
    logps = (completion_logps(model, batch) * batch["completion_mask"]).sum(1)
    old = logps.detach() - batch["log_ratio"] if samples == "score" else batch["old_logps"]
    return _policy_terms((logps - old).exp(), batch["advantages"]).mean() / accumulation


def grpo_loss(
    model: Any, batch: dict[str, Any], accumulation: int, samples: str, loss_type: str
) -> Tensor:
    logps, mask = completion_logps(model, batch), batch["completion_mask"]
    if samples == "sequence":  # the expected reward itself, by the ratio of whole completions
        ratio = ((logps - batch["old_per_token_logps"]) * mask).sum(1).exp()
        value = ratio * batch["advantages"]
        if loss_type == "grpo":
            return -(value / mask.sum(1)).mean() / accumulation
        return -value.sum() / (len(value) * 6) / accumulation
    score = samples == "score"
    old = logps.detach() - batch["log_ratio"] if score else batch["old_per_token_logps"]
    terms = _policy_terms((logps - old).exp(), batch["advantages"][:, None]) * mask
    if loss_type == "grpo":
        return (terms.sum(1) / mask.sum(1)).mean() / accumulation
    return terms.sum() / (len(terms) * 6) / accumulation  # 6 = max_completion_length


def loss_of(kind: str, samples: str = "importance", loss_type: str = "dr_grpo") -> Callable:
    if kind == "grpo":
        return lambda m, b, a: grpo_loss(m, b, a, samples, loss_type)
    if kind == "rloo":
        return lambda m, b, a: rloo_loss(m, b, a, samples)
    return {"sft": sft_loss, "plain": sft_loss, "dpo": dpo_loss, "reward": reward_loss}[kind]


@dataclass
class Expected:
    """The oracle's answer on a plain model in float64, by names of parameters."""

    gradient: dict[str, Tensor]  # g1
    combined: dict[str, Tensor]  # g1 + strength * H g1


def oracle(
    kind: str,
    before: dict[str, Tensor],
    batches: list[dict[str, Any]],
    strength: float,
    *,
    loss: Callable | None = None,
    radius: float = RADIUS,
    exclude: tuple[str, ...] = (),
    tied: bool = False,
) -> Expected:
    """GR of the written-out loss on the recorded batches: `gradreg_gradient` on a plain model."""
    model = load_model(model_path(0.0, tied, kind == "reward"), kind == "reward").double()
    model.load_state_dict(before, strict=False)
    model.train()
    named = dict(model.named_parameters())
    loss = loss or loss_of(kind)
    batches = [dict(b) for b in batches]
    for batch in batches:
        batch.update({k: v.double() for k, v in batch.items() if _is_float(v)})
        if kind in ("grpo", "rloo"):
            _add_old_logps(model, batch)

    def total() -> Tensor:
        return sum((loss(model, b, len(batches)) for b in batches), torch.zeros(()))

    everything = list(named.values())
    g1 = dict(zip(named, torch.autograd.grad(total(), everything), strict=True))
    moved = [n for n in named if n not in exclude]
    eps = radius * length([named[n] for n in moved]) / length([g1[n] for n in moved])
    values = gradreg_gradient(total, [named[n] for n in moved], strength, eps)
    return Expected(g1, g1 | dict(zip(moved, values, strict=True)))


@torch.no_grad()
def _add_old_logps(model: Any, batch: dict[str, Any]) -> None:
    """On policy, GRPO's old log-probs are those of theta; and log pi / pi_old at theta."""
    logps = completion_logps(model, batch)
    if "old_logps" in batch:
        batch["log_ratio"] = (logps * batch["completion_mask"]).sum(1) - batch["old_logps"]
        return
    if batch.get("old_per_token_logps") is None:
        batch["old_per_token_logps"] = logps
    batch["log_ratio"] = logps - batch["old_per_token_logps"]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# ---- comparisons ------------------------------------------------------------------------------


def length(tensors: Any) -> float:
    return float(torch.cat([t.detach().double().flatten() for t in tensors]).norm())


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """||left - right|| / ||right|| over all parameters as one vector."""
    assert left.keys() == right.keys()
    return length([left[n].double() - right[n].double() for n in right]) / length(right.values())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)
