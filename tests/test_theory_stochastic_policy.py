"""theory/stochastic_policy.py, and its identities on random policies."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.theory_statements import verify
from theory.stochastic_gradient import parts
from theory.stochastic_policy import bandit

SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=20, deadline=None, derandomize=True)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def test_statement():
    """Batch sizes, drawn batches, entropy and reward are as predicted."""
    verify("stochastic_policy")


@FEW
@given(SEEDS, st.integers(4, 12))
def test_uniform_policy(seed: int, actions: int) -> None:
    (r,) = draw(seed, (actions,))
    logits = torch.zeros_like(r)
    g, hg, extra, trace = parts(*bandit(logits, r), logits)
    torch.testing.assert_close(trace, (actions - 2) * (g @ g))
    torch.testing.assert_close(extra, (actions - 3) * hg, atol=1e-12, rtol=1e-9)


@FEW
@given(st.floats(-4, 4), st.floats(0.1, 3))
def test_two_actions(logit: float, gap: float) -> None:
    """Both parts lower the entropy; they raise J where the better action is the likelier."""
    logits = torch.tensor([logit, 0.0], dtype=torch.float64)
    r = torch.tensor([gap, 0.0], dtype=torch.float64)
    p = logits.softmax(0)
    g, hg, extra, trace = parts(*bandit(logits, r), logits)
    size = (p[0] - p[1]) ** 2 / (p[0] * p[1])
    torch.testing.assert_close(trace, size * (g @ g), atol=1e-13, rtol=1e-9)
    torch.testing.assert_close(extra, size * hg, atol=1e-13, rtol=1e-9)
    up = -p * (p.log() - p @ p.log())
    assert (hg @ up).item() >= 0
    assert (hg @ g).item() * logit >= 0  # the step is -hg, uphill is -g


@FEW
@given(SEEDS, st.integers(2, 12))
def test_near_a_deterministic_policy(seed: int, actions: int) -> None:
    """There the variance part lowers the entropy whatever the rewards."""
    r, logits = draw(seed, (actions,), (actions,))
    logits[0] = logits.max() + 12
    p = logits.softmax(0)
    extra = parts(*bandit(logits, r), logits)[2]
    assert (extra @ (-p * (p.log() - p @ p.log()))).item() > 0


@FEW
@given(SEEDS, st.integers(3, 12))
def test_the_variance_part_does_not_see_the_sign_of_the_advantage(seed: int, actions: int) -> None:
    """One sample's squared gradient is A^2 |s|^2: the same for rewards r and -r."""
    r, logits = draw(seed, (actions,), (actions,))
    _, hg, half_slope, trace = parts(*bandit(logits, r), logits)
    _, hg_of_minus, same, same_trace = parts(*bandit(logits, -r), logits)
    torch.testing.assert_close(half_slope, same)
    torch.testing.assert_close(trace, same_trace)
    torch.testing.assert_close(hg, hg_of_minus)


def test_a_rare_good_action_is_pushed_down() -> None:
    """A policy that has settled on a wrong action: J falls along the step against that part."""
    r, logits = torch.tensor([[1.0, 0, 0], [0, 6, 0]], dtype=torch.float64)
    g, _, half_slope, _ = parts(*bandit(logits, r), logits)
    assert half_slope[0] > 0 > half_slope[1]
    assert (half_slope @ g).item() < 0
