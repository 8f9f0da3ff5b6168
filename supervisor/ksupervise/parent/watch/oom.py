"""Was it the kernel's out-of-memory killer? A SIGKILL alone does not tell.

Each cgroup counts those of its processes that the killer took, whether the cgroup was full or the machine
(`oom_kill`, in memory.events of version 2 and in memory.oom_control of version 1); the machine counts them all, in
/proc/vmstat; and the kernel's log, where it may be read, names them. A mark is taken before an attempt and compared
after its death. After the death of a whole cgroup nobody is left to compare: `infer` is for the next parent.

Version 2 counts a kill in all cgroups above too, version 1 only in the process's own. Linux only: elsewhere, and where
nothing can be read, all answers are "unknown" (no groups, None, ""), and nothing raises.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ksupervise.parent.room import size_text
from ksupervise.parent.watch import host

_UNLIMITED = 1 << 60  # bytes; version 1 has no word for it, but a number near 2^63
_RECORDS = 20_000  # of the kernel's log; it holds some thousands
_RECORD = 8192  # bytes; the longest
_FIRST_NAMESPACE = "pid:[4026531836]"  # the kernel's constant: the log's process ids are those that we see
_NEAR = 0.9  # share of the limit from which on memory is the likely reason
_KILLED = re.compile(r"Killed process (\d+) \((.*)\)")  # a name may hold brackets


class _Kind(NamedTuple):
    """The names of one version of cgroups."""

    version: int
    limit: str
    usage: str
    peak: str
    clean: str  # key in memory.stat: file pages that are taken back on demand
    kills: str  # file that holds `oom_kill`


_V1 = _Kind(
    1,
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "total_inactive_file",
    "memory.oom_control",
)
_V2 = _Kind(2, "memory.max", "memory.current", "memory.peak", "inactive_file", "memory.events")


@dataclass(frozen=True)
class OomFinding:
    """What speaks for the out-of-memory killer.

    Attributes:
        by: who says so: the counter of our cgroup, or the kernel (its log, or the machine's counter).
        text: in words.
        sure: a process of ours was killed. False: something was, and it may have been another's.
    """

    by: Literal["cgroup", "kernel"]
    text: str
    sure: bool


class _Limited(NamedTuple):
    """A cgroup with a limit. Bytes; `peak` counts file pages, `used` does not."""

    folder: Path
    limit: int
    used: int
    peak: int | None


class _Kill(NamedTuple):
    """One line of the kernel's log."""

    pid: int
    name: str


class OomCounter:
    """The cgroups that this process is in, and what they count.

    They are looked up once: the child starts in ours.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        kmsg: Path = Path("/dev/kmsg"),
    ) -> None:
        """`cgroup_root` counts where /proc does not tell what is mounted; `proc` and `kmsg` are others for tests."""
        self._proc = proc
        self._kmsg = kmsg
        self._groups = list(_groups(proc, cgroup_root))
        # False: memory is not accounted for in our own cgroup, only further up, where others are counted too.
        ours = [folder for folder, _, _ in _folders(proc, cgroup_root)]
        self._ours_counts = bool(self._groups) and self._groups[0][0] in ours

    def read(self) -> dict[str, Any]:
        """A mark, for `since` and `infer`; plain JSON.

        `groups`: ours and those above, ours first; `oom_kill` and `vmstat` are None where they are not told.
        """
        groups = [
            {"path": str(folder), "version": kind.version, "id": _identity(folder), "oom_kill": _kills(folder, kind)}
            for folder, kind in self._groups
        ]
        return {
            "boot": host.boot_id(self._proc),
            "at": time.monotonic(),
            "vmstat": _number_in(self._proc / "vmstat", "oom_kill"),
            "groups": groups,
        }

    def since(self, mark: Mapping[str, Any], pids: Collection[int]) -> OomFinding | None:
        """What happened since `mark`, which this object made. `pids`: all that the attempt is known to have had.

        None: nothing speaks for the killer. Takes milliseconds where something does, and reads four small files else.
        """
        now = self.read()
        elsewhere = _risen(mark.get("vmstat"), now["vmstat"])
        ours = _risen(*(_own(each).get("oom_kill") for each in (mark, now)))
        if not ours and now["vmstat"] is not None and not elsewhere:
            return None
        kills = _log(self._kmsg, self._proc, float(mark["at"]))
        named = next((kill for kill in kills if kill.pid in pids), None)
        if ours:
            return self._of_cgroup(named, kills)
        if named is not None:
            return OomFinding(
                "kernel", f"the kernel's log says that its OOM killer killed process {_name(named)}", sure=True
            )
        if elsewhere:
            text = "the kernel's OOM killer killed something on this machine meanwhile"
            whom = f": process {_name(kills[-1])}, none of this attempt's" if kills else ""
            return OomFinding("kernel", text + whom, sure=False)
        return None

    def _of_cgroup(self, named: _Kill | None, kills: list[_Kill]) -> OomFinding:
        folder = self._groups[0][0]
        if named is None and kills:
            text = f"the kernel's OOM killer killed a process of cgroup {folder}{self._limit()}; its log names "
            return OomFinding("cgroup", f"{text}process {_name(kills[-1])}, none of this attempt's", sure=False)
        whom = "a process" if named is None else f"process {_name(named)}"
        text = f"the kernel's OOM killer killed {whom} of cgroup {folder}{self._limit()}"
        return OomFinding("cgroup", text, sure=named is not None or self._ours_counts)

    def _limit(self) -> str:
        """`, whose limit is 50.0 MB (peak 50.0 MB)`; it may be that of a group above. What was in use is free again."""
        found = min(self._limited(), key=lambda group: group.limit - (group.peak or group.used), default=None)
        if found is None:
            return ", for which no limit is to be seen: the machine may have been full"
        most = "" if found.peak is None else f" (peak {size_text(found.peak)})"
        whose = "whose limit is" if found.folder == self._groups[0][0] else f"which {found.folder} limits to"
        return f", {whose} {size_text(found.limit)}{most}"

    def usage(self) -> tuple[int, int] | None:
        """Bytes in use and the limit, of that of our cgroups which has least left; None if none has a limit.

        File pages that the kernel takes back on demand are not in use.
        """
        found = min(self._limited(), key=lambda group: group.limit - group.used, default=None)
        return None if found is None else (found.used, found.limit)

    def _limited(self) -> Iterator[_Limited]:
        for folder, kind in self._groups:
            limit, usage = _number(folder / kind.limit), _number(folder / kind.usage)
            if limit is not None and usage is not None and limit < _UNLIMITED:
                clean = _number_in(folder / "memory.stat", kind.clean) or 0
                yield _Limited(folder, limit, max(0, usage - clean), _number(folder / kind.peak))


def infer(mark_then: Mapping[str, Any], mark_now: Mapping[str, Any], last_usage: tuple[int, int] | None) -> str:
    """Why an attempt is gone whose parent was killed with it, as far as memory may be the reason; "" if not.

    `mark_then` was recorded by the lost parent and `mark_now` read by the next one; `last_usage` is the last `usage`
    recorded. A machine that was started anew says nothing: its end explains the attempt's.
    """
    if not host.same_boot(mark_then.get("boot", ""), mark_now.get("boot", "")):
        return ""
    then, now = _own(mark_then), _own(mark_now)
    same = bool(then) and all(then.get(name) == now.get(name) for name in ("path", "id"))
    if same and _risen(then.get("oom_kill"), now.get("oom_kill")):
        count = now["oom_kill"] - then["oom_kill"]
        return f"out of memory: the kernel's OOM killer took {count} more of cgroup {now['path']} since, by its counter"
    if same and not _fallen(then.get("oom_kill"), now.get("oom_kill")):
        return ""
    above = _risen_above(mark_then, mark_now)
    full = last_usage is not None and last_usage[0] >= _NEAR * last_usage[1]
    if last_usage is not None and full:
        share = f"{100 * last_usage[0] / last_usage[1]:.0f} % of its limit of {size_text(last_usage[1])}"
        counted = f", and {above} counts a kill since" if above else ""
        return f"probably out of memory: {share} when last looked at{counted}"
    if above:
        return f"probably out of memory: its cgroup is gone, and {above}, which held it, counts a kill since"
    return ""


def _risen_above(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The nearest cgroup above that is still the same one and counted a kill of something in it; "" if none."""
    current = {(group["path"], group["id"]): group for group in now.get("groups", [])}
    for group in then.get("groups", [])[1:]:
        same = current.get((group["path"], group["id"]))
        if same and group["version"] == 2 and _risen(group["oom_kill"], same["oom_kill"]):
            return f"cgroup {group['path']}"
    return ""


def _own(mark: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = mark.get("groups") or [{}]
    found: Mapping[str, Any] = groups[0]
    return found


def _risen(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _fallen(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after < before


def _name(kill: _Kill) -> str:
    return f"{kill.pid} ({kill.name})"


# Which cgroups ------------------------------------------------------------------------------------


def _groups(proc: Path, cgroup_root: Path) -> Iterator[tuple[Path, _Kind]]:
    """Ours and all above it, up to the root of what we can see, as far as memory is accounted for there."""
    for folder, mount, kind in _folders(proc, cgroup_root):
        chain = [folder, *folder.parents]
        for each in chain[: chain.index(mount) + 1]:
            if any((each / name).exists() for name in (kind.usage, kind.kills)):
                yield each, kind


def _folders(proc: Path, cgroup_root: Path) -> Iterator[tuple[Path, Path, _Kind]]:
    """Our own in each hierarchy, and where that is mounted. Version 1 first: what it accounts for, version 2 does not.

    A mount that does not show our cgroup (it may be that of another container) is taken for ours, but last.
    """
    found = []
    for mount, root, kind in _mounts(proc, cgroup_root):
        below = os.path.relpath(_path_of_ours(proc, kind), root)
        hidden = below.startswith("..")
        found.append((hidden, kind.version, mount if hidden else mount / below, mount, kind))
    for *_, folder, mount, kind in sorted(found, key=lambda each: each[:2]):
        yield folder, mount, kind


def _mounts(proc: Path, cgroup_root: Path) -> list[tuple[Path, str, _Kind]]:
    """Mount point and root of each hierarchy that may account for memory."""
    found = []
    for line in _text(proc / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, [kind, _, options] = before.split(), [*after.split(), "", "", ""][:3]
        if len(fields) < 5:
            continue
        if kind == "cgroup2":
            found.append((Path(fields[4]), fields[3], _V2))
        elif kind == "cgroup" and "memory" in options.split(","):
            found.append((Path(fields[4]), fields[3], _V1))
    if not found:
        found = [(cgroup_root / "memory", "/", _V1), (cgroup_root, "/", _V2)]
    return found


def _path_of_ours(proc: Path, kind: _Kind) -> str:
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path.startswith("/"):
            continue  # not as cgroups(7) has it
        if (kind is _V2 and not controllers) or (kind is _V1 and "memory" in controllers.split(",")):
            return path
    return "/"


def _identity(folder: Path) -> int:
    """A cgroup that was removed and made anew has another number; 0 if it is gone."""
    try:
        return folder.stat().st_ino
    except OSError:
        return 0


def _kills(folder: Path, kind: _Kind) -> int | None:
    return _number_in(folder / kind.kills, "oom_kill")


# Files --------------------------------------------------------------------------------------------


def _log(kmsg: Path, proc: Path, since: float) -> list[_Kill]:
    """Whom the killer took since then, by the kernel's log; nothing where it may not be read, or means other ids.

    The log has a clock of its own, which is not corrected as the monotonic one is: records that are a little older
    are taken too.
    """
    try:
        if os.readlink(proc / "self/ns/pid") != _FIRST_NAMESPACE:
            return []  # its process ids are not those that we see
        fd = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        oldest = 1e6 * (0.999 * since - 1.0)
        return [kill for record in _records(fd) for line in record.splitlines() for kill in _kill_in(line, oldest)]
    finally:
        os.close(fd)


def _records(fd: int) -> Iterator[str]:
    """All that the log holds now; its format is in the kernel's Documentation/ABI/testing/dev-kmsg."""
    for _ in range(_RECORDS):
        try:
            record = os.read(fd, _RECORD)
        except BrokenPipeError:
            continue  # overwritten while we read: goes on with the oldest that there is
        except OSError:
            return  # EAGAIN: that was all
        if not record:
            return
        yield record.decode(errors="replace")


def _kill_in(record: str, oldest: float) -> Iterator[_Kill]:
    prefix, _, message = record.partition(";")
    found = _KILLED.search(message)
    time_of = prefix.split(",")[2:3]
    if found and time_of and time_of[0].isdigit() and int(time_of[0]) >= oldest:
        yield _Kill(int(found[1]), found[2])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """None for `max`, and for what is not there."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _number_in(path: Path, name: str) -> int | None:
    """The value of a line `name value`."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
