"""What is chosen, told once, noted once; and what importing it costs."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise import notices
from ksupervise.notices import Pace, check
from ksupervise.notices.client import moment_of
from ksupervise.notices.ear import Ear, Health, Question
from ksupervise.notices.notice import SLACK, Announcer, Notice, Unavailable, plain

from .emulator import PATIENCE, Aws, Gcp
from .helpers import QUICK, Clock, Heard


@pytest.mark.parametrize("choice", ["off", "auto", "aws", "gcp", "azure", "file:/tmp/x", "file:a b", " auto "])
def test_what_may_be_chosen(choice: str) -> None:
    assert check(choice) == choice.strip()


@pytest.mark.parametrize("choice", ["", "on", "AWS", "file:", "file: ", "file", "aws,gcp", "disk", "file:\0"])
def test_what_may_not(choice: str) -> None:
    with pytest.raises(ValueError, match="file:PATH"):
        check(choice)
    with pytest.raises(ValueError, match="file:PATH"):
        notices.watch(choice, tell=print, note=print)


def test_auto_watches_all_that_it_finds(aws: Aws, gcp: Gcp, heard: Heard, tmp_path: Path) -> None:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url, "GCE_METADATA_HOST": gcp.host}
    made = heard.watch("auto", environ, store=tmp_path, least=lambda: 0)
    assert made.names == ("aws", "gcp", "disk")
    aws.interrupt(60)
    assert heard.notice().source == "aws"
    gcp.put("instance/preempted", "TRUE")
    assert heard.notice().source == "gcp"


def test_off_starts_nothing(heard: Heard) -> None:
    made = heard.watch("off", {"GCE_METADATA_HOST": "127.0.0.1:1"})
    assert made.names == ()
    assert not made._ears


def test_no_thread_is_to_be_had(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made = notices.watch("file:/x", tell=print, note=heard._notes.put, environ={}, pace=QUICK)
    assert made.names == ()
    assert "can't start new thread" in heard.note()
    made.close()


def test_importing_it_is_cheap() -> None:
    program = (
        "import sys; before = set(sys.modules); from ksupervise import notices; new = set(sys.modules) - before;"
        "heavy = {'urllib.request', 'http.client', 'tenacity', 'ssl', 'socket', 'email', 'json', 'asyncio'};"
        "print(sorted(heavy & new), [name for name in new if name.endswith(('.aws', '.gcp', '.azure', '.ear'))])"
    )
    supervisor = str(Path(notices.__file__).parents[2])
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {supervisor!r}); {program}"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "[] []\n"


# After failures -----------------------------------------------------------------------------------


class Waits(threading.Event):
    """Says how long it was waited for, without waiting; is set after so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        if len(self.seconds) >= self.most:
            self.set()
        return self.is_set()


class Deaf:
    """A source whose question fails as the test wants."""

    name = "test"
    place = "the service"
    hint = "Turn it on"

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)

    def ask(self) -> None:
        if not (self._answers.pop(0) if self._answers else False):
            raise Unavailable("it is off")

    def questions(self) -> tuple[Question, ...]:
        return (Question("anything", self.ask, 5.0),)

    def hang_up(self) -> None:
        """Nothing to do."""


def waits(source: Deaf, count: int) -> tuple[list[float], list[str]]:
    """The first waits between two questions, and what was noted."""
    notes: list[str] = []
    closing = Waits(count)
    pace = Pace()
    ear = Ear(source.questions()[0], Health(source, notes.append, pace.slow), pace, closing)
    ear.start()
    ear.join(PATIENCE)
    return closing.seconds[:count], notes


def test_what_never_answers_is_asked_once_a_minute() -> None:
    seconds, notes = waits(Deaf(), 6)
    assert 1 <= seconds[0] <= 2
    assert 2 <= seconds[1] <= 3
    assert all(60 <= wait <= 66 for wait in seconds[2:])
    (note,) = notes
    assert note == (
        "test: the service failed 3 times when asked for anything: it is off. Until it answers no notice from there "
        "is heard; training goes on, and it is asked again every 60 s. Turn it on"
    )


def test_what_has_answered_before_is_asked_more_often() -> None:
    seconds, notes = waits(Deaf(True), 9)
    assert seconds[0] == 5
    assert all(1 <= wait <= 11 for wait in seconds[1:])
    assert seconds[-1] >= 10
    assert len(notes) == 1


