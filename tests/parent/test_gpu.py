"""Graphics cards as nvidia-smi tells of them. Here it is a program of ours that answers as the real one does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ksupervise.parent.watch import gpu

MIB = 1024 * 1024
A100 = "0, GPU-aaaa1111-0000, NVIDIA A100-SXM4-80GB, {used}, {busy}\n"
TWO = "0, GPU-aaaa1111-0000, NVIDIA A100-SXM4-80GB, 1000, 7\n1, GPU-bbbb2222-0000, NVIDIA A100-SXM4-80GB, 3000, 93\n"
MIXED = TWO.replace("A100-SXM4-80GB, 3000", "T400 4GB, 3000")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


class Smi:
    """A nvidia-smi that answers what `apps` and `cards` say, and says `status`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "bin" / "nvidia-smi"
        self._program.parent.mkdir()
        self.write(
            'case "$1 $2" in\n'
            f'"--query-compute-apps=pid,used_memory --format=csv,noheader,nounits") cat {folder}/apps ;;\n'
            '"--query-gpu=index,uuid,name,memory.used,utilization.gpu --format=csv,noheader,nounits") '
            f"cat {folder}/cards ;;\n"
            "*) echo 'Field is not a valid field to query.'; exit 2 ;;\n"
            "esac\n"
            f"exit $(cat {folder}/status)\n"
        )
        self.answer(apps="", cards=A100.format(used=0, busy=0))

    def write(self, program: str) -> None:
        self._program.write_text(f"#!/bin/sh\n{program}")
        self._program.chmod(0o755)

    def answer(self, apps: str | None = None, cards: str | None = None, status: int = 0) -> None:
        for name, text in (("apps", apps), ("cards", cards), ("status", str(status))):
            if text is not None:
                (self._folder / name).write_text(text)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    found = Smi(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return found


class Time:
    """A clock that moves when somebody sleeps; `then` happens during the sleeps, one after the other."""

    def __init__(self, *then: Callable[[], None]) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._then = list(then)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        if self._then:
            self._then.pop(0)()


def await_release(time: Time, *, pids: tuple[int, ...] = (77,), **options: int) -> tuple[float | None, str]:
    """What is returned, and what is said."""
    said: list[str] = []
    baseline = options.get("baseline")
    waited = gpu.await_release(
        pids, options.get("seconds", 30), baseline=baseline, say=said.append, clock=time.clock, sleep=time.sleep
    )
    return waited, "\n".join(said)


# Asking -------------------------------------------------------------------------------------------


def test_without_nvidia_smi_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not gpu.available()
    assert (gpu.processes(), gpu.used(), gpu.utilization()) == (None, None, None)
    assert await_release(Time()) == (None, "")


def test_who_holds_memory(smi: Smi) -> None:
    assert gpu.available()
    smi.answer(apps="77, 1024\n88, 10\n77, 1\n")
    assert gpu.processes() == {77: 1025 * MIB, 88: 10 * MIB}
    smi.answer(apps="")
    assert gpu.processes() == {}


@pytest.mark.parametrize("text", ["[N/A]", "[Not Supported]", "[GPU requires reset]", "ERR!", ""])
def test_what_a_card_does_not_tell(smi: Smi, text: str) -> None:
    smi.answer(apps=f"77, {text}\n", cards=A100.format(used=text, busy=text))
    assert gpu.processes() == {77: 0}, "it holds some"
    assert gpu.used() is None
    assert gpu.utilization() is None


def test_lines_that_are_none_are_passed_over(smi: Smi) -> None:
    smi.answer(apps="WARNING: infoROM is corrupted at gpu 0000:00:1E.0\n77, 5\n[N/A], 3\n")
    assert gpu.processes() == {77: 5 * MIB}
    smi.answer(cards="WARNING: a, b, c, d\n" + A100.format(used=5, busy=50))
    assert gpu.used() == 5 * MIB


@pytest.mark.parametrize("status", [2, 6, 9, 15, 18, 255])
def test_an_error_is_no_answer(smi: Smi, status: int) -> None:
    smi.answer(apps="No devices were found\n", cards=A100.format(used=5, busy=50), status=status)
    assert (gpu.processes(), gpu.used(), gpu.utilization()) == (None, None, None)


def test_no_card_is_no_answer(smi: Smi) -> None:
    smi.answer(cards="No devices were found\n", apps="")
    assert gpu.used() is None


@pytest.mark.parametrize("program", ["sleep 600", "sleep 600 & wait", "trap '' TERM; sleep 600; true"])
def test_one_that_hangs_is_given_up(smi: Smi, program: str, tmp_path: Path) -> None:
    smi.write(f"echo $$ > {tmp_path}/pid\n{program}\n")
    assert gpu.processes(timeout=1.0) is None
    psutil.wait_procs(left(int((tmp_path / "pid").read_text())), timeout=10)
    assert not left(int((tmp_path / "pid").read_text()))


def left(pid: int) -> list[psutil.Process]:
    """The process, if it lives."""
    try:
        process = psutil.Process(pid)
        return [] if process.status() == psutil.STATUS_ZOMBIE else [process]
    except psutil.NoSuchProcess:
        return []


def test_its_status_counts_also_where_somebody_else_collects_it(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the loop does with all orphans: then Popen takes it for a success."""
    smi.answer(apps="77, 5\n", status=15)
    communicate = subprocess.Popen.communicate

    def collected(self: subprocess.Popen[bytes], timeout: float | None = None) -> object:
        answer = communicate(self, timeout=timeout)
        self.returncode = 0
        return answer

    monkeypatch.setattr(subprocess.Popen, "communicate", collected)
    assert gpu.processes() is None


# Which cards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "busy", "used"),
    [
        ("0", 0.07, 1000),
        ("1", 0.93, 3000),
        ("1,0", 0.93, 4000),
        (" 0 , 1 ", 0.93, 4000),
        ("GPU-aaaa1111-0000", 0.07, 1000),
        ("GPU-bb", 0.93, 3000),
        ("0,7,1", 0.07, 1000),
        ("-1", None, None),
        ("", None, None),
        ("GPU", None, None),
        ("MIG-GPU-aaaa1111-0000/1/0", 0.93, 4000),
    ],
)
def test_the_cards_that_a_child_sees(smi: Smi, visible: str, busy: float | None, used: int | None) -> None:
    smi.answer(cards=TWO)
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu.utilization(environment=environment) == busy
    assert gpu.used(environment=environment) == (None if used is None else used * MIB)


def test_all_cards_where_nothing_is_said(smi: Smi) -> None:
    smi.answer(cards=TWO)
    assert gpu.utilization() == 0.93
    assert gpu.used() == 4000 * MIB


def test_cards_of_different_kinds_may_be_numbered_otherwise(smi: Smi) -> None:
    smi.answer(cards=MIXED)
    assert gpu.utilization(environment={"CUDA_VISIBLE_DEVICES": "0"}) == 0.93
    ordered = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert gpu.utilization(environment=ordered) == 0.07
    assert gpu.utilization(environment={"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}) == 0.07


# Waiting ------------------------------------------------------------------------------------------


def test_nothing_is_held(smi: Smi) -> None:
    smi.answer(cards=A100.format(used=700, busy=0))
    time = Time()
    assert await_release(time, baseline=600 * MIB) == (0.0, "")
    assert not time.slept


def test_without_a_card_nobody_waits(smi: Smi) -> None:
    smi.answer(apps="No devices were found\n", status=6)
    time = Time()
    assert await_release(time) == (None, "")
    assert not time.slept


def test_a_dead_process_that_still_holds_memory_is_awaited(smi: Smi) -> None:
    smi.answer(apps="77, 4000\n88, 5\n", cards=A100.format(used=4600, busy=0))
    time = Time(lambda: None, lambda: smi.answer(apps="88, 5\n", cards=A100.format(used=600, busy=0)))
    assert await_release(time, baseline=600 * MIB) == (0.75, "")
    assert time.slept == [0.25, 0.5]


def test_where_no_baseline_is_known_it_must_have_stopped_falling(smi: Smi) -> None:
    smi.answer(apps="", cards=A100.format(used=9000, busy=0))
    falling = [lambda size=size: smi.answer(cards=A100.format(used=size, busy=0)) for size in (5000, 700, 695)]
    time = Time(*falling)
    assert await_release(time) == (1.75, "")
    assert time.slept == [0.25, 0.5, 1.0]


def test_in_a_container_nobody_is_listed_and_memory_has_to_come_back(smi: Smi) -> None:
    smi.answer(apps="", cards=A100.format(used=9000, busy=0))
    back = [lambda size=size: smi.answer(cards=A100.format(used=size, busy=0)) for size in (9000, 9000, 9000, 1100)]
    time = Time(*back)
    assert await_release(time, baseline=600 * MIB) == (3.75, ""), "9000 is still, and yet not over"
    assert time.slept == [0.25, 0.5, 1.0, 2.0]


def test_memory_of_others_is_not_awaited_where_they_are_listed(smi: Smi) -> None:
    smi.answer(apps="88, 8000\n", cards=A100.format(used=9000, busy=0))
    assert await_release(Time(), baseline=600 * MIB) == (0.25, "")


def test_a_card_that_does_not_tell_how_much_is_in_use(smi: Smi) -> None:
    smi.answer(apps="77, [N/A]\n", cards=A100.format(used="[N/A]", busy="[N/A]"))
    time = Time(lambda: smi.answer(apps=""))
    assert await_release(time, baseline=600 * MIB) == (0.25, "")


def test_the_wait_is_bounded_and_says_who_still_holds_what(smi: Smi) -> None:
    smi.answer(apps="77, 4000\n", cards=A100.format(used=4600, busy=0))
    time = Time()
    waited, said = await_release(time, seconds=8, pids=(76, 77))
    assert waited == 8.0
    assert time.slept == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 0.25], (
        "twice as long each time, two seconds at most, never beyond"
    )
    assert "process 77 (4.19 GB)" in said
    assert "76" not in said


def test_the_wait_is_bounded_where_nobody_is_listed(smi: Smi) -> None:
    smi.answer(apps="", cards=A100.format(used=4600, busy=0))
    waited, said = await_release(Time(), seconds=5, baseline=600 * MIB)
    assert waited == 5.0
    assert said.startswith("4.82 GB of GPU memory are in use, 4.19 GB more than at the start")


def test_one_that_stops_answering_is_said(smi: Smi) -> None:
    smi.answer(apps="77, 4000\n")
    waited, said = await_release(Time(lambda: smi.answer(status=15)), seconds=5)
    assert waited == 5.0
    assert "no longer answers" in said
