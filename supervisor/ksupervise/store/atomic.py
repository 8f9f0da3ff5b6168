"""Files that are either whole and on the disk, or not there at all.

The rules behind it (ALICE, OSDI '14, and the fsync surprise of PostgreSQL, 2018):

- a rename may reach the disk before the bytes it publishes: fsync the file first, then rename, then
  fsync the directory that holds the new name;
- an fsync that failed is final for that file: Linux marks the pages clean, and a second fsync "succeeds"
  with the data lost. The file is abandoned and written anew under another name;
- close() can fail too (NFS and FUSE report a full disk there), so it is checked.

Functions that write raise OSError as it comes: who calls them knows the words for it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import zlib
from collections import deque
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ksupervise.store.faults import DamagedCheckpoint, read_fault
from ksupervise.store.helper import Helper

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

CHUNK = 8 * 1024 * 1024  # bytes under one digest; one or two of them are held in memory at a time
MAX_CHUNK = 64 * 1024 * 1024  # bytes; what a manifest may ask of a reader's memory
MAX_NAME = 100  # characters of a file's name

Buffer = bytes | bytearray | memoryview | mmap.mmap
StrPath = str | os.PathLike[str]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the drive's own cache
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux
_ADVISE: Any = getattr(os, "posix_fadvise", None)  # not on macOS
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.ENOSYS})


@dataclass(frozen=True)
class FileRecord:
    """What a file must be to count as whole.

    Attributes:
        name: its name within the checkpoint, with no directory.
        size: bytes.
        chunk: bytes under each digest; the last one covers what remains.
        crc32: zlib.crc32 of each chunk, in order.

    Raises:
        ValueError: the values contradict each other or are out of bounds.
    """

    name: str
    size: int
    chunk: int
    crc32: tuple[int, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_range("size", self.size, 0, 2**63 - 1)
        _check_range("chunk", self.chunk, 1, MAX_CHUNK)
        if len(self.crc32) != -(-self.size // self.chunk):
            raise ValueError(f"{self.name}: {len(self.crc32)} digests do not cover {self.size} bytes")
        for digest in self.crc32:
            _check_range("crc32", digest, 0, 2**32 - 1)

    def length(self, index: int) -> int:
        """Bytes in the chunk of that index."""
        return min(self.chunk, self.size - index * self.chunk)


def check_name(name: str) -> None:
    """Refuse a file name that could leave its directory, hide, or look like something else.

    Raises:
        ValueError: it is empty, too long, begins with a dot or holds other than letters, digits and `._-`.
    """
    if not name or len(name) > MAX_NAME or name[0] == "." or not _NAME_CHARACTERS.issuperset(name):
        raise ValueError(f"not a file name that a checkpoint may hold: {name[:MAX_NAME]!r}")


def _check_range(what: str, value: int, low: int, high: int) -> None:
    # The type is checked exactly: JSON's true would pass for 1.
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is not a whole number from {low} to {high}")


def sync(fd: int) -> None:
    """Return when the file's bytes are on the disk. Raises OSError, which is final for that file."""
    if _FULL_FSYNC is not None:
        try:
            fcntl.fcntl(fd, _FULL_FSYNC)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    os.fsync(fd)


