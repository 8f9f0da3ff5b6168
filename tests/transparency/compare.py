"""One command run plainly and under ksupervise, and the differences that are needed."""

from __future__ import annotations

import functools
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.process.helpers import KSUPERVISE, PYTHON, Place

PROBE = Path(__file__).with_name("probe.py")
ABSENT = "(absent)"
LIMIT = 300.0  # seconds; a hang fails the test instead of the whole run
Facts = Any
Judge = Callable[[Any, Any], bool]

# Makes the process what a test wants it to be, then becomes the command: what is set here, both kinds of run inherit.
_LAUNCHER = """
import fcntl, json, os, resource, signal, sys, termios
wish = json.loads(sys.argv[1])
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignored them for itself
    signal.signal(number, signal.SIG_DFL)
for number in wish.get("ignored", ()):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, wish.get("blocked", ()))
for name, value in wish.get("limits", {}).items():
    resource.setrlimit(getattr(resource, name), (value, resource.getrlimit(getattr(resource, name))[1]))
os.umask(wish.get("umask", 0o022))
os.nice(wish.get("nice", 0))
if wish.get("one processor"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if wish.get("terminal"):
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for fd in wish.get("closed", ()):
    os.close(fd)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Ended:
    """One run: its exit code, what came out, what the script found out."""

    code: int
    out: bytes
    err: bytes
    facts: Facts


@dataclass(frozen=True)
class Needed:
    """A difference that has to be: why, and what exactly it is; not `always` if some interpreters have none."""

    why: str
    judge: Judge
    always: bool = True


class Both:
    """Runs a command that writes `facts.json`, once plainly and once supervised, both from the same circumstances."""

    def __init__(self, place: Place, **wish: Any) -> None:
        self.place = place
        self.wish = wish

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        console: str = "pipe",
        answers: Sequence[tuple[bytes, bytes]] = (),
    ) -> tuple[Ended, Ended]:
        """Plainly, then supervised. `answers`: (question, what is typed once it is read on the terminal)."""
        front = [*KSUPERVISE, "--quiet", "--store", str(self.place.store), "--name", "job", "--"]
        ways: dict[str, Callable[..., tuple[int, bytes, bytes]]] = {
            "pipe": self._on_pipes,
            "file": self._in_files,
            "terminal": functools.partial(self._on_terminal, answers),
        }
        run = functools.partial(self._one, env or {}, functools.partial(ways[console], stdin))
        wish = json.dumps({**self.wish, "terminal": console == "terminal"})
        launcher = [PYTHON, "-I", "-c", _LAUNCHER, wish]
        return run([*launcher, *command]), run([*launcher, *front, *command])

    def _one(
        self, env: Mapping[str, str], run: Callable[..., tuple[int, bytes, bytes]], command: Sequence[str]
    ) -> Ended:
        facts = self.place.root / "facts.json"
        facts.unlink(missing_ok=True)
        try:
            code, out, err = run(command, env={**self.place.environ, **env}, cwd=self.place.root)
        finally:
            for left in self.place.marked():
                left.kill()
        assert facts.exists(), (code, out, err)
        return Ended(code, out, err, json.loads(facts.read_bytes()))

    def _on_pipes(self, stdin: bytes, command: Sequence[str], **arguments: Any) -> tuple[int, bytes, bytes]:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT, check=False, **arguments)
        return done.returncode, done.stdout, done.stderr

    def _in_files(self, stdin: bytes, command: Sequence[str], **arguments: Any) -> tuple[int, bytes, bytes]:
        given, out, err = (self.place.root / name for name in ("given", "out", "err"))
        given.write_bytes(stdin)
        with given.open("rb") as one, out.open("wb") as two, err.open("wb") as three:
            done = subprocess.run(command, stdin=one, stdout=two, stderr=three, timeout=LIMIT, check=False, **arguments)
        return done.returncode, out.read_bytes(), err.read_bytes()

    def _on_terminal(
        self, answers: Sequence[tuple[bytes, bytes]], stdin: bytes, command: Sequence[str], **arguments: Any
    ) -> tuple[int, bytes, bytes]:
        """All three streams on one terminal, which is the process' controlling one: as from a shell."""
        ours, theirs = pty.openpty()
        said = bytearray()

        def listen() -> None:
            left = list(answers)
            try:
                while data := os.read(ours, 65536):
                    said.extend(data)
                    if left and said.endswith(left[0][0]):
                        os.write(ours, left.pop(0)[1])
            except OSError:
                pass  # EIO: the last one has left the terminal

        try:
            process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **arguments)
        finally:
            os.close(theirs)
        listener = threading.Thread(target=listen)
        listener.start()
        os.write(ours, stdin)
        try:
            code = process.wait(LIMIT)
        finally:
            process.kill()
            listener.join(LIMIT)
            os.close(ours)
        return code, bytes(said), b""


def differences(plain: Facts, supervised: Facts) -> dict[str, tuple[Any, Any]]:
    """Name → the two values, where they are not the same."""
    names = [*plain, *(name for name in supervised if name not in plain)]
    pairs = {name: (plain.get(name, ABSENT), supervised.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def assert_only(needed: Mapping[str, Needed], plain: Facts, supervised: Facts, *, by_chance: frozenset[str]) -> None:
    """Nothing differs but what is needed, as it is needed; and all of that does: the list stays as short as can be.

    `by_chance`: what differs between any two runs of an unseeded script, or may.
    """
    found = {name: pair for name, pair in differences(plain, supervised).items() if name not in by_chance}
    unneeded = [name for name, pair in found.items() if name not in needed or not needed[name].judge(*pair)]
    told = [f"{name}: {_shown(*found[name])}" for name in unneeded]
    told += [
        f"{name}: no longer different, take it off the list"
        for name in needed
        if needed[name].always and name not in found
    ]
    assert not told, "\n" + "\n".join(told)


def _shown(plain: Any, supervised: Any) -> str:
    """Both, of lists and dictionaries no more than what differs."""
    if isinstance(plain, dict) and isinstance(supervised, dict):
        changed = differences(plain, supervised)
        plain = {name: one for name, (one, _) in changed.items()}
        supervised = {name: other for name, (_, other) in changed.items()}
    elif (
        isinstance(plain, list)
        and isinstance(supervised, list)
        and sorted(map(str, plain)) != sorted(map(str, supervised))
    ):
        plain, supervised = (
            [entry for entry in plain if entry not in supervised],
            [entry for entry in supervised if entry not in plain],
        )
    return f"plainly {plain!r}, supervised {supervised!r}"


def becomes(plain: Any, supervised: Any) -> Judge:
    """From exactly this to exactly that."""
    return lambda one, other: (one, other) == (plain, supervised)


def added(fits: Callable[[Any], bool] = bool) -> Judge:
    """Absent without us; with us it `fits`."""
    return lambda one, other: one == ABSENT and fits(other)


def only_more(fits: Callable[[str], bool]) -> Judge:
    """A list that only got longer, in no other order, by entries each of which `fits`."""

    def judge(one: Any, other: Any) -> bool:
        rest = [entry for entry in other if entry not in one]
        return [entry for entry in other if entry in one] == one and all(map(fits, rest))

    return judge


def module_of_ours(name: str) -> bool:
    """A module that we may import in the script's interpreter."""
    return name.split(".", maxsplit=1)[0] in {"ksupervise", *sys.stdlib_module_names}
