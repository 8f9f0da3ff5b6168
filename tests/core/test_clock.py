"""One time for the records of many lives, whatever the clocks do."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ksupervise.core.clock import in_order, timeline

Record = dict[str, Any]


def taken(at: float, mono: float, boot: str = "one", host: str = "here") -> Record:
    """A life begins."""
    return {"event": "taken", "at": at, "mono": mono, "boot": boot, "host": host}


def record(at: float, mono: float) -> Record:
    """Something happens."""
    return {"event": "committed", "at": at, "mono": mono}


def test_nothing() -> None:
    assert timeline([]).times == ()


def test_within_a_life_the_steady_clock_counts() -> None:
    line = timeline([taken(1000.0, 10.0), record(1005.0, 15.0), record(1007.5, 17.5)])
    assert line.times == (0.0, 5.0, 7.5)
    assert line.flags == ()


def test_a_clock_that_is_slewed_is_not_worth_a_word() -> None:
    line = timeline([taken(1000.0, 10.0), record(1049.0, 20.0)])
    assert (line.times, line.flags) == ((0.0, 10.0), ())


def test_a_clock_set_back() -> None:
    line = timeline([taken(10_000.0, 10.0), record(6_410.0, 20.0)])
    assert line.times == (0.0, 10.0)
    assert line.flags == ("the wall clock was set back by 3600 s",)


def test_a_suspended_machine() -> None:
    line = timeline([taken(0.0, 10.0), record(7_210.0, 20.0)])
    assert line.times == (0.0, 10.0)
    assert line.flags == ("the machine was suspended, or its clock set forward, by 7200 s",)


def test_between_lives_of_one_boot_the_steady_clock_counts_too() -> None:
    line = timeline([taken(10_000.0, 10.0), record(10_010.0, 20.0), taken(6_000.0, 50.0), record(6_001.0, 51.0)])
    assert line.times == (0.0, 10.0, 40.0, 41.0)
    assert len(line.flags) == 1


def test_between_boots_only_the_wall_clock_can_tell() -> None:
    line = timeline([taken(100.0, 5_000.0), record(110.0, 5_010.0), taken(410.0, 7.0, boot="two"), record(420.0, 17.0)])
    assert line.times == (0.0, 10.0, 310.0, 320.0)
    assert line.flags == ()


def test_another_machine_with_a_later_steady_clock() -> None:
    line = timeline([taken(100.0, 10.0), taken(160.0, 90_000.0, host="there", boot="three")])
    assert line.times == (0.0, 60.0)


def test_time_never_runs_backwards_between_lives() -> None:
    line = timeline([taken(9_000.0, 10.0), taken(1_000.0, 5.0, boot="two"), record(1_010.0, 15.0)])
    assert line.times == (0.0, 0.0, 10.0)
    assert line.flags == ("the wall clock went back by 8000 s between two lives: that time is counted as none",)


def test_of_an_unknown_boot_nothing_is_believed() -> None:
    line = timeline([taken(100.0, 10.0, boot=""), taken(130.0, 500.0, boot="")])
    assert line.times == (0.0, 30.0)


def test_the_lives_of_two_machines_that_interleave_are_told_apart() -> None:
    """The journal of a store that both see, or one that was merged. Neither clock went back."""
    one = [{**taken(1000.0, 10.0), "life": "x"}, {**record(1200.0, 210.0), "life": "x"}]
    other = [{**taken(1100.0, 9000.0, host="there", boot="two"), "life": "y"}, {**record(1300.0, 9200.0), "life": "y"}]
    mixed = [one[0], other[0], one[1], other[1]]
    assert in_order(mixed) == [*one, *other]
    superseded = {**record(1200.0, 210.0), "life": "x", "event": "superseded"}
    line = timeline([one[0], other[0], superseded, other[1]])
    assert (line.times, line.flags) == ((0.0, 200.0, 100.0, 300.0), ())


def test_machines_whose_clocks_differ_are_named_once() -> None:
    """Three lives on each, and B is a day ahead."""
    lives = []
    for index, (host, ahead, up) in enumerate([("a", 0.0, 10.0), ("b", 86_400.0, 5000.0)] * 3):
        now = 100.0 * index
        begun = {**taken(now + ahead, now + up, host, host), "life": f"{index}"}
        done = {**record(now + 50 + ahead, now + 50 + up), "life": f"{index}", "attempt": index + 1}
        lives += [begun, done]
    line = timeline(lives)
    assert line.times[::4] == (0.0, 200.0, 400.0), "A's own clock tells"
    assert line.times[3::4] == (200.0, 400.0, 600.0), "B's: it was over when A came back"
    assert len(line.flags) == 1
    assert line.flags[0].startswith("the clocks of a and b differ by 863")


def test_who_merges_and_launches_nothing_lives_after_those_whose_records_came() -> None:
    merges = {"event": "merged", "lives": ["y"], "life": "z", "at": 500.0, "mono": 5.0}
    one = [{**taken(0.0, 10.0), "life": "x"}, {**record(1.0, 11.0), "event": "launched", "attempt": 1, "life": "x"}]
    other = [{**record(100.0, 9000.0), "event": "launched", "attempt": 2, "life": "y"}]
    begins = {**taken(501.0, 6.0, boot="two"), "life": "z"}
    assert in_order([*one, merges, *other, begins]) == [*one, *other, merges, begins]


SECONDS = st.floats(0, 1e9)


@given(st.lists(st.tuples(SECONDS, SECONDS, st.sampled_from(["", "one", "two"])), max_size=12))
def test_whatever_the_clocks_say_time_never_falls(records: list[tuple[float, float, str]]) -> None:
    made = [taken(at, mono, boot) if boot else record(at, mono) for at, mono, boot in records]
    line = timeline(made)
    assert len(line.times) == len(made)
    assert all(later >= earlier for earlier, later in itertools.pairwise(line.times))