def sync_dir(path: StrPath) -> None:
    """Return when the directory's names are on the disk. Where directories cannot be synced, do nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(fd)


def unique(name: str) -> str:
    """`name` with an ending that no other writer uses."""
    return f"{name}.{os.getpid()}.{os.urandom(4).hex()}"


def write_file(path: StrPath, chunks: Iterable[Buffer]) -> FileRecord:
    """Write a new file, whole and on the disk when this returns.

    Args:
        path: must not exist; its directory is not synced.
        chunks: buffers of any sizes, written back to back. While one is written the next is asked for, on another
            thread; what was written is referred to no more.

    Returns:
        The record by which a reader will know the file again. Digests are of what was written.

    Raises:
        OSError: nothing is left at `path` (as far as it can be removed). So with whatever `chunks` raises.
        ValueError: no checkpoint may hold a file of that name; nothing was written.
    """
    name = os.path.basename(os.fspath(path))
    check_name(name)
    size, digests = _create(path, chunks)
    return FileRecord(name, size, CHUNK, digests)


def replace_file(path: StrPath, data: bytes) -> None:
    """Put `data` at `path`, so that any reader at any time sees the old bytes or the new, whole.

    Raises:
        OSError: the old file is untouched, or (if only the directory could not be synced) the new one is
            there but may be lost in a power cut. No temporary file is left.
    """
    directory, name = os.path.split(os.fspath(path))
    temporary = os.path.join(directory, unique(f".{name}.tmp"))
    _create(temporary, [data])
    try:
        move(temporary, path)
    except BaseException:
        remove_quietly(temporary)
        raise
    sync_dir(directory or ".")


def move(source: StrPath, target: StrPath) -> None:
    """Rename, on one file system. An error that comes although it was done is none.

    Over a network the answer can be lost when the work was done; the call is then repeated, and fails because the
    old name has gone.

    Raises:
        OSError: it was not done, or nobody can tell.
    """
    before = os.lstat(source)
    try:
        os.rename(source, target)
    except OSError:
        if not _lies_at(before, target):
            raise


def _lies_at(found: os.stat_result, path: StrPath) -> bool:
    try:
        return os.path.samestat(found, os.lstat(path))
    except OSError:
        return False


def read_verified(path: StrPath, record: FileRecord) -> Iterator[memoryview]:
    """The file's chunks in order, each verified before it is handed out, each valid until the next is asked for.

    While one is used the next is read, on a thread; memory is that of two chunks. The page cache of the machine is left
    as it is. Whoever does not take all of them closes the iterator, or lets go of it.

    Raises:
        DamagedCheckpoint: size or digest differ, or the file is gone or unreadable for good.
        StoreUnreadable: it could not be read now; it may be whole.
    """
    path = os.fspath(path)
    with _opened(path, record) as fd, ExitStack() as ends:
        # Two helpers, each with a block of its own: while one's chunk is used, the other's is read and digested.
        _set_direct(fd, record.size >= CHUNK and record.chunk % mmap.PAGESIZE == 0)
        readers = [_Reader(fd, path, record) for _ in range(min(2, len(record.crc32)))]
        for reader in readers:
            ends.callback(reader.close)
        for index in range(len(record.crc32) + 1):
            if index < len(record.crc32):
                readers[index % 2].begin(index)
            if index:
                yield readers[(index - 1) % 2].chunk()


def verify_file(path: StrPath, record: FileRecord) -> None:
    """Read the whole file and keep nothing. Raises as `read_verified`."""
    for _ in read_verified(path, record):
        pass


def read_into(path: StrPath, record: FileRecord, target: memoryview) -> None:
    """Read the whole file into `target` (warm memory: no fresh pages are touched), verifying each chunk.

    Args:
        target: writable bytes, at least `record.size` of them.

    Raises:
        DamagedCheckpoint, StoreUnreadable: as `read_verified`; `target` then holds garbage.
        ValueError: `target` is too small.
    """
    if target.nbytes < record.size:
        raise ValueError(f"{record.name} needs {record.size} bytes, not {target.nbytes}")
    target = target.cast("B")
    position = 0
    for chunk in read_verified(path, record):
        target[position : position + len(chunk)] = chunk
        position += len(chunk)


def remove_quietly(path: StrPath) -> None:
    """Remove a file nobody will read; what cannot be removed is left for the sweep."""
    with suppress(OSError):
        os.unlink(path)


def remove_tree(path: str) -> bool:
    """Remove a file or a directory and all that is in it, following no links. False: some of it is left."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for name in os.listdir(path):
                remove_tree(os.path.join(path, name))
            os.rmdir(path)
        else:
            os.unlink(path)
    except (OSError, RecursionError):  # nobody of ours makes directories a thousand deep
        return not os.path.lexists(path)
    return True


def _create(path: StrPath, buffers: Iterable[Buffer]) -> tuple[int, tuple[int, ...]]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            written = _write_blocks(fd, buffers)
            sync(fd)
            if written[0] >= CHUNK:
                _drop_cached(fd, 0, 0)
        finally:
            os.close(fd)
    except BaseException:
        remove_quietly(path)
        raise
    return written


_AHEAD = 2  # blocks made ready while one is written: with one the disk waited for a third of its time


def _write_blocks(fd: int, buffers: Iterable[Buffer]) -> tuple[int, tuple[int, ...]]:
    """Write the buffers in blocks of CHUNK bytes; the size and each block's digest.

    While a block is written the next ones are got and digested, on a thread; for a small file there is none.
    """
    size = 0
    digests = []
    with closing(_blocks(buffers)) as blocks, closing(Helper[_Digested | None]("digest")) as helper:
        found = _next_digested(blocks, [])
        for _ in range(_AHEAD - 1 if found is not None and len(found[0]) == CHUNK else 0):
            helper.begin(partial(_next_digested, blocks, []))
        written: list[memoryview] = []
        while found is not None:
            block, digest = found
            whole = len(block) == CHUNK  # a shorter one is the last
            if whole:
                helper.begin(partial(_next_digested, blocks, written))
                _write_whole(fd, block)
            else:
                # Only whole blocks are aligned as O_DIRECT wants it; small files and tails go the common way.
                _set_direct(fd, on=False)
                _write_all(fd, block)
            size += len(block)
            digests.append(digest)
            written = [block]
            del block, found
            found = helper.result() if whole else None
    return size, tuple(digests)


_Digested = tuple[memoryview, int]


def _next_digested(blocks: Iterator[memoryview], written: list[memoryview]) -> _Digested | None:
    """The next block and its digest, None behind the last. What is `written` goes first: a mapping, maybe."""
    written.clear()
    for block in blocks:
        return block, zlib.crc32(block)
    return None


