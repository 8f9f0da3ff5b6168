"""Law 1: what a script can find out about its process is what it is without us, but for the names listed here."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.process.helpers import PYTHON, Place, until
from tests.process.test_injection import INTERPRETERS

from .compare import ABSENT, PROBE, Both, Ended, Judge, Needed, added, assert_only, becomes, module_of_ours, only_more

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the probe reads /proc")

COMMAND = [PYTHON, str(PROBE), "facts.json", "--one", "two words"]

# What differs between two plain runs of an unseeded script too; under us it is pinned to the run (see test_pinning).
BY_CHANCE = frozenset({"a hash", "random"})


def _is_in_run(name: str, folder: str = "job") -> Judge:
    return added(lambda value: Path(value).name == name and Path(value).parent.name == folder)


def _is_faulthandlers(plain: list[str], supervised: list[str]) -> bool:
    """Handlers of the crashes, and of one real-time signal."""
    more = int(supervised[0], 16) & ~int(plain[0], 16)
    crashes = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
    return more & (1 << (signal.SIGRTMAX - 2)) != 0 and more.bit_count() == len(crashes) + 1


def _is_noted(path: str) -> bool:
    return "/boot.zip" in path or path.endswith("/importlib")


def _is_mapped(path: str) -> bool:
    return Path(path).name.startswith(("_socket.", "_sha2."))


ENVIRONMENT = {
    "environ.KSUPERVISE_RUN": Needed("documented: for the script, if it wants it", added(lambda value: value == "job")),
    "environ.KSUPERVISE_RUN_DIR": Needed(
        "documented: for the script; our part finds the lock there", added(lambda value: Path(value).name == "job")
    ),
    "environ.KSUPERVISE_ATTEMPT": Needed(
        "documented: for the script, if it wants it", added(lambda value: value == "1")
    ),
    "environ.KSUPERVISE_ADDRESS": Needed("where the parent listens", added()),
    "environ.KSUPERVISE_BOOT": Needed("what sitecustomize takes off sys.path again", _is_in_run("boot.zip")),
    "environ.KSUPERVISE_LOCK_FD": Needed("which descriptor is the lock", added(lambda value: int(value) >= 200)),
    "environ.KSUPERVISE_STACKS": Needed("where stacks are written at a crash", _is_in_run("stacks.txt", "001")),
    "environ.KSUPERVISE_PIN": Needed("the run's seed for what an unseeded script draws", added(str.isdecimal)),
    "environ.PYTHONHASHSEED": Needed("read by the interpreter before anything of ours runs", added(str.isdecimal)),
    "environ.PYTHONPATH": Needed("the only way into an interpreter that needs no installation", _is_in_run("boot.zip")),
}
UNBUFFERED = {
    "environ.PYTHONUNBUFFERED": Needed("what was printed before a kill is seen", added(lambda value: value == "1")),
    "stdout write through": Needed("PYTHONUNBUFFERED", becomes(False, True)),
    "stdout buffer": Needed("PYTHONUNBUFFERED", becomes("BufferedWriter", "FileIO")),
    "stdin write through": Needed("PYTHONUNBUFFERED", becomes(False, True)),
    "stderr buffer": Needed("PYTHONUNBUFFERED", becomes("BufferedWriter", "FileIO")),
    "stderr line buffering": Needed("PYTHONUNBUFFERED", becomes(True, False)),
    "stderr write through": Needed("PYTHONUNBUFFERED", becomes(False, True)),
}
INTERPRETER = {
    "modules": Needed("our part of the child, and what of the standard library it needs", only_more(module_of_ours)),
    "meta path": Needed("waits for Keras, and is gone when Keras is there", only_more(lambda name: name == "_Finder")),
    "path cache": Needed("the import system's own note of boot.zip, and of what it imports from", only_more(_is_noted)),
    "mapped files": Needed(
        "saying hello takes a socket, seeding `random` takes a hash (some interpreters have both built in)",
        only_more(_is_mapped),
        always=False,
    ),
    "atexit callbacks": Needed("saying goodbye; registered first, so it runs after the script's own", becomes(0, 1)),
}
PROCESS = {
    "death signal": Needed("a child that has not claimed its run dies with the parent", becomes(0, signal.SIGKILL)),
    "fd.200": Needed("the run's lock is held by the child too", becomes(ABSENT, "file")),
    "fd.200 target": Needed("the same", _is_in_run("lock")),
    "fd.200 flags": Needed("the same; not handed on to programs of the script's", added(lambda flags: flags[1] == 1)),
    "fd.200 isatty": Needed("the same", becomes(ABSENT, False)),
    "fd.201": Needed("faulthandler writes from within a crash, when no file can be opened", becomes(ABSENT, "file")),
    "fd.201 target": Needed("the same", _is_in_run("stacks.txt", "001")),
    "fd.201 flags": Needed("the same; not handed on to programs of the script's", added(lambda flags: flags[1] == 1)),
    "fd.201 isatty": Needed("the same", becomes(ABSENT, False)),
    "status.SigCgt": Needed("crashes leave their stacks, and so does a hang when the parent asks", _is_faulthandlers),
}
SESSION = {
    "leads its session": Needed("Ctrl-C reaches the parent alone, which saves first", becomes(False, True)),
    "leads its group": Needed("the same; the group is what is killed when it must be", becomes(False, True)),
    "parent's session": Needed("the same", becomes(True, False)),
    "parent's group": Needed("the same", becomes(True, False)),
}


_LARGEFILE = 0o100000  # in the flags of every file that is opened on x86-64
_LOGGED = "it passes through us, into the log and to where it was to go"
ON_PIPES = {**ENVIRONMENT, **UNBUFFERED, **INTERPRETER, **PROCESS, **SESSION}
IN_FILES = {
    **ON_PIPES,
    **{f"fd.{fd}": Needed(_LOGGED, becomes("file", "pipe")) for fd in (1, 2)},
    **{f"fd.{fd} target": Needed(_LOGGED, lambda plain, supervised: supervised == "") for fd in (1, 2)},
    **{f"fd.{fd} flags": Needed(_LOGGED, becomes([os.O_WRONLY | _LARGEFILE, 0], [os.O_WRONLY, 0])) for fd in (1, 2)},
    **{f"{name} seekable": Needed(_LOGGED, becomes(True, False)) for name in ("stdout", "stderr")},
}
_APART = "a session of its own: Ctrl-C reaches the parent alone, which saves first"
ON_A_TERMINAL = {
    **ENVIRONMENT,
    **UNBUFFERED,
    **INTERPRETER,
    **PROCESS,
    **{f"{name} line buffering": Needed("PYTHONUNBUFFERED", becomes(True, False)) for name in ("stdin", "stdout")},
    "controlling terminal": Needed(_APART, becomes(["foreground"], "OSError")),
    **{f"fd.{fd} foreground": Needed(_APART, becomes(True, "OSError")) for fd in range(3)},
    **{f"fd.{fd} target": Needed(_LOGGED, lambda plain, supervised: plain != supervised) for fd in (1, 2)},
    **{
        f"fd.{fd} output modes": Needed(
            "translated once: by our own terminal", lambda plain, supervised: plain ^ supervised == termios.OPOST
        )
        for fd in (1, 2)
    },
    "same files": Needed(
        "stdin is the script's own still, stdout and stderr are one terminal still",
        becomes([[True] * 3] * 3, [[True, False, False], [False, True, True], [False, True, True]]),
    ),
}


def _check(both: Both, needed: Mapping[str, Needed], command: Sequence[str] = COMMAND, **how: Any) -> Ended:
    """The supervised run, found to be as the plain one."""
    plain, supervised = both.run(command, **how)
    assert (plain.code, plain.out, plain.err) == (supervised.code, supervised.out, supervised.err)
    assert_only(needed, plain.facts, supervised.facts, by_chance=BY_CHANCE)
    return supervised


def _without(needed: Mapping[str, Needed], *names: str) -> dict[str, Needed]:
    return {name: reason for name, reason in needed.items() if name not in names}


@pytest.mark.parametrize("version", [version for version in INTERPRETERS if version != "3.8"])
def test_on_pipes(place: Place, version: str) -> None:
    command = [INTERPRETERS[version], *COMMAND[1:]]
    ended = _check(Both(place), ON_PIPES, command, stdin="given: ü\n".encode())
    assert ended.facts["read from stdin"] == "given: ü\n"


def test_from_and_to_files(place: Place) -> None:
    ended = _check(Both(place), IN_FILES, stdin="given: ü\n".encode(), console="file")
    assert ended.facts["read from stdin"] == "given: ü\n"


def test_on_a_terminal(place: Place) -> None:
    _check(Both(place), ON_A_TERMINAL, console="terminal")


def test_questions_on_a_terminal_are_asked_and_answered(place: Place) -> None:
    source = """
