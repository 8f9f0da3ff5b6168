"""The journal: appended to, torn, spoiled, and read all the same."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert set(record) == {"event", "at", "mono", "seq", "path"}


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
