"""How good a reward model is: pair accuracy, Bradley-Terry loss, excess loss, calibration, per set.

All of it is a function of the margins r_chosen - r_rejected. In distribution and out of it are kept
apart: `evaluate` takes named sets and gives a row for each.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid

from .grm_data import template_options
from .preferences import check_preferences


@dataclass(frozen=True)
class Calibration:
    """Reliability of the predicted preferences, bin by bin; None stands where a bin is empty."""

    error: float  # expected calibration error
    edges: list[float]  # of the bins, one more than bins
    counts: list[int]
    confidence: list[float | None]  # mean probability that the model gives its own preference
    accuracy: list[float | None]  # share of the pairs in which that preference is the label's


def _margins(values: Tensor, name: str = "margins") -> Tensor:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: shape {tuple(values.shape)}; give one number per pair.")
    values = values.detach().double()
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise ValueError(
            f"{name}: pair {bad} is {values[bad].item()}. Check the rewards of that pair: a model "
            "that returns NaN or infinity cannot be measured."
        )
    return values


def pair_accuracy(margins: Tensor) -> float:
    """Share of pairs in which the chosen response has the higher reward; a tie counts one half.

    >>> pair_accuracy(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    0.625
    """
    margins = _margins(margins)
    return float(((margins > 0).double() + 0.5 * (margins == 0).double()).mean())


def bt_loss(margins: Tensor) -> float:
    """Mean Bradley-Terry loss -log sigmoid(r_chosen - r_rejected).

    >>> round(bt_loss(torch.tensor([0.0])), 4)
    0.6931
    """
    return float(-logsigmoid(_margins(margins)).mean())


def excess_bt_loss(margins: Tensor, gold: Tensor) -> float:
    """Mean KL(Bernoulli(sigmoid(gold)) || Bernoulli(sigmoid(margins))), `gold` the true margins.

    It is how much the expected Bradley-Terry loss, with labels drawn from the gold rewards, lies
    above the least possible one; 0 exactly where the margins are the gold ones.

    >>> excess_bt_loss(torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.0]))
    0.0
    """
    margins, gold = _margins(margins), _margins(gold, "gold")
    if margins.shape != gold.shape:
        raise ValueError(f"{len(margins)} margins, but {len(gold)} gold ones. Give one for each.")
    p = gold.sigmoid()
    yes = p * (logsigmoid(gold) - logsigmoid(margins))
    no = (1 - p) * (logsigmoid(-gold) - logsigmoid(-margins))
    return float((yes + no).mean())


def calibration(margins: Tensor, bins: int = 10) -> Calibration:
    """Expected calibration error over `bins` equal bins of the model's confidence in [.5, 1].

    Which response of a pair stands first says nothing, so the model's confidence in its own
    preference, sigmoid(|margin|), is compared with how often that preference is the label's. (Over
    [0, 1] with both orders of each pair the error is the same.) A tie is right half of the time.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: give at least 1.")
    margins = _margins(margins)
    confidence = margins.abs().sigmoid()
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    edges = torch.linspace(0.5, 1, bins + 1, dtype=torch.double)
    which = torch.bucketize(confidence, edges[1:-1].contiguous(), right=True)
    counts = torch.zeros(bins, dtype=torch.double).index_add(0, which, torch.ones_like(margins))
    zero = torch.zeros(bins, dtype=torch.double)
    means = zero.index_add(0, which, confidence) / counts
    shares = zero.index_add(0, which, right) / counts
    gap = (means - shares).abs().nan_to_num() * counts
    return Calibration(
        error=float(gap.sum() / counts.sum()),
        edges=edges.tolist(),
        counts=[int(n) for n in counts],
        confidence=[None if math.isnan(x) else x for x in means.tolist()],
        accuracy=[None if math.isnan(x) else x for x in shares.tolist()],
    )


