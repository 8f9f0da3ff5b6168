"""A replica's worker that hangs: when it counts as such, and what becomes of it. Real workers, in a folder."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.process.helpers import alive, until, wait_gone
from tests.replicas.memory_place import NAME, RUN, new_run, put

from ksupervise.parent.console import Console
from ksupervise.parent.replicate import handle
from ksupervise.parent.replicate.fleet import Fleet
from ksupervise.parent.signals import STOPS, SignalPipe
from ksupervise.parent.voice import Voice
from ksupervise.replicas import objects, talk
from ksupervise.store import CheckpointStore

SHORT = 0.5  # seconds
LONG = 20.0  # seconds for which the end would be waited for


class Watched:
    """A fleet of one, and the loop that it needs."""

    def __init__(self, run: Path, place: Path, voice: Voice) -> None:
        self.told: list[dict[str, Any]] = []
        self._callbacks: dict[int, Callable[[], None]] = {}
        self.fleet = Fleet(
            [{"directory": str(run), "run": RUN, "name": NAME, "place": str(place)}],
            watch=self._callbacks.__setitem__,
            unwatch=lambda fd: void(self._callbacks.pop(fd, None)),
            record=lambda event, **fields: self.told.append(fields),
            voice=voice,
            superseded=lambda words: None,
        )

    def turn(self) -> None:
        """Once around the loop."""
        self.fleet.look()
        for fd in select.select([*self._callbacks], [], [], 0.02)[0]:
            self._callbacks[fd]()

    def await_told(self, op: str, times: int = 1) -> dict[str, Any]:
        """The report of that name that comes as the `times`-th."""

        def found() -> dict[str, Any] | None:
            self.turn()
            reports = [each for each in self.told if each["op"] == op]
            return reports[times - 1] if len(reports) >= times else None

        return until(found, f"report {op}")

    @property
    def pid(self) -> int:
        (pid,) = self.fleet.pids
        return pid


def void(_: object) -> None:
    """Nothing."""


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = new_run(tmp_path / "run")
    put(store, 1)
    return store


@pytest.fixture
def watched(store: CheckpointStore, tmp_path: Path) -> Iterator[Watched]:
    console = Console()
    found = Watched(tmp_path / "run", tmp_path / "place", Voice(console, quiet=True))
    with closing(found.fleet):
        yield found
    console.close()


def test_the_limit_is_longer_than_a_worker_that_lives_may_be_silent() -> None:
    assert handle.SILENCE > talk.CEILING + objects.PATIENCE, (
        "a wait between two tries, and a request that gets no answer"
    )
    assert handle.SILENCE > 2 * objects.PATIENCE, "a request that fails at the last moment, and is repeated"


def test_one_that_hangs_is_ended_and_another_goes_on(
    store: CheckpointStore, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.await_told("replicated")
    hanging = watched.pid
    os.kill(hanging, signal.SIGSTOP)
    put(store, 2)
    watched.fleet.committed()
    monkeypatch.setattr(handle, "SILENCE", SHORT)
    failed = watched.await_told("failed")
    monkeypatch.undo()
    assert failed["kind"] == "worker"
    assert "does not answer" in failed["reason"]
    wait_gone(hanging)
    watched.await_told("replicated", times=2)
    assert watched.pid != hanging


def test_one_that_hangs_is_not_waited_for_at_the_end(
    store: CheckpointStore, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.await_told("replicated")
    hanging = watched.pid
    os.kill(hanging, signal.SIGSTOP)
    put(store, 2)
    watched.fleet.committed()
    monkeypatch.setattr(handle, "SILENCE", SHORT)
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGTSTP)}
    try:
        with closing(SignalPipe()) as signals:
            began = time.monotonic()
            watched.fleet.finish(LONG, lambda text: None, signals)
            assert time.monotonic() - began < LONG
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert watched.fleet.incomplete != []
    watched.fleet.close()
    assert not alive(hanging)
