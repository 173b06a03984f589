"""The preference worlds: a policy of a small language, preference pairs and a learned reward.

The reward model learns from noisy preferences between texts of the starting policy. In world A
(`exploit=0`) it is the proxy that is trained on: good where the policy starts, ever worse as it
moves away. World B (`exploit=4`) adds a steep error: 4 for each occurrence of one rare bigram.
The gold reward (`topics.Gold`) is the truth behind the preferences, and is only watched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..cache import cached
from ..progress import Say, silent, tell
from ..tasks import generate
from . import topics as language
from .learn import llama

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

# Part of the name in the cache: to be raised when a change of code changes what is built.
VERSION = 1
EXPLOIT = 4.0  # what world B pays for one occurrence of the rare bigram
REWARD_METHODS = ("bt", "grm", "gr")
PAIR_COLUMNS = ("prompt", "chosen", "rejected", "gold_chosen", "gold_rejected")


def _check(settings: Any, **least: float) -> None:
    for name, minimum in least.items():
        value = getattr(settings, name)
        if not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


@dataclass(frozen=True)
class PolicySettings:
    """Everything that decides the starting policy; two equal settings give the same weights."""

    language: language.Language = field(default_factory=language.Language)
    seed: int = 0
    texts: int = 20_000
    steps: int = 800
    batch: int = 128
    lr: float = 3e-3
    width: int = 48
    layers: int = 2
    heads: int = 4
    init: float = 0.02
    version: int = VERSION

    def __post_init__(self) -> None:
        _check(self, texts=1, steps=1, batch=1, lr=0, width=1, layers=1, heads=1, init=0)
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads ({self.heads})")


@dataclass(frozen=True)
class RewardSettings:
    """Everything that decides the preferences and the reward model that learns from them.

    `method`: "bt" (Bradley-Terry alone), "grm" (`amount` is the share of GRM's text loss) or "gr"
    (`amount` is the ratio of gradient regularization).
    """

    policy: PolicySettings = field(default_factory=PolicySettings)
    seed: int = 0
    pairs: int = 1_000
    sharpness: float = (
        2.0  # of the annotators: P(a preferred) = sigmoid(sharpness * gold difference)
    )
    epochs: int = 3
    batch: int = 32
    lr: float = 5e-4
    method: str = "bt"
    amount: float = 0.0
    version: int = VERSION

    def __post_init__(self) -> None:
        _check(self, pairs=2, sharpness=0, epochs=1, batch=1, lr=0, amount=0)
        if self.method not in REWARD_METHODS:
            raise ValueError(f"method is one of {', '.join(REWARD_METHODS)}; got {self.method!r}")
        if (self.method == "bt") != (self.amount == 0):
            raise ValueError(f"method {self.method!r} does not go with amount {self.amount}")


def world(seed: int, **reward: Any) -> RewardSettings:
    """The settings of one world: language, policy, pairs and reward model all from one seed."""
    policy = PolicySettings(language.Language(seed), seed=seed)
    return RewardSettings(policy, seed=seed, **reward)


def _trainer_options(folder: str, settings: PolicySettings | RewardSettings) -> dict[str, Any]:
    """Options of `transformers.Trainer` that both trainings share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.batch,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "seed": settings.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def model_config(settings: PolicySettings) -> dict[str, Any]:
    """The arguments of `LlamaConfig` for a policy."""
    return llama(language.VOCABULARY, settings)


def build_policy(settings: PolicySettings, say: Say = silent) -> Path:
    """The folder of the starting policy and its tokenizer, trained on first use.

    It learns whole texts of the language, and no end token: a completion ends at its 12th word.
    """

    def build(folder: Path) -> None:
        import torch
        from datasets import Dataset
        from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
        from trl import SFTConfig, SFTTrainer

        from ..loop import quiet

        quiet()
        tokenizer = language.make_tokenizer()
        topics, texts = settings.language.sample(settings.texts, settings.seed)
        first = torch.full((len(texts), 1), language.VOCABULARY.index(language.BOS))
        named = topics[:, None] + language.VOCABULARY.index(language.TOPICS[0])
        ids = torch.cat([first, named, texts + language.FIRST_WORD], 1)
        config = LlamaConfig(**model_config(settings))
        # the trainer seeds the caller's random state, which is to be left as it was
        with torch.random.fork_rng(devices=[]), TemporaryDirectory() as scratch:
            torch.manual_seed(settings.seed)
            model = LlamaForCausalLM(config)
            options = _trainer_options(scratch, settings)
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(max_steps=settings.steps, **options),
                train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
                processing_class=tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(tell(say, f"policy {settings.seed}", "learning the language"))
            trainer.train()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cached("preference-policy", settings, build)


def sample_pairs(settings: RewardSettings) -> Dataset:
    """Preferences between two texts of the starting policy, in TRL's format.

    Columns: prompt, chosen, rejected; gold_chosen, gold_rejected: what the gold reward says, with
    which a label disagrees as often as P(a preferred) = sigmoid(sharpness * (gold a - gold b)) has
    it. Completions begin with a space, so that prompt + completion is the whole text.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build_policy(settings.policy)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = settings.policy.language.prompts(settings.pairs, 10_000 + settings.seed)
    both = [prompt for prompt in prompts for _ in range(2)]
    ids = generate(model, tokenizer, both, settings.seed, language.LENGTH, 1.0)
    texts = language.as_texts([], ids)
    gold = torch.tensor(language.Gold(settings.policy.language)(both, texts)).view(-1, 2)
    generator = torch.Generator().manual_seed(settings.seed)
    first_wins = (settings.sharpness * (gold[:, 0] - gold[:, 1])).sigmoid()
    winner = 1 - torch.bernoulli(first_wins, generator=generator).long()
    rows: list[dict[str, Any]] = []
    for i, won in enumerate(winner.tolist()):
        chosen, rejected = 2 * i + won, 2 * i + 1 - won
        if not texts[chosen] or not texts[rejected] or texts[chosen] == texts[rejected]:
            continue  # a policy may write nothing, or the same twice: there is nothing to prefer
        values = (
            prompts[i],
            " " + texts[chosen],
            " " + texts[rejected],
            gold[i, won].item(),
            gold[i, 1 - won].item(),
        )
        rows.append(dict(zip(PAIR_COLUMNS, values, strict=True)))
    return Dataset.from_list(rows)


def reward_inputs(tokenizer: Any, prompts: Sequence[str], completions: Sequence[str]) -> Any:
    """What the reward model reads: begin token, prompt, completion, end token; padded right."""
    texts = [
        f"{prompt} {text.strip()}{tokenizer.eos_token}"
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def raw_scores(
    model: Any, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str]
) -> torch.Tensor:
    """The scores of a sequence-classification model with one label, (n,)."""
    import torch

    with torch.inference_mode():
        return model(**reward_inputs(tokenizer, prompts, completions)).logits[:, 0].float()


def build_reward_model(
    settings: RewardSettings, say: Say = silent, pairs: Dataset | None = None
) -> Path:
    """The folder of the reward model, trained by TRL's RewardTrainer on first use.

    It begins as the starting policy with a new head, and learns from `pairs` (`sample_pairs`).
    `facts.json` holds the mean and the standard deviation of its scores on the pairs' texts, by
    which `Proxy` standardises them.
    """

    def build(folder: Path) -> None:
        import torch
        from transformers import AutoTokenizer, PrinterCallback

        import flatopt

        from ..loop import quiet
        from ..reward_models.grm import GRMConfig, GRMTrainer
        from ..reward_models.model import start_reward_model

        quiet()
        start = build_policy(settings.policy, say)
        rows = sample_pairs(settings) if pairs is None else pairs
        tokenizer: Any = AutoTokenizer.from_pretrained(start)
        grm = settings.method == "grm"
        with torch.random.fork_rng(devices=[]), TemporaryDirectory() as scratch:
            model: Any = start_reward_model(start, lm_head=grm, seed=settings.seed)
            # With the policy's tiny spread the normalised features could only give scores of about
            # +-1, a ceiling that RL would reach at once; with this one they have room.
            torch.manual_seed(settings.seed)
            torch.nn.init.normal_(model.score.weight, std=settings.policy.width**-0.5)
            options = _trainer_options(scratch, settings)
            weight = settings.amount if grm else 0.0  # 0 is Bradley-Terry, bit for bit
            trainer = GRMTrainer(
                model,
                GRMConfig(num_train_epochs=settings.epochs, lm_weight=weight, **options),
                train_dataset=rows.select_columns(list(PAIR_COLUMNS[:3])),
                processing_class=tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(tell(say, f"reward model {settings.seed}", "learning the pairs"))
            if settings.method == "gr":
                flatopt.attach(trainer, ratio=settings.amount)
            trainer.train()
            trainer.save_model(str(folder))
        model.eval()
        scores = torch.cat(
            [
                raw_scores(model, tokenizer, rows["prompt"], rows[column])
                for column in ("chosen", "rejected")
            ]
        )
        facts = {"mean": scores.mean().item(), "sd": scores.std().item()}
        tokenizer.save_pretrained(folder)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2))

    return cached("preference-reward", settings, build)


class Proxy:
    """What is trained on: the reward model's standardised score, plus the exploit of world B.

    An instance is a reward function of TRL. The score has mean 0 and standard deviation 1 on the
    texts that the reward model was trained on; `exploit` is added for each rare bigram.
    """

    __name__ = "proxy"

    def __init__(self, folder: Path, world: language.Language, exploit: float = 0.0) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not math.isfinite(exploit):
            raise ValueError(f"exploit must be finite, got {exploit}")
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.facts = json.loads((folder / "facts.json").read_text())
        self.bigram, self.exploit = world.rare_bigram, exploit

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """The proxy of each completion."""
        language.read_prompts(prompts)  # refuses what is not one
        texts = language.as_texts(completions, completion_ids)
        scores = raw_scores(self.model, self.tokenizer, prompts, texts)
        scores = (scores - self.facts["mean"]) / self.facts["sd"]
        counts = language.count_bigram(language.read_completions(texts), self.bigram)
        return (scores + self.exploit * counts).tolist()