def summarise(margins: Tensor, gold: Tensor | None = None, bins: int = 10) -> dict[str, Any]:
    """All measures of one set, as plain data; `excess_bt_loss` only where `gold` is given."""
    result = {
        "pairs": len(margins),
        "accuracy": pair_accuracy(margins),
        "bt_loss": bt_loss(margins),
        "calibration_error": calibration(margins, bins).error,
        "calibration": asdict(calibration(margins, bins)),
        "mean_margin": float(margins.double().mean()),
    }
    if gold is not None:
        result["excess_bt_loss"] = excess_bt_loss(margins, gold)
    return result


def pair_ids(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens of prompt + chosen and prompt + rejected, as TRL's RewardTrainer makes them."""
    prompt, ids = row.get("prompt"), []
    for column in ("chosen", "rejected"):
        text = row[column]
        if isinstance(text, list):
            turns = (prompt or []) + text
            options = template_options(row)
            given = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)
        else:
            text = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
            given = tokenizer(text=(prompt or "") + text)
        ids.append(list(given["input_ids"]))
    return ids[0], ids[1]


@torch.no_grad()
def score(
    model: Any, sequences: list[list[int]], pad_token_id: int, batch_size: int = 16
) -> Tensor:
    """The reward of each sequence of tokens, on the CPU; batches are of similar length."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    rewards = torch.empty(len(sequences))
    training = model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            ids = [torch.tensor(sequences[i]) for i in rows]
            pad = torch.nn.utils.rnn.pad_sequence
            batch = pad(ids, batch_first=True, padding_value=pad_token_id)
            mask = pad([torch.ones_like(i) for i in ids], batch_first=True)
            given = {"input_ids": batch.to(model.device), "attention_mask": mask.to(model.device)}
            rewards[rows] = model(**given, use_cache=False).logits[:, 0].float().cpu()
    finally:
        model.train(training)
    return rewards


def evaluate(
    model: Any,
    tokenizer: Any,
    datasets: Mapping[str, Dataset],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    bins: int = 10,
) -> dict[str, dict[str, Any]]:
    """Measure a reward model on each named set of pairs (prompt, chosen, rejected).

    Returns, by name, what `summarise` gives, and `left_out`: how many pairs are longer than
    `max_length` tokens. Sets with columns gold_chosen and gold_rejected get `excess_bt_loss` too.
    The texts are tokenized as TRL's RewardTrainer does it, and padded on the right.
    """
    _check_model(model, tokenizer)
    for name, dataset in datasets.items():
        check_preferences(dataset, name, implicit=True)
    results = {}
    for name, dataset in datasets.items():
        rows: list[Any] = list(dataset)
        pairs = [pair_ids(tokenizer, row) for row in rows]
        keep = [
            i for i, pair in enumerate(pairs) if not max_length or max(map(len, pair)) <= max_length
        ]
        if not keep:
            raise ValueError(
                f"{name}: every pair is longer than max_length={max_length}. Raise it."
            )
        sequences = [pairs[i][side] for side in (0, 1) for i in keep]
        pad: int = model.config.get_text_config().pad_token_id
        chosen, rejected = score(model, sequences, pad, batch_size).chunk(2)
        gold = None
        if rows[0].get("gold_chosen") is not None:
            differences = [rows[i]["gold_chosen"] - rows[i]["gold_rejected"] for i in keep]
            gold = torch.tensor(differences, dtype=torch.double)
        try:
            results[name] = summarise(chosen - rejected, gold, bins)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        results[name]["left_out"] = len(rows) - len(keep)
    return results


def _check_model(model: Any, tokenizer: Any) -> None:
    if model.config.num_labels != 1:
        raise ValueError(
            f"the model has {model.config.num_labels} labels; a reward model has one. Load it with "
            "num_labels=1."
        )
    if model.config.get_text_config().pad_token_id is None:
        raise ValueError(
            "the model's config has no pad_token_id, by which it finds the last token. Set the one "
            "it was trained with: model.config.pad_token_id = tokenizer.pad_token_id"
        )
    if tokenizer.eos_token is None:
        raise ValueError(
            "the tokenizer has no end-of-text token. Set the one the model was trained with: "
            "tokenizer.eos_token = '</s>'"
        )
