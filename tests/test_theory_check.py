"""theory/check.py: what a check accepts and refuses; and that no statement is left out."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from theory import STATEMENTS
from theory.check import Check, Outcome

ROOT = Path(__file__).resolve().parent.parent
# the files of theory/ that are no statements
FRAME = {"__init__", "__main__", "check", "report"}
# machinery that statements share, too long for the file of one
FRAME |= {"hills", "hills_plot", "ridge", "landscape_animation"}
FRAME |= {"bandit", "policy_products", "diagonal_flow"}


@pytest.mark.parametrize(
    ("relation", "tolerance", "inside", "outside"),
    [
        ("relative", 0.1, [1.81, 2.19], [1.79, 2.21, -2.0]),
        ("absolute", 0.1, [1.91, 2.09], [1.89, 2.11]),
        ("factor", 2.0, [1.01, 3.99], [0.99, 4.01, 0.0, -2.0]),
        ("at least", 0.5, [1.51, 9.0], [1.49, -9.0]),
        ("at most", 0.5, [2.49, -9.0], [2.51, 9.0]),
    ],
)
def test_relations(relation, tolerance, inside, outside):
    for measured in inside:
        assert Check("x", 2.0, measured, tolerance, 99.0, relation).holds, measured
    for measured in [*outside, math.nan, math.inf]:
        if not (relation == "at least" and measured == math.inf):
            assert not Check("x", 2.0, measured, tolerance, 99.0, relation).holds, measured


@pytest.mark.parametrize("relation", ["relative", "absolute", "at least", "at most"])
def test_nothing_holds_of_what_is_not_a_number(relation):
    assert not Check("x", 2.0, math.nan, 0.1, 1.0, relation).holds
    assert not Check("x", math.nan, 2.0, 0.1, 1.0, relation).holds
    assert not Check("x", 2.0, math.inf, 0.1, 1.0, relation).holds


def test_a_wrong_prediction_is_refused():
    check = Check("slope", 2.0, 1.99, 0.05, wrong=1.0)
    assert check.holds
    assert check.refuses_wrong
    assert not check.against(1.0).holds
    assert check.against(1.0).measured == check.measured


@pytest.mark.parametrize(
    ("measured", "tolerance", "relation"),
    [(1.99, 0.6, "relative"), (1.99, 1.2, "absolute"), (1.99, 2.5, "factor")],
)
def test_a_check_too_wide_to_refuse_is_found_out(measured, tolerance, relation):
    check = Check("slope", 2.0, measured, tolerance, wrong=1.0 if relation != "relative" else 1.5)
    wide = Check("slope", 2.0, measured, tolerance, check.wrong, relation)
    assert wide.holds
    assert not wide.refuses_wrong


def test_a_wrong_prediction_of_nothing():
    # relative to 0 only 0 is near
    assert Check("x", 2.0, 1.99, 0.05, wrong=0.0).refuses_wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": "about"}, "relation is one of"),
        ({"tolerance": -0.1}, "tolerance must be finite"),
        ({"tolerance": math.nan}, "tolerance must be finite"),
        ({"tolerance": 0.5, "relation": "factor"}, "of a factor is >= 1"),
        ({"predicted": 0.0}, "needs relation='absolute'"),
    ],
)
def test_senseless_checks(changes, message):
    settings = {"name": "x", "predicted": 1.0, "measured": 1.0, "tolerance": 0.1, "wrong": 2.0}
    with pytest.raises(ValueError, match=message):
        Check(**(settings | changes))


def test_numbers_of_other_packages_become_python_numbers():
    numbers: list = [np.float64(1), torch.tensor(1.0), 0.1, np.float32(2)]
    check = Check("x", *numbers)
    assert [type(v) for v in (check.predicted, check.measured, check.wrong)] == [float] * 3


def test_outcome_refuses_two_checks_of_one_name_and_ragged_tables():
    check = Check("x", 1.0, 1.0, 0.1, 2.0)
    with pytest.raises(ValueError, match="two checks have one name"):
        Outcome([check, check])
    with pytest.raises(ValueError, match="differ in length"):
        Outcome([check], {"t": {"a": [1], "b": [1, 2]}})


def test_every_statement_is_listed_tested_and_documented():
    files = {path.stem for path in (ROOT / "theory").glob("*.py")} - FRAME
    assert files == set(STATEMENTS)
    for name in STATEMENTS:
        assert (ROOT / "tests" / f"test_theory_{name}.py").is_file()
        page = (ROOT / "docs" / "theory" / f"{name}.md").read_text(encoding="utf-8")
        assert f"python -m theory {name}" in page
        assert f"({name}.md)" in (ROOT / "docs/theory/index.md").read_text(encoding="utf-8")
