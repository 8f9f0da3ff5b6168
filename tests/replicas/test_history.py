"""What an owner says at its end: the newest is read, what it replaces goes, and a rival's stays."""

from __future__ import annotations

import pytest

from ksupervise.replicas.history import read_history, told, write_history
from ksupervise.replicas.place import ReplicaUnreachable

from .memory_place import GENERATION, MemoryPlace

LIMIT = 1000


def names(place: MemoryPlace) -> list[str]:
    return sorted(key.rpartition("/")[2] for key in place.objects)


def test_the_newest_replaces_those_before() -> None:
    place = MemoryPlace()
    assert (read_history(place, GENERATION, LIMIT), told(GENERATION, place.objects)) == (b"", 0)
    write_history(place, GENERATION, 1, "a", b"1\n")
    write_history(place, GENERATION, 1, "a", b"1\n2\n")
    assert names(place) == ["000001-a.0002.jsonl"]
    write_history(place, GENERATION, 4, "b", b"1\n2\n3\n")
    assert names(place) == ["000004-b.0001.jsonl"]
    assert read_history(place, GENERATION, LIMIT) == b"1\n2\n3\n"
    assert told(GENERATION, place.objects) == 4


def test_of_two_that_believe_to_own_an_attempt_neither_removes_the_others() -> None:
    place = MemoryPlace()
    write_history(place, GENERATION, 2, "b", b"b\n")
    write_history(place, GENERATION, 2, "a", b"a\n")
    assert names(place) == ["000002-a.0001.jsonl", "000002-b.0001.jsonl"]
    assert read_history(place, GENERATION, LIMIT) == b"b\n"


def test_one_who_comes_late_takes_nothing_away() -> None:
    place = MemoryPlace()
    write_history(place, GENERATION, 5, "new", b"new\n")
    write_history(place, GENERATION, 2, "old", b"old\n")
    assert read_history(place, GENERATION, LIMIT) == b"new\n"


def test_a_torn_one_has_whole_lines_only() -> None:
    place = MemoryPlace()
    write_history(place, GENERATION, 1, "a", b"1\n2\n")
    (key,) = place.objects
    place.objects[key] = b"1\n2"
    assert read_history(place, GENERATION, LIMIT) == b"1\n"


def test_what_is_not_ours_is_passed_over() -> None:
    place = MemoryPlace()
    for name in ("x.jsonl", "000009-../a.0001.jsonl", "000009-a.jsonl", "000009-a.0001.jsonl.tmp"):
        place.objects[GENERATION.histories + name] = b"no\n"
    assert (read_history(place, GENERATION, LIMIT), told(GENERATION, place.objects)) == (b"", 0)


def test_a_removal_that_fails_is_no_failure_but_a_write_is() -> None:
    place = MemoryPlace()
    write_history(place, GENERATION, 1, "a", b"1\n")

    def fail(method: str, _: str) -> None:
        if method == failing:
            raise ReplicaUnreachable("away")

    place.before, failing = fail, "remove"
    write_history(place, GENERATION, 2, "a", b"2\n")
    assert read_history(place, GENERATION, LIMIT) == b"2\n"
    failing = "write"
    with pytest.raises(ReplicaUnreachable):
        write_history(place, GENERATION, 3, "a", b"3\n")
    assert read_history(place, GENERATION, LIMIT) == b"2\n"
