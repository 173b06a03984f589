"""A sequence classifier as a reward: one score for each prompt with its completion, all checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig

from ..reward_models.metrics import pair_ids, score
from ..reward_models.model import check_num_labels, load_reward_model
from ..reward_models.trainer import BadReward
from ..rewards.pretrained import check_model_folder, load_config, load_tokenizer, max_positions


def check_reward_folder(name: str, option: str) -> None:
    """ValueError where `name` is no reward model that can be loaded; it names the option."""
    check_model_folder(name, option)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    check_num_labels(config, f"{option} {name}")
    kinds = getattr(config, "architectures", None) or ["unknown"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"{option} {name}: {kinds[0]} gives no score. Give a sequence classifier with one "
            "label (AutoModelForSequenceClassification, num_labels=1)."
        )


class Scorer:
    """The raw scores of a reward model, in eval mode and without gradients.

    Texts are tokenized as TRL's RewardTrainer does: prompt + completion + end token, or the chat
    template of the reward model's own tokenizer. `length`: the most tokens that are read; of a
    longer text the beginning is left out, as the end is what a completion is.
    """

    def __init__(
        self,
        name: str,
        option: str = "--reward_model",
        *,
        device: str = "cpu",
        batch: int = 16,
        length: int | None = None,
    ) -> None:
        check_reward_folder(name, option)
        self.name, self.option, self.batch = name, option, batch
        self.tokenizer: Any = load_tokenizer(name, option)
        config = load_config(name, self.tokenizer, option)
        positions = max_positions(config)
        self.length = min(x for x in (length, positions, 1 << 30) if x is not None)
        self.model = load_reward_model(name, use_safetensors=True).to(device)
        self.model.requires_grad_(False)
        text_config = self.model.config.get_text_config()
        if text_config.pad_token_id is None:  # as TRL does: it finds the last token by it
            text_config.pad_token_id = self.tokenizer.pad_token_id

    def check_prompt(self, prompt: Any) -> None:
        """ValueError where chat prompts are given to a tokenizer without a template."""
        if not isinstance(prompt, str) and self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.option} {self.name}: the prompts are chats, and its tokenizer has no chat "
                "template. Give another model, or write the prompts as text."
            )

    def ids(self, prompt: Any, text: str) -> list[int]:
        """The tokens of one prompt with its completion."""
        reply: Any = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        pair = pair_ids(self.tokenizer, {"prompt": prompt, "chosen": reply, "rejected": reply})
        return pair[0][-self.length :]

    def __call__(
        self,
        prompts: Sequence[Any],
        texts: Sequence[str],
        where: str = "batch, column 'completion'",
    ) -> list[float]:
        """One score per completion; BadReward, which names the row, where one is not finite."""
        sequences = [self.ids(*both) for both in zip(prompts, texts, strict=True)]
        pad: int = self.model.config.get_text_config().pad_token_id
        scores = score(self.model, sequences, pad, self.batch)
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            row = int(bad[0])
            raise BadReward(
                f"{where}, row {row}: {self.option} {self.name} gives {scores[row].item()} for "
                f"{texts[row][:60]!r}. Such a reward cannot be trained on: check its weights, or "
                "give another reward model."
            )
        return torch.Tensor.tolist(scores.double())
