"""A small loopback file system over /dev/fuse, for the faults that a local disk does not show.

It is a real mount: the kernel sends each call on it to a process of ours, which does it on a backing directory, or
refuses it as NFS, a full quota or a dying disk would. It needs root and /dev/fuse; `why_not()` says what is missing.

    with mounted(backing, mountpoint, no_direct=True) as mount:
        ...
        mount.switch(fail_after=3, fail_error="EROFS")
        mount.kill()  # from now on the kernel answers ENOTCONN

The protocol: <linux/fuse.h>, version 7.31. Its requests and answers are C structures, and the format strings below
are theirs. One thing is left out on purpose: fsync is answered, but not passed on to the backing directory. What a
power cut does is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import stat
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_WRITE = 1024 * 1024  # bytes of one write request
_WAIT = 10.0  # seconds; for a process that has nothing left to do
_ROOT = 1  # the node id of the mount itself
_DETACH = 2  # MNT_DETACH: let go of it now, whoever still has files open there
_NOSUID_NODEV = 2 | 4
_FH, _MODE, _OWNER, _SIZE, _ATIME, _MTIME = 64, 1, 2 | 4, 8, 16, 32  # what a SETATTR sets
_WANTED = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 22  # asynchronous reads, O_TRUNC in open, big writes, max_pages
_FLOCK = 1 << 10


@dataclass(frozen=True)
class Switches:
    """What is wrong with the file system. An error is given by its name, as "EIO"; empty: it does not happen.

    Attributes:
        no_direct: O_DIRECT is refused with EINVAL, by open and by the writes of a file that was switched to it.
        no_dir_sync: fsync of a directory is refused with EINVAL.
        read_error: reading from a file reports this.
        sync_error: the first fsync of each open file reports this; what was written since it was opened is lost.
        limit: bytes that a file may have; what is written beyond it is lost. None: no limit.
        limit_error: what is reported then, once.
        limit_at: by which call: "write", "fsync" or "close".
        hide: begin of the name under which a file that is removed while open is left, as ".nfs" or ".fuse_hidden".
        rename_error: renaming a directory is done, then reports this, as when an answer was lost and the call repeated.
        no_flock: flock is refused with this. Only at the mount.
        fail_after: after so many writes from now on nothing works. None: it works.
        fail_error: what is reported then; other than EIO it is reported only by calls that change something.
    """

    no_direct: bool = False
    no_dir_sync: bool = False
    read_error: str = ""
    sync_error: str = ""
    limit: int | None = None
    limit_error: str = "ENOSPC"
    limit_at: str = "close"
    hide: str = ""
    rename_error: str = ""
    no_flock: str = ""
    fail_after: int | None = None
    fail_error: str = "EIO"


class Mount:
    """A mounted file system and the process that serves it."""

    def __init__(self, path: str, process: subprocess.Popen[str]) -> None:
        self.path = path
        self._process = process
        self._expect("ready")

    @property
    def pid(self) -> int:
        """The process that serves it."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Nobody has killed it."""
        return self._process.poll() is None

    def switch(self, **switches: Any) -> None:
        """Change the named switches, from the next call on."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(switches) + "\n")
        self._process.stdin.flush()
        self._expect("switched")

    def kill(self) -> None:
        """SIGKILL the process. The mount stays, and every call on it fails with ENOTCONN. Twice is harmless."""
        self._process.kill()
        self._process.wait(_WAIT)

    def unmount(self) -> None:
        """Take it away and end the process. Twice is harmless."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()  # the process takes the end of its input for the end
        try:
            self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            self.kill()
        with contextlib.suppress(OSError):
            _unmount(self.path)

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != word:
            self._process.kill()
            raise OSError(line or "the file system's process ended")


@contextlib.contextmanager
def mounted(backing: str | os.PathLike[str], mountpoint: str | os.PathLike[str], **switches: Any) -> Iterator[Mount]:
    """`backing` is to be had at `mountpoint`, both existing directories, with those `Switches`; in the end it is not.

    Raises:
        OSError: it cannot be mounted; see `why_not`.
    """
    asked = json.dumps(asdict(Switches(**switches)))
    path = os.path.abspath(mountpoint)
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, os.path.abspath(backing), path, asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the tests; they unmount
    )
    mount: Mount | None = None
    try:
        mount = Mount(path, process)
        yield mount
    finally:
        if mount is not None:
            mount.unmount()
        else:
            process.communicate()


