"""HackMonitor in tiny GRPO and RLOO trainings: its rows, its alarm, and that it changes nothing."""

import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from flatopt import attach
from integrations.watch.alarm import AlarmRule
from integrations.watch.hack_monitor import HackMonitor, group_spread, pairs_in_order
from integrations.watch.halves import signal_share
from integrations.watch.monitor import read_rows
from integrations.worlds.preference_task import group_accuracy
from tests.trainer_cases import load_model, make_trainer, model_path, train
from tests.trainer_oracle import same

SIZE: dict[str, Any] = {"per_device_train_batch_size": 16}  # four prompts of four completions
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
ALWAYS = AlarmRule(entropy_fall=2.0, smooth=1, baseline=1)  # holds in the first row


def low_tokens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Another reward than that of the trainer, also with different values in a group."""
    return [sum(i < 30 for i in ids) / len(ids) for ids in completion_ids]


def made(kind: str, folder: Path, gold: bool = False, **settings: Any) -> Any:
    """A tiny trainer; with `gold`, a second reward function of weight 0."""
    trainer = make_trainer(kind, folder, **(SIZE | settings))
    if gold:
        trainer.reward_funcs.append(low_tokens)
        trainer.reward_func_names.append("low_tokens")
        trainer.reward_processing_classes.append(None)
        trainer.reward_weights = torch.tensor([1.0, 0.0])
    return trainer


class Keeper(TrainerCallback):
    """What a callback that was there before the monitor sees of the logs and the rewards."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.batches: list[list[list]] = []
        self.trainer: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seen = self.trainer._logs
        names = self.trainer.reward_func_names
        self.batches.append([[*seen["prompt"]], *([*seen["rewards"][n]] for n in names)])

    def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_rows_say_what_happened(kind: str, tmp_path: Path) -> None:
    keeper = Keeper()
    trainer = made(
        kind, tmp_path, gold=True, steps=6, logging_steps=2, beta=0.05, callbacks=[keeper]
    )
    keeper.trainer = trainer
    attach(trainer, 0.05, radius=1e-3)
    path = tmp_path / "rows.jsonl"
    monitor = HackMonitor(trainer, gold="low_tokens", share_every=3, path=path)
    shares = []
    assert monitor.halves is not None
    gradients = monitor.halves.gradients
    monitor.halves.gradients = lambda: shares.append(gradients()) or shares[-1]  # type: ignore
    trainer.train()
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1] == monitor.row
    assert len(shares) == 2
    assert [row["signal_share"] for row in rows] == [
        None,
        *(pytest.approx(signal_share(*pair)) for pair in shares),
    ]
    logs = [entry for entry in keeper.logs if "loss" in entry]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, (row, log, past) in enumerate(zip(rows, logs, history, strict=True)):
        batches = keeper.batches[2 * number : 2 * number + 2]
        assert row["proxy"] == pytest.approx(log["reward"])
        assert row["gold"] == pytest.approx(log["rewards/low_tokens/mean"])
        assert row["entropy"] == log["entropy"]
        assert row["grad_norm"] == log["gr/grad_norm"] != log["grad_norm"]
        assert row["penalty_ratio"] == log["gr/penalty_ratio"]
        assert row["kl"] == pytest.approx(log["kl"] * log["completions/mean_length"])
        spread = [
            statistics.pstdev(batch[1][i : i + 4]) for batch in batches for i in range(0, 16, 4)
        ]
        assert row["spread"] == pytest.approx(statistics.mean(spread), rel=1e-5)
        assert row["spread"] != pytest.approx(log["reward_std"], rel=1e-2)  # that of the batch
        # groups of the two steps apart: a prompt may come again
        groups = [f"{i}{p}" for i, batch in enumerate(batches) for p in batch[0]]
        proxy, gold = ([v for batch in batches for v in batch[k]] for k in (1, 2))
        assert row["accuracy"] == pytest.approx(group_accuracy(groups, proxy, gold))
        shown = {f"monitor/{k}": v for k, v in row.items() if k != "step" and v is not None}
        for entry in (log, past):
            assert {k: v for k, v in entry.items() if k.startswith("monitor/")} == shown


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_watched_run_is_the_same_run(kind: str, first: bool, tmp_path: Path) -> None:
    runs, start = [], load_model(model_path())
    for watched in (False, True):
        trainer = made(kind, tmp_path, steps=3, accumulation=2, dropout=0.1, eval_size=4)
        options: dict[str, Any] = {"share_every": 1, "rule": ALWAYS, "start": start}
        if watched:
            options["labels"] = lambda p, c: [0.5] * len(c)
        if watched and first:
            HackMonitor(trainer, **options)
        attach(trainer, 0.05, radius=1e-3)
        if watched and not first:
            HackMonitor(trainer, **options)
        runs.append(train(trainer))
    plain, run = runs
    assert same(run.weights, plain.weights)
    assert all(same(x, y) for x, y in zip(run.gradients, plain.gradients, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(run.rng, plain.rng, strict=True))
    for left, right in zip(run.history, plain.history, strict=True):
        own = {k for k in left if k.startswith("monitor/")}
        assert not own or {"monitor/signal_share", "monitor/kl", "monitor/alarm"} <= own
        assert {k: v for k, v in left.items() if k not in {*own, *TIMES}} == {
            k: v for k, v in right.items() if k not in TIMES
        }


def test_the_kl_is_to_the_start_in_nats_per_completion(tmp_path: Path) -> None:
    trainer = made("grpo", tmp_path, steps=3)
    path = tmp_path / "rows.jsonl"
    HackMonitor(trainer, start=load_model(model_path()), share_every=None, path=path)
    run = train(trainer)
    start, model = load_model(model_path()), load_model(model_path())
    for row, batch, now in zip(read_rows(path), run.batches, run.begun, strict=True):
        model.load_state_dict(now)
        total = 0.0
        for prompt, kept, answer, mask in zip(
            *(batch[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
            strict=True,
        ):  # one completion at a time, without padding
            ids = torch.cat([prompt[kept.bool()], answer[mask.bool()]])[None]
            with torch.no_grad():
                new, old = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (model, start))
            at = slice(int(kept.sum()) - 1, -1)
            total += float(
                torch.nn.functional.kl_div(old[at], new[at], reduction="sum", log_target=True)
            )
        assert row["kl"] == pytest.approx(total / 16, rel=1e-3, abs=1e-6)
    assert read_rows(path)[-1]["kl"] > 0.01


def test_the_alarm_stops_and_saves_and_the_run_can_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule = AlarmRule(grad_jump=0.5, entropy_fall=1.5, needed=2, patience=2, smooth=2, baseline=2)
    said: list[tuple[str, dict[str, Any]]] = []

    def begin(name: str, **options: Any) -> tuple[Any, HackMonitor]:
        trainer = made("grpo", tmp_path / name, steps=6)
        monitor = HackMonitor(
            trainer,
            rule,
            labels=lambda prompts, completions: [float(len(c)) for c in completions],
            share_every=2,
            path=tmp_path / name / "rows.jsonl",
            **options,
        )
        return trainer, monitor

    whole, unbroken = begin("whole")
    whole.train()
    trainer, monitor = begin("stopped", stop=True, on_alarm=lambda *call: said.append(call))
    with caplog.at_level(logging.WARNING, "integrations.watch.hack_monitor"):
        caplog.clear()
        trainer.train()
    assert trainer.state.global_step == 3  # two rows for the start, then two in a row
    assert (tmp_path / "stopped" / "checkpoint-3").is_dir()
    assert monitor.alarm is not None
    assert monitor.alarm.fired_at == 3
    assert said == [(monitor.alarm.reason, monitor.row)]
    (message,) = [r.getMessage() for r in caplog.records if r.name.endswith("hack_monitor")]
    assert "step 3: grad_jump: grad_norm is" in message
    assert "stops here" in message
    # resumed, it goes on to the end as if nothing had been, and does not stop again
    trainer, resumed = begin("stopped", stop=True)
    rows = tmp_path / "stopped" / "rows.jsonl"
    with rows.open("a") as file:  # what a run would have written after its last checkpoint
        file.write(json.dumps({"step": 4, "proxy": 99.0}) + "\n")
    trainer.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert resumed.alarm is not None
    assert unbroken.alarm is not None
    assert resumed.alarm.state() == unbroken.alarm.state()
    assert read_rows(rows) == read_rows(tmp_path / "whole" / "rows.jsonl")
    assert [entry["monitor/alarm"] for entry in trainer.state.log_history[:6]] == [0, 0, 1, 1, 1, 1]


def test_a_checkpoint_of_another_rule_is_refused(tmp_path: Path) -> None:
    trainer = made("grpo", tmp_path, steps=1)
    HackMonitor(trainer, ALWAYS, stop=True, share_every=None)
    trainer.train()
    trainer = made("grpo", tmp_path, steps=2)
    HackMonitor(trainer, AlarmRule(entropy_fall=0.1), share_every=None)
    with pytest.raises(ValueError, match="other thresholds"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("name", ["kl_limit", "accuracy_floor", "gold_fall", "share_fall"])
def test_a_threshold_on_what_is_not_measured_is_refused(tmp_path: Path, name: str) -> None:
    trainer = made("grpo", tmp_path)
    threshold: dict[str, Any] = {name: 1.0}
    with pytest.raises(ValueError, match=f"{name} would never hold.*give "):
        HackMonitor(trainer, AlarmRule(**threshold), share_every=None)


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = made("grpo", tmp_path, steps=2)
    path = tmp_path / "rows.jsonl"
    monitor = HackMonitor(trainer, ALWAYS, share_every=None, path=path)
    for _ in range(2):
        trainer.train()
        assert monitor.alarm is not None
        assert monitor.alarm.rows == 2
        assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_spread_and_order_within_groups() -> None:
    torch.manual_seed(0)
    proxy, gold = torch.randn(5, 6), torch.randn(5, 6)
    proxy[0, 0], gold[1, 1], gold[2, 2] = proxy[0, 1], gold[1, 2], gold[2, 3]  # ties
    right, pairs = pairs_in_order(proxy, gold)
    groups = [g for g in range(5) for _ in range(6)]
    lists = proxy.flatten().tolist(), gold.flatten().tolist()
    assert right / pairs == pytest.approx(group_accuracy(groups, *lists))
    assert pairs == 5 * 15 - 2
    assert group_spread(proxy) == pytest.approx(
        statistics.mean(statistics.pstdev(row) for row in proxy.tolist()), rel=1e-5
    )
    gold[:, 0] = math.nan
    proxy[:, 5] = math.nan
    right, pairs = pairs_in_order(proxy, gold)
    groups = [g for g in range(5) for _ in range(4)]
    lists = proxy[:, 1:5].flatten().tolist(), gold[:, 1:5].flatten().tolist()
    assert right / pairs == pytest.approx(group_accuracy(groups, *lists))
    assert group_spread(proxy) == pytest.approx(group_spread(proxy[:, :5]))
    assert math.isnan(group_spread(proxy[:, 4:]))


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"gold='x': not one of the reward functions \['reward'\]", {"gold": "x"}),
        ("proxy='x'", {"proxy": "x"}),
        ("gold or labels", {"gold": "reward", "labels": lambda p, c: []}),
        ("share_every must be", {"share_every": 0}),
        ("needs a rule", {"stop": True}),
    ]
    trainer = made("grpo", tmp_path)
    for match, options in cases:
        with pytest.raises(ValueError, match=match):
            HackMonitor(trainer, **options)
    with pytest.raises(ValueError, match="GRPOTrainer or RLOOTrainer, not SFTTrainer"):
        HackMonitor(make_trainer("sft", tmp_path))
    with pytest.raises(ValueError, match="or give share_every=None"):
        HackMonitor(make_trainer("grpo", tmp_path))
    HackMonitor(trainer, labels=lambda prompts, completions: [1.0])
    with pytest.raises(ValueError, match="1 values for 16 completions"):
        trainer.train()
