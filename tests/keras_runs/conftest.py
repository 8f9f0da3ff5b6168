"""Real Keras under a real ksupervise. A warm zygote stands in for most cold interpreters: an import costs seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("script.py")
ZYGOTE = ROOT / "scripts" / "torture_rig" / "zygote.py"
LIMIT = 180.0  # seconds; a hang fails the test instead of the whole run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("keras")


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that runs a script in a fork of a warm interpreter."""
    folder = tmp_path_factory.mktemp("zygote")
    socket = folder / "socket"
    log = folder / "log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ZYGOTE), "serve", str(socket)], stdout=subprocess.PIPE, stderr=stream, text=True
        )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready", log.read_text()
    yield [sys.executable, str(ZYGOTE), str(socket)]
    process.kill()
    process.wait()
    process.stdout.close()


@dataclass
class Result:
    """What a run left behind."""

    folder: Path
    code: int
    output: str

    @property
    def result(self) -> dict[str, Any]:
        """What the script computed."""
        return dict(json.loads((self.folder / "out.json").read_text()))

    def counted(self, kind: str = "steps") -> int:
        """How often the script did it, in all lives."""
        path = self.folder / f"out.{kind}"
        return path.stat().st_size if path.exists() else 0

    def status(self) -> dict[str, Any]:
        """`ksupervise status --json`."""
        answer = subprocess.run(
            [sys.executable, "-m", "ksupervise", "status", "--store", str(self.folder / "store"), "job", "--json"],
            capture_output=True,
            check=True,
            timeout=LIMIT,
        )
        return dict(json.loads(answer.stdout))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The journal's records of that name."""
        lines = (self.folder / "store" / "job" / "journal.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == name]


class Laboratory:
    """Runs the script plainly and supervised."""

    def __init__(self, folder: Path, launcher: list[str]) -> None:
        self.folder = folder
        self.launcher = launcher

    def plain(self, case: str, *, script: Path = SCRIPT, **environ: str) -> Result:
        """Without ksupervise."""
        folder = self.folder / "plain"
        folder.mkdir(exist_ok=True)
        return self._run([], folder, case, script, environ)

    def supervised(self, case: str, *options: str, script: Path = SCRIPT, **environ: str) -> Result:
        """With ksupervise; called again it is the same run."""
        folder = self.folder / "supervised"
        folder.mkdir(exist_ok=True)
        front = [sys.executable, "-m", "ksupervise", "--store", str(folder / "store"), "--name", "job"]
        return self._run([*front, "--every", "50ms", *options], folder, case, script, environ)

    def _run(self, front: list[str], folder: Path, case: str, script: Path, environ: dict[str, str]) -> Result:
        command = [*front, *self.launcher, str(script), case, str(folder / "out")]
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        return Result(folder, done.returncode, done.stdout.decode(errors="replace"))


@pytest.fixture
def laboratory(tmp_path: Path, zygote: list[str]) -> Laboratory:
    """A place to run in, warm."""
    return Laboratory(tmp_path, zygote)


@pytest.fixture
def cold_laboratory(tmp_path: Path) -> Laboratory:
    """The same with a fresh interpreter for each attempt."""
    return Laboratory(tmp_path, [sys.executable])


@pytest.fixture(scope="session")
def plain_built(tmp_path_factory: pytest.TempPathFactory, zygote: list[str]) -> Result:
    """The case "built", left alone. For tests that compare with nothing else."""
    return Laboratory(tmp_path_factory.mktemp("built"), zygote).plain("built")
