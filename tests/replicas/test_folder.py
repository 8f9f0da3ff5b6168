"""A place in a folder: the contract on a disk and through FUSE, and what becomes of a mount that goes away."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from tests.store import fuse

from ksupervise.errors import UsageError
from ksupervise.replicas import folder
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.open import check_places, open_place
from ksupervise.replicas.place import (
    Arrival,
    Entry,
    NotThere,
    Place,
    ReplicaFull,
    ReplicaRefused,
    ReplicaUnreachable,
)
from ksupervise.store import CHUNK
from ksupervise.store.mounts import Mount, mount_of

from .place_contract import KEY, Opener, PlaceContract, content, put, record_of

why_not = cache(fuse.why_not)
WAYS: dict[str, Callable[[Place], object]] = {
    "write": lambda place: place.write("other/x", [b"x"], 1),
    "create": lambda place: place.create("other/x", b"x"),
    "read": lambda place: place.read(KEY),
    "entries": lambda place: place.entries("run/"),
    "remove": lambda place: place.remove([KEY]),
    "arrival": lambda place: place.arrival(KEY, record_of(b"0123")),
    "room": lambda place: place.room(),
}


class TestDisk(PlaceContract):
    """In a folder that is not there at first."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return lambda: open_place(str(tmp_path / "not yet" / "My Drive" / "model"))


class TestFuse(PlaceContract):
    """Through a process of ours, which refuses what such file systems often refuse."""

    @pytest.fixture
    def opener(self, mounted: Mounted) -> Opener:
        mounted.mount.switch(no_direct=True, no_dir_sync=True)
        return lambda: Folder(mounted.path)


