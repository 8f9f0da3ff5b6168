"""What cannot be promised is said; and a run comes to its end all the same."""

from __future__ import annotations

import json

from tests.keras_runs.conftest import Laboratory

from ksupervise.store import CheckpointStore


def test_lost_in_mid_epoch_again_and_again_it_comes_to_an_end(laboratory: Laboratory) -> None:
    """Its place in the data cannot be gone back to: the epoch's begin is, until the same epoch was lost twice."""
    supervised = laboratory.supervised("by_python_unseeded", INTERRUPT="life:70", LIVES="99", INSIDE="1")
    assert supervised.code == 0, supervised.output
    begun = supervised.events("fit_began")
    assert [event["mode"] for event in begun[:2]] == ["fresh", "fresh"], "exactly once is preferred"
    assert supervised.output.count("its begin is; lost once more, it will go on inside") == 1
    assert len(begun) > 2
    resumed = supervised.events("resumed")
    assert len(resumed) == len(begun) - 2
    for event in resumed:
        assert event["guarantee"].startswith("approximate: ")
    steps = [event["step"] for event in resumed]
    assert steps[0] > 0
    assert steps == sorted(set(steps)), "each attempt comes further"
    assert supervised.result["epochs"] == [[0]]
    assert supervised.status()["steps_executed"] == 160 + supervised.status()["lost_steps"]


def test_random_numbers_inside_the_compiled_step_are_said(laboratory: Laboratory) -> None:
    supervised = laboratory.supervised("draws_in_step", INTERRUPT="batch:30")
    assert supervised.code == 0, supervised.output
    (resumed,) = supervised.events("resumed")
    assert "random operations inside the compiled train_step" in resumed["guarantee"]
    assert resumed["guarantee"] in supervised.output


def test_a_state_of_a_newer_format_is_refused(laboratory: Laboratory) -> None:
    """It is no damage: nothing is set aside, nor read as if it were of ours."""
    first = laboratory.supervised("built", INTERRUPT="batch:30", WITH="SIGTERM", SHRINK="96")
    assert first.code == 2, first.output  # left inside an epoch, see test_data.py
    run = first.folder / "store" / "job"
    store = CheckpointStore(run, json.loads((run / "run.json").read_text())["id"])
    newest = store.newest()
    assert newest is not None
    manifest = newest.manifest
    files = {record.name: b"".join(store.read(newest, record.name)) for record in manifest.files}
    files["state.json"] = json.dumps({**json.loads(files["state.json"]), "format": 99}).encode()
    newer = store.commit(
        manifest.position,
        {name: [content] for name, content in files.items()},
        seq=store.next_seq(),
        attempt=manifest.attempt,
        holder=manifest.holder,
        origin=manifest.origin,
        extra=manifest.extra,
    )
    refused = laboratory.supervised("built", "--retry")
    assert refused.code == 2, refused.output
    assert "format 99" in refused.output
    assert "--fresh" in refused.output
    left = store.newest()
    assert left is not None
    assert left.path == newer.path
    assert refused.counted() == first.counted()
