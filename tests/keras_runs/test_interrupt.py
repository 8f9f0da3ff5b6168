"""Ctrl-C inside fit: saved first, then the script's own, and nothing is trained in between."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
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


def test_wherever_in_our_code_it_comes_no_frame_of_ours_is_shown() -> None:
    from keras.src.callbacks.callback import Callback

    from ksupervise.child import hook

    class Interrupted:
        of_unknown_length = True

        def __getattr__(self, name: str) -> object:
            def deep_inside(*_: object) -> None:
                raise KeyboardInterrupt

            return deep_inside

    for callback in hook._callback_classes(Callback)(Interrupted()):  # type: ignore[arg-type]
        moments = [name for name in dir(type(callback)) if getattr(type(callback), name) is not getattr(Callback, name)]
        ours = [getattr(callback, name) for name in moments if name.startswith("on_")]
        assert ours
        for moment in ours:
            with pytest.raises(KeyboardInterrupt) as caught:
                moment(1, None) if "epoch" in moment.__name__ or "batch" in moment.__name__ else moment(None)
            files = [frame.filename for frame in traceback.extract_tb(caught.tb)]
            assert files[1:]
            assert not [file for file in files if "ksupervise/child" in file]
            assert not caught.value.__context__
