"""How much memory may still be taken, before the kernel kills somebody for it.

The limit that counts is the tightest of the machine's, of each cgroup that we are in (a container's, a Slurm job's),
and of the address space: `MemAvailable` knows nothing of those. Memory that a cgroup spends on clean file pages is
taken back on demand, so it counts as free.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

_PROC = "/proc"


class _Kind(NamedTuple):
    """The names of one version of cgroups."""

    limit: str
    usage: str
    clean: str  # key in memory.stat


_V1 = _Kind("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Kind("memory.max", "memory.current", "inactive_file")


def available(proc: str = _PROC) -> int | None:
    """Bytes, None where nothing tells (no Linux). `proc` is another /proc for tests."""
    found = [*_of_machine(proc), *_of_cgroups(proc), *_of_address_space(proc)]
    return max(0, min(found)) if found else None


def _of_machine(proc: str) -> Iterator[int]:
    for line in _read(os.path.join(proc, "meminfo")).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(rest.split()[0])


def _of_address_space(proc: str) -> Iterator[int]:
    """`ulimit -v`: what can still be mapped."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = _read(os.path.join(proc, "self", "statm")).split()
    if limit != resource.RLIM_INFINITY and size:
        yield limit - int(size[0]) * resource.getpagesize()


def _of_cgroups(proc: str) -> Iterator[int]:
    """Of each cgroup from ours up to the root of what we can see."""
    for mount, root, kind in _mounts(proc):
        below = os.path.relpath(_path_of_ours(proc, kind), root)
        folder = mount if below.startswith("..") else os.path.normpath(os.path.join(mount, below))
        while folder.startswith(mount):
            free = _free_in(folder, kind)
            if free is not None:
                yield free
            if folder == mount:
                break
            folder = os.path.dirname(folder)


def _mounts(proc: str) -> Iterator[tuple[str, str, _Kind]]:
    """Mount point and root of each hierarchy that accounts for memory; the format is in proc(5)."""
    for line in _read(os.path.join(proc, "self", "mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind == "cgroup2":
            yield mount, root, _V2
        elif kind == "cgroup" and "memory" in options.split(","):
            yield mount, root, _V1


def _path_of_ours(proc: str, kind: _Kind) -> str:
    for line in _read(os.path.join(proc, "self", "cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path.startswith("/"):
            continue  # not as cgroups(7) has it
        if (kind is _V2 and not controllers) or (kind is _V1 and "memory" in controllers.split(",")):
            return path
    return "/"


def _free_in(folder: str, kind: _Kind) -> int | None:
    """Bytes below the cgroup's limit, None if it has none."""
    limit = _read(os.path.join(folder, kind.limit)).strip()
    usage = _read(os.path.join(folder, kind.usage)).strip()
    if not limit.isdigit() or not usage.isdigit():
        return None  # "max", or the root, which has no such file
    clean = 0
    for line in _read(os.path.join(folder, "memory.stat")).splitlines():
        name, _, value = line.partition(" ")
        if name == kind.clean:
            clean = int(value)
    return int(limit) - int(usage) + clean


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
