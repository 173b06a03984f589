"""flatopt.schedule: strengths as functions of the step, and the rule of a target ratio."""

import pytest

from flatopt import CosineStrength, LinearStrength
from flatopt.schedule import RatioStrength


@pytest.mark.parametrize("kind", [LinearStrength, CosineStrength])
def test_ends_and_middle(kind: type[LinearStrength] | type[CosineStrength]) -> None:
    rule = kind(0.2, 1.0, steps=10)
    assert [rule(0), rule(5), rule(10), rule(99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    values = [rule(step) for step in range(11)]
    assert values == sorted(values)
    assert kind(0.2, 1.0, steps=0)(0) == pytest.approx(1.0)


def test_cosine_starts_flat() -> None:
    linear, cosine = LinearStrength(0.0, 1.0, 100), CosineStrength(0.0, 1.0, 100)
    assert cosine(1) < linear(1) / 10
    assert cosine(25) == pytest.approx((1 - 0.5**0.5) / 2)


def test_ratio_is_exact_at_once_and_scale_free() -> None:
    norms = [(1.0, 4.0), (2.0, 1.0), (0.5, 0.5)]
    small, large = RatioStrength(0.5), RatioStrength(0.5)
    assert small.update(1.0, 4.0) == pytest.approx(0.5 * 1.0 / 4.0)
    large.update(1e3, 4e6)
    for grad, product in norms:
        a = small.update(grad, product)
        b = large.update(1e3 * grad, 1e6 * product)
        assert b == pytest.approx(a / 1e3)


def test_ratio_averages() -> None:
    rule = RatioStrength(2.0, decay=0.5)
    rule.update(1.0, 1.0)
    assert rule.update(3.0, 5.0) == pytest.approx(2.0 * (0.25 + 1.5) / (0.25 + 2.5))


def test_ratio_without_curvature_is_zero() -> None:
    assert RatioStrength(1.0).update(1.0, 0.0) == 0.0


def test_steps_without_curvature_are_not_averaged() -> None:
    rule = RatioStrength(1.0)
    before = rule.update(1.0, 4.0)
    for _ in range(20):
        assert rule.update(1.0, 0.0) == 0.0
    assert rule.update(1.0, 4.0) == pytest.approx(before)
