"""A place in a folder: another disk, NFS, a bucket or Drive mounted by FUSE.

What such mounts cannot do is not asked of them: no rename, no hard link, no append, no lock. And where a mount went
away, its empty mount point looks like a folder that was never filled: nothing is written then, least of all to the
disk of the machine that may be gone tomorrow.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ksupervise.replicas import drive
from ksupervise.replicas.keys import parts_of, parts_of_prefix
from ksupervise.replicas.place import (
    Arrival,
    Entry,
    NotThere,
    ReplicaFault,
    ReplicaFull,
    ReplicaRefused,
    ReplicaUnreachable,
)
from ksupervise.store import (
    Buffer,
    DamagedCheckpoint,
    FileRecord,
    StoreUnreadable,
    sync,
    sync_dir,
    verify_file,
)
from ksupervise.store.mounts import Mount, mount_of

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})  # nothing to wait for, or nobody who would
_PIECE = 1024 * 1024  # bytes
_TRIES = 20  # for a folder that somebody else removes as empty while we are about to put something into it

_FULL = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some of your quota there",
}
_UNREACHABLE = {
    errno.ENOTCONN: "The mount went away: remount it",
    errno.ECONNABORTED: "The mount went away: remount it",
    errno.ECONNREFUSED: "The server refuses the connection: see whether it is up",
    errno.ECONNRESET: "The server cut the connection: see whether it and the network are up",
    errno.ESTALE: "The server has forgotten the folder, or it was replaced there: remount it",
    errno.ETIMEDOUT: "The server does not answer: see whether it and the network are up",
    errno.EHOSTDOWN: "The server is down: wait for it",
    errno.EHOSTUNREACH: "The server cannot be reached: see whether the network is up",
    errno.ENETDOWN: "The network is down",
    errno.ENETUNREACH: "The network is down",
    errno.ENODEV: "The disk has gone: attach it again",
    errno.ENXIO: "The disk has gone: attach it again",
    errno.ENOENT: "The folder went away while it was used",
}
_REFUSED = {
    errno.EACCES: "Make the folder yours (chown, chmod)",
    errno.EPERM: "Make the folder yours (chown, chmod)",
    errno.EROFS: "It is mounted read-only, perhaps since the disk reported errors (see dmesg): remount it writable",
    errno.ENOTDIR: "A folder is needed there: move the file away",
    errno.EISDIR: "A file is needed there: move the folder away",
    errno.ELOOP: "A link lies there: remove it",
    errno.EFBIG: "Files may not grow so large there (ulimit -f, or FAT)",
    errno.ENAMETOOLONG: "Names may not be so long there: choose a shorter one with --name",
    errno.EIO: "The disk reports errors: see dmesg",
}


class Folder:
    """A place in a folder, which is made when first written to. See `Place`.

    To open one looks at the folder, so that it can block as all its methods can.

    Args:
        path: it may hold blanks, and be relative to where we are now.

    Attributes:
        path: absolute.

    Raises:
        ReplicaUnreachable, ReplicaRefused: it cannot be looked at.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.name = self.path
        self._mount = Mount("/", "")
        self._mount, self._known = self._look()  # known: it was there, and is never made anew
        self.excludes = not self._is_fuse

    def write(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        """See `Place`. What `chunks` raises is passed on.

        Raises:
            ValueError: `chunks` are not `size` bytes together.
        """
        written = self._put(key, chunks, os.O_TRUNC)
        if written != size:
            self._forget(self._path(key))
            raise ValueError(f"{key} is to have {size} bytes, and {written} came")

    def create(self, key: str, data: bytes) -> bool:
        """See `Place`."""
        try:
            self._put(key, [data], os.O_EXCL)
        except FileExistsError:
            return False
        return True

    def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
        """See `Place`."""
        with self._reading(key) as path:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # no waiting for a pipe
            with open(fd, "rb", buffering=0) as file:
                file.seek(begin)
                return _read_all(file.fileno(), length)

    def entries(self, prefix: str) -> list[Entry]:
        """See `Place`. Links, pipes and devices are not listed."""
        parts_of_prefix(prefix)
        self._check()
        found: list[Entry] = []
        waiting = [prefix]
        while waiting:
            below = waiting.pop()
            folder = os.path.join(self.path, *parts_of_prefix(below))
            with self._naming(folder):
                for name, kind in _listed(folder):
                    if kind is None:
                        waiting.append(f"{below}{name}/")
                    else:
                        found.append(Entry(f"{below}{name}", kind))
        self._check()  # a mount that went away in between is not an empty folder
        return sorted(found, key=lambda entry: entry.key)

    def remove(self, keys: Iterable[str]) -> None:
        """See `Place`. Folders that become empty are removed too."""
        paths = [self._path(key) for key in keys]
        self._check()
        for path in paths:
            with self._naming(path):
                self._remove(path)
        self._check()  # nor is what it held removed

    def arrival(self, key: str, record: FileRecord) -> Arrival:
        """See `Place`. Reads the whole object; on Drive only once that says that it has it."""
        with self._reading(key) as path:
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode) or found.st_size != record.size:
                raise NotThere(f"{path} has {found.st_size} bytes instead of {record.size}: it is copied again.")
            state = drive.arrival(path) if self._is_drive else Arrival.UPLOADED
            if state is Arrival.UPLOADED:
                _verify(path, record)
            return state

    def room(self) -> int | None:
        """See `Place`."""
        self._check()
        with self._naming(self.path):
            path = _nearest(self.path)
            return drive.free(path) if self._is_drive else drive.free_of(path)

    @property
    def _is_drive(self) -> bool:
        return drive.is_drive(self._mount.kind)

    @property
    def _is_fuse(self) -> bool:
        # fuseblk is a local disk; of all others that a process serves, none is known to tell one creator from another.
        return self._mount.kind == "fuse" or self._mount.kind.startswith("fuse.")

    def _path(self, key: str) -> str:
        return os.path.join(self.path, *parts_of(key))

    def _check(self) -> None:
        """Raise ReplicaUnreachable if the folder is not any more where it was: then what is there now is not it."""
        mount, there = self._look()
        # A folder that was not there yet may come with a mount that was not there yet.
        late = not self._known and len(mount.point) > len(self._mount.point)
        if mount != self._mount and not late:
            raise ReplicaUnreachable(
                f"{self.path} was on what is mounted at {self._mount.point}, and is not any more: remount that. "
                "Nothing is written to what is there now."
            )
        if self._known and not there:
            raise ReplicaUnreachable(
                f"{self.path} has gone: was it moved or removed? Bring it back; it is not made anew."
            )
        self._mount, self._known = mount, there
        self.excludes = not self._is_fuse

    def _look(self) -> tuple[Mount, bool]:
        """The mount that the folder lies on, and whether it is there."""
        with self._naming(self.path):
            found = _nearest(self.path)
        mount = mount_of(found)  # asked after the folder: to look at that may be what mounts it
        if point := drive.missing_mount(self.path, mount.point):
            raise ReplicaUnreachable(f"{self.path} cannot be used: Drive is not mounted at {point}. Mount Drive first.")
        return mount, found == self.path

    def _put(self, key: str, chunks: Iterable[Buffer], flag: int) -> int:
        """Write a file; the bytes written. Raises FileExistsError with O_EXCL, and what `chunks` raises."""
        path = self._path(key)
        self._check()
        with self._naming(path):
            fd = self._open(path, flag)
        try:
            written = self._fill(fd, path, chunks)
        except BaseException:
            self._forget(path)
            raise
        with self._naming(path), suppress(FileNotFoundError):  # what somebody has removed is nothing to be kept
            self._sync_names(os.path.dirname(path))
        return written

    def _open(self, path: str, flag: int) -> int:
        for left in reversed(range(_TRIES)):
            try:
                self._make_folders(os.path.dirname(path))
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag, 0o600)
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError

    def _make_folders(self, folder: str) -> None:
        """Make `folder` and what is missing above it; but the place itself only if it was never there."""
        if os.path.isdir(folder):
            return
        if not self._known:
            os.makedirs(self.path, 0o700, exist_ok=True)
            self._sync_names(os.path.dirname(self.path))
            self._known = True
        below = os.path.relpath(folder, self.path)
        path = self.path
        for part in [] if below == os.curdir else below.split(os.sep):
            path = os.path.join(path, part)
            with suppress(FileExistsError):  # if it is a file, the next step says so
                os.mkdir(path, 0o700)
            self._sync_names(os.path.dirname(path))

    def _sync_names(self, folder: str) -> None:
        """The names in `folder` on their disk. A process that serves a mount promises nothing by it, nor breaks."""
        try:
            sync_dir(folder)
        except OSError:
            if not self._is_fuse:
                raise

    def _fill(self, fd: int, path: str, chunks: Iterable[Buffer]) -> int:
        written = 0
        try:
            for chunk in chunks:
                with self._naming(path):
                    written += _write_all(fd, memoryview(chunk))
            with self._naming(path):
                _sync_file(fd)
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        with self._naming(path):
            os.close(fd)  # NFS, gcsfuse and others report here that it did not fit
        return written

    def _forget(self, path: str) -> None:
        """Remove what broke off, as far as that can be done: it takes room, and counts for nothing."""
        with suppress(OSError):
            self._remove(path)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            if self._is_drive:
                os.truncate(path, 0)  # what is in the trash counts
            os.unlink(path)
        folder = os.path.dirname(path)
        with suppress(OSError):  # not empty, or gone
            while folder != self.path:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    @contextmanager
    def _reading(self, key: str) -> Iterator[str]:
        """The path of an object that is to be there. Raises NotThere if it is not."""
        path = self._path(key)
        self._check()
        try:
            with self._naming(path):
                try:
                    yield path
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise NotThere(f"{path} is not there.") from error
        except NotThere:
            self._check()  # it may be the mount that is not there
            raise

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Turn an OSError into a fault that names `path`; FileExistsError stays what it is."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise self._fault(error, path) from error

    def _fault(self, error: OSError, path: str) -> ReplicaFault:
        number = error.errno or 0
        told = f"Cannot use {path}: {os.strerror(number) if number else error}."
        if number in _FULL:
            return ReplicaFull(f"{told} {_FULL[number]}, or keep less with --replica-keep.")
        if number == errno.EIO and self._is_fuse:  # a mount that is about to go reports this; so does a full quota
            return ReplicaUnreachable(f"{told} The mount reports errors: remount it.")
        if number in _REFUSED:
            return ReplicaRefused(f"{told} {_REFUSED[number]}, or choose another place with --replica.")
        return ReplicaUnreachable(f"{told} {_UNREACHABLE.get(number, 'See what is wrong there')}.")