import getpass, json
told = [input("who? "), getpass.getpass("and your word? ")]
json.dump(told, open("facts.json", "w"))
"""
    answers = [(b"who? ", b"it is me\n"), (b"word? ", b"open sesame\n")]
    plain, supervised = Both(place).run(place.script(source), console="terminal", answers=answers)
    assert (plain.code, plain.out, plain.facts) == (supervised.code, supervised.out, supervised.facts)
    assert supervised.facts == ["it is me", "open sesame"]
    assert b"sesame" not in supervised.out


def test_what_is_inherited_is_inherited(place: Place) -> None:
    """Ignored and blocked signals, limits, umask, nice, affinity: ours to pass on, not to change."""
    ignored = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGTSTP]
    both = Both(
        place,
        ignored=ignored,
        blocked=[signal.SIGUSR2, signal.SIGURG],
        umask=0o037,
        nice=3,
        limits={"RLIMIT_NOFILE": 300, "RLIMIT_CORE": 0, "RLIMIT_STACK": 4 << 20},
        **{"one processor": True},
    )
    facts = _check(both, ON_PIPES).facts
    assert [facts[f"signal.{number.name}"] for number in ignored] == ["SIG_IGN"] * len(ignored)
    assert (facts["umask"], facts["limit.RLIMIT_NOFILE"][0], len(facts["affinity"])) == (0o037, 300, 1)


def test_a_closed_stdin_is_an_empty_one(place: Place) -> None:
    """A descriptor 0 that is closed would be the next file that somebody opens: the parent fills it, for both."""
    facts = Both(place, closed=[0]).run(COMMAND)[1].facts
    assert (facts["fd.0 target"], facts["read from stdin"]) == ("/dev/null", "")


@pytest.mark.parametrize("way", ["-m", "-c", "-", "-i"])
def test_other_ways_to_run_python(place: Place, way: str) -> None:
    place.write("looker.py", PROBE.read_text())
    source = "import runpy; runpy.run_path('looker.py', run_name='__main__')"
    words = {"-m": ["-m", "looker"], "-c": ["-c", source], "-": ["-"], "-i": ["-i", "looker.py"]}[way]
    given = {"-": source, "-i": "1 + 1\n"}.get(way, "")
    _check(Both(place), ON_PIPES, [PYTHON, *words, "facts.json"], stdin=given.encode())


def test_an_environment_that_is_not_ours_to_read(place: Place) -> None:
    """Bytes that are no text, names that are no names, and the user's own choice of what we set by default."""
    strange = {"UMLAUT": "\udcfc", "A B": "=", "EMPTY": "", "PYTHONUNBUFFERED": "", "LC_ALL": "C.UTF-8", "TMPDIR": "."}
    _check(Both(place), _without(ON_PIPES, *UNBUFFERED), env=strange)


