"""A file that appears."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.notices import file as module
from ksupervise.notices.notice import Unavailable

from .emulator import PATIENCE
from .helpers import QUICK, Clock, Heard


class Asker:
    """The source, asked by the test."""

    def __init__(self, path: Path, heard: Heard, clock: Clock | None = None) -> None:
        self.look = module.Source(heard.announcer("file", clock or Clock()), path, QUICK).questions()[0].ask


def test_a_file_that_appears_is_final(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    assert heard.watch(f"file:{path}", {}).names == ("file",)
    path.touch()
    notice = heard.notice()
    assert (notice.source, notice.final, notice.seconds) == ("file", True, None)
    assert notice.text == f"{path} is there"


def test_one_that_is_there_already_is_told_at_once(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    path.write_text("node maintenance\n")
    ask = Asker(path, heard)
    ask.look()
    (notice,) = heard.notices()
    assert notice.text == f"{path} is there: node maintenance"
    ask.look()
    assert not heard.notices()


@pytest.mark.parametrize(
    ("content", "final", "seconds", "text"),
    [
        ("90", True, 90.0, ""),
        ("90.5\nrack 7 is moved\n", True, 90.5, ": rack 7 is moved"),
        ("-3", True, 0.0, ""),
        ("nan", True, None, ": nan"),
        ("1e999", True, None, ": 1e999"),
        ('{"seconds": 60, "text": "by\\u001b[31m hand"}', True, 60.0, ": by [31m hand"),
        ('{"final": false}', False, None, ""),
        ('{"final": false, "seconds": 5}', False, None, ""),
        ('{"final": 0, "seconds": true, "text": 7}', True, None, ""),
        ('{"seconds": "30"}', True, 30.0, ""),
        ('{"seconds": NaN}', True, None, ""),
        ("[1]", True, None, ": [1]"),
    ],
)
def test_what_it_says(
    tmp_path: Path, heard: Heard, content: str, final: bool, seconds: float | None, text: str
) -> None:
    path = tmp_path / "notice"
    path.write_text(content)
    Asker(path, heard).look()
    (notice,) = heard.notices()
    assert (notice.final, notice.seconds) == (final, seconds)
    assert notice.text == f"{path} is there{text}"


@pytest.mark.parametrize("half", ["", '{"final": '])
def test_a_writer_that_is_not_done_is_waited_for(tmp_path: Path, heard: Heard, half: str) -> None:
    path = tmp_path / "notice"
    ask = Asker(path, heard)
    ask.look()
    path.write_text(half)
    ask.look()
    path.write_text('{"final": false}')
    ask.look()
    assert [notice.final for notice in heard.notices()] == [False]


@pytest.mark.parametrize("half", ["", '{"final": '])
def test_but_not_for_ever(tmp_path: Path, heard: Heard, half: str) -> None:
    path = tmp_path / "notice"
    ask = Asker(path, heard)
    ask.look()
    path.write_text(half)
    ask.look()
    assert not heard.notices()
    ask.look()
    assert [notice.final for notice in heard.notices()] == [True]


def test_a_nearer_time_is_told_again_and_time_passes(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    clock = Clock()
    ask = Asker(path, heard, clock)
    path.write_text("300")
    ask.look()
    clock.now += 100
    ask.look()
    path.write_text("250 ")
    ask.look()
    assert [notice.seconds for notice in heard.notices()] == [300.0]
    path.write_text("30")
    ask.look()
    assert [notice.seconds for notice in heard.notices()] == [30.0]


def test_a_time_far_away_comes_near(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    clock = Clock()
    ask = Asker(path, heard, clock)
    path.write_text("3600")
    ask.look()
    clock.now += 3000
    ask.look()
    assert [(notice.final, notice.seconds) for notice in heard.notices()] == [(False, None), (True, 600.0)]


def test_an_empty_one_that_was_there_before_us_is_no_writers(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    path.touch()
    Asker(path, heard).look()
    assert heard.notices()


def test_nobodys_pipe_is_emptied(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, b"for another")
    Asker(path, heard).look()
    assert os.read(pipe, 100) == b"for another"
    os.close(pipe)
    assert heard.notices()


def test_a_pipe_in_place_of_the_file_that_was_looked_at_is_not_waited_for(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    path.touch()
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    source = module.Source(heard.announcer("file", Clock()), path, QUICK)
    reader = threading.Thread(target=source._read, args=(status,), daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive()


def test_advice_becomes_final(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    ask = Asker(path, heard)
    path.write_text('{"final": false}')
    ask.look()
    path.write_text('{"final": true}')
    ask.look()
    assert [notice.final for notice in heard.notices()] == [False, True]


def test_one_that_was_removed_and_comes_again(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "notice"
    ask = Asker(path, heard)
    for _ in range(2):
        path.write_text("again")
        ask.look()
        path.unlink()
        ask.look()
    assert len(heard.notices()) == 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "unreadable", "long", "binary"])
def test_whatever_is_there_is_there(tmp_path: Path, heard: Heard, kind: str) -> None:
    path = tmp_path / "notice"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.write_text("secret")
        path.chmod(0)
    else:
        path.write_bytes(b"word " * 100_000 if kind == "long" else bytes(range(256)))
    Asker(path, heard).look()
    (notice,) = heard.notices()
    assert notice.final
    assert notice.text.isprintable()
    assert len(notice.text) <= 200


def test_a_path_that_cannot_be_looked_at(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "loop").symlink_to("loop")
    heard.watch(f"file:{tmp_path}/loop/notice", {})
    assert "notice file" in heard.note()
    (tmp_path / "loop").unlink()
    assert "answers again" in heard.note()
    assert not heard.notices()


def test_a_name_that_is_too_long(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(Unavailable):
        Asker(tmp_path / ("x" * 5000), heard).look()


def test_a_folder_that_comes_later(tmp_path: Path, heard: Heard) -> None:
    path = tmp_path / "mount" / "notice"
    ask = Asker(path, heard)
    ask.look()
    path.parent.mkdir()
    path.write_text("now")
    ask.look()
    assert heard.notices()


def test_a_relative_path_is_of_the_folder_we_started_in(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = Asker(Path("notice"), heard)
    monkeypatch.chdir("/")
    (tmp_path / "notice").write_text("x")
    ask.look()
    assert heard.notices()


def test_home_is_known(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notice").write_text("x")
    heard.watch("file:~/notice", {})
    assert heard.notice().text.startswith(str(tmp_path))


@given(st.binary(max_size=200) | st.text().map(str.encode) | st.floats().map(lambda number: str(number).encode()))
def test_any_content_is_understood(content: bytes) -> None:
    word = module._understood(content)
    assert not word.text or word.text.isprintable()
    assert word.seconds is None or 0 <= word.seconds < float("inf")
