"""The options of an RLHF run on real models, and the checks that need no file."""

from __future__ import annotations

from dataclasses import dataclass

REWARD_METHODS = {"bt": 0.0, "grm": 0.01, "gr": 1.0}  # with the default of reward_amount


@dataclass(frozen=True)
class RlhfConfig:
    """Everything that decides the stages before RL; models are folders or hub names.

    Pairs come from `preferences`, or two completions of the SFT policy are compared for each of
    the `prompts`: by `judge_model`, or, without one, by `gold_model`.
    """

    model: str  # the policy: a causal LM
    preferences: str | None = None  # file or hub name: prompt, chosen, rejected
    prompts: str | None = None  # file or hub name: prompt; default: those of the preferences
    sft: str | None = None  # chosen, none or a file (prompt, completion); default: chosen or none
    gold_model: str | None = None  # a classifier with one label: the true reward, watched in RL
    judge_model: str | None = None  # a causal LM that compares two completions
    reward_model: str | None = None  # a classifier with one label, in place of a trained one
    split: str = "train"  # of hub data sets
    limit: int | None = None  # use the first rows only
    eval_prompts: int = 64  # prompts held out for the evaluation
    bad_rows: str = "error"  # skip: leave out broken preference rows, count and show them
    reward_method: str = "bt"  # bt, grm or gr
    reward_amount: float | None = None  # grm: share of the text loss; gr: ratio
    pairs: int | None = None  # how many pairs are sampled; default: one per prompt
    tokens: int = 256  # the longest completion
    max_length: int = 1024  # prompt and completion together, in SFT and reward model
    sft_steps: int = 500
    sft_batch_size: int = 16
    sft_lr: float = 2e-5
    reward_steps: int = 500
    reward_batch_size: int = 16
    reward_lr: float = 1e-5
    save_every: int = 100  # steps between checkpoints of SFT and reward model
    sample_batch_size: int = 32  # completions written at once, pairs judged at once
    score_batch_size: int = 16
    judge_new_tokens: int = 16
    judge_patience: int = 3  # batches without one readable verdict
    stage_seed: int = 0

    @property
    def sft_kind(self) -> str:
        """chosen, none or a file."""
        return self.sft or ("chosen" if self.preferences else "none")

    @property
    def amount(self) -> float:
        """The reward method's strength, its default where none is given."""
        default = REWARD_METHODS[self.reward_method]
        return default if self.reward_amount is None else self.reward_amount

    def __post_init__(self) -> None:
        if not self.preferences and not self.prompts:
            raise ValueError(
                "a run on real models also needs --preferences FILE (prompt, chosen, rejected), or "
                "--prompts FILE with --gold_model, --judge_model or --reward_model"
            )
        if not (self.preferences or self.gold_model or self.judge_model or self.reward_model):
            raise ValueError(
                "nothing says which completion is better: give --preferences, --judge_model, "
                "--gold_model or --reward_model"
            )
        if self.sft == "chosen" and not self.preferences:
            raise ValueError("--sft chosen learns from the preferences: give --preferences too")
        if self.preferences and self.pairs is not None:
            raise ValueError("--pairs: the pairs are those of --preferences; leave it out")
        if self.reward_method not in REWARD_METHODS:
            known = ", ".join(REWARD_METHODS)
            raise ValueError(f"--reward_method {self.reward_method!r} is not one of {known}")
        if self.reward_model and (self.reward_method != "bt" or self.reward_amount is not None):
            raise ValueError("--reward_model is there already: --reward_method has no effect")
        if self.reward_method == "bt" and self.reward_amount is not None:
            raise ValueError("--reward_amount is of the reward methods grm and gr")
        if self.bad_rows not in ("error", "skip"):
            raise ValueError(f"--bad_rows {self.bad_rows!r}: give error or skip")
        for name in (
            "eval_prompts", "tokens", "max_length", "sft_steps", "sft_batch_size", "reward_steps",
            "reward_batch_size", "save_every", "sample_batch_size", "score_batch_size",
            "judge_new_tokens", "judge_patience",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("limit", "pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        for name in ("sft_lr", "reward_lr", "reward_amount"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, got {value}")