def _nearest(path: str) -> str:
    """`path`, or what is there of the way to it. Raises OSError for all but a path that is not there.

    Raises ReplicaUnreachable for a link to what is not there.
    """
    while True:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                raise ReplicaUnreachable(
                    f"{path} is a link to {os.readlink(path)}, which is not there. Mount or make that, or mend it."
                ) from None
            path = os.path.dirname(path)
        else:
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            return path


def _listed(folder: str) -> Iterator[tuple[str, int | None]]:
    """Names in a folder with their files' sizes, None for a folder. What goes away meanwhile is not listed."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, None
                elif entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False).st_size


def _read_all(fd: int, length: int | None) -> bytes:
    pieces = []
    left = length
    while left is None or left > 0:
        piece = os.read(fd, _PIECE if left is None else min(left, _PIECE))
        if not piece:
            break
        pieces.append(piece)
        left = None if left is None else left - len(piece)
    return b"".join(pieces)


def _write_all(fd: int, data: memoryview) -> int:
    """Write all of it; the bytes written."""
    if not data.nbytes:
        return 0
    rest = data.cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]
    return data.nbytes


def _sync_file(fd: int) -> None:
    try:
        sync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _verify(path: str, record: FileRecord) -> None:
    """Raises NotThere if the file is not what the record says, OSError if it cannot be read."""
    try:
        verify_file(path, record)
    except (DamagedCheckpoint, StoreUnreadable) as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        told = error.reason if isinstance(error, DamagedCheckpoint) else str(error)
        raise NotThere(f"{path} is not whole: {told}. It is copied again.") from error