class Mounted:
    """A folder below a mount that can go away and come back.

    Attributes:
        mount: what serves it now.
        path: of the place.
        below: the folder on the disk that the mount covers.
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.below, self._backing, self._stack = root / "mnt", root / "backing", stack
        self.below.mkdir()
        self._backing.mkdir()
        self.path = str(self.below / "replica")
        self.mount = self.again()

    def again(self) -> fuse.Mount:
        """Mount it."""
        self.mount = self._stack.enter_context(fuse.mounted(self._backing, self.below))
        return self.mount


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A mount."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield Mounted(tmp_path, stack)


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    """On a disk."""
    return Folder(str(tmp_path / "replica"))


# A mount that goes away ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_mount_whose_process_died_is_unreachable_until_it_is_back(mounted: Mounted, way: str) -> None:
    place = Folder(mounted.path)
    put(place, b"0123")
    mounted.mount.kill()
    with pytest.raises(ReplicaUnreachable, match="The mount went away: remount it"):
        WAYS[way](place)
    mounted.mount.unmount()
    mounted.again()
    WAYS[way](place)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("used", [True, False])
def test_nothing_is_written_to_the_disk_below_a_mount_that_is_gone(mounted: Mounted, way: str, used: bool) -> None:
    place = Folder(mounted.path)
    if used:
        put(place, b"0123")
    mounted.mount.unmount()
    with pytest.raises(ReplicaUnreachable, match="remount"):
        WAYS[way](place)
    assert list(mounted.below.iterdir()) == []
    mounted.again()
    put(place, b"0123")
    WAYS[way](place)


def test_nor_if_the_disk_below_has_a_folder_of_that_name(mounted: Mounted) -> None:
    place = Folder(mounted.path)
    put(place, b"0123")
    mounted.mount.unmount()
    os.mkdir(mounted.path)
    with pytest.raises(ReplicaUnreachable, match="Nothing is written"):
        put(place, b"0123")
    assert os.listdir(mounted.path) == []


def test_a_mount_point_itself_can_be_the_place(mounted: Mounted) -> None:
    place = Folder(str(mounted.below))
    put(place, b"0123")
    mounted.mount.unmount()
    with pytest.raises(ReplicaUnreachable, match="Nothing is written"):
        put(place, b"0123")
    assert list(mounted.below.iterdir()) == []


def test_a_mount_that_comes_late_is_taken(mounted: Mounted) -> None:
    mounted.mount.unmount()
    place = Folder(mounted.path)
    assert place.excludes
    mounted.again()
    put(place, b"0123")
    assert not place.excludes


def test_a_mount_that_goes_away_in_mid_write_is_unreachable(mounted: Mounted) -> None:
    def chunks() -> Iterator[bytes]:
        yield content(100_000)
        mounted.mount.kill()
        yield content(100_000)

    with pytest.raises(ReplicaUnreachable, match="The mount went away: remount it"):
        Folder(mounted.path).write(KEY, chunks(), 200_000)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_was_there_is_not_made_anew(place: Folder, way: str) -> None:
    put(place, b"0123")
    shutil.rmtree(place.path)
    with pytest.raises(ReplicaUnreachable, match="has gone: was it moved or removed"):
        WAYS[way](place)
    assert not os.path.exists(place.path)


def test_a_folder_that_goes_away_in_mid_write_is_not_made_anew(place: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place, b"0123")
    real = os.path.isdir

    def isdir(path: str) -> bool:
        shutil.rmtree(place.path, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(os.path, "isdir", isdir)
    with pytest.raises(ReplicaUnreachable, match="went away while"):
        put(place, b"0123", "other/x")
    assert not os.path.exists(place.path)


@pytest.mark.parametrize("way", ["read", "arrival", "entries", "remove"])
def test_a_folder_that_goes_away_in_mid_reading_is_not_taken_for_empty(
    place: Folder, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    put(place, b"0123")
    checks = place._check

    def check_and_lose() -> None:
        checks()
        monkeypatch.setattr(place, "_check", checks)
        shutil.rmtree(place.path)

    monkeypatch.setattr(place, "_check", check_and_lose)
    with pytest.raises(ReplicaUnreachable, match="has gone"):
        WAYS[way](place)


# What a file system says ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["write", "fsync", "close"])
@pytest.mark.parametrize(
    ("error", "kind"), [("ENOSPC", ReplicaFull), ("EDQUOT", ReplicaFull), ("EIO", ReplicaUnreachable)]
)
def test_what_does_not_fit_is_said_and_leaves_nothing(
    mounted: Mounted, at: str, error: str, kind: type[Exception]
) -> None:
    mounted.mount.switch(limit=100_000, limit_error=error, limit_at=at)
    place = Folder(mounted.path)
    with pytest.raises(kind, match=r"state\.bin"):
        put(place, content(200_000))
    assert place.entries("") == []
    put(place, content(1000))


def test_a_read_only_mount_is_refused(mounted: Mounted) -> None:
    place = Folder(mounted.path)
    put(place, b"0123")
    mounted.mount.switch(fail_after=0, fail_error="EROFS")
    for way in ("write", "create", "remove"):
        with pytest.raises(ReplicaRefused, match="read-only"):
            WAYS[way](place)
    assert place.read(KEY) == b"0123"


def test_an_object_that_cannot_be_read_now_is_not_gone(mounted: Mounted) -> None:
    place = Folder(mounted.path)
    put(place, b"0123")
    mounted.mount.switch(read_error="EIO")
    with pytest.raises(ReplicaUnreachable, match="reports errors"):
        place.arrival(KEY, record_of(b"0123"))


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, ReplicaRefused, "chown"),
        (errno.EPERM, ReplicaRefused, "chown"),
        (errno.EROFS, ReplicaRefused, "read-only"),
        (errno.EIO, ReplicaRefused, "dmesg"),
        (errno.ENOSPC, ReplicaFull, "Free some space"),
        (errno.EDQUOT, ReplicaFull, "quota"),
        (errno.ESTALE, ReplicaUnreachable, "remount"),
        (errno.ETIMEDOUT, ReplicaUnreachable, "network"),
        (errno.EHOSTDOWN, ReplicaUnreachable, "server is down"),
        (errno.ENODEV, ReplicaUnreachable, "attach"),
        (errno.ENXIO, ReplicaUnreachable, "attach"),
        (errno.EMFILE, ReplicaUnreachable, "See what is wrong"),
    ],
)
def test_each_error_has_its_kind(
    place: Folder, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    put(place, b"0123")
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(kind, match=words) as raised:
        put(place, b"0123", "a b")
    monkeypatch.undo()
    assert f"{place.path}/a b: {os.strerror(number)}. " in str(raised.value)


@pytest.mark.parametrize(("number", "fails"), [(errno.ENOSYS, False), (errno.EINVAL, False), (errno.ENOSPC, True)])
def test_a_file_system_without_fsync_is_fine(
    place: Folder, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    put(place, b"", "first")
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(folder, "sync", fail)
    if fails:
        with pytest.raises(ReplicaFull):
            put(place, b"0123")
    else:
        put(place, b"0123")
        assert place.read(KEY) == b"0123"


@pytest.mark.parametrize(("kind", "fails"), [("ext4", True), ("fuse.drive", False)])
def test_names_that_cannot_be_synced_matter_where_syncing_means_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fails: bool
) -> None:
    def fail(_: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(folder, "mount_of", lambda _: Mount("/", kind))
    monkeypatch.setattr(folder, "sync_dir", fail)
    place = Folder(str(tmp_path))
    if fails:
        with pytest.raises(ReplicaFull):
            put(place, b"0123")
    else:
        put(place, b"0123")
        assert place.read(KEY) == b"0123"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ReplicaRefused, match="A folder is needed there"):
        Folder(str(tmp_path / "file"))
    with pytest.raises(ReplicaRefused, match="A folder is needed there"):
        Folder(str(tmp_path / "file" / "below"))


def test_an_object_where_a_folder_is_needed_is_refused(place: Folder) -> None:
    put(place, b"x", "a")
    with pytest.raises(ReplicaRefused, match="A folder is needed there"):
        put(place, b"x", "a/b")
    put(place, b"x", "c/d")
    with pytest.raises(ReplicaRefused, match="A file is needed there"):
        put(place, b"x", "c")


def test_links_and_pipes_are_no_objects(place: Folder, tmp_path: Path) -> None:
    put(place, b"x")
    secret = tmp_path / "secret"
    secret.write_bytes(b"not for a replica")
    os.symlink(secret, f"{place.path}/link")
    os.symlink(tmp_path, f"{place.path}/folder")
    os.mkfifo(f"{place.path}/pipe")
    assert place.entries("") == [Entry(KEY, 1)]
    for key in ("link", "pipe"):
        with pytest.raises(NotThere):
            place.arrival(key, record_of(b"not for a replica"))
    with pytest.raises(ReplicaRefused, match="link"):
        place.read("link")
    with pytest.raises(ReplicaRefused, match="link"):
        put(place, b"x", "link")
    assert secret.read_bytes() == b"not for a replica"


def test_a_link_to_a_folder_can_be_the_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    put(Folder(str(tmp_path / "link")), b"x", "a")
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


def test_a_link_to_nothing_is_not_followed(tmp_path: Path) -> None:
    os.symlink(tmp_path / "gone", tmp_path / "link")
    for path in ("link", "link/below"):
        with pytest.raises(ReplicaUnreachable, match=r"/link is a link to .*/gone, which is not there. Mount or make"):
            Folder(str(tmp_path / path))


def test_empty_folders_do_not_stay(place: Folder) -> None:
    put(place, b"x")
    put(place, b"x", "run/other")
    place.remove([KEY])
    assert os.listdir(f"{place.path}/run") == ["other"]
    place.remove(["run/other"])
    assert os.listdir(place.path) == []


def test_writers_and_removers_do_not_disturb_each_other(place: Folder) -> None:
    """Whoever removes takes the empty folder away that another is about to write into."""
    put(place, b"", "first")
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for number in range(200):
                put(place, b"x", f"a/b/{name}{number}")
                place.remove([f"a/b/{name}{number}"])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert os.listdir(place.path) == ["first"]


def test_files_and_folders_are_the_owners_alone(place: Folder) -> None:
    put(place, b"x")
    for path in (place.path, f"{place.path}/{KEY}"):
        assert os.stat(path).st_mode & 0o077 == 0


def test_a_truncated_object_has_not_arrived(place: Folder) -> None:
    data = content(2 * CHUNK)
    put(place, data)
    assert place.arrival(KEY, record_of(data)) is Arrival.UPLOADED
    os.truncate(f"{place.path}/{KEY}", CHUNK)
    with pytest.raises(NotThere, match=f"{CHUNK} bytes instead of {2 * CHUNK}"):
        place.arrival(KEY, record_of(data))


# Mounts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "excludes"),
    [
        *[(kind, True) for kind in ("ext4", "xfs", "overlay", "tmpfs", "nfs", "nfs4", "lustre", "cifs", "fuseblk", "")],
        *[(f"fuse.{name}", False) for name in ("drive", "gcsfuse", "rclone", "sshfs", "s3fs", "juicefs", "new")],
        ("fuse", False),
    ],
)
def test_who_can_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, excludes: bool) -> None:
    monkeypatch.setattr(folder, "mount_of", lambda _: Mount("/", kind))
    assert Folder(str(tmp_path)).excludes is excludes


def test_another_disk_is_seen_as_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        place = Folder(str(disk / "x"))
        put(place, b"x")
        assert mount_of(place.path) == Mount(str(disk), "tmpfs")
        assert place.excludes
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ReplicaRefused, match="read-only"):
            put(place, b"y", "other")
        assert place.read(KEY) == b"x"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# What a user writes --------------------------------------------------------------------------------


def test_a_relative_folder_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = open_place("sub/../My Drive/m")
    assert isinstance(place, Folder)
    assert place.path == place.name == str(tmp_path / "My Drive" / "m")
    monkeypatch.chdir("/")
    put(place, b"x", "a")
    assert (tmp_path / "My Drive" / "m" / "a").read_bytes() == b"x"


def test_places_that_are_apart_are_fine(tmp_path: Path) -> None:
    check_places([str(tmp_path / "a"), str(tmp_path / "ab"), "s3://b/x", "s3://b/y"], tmp_path / "store")


@pytest.mark.parametrize(
    "twice", [("/{0}/real", "/{0}/link"), ("/{0}/link/x", "/{0}/real/x"), ("s3://b/x", "s3://b/x")]
)
def test_a_folder_given_twice_is_refused(tmp_path: Path, twice: tuple[str, str]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    places = [text.format(str(tmp_path).lstrip("/")) for text in twice]
    with pytest.raises(UsageError, match="are one and the same: give it once") as raised:
        check_places(places, tmp_path / "store")
    assert all(place in str(raised.value) for place in places)


@pytest.mark.parametrize("place", ["store", "store/replica", "link/replica", ".", "link/.."])
def test_a_folder_around_the_store_or_in_it_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store")
    with pytest.raises(UsageError, match=r"one inside the other.* Choose a folder elsewhere"):
        check_places(["s3://b", f"{tmp_path}/{place}"], tmp_path / "store")


def test_where_a_mount_that_hangs_leads_is_not_asked(mounted: Mounted) -> None:
    """A stopped process serves it: whoever asks it anything waits for ever."""
    os.kill(mounted.mount.pid, signal.SIGSTOP)
    try:
        program = "import sys; from ksupervise.replicas.open import check_places as c; c(sys.argv[1:], '/store')"
        command = [sys.executable, "-c", program, mounted.path, str(mounted.below / "other")]
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
    finally:
        os.kill(mounted.mount.pid, signal.SIGCONT)
