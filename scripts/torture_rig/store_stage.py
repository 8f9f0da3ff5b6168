"""`stage`: SIGKILL of a process that copies its state into the two slots, at random moments, again and again.

Each trial is one pair of slots and a few lives. After each death at most one slot is torn, the other holds the newest
stage that was finished, every byte of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from store_controls import Peers
from store_stager import arrays_of
from store_trials import HERE, MEGA, Bench, Line, Verdict, Writer

from ksupervise.child import tensors
from ksupervise.parent.stage import Stage, content
from ksupervise.wire import Slot

PART = "stage"
TRIALS, QUICK_TRIALS = 50, 10
LIVES = 3  # of each trial
SIZES = (4 * MEGA, 60 * MEGA)
MOMENTS = (0.0, 0.4)  # seconds after the first stage of that life began


def lines(bench: Bench, peers: Peers | None) -> Iterator[Line]:
    """Ours: the peers have no such thing."""
    del peers
    trials = bench.names(f"{PART}/ksupervise", TRIALS, QUICK_TRIALS)
    yield Line(PART, "ksupervise", verdicts=bench.map(lambda trial: _trial(bench, trial), trials))


def _trial(bench: Bench, trial: str) -> Verdict:
    folder, chance = bench.folder(trial), bench.random(trial)
    size = chance.randint(*SIZES) if chance.random() < 0.7 else SIZES[0]
    stage = Stage(folder)
    numbers = {"kills": 0, "torn": 0, "staged": 0}
    try:
        for life in range(LIVES):
            newest = stage.newest()
            first = 1 if newest is None else newest[1]["seq"] + 1
            fds = [slot.fd for slot in stage.slots]
            command: list[str | int | Path] = [HERE / "store_stager.py", *fds, size, first]
            command += [-1 if newest is None else newest[0], f"{bench.seed} {trial} {life}"]
            with contextlib.closing(Writer(command, folder / f"log{life}", fds)) as writer:
                writer.wait_for("begin")
                writer.listen(chance.uniform(*MOMENTS))
                writer.kill()
            staged = max([first - 1, *writer.numbers("staged ")])
            numbers["kills"] += 1
            numbers["staged"] += staged - first + 1
            numbers["torn"] += sum(_is_torn(slot) for slot in stage.slots)
            if flaw := _judge(stage, size, staged, max(writer.numbers("begin "))):
                return Verdict(trial, "broken", f"life {life + 1}: {flaw}", numbers)
    finally:
        stage.close()
    return Verdict(trial, "newest whole", "", numbers)


def _is_torn(slot: Slot) -> bool:
    """It was written to, and is not complete."""
    return slot.size > 0 and slot.read_description() is None


def _judge(stage: Stage, size: int, staged: int, begun: int) -> str:
    """What is wrong with the slots when `staged` was the last to be finished and `begun` the last to be begun."""
    newest = stage.newest()
    seq = newest[1]["seq"] if newest else 0
    if not staged <= seq <= begun:
        return f"{staged} was finished, {begun} begun, and {seq} is the newest in the slots"
    if staged > 1 and sum(map(_is_torn, stage.slots)) > 1:
        return "both slots are torn"
    for slot in stage.slots:
        if flaw := _unlike(slot, size):
            return flaw
    return ""


def _unlike(slot: Slot, size: int) -> str:
    """How a complete slot's content is not its number's."""
    description = slot.read_description()
    if description is None:
        return ""
    seq = description["seq"]
    files = {
        name: b"".join(map(bytes, content(slot, offset, length)))
        for name, (offset, length) in description["files"].items()
    }
    if json.loads(files.pop("state.json")) != {"seq": seq}:
        return f"the state of {seq} is another"
    found = {name: array for data in files.values() for name, array in tensors.read(memoryview(data)).items()}
    wanted = arrays_of(seq, size)
    if set(found) != set(wanted):
        return f"{seq} holds {sorted(found)}"
    wrong = [name for name, array in wanted.items() if not np.array_equal(array, found[name])]
    return f"{wrong} of {seq} are other bytes" if wrong else ""
