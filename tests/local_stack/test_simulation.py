"""The command of the simulation: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest

from emberpool_local.simulation.command import main
from emberpool_local.simulation.scale import jain, run_large


def test_a_large_fleet_converges_within_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """After a burst the slots are where the clients are, nobody has far less than its part, the budget holds."""
    assert main(["--tasks", "20", "--environments", "2000", "--seconds", "30", "--seed", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["broken"] == ""
    assert result["most_connections"] <= result["budget"]
    assert result["converged_seconds"] is not None
    assert result["fairness"] > 0.9


def test_no_task_is_left_without_slots_by_bad_luck() -> None:
    """A hundred tasks start at once; one found no free slot at each look, two seconds apart, for nine seconds."""
    result = run_large(100, 20_000, 20.0, seed=1)
    assert result.broken == ""


def test_the_result_is_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the table is a name and a figure."""
    assert main(["--tasks", "4", "--environments", "100", "--seconds", "20"]) == 0
    printed = capsys.readouterr().out
    assert "fleet views a second" in printed
    assert "broken promise                                none" in printed


def test_small_worlds_are_run_from_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says how many worlds broke a promise."""
    assert main(["--worlds", "1", "--seed", "3"]) == 0
    assert capsys.readouterr().out == "1 worlds from seed 3: 0 with a broken promise\n"


def test_a_fleet_of_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The bounds are named with the value seen."""
    with pytest.raises(SystemExit):
        main(["--tasks", "1"])
    assert "must be from 2 to 2000, got 1" in capsys.readouterr().err


def test_fairness_is_one_when_all_have_the_same_and_one_nth_when_one_has_all() -> None:
    """Jain's index, as published."""
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
