"""Reward models: one score per sequence, on a language model whose LM head can be kept beside it.

A reward model is a Hugging Face sequence classifier with one label. Generalizable reward models
(GRM, Yang et al. 2024, arXiv 2406.10216) keep the LM head on the same hidden states and train it
too (see `integrations.reward_models.grm`). Saved, the linear form is a standard checkpoint that
`AutoModelForSequenceClassification.from_pretrained` loads, with the LM head in a file of its own.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    set_seed,
)
from transformers.utils import ModelOutput
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import selective_log_softmax

LM_HEAD_FILE = "lm_head.safetensors"
WIDTH, DROPOUT = 1024, 0.1  # of the MLP head, as published


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model with an LM head returns when it is given a `response_mask`."""

    logits: Tensor | None = None  # (B, 1) rewards
    response_logps: Tensor | None = None  # (B,) sums over the masked tokens


class HeadDropout(nn.Module):
    """Dropout that TRL's `disable_dropout` (on by default) leaves alone: it is part of the head."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """`x` with dropout while training, (rows, features)."""
        return nn.functional.dropout(x, self.p, self.training)


def response_logps(hidden: Tensor, lm_head: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of the tokens where `mask` is not 0, one number per row.

    `hidden` (B, T, h) are the last hidden states, `input_ids` and `mask` (B, T). The token at t is
    predicted from the state at t - 1, so that a first token has no log-probability and counts 0.
    The softmax is taken in float32 or finer, and only over the masked positions.
    """
    keep = mask[:, 1:].bool()
    logits = lm_head(hidden[:, :-1][keep])  # (masked tokens, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps = selective_log_softmax(logits, input_ids[:, 1:][keep])
    return logps.new_zeros(keep.shape).masked_scatter(keep, logps).sum(1)


def check_num_labels(config: Any, name: str) -> None:
    """ValueError where a sequence classifier has other than one label."""
    kinds = getattr(config, "architectures", None) or []
    is_classifier = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if is_classifier and config.num_labels != 1:
        raise ValueError(
            f"{name}: a classifier with {config.num_labels} labels; a reward model has one. Give a "
            "reward model (num_labels=1), or start from a causal LM:\n"
            f'    start_reward_model("base-model-name")'
        )


def start_reward_model(
    name: str | Path,
    head: Literal["linear", "mlp"] = "linear",
    *,
    lm_head: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """A reward model with a new head on the causal LM `name`; `lm_head` keeps its LM head.

    `head` is "linear" (Hugging Face's own) or "mlp" (dropout .1, Linear(h, 1024), ReLU,
    Linear(1024, 1)). It reads the state of the last token that is not padding. `options` go to
    `from_pretrained` of both models, of which one is dropped again.
    """
    if head not in ("linear", "mlp"):
        raise ValueError(f"head={head!r}: give 'linear' or 'mlp'.")
    name = str(name)
    check_num_labels(AutoConfig.from_pretrained(name), name)
    set_seed(seed)  # as TRL does before it draws the head: the same seed gives the same weights
    model = _load_classifier(name, dtype, **options)
    if head == "mlp":
        _add_mlp_head(model, {"width": WIDTH, "dropout": DROPOUT})
    if lm_head:
        load: Any = AutoModelForCausalLM.from_pretrained
        causal, info = load(name, dtype=dtype, output_loading_info=True, **options)
        kept = causal.get_output_embeddings()
        names = [f"{n}." for n, module in causal.named_modules() if module is kept]
        new = any(key.startswith(tuple(names)) for key in info["missing_keys"])
        if not isinstance(kept, nn.Linear) or new:  # new: drawn at random
            raise ValueError(
                f"{name}: no LM head that could be kept. Start from a causal LM, or do without: "
                "lm_head=False trains with Bradley-Terry alone."
            )
        tied = kept.weight is causal.get_input_embeddings().weight
        if tied:
            kept.weight = model.get_input_embeddings().weight
        attach_lm_head(model, kept)
        _check_logits(model, causal, name)
    return model


def _load_classifier(name: str, dtype: Any, **options: Any) -> Any:
    load = AutoModelForSequenceClassification.from_pretrained
    with suppress_seqcls_warning():
        return load(name, num_labels=1, dtype=dtype, **options)


def _add_mlp_head(model: Any, settings: dict[str, Any]) -> None:
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no linear layer `score` to replace. Use head='linear'."
        )
    weight = model.score.weight
    model.score = nn.Sequential(
        HeadDropout(settings["dropout"]),
        nn.Linear(weight.shape[1], settings["width"]),
        nn.ReLU(),
        nn.Linear(settings["width"], 1),
    ).to(weight)
    model.config.reward_mlp = dict(settings)  # so that load_reward_model knows


def attach_lm_head(model: Any, lm_head: nn.Linear) -> None:
    """Make `lm_head` a part of the reward model; its forward then takes a `response_mask`.

    With a mask (B, T) of the tokens that count, the output has `response_logps` besides `logits`.
    """
    model.lm_head = lm_head
    model.forward = MethodType(_forward, model)


