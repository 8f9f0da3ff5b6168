"""What the child prints: whole to the console or said to be cut, and readable in the log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.parent import console as module
from ksupervise.parent.console import Console, LogFile

# The console --------------------------------------------------------------------------------------


@dataclass
class Pipe:
    """A pipe that a console writes to."""

    reader: int
    writer: int

    def everything(self) -> bytes:
        """All that is written until the other end is closed."""
        os.close(self.writer)
        parts = []
        while part := os.read(self.reader, 65536):
            parts.append(part)
        return b"".join(parts)


MakePipe = Callable[[], Pipe]


@pytest.fixture
def pipe() -> Iterator[Callable[[], Pipe]]:
    """Makes pipes, and closes their reading ends."""
    made = []

    def make() -> Pipe:
        made.append(Pipe(*os.pipe()))
        return made[-1]

    yield make
    for each in made:
        os.close(each.reader)


def written(console: Console, *pipes: Pipe) -> list[bytes]:
    """What arrived in each of `pipes` once the console is closed."""
    console.close(30.0)
    return [each.everything() for each in pipes]


def test_both_streams_pass_byte_for_byte(pipe: MakePipe) -> None:
    out, err = pipe(), pipe()
    console = Console(out.writer, err.writer)
    raw = bytes(range(256)) * 10 + b"\r 5%\b\b\b\r"
    console.write(0, raw)
    console.write(1, b"warning")
    console.write(0, b"more")
    assert written(console, out, err) == [raw + b"more", b"warning"]


@dataclass
class Clock:
    """Stands in for `time` in the console."""

    now: float = 0.0

    def monotonic(self) -> float:
        """As CLOCK_MONOTONIC would, if time went by when we say so."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The console's time."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "QUEUE_BYTES", 300_000)
    return clock


def stuffed(out: Pipe, err: Pipe) -> Console:
    """A console that could not write any of the 500,000 bytes it was given: the pipe is full, and nobody reads."""
    os.set_blocking(out.writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(out.writer, b"." * 4096)
    os.set_blocking(out.writer, True)
    console = Console(out.writer, err.writer)
    for _ in range(50):
        console.write(0, b"x" * 10_000)
    return console


def read_to_its_end(console: Console, out: Pipe) -> bytes:
    """What a reader that starts now gets of the console."""
    received: list[bytes] = []
    writer, out.writer = out.writer, os.dup(out.writer)
    reader = threading.Thread(target=lambda: received.append(out.everything()))
    reader.start()
    console.close(30.0)
    os.close(writer)
    reader.join(30.0)
    return received[0].lstrip(b".")


def test_a_slow_console_gets_everything_and_asks_to_wait(pipe: MakePipe, clock: Clock) -> None:
    out, err = pipe(), pipe()
    console = stuffed(out, err)
    room = threading.Event()
    console.when_room = room.set
    assert console.full
    assert not room.is_set()
    assert len(read_to_its_end(console, out)) == 500_000
    assert err.everything() == b""
    assert not console.full
    assert room.is_set(), "it was told when there was room again"


def test_a_blocked_console_never_blocks_and_says_what_it_dropped(pipe: MakePipe, clock: Clock) -> None:
    out, err = pipe(), pipe()
    console = stuffed(out, err)
    clock.now += 2.0
    assert not console.full, "no use in waiting for it"
    console.write(0, b"x" * 1234)
    console.say("we say")
    console.close(1.0)  # nobody reads still: it does not wait
    assert len(read_to_its_end(console, out)) == 500_000
    note = b"\nksupervise: the console was blocked; 1234 bytes are in the log only\n"
    assert err.everything() == b"we say\n" + note


def test_a_console_that_is_gone_takes_nothing_and_nobody_minds(pipe: MakePipe) -> None:
    out, err = os.pipe(), pipe()
    os.close(out[0])
    console = Console(out[1], err.writer)
    console.write(0, b"lost")
    console.write(1, b"kept")
    assert written(console, err) == [b"kept"]
    os.close(out[1])


def test_a_non_blocking_console_gets_everything(pipe: MakePipe) -> None:
    out = pipe()
    os.set_blocking(out.writer, False)
    console = Console(out.writer, out.writer)
    for _ in range(20):
        console.write(0, b"y" * 10_000)
    parts = bytearray()
    while len(parts) < 200_000:
        parts += os.read(out.reader, 65536)
    assert parts == b"y" * 200_000
    assert written(console, out) == [b""]


# Our own lines ------------------------------------------------------------------------------------


def said(console: Console) -> None:
    """One line of ours."""
    console.say("ksupervise: hello")


def test_our_line_never_starts_inside_the_scripts_line(pipe: MakePipe) -> None:
    err = pipe()
    console = Console(pipe().writer, err.writer)
    console.write(1, b"whole\n")
    said(console)
    console.write(1, b"5/10 [==")
    said(console)
    said(console)
    assert written(console, err) == [
        b"whole\nksupervise: hello\n5/10 [==\nksupervise: hello\nksupervise: hello\n",
    ]


def test_on_one_terminal_a_line_of_stdout_counts_as_well(pipe: MakePipe) -> None:
    terminal = pipe()
    again = fcntl.fcntl(terminal.writer, fcntl.F_DUPFD_CLOEXEC, 0)
    console = Console(terminal.writer, again)
    console.write(0, b"5/10 [==")
    said(console)
    said(console)
    console.write(0, b"done\n")
    said(console)
    console.close()
    os.close(again)
    assert terminal.everything() == b"5/10 [==\nksupervise: hello\nksupervise: hello\ndone\nksupervise: hello\n"


def test_where_stdout_goes_elsewhere_its_line_does_not_matter(pipe: MakePipe) -> None:
    out, err = pipe(), pipe()
    console = Console(out.writer, err.writer)
    console.write(0, b"5/10 [==")
    said(console)
    assert written(console, out, err) == [b"5/10 [==", b"ksupervise: hello\n"]


def test_a_line_of_ours_may_hold_any_name(pipe: MakePipe) -> None:
    err = pipe()
    console = Console(err.writer, err.writer)
    console.say("file \udcff.py")
    assert written(console, err) == [b"file ?.py\n"]


# The log ------------------------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., bytes]:
    """What a log holds after these writes."""

    def log(*parts: bytes) -> bytes:
        path = tmp_path / "output.log"
        path.unlink(missing_ok=True)
        file = LogFile(path)
        for part in parts:
            file.write(part)
        file.close()
        assert file.failed is None
        return path.read_bytes()

    return log


Logged = Callable[..., bytes]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\nlines\n", "plain\nlines\n"),
        ("no end", "no end\n"),
        ("1/3\r2/3\r3/3\n", "3/3\n"),
        ("100 left\r99 left \n", "99 left \n"),
        ("abcdef\rXY\n", "XYcdef\n"),
        ("abc\b\bX\n", "aXc\n"),
        ("abc\b\b\b\b\b\bX\n", "Xbc\n"),
        ("dos\r\nlines\r\n", "dos\nlines\n"),
        ("abc\r", "abc\n"),
        ("\n\n", "\n\n"),
        ("", ""),
        ("━━━━ 10s\r━━━━ 9s \n", "━━━━ 9s \n"),
        ("████\r    \rdone\n", "done\n"),
        ("größe\b\bX\n", "gröXe\n"),
    ],
)
def test_a_rewritten_line_stands_as_a_terminal_would_show_it_last(logged: Logged, raw: str, shown: str) -> None:
    data = raw.encode()
    assert logged(data) == shown.encode()
    assert logged(*(data[index : index + 1] for index in range(len(data)))) == shown.encode(), "byte for byte"


