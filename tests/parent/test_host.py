"""Which boot this is, and clocks: one that stands still while the machine is suspended, and one that does not."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ksupervise.parent.watch import host

A_DAY = 86400


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_boot_has_a_name() -> None:
    assert host.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(host.boot_id()) == 36


def test_without_proc_it_has_none(tmp_path: Path) -> None:
    assert host.boot_id(tmp_path) == ""


def test_a_proc_of_another_machine(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("0b0e7e1c-6f0e\n")
    assert host.boot_id(tmp_path) == "0b0e7e1c-6f0e"
    (tmp_path / "sys/kernel/random/boot_id").write_bytes(b"\xff\xfe")
    assert host.boot_id(tmp_path) == ""


def test_the_machine_has_a_name() -> None:
    assert host.hostname() == socket.gethostname()


@pytest.mark.parametrize(
    ("a", "b", "same"), [("x", "x", True), ("x", "y", False), ("", "x", True), ("x", "", True), ("", "", True)]
)
def test_only_two_known_ids_tell_two_boots_apart(a: str, b: str, same: bool) -> None:
    assert host.same_boot(a, b) is same


def test_the_clock_goes_forward() -> None:
    first = host.clock()
    assert host.clock() >= first


def test_without_a_clock_that_runs_on_it_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    before = time.monotonic()
    assert before <= host.clock() <= time.monotonic()


def test_how_long_a_machine_slept() -> None:
    assert host.suspended_between(100.0, 40.0, 3710.0, 50.0) == pytest.approx(3600.0)
    assert host.suspended_between(100.0, 40.0, 110.0, 50.0) == 0.0
    assert host.suspended_between(100.0, 40.0, 110.0, 50.001) == 0.0, "read a moment apart"


def test_the_clock_is_the_one_that_suspension_moves() -> None:
    """A time namespace moves it without the other, as a suspension of a day does."""
    unshare = shutil.which("unshare")
    if unshare is None or sys.platform != "linux":
        pytest.skip("no unshare here")
    moved = [unshare, "--time", "--boottime", str(A_DAY)]
    tried = subprocess.run([*moved, "true"], capture_output=True, text=True, timeout=60, check=False)
    if tried.returncode:
        pytest.skip(f"no time namespace can be made here: {tried.stderr.strip()}")
    program = "import json, time\nfrom ksupervise.parent.watch import host\n"
    program += "print(json.dumps([host.clock(), time.monotonic()]))"
    before = host.clock(), time.monotonic()
    result = subprocess.run([*moved, sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert host.suspended_between(*before, *json.loads(result.stdout)) == pytest.approx(A_DAY, abs=1.0)
