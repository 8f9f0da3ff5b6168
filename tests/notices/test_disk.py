"""A disk that fills up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksupervise.notices import disk as module
from ksupervise.notices.notice import Unavailable

from .helpers import QUICK, Clock, Heard


class Disk:
    """A source over a disk of which the test says what is free."""

    def __init__(self, heard: Heard) -> None:
        self.free = 10_000_000_000
        self.least = 1_000_000_000
        announcer = heard.announcer("disk", Clock())
        source = module.Source(announcer, Path("/store"), lambda: self.least, QUICK, free=lambda _: self.free)
        self.look = source.questions()[0].ask


def test_low_is_said_once_until_it_has_recovered(heard: Heard) -> None:
    disk = Disk(heard)
    disk.look()
    assert not heard.notices()
    for free in (900_000_000, 800_000_000, 1_100_000_000, 900_000_000):
        disk.free = free
        disk.look()
    (notice,) = heard.notices()
    assert (notice.source, notice.final, notice.seconds) == ("disk", False, None)
    assert "900 MB" in notice.text
    assert "1.0 GB" in notice.text
    disk.free = 1_200_000_000
    disk.look()
    disk.free = 900_000_000
    disk.look()
    assert len(heard.notices()) == 1


def test_what_is_needed_may_grow(heard: Heard) -> None:
    disk = Disk(heard)
    disk.look()
    disk.least = 20_000_000_000
    disk.look()
    assert len(heard.notices()) == 1


def test_a_real_disk(tmp_path: Path, heard: Heard) -> None:
    least = [0]
    assert heard.watch("auto", {}, store=tmp_path, least=lambda: least[0]).names == ("disk",)
    assert module.free_bytes(tmp_path) > 0
    least[0] = 2**62
    assert heard.notice().source == "disk"
    assert not heard.notes()


def test_off_is_off(tmp_path: Path, heard: Heard) -> None:
    assert heard.watch("off", {}, store=tmp_path, least=lambda: 2**62).names == ()


def test_a_store_that_is_gone(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(Unavailable):
        module.Source(heard.announcer("disk", Clock()), tmp_path / "gone", lambda: 0, QUICK).questions()[0].ask()
    heard.watch("auto", {}, store=tmp_path / "gone", least=lambda: 0)
    assert "file system" in heard.note()
