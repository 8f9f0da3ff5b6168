"""What `status` says on a machine whose run went to another one, from directories written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.core.machines import Machine

from ksupervise.core.clock import MERGED
from ksupervise.parent import run
from ksupervise.report import status
from ksupervise.store import RunLayout

A, B = Machine("a"), Machine("b", ahead=-7200.0, up=3.0)
A1, B1, A2 = A.life(), B.life(), A.life()
BEGUN = [A1.took(0), *A1.trains(1, 1), A1.committed(50, 1, 10)]
LOSER = [A1.superseded(200), A1.ended(201, 1, 0, 12, "preempted"), A1.says("verdict", 202, state="preempted", exit=75)]
FETCHED = [
    A2.says(MERGED, 300, lives=[B1.name]),
    B1.took(100),
    *B1.trains(101, 2, resumed=10),
    B1.committed(150, 2, 30),
]


def standing(folder: Path, records: list[dict[str, Any]], state: str) -> tuple[str, dict[str, Any]]:
    """What is said of a run with that journal, whose record has that state and whose parent is gone."""
    layout = RunLayout(folder / "job")
    layout.create()
    code = None if state == "running" else 75
    run.save(Path(layout.run_json), replace(run.new("job", ["x"], ""), state=state, exit_code=code))
    Path(layout.journal).write_text("".join(json.dumps(record) + "\n" for record in records))
    found = status.read(Path(layout.root))
    return status.as_text(found), status.as_json(found)


@pytest.mark.parametrize("state", ["running", "preempted"])
def test_one_that_was_superseded_says_who_took_it(tmp_path: Path, state: str) -> None:
    text, facts = standing(tmp_path, BEGUN + LOSER, state)
    assert "state      moved to another machine\n           Run job is owned by b now" in text
    assert "same command goes on" in text
    assert "parent is gone" not in text
    assert facts["moved"]["detail"].startswith("Run job is owned by b now")
    assert facts["state"] == ("lost" if state == "running" else "preempted")


def test_one_that_fetched_and_did_not_begin_says_where_it_is(tmp_path: Path) -> None:
    text, facts = standing(tmp_path, [*BEGUN, *FETCHED, A2.took(301)], "running")
    assert "state      moved to b\n" in text
    assert "attempt 2 was begun on b, which had come to step 30 at least" in text
    assert facts["moved"]["to"] == "b"
    last = facts["attempts"][-1]
    assert (last["cause"], last["first_step"], last["last_step"], last["at_least"]) == (None, 10, 30, True)
    assert last["seconds"] == pytest.approx(49), "its clock is hours behind this one's"
    row = text.splitlines()[-2].split("  ")
    assert [cell.strip() for cell in row if cell.strip()] == ["2", "10", "10–30+", "0+", "49 s", "b", "not known here"]
    assert text.splitlines()[-1].lstrip().startswith("+: ")


def test_one_that_ended_elsewhere_in_good_order_has_not_gone_anywhere(tmp_path: Path) -> None:
    end = [B1.ended(180, 2, 10, 40, "preempted"), B1.says("verdict", 181, state="preempted", exit=75)]
    text, facts = standing(tmp_path, [*BEGUN, *FETCHED, *end], "preempted")
    assert facts["moved"] is None
    assert "state      preempted, exit code 75" in text


def test_the_other_machines_end_is_the_newest_attempts(tmp_path: Path) -> None:
    """A control page of that number on this machine would be another attempt's."""
    page = tmp_path / "job" / "attempts" / "002"
    page.mkdir(parents=True)
    (page / "live").write_bytes(bytes(range(256)) * 16)
    assert standing(tmp_path, [*BEGUN, *FETCHED], "running")[1]["attempts"][-1]["last_step"] == 30


def test_a_run_that_is_just_lost_is_said_to_go_on(tmp_path: Path) -> None:
    text, facts = standing(tmp_path, BEGUN, "running")
    assert "state      lost: its parent is gone; the same command goes on" in text
    assert facts["moved"] is None
    assert facts["attempts"][0]["seconds"] == pytest.approx(49), "as long as it was heard of, however long ago"
    assert " on " not in text.splitlines()[-3], "there is one machine only"
