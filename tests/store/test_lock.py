"""One owner at a time, for as long as anything of it lives."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import Owner, RunLock, StoreUnwritable, owner_is_alive, read_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30_000  # ms


@contextmanager
def acting(part: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that plays that part, and the line it said."""
    command = [sys.executable, str(Path(__file__).with_name("lock_child.py")), part, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def kill_and_wait(pid: int) -> None:
    """End a process that is not our child, and return when it has ended."""
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(PATIENCE)
    finally:
        os.close(fd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_the_second_is_refused_until_the_first_lets_go(path: Path) -> None:
    first, second = RunLock(path), RunLock(path)
    assert first.acquire("here")
    assert not second.acquire()
    assert first.held
    assert not second.held
    with pytest.raises(RuntimeError, match="already"):
        first.acquire()
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_another_process_is_refused_and_can_read_who_owns_it(path: Path) -> None:
    lock = RunLock(path)
    lock.acquire("@socket")
    with acting("hold", path) as (_, said):
        assert said == "refused"
    owner = read_owner(path)
    assert owner is not None
    assert (owner.pid, owner.address, owner.host) == (os.getpid(), "@socket", os.uname().nodename)
    assert owner_is_alive(owner) is True
    lock.announce("@other")
    assert read_owner(path) == replace(owner, address="@other", acquired=read_acquired(path))
    lock.release()
    assert read_owner(path) is None


def read_acquired(path: Path) -> float:
    return float(json.loads(path.read_text())["acquired"])


def test_a_killed_owner_frees_the_run_and_is_known_dead(path: Path) -> None:
    with acting("hold", path) as (process, said):
        assert said == "acquired"
        lock = RunLock(path)
        assert not lock.acquire()
        owner = read_owner(path)
        assert owner is not None
        assert owner.pid == process.pid
        assert owner_is_alive(owner) is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner_is_alive(owner) is False, "a zombie owns nothing"
        process.wait()
        assert owner_is_alive(owner) is False
        assert lock.acquire()
        lock.release()


def test_a_child_that_inherited_it_keeps_the_run_owned(path: Path) -> None:
    with acting("hand_down", path) as (process, said):
        child = int(said)
        process.kill()
        process.wait()
        lock = RunLock(path)
        assert not lock.acquire(), "the child may still write"
        owner = read_owner(path)
        assert owner is not None
        assert owner_is_alive(owner) is False
        kill_and_wait(child)
        assert lock.acquire()
        lock.release()


def test_a_child_that_was_not_given_it_does_not(path: Path) -> None:
    with acting("leave", path) as (process, said):
        process.kill()
        process.wait()
        lock = RunLock(path)
        assert lock.acquire()
        lock.release()
        kill_and_wait(int(said))


def test_a_forked_copy_that_releases_takes_nothing_away(path: Path) -> None:
    lock = RunLock(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert read_owner(path) is not None
    assert not RunLock(path).acquire()
    lock.release()


def test_a_lock_file_that_was_moved_away_is_not_the_lock(path: Path) -> None:
    lock, later = RunLock(path), RunLock(path)
    lock.acquire()
    path.rename(path.with_name("archived"))
    assert later.acquire()
    lock.release()
    assert not RunLock(path).acquire()
    later.release()


def test_a_lock_file_moved_away_between_open_and_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def archive_first(fd: int, operation: int) -> None:
        if not path.with_name("archived").exists():
            path.rename(path.with_name("archived"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", archive_first)
    lock, later = RunLock(path), RunLock(path)
    assert lock.acquire()
    assert not later.acquire()
    assert read_owner(path) is not None
    lock.release()


def test_no_descriptor_is_left_open(path: Path) -> None:
    lock = RunLock(path)
    lock.acquire()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert not RunLock(path).acquire()
        read_owner(path)
    assert os.listdir("/proc/self/fd") == before
    lock.release()
    with pytest.raises(RuntimeError, match="not held"):
        lock.fileno()


def test_a_place_without_room_for_a_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="moved or deleted"):
        RunLock(tmp_path / "nowhere" / "lock").acquire()
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreUnwritable, match="Is a directory"):
        RunLock(tmp_path / "lock").acquire()


def this_process() -> Owner:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return Owner(os.getpid(), int(stat[19]), boot_id, os.uname().nodename, "", 0.0)


def test_who_is_alive() -> None:
    me = this_process()
    assert owner_is_alive(me) is True
    assert owner_is_alive(replace(me, start_time=None)) is True
    assert owner_is_alive(replace(me, boot_id="")) is True
    assert owner_is_alive(replace(me, start_time=1)) is False, "the pid was used again"
    assert owner_is_alive(replace(me, boot_id="another")) is False, "the machine was booted since"
    assert owner_is_alive(replace(me, host="another")) is None, "nobody here can know"
    gone = 2**31 - 1
    assert owner_is_alive(replace(me, pid=gone)) is False
    assert owner_is_alive(replace(me, pid=gone, start_time=None)) is False


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"{}",
    b"[1]",
    b"12",
    b'{"pid": 3',
    b"[" * 50_000,
    b'{"pid":-1,"start_time":1,"boot_id":"","host":"","address":"","acquired":1}',
    b'{"pid":1,"start_time":"1","boot_id":"","host":"","address":"","acquired":1}',
    b'{"pid":1,"start_time":1,"boot_id":[],"host":"","address":"","acquired":1}',
    b'{"pid":1,"start_time":1,"boot_id":"","host":"","address":"","acquired":null}',
    b'{"pid":1,"start_time":1,"boot_id":"","host":"","address":"","acquired":1,"more":1}',
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_note_that_makes_no_sense_is_none(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert read_owner(path) is None
    lock = RunLock(path)
    assert lock.acquire()
    assert read_owner(path) is not None
    lock.release()


def test_no_file_no_owner(path: Path) -> None:
    assert read_owner(path) is None
