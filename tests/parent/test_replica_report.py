"""What `status` says of replicas, from journals written here."""

from __future__ import annotations

from typing import Any

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
