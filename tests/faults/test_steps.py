"""One step with a fault in it: errors, interrupts, lack of memory, bad numbers, another graph."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fault_job import SETTINGS, Setting
from benchmarks.fault_steps import (
    ERRORS,
    PLACES,
    Outcome,
    bad_gradient,
    bad_loss,
    interrupt,
    left_out,
    other_graph,
    out_of_memory,
    plain,
    raising,
    try_fault,
)
from tests.faults.cases import name_of, settings_of_steps

seeds = st.integers(0, 50)
warm_steps = st.integers(0, 2)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])
NAMED = {name_of(s): s for s in SETTINGS}
FLOAT32 = [n for n, s in NAMED.items() if s.dtype == "float32"]


def survived(outcome: Outcome) -> None:
    assert outcome.sprung, "the fault did not take place: nothing was tested"
    assert not outcome.perturbed
    assert not outcome.not_finite
    assert not outcome.wrong_next


@settings(max_examples=150, deadline=None)
@given(data=st.data(), setting=settings_of_steps, seed=seeds, warm=warm_steps)
def test_an_error_anywhere_in_the_closure(
    data: st.DataObject, setting: Setting, seed: int, warm: int
) -> None:
    call = data.draw(st.integers(1, setting.passes))
    place, kind = data.draw(st.sampled_from(PLACES)), data.draw(st.sampled_from(list(ERRORS)))
    outcome = try_fault(setting, raising(call, place, kind), seed=seed, warm=warm)
    assert outcome.error == ERRORS[kind].__name__  # it comes out as it is, not as another error
    survived(outcome)


@pytest.mark.parametrize("name", FLOAT32)
def test_ctrl_c_at_moments_inside_flatopt(name: str) -> None:
    """One moment in 97, spread over the step; the slow test tries each."""
    setting, moment = NAMED[name], 0
    while (outcome := try_fault(setting, interrupt(moment))).sprung:
        survived(outcome)
        moment += 97
    assert moment > 400


@pytest.mark.parametrize("name", [n for n in FLOAT32 if n.endswith("strength=0.1")])
def test_ctrl_c_while_python_leaves_a_with_block(name: str) -> None:
    """Before flatopt is called: the weights are back when the error has been handled, at last."""
    setting, moment = NAMED[name], 0
    while (outcome := try_fault(setting, interrupt(moment, contextlib.__file__))).sprung:
        assert outcome.late or not outcome.perturbed
        assert not outcome.not_finite
        assert not outcome.wrong_next
        moment += 1
    assert moment > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_ctrl_c_at_every_moment_inside_flatopt(name: str) -> None:
    setting, moment = NAMED[name], 0
    while (outcome := try_fault(setting, interrupt(moment))).sprung:
        survived(outcome)
        moment += 1
    assert moment > 400


@settings(max_examples=80, deadline=None)
@given(setting=settings_of_steps, number=st.integers(0, 130), seed=seeds)
def test_memory_runs_out_anywhere(setting: Setting, number: int, seed: int) -> None:
    """Any allocation of the two passes may fail, also those of flatopt itself."""
    outcome = try_fault(setting, out_of_memory(number), seed=seed)
    assert outcome.error == "OutOfMemoryError"
    survived(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_every_allocation_of_a_step_fails(name: str) -> None:
    setting, number = NAMED[name], 0
    while (outcome := try_fault(setting, out_of_memory(number))).sprung:
        assert outcome.error == "OutOfMemoryError"
        survived(outcome)
        number += 1
    assert number > 150


@settings(max_examples=60, deadline=None)
@given(data=st.data(), setting=settings_of_steps, value=BAD, seed=seeds, warm=warm_steps)
def test_a_loss_that_is_not_finite(
    data: st.DataObject, setting: Setting, value: float, seed: int, warm: int
) -> None:
    """In the first pass the batch is left out; in a later one the step is that of the base."""
    call = data.draw(st.integers(1, setting.passes))
    expected = left_out if call == 1 else plain
    outcome = try_fault(setting, bad_loss(call, value), expected, seed=seed, warm=warm)
    assert outcome.error is None
    survived(outcome)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    setting=settings_of_steps,
    value=BAD,
    entries=st.sampled_from([1, 5, None]),
    seed=seeds,
)
def test_a_gradient_with_entries_that_are_not_finite(
    data: st.DataObject, setting: Setting, value: float, entries: int | None, seed: int
) -> None:
    call = data.draw(st.integers(1, setting.passes))
    expected = left_out if call == 1 else plain
    outcome = try_fault(setting, bad_gradient(call, value, entries), expected, seed=seed)
    assert outcome.error is None
    survived(outcome)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_a_parameter_leaves_or_enters_the_graph(name: str, new: bool) -> None:
    """Gone in pass 2: it steps with g1. New in pass 2: it does not step."""
    setting = NAMED[name]
    for call in range(2, setting.passes + 1):
        survived(other_graph(setting, call, new))
