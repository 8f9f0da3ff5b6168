"""A script that sets no seed: what it draws before, between and after its fits is the same at each attempt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.keras_runs.conftest import Laboratory, Result

SCRIPT = Path(__file__).with_name("unseeded_script.py")


def lives(run: Result) -> dict[str, list[dict[str, Any]]]:
    """Place → what was drawn there, life by life; empties the file for a run to come."""
    path = run.folder / "out.lives"
    found: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found.setdefault(line["place"], []).append(line["drawn"])
    path.unlink()
    return found


def test_killed_in_the_second_fit(laboratory: Laboratory) -> None:
    supervised = laboratory.supervised("-", script=SCRIPT, INTERRUPT="batch:10")
    assert supervised.code == 0, supervised.output
    drawn = lives(supervised)
    assert {place: len(each) for place, each in drawn.items()} == {"before": 2, "between": 2, "after": 1}
    for first, second in (drawn["before"], drawn["between"]):
        assert first == second
    assert drawn["before"][0]["random"] != drawn["between"][0]["random"]
    assert [event["mode"] for event in supervised.events("resumed")] == ["skip", "resume"]
    again = laboratory.supervised("-", "--fresh", script=SCRIPT)
    assert again.code == 0, again.output
    for place, (other, *_) in lives(again).items():
        assert [name for name in other if other[name] == drawn[place][0][name]] == [], "another run draws anew"


def test_killed_after_the_last_fit(laboratory: Laboratory) -> None:
    supervised = laboratory.supervised("-", script=SCRIPT, INTERRUPT="after:0")
    assert supervised.code == 0, supervised.output
    for first, second in lives(supervised).values():
        assert first == second
    assert [event["mode"] for event in supervised.events("resumed")] == ["skip", "skip"]


@pytest.mark.parametrize("fit", ["1", "2"])
def test_with_a_given_seed_an_interrupted_run_is_one_left_alone(laboratory: Laboratory, fit: str) -> None:
    interrupted = laboratory.supervised("-", "--seed", "5", script=SCRIPT, INTERRUPT="batch:10", FIT=fit)
    assert interrupted.code == 0, interrupted.output
    assert interrupted.events("resumed")[-1]["mode"] == "resume"
    assert interrupted.events("resumed")[-1]["guarantee"] == "exact"
    result, drawn = interrupted.result, lives(interrupted)
    alone = laboratory.supervised("-", "--fresh", "--seed", "5", script=SCRIPT)
    assert alone.code == 0, alone.output
    assert alone.result == result
    for place, (only,) in lives(alone).items():
        assert drawn[place] == [only] * len(drawn[place])


def test_with_a_given_seed_from_a_fresh_interpreter(cold_laboratory: Laboratory) -> None:
    """The hooks wait for the imports here; there they find everything imported."""
    interrupted = cold_laboratory.supervised("-", "--seed", "5", script=SCRIPT, INTERRUPT="batch:10")
    assert interrupted.code == 0, interrupted.output
    result, drawn = interrupted.result, lives(interrupted)
    alone = cold_laboratory.supervised("-", "--fresh", "--seed", "5", script=SCRIPT)
    assert alone.result == result
    for place, (only,) in lives(alone).items():
        assert drawn[place] == [only] * len(drawn[place])
