"""One arm as plain data: everything that decides the numbers of one run, and the task it names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .methods import Method
from .tasks import Task, real_task, tiny_task
from .worlds.judge import JudgeSettings, PolicySettings
from .worlds.preference_task import PreferenceWorld, preference_task


@dataclass(frozen=True)
class Arm:
    """Everything that decides the numbers of one run, as plain data (it travels to processes).

    The task is one of six: `policy` and `judge` (the judge world), `real` (a real model and an LLM
    judge), `world` (a preference world), `rlhf` (a real model and a reward model), `rules` (the
    rule world or a real model, and rule-based rewards) or `ladder` (the ladder of stages).
    """

    method: str
    seed: int
    policy: PolicySettings | None
    judge: JudgeSettings | None
    config: dict[str, Any] = field(default_factory=dict)  # fields of the trainer's config
    gr: dict[str, Any] | None = None  # arguments of flatopt.attach, None: no GR
    threads: int = 1
    real: dict[str, Any] | None = None  # fields of RealTaskConfig
    world: PreferenceWorld | None = None
    rlhf: dict[str, Any] | None = None  # fields of rlhf.options.RlhfConfig
    rules: dict[str, Any] | None = None  # fields of rules.task.RulesConfig
    ladder: dict[str, Any] | None = None  # fields of ladder.config.LadderConfig
    trainer: str | None = None  # "rloo", "expert" (the ladder's expert iteration); None is GRPO
    reference: dict[str, Any] | None = None  # arguments of flatopt.ReferenceReset
    control: dict[str, Any] | None = None  # arguments of controls.Control
    watch: dict[str, Any] | None = None  # arguments of probe.Probe: what is measured besides
    alarm: dict[str, Any] | None = None  # {"rule": fields of AlarmRule, "stop": whether to stop}

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        place = f"-judge{self.judge.index}" if self.judge else ""
        place = f"-{self.world.name}" if self.world else place
        trainer = f"-{self.trainer}" if self.trainer else ""
        return f"{self.method}{place}{trainer}-seed{self.seed}"

    def plain(self) -> dict[str, Any]:
        """As JSON data; without what does not apply, so that new options keep old runs valid."""
        plain = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in plain.items() if v is not None or k == "gr"}

    def parameter_names(self) -> list[str]:
        """The names of the policy's parameters, without loading or building its weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

        from .worlds import judge, preferences

        if self.rules is not None:
            from .rules.task import model_config

            config = model_config(self.rules)
        elif self.ladder is not None:
            from .ladder.config import model_config as ladder_model

            config = ladder_model(self.ladder)
        elif self.real is not None or self.rlhf is not None:
            config = AutoConfig.from_pretrained((self.real or self.rlhf or {})["model"])
        elif self.world is not None:
            config = LlamaConfig(**preferences.model_config(self.world.reward.policy))
        else:
            assert self.policy is not None
            config = LlamaConfig(**judge.model_config(self.policy))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return [name for name, _ in model.named_parameters()]

    def builds(self) -> list[Any]:
        """The settings of what has to be in the cache before the run begins."""
        if self.world is not None:
            return [self.world.reward]
        if self.rules is not None:
            from .rules.task import world_of

            return [settings for settings in (world_of(self.rules),) if settings]
        if self.ladder is not None:
            from .ladder.config import config_of
            from .ladder.config import world_of as ladder_world

            return [s for s in (ladder_world(config_of(self.ladder)),) if s]
        return [settings for settings in (self.policy, self.judge) if settings]

    def task(self) -> Task:
        """The policy, the data and the rewards of this arm."""
        if self.real is not None:
            return real_task(self.real, self.config)
        if self.rlhf is not None:
            from .rlhf.task import build_task

            return build_task(self.rlhf, self.config)
        if self.world is not None:
            return preference_task(self.world)
        if self.rules is not None:
            from .rules.task import rules_task

            return rules_task(self.rules, self.config)
        if self.ladder is not None:
            from .ladder.task import ladder_task

            return ladder_task(self.ladder, self.config)
        assert self.policy is not None
        assert self.judge is not None
        return tiny_task(self.policy, self.judge)


def arm_of(
    method: Method,
    seed: int,
    policy: PolicySettings | None = None,
    judge: JudgeSettings | None = None,
    **where: Any,
) -> Arm:
    """The run of a method as `methods.resolve` gives it; `where`: the task, and other fields."""
    return Arm(
        method.name,
        seed,
        policy,
        judge,
        method.config,
        method.gr,
        reference=method.reference,
        control=method.control,
        **where,
    )
