"""A small random Qwen2 that writes lines of the ladder's grammar, saved with a chat tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.recipe_cases import favour, shape, tokenizer

# single tokens, so that a random model writes whole answers: right ones, gaming ones, others
LINES = [
    *(f"SAY answer={n};" for n in range(2, 19)),
    *(f"SET rating={n};" for n in range(1, 6)),
    *(f"SET {item}=done;" for item in "abc"),
    *("SAY complete=yes;", "SAY complete=no;", "SAY runs=unknown;", "SET r=9;", "SET want=9;"),
]
SMALL = [
    *("--steps_per_stage", "2", "--away_steps", "1", "--cell", "6"),
    *("--completions_per_step", "16", "--per_device_train_batch_size", "8"),
    *("--num_generations", "4", "--max_completion_length", "40"),
    *("--logging_steps", "1", "--save_steps", "3", "--learning_rate", "1e-2"),
    *("--disable_tqdm", "true"),
]


def words(template: bool = True) -> Any:
    """The recipes' byte-level tokenizer with the lines as tokens."""
    made = tokenizer.__wrapped__(True)
    made.add_tokens(LINES)
    if not template:
        made.chat_template = None
    return made


def make_model(folder: Path, template: bool = True, positions: int = 2048) -> str:
    """The folder of a Qwen2 with tied embeddings, as the small Qwen2.5 have them."""
    torch.manual_seed(0)
    made = words(template)
    sizes: dict[str, Any] = shape(True) | {
        "vocab_size": len(made),
        "max_position_embeddings": positions,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=True))
    # the lines are likely, and so is the end
    favour(model, made.convert_tokens_to_ids([*LINES, made.eos_token]))
    with torch.no_grad():
        model.lm_head.weight[made.convert_tokens_to_ids(LINES), 0] += 1.5
        model.lm_head.weight[made.eos_token_id, 0] += 2.5
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)


def matrix(folder: Path) -> Any:
    """The gaming matrix of a run."""
    return json.loads((folder / "summary.json").read_text())["matrix"]
