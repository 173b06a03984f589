"""theory/flow_limits.py."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory_statements import verify
from theory.flow_limits import descend, matrices, valley

COPIES = 64


def test_statement():
    """Edges, thresholds and places are as predicted."""
    verify("flow_limits")


def distances(eigenvalues: list[float], strength: float, seed: int) -> torch.Tensor:
    """Distance to the stationary point 0 while GR starts near it: (steps, copies)."""
    matrix = matrices(torch.tensor([eigenvalues] * COPIES, dtype=torch.float64), seed)
    start = torch.full((COPIES, len(eigenvalues)), 1e-5, dtype=torch.float64)
    path = descend(lambda x: valley(x, matrix), start, strength, 0.005, 120)
    return torch.stack([x.norm(dim=1) for x in path])


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.lists(st.floats(1, 20), min_size=2, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_no_strength_leaves_a_minimum(eigenvalues: list[float], strength: float, seed: int):
    """Below the edge of the learning rate each step comes nearer, at least as without GR."""
    path = distances(eigenvalues, min(strength, 15 / 20), seed)  # 0.005 * 20 * (1 + 15) < 2
    slowest = 1 - 0.005 * min(eigenvalues)
    assert (path[1:] <= path[:-1] * max(slowest, 0.7) * (1 + 1e-3)).all()


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.floats(0.5, 4), st.floats(1.2, 3), st.integers(0, 99))
def test_strength_decides_whether_a_maximum_attracts(weak: float, factor: float, seed: int):
    """Around a maximum: repelled below one over the weakest curvature, attracted above."""
    for strength, attracts in ((1 / (factor * weak), False), (factor / weak, True)):
        path = distances([-weak, -1.5 * weak], strength, seed)
        # a few copies start so far across the weak direction that it does not yet show
        nearer = (path[-1] < path[60]).double().mean()
        assert nearer > 0.9 if attracts else nearer < 0.9
