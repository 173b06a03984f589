"""HackMonitor: watches a GRPO or RLOO training of TRL for reward hacking, and may stop it."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from ..cache import write_text
from .alarm import Alarm, AlarmRule
from .halves import Halves, Window, signal_share
from .monitor import finite, policy_kl, read_rows

logger = logging.getLogger(__name__)

STATE = "flatopt.HackMonitor"  # in trainer_state.json; no name of a class, which Trainer would make
ADVICE = (
    "The policy may be exploiting the reward: read samples, go back to a checkpoint before this "
    "step, and train on with a stronger penalty (GR or KL) or a better reward"
)

Labels = Callable[[list[Any], list[Any]], Sequence[float | None]]


class HackMonitor(TrainerCallback):
    """Builds a row of signals at each log of a trainer, and raises an `Alarm` on them.

    ::

        monitor = HackMonitor(trainer, rule=AlarmRule(spread_jump=1.5), stop=True)
        trainer.train()

    It adds itself to the trainer, before or after `flatopt.attach`. The training is not changed:
    weights, random numbers and metrics are those of a run without it. Each row (see `Alarm` for its
    names) goes to the trainer's logs as ``monitor/...`` and to `path`; `row` is the last one. A
    resumed training goes on with the alarm as it was saved in the checkpoint: one that has fired
    does not fire or stop again. With several processes only the first one writes and warns.

    Args:
        trainer: a TRL GRPOTrainer or RLOOTrainer, not yet trained.
        rule: when to raise the alarm; None: watch only.
        gold: the name of the reward function that is the gold reward (usually of weight 0).
        proxy: the name of the reward function that is watched; None: the total that is trained on.
        labels: gold rewards of completions, ``labels(prompts, completions)``, where there is no
            reward function for them; None for a completion that has none. From them, or from
            `gold`, come the gold and the accuracy of the rows.
        share_every: measure the signal share of the gradient in each so many steps, for one more
            backward pass there; None: never. Off with several processes.
        start: a copy of the start policy, for the KL of the rows at one more forward pass of both
            per log; None: the trainer's own KL to its reference (``beta`` > 0), per completion.
        on_alarm: called with the reason and the row at the alarm.
        stop: at the alarm, save a checkpoint and stop.
        path: a JSONL file of the rows. Rows after the step at which a training begins are dropped.

    Raises:
        ValueError: unknown names, gold and labels at once, a trainer or batch without halves.

    Attributes:
        alarm: the `Alarm`, or None without a rule; row: the last row.
    """

    def __init__(
        self,
        trainer: Any,
        rule: AlarmRule | None = None,
        *,
        gold: str | None = None,
        proxy: str | None = None,
        labels: Labels | None = None,
        share_every: int | None = 10,
        start: Any = None,
        on_alarm: Callable[[str, dict[str, Any]], Any] | None = None,
        stop: bool = False,
        path: str | Path | None = None,
    ) -> None:
        if not hasattr(trainer, "reward_func_names") or not hasattr(trainer, "_calculate_rewards"):
            kind = type(trainer).__name__
            raise ValueError(f"HackMonitor needs a TRL GRPOTrainer or RLOOTrainer, not {kind}")
        names = trainer.reward_func_names
        for argument, name in (("gold", gold), ("proxy", proxy)):
            if name is not None and names.count(name) != 1:
                raise ValueError(f"{argument}={name!r}: not one of the reward functions {names}")
        if gold is not None and labels is not None:
            raise ValueError("give gold or labels, not both: either is the gold reward")
        if share_every is not None and share_every < 1:
            raise ValueError(f"share_every must be >= 1 or None, got {share_every}")
        if stop and rule is None:
            raise ValueError("stop=True needs a rule that says when")
        if share_every and trainer.accelerator.num_processes > 1:
            logger.warning("HackMonitor: no signal share with several processes")
            share_every = None
        if rule is not None:
            _check_signals(
                rule, trainer, gold is not None or labels is not None, share_every, start
            )
        self.trainer, self.labels, self.start = trainer, labels, start
        self.gold, self.proxy = gold, proxy
        self.share_every, self.on_alarm, self.stop = share_every, on_alarm, stop
        self.path = None if path is None else Path(path)
        self.alarm = None if rule is None else Alarm(rule)
        self.row: dict[str, Any] = {}
        self._seen: dict[str, list[float]] = defaultdict(list)  # since the last log
        try:
            self.halves = Halves(trainer) if share_every else None
        except ValueError as error:
            raise ValueError(f"{error}; or give share_every=None") from error
        self.window = self.halves.window if self.halves else Window(trainer)
        if start is not None:
            start.eval().to(trainer.accelerator.device)
        self._calculate_rewards = trainer._calculate_rewards
        trainer._calculate_rewards = self._rewards
        trainer.add_callback(self)
        # before the callbacks that send the logs on, which are to see the rows
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    # ---- what is measured -----------------------------------------------------------------------

    def _rewards(
        self, inputs: Any, prompts: list, completions: list, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The trainer's rewards of all processes, (completions, functions), noted on the way."""
        rewards = self._calculate_rewards(inputs, prompts, completions, *args, **kwargs)
        trainer, names = self.trainer, self.trainer.reward_func_names
        if not trainer.model.training:
            return rewards
        groups = (-1, trainer.num_generations)
        values = rewards.detach().float().cpu()
        if self.proxy is None:
            total = (values * trainer.reward_weights.cpu()).nansum(1)
            proxy = total.masked_fill(values.isnan().all(1), math.nan)
        else:
            proxy = values[:, names.index(self.proxy)]
        gold = None
        if self.gold is not None:
            gold = values[:, names.index(self.gold)]
        elif self.labels is not None:
            labels = list(self.labels(prompts, completions))
            if len(labels) != len(completions):
                raise ValueError(
                    f"labels gave {len(labels)} values for {len(completions)} completions"
                )
            labels = [math.nan if label is None else float(label) for label in labels]
            gold = torch.tensor(gather_object(labels))
        self._note("proxy", float(proxy.nanmean()))
        self._note("spread", group_spread(proxy.view(groups)))
        if gold is not None:
            self._note("gold", float(gold.nanmean()))
            right, pairs = pairs_in_order(proxy.view(groups), gold.view(groups))
            self._note("right", right)
            self._note("pairs", pairs)
        return rewards

    def _note(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self._seen[name].append(value)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what needs the policy that wrote the batch."""
        step = state.global_step + 1
        # a window cut from a shuffled generation may by chance hold one prompt
        if self.halves and step % self.share_every == 0 and self.halves.groups() > 1:
            self._note("signal_share", signal_share(*self.halves.gradients()))
        if self.start is not None and step % state.logging_steps == 0:
            self._note("kl", self._kl())

    def _kl(self) -> float:
        batch, model = self.window.batches[-1], self.trainer.model
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            kl = policy_kl(model, self.start, ids, mask, batch["prompt_ids"].shape[1])
        finally:
            for module, training in modes:
                module.training = training
        accelerator = self.trainer.accelerator
        return float(accelerator.reduce(torch.tensor(kl, device=accelerator.device), "mean"))

    def _build(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        seen, self._seen = self._seen, defaultdict(list)
        row: dict[str, Any] = {"step": step}
        for name in ("proxy", "gold", "spread", "signal_share", "kl"):
            row[name] = mean(seen[name]) if seen[name] else None
        pairs = sum(seen["pairs"])
        row["accuracy"] = sum(seen["right"]) / pairs if pairs else None
        # with GR the trainer's own norm may be that of the combined gradient
        row["grad_norm"] = logs.get("gr/grad_norm", logs.get("grad_norm"))
        row["penalty_ratio"] = logs.get("gr/penalty_ratio")
        row["entropy"] = logs.get("entropy")
        kl, tokens = logs.get("kl"), logs.get("completions/mean_length")
        if self.start is None and kl is not None and tokens is not None:
            row["kl"] = kl * tokens  # the trainer's is per token
        return finite(row)

    # ---- the trainer's events -------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, or begin anew."""
        self._seen = defaultdict(list)
        saved = state.stateful_callbacks.get(STATE) if state.global_step else None
        if self.alarm is not None:
            self.alarm = Alarm(self.alarm.rule)
            if saved and saved["alarm"]:
                self.alarm.load(saved["alarm"])
        if self.path is not None and state.is_world_process_zero:
            rows = [row for row in read_rows(self.path) if row["step"] <= state.global_step]
            rows = rows if state.global_step else []
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """A row for the steps since the last log, and the alarm."""
        if not logs or "loss" not in logs:
            return  # of an evaluation, or the last one, with times only
        self.row = row = self._build(state.global_step, logs)
        reason = None if self.alarm is None else self.alarm.update(row)
        shown = {f"monitor/{k}": v for k, v in row.items() if v is not None and k != "step"}
        if self.alarm is not None:
            shown["monitor/alarm"] = float(self.alarm.fired_at is not None)
        logs.update(shown)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(shown)  # a copy of the logs, made before this
        # here, because a checkpoint of this step is written after the log
        state.stateful_callbacks[STATE] = {"alarm": self.alarm and self.alarm.state()}
        if self.path is not None and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        if reason is None:
            return
        if self.stop:
            control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            action = "Training stops here, with a checkpoint." if self.stop else "Training goes on."
            logger.warning(
                "Reward hacking alarm at step %d: %s. %s %s.",
                state.global_step,
                reason,
                action,
                ADVICE,
            )
            if self.on_alarm is not None:
                self.on_alarm(reason, row)


def _check_signals(
    rule: AlarmRule, trainer: Any, gold: bool, share_every: int | None, start: Any
) -> None:
    """ValueError for a threshold on a signal that will never be measured: it would never fire."""
    kl = start is not None or getattr(trainer, "beta", 0.0) > 0
    for names, measured, missing in (
        (("accuracy_floor", "gold_fall"), gold, "gold= or labels="),
        (("share_fall",), share_every is not None, "share_every="),
        (("kl_limit",), kl, "start= (a copy of the start policy), or a KL term"),
    ):
        for name in names:
            if getattr(rule, name) is not None and not measured:
                raise ValueError(f"{name} would never hold, it is not measured: give {missing}")


def group_spread(values: Tensor) -> float:
    """Mean over the groups of the standard deviation within a group (groups, samples); or NaN.

    As in `monitor.spreads`: of the group itself (divided by n). Values that are NaN are left out,
    and groups with fewer than two others.
    """
    kept = [row[~row.isnan()] for row in values]
    spreads = [float(row.std(correction=0)) for row in kept if len(row) > 1]
    return mean(spreads) if spreads else math.nan


def pairs_in_order(proxy: Tensor, gold: Tensor) -> tuple[float, int]:
    """Pairs within a group that proxy and gold put in the same order, and all pairs.

    Both are (groups, samples). Pairs equal in gold, or with a NaN, are left out; pairs equal in the
    proxy count half.
    """
    by_proxy = proxy[:, :, None] - proxy[:, None, :]
    by_gold = gold[:, :, None] - gold[:, None, :]
    counted = (by_gold > 0) & ~by_proxy.isnan()  # each pair once
    return float(((by_proxy[counted].sign() + 1) / 2).sum()), int(counted.sum())
