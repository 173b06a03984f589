"""theory/reference_cycles.py, and its identities on random policies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory_statements import verify
from theory.reference_cycles import follow, natural, norm, problem, shrinking

SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=6, deadline=None, derandomize=True)


def test_statement():
    """A cycle's length, exact cycles and the flow they are nearest to are as predicted."""
    verify("reference_cycles")


@FEW
@given(SEEDS, st.integers(2, 5), st.floats(1, 3))
def test_cycles_are_one_kl(seed: int, cycles: int, beta: float) -> None:
    bandit, start = problem(seed, None)
    many = bandit.policy(bandit.exact(start, beta * cycles, cycles))
    one = bandit.policy(bandit.exact(start, beta))
    assert (many - one).abs().max() < 1e-6


@FEW
@given(SEEDS, st.integers(1, 4), st.floats(1, 4))
def test_an_exact_cycle_is_implicit_euler(seed: int, features: int, beta: float) -> None:
    bandit, start = problem(seed, features)
    end = bandit.exact(start, beta)
    assert torch.dist(end, start + natural(bandit, end) / beta) < 1e-6


@FEW
@given(SEEDS)
def test_tabular_natural_gradient_is_the_reward(seed: int) -> None:
    bandit, start = problem(seed, None)
    centred = bandit.r - bandit.r.mean()
    torch.testing.assert_close(natural(bandit, start), centred, rtol=1e-8, atol=1e-10)
    variance = bandit.policy(start) @ (bandit.r - bandit.policy(start) @ bandit.r) ** 2
    torch.testing.assert_close(norm(bandit, start), variance)


@FEW
@given(SEEDS)
def test_c_moves_the_flow_along_w(seed: int) -> None:
    """Penalising g'F^+g (c > 0) goes against w, and lowers that length."""
    bandit, start = problem(seed)
    ends = [follow(bandit, start, 1e3, c) for c in (0, 0.5)]
    moved = (ends[1] - ends[0]) * 1e6
    torch.testing.assert_close(moved, -shrinking(bandit, start) / 2, rtol=0.1, atol=0.01)
    assert norm(bandit, ends[1]) < norm(bandit, ends[0])


@pytest.mark.parametrize("cycles", [1, 3])
def test_the_flow_takes_one_over_beta_for_each_cycle(cycles: int) -> None:
    bandit, start = problem(3, None)
    expected = start + cycles / 7 * (bandit.r - bandit.r.mean())
    torch.testing.assert_close(follow(bandit, start, 7, 0, cycles), expected)
