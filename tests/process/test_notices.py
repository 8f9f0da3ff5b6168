"""A deadline and a notice: asked to go in time, without a signal from anybody."""

from __future__ import annotations

import time

from .helpers import LEAVER, TALKER, Place


def test_a_deadline_is_kept(place: Place) -> None:
    began = time.monotonic()
    parent = place.start("--deadline", "2s", "--grace", "1s", *place.script(TALKER))
    parent.line("got SIGTERM")
    warned = time.monotonic() - began
    done = parent.wait()
    over = time.monotonic() - began
    assert done.code == 75
    assert done.out == b"ready\ngot SIGTERM\n"
    assert 0.9 < warned < 1.9, "its grace period before the deadline"
    assert over < 4
    assert place.record()["detail"] == "the deadline"


def test_a_child_that_leaves_in_time_is_all_it_needs(place: Place) -> None:
    parent = place.start("--deadline", "1s", "--grace", "700ms", *place.script(LEAVER))
    assert parent.wait().code == 75
    assert place.record()["state"] == "preempted"


def test_a_script_that_is_done_before_never_hears_of_it(place: Place) -> None:
    assert place.run("--deadline", "1h", "true").code == 0


def test_a_deadline_that_is_over_at_once(place: Place) -> None:
    done = place.run("--deadline", "1s", "--grace", "1h", *place.script(TALKER))
    assert done.code == 75


def test_a_notice_file(place: Place) -> None:
    notice = place.root / "notice"
    parent = place.start("--notice", f"file:{notice}", *place.script(LEAVER))
    parent.line("ready")
    notice.touch()
    done = parent.wait()
    assert (done.code, done.out) == (75, b"ready\ngot SIGTERM\n")
    assert done.said(f"preempted: file: {notice} is there")
    again = place.run("--notice", f"file:{notice}", *place.script(LEAVER))
    assert again.code == 75, "the notice is still there"


def test_the_deadline_counts_in_the_backoff_too(place: Place) -> None:
    began = time.monotonic()
    done = place.run("--deadline", "1s", "--grace", "0s", "--max-failures", "99", "sh", "-c", "exit 1")
    assert done.code == 75
    assert time.monotonic() - began < 4
