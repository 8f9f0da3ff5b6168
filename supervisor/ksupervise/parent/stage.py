"""The stage: two slots of memory that outlive the child, and the control page."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ksupervise.store import CHUNK
from ksupervise.wire import PAGE, Control, Slot


class Stage:
    """Two slots, made once for all attempts of this parent; the child is handed their descriptors.

    Attributes:
        on_disk: why they are files in the run's directory, "" if they are memory.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is used only where the system gives no memfd. Raises OSError."""
        self.on_disk, fds = _memory(folder)
        self.slots = tuple(Slot(fd, on_disk=bool(self.on_disk)) for fd in fds)

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
    """The bytes of one staged file, CHUNK of them at a time.

    Memory is not copied but mapped, a window at a time, which goes with the last reference to it: the parent's own
    stays flat whatever the state's size. A window begins at a page, as O_DIRECT wants it.
    """
    if os.fstat(slot.fd).st_size < offset + size:
        raise OSError(f"the stage ends before {offset + size} bytes")
    for start in range(0, size, CHUNK):
        length = min(CHUNK, size - start)
        if slot.on_disk:  # no seal keeps a file from shrinking under a mapping
            yield memoryview(_read(slot.fd, length, offset + start))
        else:
            yield memoryview(mmap.mmap(slot.fd, length, _MAP, mmap.PROT_READ, offset=offset + start))


_MAP = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # Linux, Python 3.10: all pages in one call


def _read(fd: int, length: int, offset: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.pread(fd, length - len(data), offset + len(data))
        if not part:
            raise OSError(f"the stage ends after {offset + len(data)} bytes")
        data += part
    return data


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


def _memory(folder: Path) -> tuple[str, tuple[int, int]]:
    """Two descriptors, and why they are not memory, if so."""
    reason = "this system has no memfd"
    if sys.platform == "linux":
        try:
            return "", (_memfd(0), _memfd(1))
        except OSError as error:  # a sandboxed kernel
            reason = f"memfd is refused here ({error.strerror})"
    return reason, (_file(folder, 0), _file(folder, 1))


def _memfd(number: int) -> int:
    fd = os.memfd_create(f"ksupervise-slot-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(
        fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK
    )  # a child that shrank it would end us by SIGBUS, in mid-commit
    return fd


def _file(folder: Path, number: int) -> int:
    path = folder / f"ksupervise-slot-{number}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd
