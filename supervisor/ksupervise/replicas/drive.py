"""Google Drive as Colab mounts it.

A write, an fsync and a rename succeed there as soon as this machine's own cache has them; the upload comes later, and
what was deleted goes to the trash, which counts towards the quota. Whether an object has been uploaded is told by its
identifier in Drive, an extended attribute: until then it begins with "local". That is seen in public code and promised
nowhere, so where there is no such attribute an object counts as cached for ever.
"""

from __future__ import annotations

import os
from typing import Any

from ksupervise.replicas.place import Arrival
from ksupervise.store.mounts import holds

KIND = "fuse.drive"  # of the mount, in /proc/mounts
MOUNT_POINTS = ("/content/drive", "/content/gdrive")  # where the notebooks mount it; without it they are empty folders

_IDENTIFIER = "user.drive.id"
_getxattr: Any = getattr(os, "getxattr", None)  # Linux


def is_drive(kind: str) -> bool:
    """A mount of that kind is Drive."""
    return kind == KIND


def missing_mount(path: str, mount_point: str) -> str:
    """The folder at which Drive has to be mounted before `path` is in it; empty if it is, or need not be.

    Args:
        path: absolute.
        mount_point: of the file system that `path` lies on now.
    """
    for point in MOUNT_POINTS:
        if holds(point, path) and not holds(point, mount_point):
            return point
    return ""


def arrival(path: str) -> Arrival:
    """How far Drive has come with the file at `path`. Raises OSError if that is not there or cannot be reached.

    What is wrong with the attribute alone is no error: the file is cached then.
    """
    os.stat(path)
    if _getxattr is None:
        return Arrival.CACHED
    try:
        identifier = _getxattr(path, _IDENTIFIER)
    except OSError:
        os.stat(path)  # is it the attribute that is not to be had, or the mount?
        return Arrival.CACHED
    return Arrival.UPLOADED if identifier and not identifier.startswith(b"local") else Arrival.CACHED


def free(path: str) -> int | None:
    """Bytes that both Drive at `path` and the disk of this machine, where its cache lies, can take; None: not told."""
    told = [found for found in (free_of(path), free_of("/")) if found is not None]
    return min(told) if told else None


def free_of(path: str) -> int | None:
    """Bytes free for us on the file system of `path`, None if it does not say. Raises OSError."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize if found.f_blocks else None
