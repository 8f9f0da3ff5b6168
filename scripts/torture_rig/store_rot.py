"""`rot`: files that are not what was written. Every damage must be noticed, and an older checkpoint found."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import store_damage
from store_controls import Peers, missing, names
from store_trials import Bench, Line, Verdict, deaf
from store_writer import RUN, commit, state_of

from ksupervise.parent import persist
from ksupervise.parent.stage import Stage, content
from ksupervise.store import CHUNK, Checkpoint, CheckpointStore, DamagedCheckpoint, RunLayout

PART = "rot"
HARMS, QUICK_HARMS, CONTROLS = 1000, 200, 100
SIZES = (20_000, 20_000, 20_000, 1_000_000, CHUNK + 20_000)  # of the oldest to the newest; one with two digests
SMALL = SIZES[:4]
BIG_ONES = 20  # one trial in so many has the big one
SIZE_OF_PEERS = 100_000
BATCH = 50  # trials of a peer in one process


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """Ours, then how many of the same damages the others load without a word."""
    trials = bench.names(f"{PART}/ksupervise", HARMS, QUICK_HARMS)
    if trials:
        template = bench.folder(f"{PART}/template")
        for big in (False, True):
            make(template / str(big), SIZES if big else SMALL)
        with ProcessPoolExecutor(bench.jobs, multiprocessing.get_context("spawn"), deaf) as pool:
            found = list(pool.map(_ours, trials, [bench.seed] * len(trials), [template] * len(trials), chunksize=10))
        yield Line(PART, "ksupervise", verdicts=found)
    if peers is None:
        return
    for name in names():
        line = Line(PART, name, control=True, skipped=missing(name))
        if not line.skipped:
            line.verdicts = list(_peer(bench, peers, name))
        yield line


def make(root: Path, sizes: tuple[int, ...]) -> None:
    """A run with one checkpoint of each size."""
    RunLayout(root).create()
    store = CheckpointStore(root, RUN)
    for seq, size in enumerate(sizes, 1):
        commit(store, seq, size, state_of(seq, size))


def _ours(trial: str, seed: int, template: Path) -> Verdict:
    chance = random.Random(f"{seed} {trial}")
    root = template.with_name(trial.replace("/", "_"))
    shutil.copytree(template / str(chance.randrange(BIG_ONES) == 0), root)
    try:
        done, flaw = _rotten(CheckpointStore(root, RUN), chance)
        return Verdict(trial, "missed" if flaw else "noticed", flaw, dict(Counter(done)))
    except Exception as error:
        return Verdict(trial, "broken", f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(root)


def _rotten(store: CheckpointStore, chance: random.Random) -> tuple[list[str], str]:
    """Damage some, never the oldest; what was done, and what is wrong with what the store makes of it."""
    there = store.checkpoints()
    victims = chance.sample(there[:-1], chance.choice((1, 1, 2, 3)))
    done = store_damage.hurt([Path(each.path, name) for each in victims for name in os.listdir(each.path)], chance)
    hurt = {str(path.parent) for path, _ in done}
    return [how for _, how in done], _undetected(store, there, hurt) or _unrestored(store, there, hurt)


def _undetected(store: CheckpointStore, there: list[Checkpoint], hurt: set[str]) -> str:
    """By listing and verifying, and by reading. Whole ones must count as whole."""
    listed = {each.path: each for each in store.checkpoints()}
    for path in (each.path for each in there):
        if path in hurt:
            if path in listed and _passes(store, listed[path]):
                return f"{os.path.basename(path)} is damaged: {_passes(store, listed[path])}"
        elif path not in listed:
            return f"{os.path.basename(path)} is whole and not listed"
        else:
            store.verify(listed[path])
    return ""


def _passes(store: CheckpointStore, checkpoint: Checkpoint) -> str:
    """How a damaged one passes for a whole one; "" if it does not."""
    try:
        store.verify(checkpoint)
    except DamagedCheckpoint:
        pass
    else:
        return "verify passes it"
    try:
        for record in checkpoint.manifest.files:
            for _ in store.read(checkpoint, record.name):
                pass
    except DamagedCheckpoint:
        return ""
    return "reading it passes"


def _unrestored(store: CheckpointStore, there: list[Checkpoint], hurt: set[str]) -> str:
    """A restore takes the newest whole one, every byte of it, and sets aside what it met on the way."""
    best = next(each for each in there if each.path not in hurt)
    damaged = {os.path.basename(path) for path in hurt}
    met = {os.path.basename(path) for path in _newer(there, best) if path in hurt}
    stage = Stage(Path(store.layout.root))
    try:
        restored = persist.restore(store, stage, fit=1, epochs=2**31)
        chosen = restored.plan.checkpoint
        if chosen is None or restored.slot is None or chosen.seq != best.manifest.seq:
            return f"{best.manifest.seq} is whole, and {chosen and chosen.seq} was restored"
        slot = stage.slots[restored.slot]
        description = slot.read_description() or {}
        for name, data in state_of(chosen.seq, best.manifest.extra["size"]).items():
            if b"".join(map(bytes, content(slot, *description["files"][name]))) != b"".join(data):
                return f"{name} of {chosen.seq} was restored with other bytes"
    finally:
        stage.close()
    aside = {os.path.basename(path) for path, _ in restored.set_aside}
    if not met <= aside <= damaged:
        return f"set aside: {sorted(aside)}; damaged: {sorted(damaged)}"
    kept = {name for name in os.listdir(store.layout.aside) if not name.endswith(".reason.txt")}
    return "" if aside == kept else f"{sorted(aside)} were set aside, and {sorted(kept)} are there"


def _newer(there: list[Checkpoint], than: Checkpoint) -> list[str]:
    return [each.path for each in there if each.manifest.seq > than.manifest.seq]


def _peer(bench: Bench, peers: Peers, name: str) -> Iterator[Verdict]:
    """In processes of their own: some of these take the interpreter down."""
    trials = bench.names(f"{PART}/{name}", CONTROLS, 0)
    numbers = [int(trial.rpartition(":")[2]) for trial in trials]
    folder = bench.folder(f"{PART}/{name}") if trials else bench.base
    at = 0
    while at < len(numbers):
        last = min(at + BATCH, len(numbers)) - 1
        rotter = peers.rotter(name, folder, SIZE_OF_PEERS, f"{bench.seed} {name}", numbers[at], numbers[last])
        with contextlib.closing(rotter):
            rotter.finish()
        said = [line.split() for line in rotter.lines if line.startswith("saved")]
        for _, number, word in said:
            flaw = "loaded without a word, with other values" if word == "silent" else ""
            yield Verdict(f"{PART}/{name}:{number}", word, flaw)
        at += len(said)
        if at <= last:  # it died in that one
            if rotter.process.returncode >= 0:
                raise RuntimeError(rotter.words())
            word = f"killed by {signal.Signals(-rotter.process.returncode).name}"
            yield Verdict(f"{PART}/{name}:{numbers[at]}", word, word)
            shutil.rmtree(folder / str(numbers[at]), ignore_errors=True)
            at += 1
