"""The journal: appended to, torn, spoiled, and read all the same."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.machines import Machine

from ksupervise.core.clock import MERGED, lives_here, timeline
from ksupervise.parent import journal
from ksupervise.parent.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal.jsonl"


def write(path: Path, *events: str) -> None:
    """One parent's life, in which these happened."""
    book = Journal(path)
    for event in events:
        book.write(event)
    book.sync()
    book.close()
    assert book.failed is None


def events(path: Path) -> list[str]:
    """What the journal tells."""
    return [record["event"] for record in journal.read(path)]


def test_what_is_written_is_read_in_order_over_several_lives(path: Path) -> None:
    write(path, "launched", "claimed")
    write(path, "launched")
    assert events(path) == ["launched", "claimed", "launched"]


def test_a_record_says_when_on_both_clocks_and_what(path: Path) -> None:
    book = Journal(path)
    written = book.write("committed", seq=3, path="/größe/\udcff")
    book.close()
    (record,) = journal.read(path)
    assert record == written
    assert set(record) == {"event", "at", "mono", "life", "seq", "path"}


def test_no_journal_is_an_empty_one(path: Path) -> None:
    assert events(path) == []


def test_a_line_torn_by_a_death_costs_itself_only(path: Path) -> None:
    write(path, "launched", "claimed")
    os.truncate(path, path.stat().st_size - 5)
    assert events(path) == ["launched"]
    write(path, "attempt_ended")
    assert events(path) == ["launched", "attempt_ended"]


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 4096, b"\xff\xfe\n", b"[]\n", b"3\n", b'{"at": 1}\n', b"[" * 100_000, b"\r\n\r\n"]
)
def test_garbage_is_passed_over(path: Path, garbage: bytes) -> None:
    write(path, "launched")
    with path.open("ab") as stream:
        stream.write(garbage)
    write(path, "claimed")
    assert events(path) == ["launched", "claimed"]


@given(st.binary(max_size=200))
def test_any_garbage_is_passed_over(garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        path.write_bytes(garbage)
        write(path, "launched")
        assert events(path)[-1] == "launched"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_loses_records_and_no_more() -> None:
    book = Journal(Path("/dev/full"))
    assert book.write("launched")["event"] == "launched"
    book.close()
    assert book.failed is not None
    assert [record["event"] for record in book.unwritten] == ["launched"], "the accounts of this life go on with them"


def test_a_record_that_only_half_fitted_spoils_no_later_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal(path)
    write_all = os.write
    with monkeypatch.context() as nearly_full:
        nearly_full.setattr(os, "write", lambda fd, data: write_all(fd, data[:20]))
        book.write("launched")
    book.write("claimed")
    book.write("committed")
    book.close()
    assert events(path) == ["claimed", "committed"]


def test_the_journal_is_private(path: Path) -> None:
    write(path, "launched")
    assert path.stat().st_mode & 0o777 == 0o600


# Journals of several machines


def lines(*records: dict[str, Any]) -> bytes:
    """As a journal holds them."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def told(path: Path) -> list[dict[str, Any]]:
    """What the journal tells, but for the notes of who merged what."""
    return [record for record in journal.read(path) if record["event"] != MERGED]


A, B = Machine("a"), Machine("b", ahead=-7200.0, up=3.0)
A1, B1, A2 = A.life(), B.life(), A.life()
BEGUN = [A1.took(0), *A1.trains(1, 1), A1.committed(50, 1, 10)]
TAIL = [A1.superseded(200), A1.ended(201, 1, 0, 12, "preempted")]
THERE = [B1.took(100), *B1.trains(101, 2, resumed=10), B1.committed(150, 2, 30), B1.ended(180, 2, 10, 40, "preempted")]
BACK = [A2.took(300), *A2.trains(301, 3, resumed=40), A2.ended(400, 3, 40, 50)]


def test_what_comes_twice_is_there_once(path: Path) -> None:
    path.write_bytes(lines(*BEGUN))
    for _ in range(2):
        journal.merge(path, lines(*BEGUN, *THERE))
    assert told(path) == [*BEGUN, *THERE]
    assert len(events(path)) == len(told(path)) + 1


def test_a_journal_that_repeats_itself_is_told_once(path: Path) -> None:
    journal.merge(path, lines(*BEGUN, *BEGUN))
    assert told(path) == BEGUN


def test_lines_that_a_machine_had_of_its_own_stay_in_its_life(path: Path) -> None:
    """B knew the beginning only; what A said after that comes later, and belongs before."""
    path.write_bytes(lines(*BEGUN, *THERE))
    journal.merge(path, lines(*BEGUN, *TAIL, *BACK))
    assert told(path) == [*BEGUN, *TAIL, *THERE, *BACK]


def test_whose_lives_came_from_elsewhere_is_noted(path: Path) -> None:
    path.write_bytes(lines(*BEGUN, *TAIL))
    journal.merge(path, lines(*BEGUN, *THERE))
    assert [life.name for life in lives_here(journal.read(path)) if life.name != journal.LIFE] == [A1.name]
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(lines(*THERE))
    journal.merge(elsewhere, path.read_bytes())
    assert [life.name for life in lives_here(journal.read(elsewhere)) if life.name != journal.LIFE] == [B1.name]


def test_what_came_torn_is_left(path: Path) -> None:
    whole = lines(*BEGUN, *THERE)
    path.write_bytes(lines(*BEGUN)[:-1])
    journal.merge(path, whole[:-7])
    journal.merge(path, whole)
    assert told(path) == [*BEGUN, *THERE]


def test_nothing_new_changes_nothing(path: Path) -> None:
    path.write_bytes(lines(*BEGUN))
    journal.merge(path, lines(*BEGUN)[5:])
    journal.merge(path, b"\n\n")
    assert path.read_bytes() == lines(*BEGUN)


def test_a_machine_without_the_run_has_it_afterwards(path: Path) -> None:
    journal.merge(path, lines(*BEGUN, *THERE))
    assert told(path) == [*BEGUN, *THERE]
    assert path.stat().st_mode & 0o777 == 0o600


@given(st.permutations([BEGUN, BEGUN + TAIL, BEGUN + THERE, BEGUN + THERE + BACK, TAIL + BACK, THERE[2:]]))
def test_in_any_order_of_arrival_nothing_is_lost_or_repeated(arrivals: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        for each in arrivals:
            journal.merge(path, lines(*each))
        assert told(path) == [*BEGUN, *TAIL, *THERE, *BACK]
        line = timeline(told(path))
        assert all(later >= earlier for earlier, later in itertools.pairwise(line.times[: len(BEGUN + TAIL)])), (
            "within a life"
        )
        assert all(later >= earlier for earlier, later in itertools.pairwise(line.times[len(BEGUN + TAIL) :]))
        assert [flag for flag in line.flags if "clocks of a and b differ" not in flag] == []
