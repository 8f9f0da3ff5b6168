"""Where our console is a terminal the child gets one: isatty, the size, and every byte as it was written."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes elsewhere")

ASKS = """
import json, os, signal, sys
def tell(*_):
    print(json.dumps([os.isatty(1), os.isatty(2), *(os.get_terminal_size(1) if os.isatty(1) else ())]), flush=True)
tell()
sys.stdout.write("a\\rb\\n"); sys.stdout.flush()
if "wait" in sys.argv:
    while tuple(os.get_terminal_size(1)) != (77, 33):
        pass
    tell()
"""


def read_until(fd: int, end: bytes) -> bytes:
    """What comes out of a terminal up to `end`; it fails after 20 s."""
    text, limit = b"", time.monotonic() + 20
    while end not in text:
        assert time.monotonic() < limit, text
        text += os.read(fd, 4096)
    return text


def resize(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))


def start(folder: Path, *words: str, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    script = folder / "asks.py"
    script.write_text(ASKS)
    front = [sys.executable, "-m", "ksupervise", "--quiet", "--store", str(folder / "store")]
    return subprocess.Popen(
        [*front, sys.executable, str(script), *words], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )


def test_a_terminal_is_a_terminal_of_the_same_size(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    resize(theirs, 91, 23)
    with start(tmp_path, stdout=theirs, stderr=theirs) as parent:
        text = read_until(ours, b"b\r\n")
        assert json.loads(text.splitlines()[0]) == [True, True, 91, 23]
        assert b"a\rb\r\n" in text, "translated once, by our own terminal"
    assert parent.returncode == 0
    log = next((tmp_path / "store").glob("*/attempts/001/output.log")).read_bytes()
    assert log.endswith(b"b\n")
    os.close(ours)
    os.close(theirs)


def test_a_new_size_reaches_the_script(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with start(tmp_path, "wait", stdout=theirs, stderr=theirs) as parent:
        read_until(ours, b"b\r\n")
        resize(theirs, 77, 33)
        parent.send_signal(signal.SIGWINCH)  # a terminal sends it to its foreground group; this one is nobody's
        assert b"77, 33" in read_until(ours, b"33]")
    assert parent.returncode == 0
    os.close(ours)
    os.close(theirs)


def test_a_stream_that_is_redirected_stays_a_pipe(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with start(tmp_path, stdout=subprocess.PIPE, stderr=theirs) as parent:
        assert parent.stdout is not None
        assert json.loads(parent.stdout.readline()) == [False, True]
        assert parent.stdout.read() == b"a\rb\n"
    assert parent.returncode == 0
    os.close(ours)
    os.close(theirs)
