"""Every rehearsal on a real training: what it reports is what happened, and nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.keras_runs.conftest import LIMIT

from ksupervise.parent.rehearse import CannotRehearse, Rehearsal, deeds, on_new, on_running
from ksupervise.parent.rehearse.scratch import Disk, strays
from ksupervise.parent.rehearse.squeeze import Squeeze
from ksupervise.parent.stop import stop
from ksupervise.parent.watch.oom import OomCounter
from ksupervise.report import rehearsal as report

T = TypeVar("T")

SCRIPT = Path(__file__).with_name("checkpointing_script.py")
WAIT = 60.0  # seconds; on a loaded machine


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made; afterwards nothing of a rehearsal may be left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("EPOCHS", "100000")  # longer than any test
    yield folder
    assert not list(folder.iterdir())
    assert "ksupervise-rehearsal" not in Path("/proc/self/mounts").read_text()
    groups = OomCounter().read()["groups"]
    assert not [path for group in groups[:2] for path in Path(group["path"]).glob("ksupervise-rehearsal-*")]


@pytest.fixture
def command(zygote: list[str], tmp_path: Path) -> list[str]:
    """A training that goes on and on."""
    return [*zygote, str(SCRIPT), "nothing", str(tmp_path / "out")]


def until(found: Callable[[], T | None], what: str) -> T:
    """The first true answer."""
    end = time.monotonic() + LIMIT
    while not (answer := found()):
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.01)
    return answer


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    """The journal's records of that name."""
    with contextlib.suppress(FileNotFoundError):
        lines = (directory / "journal.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == name]
    return []


def made(what: str, command: list[str], **arguments: Any) -> Rehearsal:
    """On a new run."""
    given = {"store": None, "wait": WAIT, "keep": False, "say": lambda text: None, **arguments}
    found = on_new(what, command, **given)
    assert not found.failure, report.as_text(found)
    assert report.as_text(found).splitlines()[-1].startswith("survived: ")
    json.dumps(report.as_json(found))
    return found


# A new run ----------------------------------------------------------------------------------------


def test_what_is_reported_is_what_the_journal_has(command: list[str], tmp_path: Path) -> None:
    found = made("crash", command, store=tmp_path / "store", keep=True)
    run = Path(found.kept)
    assert run.parent == tmp_path / "store"
    first, second = events(run, "attempt_ended")
    assert (first["cause"], first["last_step"], first["detail"]) == (found.cause, found.step, found.detail)
    assert found.cause == "signal"
    assert second["cause"] == "interrupted", "it was stopped, in good order"
    [resumed] = events(run, "resumed")
    assert (resumed["step"], resumed["guarantee"]) == (found.resumed_from, found.guarantee)
    assert found.resumed_from is not None
    assert found.lost_steps == found.step - found.resumed_from
    assert found.resumed_from >= found.disk_step > 0
    assert found.lost_seconds is not None
    assert None not in (found.noticed, found.relaunched, found.training, found.back)
    assert found.noticed <= found.relaunched <= found.training <= found.back  # type: ignore[operator]
    assert second["last_step"] > found.step
    assert not strays(run)


def test_preempt(command: list[str]) -> None:
    found = made("preempt", command)
    assert (found.cause, found.lost_steps, found.resumed_from) == ("preempted", 0, found.step)
    assert report.summary(found).startswith("survived: no work was lost; back after ")


def test_lost(command: list[str]) -> None:
    found = made("lost", command)
    assert found.cause == "parent_lost"
    assert found.resumed_from == found.disk_step, "memory went with it"
    assert "lost with the parent" in report.as_text(found)


def test_hang(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeds, "STALL_FLOOR", 3.0)
    found = made("hang", command)
    assert found.cause == "stalled"
    assert found.noticed is not None
    assert found.noticed > 3.0
    assert "no sign of life" in found.detail


def test_out_of_memory(command: list[str]) -> None:
    try:
        Squeeze(OomCounter().read()["groups"]).remove()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    found = made("oom", command)
    assert (found.cause, found.notes) == ("out_of_memory", ())
    assert "OOM killer killed process" in found.detail


def test_out_of_memory_where_no_cgroup_can_be_made(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OomCounter, "read", lambda self: {"groups": []})
    found = made("oom", command)
    assert found.cause == "signal"
    [note] = found.notes
    assert note.startswith("no cgroup can be made here")
    assert "a SIGKILL stood in for the kernel's out-of-memory killer" in note


def test_disk_full(command: list[str], scratch: Path) -> None:
    (scratch / "trial").mkdir()
    try:
        Disk(scratch / "trial").close()
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    finally:
        (scratch / "trial").rmdir()
    found = made("disk-full", command)
    assert found.refused > 0
    assert found.steps_meanwhile >= 3
    assert "No space left on device" in found.detail
    assert found.back is not None
    assert found.back > (found.noticed or 0.0)


def test_a_training_that_does_not_survive(zygote: list[str], tmp_path: Path) -> None:
    """It trains in its first life only."""
    script = tmp_path / "once.py"
    text = f"import os\nif os.environ['KSUPERVISE_ATTEMPT'] != '1':\n    raise SystemExit(9)\n{SCRIPT.read_text()}"
    script.write_text(text)
    command = [*zygote, str(script), "nothing", str(tmp_path / "out")]
    found = on_new("crash", command, store=None, wait=WAIT, keep=False, say=lambda text: None)
    assert "the run gave up: exit code 9" in found.failure
    assert report.exit_code(found) == 1
    assert report.as_text(found).splitlines()[-1].startswith("NOT survived: the run gave up: exit code 9")


# A run that is going on ---------------------------------------------------------------------------


class Going:
    """A run that somebody else supervises, and calls again as often as it exits with 75 or is killed."""

    def __init__(self, store: Path, command: list[str]) -> None:
        self.directory = store / "job"
        options = ["--store", str(store), "--name", "job", "--every", "1s", "--stall", "3s"]
        line = shlex.join([sys.executable, "-m", "ksupervise", *options, *command])
        program = f"while :; do {line}; code=$?; case $code in 75|137) ;; *) exit $code;; esac; done"
        self._shell = subprocess.Popen(
            ["sh", "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: events(self.directory, "claimed"), "training")

    def rehearse(self, what: str, *, yes: bool = False) -> Rehearsal:
        """Once it is inside its fit."""

        def tried() -> Rehearsal | None:
            try:
                return on_running(self.directory, what, wait=WAIT, yes=yes, say=lambda text: None)
            except CannotRehearse as refusal:
                if "inside no fit" in str(refusal):
                    return None
                raise

        found = until(tried, "fit")
        assert not found.failure, report.as_text(found)
        return found

    def close(self) -> None:
        """It is stopped, in good order if that is possible."""
        with contextlib.suppress(Exception):
            stop(self.directory)
        try:
            assert self._shell.wait(WAIT) == 130
        finally:
            for pid in [*strays(self.directory), self._shell.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._shell.wait()


@pytest.fixture
def going(command: list[str], tmp_path: Path) -> Iterator[Going]:
    """A run that is going on; whatever was done to it, it goes on until it is stopped."""
    run = Going(tmp_path / "store", command)
    yield run
    run.close()


def test_a_crash_and_a_hang_of_a_run_that_is_going_on(going: Going) -> None:
    crash = going.rehearse("crash")
    hang = going.rehearse("hang")
    assert [each["cause"] for each in events(going.directory, "attempt_ended")] == ["signal", "stalled"]
    assert (crash.cause, hang.cause, hang.attempt) == ("signal", "stalled", 2)
    assert "3 s of silence are allowed" in hang.deed
    assert hang.notes == ()


def test_the_parent_of_a_run_that_is_going_on_is_called_again_by_somebody_else(going: Going) -> None:
    preempt = going.rehearse("preempt", yes=True)
    lost = going.rehearse("lost", yes=True)
    assert (preempt.cause, preempt.lost_steps) == ("preempted", 0)
    assert (lost.cause, lost.attempt) == ("parent_lost", 2)
    assert len(events(going.directory, "supervised")) == 3


def test_a_full_disk_under_a_run_that_is_going_on_is_played_by_its_parent(going: Going) -> None:
    kept = until(lambda: sorted((going.directory / "checkpoints").iterdir()), "checkpoint")
    found = going.rehearse("disk-full")
    assert found.refused > 0
    assert "a rehearsal of it" in found.detail
    [note] = found.notes
    assert "the disk was not full" in note
    assert not events(going.directory, "freed")
    assert not events(going.directory, "attempt_ended")
    assert kept
