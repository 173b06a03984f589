"""The probe: sharpness against a case known in closed form, log-probs, and no trace in the run."""

import doctest
import json
import math

import pytest
import torch
from tiny_worlds import SMALL_REWARD, cache  # noqa: F401  (the fixture is used by every test)

from integrations.arm import Arm
from integrations.loop import make_trainer
from integrations.results.rlhf_plan import Setting, make_arm
from integrations.watch import probe
from integrations.watch.probe import log_probs, sharpness
from integrations.worlds.preference_task import PreferenceWorld


def test_sharpness_of_a_linear_function():
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 1, bias=False)
    gradient = torch.randn(1, 300)
    before = model.weight.detach().clone()

    def expected():
        return float((model.weight.detach() * gradient).sum())

    generator = torch.Generator().manual_seed(1)
    worst, unit = sharpness(model, expected, 32, 0.1, generator)
    assert torch.equal(model.weight, before)
    assert unit == pytest.approx(0.1 * before.norm().item() / math.sqrt(300), rel=1e-5)
    # the largest of 32 normal numbers is 2.07 +- .42
    assert 1.2 < worst / (unit * gradient.norm().item()) < 3.5
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(1, 300, generator=generator) for _ in range(32)]
    length = 0.1 * before.norm()
    largest = max(float(-(gradient * e).sum() * length / e.norm()) for e in draws)
    assert worst == pytest.approx(largest, rel=1e-3)


def test_weights_come_back_after_an_error():
    model = torch.nn.Linear(3, 1)
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def expected():
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        sharpness(model, expected, 5, 0.5, torch.Generator().manual_seed(0))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_log_probs_are_those_of_the_model(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, 4)
            logits[..., 1] = math.log(3.0)  # probabilities 1/6, 1/2, 1/6, 1/6
            return type("Out", (), {"logits": logits})

    ids = torch.tensor([[0, 1, 1], [0, 2, 3]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    got = log_probs(Fixed(), ids, mask, 1)
    assert got.tolist() == pytest.approx([2 * math.log(0.5), math.log(1 / 6)])


def test_examples():
    assert doctest.testmod(probe).failed == 0


def test_a_completion_that_ends_early_weighs_no_padding(monkeypatch, tmp_path):
    # the first half of the completions ends after three words; what is behind is padding
    def cut(model, tokenizer, prompts, seed, tokens, temperature):
        rows = [[8, 9, 10, 2, 0, 0, 0, 0, 0, 0, 0, 0]] * (len(prompts) // 2)
        return rows + [list(range(8, 20))] * (len(prompts) - len(rows))

    seen = []
    monkeypatch.setattr(probe, "generate", cut)
    monkeypatch.setattr(
        probe, "log_probs", lambda model, ids, mask, first: seen.append(mask[:, first:].sum(1))
    )
    arm = make_arm(Setting("none", "none", {"max_steps": 1}), "A", 0, 0)
    arm = Arm("none", 0, None, None, arm.config, world=PreferenceWorld("A", SMALL_REWARD))
    task = arm.task()
    trainer, _ = make_trainer(arm, task, tmp_path)
    watch = probe.Probe(trainer, task, tmp_path, groups=4, size=2, directions=1)
    with pytest.raises(TypeError):  # the stand-in gives nothing to go on with
        watch.measure(0)
    assert seen[0].tolist() == [4, 4, 4, 4]


def test_a_probed_run_is_the_same_run(tmp_path):
    weights = []
    for probed in (False, True):
        arm = make_arm(Setting("none", "none", {"max_steps": 2}), "B", 0, 3)
        arm = Arm(
            "none",
            3,
            None,
            None,
            arm.config | {"per_device_train_batch_size": 8, "num_generations": 4},
            world=PreferenceWorld("B", SMALL_REWARD),
            watch={"every": 1, "groups": 4, "size": 4, "directions": 3} if probed else None,
        )
        folder = tmp_path / str(probed)
        folder.mkdir()
        trainer, _ = make_trainer(arm, arm.task(), folder)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    rows = [json.loads(line) for line in (tmp_path / "True/probe.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["signal_share"] == pytest.approx(row["grad_square"] / row["grad_norm"] ** 2)
        assert {"true", "reward_accuracy", "bt_loss", "sharpness_0.01"} <= row.keys()
