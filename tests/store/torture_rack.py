"""Kills a process, or tells it an error, at a chosen system call of one act on a store; judges what is left.

The act runs in a fork that waits until strace has attached: calls are counted from there, so that a site does not
depend on what the interpreter did before. Counts are strace's: each thread has its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import traceback
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ksupervise.store import CheckpointStore

from .torture_child import ACTS, BEGIN, END, RUN, assert_whole, commit, perform, seqs

STRACE = shutil.which("strace")
CHANGING = frozenset({"mkdir", "rename", "renameat", "renameat2", "fsync", "fdatasync", "write", "pwrite64", "unlink",
                      "rmdir", "unlinkat", "mkdirat", "ftruncate", "fallocate"})  # fmt: skip
FAILING = CHANGING | {"openat", "close", "fcntl", "newfstatat", "fstat", "lstat", "stat", "statx", "statfs", "fstatfs",
                      "getdents64", "read", "readv", "pread64", "preadv", "lseek"}  # fmt: skip
KILL = "signal=KILL"
ERRORS = ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EROFS")
_PATIENCE = 60.0  # seconds until an act counts as hanging
_TRIES = 3  # with threads, a call may now and then come out one earlier or later
_REFUSALS = ("refused store-", "refused damaged-checkpoint")
_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)  # prctl: Yama lets only ancestors attach


def trials(sites: Iterable[Site], *, quick: bool) -> list[tuple[Site, str]]:
    """What to do at which call: everything, or (quick) a kill and one error at each call that changes the disk."""
    if not quick:
        return [(site, how) for site in sites for how in (KILL, *ERRORS) if how == KILL or site.call in FAILING]
    changing = [site for site in sites if site.call in CHANGING]
    turns = zip(changing, itertools.cycle(ERRORS), strict=False)
    return [(site, KILL) for site in changing] + list(turns)


def why_not() -> str:
    """Why nothing can be traced here; empty if it can."""
    if STRACE is None:
        return "strace is not installed"
    probe = subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {probe.stderr.strip()}" if probe.returncode else ""


@dataclass(frozen=True)
class Site:
    """The `when`-th call of that name in one thread of an act."""

    call: str
    when: int


@dataclass(frozen=True)
class Ran:
    """How an act ended: what it said ("" if it died before), its exit code, and strace's words."""

    root: str
    said: str
    code: int
    words: str


@dataclass(frozen=True)
class Rack:
    """Runs one act on copies of a run. It is passed to worker processes, so it is only names.

    Attributes:
        act: name in ACTS.
        directory: where the template and the copies lie; it must exist.
    """

    act: str
    directory: str

    @property
    def template(self) -> str:
        """The run as it is before the act."""
        return os.path.join(self.directory, f"template of {self.act}")

    def prepare(self) -> None:
        """Make the template."""
        ACTS[self.act].make(self.template)

    def run(self, *options: str) -> Ran:
        """Act on a copy of the template, under strace with these options. Raises TimeoutError if it hangs."""
        place = os.path.join(self.directory, uuid.uuid4().hex)
        _rehearse(self.act, place)
        root = os.path.join(place, "run")
        shutil.copytree(self.template, root, copy_function=os.link)  # what is published is never changed
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _become_victim(self.act, root, theirs)
        theirs.close()
        with ours:
            ours.settimeout(_PATIENCE)
            return _trace(pid, ours, root, options)

    def sites(self) -> list[Site]:
        """Every call between the two marks that goes to a file or a descriptor."""
        log = os.path.join(self.directory, uuid.uuid4().hex)
        ran = self.run("-o", log, "-e", "trace=%file,%desc", "-e", "signal=none")
        assert ran.said == "acked", ran
        self.clear(ran)
        with open(log, encoding="utf-8", errors="replace") as file:
            found = _sites(file.read().splitlines())
        os.unlink(log)
        return found

    def clear(self, ran: Ran) -> None:
        """Remove the copy."""
        shutil.rmtree(os.path.dirname(ran.root))

    def harm(self, site: Site, how: str) -> tuple[str, str]:
        """Harm that call and look at what is left: what became of the act, and what is wrong with it ("": nothing)."""
        inject = f"inject={site.call}:{how}:when={site.when}"
        for _ in range(_TRIES):
            ran = self.run("-o", "/dev/null", "-e", f"trace={site.call}", "-e", inject)
            if how != KILL or ran.code == -signal.SIGKILL:
                break
            self.clear(ran)
        else:
            return "never reached", f"{inject}: there was no such call"
        try:
            became = judge(self.act, ran, killed=how == KILL)
        except Exception as error:
            return "broken", f"{inject}: {type(error).__name__}: {error}; {ran.said!r} {ran.words[-2000:]}"
        self.clear(ran)
        return became, ""


