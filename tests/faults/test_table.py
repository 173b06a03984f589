"""The table of docs/reliability.md is that of its data, and the data have no failure of flatopt."""

import json
from pathlib import Path

import pytest

from benchmarks.faults import BEGIN, COUNTED, RUNS, STEPS, filled, step_row, table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
DATA = ROOT / "docs" / "results" / "faults" / "faults.json"


def test_the_page_shows_the_data() -> None:
    rows = json.loads(DATA.read_text(encoding="utf-8"))["rows"]
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, table(rows)) == page
    assert {r["fault"] for r in rows} >= {*STEPS, *RUNS}


def test_nothing_was_broken() -> None:
    rows = json.loads(DATA.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        assert [row["flatopt"][c] for c in COUNTED] == [0, 0, 0], row
        assert row["tries"] >= 12


@pytest.mark.parametrize("fault", STEPS)
def test_the_benchmark_finds_what_it_looks_for(fault: str) -> None:
    """A few tries of each in the peer, which survives some of the faults only."""
    pytest.importorskip("pytorch_optimizer")
    row = step_row(fault, STEPS[fault], tries=12, seed=1, peer=True)
    assert sum(row["peer"]["errors"].values()) == row["tries"]
    assert [row["flatopt"][c] for c in COUNTED] == [0, 0, 0], row
    if "graph" not in fault:
        assert row["peer"]["wrong_next"] > 0


def test_filling_a_page_keeps_the_rest() -> None:
    page = f"before\n{BEGIN}\nold\n<!-- end -->\nafter\n"
    assert filled(page, "new") == f"before\n{BEGIN}\nnew\n<!-- end -->\nafter\n"
