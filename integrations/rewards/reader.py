"""A language model that reads cases and writes short verdicts, greedily: base of both judges."""

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .judge_prompt import forbidden_strings
from .pretrained import load_config, load_tokenizer, max_positions

LEAST_ROOM = 64  # tokens that must be left for a case beside the instruction


class Reader(ABC):
    """Holds the judge's model and tokenizer; a subclass says what an empty prompt looks like.

    Decoding is greedy, so it uses no random numbers. ValueError for sizes below 1, or where the
    instruction and an answer do not fit into what the model can read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_new_tokens: int,
        max_input_tokens: int | None,
        patience: int,
    ) -> None:
        if min(batch_size, max_new_tokens, patience) < 1:
            raise ValueError("The judge's batch_size, max_new_tokens, patience must be at least 1.")
        self.tokenizer, self.batch_size, self.patience = tokenizer, batch_size, patience
        self.forbidden = forbidden_strings(tokenizer)
        self.limit = self._input_limit(model, max_new_tokens, max_input_tokens)
        self.model = model.eval().requires_grad_(False)
        eos = getattr(model.generation_config, "eos_token_id", None)
        many = eos if isinstance(eos, list) else [eos]
        ends = {i for i in (tokenizer.eos_token_id, *many) if isinstance(i, int)}
        # Replaced, not changed: chat models ship sampling settings and a repetition penalty, and
        # the penalty alone moves a verdict, because its words occur in the prompt.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(ends),
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        option: str = "--judge-model",
        **options: Any,
    ) -> Self:
        """Load the judge from a folder or hub name; bfloat16 on a GPU, float32 elsewhere.

        `option`: how the command line calls it, for the messages.
        """
        tokenizer = load_tokenizer(name, option)
        load_config(name, tokenizer, option)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        model.to(place)  # pyright: ignore
        return cls(model, tokenizer, **options)

    @abstractmethod
    def frame(self) -> list[int]:
        """The token ids of a prompt whose case is empty."""

    @torch.no_grad()
    def _generate(self, inputs: list[list[int]]) -> list[str]:
        """Continue each list of token ids greedily; returns the new text of each."""
        length = max(len(ids) for ids in inputs)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        # Left padding: generation continues at the right end.   ids, mask: (batch, length)
        ids = torch.tensor([[pad] * (length - len(i)) + i for i in inputs], device=device)
        mask = torch.tensor([[0] * (length - len(i)) + [1] * len(i) for i in inputs], device=device)
        output = self.model.generate(input_ids=ids, attention_mask=mask)  # pyright: ignore
        return self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)

    def _input_limit(self, model: PreTrainedModel, new: int, wanted: int | None) -> int:
        """The most tokens a prompt may have, checked against what the model can read."""
        positions = max_positions(model.config.get_text_config())
        limit = wanted if wanted is not None else 2048
        if positions is not None and wanted is None:
            limit = min(limit, positions - new)
        if positions is not None and limit + new > positions:
            raise ValueError(
                f"The judge reads {positions} tokens; {limit} of input and {new} new ones do not "
                f"fit. Set max_input_tokens to at most {positions - new}."
            )
        needed = len(self.frame())
        if needed + LEAST_ROOM > limit:
            raise ValueError(
                f"The judge's instruction and example take {needed} tokens of {limit}; at least "
                f"{LEAST_ROOM} more are needed for a case. Raise max_input_tokens, or give another "
                "judge."
            )
        return limit
