"""Was it the out-of-memory killer? Cgroups of both versions, as files; and a real one, with a real kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksupervise.parent.watch import oom

GB, MB = 10**9, 10**6
FIRST_NAMESPACE = "pid:[4026531836]"
UNLIMITED = 9223372036854771712
PID = 4242


class Machine:
    """A /proc, a hierarchy of cgroups and a kernel's log, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.groups = folder / "cgroup"
        self.kmsg = folder / "kmsg"
        (self.proc / "self/ns").mkdir(parents=True)
        os.symlink(FIRST_NAMESPACE, self.proc / "self/ns/pid")
        self.write(self.proc / "sys/kernel/random/boot_id", "boot-1\n")
        self.write(self.proc / "self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.vmstat(2)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mount(self, kind: str, options: str = "rw", root: str = "/", at: str = "") -> None:
        line = f"30 23 0:26 {root} {self.groups / at} rw,nosuid,nodev shared:9 - {kind} {kind} {options}\n"
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(line)

    def belong(self, text: str) -> None:
        self.write(self.proc / "self/cgroup", text)

    def vmstat(self, kills: int) -> None:
        self.write(self.proc / "vmstat", f"nr_free_pages 17\noom_kill {kills}\noom_kill_other 9\n")

    def v2(self, path: str, kills: int, limit: str = "max", current: int = 0, clean: int = 0) -> None:
        folder = self.groups / path
        self.write(
            folder / "memory.events", f"low 0\nhigh 0\nmax 31\noom 2\noom_kill {kills}\noom_group_kill {2 * kills}\n"
        )
        self.write(folder / "memory.max", f"{limit}\n")
        self.write(folder / "memory.current", f"{current}\n")
        self.write(folder / "memory.peak", f"{current + 1000}\n")
        self.write(folder / "memory.stat", f"anon 17\ninactive_file {clean}\nactive_file 5\n")

    def v1(self, path: str, kills: int, limit: int = UNLIMITED, current: int = 0, clean: int = 0) -> None:
        folder = self.groups / path
        self.write(folder / "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        self.write(folder / "memory.usage_in_bytes", f"{current}\n")
        self.write(folder / "memory.max_usage_in_bytes", f"{current + 1000}\n")
        self.write(folder / "memory.stat", f"cache 1\ninactive_file 3\ntotal_inactive_file {clean}\n")

    def log(self, *pids: int, at: float = 1e9) -> None:
        """At which second of the machine's life the kernel killed those."""
        self.write(
            self.kmsg,
            f"6,1,{int(at * 1e6)},-;usb 1-1: new device\n SUBSYSTEM=usb\n"
            + "".join(
                f"6,2,{int(at * 1e6)},-;oom-kill:constraint=CONSTRAINT_MEMCG,task=python,pid={pid},uid=0\n"
                f"3,3,{int(at * 1e6)},-;Memory cgroup out of memory: Killed process {pid} (python (x)) total-vm:1kB\n"
                for pid in pids
            ),
        )

    def counter(self) -> oom.OomCounter:
        return oom.OomCounter(self.proc, self.groups, self.kmsg)

    def in_a_box(self, limit: str = "max") -> oom.OomCounter:
        """In a cgroup of version 2."""
        self.mount("cgroup2")
        self.belong("0::/box\n")
        self.v2("box", 0, limit, 49 * MB)
        return self.counter()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def paths(mark: dict[str, Any], machine: Machine) -> list[tuple[str, int | None]]:
    """The cgroups of a mark, ours first, and what they count."""
    return [(os.path.relpath(group["path"], machine.groups), group["oom_kill"]) for group in mark["groups"]]


# Which cgroups ------------------------------------------------------------------------------------


def test_version_2_up_to_the_root(machine: Machine) -> None:
    machine.mount("cgroup2")
    machine.belong("0::/pod/box\n")
    machine.v2("pod/box", 3)
    machine.v2("pod", 5)
    (machine.groups / "memory.pressure").touch()
    mark = machine.counter().read()
    assert paths(mark, machine) == [("pod/box", 3), ("pod", 5)], "the root counts nothing"
    assert (mark["boot"], mark["vmstat"]) == ("boot-1", 2)
    assert json.loads(json.dumps(mark)) == mark


def test_version_1_up_to_the_root(machine: Machine) -> None:
    machine.mount("cgroup", "rw,cpu,cpuacct", at="cpu")
    machine.mount("cgroup", "rw,memory", at="memory")
    machine.belong("5:cpu,cpuacct:/other\n4:memory:/pod/box\n")
    machine.v1("memory/pod/box", 3)
    machine.v1("memory/pod", 0)
    machine.v1("memory", 7)
    assert paths(machine.counter().read(), machine) == [("memory/pod/box", 3), ("memory/pod", 0), ("memory", 7)]


def test_both_at_once_and_version_1_has_the_memory(machine: Machine) -> None:
    machine.mount("cgroup2", at="unified")
    machine.mount("cgroup", "rw,memory", at="memory")
    machine.belong("4:memory:/box\n0::/user.slice\n")
    (machine.groups / "unified/user.slice").mkdir(parents=True)
    machine.v1("memory/box", 3)
    assert paths(machine.counter().read(), machine) == [("memory/box", 3)]


def test_both_at_once_and_version_2_has_the_memory(machine: Machine) -> None:
    machine.mount("cgroup", "rw,name=systemd", at="systemd")
    machine.mount("cgroup2", at="unified")
    machine.belong("1:name=systemd:/x\n0::/box\n")
    machine.v2("unified/box", 3)
    assert paths(machine.counter().read(), machine) == [("unified/box", 3)]


@pytest.mark.parametrize(
    ("root", "path"),
    [("/", "/"), ("/docker/0123", "/docker/0123"), ("/docker/0123", "/elsewhere"), ("/..", "/")],
    ids=["namespace", "none", "hidden", "outside"],
)
def test_in_a_container_the_mount_is_our_group(machine: Machine, root: str, path: str) -> None:
    machine.mount("cgroup2", root=root)
    machine.belong(f"0::{path}\n")
    machine.v2("", 3)
    assert paths(machine.counter().read(), machine) == [(".", 3)]


def test_the_mount_of_another_container_comes_last(machine: Machine) -> None:
    machine.mount("cgroup", "rw,memory", root="/docker/other", at="other")
    machine.mount("cgroup", "rw,memory", root="/docker/0123", at="memory")
    machine.belong("4:memory:/docker/0123\n")
    machine.v1("other", 9)
    machine.v1("memory", 3)
    assert paths(machine.counter().read(), machine)[0] == ("memory", 3)


def test_where_nothing_tells_what_is_mounted_it_is_where_it_usually_is(machine: Machine) -> None:
    (machine.proc / "self/mountinfo").unlink()
    machine.belong("0::/box\n")
    machine.v2("box", 3)
    assert paths(machine.counter().read(), machine) == [("box", 3)]


def test_where_there_is_nothing_all_is_unknown(tmp_path: Path) -> None:
    """macOS."""
    counter = oom.OomCounter(tmp_path / "proc", tmp_path / "cgroup", tmp_path / "kmsg")
    mark = counter.read()
    assert (mark["groups"], mark["vmstat"], mark["boot"]) == ([], None, "")
    assert counter.since(mark, [PID]) is None
    assert counter.usage() is None
    assert oom.infer(mark, counter.read(), None) == ""


# After a death ------------------------------------------------------------------------------------


def test_nothing_rose(machine: Machine) -> None:
    counter = machine.in_a_box()
    machine.log(PID)
    assert counter.since(counter.read(), [PID]) is None, "the log is of a process that had the number before"


def test_version_2_counted_one(machine: Machine) -> None:
    counter = machine.in_a_box(limit="50000000")
    mark = json.loads(json.dumps(counter.read()))
    machine.v2("box", 1, "50000000", 49 * MB)
    machine.vmstat(3)
    found = counter.since(mark, [PID])
    assert found is not None
    assert (found.by, found.sure) == ("cgroup", True)
    assert found.text == (
        f"the kernel's OOM killer killed a process of cgroup {machine.groups}/box, "
        "whose limit is 50.0 MB (peak 49.0 MB)"
    )


def test_version_1_counted_one_and_the_limit_is_that_of_a_group_above(machine: Machine) -> None:
    machine.mount("cgroup", "rw,memory")
    machine.belong("4:memory:/job/step\n")
    machine.v1("job/step", 0)
    machine.v1("job", 0, 2 * GB, GB)
    counter = machine.counter()
    mark = counter.read()
    machine.v1("job/step", 1)
    found = counter.since(mark, [PID])
    assert found is not None
    assert (found.by, found.sure) == ("cgroup", True)
    assert found.text.endswith(f"job/step, which {machine.groups}/job limits to 2.00 GB (peak 1.00 GB)")


def test_the_limit_that_was_reached_is_told_not_the_one_that_is_near_now(machine: Machine) -> None:
    machine.mount("cgroup2")
    machine.belong("0::/pod/box\n")
    machine.v2("pod", 0, "60000000", 30 * MB)
    machine.v2("pod/box", 0, "50000000", 1 * MB)
    counter = machine.counter()
    mark = counter.read()
    machine.v2("pod/box", 1, "50000000", 1 * MB)
    (machine.groups / "pod/box/memory.peak").write_text("50000000\n")
    found = counter.since(mark, [PID])
    assert found is not None
    assert found.text.endswith("pod/box, whose limit is 50.0 MB (peak 50.0 MB)")
    assert counter.usage() == (30 * MB, 60 * MB)


def test_a_group_without_a_limit(machine: Machine) -> None:
    counter = machine.in_a_box()
    mark = counter.read()
    machine.v2("box", 1)
    found = counter.since(mark, [PID])
    assert found is not None
    assert found.text.endswith("box, for which no limit is to be seen: the machine may have been full")


def test_the_log_names_the_one_that_the_group_counted(machine: Machine) -> None:
    counter = machine.in_a_box(limit="50000000")
    mark = counter.read()
    machine.v2("box", 1, "50000000")
    machine.log(17, PID)
    found = counter.since(mark, [1, PID])
    assert found is not None
    assert (found.by, found.sure) == ("cgroup", True)
    assert f"killed process {PID} (python (x)) of cgroup" in found.text


def test_the_group_counted_one_that_was_another(machine: Machine) -> None:
    """A session's cgroup is shared by all that the user runs."""
    counter = machine.in_a_box(limit="50000000")
    mark = counter.read()
    machine.v2("box", 1, "50000000")
    machine.log(17)
    found = counter.since(mark, [PID])
    assert found is not None
    assert (found.by, found.sure) == ("cgroup", False)
    assert found.text.endswith("its log names process 17 (python (x)), none of this attempt's")


def test_only_a_group_above_counts_and_it_holds_others_too(machine: Machine) -> None:
    machine.mount("cgroup2")
    machine.belong("0::/pod/box\n")
    (machine.groups / "pod/box").mkdir(parents=True)
    machine.v2("pod", 0, "50000000")
    counter = machine.counter()
    mark = counter.read()
    machine.v2("pod", 1, "50000000")
    found = counter.since(mark, [PID])
    assert found is not None
    assert (found.by, found.sure) == ("cgroup", False)
    machine.log(PID)
    found = counter.since(mark, [PID])
    assert found is not None
    assert found.sure


def test_only_the_log_tells(machine: Machine) -> None:
    counter = machine.in_a_box()
    mark = counter.read()
    machine.vmstat(3)
    machine.log(PID)
    found = counter.since(mark, [PID])
    assert found == oom.OomFinding(
        "kernel", f"the kernel's log says that its OOM killer killed process {PID} (python (x))", sure=True
    )


def test_only_the_machines_counter_tells(machine: Machine) -> None:
    counter = machine.in_a_box()
    mark = counter.read()
    machine.vmstat(3)
    found = counter.since(mark, [PID])
    text = "the kernel's OOM killer killed something on this machine meanwhile"
    assert found == oom.OomFinding("kernel", text, sure=False)
    machine.log(17)
    found = counter.since(mark, [PID])
    assert found == oom.OomFinding("kernel", f"{text}: process 17 (python (x)), none of this attempt's", sure=False)


def test_the_log_of_another_namespace_means_other_processes(machine: Machine) -> None:
    counter = machine.in_a_box()
    mark = counter.read()
    machine.vmstat(3)
    machine.log(PID)
    (machine.proc / "self/ns/pid").unlink()
    os.symlink("pid:[4026532190]", machine.proc / "self/ns/pid")
    found = counter.since(mark, [PID])
    assert found is not None
    assert not found.sure


def test_the_log_of_long_ago_means_others(machine: Machine) -> None:
    counter = machine.in_a_box()
    mark = counter.read() | {"at": 1000.0}
    machine.vmstat(3)
    machine.log(PID, at=990)
    found = counter.since(mark, [PID])
    assert found is not None
    assert not found.sure
    machine.log(PID, at=999.5)
    found = counter.since(mark, [PID])
    assert found is not None
    assert found.sure, "its clock may be a little behind"


def test_a_log_that_is_overwritten_while_it_is_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = machine.in_a_box()
    mark = counter.read()
    machine.vmstat(3)
    machine.log(PID)
    read, failures = os.read, [BrokenPipeError()]

    def overwritten(fd: int, size: int) -> bytes:
        if failures and os.readlink(f"/proc/self/fd/{fd}") == str(machine.kmsg):
            raise failures.pop()
        return read(fd, size)

    monkeypatch.setattr(os, "read", overwritten)
    found = counter.since(mark, [PID])
    assert not failures
    assert found is not None
    assert found.sure


def test_a_kernel_that_counts_nothing_has_a_log(machine: Machine) -> None:
    (machine.proc / "vmstat").write_text("nr_free_pages 17\n")
    counter = machine.counter()
    mark = counter.read()
    assert counter.since(mark, [PID]) is None
    machine.log(PID)
    found = counter.since(mark, [PID])
    assert found is not None
    assert found.sure


# How full -----------------------------------------------------------------------------------------


def test_the_group_with_least_left_counts_and_clean_pages_are_free(machine: Machine) -> None:
    machine.mount("cgroup2")
    machine.belong("0::/pod/box\n")
    machine.v2("pod/box", 0, str(GB), 300 * MB, clean=100 * MB)
    machine.v2("pod", 0, str(2 * GB), 1900 * MB, clean=200 * MB)
    assert machine.counter().usage() == (1700 * MB, 2 * GB)
    machine.v2("pod/box", 0, str(GB), 900 * MB)
    assert machine.counter().usage() == (900 * MB, GB)


def test_version_1_has_a_number_for_no_limit(machine: Machine) -> None:
    machine.mount("cgroup", "rw,memory")
    machine.belong("4:memory:/box\n")
    machine.v1("box", 0, UNLIMITED, 300 * MB)
    assert machine.counter().usage() is None
    machine.v1("", 0, GB, 500 * MB, clean=100 * MB)
    assert machine.counter().usage() == (400 * MB, GB)


# After the death of a whole cgroup ----------------------------------------------------------------


def mark(kills: int | None, *, path: str = "/box", number: int = 1, boot: str = "b", above: int = 0) -> dict[str, Any]:
    """Of a cgroup in /pod."""
    return {
        "boot": boot,
        "at": 0.0,
        "vmstat": 0,
        "groups": [
            {"path": path, "version": 2, "id": number, "oom_kill": kills},
            {"path": "/pod", "version": 2, "id": 99, "oom_kill": above},
        ],
    }


FULL, HALF = (97 * MB, 100 * MB), (50 * MB, 100 * MB)
PROBABLY = "probably out of memory: 97 % of its limit of 100.0 MB when last looked at"
GONE = "probably out of memory: its cgroup is gone, and cgroup /pod, which held it, counts a kill since"


@pytest.mark.parametrize(
    ("now", "usage", "text"),
    [
        (mark(3), HALF, "out of memory: the kernel's OOM killer took 2 more of cgroup /box since, by its counter"),
        (mark(3), None, "out of memory: the kernel's OOM killer took 2 more of cgroup /box since, by its counter"),
        (mark(1), FULL, ""),
        (mark(0, number=2), FULL, PROBABLY),
        (mark(0, number=2), HALF, ""),
        (mark(0, number=2), None, ""),
        (mark(5, number=2), HALF, ""),
        (mark(0), FULL, PROBABLY),
        (mark(1, path="/other"), FULL, PROBABLY),
        (mark(1, path="/other"), (90 * MB, 100 * MB), PROBABLY.replace("97", "90")),
        (mark(1, path="/other"), (899 * MB, GB), ""),
        (mark(0, number=2, above=1), FULL, f"{PROBABLY}, and cgroup /pod counts a kill since"),
        (mark(0, number=2, above=1), HALF, GONE),
        (mark(1, above=1), HALF, ""),
        (mark(0, number=2, boot="c"), FULL, ""),
        (mark(3, boot="c"), FULL, ""),
        ({"boot": "b", "groups": []}, FULL, PROBABLY),
        ({}, FULL, PROBABLY),
    ],
)
def test_the_next_parent_infers(now: dict[str, Any], usage: tuple[int, int] | None, text: str) -> None:
    assert oom.infer(mark(1), now, usage) == text


def test_without_a_mark_only_what_was_used_tells() -> None:
    assert oom.infer({}, mark(3), HALF) == ""
    assert oom.infer({}, mark(3), FULL) == PROBABLY


def test_version_1_does_not_count_for_those_below() -> None:
    then, now = mark(0), mark(0, number=2, above=1)
    for each in (then, now):
        each["groups"][1]["version"] = 1
    assert oom.infer(then, now, None) == ""


# A real one ---------------------------------------------------------------------------------------

PARENT = """
import json, os, subprocess, sys
from ksupervise.parent.watch import oom
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
counter = oom.OomCounter()
mark = counter.read()
usage = counter.usage()
greedy = (
    "import sys; open('/proc/self/oom_score_adj', 'w').write('1000'); print('ready', flush=True);"
    "sys.stdin.read(1); block = bytearray(b'x') * (200 << 20); print('not killed')"
)
child = subprocess.Popen([sys.executable, "-c", greedy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
quiet = counter.since(mark, [child.pid])
out, _ = child.communicate(b"x", timeout=60)
found = counter.since(mark, [child.pid])
stranger = counter.since(mark, [1])
print(json.dumps({
    "pid": child.pid, "code": child.returncode, "out": out.decode(), "quiet": quiet is None, "usage": usage,
    "found": vars(found) if found else None, "stranger": vars(stranger) if stranger else None,
    "mark": mark, "now": counter.read(),
}))
"""
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
LIMIT = 50 * 1024 * 1024


class Box:
    """A real cgroup of 50 MiB."""

    def __init__(self) -> None:
        self.version_1 = (V1 / "memory.limit_in_bytes").exists()
        self.folder = (V1 if self.version_1 else V2) / f"ksupervise-test-{os.getpid()}"

    def make(self) -> None:
        self.folder.mkdir()
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        for name in names if self.version_1 else ("memory.max", "memory.swap.max"):
            value = 0 if name == "memory.swap.max" else LIMIT
            if (self.folder / name).exists():  # without swap there are no files for it
                (self.folder / name).write_text(str(value))
        if not any((self.folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
            raise OSError("memory is not accounted for below the root")

    def remove(self) -> None:
        if self.folder.exists():
            self.folder.rmdir()


@pytest.fixture
def box() -> Iterator[Box]:
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("a cgroup of one's own takes root, on Linux")
    found = Box()
    try:
        found.make()
    except OSError as error:
        found.remove()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield found
    found.remove()


def test_a_real_process_killed_by_the_real_killer_is_named(box: Box) -> None:
    command = [sys.executable, "-c", PARENT, str(box.folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert (seen["code"], seen["out"]) == (-9, "")
    assert seen["quiet"], "nothing had been killed yet"
    used, limit = seen["usage"]
    assert limit == LIMIT
    assert 0 < used < LIMIT
    found = seen["found"]
    assert (found["by"], found["sure"]) == ("cgroup", True)
    assert f"of cgroup {box.folder}, whose limit is 52.4 MB (peak 52.4 MB)" in found["text"]
    if log_is_readable():
        assert f"process {seen['pid']} (python" in found["text"]
        assert not seen["stranger"]["sure"]
        assert f"its log names process {seen['pid']} (python" in seen["stranger"]["text"]
    then, now = seen["mark"], seen["now"]
    text = f"out of memory: the kernel's OOM killer took 1 more of cgroup {box.folder} since, by its counter"
    assert oom.infer(then, now, None) == text
    anew = now | {"groups": made_anew(box, then)}
    assert oom.infer(then, anew, None) == ""
    assert oom.infer(then, anew, (51 * MB, LIMIT)).startswith("probably out of memory: 97 %")


def made_anew(box: Box, mark: dict[str, Any]) -> list[dict[str, Any]]:
    """The cgroups of a mark once ours was removed and made under the same name, as for a container started again."""
    box.remove()
    box.make()
    own, *above = mark["groups"]
    return [own | {"id": box.folder.stat().st_ino}, *above]


def log_is_readable() -> bool:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        return os.readlink("/proc/self/ns/pid") == FIRST_NAMESPACE
    except OSError:
        return False
