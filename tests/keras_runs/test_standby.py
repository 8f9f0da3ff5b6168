"""--standby: warm interpreters become the attempts of a run that is killed twice, and it ends as any other run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.keras_runs.conftest import LIMIT

SCRIPT = Path(__file__).with_name("standby_script.py")


class Run:
    """The script under us, killed each time when `ready` says so."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir()
        front = [sys.executable, "-m", "ksupervise", "--store", "store", "--name", "job", "--every", "50ms"]
        with (folder / "output").open("wb") as output:
            self.parent = subprocess.Popen(
                [*front, *options, sys.executable, str(SCRIPT), "out"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        path = self.folder / "store" / "job" / "journal.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        wanted = {"event": name, **fields}
        return [record for record in records if wanted.items() <= record.items()]

    def wait(self, name: str, **fields: Any) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        while not (found := self.events(name, **fields)):
            assert self.parent.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < end, f"no {name} {fields}"
            time.sleep(0.01)
        return found[-1]

    def kill(self, attempt: int) -> None:
        """Once it has a checkpoint inside its last epoch."""
        self.wait("committed", attempt=attempt)
        os.kill(int(self.wait("launched", attempt=attempt)["pid"]), signal.SIGKILL)

    def end(self) -> list[Any]:
        assert self.parent.wait(LIMIT) == 0, (self.folder / "output").read_text()
        return list(json.loads((self.folder / "out-3.json").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="--standby needs memfd and /proc")
def test_killed_twice_it_ends_with_the_same_bits_and_sees_the_same(tmp_path: Path) -> None:
    cold, warm = Run(tmp_path / "cold", "--seed", "7"), None
    try:
        for attempt in (1, 2):
            cold.kill(attempt)
        facts, *trained = cold.end()
        warm = Run(tmp_path / "warm", "--seed", "7", "--standby")
        waited = []
        for attempt in (1, 2):
            waited.append(warm.wait("standby", what="warm", next=attempt + 1))
            warm.kill(attempt)
        its_facts, *its_trained = warm.end()
    finally:
        for run in (cold, warm):
            if run is not None and run.parent.poll() is None:
                run.parent.terminate()
                run.parent.wait(LIMIT)
    assert its_trained == trained
    assert its_facts[0] == [facts[0][0], facts[0][1] + 1, facts[0][2]]  # the stash, as long as it holds something
    assert its_facts[1:3] == facts[1:3]
    for number, (fact, its_fact) in enumerate(zip(facts[3], its_facts[3], strict=True)):
        assert its_fact == fact, number
    assert [bool(record.get("warm")) for record in warm.events("launched")] == [False, True, True]
    assert all(record["rss"] > 100e6 for record in waited)
    assert [record["step"] > 0 for record in warm.events("resumed")] == [True, True]
    assert not any(psutil.pid_exists(int(record["pid"])) for record in warm.events("standby", what="started"))
