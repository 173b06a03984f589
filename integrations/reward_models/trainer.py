"""Train a Bradley-Terry reward model on TRL's RewardTrainer, with clear errors."""

import logging
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel
from trl import RewardTrainer

from .model import check_num_labels
from .preferences import check_preferences

logger = logging.getLogger(__name__)


class BadReward(RuntimeError):
    """The reward model returned NaN or infinity."""


class BTTrainer(RewardTrainer):
    """TRL's RewardTrainer with Bradley-Terry, and checks that say what to change.

    The numbers are TRL's. Checked before training: every row of the data, the number of labels,
    that pairs are left below `max_length`; and during it that all rewards are finite.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(model, str):
            check_num_labels(AutoConfig.from_pretrained(model), model)
        elif isinstance(model, PreTrainedModel) and model.can_generate():
            raise ValueError(
                f"{type(model).__name__} generates text and gives no reward. Give the name of the "
                "model, or what start_reward_model(name) returns."
            )
        super().__init__(model, *args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        whole = isinstance(dataset, Dataset)
        if whole and "chosen_ids" not in dataset.column_names:
            check_preferences(dataset, f"{dataset_name} data set", implicit=True)
        ready: Any = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if whole and len(ready) < len(dataset):
            left = f"{len(dataset) - len(ready)} of {len(dataset)} pairs of the {dataset_name} "
            left += f"data set are longer than max_length={args.max_length} tokens"
            if len(ready) == 0:
                raise ValueError(f"{left}, so none is left. Raise max_length.")
            logger.warning("%s and are left out.", left)
        return ready

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss; BadReward where a score is NaN or infinite."""
        result: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = result
        finite = outputs.logits.isfinite()
        if not finite.all():
            bad = int((~finite).sum())
            raise BadReward(
                f"step {self.state.global_step}: the reward model returned NaN or infinity for "
                f"{bad} of {finite.numel()} sequences. Check that the model it starts from is "
                "sound; else lower learning_rate, clip with max_grad_norm, or train in float32 or "
                "bf16 rather than fp16."
            )
        return (loss, outputs) if return_outputs else loss
