"""The probe: sharpness against a case known in closed form, log-probs, and no trace in the run."""

import json
import math

import pytest
import torch
from tiny_worlds import SMALL_REWARD, cache  # noqa: F401  (the fixture is used by every test)

from integrations.arm import Arm
from integrations.loop import make_trainer
from integrations.probe import log_probs, sharpness
from integrations.rlhf_plan import Setting, make_arm
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


def test_a_probed_run_is_the_same_run(tmp_path):
    weights = []
    for probe in (False, True):
        arm = make_arm(Setting("none", "none", {"max_steps": 2}), "B", 0, 3)
        arm = Arm(
            "none",
            3,
            None,
            None,
            arm.config | {"per_device_train_batch_size": 8, "num_generations": 4},
            world=PreferenceWorld("B", SMALL_REWARD),
            watch={"every": 1, "groups": 4, "size": 4, "directions": 3} if probe else None,
        )
        folder = tmp_path / str(probe)
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
