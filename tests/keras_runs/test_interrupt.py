"""Ctrl-C inside fit: saved first, then the script's own, and nothing is trained in between."""

from __future__ import annotations

from pathlib import Path

from tests.keras_runs.conftest import Laboratory

SCRIPT = Path(__file__).with_name("interrupted_script.py")


def test_what_was_saved_is_where_the_interrupt_came(cold_laboratory: Laboratory) -> None:
    interrupted = cold_laboratory.supervised("", script=SCRIPT)
    assert interrupted.code == 130, interrupted.output
    saved = [event for event in interrupted.events("committed") if event["kind"] == "batch"]
    assert saved[-1]["step"] == interrupted.result["steps"], "not one batch more"
    traceback = interrupted.result["traceback"]
    assert traceback.rstrip().endswith("KeyboardInterrupt")
    assert "boot.zip" not in traceback, "no frame of ours"
    assert "/keras/src/callbacks/" in traceback
