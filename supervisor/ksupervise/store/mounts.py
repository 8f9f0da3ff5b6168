"""Which file system a path lies on, and whether a lock there keeps other machines out.

Asked of the kernel's list of mounts, not of the file system itself: a server that does not answer is not waited for.
Only finding out where the path leads (symbolic links) touches it. Where there is no such list (macOS), a path counts
as local.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ksupervise.store.atomic import StrPath

MOUNTINFO = "/proc/self/mountinfo"

# fmt: off
# File systems of one machine: flock holds among all who can reach them. "fuseblk" is NTFS or exFAT on a disk of ours.
_LOCAL = frozenset({
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "nilfs2", "tmpfs",
    "ramfs", "rootfs", "devtmpfs", "hugetlbfs", "overlay", "overlayfs", "aufs", "ecryptfs", "vfat", "msdos",
    "exfat", "ntfs", "ntfs3", "hfs", "hfsplus", "apfs", "ufs", "udf", "iso9660", "squashfs", "erofs", "fuseblk",
})
# File systems that many machines mount at a time.
_SHARED = frozenset({
    "nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "ceph", "gpfs", "beegfs", "glusterfs", "afs", "coda", "ocfs2",
    "gfs2", "orangefs", "pvfs2", "wekafs", "panfs",
})
# FUSE file systems that only dress up a directory or a disk of this machine.
_ONE_MACHINES = frozenset({
    "fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.mergerfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.bindfs",
    "fuse.lxcfs",
})
# fmt: on
_MOST_LINKS = 40  # as the kernel follows
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """What is mounted where a path lies.

    Attributes:
        point: the folder at which it is mounted.
        kind: of file system, as "ext4", "nfs4" or "fuse.drive"; "" if that is not to be known.
    """

    point: str
    kind: str


@dataclass(frozen=True)
class _Row(Mount):
    number: int
    parent: int


def mount_of(path: StrPath, mountinfo: StrPath = MOUNTINFO) -> Mount:
    """The mount that `path` lies on, after its links.

    The path need not exist yet: what counts is where it would be. Without a list of mounts each folder on the way is
    asked.
    """
    where = os.path.realpath(path)  # first: it may mount what is mounted on demand
    found = _mount_at(where, _listed(mountinfo))
    if found is not None:
        return Mount(found.point, found.kind)
    while not os.path.ismount(where):
        where = os.path.dirname(where)
    return Mount(where, "")


def file_system(path: StrPath, mountinfo: StrPath = MOUNTINFO) -> str:
    """The type of the file system that `path` lies on ("ext4", "nfs4", "fuse.drive"); "" if that is not to be known.

    The path need not exist yet: what counts is where it would be.
    """
    found = _mount_at(os.path.realpath(path), _listed(mountinfo))
    return "" if found is None else found.kind


def resolved(path: StrPath, mountinfo: StrPath = MOUNTINFO) -> str:
    """The absolute path with its links followed, up to a mount that is not known to be local: that may not answer.

    The path need not exist. What lies beyond such a mount stays as it is written.
    """
    distant = {row.point for row in _listed(mountinfo) if row.kind not in _LOCAL}
    found, left = "/", os.path.abspath(path).split("/")[1:]
    links = _MOST_LINKS
    while left:
        part, left = left[0], left[1:]
        step = os.path.normpath(os.path.join(found, part))
        if step in distant and step != "/":
            return os.path.normpath(os.path.join(step, *left))
        try:
            target = os.readlink(step)
        except OSError:  # no link, or nothing there
            found = step
            continue
        links -= 1
        if not links:  # a ring of links leads nowhere
            return os.path.normpath(os.path.join(step, *left))
        found = "/" if target.startswith("/") else found
        left = [*target.strip("/").split("/"), *left]
    return found


def has_reliable_flock(path: StrPath, mountinfo: StrPath = MOUNTINFO) -> bool:
    """Whether an flock there shuts out everybody who can reach the file, on whatever machine.

    Only file systems known to be local have that. NFS, SMB and FUSE may take the lock on this machine only, or for
    ever after the holder's machine has died. Where the type cannot be known, the path is taken for local.
    """
    kind = file_system(path, mountinfo)
    return not kind or kind in _LOCAL


def is_shared(path: StrPath, mountinfo: StrPath = MOUNTINFO) -> bool:
    """Whether other machines may see and write the same files. False where the type is unknown."""
    kind = file_system(path, mountinfo)
    return kind in _SHARED or (kind.startswith("fuse") and kind not in _LOCAL | _ONE_MACHINES)


def _listed(mountinfo: StrPath) -> list[_Row]:
    """What is mounted; nothing where there is no such list."""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            return list(_parsed(file))
    except OSError:
        return []


def _parsed(lines: Iterable[str]) -> Iterable[_Row]:
    """The mounts of a mountinfo text; lines that make no sense are passed over.

    `36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw`, see proc_pid_mountinfo(5).
    """
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split()
        if len(fields) >= 6 and kinds and fields[0].isdecimal() and fields[1].isdecimal():
            yield _Row(_unescaped(fields[4]), kinds[0], int(fields[0]), int(fields[1]))


def _unescaped(text: str) -> str:
    """Blanks, tabs, line ends and backslashes are written in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mount_at(path: str, mounts: list[_Row]) -> _Row | None:
    """Walk down to `path` as the kernel does, from mount to mount: what is mounted over hides what lies below it."""
    holding = [mount for mount in mounts if holds(mount.point, path)]
    known = {mount.number for mount in holding}
    roots = [mount for mount in holding if mount.parent not in known or mount.parent == mount.number]
    if not roots:
        return None
    here = max(roots, key=lambda mount: len(mount.point))
    for _ in holding:  # no more steps than mounts, whatever the text says
        below = [mount for mount in holding if mount.parent == here.number and mount is not here]
        if not below:
            break
        here = min(below, key=lambda mount: len(mount.point))
    return here


def holds(folder: str, path: str) -> bool:
    """Whether `path` is the folder or lies in it, both absolute, by their names alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
