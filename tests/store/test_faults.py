"""Which error means what, and what to do about it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import (
    CheckpointStore,
    DamagedCheckpoint,
    RunLayout,
    RunLock,
    StoreFull,
    StoreUnreadable,
    StoreUnwritable,
    read_fault,
    write_fault,
)

from . import fuse
from .helpers import NFS_LIKE, RUN, assert_whole, at, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUT_OF_REACH = ["ENOTCONN", "ECONNABORTED", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENODEV"]


@pytest.mark.parametrize("name", [*OUT_OF_REACH, "EACCES", "EMFILE", "ENOMEM", "EINTR", "EPERM"])
def test_what_is_out_of_reach_is_not_damaged(name: str) -> None:
    fault = read_fault(OSError(getattr(errno, name), "x"), "/store/file")
    assert type(fault) is StoreUnreadable
    assert str(fault).startswith(f"Cannot read /store/file: {os.strerror(getattr(errno, name))}. ")


@pytest.mark.parametrize("name", ["ENOENT", "EIO", "EISDIR", "ENOTDIR", "ELOOP", "EBADMSG"])
def test_what_is_gone_or_unreadable_for_good_is_damaged(name: str) -> None:
    assert type(read_fault(OSError(getattr(errno, name), "x"), "p")) is DamagedCheckpoint


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_is_told_from_other_faults(name: str) -> None:
    assert type(write_fault(OSError(getattr(errno, name), "x"), "p")) is StoreFull


ADVICE = {"ENOTCONN": "emount", "ESTALE": "emount", "ETIMEDOUT": "network", "EROFS": "read-only", "EIO": "dmesg"}


@pytest.mark.parametrize("name", [*OUT_OF_REACH, "EROFS", "EIO", "EACCES", "EFBIG"])
def test_what_to_do_is_said(name: str) -> None:
    fault = write_fault(OSError(getattr(errno, name), "x"), "p")
    assert type(fault) is StoreUnwritable
    assert ADVICE.get(name, "") in str(fault)
    assert "--store" in str(fault)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[fuse.Mount]:
    if reason := fuse.why_not():
        pytest.skip(reason)
    (tmp_path / "backing").mkdir()
    (tmp_path / "mount").mkdir()
    with fuse.mounted(tmp_path / "backing", tmp_path / "mount", **NFS_LIKE) as mounted:
        RunLayout(mounted.path).create()
        yield mounted


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_a_server_that_goes_away_sets_nothing_aside(mount: fuse.Mount, name: str) -> None:
    store = CheckpointStore(mount.path, RUN)
    found = put(store, 1)
    mount.switch(read_error=name)
    for call in (
        store.checkpoints,
        store.damaged,
        lambda: store.verify(found),
        lambda: store.read(found, "extra.json"),
    ):
        with pytest.raises(StoreUnreadable):
            list(call() or ())
    mount.switch(read_error="")
    assert store.checkpoints() == [found]
    assert_whole(store, found)


def test_a_disk_that_cannot_read_it_back_has_lost_it(mount: fuse.Mount) -> None:
    store = CheckpointStore(mount.path, RUN)
    found = put(store, 1)
    mount.switch(read_error="EIO")
    assert [path for path, _ in store.damaged()] == [found.path]


def test_a_mount_that_went_away_is_told(mount: fuse.Mount) -> None:
    store = CheckpointStore(mount.path, RUN)
    put(store, 1)
    mount.kill()
    with pytest.raises(StoreUnreadable, match="went away: remount"):
        store.checkpoints()
    with pytest.raises(StoreUnwritable, match="went away: remount"):
        store.commit(at(2), {}, seq=2, attempt=1, holder="h", origin="user")


def test_a_file_system_without_locks_is_told(mount: fuse.Mount) -> None:
    with pytest.raises(StoreUnwritable, match="has no locks"):
        RunLock(os.path.join(mount.path, "lock")).acquire()


def test_a_file_that_is_removed_while_open_lingers_there(mount: fuse.Mount) -> None:
    """The rig does what it says: else the tests that count on it show nothing."""
    path = os.path.join(mount.path, "file")
    with open(path, "wb"):
        os.unlink(path)
        assert [name[:4] for name in os.listdir(mount.path) if name.startswith(".")] == [".nfs"]
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    fd = os.open(mount.path, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(fd)
    os.close(fd)
