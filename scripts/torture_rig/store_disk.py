"""A disk whose power can be cut: ext4 on a loop device. Needs root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2  # what the journal has not yet on the disk is lost, as when the power goes
_TOOLS = ("mkfs.ext4", "losetup", "mount", "umount")
_COMMITS = 1  # seconds between the journal's own commits: a rename then gets to the disk long before unsynced bytes


def why_not(folder: Path) -> str:
    """Why no disk can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, for a loop device and mount"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"there is no {', '.join(missing)}"
    try:
        with disk(folder / "probe", 16):
            return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"no loop device or mount here: {_words(error)}"


class Disk:
    """A mounted file system of its own, in a folder that is made and removed. See `disk`."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder, self._megabytes = folder, megabytes
        self._image, self._device = folder / "image", ""
        self.path = folder / "mounted"

    def make(self) -> None:
        """Make and mount it, empty. Raises OSError, CalledProcessError."""
        self._folder.mkdir()
        self.path.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(self._megabytes * 2**20)
        _do("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=1,nodiscard", self._image)
        self._device = _do("losetup", "--find", "--show", self._image).strip()
        self.mount()

    def remove(self) -> None:
        """Nothing of it is left."""
        self.unmount()
        if self._device:
            _do("losetup", "-d", self._device)
            self._device = ""
        shutil.rmtree(self._folder)

    def mount(self) -> None:
        """As after a boot: the journal replays."""
        _do("mount", "-t", "ext4", "-o", f"commit={_COMMITS}", self._device, self.path)

    def unmount(self) -> None:
        """Whoever still held a file has just been killed: that may take a moment."""
        for patience in (0.01, 0.1, 0.3, 1.0, 3.0):
            if not os.path.ismount(self.path):
                return
            try:
                _do("umount", self.path)
            except subprocess.CalledProcessError:
                time.sleep(patience)
        if os.path.ismount(self.path):
            _do("umount", "-l", self.path)

    def cut(self) -> None:
        """The power goes: nothing reaches the disk any more."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)


def settle(path: Path) -> None:
    """Put a new directory on the disk, with all that lies beside it: who saves there takes it for granted."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A new one at `folder`, which must not exist, as long as the block."""
    made = Disk(folder, megabytes)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def release(base: Path) -> None:
    """Unmount and detach whatever is left under `base`, the last mounted first."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        places = [line.split()[1].encode().decode("unicode_escape") for line in mounts]
    for place in reversed(places):
        if Path(place).is_relative_to(base):
            with contextlib.suppress(subprocess.CalledProcessError):
                _do("umount", "-l", place)
    if os.geteuid() == 0 and shutil.which("losetup"):
        for line in _do("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            device, _, image = line.partition(" ")
            if Path(image.strip().removesuffix(" (deleted)")).is_relative_to(base):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _do("losetup", "-d", device)


def _do(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _words(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    return (said or str(error)).strip()