def test_the_users_customizations_stay(place: Place) -> None:
    for name in ("sitecustomize", "usercustomize"):
        place.write(f"{name}.py", f"import sys, atexit, signal\nsys.{name} = 1\natexit.register(print, {name!r})\n")
    place.write("sitecustomize.py", "import sys\nsys.excepthook = print\nflavour = 'mine'\n")
    needed = {**ON_PIPES, "environ.PYTHONPATH": Needed("boot.zip, and then the user's own", _in_front)}
    ended = _check(Both(place), needed, env={"PYTHONPATH": "."})
    assert "flavour" in ended.facts["sitecustomize"][2]
    assert ended.facts["excepthook"] is False


def _in_front(plain: str, supervised: str) -> bool:
    ours, rest = supervised.split(os.pathsep, maxsplit=1)
    return Path(ours).name == "boot.zip" and rest == plain


def test_what_is_printed_comes_out_in_its_order(place: Place) -> None:
    """As in `ksupervise python train.py >log 2>&1`, also where we are slower than the script."""
    source = """
import os
print("ready", flush=True)
os.read(0, 1)
for _ in range(20):
    os.write(1, b"out\\n")
    os.write(2, b"err\\n")
open("written", "w").close()
"""
    read, write = os.pipe()
    streams = {"stdin": read, "stderr": subprocess.STDOUT}
    parent = place.start("--quiet", *place.script(source), streams=streams)
    parent.line("ready")
    parent.send(signal.SIGSTOP)
    os.write(write, b"x")
    until((place.root / "written").exists, "end of the script's writing")
    parent.send(signal.SIGCONT)
    os.close(read)
    os.close(write)
    assert parent.wait().out == b"ready\n" + b"out\nerr\n" * 20


def test_descriptors_that_were_handed_over_arrive(place: Place) -> None:
    """As in `ksupervise python train.py <(zcat data.csv)`."""
    script = place.script("import os, sys; print(os.read(int(sys.argv[1]), 100))")
    read, write = os.pipe()
    try:
        os.write(write, b"the data")
        done = place.start("--quiet", "--max-failures", "1", *script, str(read), pass_fds=(read,)).wait()
    finally:
        os.close(read)
        os.close(write)
    assert (done.code, done.out, done.theirs) == (0, b"b'the data'\n", b"")


def test_a_new_size_of_the_terminal_is_announced(place: Place) -> None:
    """SIGWINCH, which a terminal sends to its foreground group, reaches the script; it has its own handlers for it."""
    source = """
import os, signal
def resized(number, frame):
    os.write(1, f"size {os.get_terminal_size(1).columns}\\n".encode())
    os._exit(0)
signal.signal(signal.SIGWINCH, resized)
print("ready")
signal.alarm(3)
while True:
    signal.pause()
"""
    ours, theirs = pty.openpty()
    parent = place.start("--quiet", "--max-failures", "1", *place.script(source), streams={"stdout": theirs})
    try:
        said = b""
        while b"ready" not in said:
            said += os.read(ours, 4096)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
        parent.send(signal.SIGWINCH)
        assert parent.wait().code == 0
        assert b"size 77" in os.read(ours, 4096)
    finally:
        os.close(theirs)
        os.close(ours)
