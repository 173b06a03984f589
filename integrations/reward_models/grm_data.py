"""What GRM needs of a batch beyond TRL's: the response's tokens, the reference's log-probs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from trl.data_utils import common_prefix_length
from trl.trainer.reward_trainer import DataCollatorForPreference

STARTS = ("chosen_start", "rejected_start")  # where the responses begin, in tokens
REFERENCES = ("reference_chosen", "reference_rejected")  # log-probs of the reference


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's collator, and which tokens are the response's, and the reference's log-probs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with `response_mask` and the reference's log-probabilities."""
        batch = super().torch_call(examples)
        begin = torch.tensor([e[column] for column in STARTS for e in examples])
        position = torch.arange(batch["input_ids"].shape[1])
        batch["response_mask"] = batch["attention_mask"] * (position >= begin[:, None])
        for column in REFERENCES:
            if column in examples[0]:
                batch[column] = torch.tensor([e[column] for e in examples], dtype=torch.float)
        return batch


def template_options(example: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL hands to the chat template besides the messages: columns of the row."""
    tools = example.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(example.get("chat_template_kwargs") or {})}


def response_starts(example: dict[str, Any], tokenizer: Any) -> dict[str, int]:
    """Where the two responses begin: after the tokens they share with the prompt alone.

    At the border the tokenizer may merge the prompt's end with the response's beginning; such a
    token counts as the response's.
    """
    prompt = example["prompt"]
    if isinstance(prompt, list):
        ids = tokenizer.apply_chat_template(
            prompt,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            **template_options(example),
        )["input_ids"]
    else:
        ids = tokenizer(text=prompt)["input_ids"]
    starts = {}
    for side, column in zip(("chosen", "rejected"), STARTS, strict=True):
        whole = example[f"{side}_ids"]
        starts[column] = common_prefix_length(ids, whole)
        if max(starts[column], 1) >= len(whole):  # a first token cannot be predicted
            raise ValueError(
                f"the '{side}' response to the prompt {str(prompt)[:60]!r} has no token of its own "
                "that could be predicted. Check that the chat template writes the assistant's turn."
            )
    return starts
