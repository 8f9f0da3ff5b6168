"""What a parent holds open on its store when the mount goes away, and what of it works again when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ksupervise.parent import journal
from ksupervise.parent.console import LogFile
from ksupervise.parent.journal import Journal
from ksupervise.store import RunLock

from .fuse import mounted, why_not

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def needs_fuse() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A backing directory and where it is to be mounted."""
    made = (tmp_path / "backing", tmp_path / "mounted")
    for each in made:
        each.mkdir()
    return made


def test_the_journal_goes_on_when_the_mount_is_back(places: tuple[Path, Path]) -> None:
    path = places[1] / "journal.jsonl"
    with mounted(*places) as mount:
        book = Journal(path)
        book.write("launched")
        mount.kill()
        book.write("lost")
    with mounted(*places):
        book.write("found")
        book.write("ended")
        book.sync()
        assert [record["event"] for record in journal.read(path)] == ["launched", "found", "ended"]
        book.close()
    assert book.failed is not None


def test_closing_what_lay_on_it_is_no_error(places: tuple[Path, Path]) -> None:
    with mounted(*places) as mount:
        book, log, lock = Journal(places[1] / "journal.jsonl"), LogFile(places[1] / "log"), RunLock(places[1] / "lock")
        assert lock.acquire()
        log.write(b"begun")
        mount.kill()
        book.close()
        log.close()
        lock.release()
    assert book.failed is not None
    assert log.failed is not None
    assert not lock.held
