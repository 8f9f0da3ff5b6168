"""What `status` says of replicas, from journals written here."""

from __future__ import annotations

from typing import Any

from tests.core.machines import Life, Machine

from ksupervise.core.clock import MERGED
from ksupervise.report.replicas import as_json, lines


def committed(seq: int, at: float) -> dict[str, Any]:
    return {"event": "committed", "seq": seq, "step": 10 * seq, "at": at}


def told(op: str, **fields: Any) -> dict[str, Any]:
    return {"event": "replica", "place": "s3://bucket", "op": op, "at": 0.0, **fields}


def test_a_run_without_replicas_has_none() -> None:
    assert as_json([committed(1, 0.0)], 5.0) == []
    assert lines([]) == []


def test_the_lag_is_the_age_of_the_first_commit_that_is_not_there() -> None:
    records = [
        committed(1, 100.0),
        told("replicated", seq=1, arrival="uploaded"),
        committed(2, 130.0),
        committed(3, 160.0),
    ]
    (place,) = as_json(records, 200.0)
    assert place == {
        "place": "s3://bucket",
        "state": "uploaded",
        "seq": 1,
        "step": 10,
        "failed": None,
        "behind": 2,
        "lag_s": 70.0,
    }
    assert lines([place]) == ["replica    s3://bucket: step 10 uploaded; 2 behind, for 1 m 10 s"]


def test_a_failing_replica_says_why_until_it_works_again() -> None:
    records = [committed(1, 100.0), told("failed", reason="no such bucket", kind="refused")]
    (place,) = as_json(records, 101.0)
    assert (place["state"], place["failed"], place["behind"]) == ("none", "no such bucket", 1)
    assert lines([place]) == ["replica    s3://bucket: nothing there yet", "           failing: no such bucket"]
    (place,) = as_json([*records, told("replicated", seq=1, arrival="cached")], 101.0)
    assert (place["state"], place["failed"], place["behind"]) == ("cached", None, 0)


def test_what_was_cached_arrives_and_an_older_one_does_not_take_its_place() -> None:
    records = [
        committed(1, 0.0),
        committed(2, 0.0),
        told("replicated", seq=2, arrival="cached"),
        told("arrived", seq=1),
    ]
    assert as_json(records, 0.0)[0]["state"] == "cached"
    assert as_json([*records, told("arrived", seq=2)], 0.0)[0]["state"] == "uploaded"


def test_two_places_stand_one_below_the_other() -> None:
    records = [committed(1, 0.0), told("replicated", seq=1, arrival="uploaded"), {**told("superseded"), "place": "/b"}]
    assert lines(as_json(records, 0.0)) == [
        "replica    s3://bucket: step 10 uploaded, nothing newer",
        "           /b: taken over by another machine",
    ]


def says(life: Life, now: float, op: str, place: str = "/r", **fields: Any) -> dict[str, Any]:
    """What a life's worker told of a place."""
    return life.says("replica", now, op=op, place=place, **fields)


def test_another_machines_replicas_are_not_this_ones() -> None:
    """There the bucket has another name, it fails, and its clock is hours ahead. Here all is well."""
    here, there = Machine("a").life(), Machine("b", ahead=7200.0).life()
    told = [
        *(there.launched(0, 1), there.committed(10, 1, 20), there.committed(20, 1, 30)),
        *(says(there, 15, "replicated", "/elsewhere/r", seq=2), says(there, 25, "failed", reason="it was unplugged")),
        *(here.says(MERGED, 99, lives=[there.name]), here.launched(100, 2)),
        *(says(here, 101, "there", seq=2), here.committed(110, 2, 40), here.committed(120, 2, 50)),
    ]
    (place,) = as_json(told, here.says("now", 130)["at"])
    assert (place["place"], place["step"], place["failed"]) == ("/r", 20, None)
    assert (place["behind"], place["lag_s"]) == (2, 20.0), "by this machine's own commits and clock"


def test_a_machine_that_took_the_run_back_is_not_superseded_any_more() -> None:
    """It had committed a checkpoint that never got there; the other machine gave its number away, too."""
    a, b = Machine("a"), Machine("b")
    one, two, three = a.life(), b.life(), a.life()
    told = [
        *(one.launched(0, 1), one.committed(1, 1, 10, seq=1), says(one, 2, "replicated", seq=1)),
        *(one.committed(3, 1, 14, seq=2), one.committed(4, 1, 16, seq=3)),
        one.superseded(9),
    ]
    (place,) = as_json(told, one.says("now", 10)["at"])
    assert (place["state"], place["behind"]) == ("superseded", 2)
    told += [three.says(MERGED, 20, lives=[two.name]), two.launched(5, 2), two.committed(6, 2, 20, seq=2)]
    told += [three.launched(21, 3), says(three, 22, "there", seq=2)]
    (place,) = as_json(told, three.says("now", 30)["at"])
    assert (place["state"], place["step"], place["behind"]) == ("uploaded", 20, 0), "what it lacks is older"


def test_a_place_that_holds_what_no_journal_tells_of() -> None:
    records = [told("there", seq=7, arrival="uploaded"), committed(7, 1.0), committed(8, 2.0)]
    (place,) = as_json([*records[:1], records[2]], 5.0)
    assert (place["step"], place["behind"], place["lag_s"]) == (None, 1, 3.0)
