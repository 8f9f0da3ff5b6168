"""A machine is lost with its disk: the next one has only the replica, and the run ends with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.keras_runs.conftest import LIMIT, SCRIPT, Laboratory

CASE = "tfdata"
STEPS = 80


@dataclass
class Machine:
    """One with a disk of its own, a replica that it shares, and the zygote to launch with."""

    folder: Path
    replica: Path
    launcher: list[str]
    out: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *options: str) -> list[str]:
        front = [sys.executable, "-m", "ksupervise", "--store", str(self.store), "--name", "job", "--every", "50ms"]
        return [*front, "--replica", str(self.replica), *options, *self.launcher, str(SCRIPT), CASE, str(self.out)]

    def run(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    @contextmanager
    def running(self, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        self.folder.mkdir(exist_ok=True)
        with (
            (self.folder / "output.txt").open("wb") as output,
            subprocess.Popen(
                self.command(),
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ) as parent,
        ):
            try:
                yield parent
            finally:
                self.die(parent)

    def die(self, parent: subprocess.Popen[bytes]) -> None:
        """All at once: nobody saves anything."""
        # The trainer is the zygote's child: a stopped one would outlive us all.
        pids = [event["pid"] for kind in ("launched", "claimed") for event in self.events(kind)]
        for pid in (parent.pid, *pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        parent.wait()

    def lose(self) -> None:
        """The machine is gone, with its disk."""
        shutil.rmtree(self.store)

    def events(self, kind: str) -> list[dict[str, Any]]:
        try:
            lines = (self.store / "job" / "journal.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "ksupervise", "status", "job", "--store", str(self.store), "--json"]
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LIMIT).stdout))


def soon(condition: Callable[[], Any], parent: subprocess.Popen[bytes]) -> Any:
    """What `condition` returns once it is true."""
    end = time.monotonic() + LIMIT
    while not (found := condition()):
        assert parent.poll() is None, "it ended before"
        assert time.monotonic() < end
        os.sched_yield()
    return found


@pytest.fixture
def machine(tmp_path: Path, zygote: list[str]) -> Machine:
    return Machine(tmp_path / "one", tmp_path / "My Drive" / "model", zygote, tmp_path / "out")


def result(machine: Machine) -> dict[str, Any]:
    return dict(json.loads(Path(f"{machine.out}.json").read_text()))


def replicated(machine: Machine, beyond: int = 0) -> list[int]:
    """Steps of what the replica holds."""
    found = machine.replica.glob("job/*/checkpoints/*/MANIFEST.json")
    steps = []
    for path in found:
        try:
            steps.append(json.loads(path.read_text())["position"]["step"])
        except (OSError, ValueError):
            continue  # being written, or being removed
    return [step for step in steps if step > beyond]


def test_a_lost_machine_costs_what_was_not_replicated_yet(
    machine: Machine, laboratory: Laboratory, zygote: list[str], tmp_path: Path
) -> None:
    plain = laboratory.plain(CASE)
    # It stands still at step 30; the machine goes when the replica has something.
    with machine.running(INTERRUPT="batch:30", WITH="SIGSTOP") as parent:
        soon(lambda: replicated(machine), parent)
        machine.die(parent)
    machine.lose()
    another = Machine(tmp_path / "another", machine.replica, zygote, machine.out)
    held = max(replicated(machine))
    done = another.run(INTERRUPT="never:0")
    assert done.returncode == 0, done.stdout
    assert f"has step {held} of this run" in done.stdout
    assert result(another) == plain.result
    status = another.status()
    assert [attempt["cause"] for attempt in status["attempts"]] == ["lost", "completed"] or [
        attempt["cause"] for attempt in status["attempts"]
    ] == ["parent_lost", "completed"]
    assert status["attempts"][1]["resumed_from"] == held
    (place,) = status["replicas"]
    assert (place["state"], place["behind"]) == ("uploaded", 0), done.stdout


def test_two_machines_never_train_one_run(machine: Machine, zygote: list[str], tmp_path: Path) -> None:
    with machine.running(INTERRUPT="batch:30", WITH="SIGSTOP") as parent:
        soon(lambda: replicated(machine), parent)
        another = Machine(tmp_path / "another", machine.replica, zygote, tmp_path / "out2")
        done = another.run()
        assert done.returncode == 75, done.stdout
        assert parent.poll() is None
        assert "is being trained by" in done.stdout
        assert not list((another.store / "job" / "checkpoints").iterdir()), "nothing is fetched for nothing"
        assert not (another.store / "job" / "run.json").exists(), "nor is it a run here"


def test_a_replica_that_cannot_be_written_never_ends_training(machine: Machine) -> None:
    machine.replica.parent.mkdir(parents=True)
    machine.replica.write_text("a file is in the way")
    done = machine.run("--fresh")
    assert done.returncode == 0, done.stdout
    assert str(machine.replica) in done.stdout
    assert machine.status()["replicas"][0]["failed"]


def test_a_finished_run_is_finished_on_every_machine(machine: Machine, zygote: list[str], tmp_path: Path) -> None:
    assert machine.run().returncode == 0
    machine.lose()
    another = Machine(tmp_path / "another", machine.replica, zygote, machine.out)
    done = another.run()
    assert done.returncode == 0, done.stdout
    assert "is completed" in done.stdout
    assert len(another.events("taken")) == 1, "that of the first machine: the script is not even started"
    (attempt,) = another.status()["attempts"]
    assert attempt["cause"] == "completed"
