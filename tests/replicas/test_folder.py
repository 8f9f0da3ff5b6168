"""A place in a folder: the contract on a disk and through FUSE, and what becomes of a mount that goes away."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from tests.store import fuse

from ksupervise.errors import UsageError
from ksupervise.replicas import folder
from ksupervise.replicas.folder import Folder, Mount, mount_in, mount_of
from ksupervise.replicas.open import open_place
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
        (errno.EMFILE, ReplicaUnreachable, "tried again"),
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
    with pytest.raises(ReplicaUnreachable):
        Folder(str(tmp_path / "link"))


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

TABLE = r"""overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
drive /content/drive fuse.drive rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other 0 0
drive /content/g\040drive fuse.drive rw 0 0
systemd-1 /net autofs rw 0 0
server:/export /net nfs4 rw 0 0
/dev/sdb1 /mnt/a\134b\011c fuseblk rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/", "/", "overlay"),
        ("/content", "/", "overlay"),
        ("/content/drive", "/content/drive", "fuse.drive"),
        ("/content/drive/MyDrive/x", "/content/drive", "fuse.drive"),
        ("/content/drives", "/", "overlay"),
        ("/content/g drive/My Drive", "/content/g drive", "fuse.drive"),
        ("/net/x", "/net", "nfs4"),
        ("/mnt/a\\b\tc/x", "/mnt/a\\b\tc", "fuseblk"),
    ],
)
def test_the_mount_of_a_path_is_the_nearest(path: str, point: str, kind: str) -> None:
    assert mount_in(TABLE, path) == Mount(point, kind)


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


def test_without_a_table_the_mount_is_found_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mount_of(str(tmp_path)).point
    monkeypatch.setattr(folder, "_MOUNTS", str(tmp_path / "none"))
    assert mount_of(str(tmp_path)) == Mount(expected, "")


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


@pytest.mark.parametrize(
    "text",
    ["{path}", "file://{path}", "file://localhost{path}", "sub/../My Drive/m", "file://{quoted}", "./My Drive/m"],
)
def test_folders_are_named_in_these_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "My Drive" / "m")
    place = open_place(text.format(path=path, quoted=path.replace(" ", "%20")))
    assert isinstance(place, Folder)
    assert place.path == place.name == path
    monkeypatch.chdir("/")
    put(place, b"x", "a")
    assert (tmp_path / "My Drive" / "m" / "a").read_bytes() == b"x"


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_place("~/x").name == str(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "  ", "http://host/x", "ftp://key:HIDDEN@host/x", "s3:/bucket/x", "gs:bucket"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="It can be a folder, file:///FOLDER, s3://BUCKET/PREFIX, gs:") as raised:
        open_place(text)
    assert "HIDDEN" not in str(raised.value)


def test_a_folder_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="three slashes"):
        open_place("file://host/x")
