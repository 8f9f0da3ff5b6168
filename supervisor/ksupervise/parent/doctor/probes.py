"""What `ksupervise doctor` tries in a process of its own: a dead NFS, or a sandbox that kills, must not take it along.

    python probes.py REPORT SECONDS store FOLDER [RUN_DIRECTORY]
    python probes.py REPORT SECONDS machine

Each part is appended to REPORT as it is found, after a line that says it is begun: where a hang was shows there.
Nothing is left behind, and a run that is at work in the store is only read.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ksupervise.parent import run
from ksupervise.parent.process import become_subreaper
from ksupervise.parent.stage import Stage
from ksupervise.store import CheckpointStore, RunLock, owner_is_alive, read_owner, sync_dir, takes_direct_writes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WAIT = 5.0  # seconds for processes that have nothing to do but to end

_PREFIX = ".ksupervise-doctor-"
_OLD = 3600.0  # seconds

Found = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Probe what is named."""
    report, seconds, what, *rest = arguments
    signal.alarm(int(seconds))  # whoever started us may be gone
    signal.signal(signal.SIGTERM, _leave)  # what was begun is undone
    found = Report(Path(report))
    if what == "store":
        probe_store(found, Path(rest[0]), Path(rest[1]) if rest[1:] else None)
    else:
        probe_machine(found)


def _leave(*_: object) -> NoReturn:
    sys.exit(1)


class Report:
    """A file of JSON lines: what is begun (`doing`), and what each part came to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, find: Callable[[], Found]) -> Found:
        """Note what `find` returns, or how it failed, under `name`."""
        self._write({"doing": name})
        try:
            answer = find()
        except OSError as error:
            answer = {"error": error.strerror or str(error)}
        except Exception as error:
            answer = {"error": str(error)}
        self._write({"name": name, "found": answer})
        return answer

    def _write(self, record: Found) -> None:
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


def read_report(path: Path) -> tuple[dict[str, Found], str]:
    """What was found, by name; and what was begun and not ended, "" if nothing."""
    found: dict[str, Found] = {}
    doing = ""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                doing = record.get("doing", "")
                if "name" in record:
                    found[record["name"]] = record["found"]
    return found, doing


# The store ----------------------------------------------------------------------------------------


def probe_store(found: Report, store: Path, directory: Path | None) -> None:
    """What the file system of `store` can do; `directory` is the run's, which need not exist."""
    place = found.add("place", lambda: _place(store))
    if "error" in place:
        return
    folder = Path(place["folder"])
    found.add("kind", lambda: _kind(folder))
    found.add("room", lambda: _room(folder))
    if directory is not None:
        found.add("run", lambda: _run(directory))
    _sweep(folder)
    made = found.add("write", lambda: {"folder": tempfile.mkdtemp(prefix=_PREFIX, dir=folder)})
    if "error" in made:
        return
    own = Path(made["folder"])
    try:
        found.add("clock", lambda: _clock(own))
        found.add("rename", lambda: _rename(own))
        found.add("lock", lambda: _lock(own))
        found.add("direct", lambda: {"taken": takes_direct_writes(own)})
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a probe left behind that had to be killed: its file system did not answer."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                shutil.rmtree(path, ignore_errors=True)


def _place(store: Path) -> Found:
    """The nearest folder that is there: the store itself, or where it would be made."""
    folder = store.absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return {"error": f"{folder} is in the way: it is not a folder"}
    return {"folder": str(folder), "exists": folder == store.absolute()}


def _kind(folder: Path) -> Found:
    """The file system's name, as the table of mounts has it: statfs does not tell one FUSE from another."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return mount_of(str(folder.resolve()), lines)


def mount_of(path: str, mountinfo: list[str]) -> Found:
    """The last mount whose point is above `path`; the format is in proc(5)."""
    best: Found = {}
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        point, options = [*before.split(), *[""] * 6][4:6]
        point = _unescaped(point)
        above = path == point or path.startswith(point.rstrip("/") + "/")
        if after and above and len(point) >= len(best.get("point", "")):
            kind, source = [*after.split(), "", ""][:2]
            best = {"type": kind, "point": point, "source": _unescaped(source), "options": options}
    return best


def _unescaped(text: str) -> str:
    """Blanks and backslashes are octal there."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _room(folder: Path) -> Found:
    disk = os.statvfs(folder)
    return {
        "bytes": disk.f_bavail * disk.f_frsize if disk.f_blocks else None,
        "files": disk.f_favail if disk.f_files else None,  # btrfs and most network file systems count none
    }


