"""Small models of the recipes' architectures and small data of their columns, for dry runs."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from integrations.data import SYSTEM
from integrations.rewards.correctness import TAGS
from tests.tiny_models import CHAT_TEMPLATE, ROWS, chain, make_model, make_tokenizer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "integrations" / "recipes"
# recipes of the self-contained worlds, which have tests of their own
STEP = " then we add one"  # a single token that reads like a step of reasoning
ELSEWHERE = {  # with tests of their own
    "rules-small",  # of a model that is made here
    "ladder-chat",
}
# sizes in place of the recipes'; all else is theirs
SMALL = [
    *("--steps", "2", "--completions_per_step", "8", "--per_device_train_batch_size", "4"),
    *("--num_generations", "2", "--max_completion_length", "4", "--logging_steps", "1"),
    *("--save_steps", "1", "--disable_tqdm", "true", "--learning_rate", "1e-3"),
]
SMALL_RLHF = [
    *("--sft_steps", "1", "--sft_batch_size", "2", "--reward_steps", "1"),
    *("--reward_batch_size", "2", "--max_length", "64", "--save_every", "1"),
    *("--sample_batch_size", "4", "--score_batch_size", "4"),
    *("--eval_prompts", "2", "--eval_samples", "2"),
]
MATH = [
    {
        "problem": f"What is ${i} + {i}$?",
        "solution": f"Twice ${i}$ is $\\boxed{{{2 * i}}}$.",
        "level": f"Level {1 + i % 2}",
    }
    for i in range(1, 7)
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Count to {i}."}],
        "chosen": [{"role": "assistant", "content": f"It is {i}, surely."}],
        "rejected": [{"role": "assistant", "content": f"No idea about {i}."}],
    }
    for i in range(8)
]
POSTS = [
    {"prompt": f"POST: my cat has {i} toys.\n\nTL;DR:", "completion": f" {i} toys"}
    for i in range(8)
]


def names() -> list[str]:
    """The recipes of real models; those of the self-contained worlds have tests of their own."""
    parts = {p.stem: yaml.safe_load(p.read_text()) for p in FOLDER.glob("*.yaml")}
    real = {name for name, part in parts.items() if not {"world", "policy"} & part.keys()}
    return sorted(real - ELSEWHERE)


@cache
def tokenizer(chat: bool) -> PreTrainedTokenizerFast:
    """Byte-level, about 300 tokens; with a chat template, as Qwen2's, or without, as Pythia's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(  # pyright: ignore
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([SYSTEM, *(row["question"] for row in ROWS)], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    made.add_tokens([*TAGS, STEP])
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def shape(chat: bool) -> dict[str, Any]:
    """What the small models' configs share."""
    words = tokenizer(chat)
    return {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
        "initializer_range": 0.1,
    }


def favour(model: Any, tokens: Any) -> None:
    """Let some tokens be written often: the rules pay for tags and words, and not for noise."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 0.3  # a direction that every state has
        head = model.get_output_embeddings()
        if head is not None:
            head.weight[tokens, 0] += 1.0


def make_models(folder: Path) -> dict[str, str]:
    """A Qwen2 (tied, as the small Qwen2.5 are), a Pythia, a classifier and a judge."""
    torch.manual_seed(0)
    qwen = Qwen2Config(**shape(True), num_key_value_heads=1, tie_word_embeddings=True)
    neox = GPTNeoXConfig(**shape(False), tie_word_embeddings=False)
    gold = GPTNeoXConfig(**shape(False))
    gold.num_labels = 1
    made: dict[str, tuple[Any, bool]] = {
        "qwen": (Qwen2ForCausalLM(qwen), True),
        "pythia": (GPTNeoXForCausalLM(neox), False),
        "gold": (GPTNeoXForSequenceClassification(gold), False),
    }
    for name, (model, chat) in made.items():
        favour(model, tokenizer(chat).convert_tokens_to_ids([*TAGS, STEP]))
        model.save_pretrained(folder / name)
        tokenizer(chat).save_pretrained(folder / name)
    words = make_tokenizer()
    judge = make_model(words, chain(words, "Score: 4"))  # a random judge gives no verdict
    judge.save_pretrained(folder / "judge")
    words.save_pretrained(folder / "judge")
    return {name: str(folder / name) for name in (*made, "judge")}


def make_data(folder: Path) -> dict[str, str]:
    """GSM8K's rows, MATH's, preferences and TL;DR's, as JSON lines."""
    rows: dict[str, list[dict[str, Any]]] = {
        "gsm8k": [{k: str(v) for k, v in row.items()} for row in ROWS],
        "gsm8k-held": [{**row, "question": f"Again: {row['question']}"} for row in ROWS],
        "math": MATH,
        "math-held": [{**row, "problem": f"Again: {row['problem']}"} for row in MATH],
        "pairs": PAIRS,
        "posts": POSTS,
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def make_place(folder: Path) -> dict[str, str]:
    """Models and data."""
    return make_models(folder) | make_data(folder)


def command(name: str, place: dict[str, str], output: Path, *more: str) -> list[str]:
    """Scenario and options of a dry run: the recipe with small models, data and sizes."""
    scenario, recipe = name.split("-", 1)
    given = ["--recipe", recipe, "--output", str(output), *SMALL]
    model = place["pythia" if "pythia" in recipe else "qwen"]
    given += ["--model", model]
    if scenario == "rlhf":
        given += SMALL_RLHF
        if "tldr" in recipe:
            given += ["--prompts", place["posts"], "--sft", place["posts"]]
            given += ["--gold_model", place["gold"], "--pairs", "4"]
        else:
            given += ["--preferences", place["pairs"]]
    else:
        data = "math" if "math" in recipe else "gsm8k"
        given += ["--dataset", place[data], "--eval_dataset", place[f"{data}-held"]]
    if scenario == "judge":
        given += ["--judge-model", place["judge"], "--judge_max_new_tokens", "12"]
    if scenario == "rules":
        given += ["--eval_samples", "2", "--eval_batch", "4"]
    return [scenario, *given, *more]


def run(arguments: list[str]) -> int:
    """`python -m integrations ...` in this process."""
    from integrations.__main__ import main

    return main(arguments)


def environment() -> dict[str, str]:
    """Of a launched command: CPU, one thread."""
    return os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def launched(
    arguments: list[str], processes: int, launcher: tuple[str, ...] = (), timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """`python -m integrations ...` in several processes."""
    first = launcher or (*TORCHRUN, "--nproc_per_node", str(processes))
    return subprocess.run(
        [sys.executable, *first, "-m", "integrations", *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "step_time"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)
