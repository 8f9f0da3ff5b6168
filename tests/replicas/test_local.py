"""The lease in a run's own directory, on a real folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ksupervise.replicas import local
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.format import Generation
from ksupervise.replicas.lease import Lease
from ksupervise.replicas.local import FOLDER, Acquired, Busy, SharedOwnership
from ksupervise.replicas.place import Entry, ReplicaUnreachable

INTERVAL = 0.2  # seconds
BOUND = 60.0


class Losses:
    """What was said to be lost."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.came = threading.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self.came.set()


def ownership(run: Path, lost: Callable[[str], None] = pytest.fail) -> SharedOwnership:
    return SharedOwnership(run, lost, interval=INTERVAL, patience=30 * INTERVAL)


def test_a_second_machine_is_told_and_follows_when_the_first_lets_go(tmp_path: Path) -> None:
    first, second = ownership(tmp_path), ownership(tmp_path)
    assert first.acquire(time.sleep) == Acquired(1, "")
    busy = second.acquire(time.sleep)
    assert isinstance(busy, Busy), "it beats by itself"
    assert busy.claim is not None
    assert busy.claim.holder == first.holder
    first.release()
    first.release()
    found = second.acquire(time.sleep)
    assert isinstance(found, Acquired)
    assert found.token == 2
    second.release()
    second.release()
    again = first.acquire(time.sleep)
    assert isinstance(again, Acquired)
    first.release()


def test_an_owner_that_was_taken_over_is_told_once(tmp_path: Path) -> None:
    losses = Losses()
    first = ownership(tmp_path, losses)
    assert isinstance(first.acquire(time.sleep), Acquired)
    place = Folder(str(tmp_path / FOLDER))
    # Another machine that found no sign of life: not even looking for one is the same.
    other = Lease(place, Generation(1, "00000000", "run"), "other-1-00000000", 9, interval=INTERVAL, patience=1e-9)
    assert isinstance(other.acquire(lambda seconds: None), Acquired)
    assert losses.came.wait(BOUND)
    first.release()
    assert len(losses.texts) == 1
    assert str(tmp_path) in losses.texts[0]
    assert other.check()


def test_a_folder_that_is_out_of_reach_for_a_while_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, failed = threading.Event(), threading.Semaphore(0)

    class Flaky(Folder):
        def entries(self, prefix: str) -> list[Entry]:
            if away.is_set():
                failed.release()
                raise ReplicaUnreachable("the server does not answer")
            return super().entries(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(local, "Folder", Flaky)
        first = ownership(tmp_path)
    assert isinstance(first.acquire(time.sleep), Acquired)
    away.set()
    for _ in range(3):
        assert failed.acquire(timeout=BOUND)
    away.clear()
    assert isinstance(ownership(tmp_path).acquire(time.sleep), Busy), "and it beats on"
    first.release()
    after = ownership(tmp_path)
    assert isinstance(after.acquire(time.sleep), Acquired)
    after.release()
