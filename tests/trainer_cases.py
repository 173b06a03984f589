"""Tiny trainers of transformers and TRL, and what a run of them did, for the tests of attach."""

import atexit
import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything these trainers need is made here

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

WORDS = [f"w{i}" for i in range(60)]
KINDS = ("plain", "sft", "dpo", "reward", "rloo", "grpo")
STRENGTH = 0.05  # the penalty is then about as long as the gradient in each of them
RADIUS = 3e-3  # long enough that float32 rounding of the difference stays below 1e-4
BETA = 0.5  # of DPO


def _folder() -> str:
    folder = mkdtemp(prefix="flatopt-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def model_path(dropout: float = 0.0, tied: bool = False, scores: bool = False) -> str:
    """A tiny Llama with random weights and its tokenizer, saved where trainers load them from."""
    folder = _folder()
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", "<bos>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    config.num_labels = 1  # of the reward model
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    return folder


def load_model(path: str, scores: bool = False) -> Any:
    """The model at `path`, in float32, ready to be trained."""
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32)


def sentence(number: int, length: int) -> str:
    return " ".join(WORDS[(7 * number + 3 * i * i + i) % len(WORDS)] for i in range(length))


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of even tokens: differs between completions, needs no model."""
    return [sum(i % 2 == 0 for i in ids) / (len(ids) + 1) for ids in completion_ids]


def _data(kind: str, size: int) -> Dataset:
    if kind == "sft":
        rows = [{"text": sentence(i, 4 + i % 5)} for i in range(size)]
    elif kind == "plain":
        ids = torch.randint(4, 60, (size, 8), generator=torch.Generator().manual_seed(2))
        rows = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    elif kind == "kto":
        rows = [
            {"prompt": sentence(i, 3) + " ", "completion": sentence(i + 7, 4), "label": i % 3 > 0}
            for i in range(size)
        ]
    elif kind in ("dpo", "reward"):
        rows = [
            {
                "prompt": sentence(i, 3) + " ",
                "chosen": sentence(i + 11, 2 + i % 4),
                "rejected": sentence(i + 23, 5 - i % 3),
            }
            for i in range(size)
        ]
    else:
        rows = [{"prompt": sentence(i, 3 + i % 3)} for i in range(size)]
    return Dataset.from_list(rows)


CLASSES: dict[str, tuple[Any, Any]] = {
    "plain": (Trainer, TrainingArguments),
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "reward": (RewardTrainer, RewardConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "kto": (KTOTrainer, KTOConfig),
}


def make_trainer(
    kind: str,
    folder: Path,
    *,
    accumulation: int = 1,
    steps: int = 1,
    dropout: float = 0.0,
    tied: bool = False,
    size: int = 48,
    model: Any = None,
    peft_config: Any = None,
    callbacks: Any = None,
    optimizers: Any = (None, None),
    eval_size: int = 0,
    **settings: Any,
) -> Any:
    """A trainer on the tiny model that clips nothing and logs each step to its history alone."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 5,
        "dataloader_pin_memory": False,
    }
    extra: dict[str, Any] = {}
    if kind in ("rloo", "grpo"):
        options |= {"num_generations": 4, "max_completion_length": 6, "beta": 0.0}
        extra["reward_funcs"] = reward
    if kind == "grpo":
        options["loss_type"] = "dr_grpo"
    if kind in ("dpo", "kto"):
        options["beta"] = BETA
    path = model_path(dropout, tied, kind == "reward")
    if model is None:
        model = load_model(path, kind == "reward")
    if kind != "plain":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        if kind in ("rloo", "grpo"):
            tokenizer.padding_side = "left"
        extra |= {"processing_class": tokenizer, "peft_config": peft_config}
    if kind in ("dpo", "kto") and peft_config is None:
        extra["ref_model"] = load_model(reference_path())
    return CLASSES[kind][0](
        model=model,
        args=CLASSES[kind][1](**(options | settings)),
        train_dataset=_data(kind, size),
        eval_dataset=_data(kind, eval_size) if eval_size else None,
        callbacks=callbacks,
        optimizers=optimizers,
        **extra,
    )


@cache
def reference_path() -> str:
    """The tiny model, a little moved: else DPO's first loss is log 2 whatever the batch."""
    model = load_model(model_path())
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    folder = _folder()
    model.save_pretrained(folder)
    return folder


def lora() -> LoraConfig:
    """Adapters that act from the first step on: by default the second factor starts from 0."""
    return LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )


# ---- what a run did -----------------------------------------------------------------------------


@dataclass
class Run:
    """One training, and what it left: gradients, the inputs of each loss, the weights."""

    trainer: Any
    before: dict[str, Tensor]
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    losses_computed: int = 0
    generations: int = 0
    begun: list[dict[str, Tensor]] = field(default_factory=list)  # weights as each step begins
    rng: list[Tensor] = field(default_factory=list)  # as each step ends

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.trainer.state.log_history

    @property
    def weights(self) -> dict[str, Tensor]:
        return weights(self.trainer.model)


class Recorder(TrainerCallback):
    """The gradients that the optimizer steps on, after clipping, and the state around each step."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.run.begun.append(weights(kwargs["model"]))

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.run.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.run.rng.append(torch.get_rng_state())


def weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def record(trainer: Any) -> Run:
    """What `trainer` will do. `batches` has what each compute_loss got, replays included."""
    run = Run(trainer, weights(trainer.model))
    trainer.add_callback(Recorder(run))
    compute_loss = trainer.compute_loss

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        run.losses_computed += 1
        kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        run.batches.append(kept | {"num_items": kwargs.get("num_items_in_batch")})
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    if hasattr(trainer, "_generate_and_score_completions"):
        generate = trainer._generate_and_score_completions

        def count(*args: Any, **kwargs: Any) -> Any:
            run.generations += 1
            return generate(*args, **kwargs)

        trainer._generate_and_score_completions = count
    return run


def train(trainer: Any, **options: Any) -> Run:
    """Train, and record."""
    run = record(trainer)
    trainer.train(**options)
    return run