def judge(act: str, ran: Ran, *, killed: bool) -> str:
    """Assert that the store is as it must be, that the next owner can go on; what became of the act.

    Raises AssertionError and whatever the store raises.
    """
    assert ran.code == (-signal.SIGKILL if killed else 0), f"exit code {ran.code}"
    # A prune looks at what is to stay: where that cannot be read, it refuses.
    assert killed or ran.said == "acked" or ran.said.startswith(_REFUSALS), f"it said {ran.said!r}"
    store = CheckpointStore(ran.root, RUN)
    became = ACTS[act].check(store, ran.said == "acked")
    if act == "commit" and not killed:
        assert os.listdir(store.layout.tmp) == [], "a refused commit cleans up after itself"
    assert_goes_on(store)
    return became if killed else f"{ran.said.split()[0]}: {became}"


def assert_goes_on(store: CheckpointStore) -> None:
    """The next owner finds only what is whole, sweeps, and commits."""
    assert store.damaged() == []
    store.sweep()
    assert os.listdir(store.layout.tmp) == os.listdir(store.layout.trash) == []
    left = [path for path in _files(str(store.layout.root)) if ".tmp." in path]
    assert left == [], "temporary files that no sweep removes"
    for each in store.checkpoints():
        assert_whole(store, each)
    seq = store.next_seq()
    commit(store, seq)
    assert seqs(store)[0] == seq


def _files(root: str) -> list[str]:
    return [os.path.join(directory, name) for directory, _, names in os.walk(root) for name in names]


_rehearsed: set[str] = set()


def _rehearse(act: str, place: str) -> None:
    """Once a process on a scratch run, so that nothing is left to import."""
    if act not in _rehearsed:
        scratch = os.path.join(place, "scratch")
        ACTS[act].make(scratch)
        assert perform(act, scratch) == "acked"
        shutil.rmtree(scratch)
        _rehearsed.add(act)


def _become_victim(act: str, root: str, rig: socket.socket) -> None:
    """In the fork: wait for the tracer, act, say how it went."""
    said = "crashed"
    try:
        ctypes.CDLL(None).prctl(_SET_PTRACER, _ANYBODY, 0, 0, 0)
        rig.sendall(b"r")
        if rig.recv(1):
            said = perform(act, root, os.path.lexists)
    except BaseException:
        said = f"crashed {traceback.format_exc()}"
    finally:
        with contextlib.suppress(OSError):
            rig.sendall(said.encode())
        os._exit(0)


def _trace(pid: int, rig: socket.socket, root: str, options: tuple[str, ...]) -> Ran:
    """Attach to the victim, let it go, and collect both."""
    assert STRACE is not None
    tracer: subprocess.Popen[str] | None = None
    code: int | None = None
    try:
        assert rig.recv(1) == b"r", "the victim did not come so far"
        tracer = subprocess.Popen(
            [STRACE, "-f", *options, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        assert " attached" in first, first + tracer.stderr.read()
        rig.sendall(b"g")
        said = _rest_of(rig)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _, words = tracer.communicate(timeout=_PATIENCE)
        return Ran(root, said, code, words)
    finally:
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if tracer is not None and tracer.poll() is None:
            tracer.kill()
            tracer.wait()


def _rest_of(rig: socket.socket) -> str:
    """All that the victim says until it ends; nothing if it was killed with our word unread."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while data := rig.recv(65536):
            said += data
    return said.decode()


def _sites(lines: list[str]) -> list[Site]:
    """The calls of a log, from the first mark to the last; each thread's are counted apart."""
    seen: Counter[tuple[str, str]] = Counter()
    sites: dict[Site, None] = {}
    within = False
    for line in lines:
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:  # "<... fsync resumed>", "+++ exited"
            continue
        thread, call = match[1], match[2]
        seen[thread, call] += 1
        if END in line:
            break
        if within and call != "mmap":  # where memory comes from is malloc's business
            sites[Site(call, seen[thread, call])] = None
        within = within or BEGIN in line
    return list(sites)
