"""The stage: two slots of memory that outlive the child, and the control page."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ksupervise.store import FileRecord
from ksupervise.wire import DIGEST_CHUNK, PAGE, Control, Slot


class ScribbledStage(Exception):
    """A stage is not what its child left: a dying process, or bad memory, has changed it."""


class Stage:
    """Two slots, made once for all attempts of this parent; the child is handed their descriptors.

    Attributes:
        on_disk: why they are files in the run's directory, "" if they are memory.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is used only where the system gives no memfd. Raises OSError."""
        self.on_disk, fds = _memory(folder)
        self.slots = tuple(Slot(fd, on_disk=bool(self.on_disk)) for fd in fds)
        self._verified = 0  # seq

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

    def verify_newest(self) -> None:
        """Read the newest stage and compare its digests, if its child came to take them.

        Raises:
            ScribbledStage: it is not what was staged; it is void now.
        """
        newest = self.newest()
        if newest is None or newest[1]["seq"] == self._verified:
            return
        index, description = newest
        digests = self.slots[index].read_digests(description) or {}
        for name, expected in digests.items():
            offset, size = description["files"][name]
            found = tuple(zlib.crc32(chunk) for chunk in content(self.slots[index], offset, size))
            self._compare(index, name, found, expected)
        self._verified = description["seq"]

    def check(self, index: int, description: Mapping[str, Any], record: FileRecord) -> None:
        """The file that was written from slot `index` is what was staged. Raises ScribbledStage, as `verify_newest`."""
        expected = (self.slots[index].read_digests(description) or {}).get(record.name)
        if expected is not None and record.chunk == DIGEST_CHUNK:
            self._compare(index, record.name, record.crc32, expected)

    def digest(self, index: int, seq: int, records: Sequence[FileRecord]) -> None:
        """Leave the digests of what was committed in its slot, for whoever goes back to it in memory."""
        description = self.slots[index].read_description()
        if description is not None and description["seq"] == seq and description.get("digests"):
            found = {record.name: record.crc32 for record in records if record.chunk == DIGEST_CHUNK}
            if list(found) == list(description["files"]):
                self.slots[index].write_digests(
                    seq, description["digests"], [each for crcs in found.values() for each in crcs]
                )

    def _compare(self, index: int, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            self.slots[index].void()
            raise ScribbledStage(f"{name} in memory is not what was staged (crc32 differs)")

    def close(self) -> None:
        """Give the memory back."""
        for slot in self.slots:
            slot.close()
            os.close(slot.fd)


def content(slot: Slot, offset: int, size: int) -> Iterator[memoryview]:
    """The bytes of one staged file, DIGEST_CHUNK of them at a time.

    Memory is not copied but mapped, a window at a time, which goes with the last reference to it: the parent's own
    stays flat whatever the state's size. A window begins at a page, as O_DIRECT wants it.
    """
    if os.fstat(slot.fd).st_size < offset + size:
        raise OSError(f"the stage ends before {offset + size} bytes")
    for start in range(0, size, DIGEST_CHUNK):
        length = min(DIGEST_CHUNK, size - start)
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
