"""Every signal to the parent reaches the child once, and ends in time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from .helpers import LEAVER, TALKER, Place, alive, until, wait_gone

FAST = ("--grace", "300ms")


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGTERM"), (signal.SIGINT, "SIGINT")],
)
def test_the_child_gets_exactly_one(place: Place, sent: int, received: str) -> None:
    parent = place.start(*FAST, *place.script(TALKER))
    parent.line("ready")
    parent.send(sent)
    done = parent.wait()  # it ignores the signal, so it is killed once its grace is over
    assert done.out.split(b"\n")[1:-1] == [f"got {received}".encode()]


def test_a_terminals_ctrl_c_reaches_the_child_once(place: Place) -> None:
    """A terminal signals its whole foreground group; the child has a session of its own."""
    parent = place.start(*FAST, *place.script(TALKER), start_new_session=True)
    parent.line("ready")
    os.killpg(parent.pid, signal.SIGINT)
    done = parent.wait()
    assert done.code == 130
    assert done.out.count(b"got SIGINT") == 1


def test_a_child_that_ignores_is_killed_when_its_grace_is_over(place: Place) -> None:
    parent = place.start("--grace", "700ms", *place.script(TALKER))
    parent.line("ready")
    began = time.monotonic()
    parent.send(signal.SIGTERM)
    done = parent.wait()
    assert done.code == 75
    assert 0.6 < time.monotonic() - began < 5


def test_a_child_that_leaves_is_not_waited_for(place: Place) -> None:
    parent = place.start("--grace", "1h", *place.script(LEAVER))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75


def test_further_terms_are_harmless(place: Place) -> None:
    parent = place.start(*FAST, *place.script(TALKER))
    parent.line("ready")
    for _ in range(3):
        parent.send(signal.SIGTERM)
    parent.line("got SIGTERM")
    while parent.process.poll() is None:  # also while it writes the verdict down and leaves
        parent.send(signal.SIGTERM)
        time.sleep(0.0005)
    done = parent.wait()
    assert done.code == 75
    assert done.out.count(b"got") == 1
    assert place.record()["state"] == "preempted"


def test_the_second_ctrl_c_hurries_and_the_third_kills(place: Place) -> None:
    parent = place.start("--grace", "1h", *place.script(TALKER))
    parent.line("ready")
    parent.send(signal.SIGINT)
    parent.line("got SIGINT")
    parent.send(signal.SIGINT)
    parent.line("got SIGTERM")
    parent.send(signal.SIGINT)
    done = parent.wait()
    assert done.code == 130
    assert done.out.count(b"got") == 2


def test_ctrl_c_after_term_is_the_users_word(place: Place) -> None:
    parent = place.start("--grace", "1s", *place.script(TALKER))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    parent.line("got SIGTERM")
    parent.send(signal.SIGINT)
    assert parent.wait().code == 130


def test_nohup_is_obeyed(place: Place) -> None:
    def ignore_hangup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    parent = place.start(*FAST, *place.script(TALKER), preexec_fn=ignore_hangup)
    child = _ready(place)
    parent.send(signal.SIGHUP)
    os.kill(child, signal.SIGUSR1)
    parent.line("got SIGUSR1")  # an answer to something that came later: the hangup did not
    assert parent.process.poll() is None
    assert b"SIGHUP" not in parent.out
    status = Path(f"/proc/{child}/status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    assert ignored >> (signal.SIGHUP - 1) & 1
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75


def _ready(place: Place) -> int:
    place.parents[-1].line("ready")
    return int(place.events("launched")[-1]["pid"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_the_backoff_ends_at_once(place: Place, number: int) -> None:
    parent = place.start("--max-failures", "99", "sh", "-c", "exit 1")
    parent.err_line("attempt 3 in ")  # 0.5 to 2 s from now
    parent.send(number)
    done = parent.wait()
    assert done.code == (75 if number == signal.SIGTERM else 130)
    assert len(place.events("launched")) in (2, 3)


def test_stop_during_the_backoff(place: Place) -> None:
    parent = place.start("--max-failures", "99", "sh", "-c", "exit 1")
    parent.err_line("attempt 3 in ")
    assert b"was asked" in place.report("stop").out
    assert parent.wait().code == 130


def test_a_stopped_child_is_continued_for_its_signal(place: Place) -> None:
    parent = place.start("--grace", "1h", *place.script(LEAVER))
    child = _ready(place)
    os.kill(child, signal.SIGSTOP)
    until(lambda: psutil.Process(child).status() == psutil.STATUS_STOPPED, "stop")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
    assert b"got SIGTERM" in parent.out


def test_a_term_to_the_child_from_outside_is_a_preemption_and_free(place: Place) -> None:
    source = "import os, signal\nif os.environ['KSUPERVISE_ATTEMPT'] == '1': os.kill(os.getpid(), signal.SIGTERM)"
    done = place.run("--max-failures", "1", *place.script(source))
    assert done.code == 0
    assert done.said("SIGTERM to the child from outside")


def test_the_child_has_the_signals_of_a_fresh_process(place: Place) -> None:
    """No mask, nothing ignored that plain Python would not ignore; handlers only for crashes and for stacks."""
    probe = place.script("print([l for l in open('/proc/self/status') if l.startswith(('SigB', 'SigI'))])")
    plain = place.plain(probe)
    assert place.run(*probe).out == plain.out


def test_the_parent_ignores_what_is_nobodys_word(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    _ready(place)
    parent.send(signal.SIGCHLD)
    parent.send(signal.SIGWINCH)
    parent.send(signal.SIGCONT)
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
    assert b"got SIGTERM" in parent.out


def test_another_signal_ends_the_parent_and_the_child_with_it(place: Place) -> None:
    parent = place.start(*place.script(TALKER))
    child = _ready(place)
    parent.send(signal.SIGVTALRM)
    assert parent.wait().code == -signal.SIGVTALRM
    wait_gone(child)
    assert not alive(child)
    assert place.status()["state"] == "lost"
