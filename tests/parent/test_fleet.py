"""All replicas of a run at its end: real workers, folders, real signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.replicas.memory_place import NAME, RUN, new_run, put

from ksupervise.parent.console import Console
from ksupervise.parent.journal import Journal, read
from ksupervise.parent.replicate.deliver import deliver
from ksupervise.parent.replicate.fleet import Fleet
from ksupervise.parent.signals import STOPS, SignalPipe
from ksupervise.parent.voice import Voice

SIZE = 2_000_000
PATIENCE = 60.0


@pytest.fixture
def signals() -> Iterator[SignalPipe]:
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGTSTP)}
    with closing(SignalPipe()) as pipe:
        yield pipe
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def quiet() -> Iterator[Voice]:
    console = Console()
    yield Voice(console, quiet=True)
    console.close()


@pytest.fixture
def configurations(tmp_path: Path) -> list[dict[str, Any]]:
    """Of two folders, the second of which takes seconds for what the first takes at once."""
    put(new_run(tmp_path / "run"), 1, size=SIZE)
    common = {"directory": str(tmp_path / "run"), "run": RUN, "name": NAME}
    return [
        {**common, "place": str(tmp_path / "quick")},
        {**common, "place": str(tmp_path / "slow"), "rate": SIZE / 2},
    ]


def fleet_of(configurations: list[dict[str, Any]], voice: Voice, record: Callable[..., None]) -> Fleet:
    return Fleet(
        configurations,
        watch=lambda fd, callback: None,
        unwatch=lambda fd: None,
        record=record,
        voice=voice,
        superseded=lambda words: None,
    )


def test_the_first_that_is_done_does_not_end_the_wait_for_the_others(
    configurations: list[dict[str, Any]], signals: SignalPipe, quiet: Voice
) -> None:
    ended: list[str] = []

    def record(event: str, **fields: Any) -> None:
        ended.extend([fields["place"]] * (fields["op"] == "replicated"))

    with closing(fleet_of(configurations, quiet, record)) as fleet:
        fleet.committed()
        fleet.look()
        fleet.finish(PATIENCE, lambda text: None, signals)
        assert ended == [each["place"] for each in configurations]
        assert fleet.incomplete == []


def test_one_that_was_to_be_started_later_is_started_for_the_end(
    configurations: list[dict[str, Any]], signals: SignalPipe, quiet: Voice
) -> None:
    with closing(fleet_of(configurations, quiet, lambda event, **fields: None)) as fleet:
        fleet.committed()
        fleet.finish(PATIENCE, lambda text: None, signals)
        assert fleet.incomplete == []


def test_who_asks_to_stop_is_not_kept_waiting(
    configurations: list[dict[str, Any]], signals: SignalPipe, quiet: Voice
) -> None:
    configurations[1]["rate"] = 10.0
    first = threading.Event()

    def record(event: str, **fields: Any) -> None:
        if fields["op"] == "replicated" and not first.is_set():
            first.set()
            os.kill(os.getpid(), signal.SIGTERM)

    with closing(fleet_of(configurations, quiet, record)) as fleet:
        fleet.committed()
        fleet.look()
        fleet.finish(24 * 3600.0, lambda text: None, signals)
        assert configurations[1]["place"] in fleet.incomplete


def test_what_lacks_is_delivered(
    configurations: list[dict[str, Any]], signals: SignalPipe, quiet: Voice, tmp_path: Path
) -> None:
    with closing(Journal(tmp_path / "run" / "journal.jsonl")) as book:
        deliver(configurations, book, quiet)
    told = [record["op"] for record in read(tmp_path / "run" / "journal.jsonl") if record["event"] == "replica"]
    assert told.count("replicated") == 2
    for place in ("quick", "slow"):
        assert len(list((tmp_path / place).rglob("MANIFEST.json"))) == 1
        assert len(list((tmp_path / place).rglob("history/*.jsonl"))) == 1
