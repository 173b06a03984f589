"""Tiny language models with real tokenizers on disk, for the tests of the real-model path."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from integrations.data import EXAMPLE_QUESTION, EXAMPLE_REPLY, SYSTEM
from integrations.rewards.correctness import TAGS
from integrations.rewards.judge_prompt import EXAMPLE_VERDICT
from integrations.rewards.judge_prompt import SYSTEM as JUDGE_SYSTEM

# Written for these tests, in the form of GSM8K.
ROWS = [
    {
        "question": "Tom has 3 red and 4 blue marbles. How many marbles has he?",
        "answer": "Tom has 3 + 4 = <<3+4=7>>7 marbles.\n#### 7",
    },
    {
        "question": "A bus makes 4 trips with 3 people each. How many people ride?",
        "answer": "4 trips with 3 people are 4 * 3 = <<4*3=12>>12 people.\n#### 12",
    },
    {
        "question": "A shop sells 20 coats at $50 each. How many dollars does it take in?",
        "answer": "20 coats at $50 are 20 * 50 = $<<20*50=1000>>1,000.\n#### $1,000",
    },
    {
        "question": "Ann cuts 9 metres of rope in 2 equal parts. How long is one part?",
        "answer": "One part is 9 / 2 = <<9/2=4.5>>4.5 metres.\n#### 4.50",
    },
]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH = 32


def make_tokenizer(chat: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on the task's texts; the answer tags are ordinary tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(  # pyright: ignore
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [SYSTEM, EXAMPLE_QUESTION, EXAMPLE_REPLY, JUDGE_SYSTEM, *[EXAMPLE_VERDICT] * 5]
    core.train_from_iterator(texts + [row["question"] + row["answer"] for row in ROWS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>" if pad else None,
        padding_side="left",
    )
    tokenizer.add_tokens(list(TAGS))
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def make_model(
    tokenizer: PreTrainedTokenizerFast, says: Sequence[int] = (), strength: float = 10.0
) -> Qwen2ForCausalLM:
    """A random model or, with `says`, one that continues each of these tokens with the next.

    The attention and MLP outputs are zero, so the next token depends on the last one alone.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config).eval()
    if says:
        assert len(set(says)) == len(says) <= WIDTH
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()  # pyright: ignore
                layer.mlp.down_proj.weight.zero_()  # pyright: ignore
            for i, (now, then) in enumerate(pairwise(says)):
                direction = torch.nn.functional.one_hot(torch.tensor(i), WIDTH).float()
                model.model.embed_tokens.weight[now] = direction
                model.lm_head.weight[then] += strength * direction
    return model


def chain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens that lead from the end of a chat prompt through `text` to the end of the turn."""
    ids = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[:1]) == "\n"
    return [*ids, tokenizer.eos_token_id]  # pyright: ignore


def save(folder: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast | None) -> str:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)
