"""The peers' side of every part: one warm interpreter for all, their writers, and what is left of their files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from store_peers import NEEDS, PEERS
from store_trials import HERE, PATIENCE, Writer

PROGRAM, CLIENT = HERE / "store_peers.py", HERE / "zygote.py"


@dataclass(frozen=True)
class Left:
    """What a peer's files are worth: what its own choice came to, and the numbers that can be had, best first."""

    first: str
    intact: tuple[int, ...]

    def verdict(self, acked: int) -> tuple[str, str]:
        """(said, flaw), given the newest that was acknowledged."""
        if not acked:
            return "nothing acknowledged yet", ""
        if not self.intact:
            return "no intact checkpoint", f"no intact checkpoint of {acked}: {self.first}"
        if max(self.intact) < acked:
            return "lost an acknowledged one", f"{acked} was acknowledged, {max(self.intact)} is left: {self.first}"
        return "acknowledged one there", ""


class Peers:
    """A zygote that has imported everything, started when first asked."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._zygote: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    @property
    def _command(self) -> list[Path]:
        socket = self._base / "peers.sock"
        with self._lock:
            if self._zygote is None:
                self._zygote = _zygote(socket, self._base / "peers.log")
        return [CLIENT, socket, PROGRAM]

    def close(self) -> None:
        """End the zygote."""
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()

    def writer(self, name: str, folder: Path, size: int, log: Path) -> Writer:
        """One that saves again and again."""
        return Writer([*self._command, "write", name, folder, size], log)

    def rotter(self, name: str, folder: Path, size: int, seed: str, first: int, last: int) -> Writer:
        """One that loads what it damaged."""
        return Writer([*self._command, "rot", name, folder, size, seed, first, last], folder / "log")

    def left(self, name: str, folder: Path, size: int) -> Left:
        """What can still be loaded. Raises RuntimeError if the tool takes the interpreter down."""
        command = [sys.executable, *map(str, self._command), "check", name, str(folder), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f"looking at it ended with {done.returncode}: {done.stderr[-500:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        return Left(said["first"], tuple(said["intact"]))


def missing(name: str) -> str:
    """Why that peer cannot be tried; empty if it can."""
    package = NEEDS.get(name, "tensorflow").partition(".")[0]
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


def names() -> list[str]:
    """All peers."""
    return list(PEERS)


def _zygote(socket: Path, log: Path) -> subprocess.Popen[str]:
    with open(log, "wb") as stderr:
        command = [sys.executable, str(PROGRAM), "serve", str(socket)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    if not any(line.strip() == "ready" for line in process.stdout):
        raise RuntimeError(log.read_text())
    return process
