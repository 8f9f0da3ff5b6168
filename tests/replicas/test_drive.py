"""Drive as Colab mounts it: what its attribute says, and what counts as mounted.

There is no Drive here. A folder stands for it, with the table of mounts and the attribute as code in public shows them.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ksupervise.replicas import drive, folder
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.place import Arrival, NotThere, ReplicaUnreachable
from ksupervise.store.mounts import Mount

from .place_contract import KEY, Opener, PlaceContract, content, put, record_of


class FakeDrive:
    """What the mount at `point` would tell.

    Attributes:
        identifiers: the attribute of each file, by its path; of others there is none.
        mounted: it is.
    """

    def __init__(self, point: Path) -> None:
        self.point = str(point)
        self.identifiers: dict[str, bytes] = {}
        self.mounted = True

    def getxattr(self, path: str, name: str) -> bytes:
        """As os.getxattr."""
        assert name == "user.drive.id"
        if path in self.identifiers:
            return self.identifiers[path]
        raise OSError(errno.ENODATA, "none", path)

    def mount_of(self, path: str) -> Mount:
        """As store.mounts.mount_of."""
        below = self.mounted and (path == self.point or path.startswith(f"{self.point}/"))
        return Mount(self.point, "fuse.drive") if below else Mount("/", "overlay")


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDrive:
    """Drive, mounted."""
    point = tmp_path / "content" / "gdrive"
    (point / "My Drive").mkdir(parents=True)
    found = FakeDrive(point)
    monkeypatch.setattr(drive, "MOUNT_POINTS", (str(point),))
    monkeypatch.setattr(drive, "_getxattr", found.getxattr)
    monkeypatch.setattr(folder, "mount_of", found.mount_of)
    return found


@pytest.fixture
def path(mount: FakeDrive) -> str:
    """Where a user wants the replica, with its blank."""
    return f"{mount.point}/My Drive/model"


class TestDrive(PlaceContract):
    """All promises hold there, but for the exclusive creation; and what is uploaded is verified."""

    @pytest.fixture
    def opener(self, mount: FakeDrive, path: str, monkeypatch: pytest.MonkeyPatch) -> Opener:
        monkeypatch.setattr(drive, "_getxattr", lambda *_: b"1aUploaded")
        return lambda: Folder(path)


def test_it_does_not_exclude(path: str) -> None:
    assert not Folder(path).excludes


def test_an_object_is_cached_until_its_identifier_is_drives(mount: FakeDrive, path: str) -> None:
    place, file = Folder(path), f"{path}/{KEY}"
    put(place, b"0123")
    for identifier, expected in [
        (None, Arrival.CACHED),
        (b"local-1234", Arrival.CACHED),
        (b"", Arrival.CACHED),
        (b"1aBcD", Arrival.UPLOADED),
    ]:
        mount.identifiers = {} if identifier is None else {file: identifier}
        assert place.arrival(KEY, record_of(b"0123")) is expected, identifier


def test_what_is_cached_has_the_right_size_at_least(mount: FakeDrive, path: str) -> None:
    place, file = Folder(path), f"{path}/{KEY}"
    put(place, b"0123")
    with pytest.raises(NotThere, match="4 bytes instead of 5"):
        place.arrival(KEY, record_of(b"01234"))
    mount.identifiers = {file: b"1aBcD"}
    with pytest.raises(NotThere, match="crc32"):
        place.arrival(KEY, record_of(b"9999"))


def test_where_attributes_are_unknown_everything_is_cached(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(path)
    put(place, b"0123")
    monkeypatch.setattr(drive, "_getxattr", None)
    assert place.arrival(KEY, record_of(b"0123")) is Arrival.CACHED


def test_a_mount_that_goes_away_while_asked_is_no_cached_object(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> bytes:
        monkeypatch.setattr(os, "stat", gone)
        raise OSError(errno.ENOTCONN, "not connected")

    place = Folder(path)
    put(place, b"0123")
    with monkeypatch.context():
        monkeypatch.setattr(drive, "_getxattr", gone)
        with pytest.raises(ReplicaUnreachable, match="mount went away"):
            place.arrival(KEY, record_of(b"0123"))
        monkeypatch.undo()


def sizes_at_removal(place: Folder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that a file of 4 still has when its name goes."""
    sizes, unlink = list[int](), os.unlink

    def looked_at(path: str) -> None:
        sizes.append(os.path.getsize(path))
        unlink(path)

    put(place, b"0123")
    monkeypatch.setattr(os, "unlink", looked_at)
    place.remove([KEY])
    return sizes


def test_what_is_removed_is_emptied_first(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes_at_removal(Folder(path), monkeypatch) == [0]


def test_elsewhere_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes_at_removal(Folder(str(tmp_path / "x")), monkeypatch) == [4]


def test_room_is_what_drive_and_the_disk_of_its_cache_both_have(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Folder(path)
    put(place, content(10))
    for sizes, expected in [((5, 9), 5), ((9, 5), 5), ((None, 9), 9), ((9, None), 9), ((None, None), None)]:
        told = dict(zip((path, "/"), sizes, strict=True))
        monkeypatch.setattr(drive, "free_of", told.__getitem__)
        assert place.room() == expected


def test_without_a_mount_it_says_so_and_fills_no_disk(mount: FakeDrive, path: str) -> None:
    mount.mounted = False
    with pytest.raises(ReplicaUnreachable, match=r"Drive is not mounted at .*gdrive\. Mount Drive first"):
        Folder(path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("used", [True, False])
def test_when_the_mount_goes_away_nothing_is_written_to_the_disk_below(mount: FakeDrive, path: str, used: bool) -> None:
    place = Folder(path)
    if used:
        put(place, b"x")
    mount.mounted = False
    with pytest.raises(ReplicaUnreachable, match="Mount Drive first"):
        put(place, b"x", "other")
    assert not os.path.exists(f"{path}/other")
    mount.mounted = True
    put(place, b"x", "other")


@pytest.mark.parametrize(
    ("path", "point", "expected"),
    [
        ("/content/drive/MyDrive/x", "/", "/content/drive"),
        ("/content/drive/MyDrive/x", "/content", "/content/drive"),
        ("/content/drive/MyDrive/x", "/content/drive", ""),
        ("/content/drive", "/", "/content/drive"),
        ("/content/gdrive/My Drive/model", "/", "/content/gdrive"),
        ("/content/gdrive/My Drive/model", "/content/gdrive", ""),
        ("/content/drives/x", "/", ""),
        ("/home/x", "/", ""),
    ],
)
def test_what_has_to_be_mounted(path: str, point: str, expected: str) -> None:
    assert drive.missing_mount(path, point) == expected
