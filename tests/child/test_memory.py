"""How much memory may be taken: as the machine tells it, and as a cgroup limits it, both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksupervise.child import memory

MEGABYTE = 1024 * 1024


class Proc:
    """A /proc and a hierarchy of cgroups, as files."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.groups = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.write(self.proc / "meminfo", "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mount(self, kind: str, options: str, root: str = "/") -> None:
        """One hierarchy, of which `root` is seen."""
        line = f"30 23 0:26 {root} {self.groups} rw,nosuid - {kind} cgroup {options}\n"
        self.write(self.proc / "self" / "mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + line)

    def v2(self, path: str, limit: str, current: int, clean: int = 0) -> None:
        folder = self.groups / path
        self.write(folder / "memory.max", f"{limit}\n")
        self.write(folder / "memory.current", f"{current}\n")
        self.write(folder / "memory.stat", f"anon 17\ninactive_file {clean}\nactive_file 5\n")

    def available(self) -> int | None:
        return memory.available(str(self.proc))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_without_a_limit_it_is_the_machines(proc: Proc) -> None:
    assert proc.available() == 8_000_000 * 1024


def test_where_nothing_tells_it_is_unknown(tmp_path: Path) -> None:
    assert memory.available(str(tmp_path / "none")) is None


def test_the_tightest_of_all_groups_above_counts(proc: Proc) -> None:
    proc.mount("cgroup2", "rw")
    proc.write(proc.proc / "self" / "cgroup", "0::/pod/box\n")
    proc.v2("pod", "1000000000", 400_000_000)
    proc.v2("pod/box", "max", 300_000_000)
    assert proc.available() == 600_000_000


def test_clean_pages_of_files_count_as_free(proc: Proc) -> None:
    proc.mount("cgroup2", "rw")
    proc.write(proc.proc / "self" / "cgroup", "0::/box\n")
    proc.v2("box", "1000000000", 900_000_000, clean=200_000_000)
    assert proc.available() == 300_000_000


def test_inside_a_container_the_mount_is_our_group(proc: Proc) -> None:
    """/proc/self/cgroup names a path from outside, which is not to be seen here."""
    proc.mount("cgroup2", "rw", root="/docker/0123")
    proc.write(proc.proc / "self" / "cgroup", "0::/docker/0123\n")
    proc.v2("", "500000000", 100_000_000)
    assert proc.available() == 400_000_000


def test_a_path_that_cannot_be_seen_is_taken_for_the_mount(proc: Proc) -> None:
    proc.mount("cgroup2", "rw", root="/docker/0123")
    proc.write(proc.proc / "self" / "cgroup", "0::/elsewhere\n")
    proc.v2("", "500000000", 100_000_000)
    assert proc.available() == 400_000_000


def test_version_1(proc: Proc) -> None:
    proc.mount("cgroup", "rw,memory")
    proc.write(proc.proc / "self" / "cgroup", "5:cpu,cpuacct:/other\n4:memory:/box\n")
    folder = proc.groups / "box"
    proc.write(folder / "memory.limit_in_bytes", "800000000\n")
    proc.write(folder / "memory.usage_in_bytes", "500000000\n")
    proc.write(folder / "memory.stat", "cache 1\ntotal_inactive_file 100000000\n")
    assert proc.available() == 400_000_000


def test_more_used_than_allowed_is_nothing(proc: Proc) -> None:
    proc.mount("cgroup2", "rw")
    proc.write(proc.proc / "self" / "cgroup", "0::/box\n")
    proc.v2("box", "100", 200)
    assert proc.available() == 0


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "a:b\n"])
def test_what_cannot_be_read_is_passed_over(proc: Proc, text: str) -> None:
    proc.mount("cgroup2", "rw")
    proc.write(proc.proc / "self" / "cgroup", text)
    assert proc.available() == 8_000_000 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_an_address_space_that_is_limited() -> None:
    program = (
        "import resource; from ksupervise.child import memory;"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20),) * 2); print(memory.available())"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60).stdout
    assert 95 * MEGABYTE < int(out) <= 100 * MEGABYTE


V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="a cgroup of one's own takes root")
def test_a_real_group() -> None:
    """The kernel's own files, whichever version there is."""
    version_1 = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if version_1 else V2) / f"ksupervise-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
        limit.write_text(str(300 * MEGABYTE))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        program = (
            "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()));"
            "from ksupervise.child import memory;"
            "before = memory.available(); block = b'x' * (100 << 20); print(before, memory.available())"
        )
        command = [sys.executable, "-c", program, str(group)]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        before, after = map(int, out.split())
        assert 200 * MEGABYTE < before <= 300 * MEGABYTE
        assert 90 * MEGABYTE < before - after < 110 * MEGABYTE
    finally:
        group.rmdir()