def test_an_epoch_of_a_progress_bar_is_a_line(logged: Logged) -> None:
    bar = [f"{n}/500 {'━' * (n // 25)}{' ' * (20 - n // 25)} {n}ms/step - loss: {1 / n:.4f}" for n in range(1, 501)]
    raw = "Epoch 1/1\n" + "".join("\b" * 60 + "\r" + line for line in bar) + "\n"
    assert logged(raw.encode()).decode() == f"Epoch 1/1\n{bar[-1]}\n"


def test_bytes_that_are_no_utf_8_pass_unchanged(logged: Logged) -> None:
    raw = b"\xff\xfe latin: gr\xf6\xdfe, cut: \xe2\x94"
    assert logged(raw) == raw + b"\n"
    assert logged(raw + b"\n") == raw + b"\n"


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_output_without_rewrites_is_logged_as_it_is(parts: list[bytes]) -> None:
    parts = [part.replace(b"\r", b"").replace(b"\b", b"") for part in parts]
    raw = b"".join(parts)
    reader, writer = os.pipe()
    file = LogFile(Path(f"/dev/fd/{writer}"))
    os.close(writer)
    for part in parts:
        file.write(part)
    file.close()
    end = b"" if not raw or raw.endswith(b"\n") else b"\n"
    with open(reader, "rb") as stream:
        assert stream.read() == raw + end


def test_a_line_without_end_is_written_in_pieces(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogFile, "LINE_LIMIT", 100)
    assert logged(*[b"x" * 30] * 10) == b"x" * 300 + b"\n"


def test_a_log_is_appended_to_and_private(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    for _ in range(2):
        file = LogFile(path)
        file.write(b"again\n")
        file.close()
    assert path.read_bytes() == b"again\nagain\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_the_log_and_no_more() -> None:
    file = LogFile(Path("/dev/full"))
    file.write(b"lost\n")
    file.write(b"lost too")
    file.close()
    assert file.failed is not None


def test_a_long_log_goes_on_in_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogFile, "ROTATE_AT", 20)
    log = LogFile(tmp_path / "output.log")
    for word in ("one", "two", "three", "four", "five"):
        log.write(f"line {word}\n".encode())
    log.close()
    assert (tmp_path / "output.log.1").read_text() == "line one\nline two\nline three\n"
    assert (tmp_path / "output.log").read_text() == "line four\nline five\n"
    assert log.tail.endswith("line four\nline five\n")


def test_what_is_remembered_is_the_last_of_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "output.log")
    log.write(b"x" * 200_000 + b"\nthe end, unfinished")
    assert len(log.tail) == LogFile.TAIL
    assert log.tail.endswith("x\nthe end, unfinished")
    log.close()