def why_not() -> str:
    """Why nothing can be mounted here; empty if it can."""
    with tempfile.TemporaryDirectory(prefix="fuse-") as folder:
        try:
            with mounted(folder, folder):
                return ""
        except OSError as error:
            return f"no FUSE here: {error}"


def _mount(device: int, path: str) -> None:
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"loopback", os.fsencode(path), b"fuse.loopback", _NOSUID_NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _DETACH):
        raise OSError(ctypes.get_errno(), f"umount: {os.strerror(ctypes.get_errno())}")


class Node:
    """What the kernel knows by a number: a name in a directory, or an open file that has no name any more."""

    def __init__(self, number: int, parent: Node | None, name: bytes) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.handles: set[int] = set()  # descriptors in the backing directory
        self.hidden = False


class Loopback:
    """Answers the kernel's requests on a backing directory."""

    def __init__(self, backing: str, switches: Switches) -> None:
        self._backing = os.fsencode(backing)
        self._nodes = {_ROOT: Node(_ROOT, None, b"")}
        self._children: dict[tuple[int, bytes], Node] = {}
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._lost: dict[int, bool] = {}  # descriptor → whether something was written that is lost
        self._synced: set[int] = set()
        self._next = _ROOT
        self._writes = 0
        self.switches = switches
        self._answers: dict[int, tuple[Callable[[Node, memoryview], bytes | None], bool]] = {
            # number of the request → who answers it, and whether it changes something
            1: (self._lookup, False),
            2: (self._forget, False),
            3: (self._getattr, False),
            4: (self._setattr, True),
            5: (self._readlink, False),
            6: (self._symlink, True),
            8: (self._mknod, True),
            9: (self._mkdir, True),
            10: (self._unlink, True),
            11: (self._rmdir, True),
            12: (self._rename, True),
            13: (self._link, True),
            14: (self._open, False),
            15: (self._read, False),
            16: (self._write, True),
            17: (self._statfs, False),
            18: (self._release, False),
            20: (self._fsync, True),
            25: (self._flush, False),
            26: (self._init, False),
            27: (self._opendir, False),
            28: (self._readdir, False),
            29: (self._releasedir, False),
            30: (self._fsyncdir, True),
            32: (self._setlk, False),
            33: (self._setlk, False),
            35: (self._create, True),
            36: (self._no_answer, False),  # INTERRUPT: each request is answered at once
            42: (self._batch_forget, False),
            45: (self._rename2, True),
        }
        self._silent = frozenset({2, 18, 26, 29, 36, 42})  # not calls of a program: they always work

    def switch(self, **switches: Any) -> None:
        """Change those; the writes are counted from here."""
        self.switches = replace(self.switches, **switches)
        self._writes = 0

    def answer(self, request: memoryview) -> bytes | None:
        """The whole answer to a whole request; None: there is none."""
        length, opcode, unique, number = struct.unpack_from("<IIQQ", request)
        try:
            body = self._perform(opcode, number, request[40:length])
        except OSError as error:
            return struct.pack("<IiQ", 16, -(error.errno or errno.EIO), unique)
        return None if body is None else struct.pack("<IiQ", 16 + len(body), 0, unique) + body

    def _perform(self, opcode: int, number: int, body: memoryview) -> bytes | None:
        function, changes = self._answers.get(opcode, (None, False))
        if function is None:
            raise OSError(errno.ENOSYS, "not here")
        if opcode not in self._silent:
            self._fail(changes)
        return function(self._nodes[number or _ROOT], body)

    def _fail(self, changes: bool) -> None:
        after, name = self.switches.fail_after, self.switches.fail_error
        if after is not None and self._writes >= after and (changes or name == "EIO"):
            raise _error(name)

    # Names

    def _path(self, node: Node, name: bytes = b"") -> bytes:
        parts = [name] if name else []
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return os.path.join(self._backing, *reversed(parts))

    def _entry(self, parent: Node, name: bytes) -> bytes:
        """What is told of a name: its node, which the kernel now knows once more, and its attributes."""
        found = os.lstat(self._path(parent, name))
        node = self._children.get((parent.number, name))
        if node is None:
            self._next += 1
            node = self._nodes[self._next] = Node(self._next, parent, name)
            self._children[parent.number, name] = node
        node.lookups += 1
        return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + _attributes(found)

    def _lookup(self, node: Node, body: memoryview) -> bytes:
        return self._entry(node, _text(body))

    def _forget(self, node: Node, body: memoryview) -> None:
        self._let_go(node, struct.unpack_from("<Q", body)[0])

    def _batch_forget(self, _: Node, body: memoryview) -> None:
        for number, count in struct.iter_unpack("<QQ", body[8 : 8 + 16 * struct.unpack_from("<I", body)[0]]):
            self._let_go(self._nodes[number], count)

    def _let_go(self, node: Node, count: int) -> None:
        node.lookups -= count
        if node.lookups <= 0 and node.number != _ROOT:
            del self._nodes[node.number]
            self._nameless(node)

    def _nameless(self, node: Node) -> None:
        if node.parent is not None and self._children.get((node.parent.number, node.name)) is node:
            del self._children[node.parent.number, node.name]

    def _no_answer(self, _: Node, __: memoryview) -> None:
        return None

    def _moved(self, node: Node, parent: Node, name: bytes) -> None:
        self._nameless(node)
        node.parent, node.name = parent, name
        self._children[parent.number, name] = node

    # Attributes

    def _getattr(self, node: Node, _: memoryview) -> bytes:
        found = os.fstat(min(node.handles)) if node.handles else os.lstat(self._path(node))
        return struct.pack("<QII", 0, 0, 0) + _attributes(found)

    def _setattr(self, node: Node, body: memoryview) -> bytes:
        valid, _, handle, size = struct.unpack_from("<IIQQ", body)
        atime, mtime, _, fine_a, fine_m, _, mode, _, uid, gid = struct.unpack_from("<QQQIIIIIII", body, 32)
        path = self._path(node)
        if valid & _MODE:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & _OWNER:
            os.lchown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & _SIZE:
            os.truncate(handle if valid & _FH else path, size)
        if valid & (_ATIME | _MTIME):
            os.utime(path, ns=(atime * 10**9 + fine_a, mtime * 10**9 + fine_m), follow_symlinks=False)
        return self._getattr(node, body)

    def _statfs(self, node: Node, _: memoryview) -> bytes:
        found = os.statvfs(self._path(node))
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<5Q3I28x", *counts, found.f_bsize, found.f_namemax, found.f_frsize)

    # Making and removing names

    def _readlink(self, node: Node, _: memoryview) -> bytes:
        return os.readlink(self._path(node))

    def _symlink(self, node: Node, body: memoryview) -> bytes:
        name, target = bytes(body).split(b"\0")[:2]
        os.symlink(target, self._path(node, name))
        return self._entry(node, name)

    def _mknod(self, node: Node, body: memoryview) -> bytes:
        mode, device, umask, _ = struct.unpack_from("<IIII", body)
        os.mknod(self._path(node, _text(body[16:])), mode & ~umask, device)
        return self._entry(node, _text(body[16:]))

    def _mkdir(self, node: Node, body: memoryview) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        os.mkdir(self._path(node, _text(body[8:])), mode & ~umask)
        return self._entry(node, _text(body[8:]))

    def _unlink(self, node: Node, body: memoryview) -> bytes:
        name = _text(body)
        child = self._children.get((node.number, name))
        if self.switches.hide and child is not None and child.handles:
            self._hide(child)
        else:
            os.unlink(self._path(node, name))
            self._gone(child)
        return b""

    def _hide(self, child: Node) -> None:
        if child.hidden:
            raise OSError(errno.EBUSY, "still open")
        assert child.parent is not None
        name = f"{self.switches.hide}{child.number:08x}".encode()
        os.rename(self._path(child), self._path(child.parent, name))
        self._moved(child, child.parent, name)
        child.hidden = True

    def _rmdir(self, node: Node, body: memoryview) -> bytes:
        os.rmdir(self._path(node, _text(body)))
        self._gone(self._children.get((node.number, _text(body))))
        return b""

    def _gone(self, child: Node | None) -> None:
        if child is not None:
            self._nameless(child)

    def _rename(self, node: Node, body: memoryview) -> bytes:
        return self._move(node, struct.unpack_from("<Q", body)[0], body[8:])

    def _rename2(self, node: Node, body: memoryview) -> bytes:
        target, flags = struct.unpack_from("<QI", body)
        if flags:
            raise OSError(errno.EINVAL, "only plain renames")
        return self._move(node, target, body[16:])

    def _move(self, node: Node, number: int, names: memoryview) -> bytes:
        old, new = bytes(names).split(b"\0")[:2]
        target = self._nodes[number]
        source = self._path(node, old)
        is_directory = stat.S_ISDIR(os.lstat(source).st_mode)
        os.rename(source, self._path(target, new))
        self._gone(self._children.get((number, new)))
        if child := self._children.get((node.number, old)):
            self._moved(child, target, new)
        if is_directory and self.switches.rename_error:
            raise _error(self.switches.rename_error)
        return b""

    def _link(self, node: Node, body: memoryview) -> bytes:
        old = self._nodes[struct.unpack_from("<Q", body)[0]]
        os.link(self._path(old), self._path(node, _text(body[8:])), follow_symlinks=False)
        return self._entry(node, _text(body[8:]))

    # Files

    def _open(self, node: Node, body: memoryview) -> bytes:
        return self._opened(node, struct.unpack_from("<I", body)[0])

    def _create(self, node: Node, body: memoryview) -> bytes:
        flags, mode, umask = struct.unpack_from("<III", body)
        name = _text(body[16:])
        self._check_direct(flags)
        os.close(os.open(self._path(node, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & ~umask))
        entry = self._entry(node, name)
        return entry + self._opened(self._children[node.number, name], flags)

    def _opened(self, node: Node, flags: int) -> bytes:
        self._check_direct(flags)
        if flags & os.O_TRUNC:
            self._fail(changes=True)
        ours = flags & (os.O_ACCMODE | os.O_TRUNC) | os.O_NOFOLLOW
        if ours & os.O_ACCMODE == os.O_WRONLY:
            ours ^= os.O_WRONLY | os.O_RDWR  # the kernel may read a page that is written in part
        fd = os.open(self._path(node), ours | os.O_CLOEXEC)
        node.handles.add(fd)
        return struct.pack("<QII", fd, 0, 0)

    def _check_direct(self, flags: int) -> None:
        if self.switches.no_direct and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")

    def _read(self, _: Node, body: memoryview) -> bytes:
        handle, offset, size, _, _, flags = struct.unpack_from("<QQIIQI", body)
        self._check_direct(flags)
        if self.switches.read_error:
            raise _error(self.switches.read_error)
        return os.pread(handle, size, offset)

    def _write(self, _: Node, body: memoryview) -> bytes:
        handle, offset, size, _, _, flags = struct.unpack_from("<QQIIQI", body)
        self._check_direct(flags)
        self._writes += 1
        room = size if self.switches.limit is None else max(0, min(size, self.switches.limit - offset))
        if room < size:
            if self.switches.limit_at == "write":
                raise _error(self.switches.limit_error)
            self._lost[handle] = True
        os.pwrite(handle, body[40 : 40 + room], offset)
        return struct.pack("<II", size, 0)

    def _fsync(self, _: Node, body: memoryview) -> bytes:
        handle = struct.unpack_from("<Q", body)[0]
        if self.switches.sync_error and handle not in self._synced:
            self._synced.add(handle)
            os.ftruncate(handle, 0)
            raise _error(self.switches.sync_error)
        self._report_lost(handle, "fsync")
        return b""

    def _flush(self, _: Node, body: memoryview) -> bytes:
        self._report_lost(struct.unpack_from("<Q", body)[0], "close")
        return b""

    def _report_lost(self, handle: int, call: str) -> None:
        if self.switches.limit_at == call and self._lost.pop(handle, False):
            raise _error(self.switches.limit_error)

    def _release(self, node: Node, body: memoryview) -> bytes:
        handle = struct.unpack_from("<Q", body)[0]
        os.close(handle)
        node.handles.discard(handle)
        self._lost.pop(handle, None)
        self._synced.discard(handle)
        if node.hidden and not node.handles:
            os.unlink(self._path(node))
            self._nameless(node)
        return b""

    def _setlk(self, _: Node, __: memoryview) -> bytes:
        raise _error(self.switches.no_flock or "ENOSYS")

    # Directories

    def _opendir(self, node: Node, _: memoryview) -> bytes:
        path = self._path(node)
        found = [(b".", stat.S_IFDIR), (b"..", stat.S_IFDIR)]
        with os.scandir(path) as entries:
            found += [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
        self._next += 1
        self._listings[self._next] = found
        return struct.pack("<QII", self._next, 0, 0)

    def _readdir(self, _: Node, body: memoryview) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        text = b""
        for place, (name, mode) in enumerate(self._listings[handle][offset:], offset + 1):
            entry = struct.pack("<QQII", 2**32 - 1, place, len(name), stat.S_IFMT(mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(text) + len(entry) > size:
                break
            text += entry
        return text

    def _releasedir(self, _: Node, body: memoryview) -> bytes:
        del self._listings[struct.unpack_from("<Q", body)[0]]
        return b""

    def _fsyncdir(self, _: Node, __: memoryview) -> bytes:
        if self.switches.no_dir_sync:
            raise OSError(errno.EINVAL, "no fsync of directories")
        return b""

    # The connection

    def _init(self, _: Node, body: memoryview) -> bytes:
        readahead, offered = struct.unpack_from("<8xII", body)
        flags = offered & (_WANTED | (_FLOCK if self.switches.no_flock else 0))
        return struct.pack("<IIIIHHIIHH32x", 7, 31, readahead, flags, 12, 9, MAX_WRITE, 1, MAX_WRITE // 4096, 0)


def _error(name: str) -> OSError:
    return OSError(getattr(errno, name), name)


def _text(body: memoryview) -> bytes:
    return bytes(body).split(b"\0", 1)[0]


def _attributes(found: os.stat_result) -> bytes:
    whole = [each // 10**9 for each in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    fine = [each % 10**9 for each in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    rest = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev & 0xFFFFFFFF, found.st_blksize, 0)
    return struct.pack("<6Q10I", found.st_ino, found.st_size, found.st_blocks, *whole, *fine, *rest)


def serve(backing: str, mountpoint: str, switches: Switches) -> None:
    """Mount and answer until the input ends, or somebody unmounts it. A line of the input changes switches."""
    os.umask(0)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    loopback = Loopback(backing, switches)
    _mount(device, mountpoint)
    request = memoryview(bytearray(MAX_WRITE + 4096))
    wait = select.poll()
    wait.register(device, select.POLLIN)
    wait.register(0, select.POLLIN)
    _answer_one(device, loopback, request)  # the kernel's greeting
    print("ready", flush=True)
    while True:
        ready = dict(wait.poll())
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                break
            loopback.switch(**json.loads(line))
            print("switched", flush=True)
        elif not _answer_one(device, loopback, request):
            return
    _unmount(mountpoint)


def _answer_one(device: int, loopback: Loopback, request: memoryview) -> bool:
    """Read a request and answer it. False: the mount has gone."""
    try:
        length = os.readv(device, [request])
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
            return True  # whoever asked gave up meanwhile
        raise
    answer = loopback.answer(request[:length])
    if answer is not None:
        with contextlib.suppress(FileNotFoundError):  # as above
            os.write(device, answer)
    return True


if __name__ == "__main__":
    try:
        serve(sys.argv[1], sys.argv[2], Switches(**json.loads(sys.argv[3])))
    except OSError as failed:
        print(failed, flush=True)
        sys.exit(1)