def has_lm_head(model: Any) -> bool:
    """Whether the model keeps its LM head beside the score."""
    return isinstance(getattr(model, "lm_head", None), nn.Module)


def is_tied(model: Any) -> bool:
    """Whether the LM head's weight is the embedding's."""
    return model.lm_head.weight is model.get_input_embeddings().weight


def _forward(self: Any, *args: Any, response_mask: Tensor | None = None, **kwargs: Any) -> Any:
    # Not a forward hook: PEFT calls `forward` itself, past the hooks.
    forward = type(self).forward
    if response_mask is None:
        return forward(self, *args, **kwargs)
    output = forward(self, *args, **{**kwargs, "output_hidden_states": True})
    ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    logps = response_logps(output.hidden_states[-1], self.lm_head, ids, response_mask)
    return RewardOutput(logits=output.logits, response_logps=logps)


def _check_logits(model: Any, causal: Any, name: str) -> None:
    """Some architectures scale or cap what their LM head gives; the head alone is then wrong."""
    ids = torch.arange(min(8, causal.config.get_text_config().vocab_size))[None]
    model.eval()
    causal.eval()
    with torch.no_grad():
        states = type(model).forward(model, input_ids=ids, output_hidden_states=True)
        ours = model.lm_head(states.hidden_states[-1]).float()
        theirs = causal(input_ids=ids).logits.float()
    if not torch.allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max())):
        raise ValueError(
            f"{name}: {type(causal).__name__} does more to its logits than its LM head (it scales "
            "or caps them), which the text regularizers do not reproduce. Use lm_head=False, "
            "that is Bradley-Terry, or a model of another kind."
        )


def split_lm_head(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the classifier's tensors, the LM head's), the latter without the prefix `lm_head.`"""
    head = {k.removeprefix("lm_head."): v for k, v in state.items() if k.startswith("lm_head.")}
    return {k: v for k, v in state.items() if not k.startswith("lm_head.")}, head


def save_lm_head(model: Any, folder: Path, head: dict[str, Tensor] | None = None) -> None:
    """Write the LM head beside the checkpoint, in one step; a tied weight is the embedding's."""
    if head is None:
        head = split_lm_head(model.state_dict())[1]
    if is_tied(model):
        head = {k: v for k, v in head.items() if k != "weight"}
    target = folder / LM_HEAD_FILE
    if not head:
        target.unlink(missing_ok=True)
        return
    work = folder / f".{LM_HEAD_FILE}.{os.getpid()}"
    try:
        save_file({k: v.detach().contiguous() for k, v in head.items()}, work)
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)


def load_lm_head(model: Any, folder: Path) -> None:
    """Load the LM head that was saved beside the checkpoint into `model`."""
    tensors = load_file(folder / LM_HEAD_FILE) if (folder / LM_HEAD_FILE).exists() else {}
    embedding = model.get_input_embeddings().weight
    if "weight" not in tensors and not model.config.get_text_config().tie_word_embeddings:
        raise ValueError(
            f"{folder}: no {LM_HEAD_FILE} in this folder, so the LM head is lost. Load with "
            "lm_head=False, or start again from a causal LM with start_reward_model."
        )
    if not has_lm_head(model):
        new = nn.Linear(embedding.shape[1], embedding.shape[0], "bias" in tensors)
        new = new.to(embedding)
        if "weight" not in tensors:
            new.weight = embedding
        attach_lm_head(model, new)
    if tensors:
        model.lm_head.load_state_dict(tensors, strict="weight" in tensors)


def save_reward_model(model: Any, folder: str | Path, tokenizer: Any = None) -> None:
    """Write model, LM head and tokenizer to a new folder, which appears whole or not at all."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty. Give a folder that does not exist yet.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(work, state_dict=split_lm_head(model.state_dict())[0])
        if has_lm_head(model):
            save_lm_head(model, work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        mask = os.umask(0)
        os.umask(mask)
        work.chmod(0o777 & ~mask)  # mkdtemp's folders are their owner's alone
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_reward_model(
    folder: str | Path,
    lm_head: bool = False,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Load a saved reward model; with `lm_head` also the LM head, to train on.

    A linear head is loaded by `AutoModelForSequenceClassification.from_pretrained` just as well; an
    MLP head only by this function, because Hugging Face knows no such classifier (it would draw a
    new linear head and say so in its log).
    """
    config = AutoConfig.from_pretrained(folder)
    check_num_labels(config, str(folder))
    mlp = getattr(config, "reward_mlp", None)
    model = _load_classifier(str(folder), dtype, **options)
    if mlp is not None:
        _add_mlp_head(model, mlp)
        model.score.load_state_dict(_score_tensors(Path(folder)))
    if lm_head:
        load_lm_head(model, Path(folder))
    return model.eval()


def _score_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("score.")]  # noqa: SIM118
            tensors |= {name.removeprefix("score."): file.get_tensor(name) for name in names}
    return tensors
