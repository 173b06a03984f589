"""theory/reference_resets.py, and its identities on random policies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jvp, vjp

from flatopt import GradRegOptimizer, ReferenceReset
from tests.theory_statements import verify
from theory.bandit import Bandit

SEEDS = st.integers(0, 2**31)
FEW = settings(max_examples=25, deadline=None, derandomize=True)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def test_statement():
    """The modified flow, and the sign of what resets and GR add, are as predicted."""
    verify("reference_resets")


def test_the_cycles_are_those_of_flatopt() -> None:
    """`path` is what GradRegOptimizer does with a ReferenceReset, its KL term by swapped()."""
    r, rows, start = draw(0, (6,), (3, 6), (3,))
    bandit = Bandit(r, rows)
    theta = start.clone().requires_grad_()
    base = torch.optim.SGD([theta], lr=0.05)
    optimizer = GradRegOptimizer(base, 0.0, reference=ReferenceReset(every=4))
    assert optimizer.reference is not None
    path = [start]
    for _ in range(11):
        optimizer.zero_grad()
        with optimizer.reference.swapped():
            log_reference = bandit.policy(theta).log()
        p = bandit.policy(theta)
        (p @ (0.7 * (p.log() - log_reference) - r)).backward()
        optimizer.step()
        path.append(theta.detach().clone())
    expected = bandit.path(start, 0.05, 11, beta=0.7, k=4)
    torch.testing.assert_close(torch.stack(path), expected, rtol=0, atol=1e-14)


@FEW
@given(SEEDS, st.integers(2, 12), st.booleans())
def test_sign_is_the_skewness(seed: int, arms: int, pass_or_fail: bool) -> None:
    """A'HA = -E A^3 on logits; with rewards 0 and 1 that is -(1 - 2p) A'FA."""
    r, logits = draw(seed, (arms,), (arms,))
    if pass_or_fail:
        r = (r > r.median()).double()
    p = logits.softmax(0)
    a = r - p @ r
    turn = a @ hessian(lambda z: -z.softmax(0) @ r)(logits) @ a
    assert turn.item() == pytest.approx(-(p @ a**3).item(), abs=1e-13)
    if pass_or_fail:
        rate = (p @ r).item()
        assert turn.item() == pytest.approx(-(1 - 2 * rate) * (p @ a**2).item(), abs=1e-13)


@FEW
@given(SEEDS, st.integers(1, 6), st.integers(1, 6))
def test_the_pass_rate_decides_where_answers_are_alike(seed: int, right: int, wrong: int) -> None:
    """Right answers equally likely, wrong ones too: Hg = -(1 - 2p) Fg."""
    (logit,) = draw(seed, ())
    r = torch.tensor([1.0] * right + [0.0] * wrong, dtype=torch.float64)
    g, h, f = Bandit(r, torch.eye(len(r), dtype=torch.float64)).parts(logit * r)
    rate = ((logit * r).softmax(0) @ r).item()
    torch.testing.assert_close(h @ g, -(1 - 2 * rate) * f @ g, rtol=1e-9, atol=1e-14)


def test_the_pass_rate_does_not_decide_elsewhere() -> None:
    """Pass rate .2 and skewed to the right, yet GR lengthens the step that resets shorten."""
    p = torch.tensor([[0.01] * 20 + [0.4] + [0.01] * 40], dtype=torch.float64)
    r = torch.tensor([1.0] * 20 + [0.0] * 41, dtype=torch.float64)
    assert (p @ r).item() == pytest.approx(0.2)
    assert (p @ (r - p @ r) ** 3).item() > 0
    (resets,), (gr,) = Bandit(r, torch.eye(61, dtype=torch.float64)).added(p.log())
    assert resets < 0 < gr


@settings(FEW, max_examples=10)
@given(SEEDS)
def test_one_cycle_of_a_network(seed: int) -> None:
    """The second-order form of a cycle needs no log-linear policy: its error falls as eta^3."""
    r, theta = draw(seed, (3, 4), (28,))

    def policy(t: Tensor) -> Tensor:
        return torch.log_softmax(torch.tanh(t[:12].view(3, 4)) @ t[12:].view(4, 4), -1)

    def value(t: Tensor, ref: Tensor, beta: float) -> Tensor:
        log = policy(t)
        return (log.exp() * (beta * (log - policy(ref)) - r)).sum()

    def error(eta: float) -> Tensor:
        at = theta
        for _ in range(8):
            at = at - eta * grad(value)(at, theta, 1.0)
        return (at - theta + 8 * eta * g - 28 * eta**2 * (hg + fg)).norm()

    g = grad(value)(theta, theta, 0.0)
    hg = hessian(value)(theta, theta, 0.0) @ g
    along = jvp(policy, (theta,), (g,))[1]
    fg = vjp(policy, theta)[1](policy(theta).exp() * along)[0]
    assert error(1e-3) / error(5e-4) == pytest.approx(8, rel=0.1)