def _blocks(buffers: Iterable[Buffer]) -> Generator[memoryview, None, None]:
    """The buffers' bytes, cut anew every CHUNK bytes. A block is valid until _AHEAD more have been asked for.

    A block that lies in one buffer is not copied: whoever hands out page-aligned buffers of CHUNK bytes has them
    written from where they are. Of the buffers before it nothing is held any more.
    """
    # Page-aligned, and without pages until they are touched.
    spare = deque(memoryview(mmap.mmap(-1, CHUNK)) for _ in range(_AHEAD + 1))
    filled = 0
    for buffer in buffers:
        rest = _bytes_of(buffer)
        del buffer
        while rest:
            part = rest[: CHUNK - filled]
            rest = rest[len(part) :]
            if len(part) == CHUNK:
                yield part
            else:
                spare[0][filled : filled + len(part)] = part
                filled += len(part)
            del part
            if filled == CHUNK:
                yield spare[0]
                spare.rotate(-1)
                filled = 0
        del rest
    if filled:
        yield spare[0][:filled]


def _bytes_of(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view with a 0 in its shape has no cast


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & _DIRECT)


def _set_direct(fd: int, on: bool) -> None:
    """Bypass the page cache from here on, or stop it; where the file system cannot, do nothing."""
    if not _DIRECT:
        return
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if on == bool(flags & _DIRECT):
        return
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags ^ _DIRECT)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_whole(fd: int, block: memoryview) -> None:
    """Write a block of CHUNK bytes past the page cache: write-back competes with training (0.12 s a checkpoint
    against 0.48 s). Where that cannot be, have it written back now, and drop what has been.
    """
    _set_direct(fd, on=True)
    _write_all(fd, block)
    if not _is_direct(fd):
        _drop_cached(fd, 0, 0)


def _drop_cached(fd: int, start: int, length: int) -> None:
    """Let the page cache forget these bytes (length 0: to the end); what is not on the disk yet is begun to be written.

    It is advice: whether it is taken decides nothing.
    """
    if _ADVISE is not None:
        with suppress(OSError):
            _ADVISE(fd, start, length, os.POSIX_FADV_DONTNEED)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[_write_some(fd, data) :]


def _write_some(fd: int, data: memoryview) -> int:
    try:
        return os.write(fd, data)
    except OSError as error:
        # Some file systems accept O_DIRECT and refuse the write (FUSE, or a stricter alignment).
        if error.errno != errno.EINVAL or not _is_direct(fd):
            raise
    _set_direct(fd, on=False)
    return 0


def open_plain(path: StrPath) -> int:
    """A descriptor to read the file by. What is no file of ours must not be followed, waited for or set going.

    Raises:
        DamagedCheckpoint: a link, a pipe, a device or a directory lies there.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):  # to open some devices does something
        raise DamagedCheckpoint(os.fspath(path), "it is not a plain file")
    # O_NONBLOCK: if a pipe lies there, do not wait for its writer.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


@contextmanager
def _opened(path: str, record: FileRecord) -> Iterator[int]:
    """A descriptor of the file, whose size has been checked. OSError within means it cannot be read."""
    try:
        fd = open_plain(path)
        try:
            check_size(path, os.fstat(fd), record)
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise read_fault(error, path) from error


class _Reader:
    """Reads and digests every other chunk of a file on a thread of its own, into one block of memory."""

    def __init__(self, fd: int, path: str, record: FileRecord) -> None:
        self._fd, self._path, self._record = fd, path, record
        # Page-aligned for O_DIRECT; shared, as memory being read into past the cache must be if somebody forks.
        size = min(record.chunk, record.size)
        self._block = memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))
        self._helper = Helper[memoryview]("read ahead", alone=len(record.crc32) == 1)

    def begin(self, index: int) -> None:
        """Read the chunk of that index; what was handed out before is not valid any more."""
        self._helper.begin(partial(self._read, index))

    def chunk(self) -> memoryview:
        """The chunk that was begun. Raises OSError, DamagedCheckpoint."""
        return self._helper.result()

    def close(self) -> None:
        """Wait until nothing reads any more."""
        self._helper.close()

    def _read(self, index: int) -> memoryview:
        start, length = index * self._record.chunk, self._record.length(index)
        chunk = self._block[:length]
        done = 0
        while done < length:
            count = _read_some(self._fd, self._block[done:], start + done)
            if count == 0:
                raise DamagedCheckpoint(self._path, "it ends early")
            done += count
        if zlib.crc32(chunk) != self._record.crc32[index]:
            end = start + length
            raise DamagedCheckpoint(self._path, f"bytes {start} to {end} are not what was written (crc32 differs)")
        if self._record.size >= CHUNK:
            _drop_cached(self._fd, start, length)
        return chunk


def _read_some(fd: int, block: memoryview, start: int) -> int:
    try:
        return os.preadv(fd, [block], start)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Some file systems accept O_DIRECT and refuse the read.
    _set_direct(fd, on=False)
    return os.preadv(fd, [block], start)


def check_size(path: str, found: os.stat_result, record: FileRecord) -> None:
    """Raises DamagedCheckpoint if what was found is no plain file of the recorded size."""
    if not stat.S_ISREG(found.st_mode):
        raise DamagedCheckpoint(path, "it is not a plain file")
    if found.st_size != record.size:
        raise DamagedCheckpoint(path, f"it has {found.st_size} bytes instead of {record.size}")
