"""Stacks as faulthandler really writes them: of crashes, of hangs, of a debugger's prompt, by every Python there is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ksupervise.parent.watch import stacks

PATIENCE = 60.0  # seconds that anything may take on a loaded machine

# Line numbers count here. argv: where to write, what to do.
SCRIPT = """\
import faulthandler, os, signal, sys, threading
stream = open(sys.argv[1], "ab")
faulthandler.enable(stream)
faulthandler.register(signal.SIGUSR1, stream)
began = threading.Event()
def wait_for_data():
    began.set()
    threading.Event().wait()
def crash():
    os.kill(os.getpid(), signal.SIGSEGV)
def abort():
    os.abort()
def ask():
    os.kill(os.getpid(), signal.SIGUSR1)
def crash_in_a_worker():
    worker = threading.Thread(target=crash_in_the_library)
    worker.start()
    worker.join()
def crash_in_the_library():
    import ctypes
    ctypes.string_at(0)
def debug():
    import pdb
    pdb.set_trace()
def train(what):
    globals()[what]()
threading.Thread(target=wait_for_data, daemon=True).start()
began.wait()
train(sys.argv[2])
"""


def line_of(text: str) -> int:
    """Its number in the script."""
    return SCRIPT.splitlines().index(text) + 1


def pythons() -> list[str]:
    """This one, and others of other versions that are here to be run."""
    found = [sys.executable]
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for minor in range(10, 14):
        here = sorted(root.glob(f"versions/3.{minor}.*/bin/python")) or [Path(shutil.which(f"python3.{minor}") or "")]
        path = str(here[-1])
        works = path != "." and subprocess.run([path, "-V"], capture_output=True, check=False).returncode == 0
        if works and sys.version_info[:2] != (3, minor):
            found.append(path)
    return found


PYTHONS = pythons()


@pytest.fixture(params=PYTHONS, ids=[f"{index}-{Path(path).name}" for index, path in enumerate(PYTHONS)])
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter."""
    return str(request.param)


def dump(folder: Path, what: str, python: str = sys.executable, name: str = "train.py", ends: int | None = None) -> str:
    """What the script wrote of its stacks."""
    folder.mkdir(parents=True, exist_ok=True)
    script, written = folder / name, folder / "stacks.txt"
    script.write_text(SCRIPT)
    process = subprocess.run(
        [python, str(script), str(written), what], capture_output=True, timeout=PATIENCE, check=False
    )
    assert process.returncode == (0 if ends is None else -ends), process.stderr
    return stacks.read(written)


# Crashes ------------------------------------------------------------------------------------------


def test_where_python_stood_at_a_crash(tmp_path: Path, python: str) -> None:
    """A data worker waits meanwhile, and stands first in what is written."""
    text = dump(tmp_path, "crash", python, ends=signal.SIGSEGV)
    assert "in wait_for_data" in text
    assert stacks.crash(text) == f"train.py:{line_of('    os.kill(os.getpid(), signal.SIGSEGV)')} in crash"


def test_a_crash_inside_a_library_is_told_by_the_users_line_that_called_it(tmp_path: Path, python: str) -> None:
    text = dump(tmp_path, "crash_in_the_library", python, ends=signal.SIGSEGV)
    assert "in string_at" in text
    assert stacks.crash(text) == f"train.py:{line_of('    ctypes.string_at(0)')} in crash_in_the_library"


def test_a_crash_in_another_thread_is_told_by_that_thread(tmp_path: Path, python: str) -> None:
    text = dump(tmp_path, "crash_in_a_worker", python, ends=signal.SIGSEGV)
    assert "in crash_in_a_worker" in text, "where the main thread waits"
    assert stacks.crash(text).endswith(" in crash_in_the_library")


def test_an_abort_is_a_crash_too(tmp_path: Path) -> None:
    text = dump(tmp_path, "abort", ends=signal.SIGABRT)
    assert stacks.crash(text) == f"train.py:{line_of('    os.abort()')} in abort"


def test_a_path_with_spaces_and_letters_of_other_languages(tmp_path: Path) -> None:
    text = dump(tmp_path / "My Drive" / "été", "crash", name="train it.py", ends=signal.SIGSEGV)
    assert stacks.crash(text) == f"train it.py:{line_of('    os.kill(os.getpid(), signal.SIGSEGV)')} in crash"


def test_a_dump_that_was_asked_for_before_is_not_the_crash(tmp_path: Path) -> None:
    text = dump(tmp_path, "ask") + dump(tmp_path / "two", "crash", ends=signal.SIGSEGV)
    assert stacks.crash(text).endswith(" in crash")


def test_who_was_only_asked_did_not_crash(tmp_path: Path) -> None:
    assert stacks.crash(dump(tmp_path, "ask")) == ""
    assert stacks.crash("") == ""


def test_a_crash_of_which_no_line_is_the_users(tmp_path: Path) -> None:
    text = dump(tmp_path / "site-packages", "crash", ends=signal.SIGSEGV)
    assert "Fatal Python error" in text
    assert stacks.crash(text) == ""


