"""One model, fitted many times: what is kept of the earlier fits suffices to end with the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.keras_runs.conftest import Laboratory

from ksupervise.store import CheckpointStore
from ksupervise.wire import VARIABLES

SCRIPT = Path(__file__).with_name("many_fits_script.py")


def test_fits_of_which_only_the_rest_was_kept(cold_laboratory: Laboratory) -> None:
    """As retention thins them beyond its cap: History and generators are there, the weights only at the last."""
    plain = cold_laboratory.plain("-", script=SCRIPT)
    stopped = cold_laboratory.supervised("-", script=SCRIPT, LEAVE_AT="9")
    assert stopped.status()["state"] == "interrupted", stopped.output
    run = stopped.folder / "store" / "job"
    store = CheckpointStore(run, json_of(run)["id"])
    finals = [each for each in store.checkpoints() if each.manifest.position.kind == "final"]
    assert [each.manifest.position.fit for each in finals] == list(range(9, 0, -1))
    assert {each.manifest.extra["model"] for each in finals} == {1}
    for each in finals[1:]:
        store.thin(each, VARIABLES)
    again = cold_laboratory.supervised("-", script=SCRIPT)
    assert again.code == 0, again.output
    assert again.result == plain.result
    assert again.counted() <= plain.counted() + 8
    assert [event["mode"] for event in again.events("resumed")][:9] == ["skip"] * 9
    assert not any(os.path.exists(each.path + "/" + VARIABLES) for each in finals[1:])


def json_of(run: Path) -> dict[str, str]:
    """run.json."""
    return dict(json.loads((run / "run.json").read_text()))
