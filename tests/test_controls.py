"""The cheap rivals of GR: what each changes in a trainer, and nothing else."""

import math
from types import SimpleNamespace

import pytest
import torch

from integrations.controls import Control


def test_squash_shapes_what_is_trained_on():
    assert Control().shape([5.0, -1.0]) == [5.0, -1.0]
    assert Control(squash=2.0).shape([5.0, 0.0]) == [2 * math.tanh(2.5), 0.0]


@pytest.mark.parametrize("name", ["advantage_clip", "squash", "decay_every"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_refuses_what_is_no_positive_number(name, value):
    with pytest.raises(ValueError, match=name):
        Control(**{name: value})


def test_advantages_are_cut_and_nothing_else():
    inputs = {"advantages": torch.tensor([-3.0, 0.5, 2.0]), "completion_ids": torch.ones(3, 2)}
    trainer = SimpleNamespace(_generate_and_score_completions=lambda x: inputs | {"x": x})
    Control(advantage_clip=1.0).apply(trainer)
    out = trainer._generate_and_score_completions(7)
    assert out["advantages"].tolist() == [-1.0, 0.5, 1.0]
    assert out["x"] == 7
    assert out["completion_ids"] is inputs["completion_ids"]


def test_beta_is_divided_by_the_number_of_the_stretch():
    callbacks = []
    trainer = SimpleNamespace(beta=0.6, add_callback=callbacks.append)
    Control(decay_every=10).apply(trainer)
    betas = []
    for step in (0, 9, 10, 19, 20):
        callbacks[0].on_step_begin(None, SimpleNamespace(global_step=step), None)
        betas.append(trainer.beta)
    assert betas == pytest.approx([0.6, 0.6, 0.3, 0.3, 0.2])
    with pytest.raises(ValueError, match="beta > 0"):
        Control(decay_every=10).apply(SimpleNamespace(beta=0.0))
