"""Stages again and again into two slots: `store_stager.py FD FD BYTES FIRST NEWEST SEED`, the child's side of `stage`.

It says `begin N` before and `staged N` after each, as the child tells its parent. `arrays_of` is a number's content.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy as np

from ksupervise.child.stager import Stager, Taken
from ksupervise.wire import PAGE, Control, Slot

Array = np.ndarray[Any, np.dtype[np.float32]]
NAMES = ("wide", "wide/momentum", "extra/last")  # the last one belongs to the rest
SHARES = (0.6, 0.35, 0.05)


def arrays_of(seq: int, size: int) -> dict[str, Array]:
    """Arrays of about `size` bytes that no other number has; fresh ones at each call."""
    ramp = np.arange(int(size * max(SHARES)) // 4, dtype=np.float32)
    return {
        name: ramp[: int(size * share) // 4] + np.float32(1000 * seq + place)
        for place, (name, share) in enumerate(zip(NAMES, SHARES, strict=True))
    }


def say(word: str, seq: int) -> None:
    """In one call: a copy that is finished in the background speaks too."""
    os.write(1, f"{word} {seq}\n".encode())


class Said:
    """In the place of the link: a parent that is through with everything at once."""

    def send(self, message: dict[str, Any]) -> None:
        """Pass it on in words."""
        say(message["op"], message["seq"])

    def is_free(self, seq: int) -> bool:
        """Always."""
        return True

    def is_committed(self, seq: int) -> bool:
        """Never asked for."""
        return False

    def wait_free(self, seq: int, seconds: float) -> bool:
        """At once."""
        return True


def main(argv: list[str]) -> None:
    """Stage until killed; the newest whole stage is in slot NEWEST (-1: there is none)."""
    first, second, size, seq, newest = map(int, argv[:5])
    chance = random.Random(argv[5])
    page = os.memfd_create("control")
    os.ftruncate(page, PAGE)
    stager = Stager(
        Said(),  # type: ignore[arg-type]
        [Slot(first), Slot(second)],
        seq,
        1,
        write_through=lambda files, about, number: "",
        note=lambda words: None,
        control=Control(page),
    )
    if newest >= 0:
        stager.hold(newest)
    if chance.random() < 0.5:
        stager.prepare(size)
    while True:
        about = {"position": {"fit": 1, "epoch": 0, "batch": 0, "step": seq, "kind": "batch"}, "origin": "interval"}
        taken = Taken(arrays_of(seq, size), {"seq": seq}, about)
        say("begin", seq)
        done = stager.stage(lambda taken=taken: taken, wait=60.0, overlap=chance.random() < 0.5)  # type: ignore[misc]
        if done is None:
            raise SystemExit("no slot came free")
        seq = done + 1


if __name__ == "__main__":
    main(sys.argv[1:])