def test_a_crash_in_a_thread_without_python_is_told_by_the_main_thread() -> None:
    """TensorFlow's own threads have no frames; then nobody is the current one."""
    text = (
        "Fatal Python error: Segmentation fault\n\n"
        'Thread 0x00007f856bbba6c0 (most recent call first):\n  File "/u/data.py", line 6 in wait_for_data\n\n'
        'Thread 0x00007f856c5e3b80 (most recent call first):\n  File "/u/train.py", line 11 in go\n'
    )
    assert stacks.crash(text) == "train.py:11 in go"


# Hangs --------------------------------------------------------------------------------------------


def test_where_the_main_thread_stands_when_it_is_asked(tmp_path: Path, python: str) -> None:
    text = dump(tmp_path, "ask", python)
    assert "in wait_for_data" in text
    assert stacks.place(text) == f"train.py:{line_of('    os.kill(os.getpid(), signal.SIGUSR1)')} in ask"
    assert not stacks.is_debugged(text)


def test_the_last_of_two_dumps_counts(tmp_path: Path) -> None:
    older = 'Current thread 0x01 (most recent call first):\n  File "/u/train.py", line 2 in older\n'
    assert stacks.place(older + dump(tmp_path, "ask")).endswith(" in ask")


def test_what_stands_in_no_line_of_the_users(tmp_path: Path) -> None:
    assert stacks.place(dump(tmp_path / "dist-packages", "ask")) == ""
    assert stacks.place("") == ""
    assert stacks.place('  File "/u/train.py", line 2 in nobody\n') == "", "no thread was begun"


@pytest.mark.parametrize(
    "path",
    [
        "/opt/conda/lib/python3.11/threading.py",
        "/usr/lib/python3/dist-packages/numpy/core.py",
        "/home/u/venv/lib/python3.12/site-packages/keras/src/trainer.py",
        "C:\\\\venv\\\\Lib\\\\site-packages\\\\keras\\\\trainer.py",
        "<frozen runpy>",
        "<string>",
        "/tmp/__autograph_generated_file8f.py",
        "/runs/a/boot.zip/ksupervise/child/fit.py",
    ],
)
def test_lines_that_are_not_the_users(path: str) -> None:
    thread = "Current thread 0x01 (most recent call first):\n"
    text = f'{thread}  File "{path}", line 7 in inner\n  File "/home/u/train.py", line 5 in step\n'
    assert stacks.place(text) == "train.py:5 in step"


# Debuggers ----------------------------------------------------------------------------------------


def test_a_prompt_of_pdb_holds_its_thread(tmp_path: Path, python: str) -> None:
    script, written = tmp_path / "train.py", tmp_path / "stacks.txt"
    script.write_text(SCRIPT)
    command = [python, "-u", str(script), str(written), "debug"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        while b"(Pdb)" not in said:
            assert process.poll() is None
            said += process.stdout.read(1)
        process.send_signal(signal.SIGUSR1)  # taken before it reads the next line
        process.stdin.write(b"c\n")
    text = stacks.read(written)
    assert "in debug\n" in text
    assert stacks.is_debugged(text)
    assert stacks.place(text).endswith(" in debug")


@pytest.mark.parametrize(
    "path",
    [
        "/home/u/.venv/lib/python3.11/site-packages/debugpy/_vendored/pydevd/pydevd.py",
        "/usr/lib/python3.11/bdb.py",
        "/home/u/.venv/lib/python3.11/site-packages/ipdb/__main__.py",
        "/home/u/.venv/lib/python3.11/site-packages/pudb/debugger.py",
        "/opt/pycharm/plugins/python/helpers/pydev/_pydevd_bundle/pydevd_frame.py",
        "/opt/pycharm/plugins/python/helpers/pydev/pydevd.py",
    ],
)
def test_debuggers(path: str) -> None:
    assert stacks.is_debugged(f'Thread 0x01 (most recent call first):\n  File "{path}", line 7 in wait\n')


@pytest.mark.parametrize(
    "path", ["/data/pdb/train.py", "/home/u/pdb/models/fold.py", "/home/u/train_pdb.py", "/home/u/ipdb/load.py"]
)
def test_folders_that_are_called_like_debuggers(path: str) -> None:
    """PDB is the Protein Data Bank, too."""
    assert not stacks.is_debugged(f'Thread 0x01 (most recent call first):\n  File "{path}", line 7 in wait\n')


# Files --------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    assert (stacks.read(None), stacks.size(None)) == ("", 0)
    assert (stacks.read(path), stacks.size(path)) == ("", 0)
    path.write_bytes(b"one\ntwo \xff\n")
    assert stacks.size(path) == 10
    assert stacks.read(path) == "one\ntwo �\n"
    assert stacks.read(path, 4) == "two �\n"
    assert stacks.read(path, 10) == ""


def test_of_a_file_that_never_ends_the_last_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    with path.open("wb") as stream:
        stream.truncate(10 * 1024**3)  # nothing of it is really there
        stream.seek(0, os.SEEK_END)
        stream.write(b"the end\n")
    assert stacks.read(path).endswith("the end\n")
    assert len(stacks.read(path)) == 1024**2


def test_only_an_empty_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "stacks.txt"
    stacks.remove_if_empty(None)
    stacks.remove_if_empty(path)
    path.write_bytes(b"x")
    stacks.remove_if_empty(path)
    assert path.exists()
    path.write_bytes(b"")
    stacks.remove_if_empty(path)
    assert not path.exists()
