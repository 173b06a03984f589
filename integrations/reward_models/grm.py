"""Train a generalizable reward model (GRM): Bradley-Terry with a text regularizer, on TRL.

GRM (Yang et al. 2024, arXiv 2406.10216) keeps the LM head on the reward model's hidden states and
trains with a loss on the text as well, which keeps the features general:

    loss = w * L_text + (1 - w) * L_BT,    L_BT = -logsigmoid(r_chosen - r_rejected)

Gradient regularization is a third way, and works on both::

    trainer = GRMTrainer("base-model", args=GRMConfig("out"), train_dataset=pairs)
    flatopt.attach(trainer, ratio=1.0)
    trainer.train()
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from .grm_data import REFERENCES, STARTS, PairCollator, response_starts
from .model import (
    has_lm_head,
    is_tied,
    load_lm_head,
    response_logps,
    save_lm_head,
    split_lm_head,
    start_reward_model,
)
from .trainer import BTTrainer

LM_LOSSES = ("sft", "sft_nll", "dpo_free", "dpo")
LOGPS = ("sum", "mean")


def text_loss(
    kind: str, chosen: Tensor, rejected: Tensor, beta: float, reference: Tensor | float = 0.0
) -> Tensor:
    """L_text, averaged over pairs, from the log-probabilities of the responses.

    "sft": -logsigmoid(beta * chosen); "sft_nll": -chosen; "dpo_free": -logsigmoid(beta * (chosen -
    rejected)); "dpo": -logsigmoid(beta * (chosen - rejected - reference)), reference being the same
    difference under the reference model.
    """
    if kind == "sft":
        return -logsigmoid(beta * chosen).mean()
    if kind == "sft_nll":
        return -chosen.mean()
    if kind == "dpo_free":
        return -logsigmoid(beta * (chosen - rejected)).mean()
    if kind == "dpo":
        return -logsigmoid(beta * (chosen - rejected - reference)).mean()
    raise ValueError(f"lm_loss={kind!r}: give one of {', '.join(LM_LOSSES)}.")


@dataclass
class GRMConfig(RewardConfig):
    """TRL's RewardConfig, and the text regularizer of GRM."""

    lm_weight: float = field(
        default=0.01, metadata={"help": "w: share of the text loss; 0 is Bradley-Terry, bitwise."}
    )
    lm_loss: str = field(
        default="sft", metadata={"help": "Text loss: sft, sft_nll, dpo_free or dpo."}
    )
    lm_beta: float = field(
        default=0.1, metadata={"help": "Factor on the log-probabilities, but for sft_nll."}
    )
    lm_logp: str = field(
        default="sum",
        metadata={
            "help": "Log-probability of a response: 'sum' over its tokens (as published: it grows "
            "with the length, and -logsigmoid is then all but linear) or their 'mean'."
        },
    )
    reward_head: str = field(
        default="linear",
        metadata={"help": "Head of a model that is given by name: 'linear' or 'mlp'."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lm_weight <= 1:
            raise ValueError(f"lm_weight={self.lm_weight}: give a share from 0 to 1.")
        if not 0 < self.lm_beta < math.inf:
            raise ValueError(f"lm_beta={self.lm_beta}: give a positive number.")
        if self.lm_loss not in LM_LOSSES:
            raise ValueError(f"lm_loss={self.lm_loss!r}: give one of {', '.join(LM_LOSSES)}.")
        if self.lm_logp not in LOGPS:
            raise ValueError(f"lm_logp={self.lm_logp!r}: give 'sum' or 'mean'.")


class GRMTrainer(BTTrainer):
    """BTTrainer with GRM's text loss. With `lm_weight=0` it is BTTrainer, bit for bit.

    `model` is the name of a causal LM, or a reward model with an LM head (`start_reward_model`,
    `load_reward_model(..., lm_head=True)`). The data need an explicit prompt: the text loss is on
    the response alone. For lm_loss="dpo" the reference's log-probs are computed once before
    training, by `reference` (a causal LM), or, where none is given, by the model as it is then (so
    resume with a trainer that is built as it was at first); data with columns reference_chosen and
    reference_rejected keep their own.

    Checkpoints are standard classifiers with lm_head.safetensors beside. With PEFT the adapter is
    saved; the LM head is frozen unless it is among `modules_to_save`.
    """

    args: GRMConfig

    def __init__(
        self, model: Any, args: GRMConfig | None = None, *, reference: Any = None, **kwargs: Any
    ) -> None:
        args = GRMConfig("grm") if args is None else args
        if not isinstance(args, GRMConfig):
            raise TypeError(f"args is {type(args).__name__}: give a GRMConfig.")
        if isinstance(model, str):
            given: Any = args.model_init_kwargs or {}
            args = copy.copy(args)
            args.model_init_kwargs = None  # used here; TRL would warn that it does not use them
            head: Any = args.reward_head
            lm_head = args.lm_weight > 0
            model = start_reward_model(model, head, lm_head=lm_head, seed=args.seed, **given)
        if args.lm_weight > 0 and not has_lm_head(model):
            raise ValueError(
                "The reward model has no LM head, which lm_weight > 0 needs. Make it with "
                "start_reward_model(name), load it with load_reward_model(folder, lm_head=True), "
                "or set lm_weight=0."
            )
        if args.lm_weight == 0 and has_lm_head(model) and not is_tied(model):
            model.lm_head.requires_grad_(False)  # it gets no gradient, for which DDP would wait
        self.reference = reference
        super().__init__(model, args, **kwargs)
        if args.lm_weight > 0:
            collator: Any = self.data_collator
            if type(collator) is DataCollatorForPreference:
                self.data_collator = PairCollator(**vars(collator))
            elif not isinstance(collator, PairCollator):
                raise TypeError(
                    f"data_collator is {type(collator).__name__}, which does not say which tokens "
                    "are the response's. Leave it out, or give a subclass of PairCollator."
                )
            if args.lm_loss == "dpo":
                self.train_dataset = self._add_reference(self.train_dataset)
                if isinstance(self.eval_dataset, dict):
                    sets: Any = {k: self._add_reference(v) for k, v in self.eval_dataset.items()}
                    self.eval_dataset = sets
                elif self.eval_dataset is not None:
                    self.eval_dataset = self._add_reference(self.eval_dataset)
                self._started = True

    _started = False  # whether the model may have moved on from where it was the reference

    # ---- data -----------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [c for c in (*STARTS, *REFERENCES) if c not in columns]

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if args.lm_weight == 0:
            return dataset
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"the {dataset_name} data set is {type(dataset).__name__}: the text loss needs a "
                "datasets.Dataset. Load it without streaming."
            )
        if not set(STARTS) <= set(dataset.column_names):
            if "prompt" not in dataset.column_names:
                raise ValueError(
                    f"the {dataset_name} data set has no column 'prompt', so where the response "
                    "begins is not known. Split it off: dataset.map(trl.extract_prompt)."
                )
            dataset = dataset.map(response_starts, fn_kwargs={"tokenizer": processing_class})
        if args.lm_loss == "dpo" and self._started:
            dataset = self._add_reference(dataset)
        return dataset

    def _add_reference(self, dataset: Any) -> Any:
        """Add the reference's log-probs to a prepared data set that has none."""
        present = [name for name in REFERENCES if name in dataset.column_names]
        if len(present) == 2:
            return dataset
        if present:
            raise ValueError(f"column '{present[0]}' alone. Give both {' and '.join(REFERENCES)}.")
        if self._started and self.reference is None:
            raise ValueError(
                'lm_loss="dpo": the reference was the model before training, which is gone. Give '
                "this data set as eval_dataset to the trainer, or give a reference model."
            )
        columns = {name: [] for name in REFERENCES}
        for batch in self._batches(dataset):
            chosen, rejected = self._reference_logps(batch).chunk(2)
            columns[REFERENCES[0]] += chosen.tolist()
            columns[REFERENCES[1]] += rejected.tolist()
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        return dataset

    def _batches(self, dataset: Any) -> Iterator[dict[str, Tensor]]:
        size = self.args.per_device_eval_batch_size
        for first in range(0, len(dataset), size):
            rows = [dataset[i] for i in range(first, min(first + size, len(dataset)))]
            batch: Any = self.data_collator(rows)
            yield {k: v.to(self.accelerator.device) for k, v in batch.items()}

    @torch.no_grad()
    def _reference_logps(self, batch: dict[str, Tensor]) -> Tensor:
        names = ("input_ids", "attention_mask", "response_mask")
        given = {name: batch[name] for name in names}
        model: Any = self.model if self.reference is None else self.reference
        training = model.training
        model.eval()
        try:
            if self.reference is None:
                logps = model(**given).response_logps
            else:
                mask = given.pop("response_mask")
                logits = model.to(mask.device)(**given).logits
                logps = response_logps(logits, nn.Identity(), given["input_ids"], mask)
        finally:
            model.train(training)
        return self._form(logps, batch["response_mask"])

    # ---- loss -----------------------------------------------------------------------------------

    def _form(self, logps: Tensor, mask: Tensor) -> Tensor:
        if self.args.lm_logp == "sum":
            return logps
        return logps / mask[:, 1:].sum(1).clamp(min=1)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """(1 - lm_weight) * Bradley-Terry + lm_weight * text loss; all parts are logged."""
        own = (*REFERENCES, "response_mask")
        plain = {k: v for k, v in inputs.items() if k not in own}
        weight = self.args.lm_weight
        if weight == 0:
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        mask = inputs["response_mask"]
        pairs = len(mask) // 2
        if self.args.lm_loss.startswith("sft"):  # the rejected texts are not needed
            mask = torch.cat([mask[:pairs], torch.zeros_like(mask[pairs:])])
        plain["response_mask"] = mask
        bt_loss, outputs = super().compute_loss(model, plain, True, num_items_in_batch)
        chosen, rejected = self._form(outputs.response_logps, mask).chunk(2)
        reference: Any = 0.0
        if self.args.lm_loss == "dpo":
            reference = inputs[REFERENCES[0]] - inputs[REFERENCES[1]]
        text = text_loss(self.args.lm_loss, chosen, rejected, self.args.lm_beta, reference)
        loss = weight * text + (1 - weight) * bt_loss
        metrics = self._metrics["train" if model.training else "eval"]
        for name, value in (("bt_loss", bt_loss), ("text_loss", text), ("logp", chosen.mean())):
            everywhere: Any = self.accelerator.gather(value.detach())
            metrics[name].append(everywhere.mean().item())
        return (loss, outputs) if return_outputs else loss

    # ---- checkpoints ----------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if not has_lm_head(model) or is_peft_model(model):
            super()._save(output_dir, state_dict)
            return
        state = model.state_dict() if state_dict is None else state_dict
        classifier, head = split_lm_head(state)
        super()._save(output_dir, classifier)
        if self.args.should_save:
            save_lm_head(model, Path(output_dir or self.args.output_dir or "."), head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint:
            self._load_head(self.state.best_model_checkpoint)

    def _load_head(self, folder: str) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if has_lm_head(model) and not is_peft_model(model):
            load_lm_head(model, Path(folder))
