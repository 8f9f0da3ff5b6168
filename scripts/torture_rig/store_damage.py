"""What a disk does to files: flipped bits, zeroed ranges, cut and grown files, files in each other's place."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

_SECTOR = 512


def hurt(files: Sequence[Path], chance: random.Random, most: int = 3) -> list[tuple[Path, str]]:
    """Damage one to `most` times; every file that is another now, with what was done to it last.

    What came out as it was before is done again, so at least one file is changed.
    """
    before = {path: path.read_bytes() for path in files}
    changed: dict[Path, str] = {}
    while not changed:
        done: dict[Path, str] = {}
        for _ in range(chance.randint(1, most)):
            done |= _once(files, chance)
        changed = {path: how for path, how in done.items() if path.read_bytes() != before[path]}
    return list(changed.items())


def _once(files: Sequence[Path], chance: random.Random) -> dict[Path, str]:
    harm = chance.choice(_HARMS)
    first = chance.choice(files)
    if harm is None:
        second = chance.choice(files)
        _swap(first, second)
        return {first: "swapped", second: "swapped"}
    data = bytearray(first.read_bytes())
    how = harm(data, chance)
    first.write_bytes(data)
    return {first: how}


def _swap(first: Path, second: Path) -> None:
    between = first.with_name(f"{first.name}.between")
    if first != second:
        os.rename(first, between)
        os.rename(second, first)
        os.rename(between, second)


def _flip(data: bytearray, chance: random.Random) -> str:
    if not data:
        data += bytes(1)
        return "extended"
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    return "bit flipped"


def _zero(data: bytearray, chance: random.Random) -> str:
    start = chance.randrange(len(data) + 1)
    length = min(chance.choice((1, _SECTOR, 4096, len(data))), len(data) - start)
    data[start : start + length] = bytes(length)
    return "zeroed"


def _truncate(data: bytearray, chance: random.Random) -> str:
    keep = chance.choice((0, len(data) - 1, len(data) // _SECTOR * _SECTOR, chance.randrange(len(data) + 1)))
    del data[max(0, keep) :]
    return "truncated"


def _extend(data: bytearray, chance: random.Random) -> str:
    data += chance.choice((bytes, chance.randbytes))(chance.choice((1, _SECTOR, 4096)))
    return "extended"


# A flipped bit is the commonest and the hardest to see. None: two files in each other's place.
_HARMS: tuple[Callable[[bytearray, random.Random], str] | None, ...] = (
    _flip, _flip, _flip, _zero, _truncate, _extend, None
)  # fmt: skip
