"""theory/landscape.py, the hills it stands on, and the animation."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from tests.theory_statements import verify
from theory import hills
from theory.landscape_animation import animate

places = st.lists(st.floats(-2, 2), min_size=2, max_size=2)
widths = st.floats(0.03, 1)
spikes = st.tuples(st.floats(0.5, 6), st.floats(0.08, 0.5))


def test_statement():
    """Thresholds, basins and stranding are as predicted, and flatopt follows the exact curves."""
    verify("landscape")


@settings(deadline=None, max_examples=40, derandomize=True)
@given(place=places, width=st.none() | widths, false=spikes)
def test_written_out_gradient_is_that_of_the_loss(place, width, false):
    """For the mean alone and with the width, for any spike."""
    state = torch.tensor(place + ([] if width is None else [np.log(width)]), dtype=torch.float64)
    (expected,) = torch.autograd.grad(hills.loss(state.requires_grad_(), false), state)
    written = hills.gradient(state.detach().numpy(), false)
    np.testing.assert_allclose(written, expected.numpy(), rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(place=places, width=st.none() | widths)
def test_loss_is_the_mean_of_the_reward(place, width):
    """Against a sample, in standard errors."""
    noise = np.random.default_rng(0).standard_normal((100000, 2))
    rewards = hills.reward(np.array(place) + (width or hills.SIGMA) * noise)
    state = torch.tensor(place + ([] if width is None else [np.log(width)]), dtype=torch.float64)
    error = rewards.std() / len(noise) ** 0.5
    assert abs(-hills.loss(state).item() - rewards.mean()) < 4.5 * error + 1e-12


@settings(deadline=None, max_examples=10, derandomize=True)
@given(place=places, width=st.none() | widths, strength=st.floats(0, 0.5))
def test_flow_descends_the_regularized_loss(place, width, strength):
    """Along a curve L + strength / 2 |grad L|^2 never rises."""
    start = np.array([place + ([] if width is None else [np.log(width)])])
    curve = hills.gr(strength, start, steps=60)[:, 0]
    slope = (hills.gradient(curve) ** 2).sum(-1)
    value = hills.loss(torch.tensor(curve)).numpy() + strength / 2 * slope
    assert (np.diff(value) <= 1e-9).all()


def test_descent_and_flow_follow_one_curve():
    """Small steps of plain descent end where the exponential integrator does."""
    start = hills.square(5) + np.array([0.03, -0.02])
    slow = hills.descend(lambda x: hills.regularized(x, 0.05), start, 1e-3, 12000)[-1]
    fast = hills.gr(0.05, start, steps=200)[-1]
    np.testing.assert_array_equal(hills.ends(slow), hills.ends(fast))


def test_animation_is_a_small_gif(tmp_path):
    """Three frames that differ: the policies move."""
    animate(tmp_path / "animation.gif", frames=3)
    with Image.open(tmp_path / "animation.gif") as picture:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) >= 3
    assert (frames[0] != frames[1]).any()
    assert (tmp_path / "animation.gif").stat().st_size < 1.5e6
