"""The stage: two slots of memory that outlive the child, and the control page."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ksupervise.wire import PAGE, Control, Slot

CHUNK = 4 * 1024 * 1024  # bytes read at a time: the parent's memory stays flat whatever the state's size


class Stage:
    """Two slots, made once for all attempts of this parent; the child is handed their descriptors."""

    def __init__(self, folder: Path) -> None:
        """`folder` is used only where the system has no memfd. Raises OSError."""
        self.slots = tuple(Slot(_memory(f"ksupervise-slot-{k}", folder)) for k in (0, 1))

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Index and description of the newest complete slot, None if both are empty or torn."""
        complete = []
        for index, slot in enumerate(self.slots):
            description = slot.read_description()
            if description is not None:
                complete.append((description["seq"], index, description))
        if not complete:
            return None
        _, index, description = max(complete, key=lambda entry: entry[0])
        return index, description

    def close(self) -> None:
        """Give the memory back."""
        for slot in self.slots:
            slot.close()
            os.close(slot.fd)


def content(slot: Slot, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of one staged file, a chunk at a time; each chunk is valid until the next."""
    buffer = memoryview(bytearray(min(CHUNK, max(size, 1))))
    done = 0
    while done < size:
        part = buffer[: min(len(buffer), size - done)]
        read = os.preadv(slot.fd, [part], offset + done)
        if not read:
            raise OSError(f"the stage ends after {done} of {size} bytes")
        yield part[:read]
        done += read


def fill(slot: Slot, files: Mapping[str, tuple[int, Iterable[memoryview]]], seq: int, about: dict[str, Any]) -> None:
    """Write `files` (name → size, chunks) into `slot` as the child would have staged them."""
    slot.begin()
    placed: dict[str, tuple[int, int]] = {}
    offset = PAGE
    for name, (size, chunks) in files.items():
        slot.reserve(offset + size)
        position = offset
        for chunk in chunks:
            position += os.pwrite(slot.fd, chunk, position)
        placed[name] = (offset, size)
        offset = -(-(offset + size) // PAGE) * PAGE
    slot.complete(seq, {**about, "files": placed})
    slot.close()  # a mapping would count as our memory


def live_page(path: Path, *, create: bool = False) -> Control:
    """The control page of an attempt: a file, so that `status` and the next parent can read it."""
    fd = os.open(path, (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) | os.O_CLOEXEC, 0o600)
    try:
        if create:
            os.write(fd, bytes(PAGE))
        return Control(fd, writable=create)
    finally:
        os.close(fd)


def _memory(name: str, folder: Path) -> int:
    if sys.platform == "linux":
        return os.memfd_create(name, os.MFD_CLOEXEC)
    path = folder / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd
