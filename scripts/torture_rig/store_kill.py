"""`kill`: SIGKILL at a random moment of a save, one good save being there before it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from store_controls import Peers, missing, names
from store_trials import HERE, MEGA, Bench, Line, Verdict, Writer
from store_writer import RUN, flaws_of

from ksupervise.store import CheckpointStore

PART = "kill"
KILLS, QUICK_KILLS, CONTROLS = 40, 10, 10
SIZE = 30 * MEGA
BEYOND = 1.2  # of a save's usual length
SAMPLES = 3  # saves whose length tells how long one takes

Start = Callable[[Path, Path], Writer]  # (where to save, log) → a writer
Judge = Callable[[Path, int], tuple[str, str]]  # (where it saved, newest acknowledged) → said, flaw


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """Ours, then the controls."""
    start: Start = lambda place, log: Writer([HERE / "store_writer.py", place, SIZE], log)  # noqa: E731
    yield Line(PART, "ksupervise", verdicts=_kills(bench, "ksupervise", (KILLS, QUICK_KILLS), start, _judge))
    if peers is None:
        return
    for name in names():
        line = Line(PART, name, control=True, skipped=missing(name))
        if not line.skipped:
            start, judge = _of_peer(peers, name)
            line.verdicts = _kills(bench, name, (CONTROLS, 0), start, judge)
        yield line


def _of_peer(peers: Peers, name: str) -> tuple[Start, Judge]:
    def start(place: Path, log: Path) -> Writer:
        place.mkdir()
        return peers.writer(name, place, SIZE, log)

    return start, lambda place, acked: peers.left(name, place, SIZE).verdict(acked)


def _judge(place: Path, acked: int) -> tuple[str, str]:
    store = CheckpointStore(place, RUN)
    flaw = flaws_of(store, acked)
    newest = store.newest()
    if flaw or newest is None:
        return "lost or damaged", flaw or "nothing is left"
    return ("the old one there" if newest.manifest.seq == acked else "the new one there"), ""


def _kills(bench: Bench, what: str, counts: tuple[int, int], start: Start, judge: Judge) -> list[Verdict]:
    """Trials of one kind: first how long a save takes, then kills spread over that."""
    trials = bench.names(f"{PART}/{what}", *counts)
    if not trials:
        return []
    rehearsal = bench.folder(f"{PART}/{what} rehearsal")
    with contextlib.closing(start(rehearsal / "saved", rehearsal / "log")) as writer:
        seconds = _length(writer)

    def one(trial: str) -> Verdict:
        folder = bench.folder(trial)
        with contextlib.closing(start(folder / "saved", folder / "log")) as writer:
            writer.wait_for("begin 2")
            writer.listen(bench.random(trial).uniform(0.0, BEYOND * seconds))
            writer.kill()
        said, flaw = judge(folder / "saved", writer.saved)
        return Verdict(trial, said, flaw)

    return bench.map(one, trials)


def _length(writer: Writer) -> float:
    """Seconds that a save takes."""
    lengths = []
    for number in range(2, SAMPLES + 2):
        writer.wait_for(f"begin {number}")
        began = time.monotonic()
        writer.wait_for(f"saved {number}")
        lengths.append(time.monotonic() - began)
    return statistics.median(lengths)
