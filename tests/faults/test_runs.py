"""Runs that are killed, find the disk full, or find their checkpoint broken: real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def drill(fault: str, tries: int, seed: int) -> list[dict[str, Any]]:
    """Each try's outcome; the runs are processes forked from one that holds no threads."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.fault_runs", fault),
            *("--tries", str(tries), "--seed", str(seed)),
        ],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == tries
    return found


def check_kills(kills: list[dict[str, Any]]) -> None:
    for kill in kills:
        assert kill["identical"], kill


def test_killed_three_times() -> None:
    check_kills(drill("kill", tries=3, seed=1))


@pytest.mark.slow
def test_killed_twenty_times() -> None:
    kills = drill("kill", tries=20, seed=2)
    check_kills(kills)
    # else the moments were not random enough to mean much
    assert {k["what"] for k in kills} >= {"between checkpoints", "while a checkpoint was written"}
    assert any(k["resumed_from"] > 0 for k in kills)


def check_interrupts(found: list[dict[str, Any]]) -> None:
    for stopped in found:
        assert stopped["error"] == "KeyboardInterrupt", stopped
        assert stopped["identical"], stopped


def test_ctrl_c_at_two_random_moments() -> None:
    check_interrupts(drill("interrupt", tries=2, seed=1))


@pytest.mark.slow
def test_ctrl_c_at_twenty_random_moments() -> None:
    check_interrupts(drill("interrupt", tries=20, seed=2))


def check_full_disks(found: list[dict[str, Any]]) -> None:
    for full in found:
        assert full["error"], "it did not say why it ended"
        assert full["identical"], full


def test_the_disk_is_full_while_a_checkpoint_is_written() -> None:
    check_full_disks(drill("disk", tries=2, seed=1))


@pytest.mark.slow
def test_the_disk_is_full_at_many_points() -> None:
    check_full_disks(drill("disk", tries=12, seed=2))


def check_broken_files(found: list[dict[str, Any]]) -> None:
    for broken in found:
        assert not broken["silent"], broken
        assert broken["error"], broken
        assert broken["identical"], broken


def test_each_file_of_a_checkpoint_cut_off() -> None:
    """It is refused; the run goes on from the one before, and ends as if nothing had been."""
    check_broken_files(drill("torn", tries=5, seed=1))


@pytest.mark.slow
def test_each_file_of_a_checkpoint_cut_off_at_many_places() -> None:
    check_broken_files(drill("torn", tries=25, seed=2))
