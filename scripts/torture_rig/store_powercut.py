"""`powercut`: the power goes while checkpoints are written, and comes back.

A writer saves as fast as it can onto a disk of its own (ext4 on a loop device). At a random moment the file system is
shut down without its journal being flushed; what the page cache held is lost, as it would be. Then the disk is
mounted again, and every byte of every checkpoint is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import store_disk
from store_controls import Peers, missing, names
from store_trials import HERE, MEGA, Bench, Line, Verdict, Writer
from store_writer import RUN, flaws_of

from ksupervise.store import CheckpointStore

PART = "powercut"
CUTS, QUICK_CUTS, CONTROLS = 50, 8, 6
SIZES = (4 * MEGA, 30 * MEGA)
SIZE_OF_PEERS = 12 * MEGA
DISK = 320  # MiB
MOMENTS = (0.1, 3.0)  # seconds after the first save began; the journal commits by itself every second
PEERS_MOMENTS = (0.5, 4.0)  # they are slower


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """Ours; then the controls: ours without its syncs, and what others save with."""
    if reason := store_disk.why_not(bench.base):
        yield Line(PART, "ksupervise", skipped=reason)
        return
    cuts = bench.names(f"{PART}/ksupervise", CUTS, QUICK_CUTS)
    yield Line(PART, "ksupervise", verdicts=bench.map(lambda trial: _ours(bench, trial), cuts))
    if peers is None:
        return
    cuts = bench.names(f"{PART}/unsynced", CONTROLS, 0)
    verdicts = bench.map(lambda trial: _ours(bench, trial, "--unsynced"), cuts)
    yield Line(PART, "ksupervise with no fsync", control=True, verdicts=verdicts)
    for name in names():
        line = Line(PART, name, control=True, skipped=missing(name))
        if not line.skipped:
            cuts = bench.names(f"{PART}/{name}", CONTROLS, 0)
            line.verdicts = bench.map(_control(bench, peers, name), cuts)
        yield line


def _ours(bench: Bench, trial: str, *options: str) -> Verdict:
    chance = bench.random(trial)
    size = chance.randint(*SIZES)
    folder = bench.folder(trial)
    with store_disk.disk(folder / "disk", DISK) as disk:
        run = disk.path / "run"
        writer = Writer([HERE / "store_writer.py", run, size, *options], folder / "log")
        acked = _cut(disk, writer, chance.uniform(*MOMENTS))
        store = CheckpointStore(run, RUN)
        flaw = flaws_of(store, acked)
        newest = store.newest()
        said = "newest whole" if not flaw else "no whole checkpoint" if newest is None else "lost or damaged"
        return Verdict(trial, said, flaw, {"acknowledged": acked})


def _control(bench: Bench, peers: Peers, name: str) -> Callable[[str], Verdict]:
    def one(trial: str) -> Verdict:
        folder = bench.folder(trial)
        with store_disk.disk(folder / "disk", DISK) as disk:
            place = disk.path / "saved"
            place.mkdir()
            store_disk.settle(place)
            writer = peers.writer(name, place, SIZE_OF_PEERS, folder / "log")
            acked = _cut(disk, writer, bench.random(trial).uniform(*PEERS_MOMENTS))
            said, flaw = peers.left(name, place, SIZE_OF_PEERS).verdict(acked)
            return Verdict(trial, said, flaw, {"acknowledged": acked})

    return one


def _cut(disk: store_disk.Disk, writer: Writer, seconds: float) -> int:
    """Let it write for that long, cut the power, bring it back; the newest that was acknowledged."""
    with contextlib.closing(writer):
        writer.wait_for("begin")
        writer.listen(seconds)
        disk.cut()
        writer.kill()
    disk.unmount()
    disk.mount()
    return writer.saved
