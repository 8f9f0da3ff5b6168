"""Two parents on one run: exactly one goes on (law 5)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from .helpers import LEAVER, TALKER, Parent, Place, alive, until, wait_gone


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """Somebody sits there: the descriptor of a terminal."""
    master, slave = os.openpty()
    try:
        yield slave
    finally:
        os.close(slave)
        os.close(master)


def test_without_a_terminal_the_second_is_quiet(place: Place) -> None:
    script = place.script(LEAVER)
    first = place.start(*script)
    first.line("ready")
    second = place.run(*script)
    assert (second.code, second.out, second.err) == (75, b"", b"")
    assert first.process.poll() is None
    first.send(signal.SIGTERM)
    assert first.wait().code == 75
    assert len(place.events("launched")) == 1


def test_at_a_terminal_the_second_says_where(place: Place) -> None:
    script = place.script(LEAVER)
    first = place.start(*script)
    first.line("ready")
    with terminal() as stdin:
        second = place.run(*script, stdin=stdin)
    assert second.code == 75
    assert len(second.err.splitlines()) == 1
    assert second.said(f"is being supervised by process {first.pid} on {os.uname().nodename}")
    first.send(signal.SIGTERM)
    assert first.wait().code == 75


@pytest.mark.parametrize("options", [["--fresh"], ["--retry"]])
def test_no_option_takes_a_run_from_its_living_owner(place: Place, options: list[str]) -> None:
    script = place.script(LEAVER)
    first = place.start(*script)
    first.line("ready")
    assert place.run(*options, *script).code == 75
    first.send(signal.SIGTERM)
    assert first.wait().code == 75
    assert not (place.store / ".archive").exists()


def test_of_two_that_start_together_exactly_one_goes_on(place: Place) -> None:
    def lost(pair: list[Parent]) -> Parent | None:
        return next((parent for parent in pair if parent.process.poll() is not None), None)

    for number in range(20):
        pair = [place.start("--name", f"round-{number}", "sh", "-c", "echo ready; exec sleep 1000") for _ in range(2)]
        loser = until(lambda pair=pair: lost(pair), "end of the loser")  # type: ignore[misc]
        done = loser.wait()
        assert done.err == b""
        assert (done.code, done.out) == (75, b"")
        (winner,) = (parent for parent in pair if parent is not loser)
        winner.line("ready")
        winner.send(signal.SIGTERM)
        assert winner.wait().code == 75


def test_another_name_is_another_run(place: Place) -> None:
    script = place.script(LEAVER)
    parents = [place.start("--name", name, *script) for name in ("one", "two")]
    for parent in parents:
        parent.line("ready")
    for parent in parents:
        parent.send(signal.SIGTERM)
        assert parent.wait().code == 75


def _killed(place: Place, script: list[str]) -> Parent:
    parent = place.start(*script)
    parent.line("ready")
    parent.kill()
    return parent


def test_a_run_whose_parent_was_killed_is_taken_over(place: Place) -> None:
    script = place.script(LEAVER)
    _killed(place, script)
    assert place.status()["state"] == "lost"
    second = place.start(*script)
    second.line("ready")
    second.send(signal.SIGTERM)
    assert second.wait().code == 75
    attempts = place.status()["attempts"]
    assert [attempt["number"] for attempt in attempts] == [1, 2]
    assert attempts[0]["cause"] == "parent_lost"
    assert attempts[0]["ended"] is not None


def test_a_lost_run_costs_no_budget(place: Place) -> None:
    script = place.script(LEAVER)
    for _ in range(2):
        _killed(place, script)
    place.write("script.py", "")
    done = place.run("--max-failures", "1", *script)
    assert done.code == 0
    assert place.status()["attempt"] == 3


# Immortal by PDEATHSIG's own rule: it is cleared by the exec of a set-user-ID program, and by prctl.
SURVIVOR = """
import ctypes, os
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
"""


def test_the_lock_is_free_only_when_parent_and_child_are_dead(place: Place) -> None:
    script = place.script(SURVIVOR + TALKER)
    parent = _killed(place, script)
    child = int(place.events("launched")[0]["pid"])
    assert alive(child)
    second = place.start("--grace", "1h", *place.script("print('mine')"))
    second.err_line("the parent of this run is gone; waiting for its child to save and leave")
    assert second.process.poll() is None
    assert len(place.events("launched")) == 1
    os.kill(child, signal.SIGKILL)
    done = second.wait()
    assert (done.code, done.out) == (0, b"mine\n")
    parent.end()


@pytest.mark.torture
def test_a_child_that_will_not_leave_is_ended_by_the_takeover(place: Place) -> None:
    parent = _killed(place, place.script(SURVIVOR + TALKER))
    child = int(place.events("launched")[0]["pid"])
    done = place.start("--grace", "0s", *place.script("print('mine')"))
    until(lambda: done.process.poll() is not None, "takeover", 40)
    assert done.wait().out == b"mine\n"
    wait_gone(child)
    parent.end()


def test_a_note_that_nobody_could_write_is_not_taken_for_a_death(place: Place) -> None:
    """On a full disk the lock has no note. Its holder is alive all the same: nothing of it is touched."""
    script = place.script(LEAVER)
    first = place.start(*script)
    first.line("ready")
    (place.run_dir / "lock").write_bytes(b"")
    assert place.run("--grace", "0s", *script).code == 75
    assert first.process.poll() is None
    first.send(signal.SIGTERM)
    assert first.wait().code == 75


def test_a_lock_left_by_a_dead_machine_is_no_lock(place: Place) -> None:
    place.run("--max-failures", "1", "sh", "-c", "exit 1")
    (place.run_dir / "lock").write_text('{"pid": 1, "host": "elsewhere"}')
    assert place.run("--retry", "--max-failures", "1", "sh", "-c", "exit 1").code == 125