def _run(directory: Path) -> Found:
    """What is there of the run: its newest checkpoint, what all of them take, and whether somebody is at it."""
    if not (directory / "run.json").exists():
        return {"exists": False}
    record = run.load(directory / "run.json")
    checkpoints = CheckpointStore(directory, record.id).checkpoints()
    owner = read_owner(directory / "lock")
    return {
        "exists": True,
        "size": checkpoints[0].manifest.size if checkpoints else 0,
        "total": sum(each.manifest.size for each in checkpoints),
        "count": len(checkpoints),
        "pid": owner.pid if owner is not None and owner_is_alive(owner) is not False else None,
        "created": record.created,
    }


def _clock(folder: Path) -> Found:
    """How far the file system's clock is ahead of ours, in seconds."""
    path = folder / "clock"
    before = time.time()
    path.write_bytes(b"x")
    after, stamp = time.time(), path.stat().st_mtime
    path.unlink()
    return {"ahead": min(stamp - before, stamp - after, key=abs)}


def _rename(folder: Path) -> Found:
    """As a commit does it: a file that is synced, in a folder that is synced, published by one rename."""
    one, other = folder / "tmp", folder / "published"
    one.mkdir(0o700)
    with open(one / "file", "wb") as stream:
        stream.write(bytes(4096))
        stream.flush()
        os.fsync(stream.fileno())
    sync_dir(one)
    os.rename(one, other)
    sync_dir(folder)
    if (other / "file").stat().st_size != 4096:
        return {"error": "a file is not what was written after its folder was renamed"}
    return {}


def _lock(folder: Path) -> Found:
    """A lock that is had keeps others out."""
    one, other = RunLock(folder / "lock"), RunLock(folder / "lock")
    with contextlib.closing(_Released(one)), contextlib.closing(_Released(other)):
        if not one.acquire():
            return {"error": "a lock that nobody holds is not to be had"}
        if other.acquire():
            return {"error": "two at once were given the same lock"}
    return {}


class _Released:
    def __init__(self, lock: RunLock) -> None:
        self._lock = lock

    def close(self) -> None:
        self._lock.release()


# The machine --------------------------------------------------------------------------------------


def probe_machine(found: Report) -> None:
    """What the kernel allows us."""
    found.add("memfd", _memfd)
    found.add("pidfd", _pidfd)
    found.add("tree", _tree)
    found.add("terminal", _terminal)
    found.add("kernel log", _kernel_log)


def _memfd() -> Found:
    """The slots as a run makes them, and a page of one written through a mapping."""
    with tempfile.TemporaryDirectory(prefix="ksupervise-doctor-") as folder:
        stage = Stage(Path(folder))
        try:
            fd = stage.slots[0].fd
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE) as page:
                page[:4] = b"page"
            written = os.pread(fd, 4, 0) == b"page"
        finally:
            stage.close()
    return {"on_disk": stage.on_disk} if written else {"error": "what is written to a memfd is not there"}


def _pidfd() -> Found:
    if not hasattr(os, "pidfd_open"):
        return {"error": "not on this system"}
    os.close(os.pidfd_open(os.getpid()))
    return {}


def _tree() -> Found:
    """A grandchild whose parent is gone: it dies of that (PR_SET_PDEATHSIG), and it is ours to collect (subreaper)."""
    if sys.platform != "linux":
        return {"error": "not on this system"}
    become_subreaper()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _be_parent_of_one_that_stays(write)
    os.close(write)
    with open(read, "rb") as pipe:
        grandchild = int(pipe.readline() or b"0")
    os.waitpid(child, 0)
    if not grandchild:
        return {"error": "processes cannot be told to die with their parent"}
    return _end_of(grandchild)


def _be_parent_of_one_that_stays(write: int) -> NoReturn:
    """In the child: start one that stays, say its number, and go."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    ready, told = os.pipe()
    stays = os.fork()
    if stays == 0:
        refused = libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.write(told, b"n" if refused else b"y")
        time.sleep(_WAIT)
        os._exit(0)
    if os.read(ready, 1) == b"y":
        os.write(write, b"%d\n" % stays)
    else:
        os.kill(stays, signal.SIGKILL)
    os._exit(0)


def _end_of(pid: int) -> Found:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return {"error": "an orphan does not become ours: a double fork of the script's would outlive the run"}
    if not os.WIFSIGNALED(status):
        return {"error": "a process that is to die with its parent lives on"}
    return {}


def _terminal() -> Found:
    for fd in os.openpty():
        os.close(fd)
    return {}


def _kernel_log() -> Found:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return {}


if __name__ == "__main__":
    main(sys.argv[1:])