def test_it_is_said_again_only_after_it_was_back() -> None:
    no = [False] * 4
    _, notes = waits(Deaf(*no, True, *no, True, False, False, True), 13)
    assert ["answers again" in note for note in notes] == [False, True, False, True]


def test_two_questions_of_one_source_are_one_note() -> None:
    notes: list[str] = []
    health = Health(Deaf(), notes.append, 60.0)
    for _ in range(5):
        for what in ("one", "other"):
            health.failed(what, Unavailable("off"))
    health.answered("one")
    assert len(notes) == 1
    health.answered("other")
    assert len(notes) == 2


def test_a_fault_of_our_own_is_noted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Ear) -> None:
        raise TypeError("a library has changed")

    monkeypatch.setattr(Ear, "_retrying", broken)
    _, notes = waits(Deaf(), 5)
    assert len(notes) == 1
    assert "a library has changed" in notes[0]


# Telling once -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.none() | st.floats(0, 5000), st.floats(0, 400)), max_size=20))
def test_told_only_what_is_new(steps: list[tuple[bool, float | None, float]]) -> None:
    """Each notice after the first says more than all before: it is final at last, or nearer, or it has a time."""
    clock = Clock()
    told: list[tuple[bool, float | None]] = []

    def tell(notice: Notice) -> None:
        assert notice.seconds is None or (notice.final and 0 <= notice.seconds <= 900)
        told.append((notice.final, None if notice.seconds is None else clock.now + notice.seconds))

    announcer = Announcer("test", tell, threading.Event(), lead=900.0, clock=clock)
    for final, left, passed in steps:
        clock.now += passed
        announcer.heard("key", "text", final=final, until=None if left is None else clock.now + left)
    if steps:
        assert told
    finals = [until for final, until in told if final]
    assert [final for final, _ in told] == sorted(final for final, _ in told), "never from final to advisory"
    timed = [until for until in finals if until is not None]
    assert all(later < earlier - SLACK + 1e-6 for earlier, later in itertools.pairwise(timed))
    assert None not in finals[1:]


def test_a_server_that_rounds_its_clock_is_not_news() -> None:
    clock = Clock()
    told: list[Notice] = []
    announcer = Announcer("test", told.append, threading.Event(), lead=900.0, clock=clock)
    for wobble in (0.0, -0.9, 0.9, -1.5, 0.0):
        announcer.heard("key", "text", final=True, until=1100.0 + wobble)
    assert len(told) == 1


def test_different_things_are_told_each() -> None:
    told: list[Notice] = []
    announcer = Announcer("test", told.append, threading.Event(), lead=900.0)
    announcer.heard("one", "one", final=True)
    announcer.heard("other", "other", final=False)
    assert [notice.text for notice in told] == ["one", "other"]


@given(st.text())
def test_text_is_one_printable_line(text: str) -> None:
    line = plain(text, 50)
    assert line.isprintable()
    assert len(line) <= 50


# Times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T05:00:00Z", 1795410000.0),
        ("2026-11-23T05:00:00.250Z", 1795410000.25),
        ("2026-11-23T05:00:00.123456789Z", 1795410000.123456789),
        ("2026-11-23T05:00:00", 1795410000.0),
        ("2026-11-23T06:30:00+01:30", 1795410000.0),
        ("2026-11-23T04:00:00-0100", 1795410000.0),
        ("Mon, 23 Nov 2026 05:00:00 GMT", 1795410000.0),
        ("Mon, 23 Nov 2026 05:00:00 -0000", 1795410000.0),
        ("", None),
        ("soon", None),
        ("2026-02-30T00:00:00Z", None),
        ("0000-00-00T00:00:00Z", None),
        ("Mon, 99 Nov 2026 05:00:00 GMT", None),
        ("2026-11-23", None),
        (None, None),
        (1795410000, None),
        ("2" * 100, None),
    ],
)
def test_moments(text: object, seconds: float | None) -> None:
    found = moment_of(text)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


@given(st.text(max_size=70) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", fullmatch=True))
def test_any_text_is_a_moment_or_none(text: str) -> None:
    found = moment_of(text)
    assert found is None or isinstance(found, float)
