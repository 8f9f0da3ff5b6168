"""What callbacks remember, under keys that are the same at each attempt; nothing they hold ends a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksupervise.child import logs
from ksupervise.child.callbacks import BUILT_IN, Roster

from .helpers import Thing, through_a_checkpoint
from .stand_ins import CSVLogger


class Callback(Thing):
    """Of the script's own."""


class Other(Callback):
    pass


def built_in(name: str, **attributes: Any) -> Any:
    """One of Keras' own, as far as it is looked at."""
    cls = type(name, (Thing,), {"__module__": f"keras.src.callbacks.{name.lower()}"})
    return cls(**attributes)


def begun(*callbacks: Any) -> Roster:
    roster = Roster(callbacks)
    roster.prepare({})
    roster.begin()
    return roster


def handed_on(roster: Roster, *callbacks: Any) -> Roster:
    """What `roster` captured, put back into the callbacks of a later attempt."""
    arrays: dict[str, Any] = {}
    states = json.loads(json.dumps(roster.capture(arrays)))
    later = Roster(callbacks)
    later.prepare(states)
    later.begin()
    later.put_back(states, through_a_checkpoint(arrays))
    return later


def keys(*callbacks: Any) -> list[str]:
    return [member.key for member in Roster(callbacks)._members]


def test_keys() -> None:
    early, late = built_in("EarlyStopping", monitor="loss"), built_in("EarlyStopping", monitor="val_loss")
    assert keys(Callback(), early, Other(), late) == [
        "Callback::0",
        "EarlyStopping:loss:0",
        "Other::0",
        "EarlyStopping:val_loss:0",
    ]
    local = type("Callback", (Callback,), {"__qualname__": "main.<locals>.Callback"})
    assert keys(local(), Callback()) == ["main.<locals>.Callback::0", "Callback::0"]


def test_two_of_the_same_class_are_told_apart() -> None:
    one, two = Callback(n=0), Callback(n=0)
    roster = begun(one, two)
    one.n, two.n = 1, 2
    assert keys(one, two) == ["Callback::0", "Callback::1"]
    later = Callback(n=0), Callback(n=0)
    handed_on(roster, *later)
    assert [callback.n for callback in later] == [1, 2]


def test_one_that_was_added_since_begins_anew() -> None:
    one = Callback(n=0)
    roster = begun(one)
    one.n = 5
    added, kept = Other(n=0), Callback(n=0)
    handed_on(roster, added, kept)
    assert (added.n, kept.n) == (0, 5)


def test_plain_attributes_that_changed_are_carried_but_for_keras_own() -> None:
    callback = Callback(model=1, _model=1, params={}, rows=[], min_delta=1.0, patience=2)
    roster = begun(callback)
    callback.model, callback.params, callback.min_delta = 2, {"epochs": 3}, -1.0
    callback.rows.append(3)
    assert roster.capture({}) == {"Callback::0": {"attributes": {"rows": {"$": "same", "v": [3]}}}}


def test_of_a_built_in_the_listed_attributes_are_carried_whether_they_changed_or_not() -> None:
    stopping = built_in("EarlyStopping", monitor="loss", wait=2, best=0.5, best_weights=[np.ones(2)], patience=3)
    arrays: dict[str, Any] = {}
    state = begun(stopping).capture(arrays)["EarlyStopping:loss:0"]["attributes"]
    assert set(state) == {"wait", "best", "best_weights"} <= set(BUILT_IN["EarlyStopping"])
    fresh = built_in("EarlyStopping", monitor="loss", wait=0, best=None, best_weights=None, patience=3)
    handed_on(begun(stopping), fresh)
    assert (fresh.wait, fresh.best, fresh.best_weights[0].tolist()) == (2, 0.5, [1.0, 1.0])


def test_a_built_in_that_we_do_not_know_is_left_alone() -> None:
    callback = built_in("Newest", state=0)
    roster = begun(callback)
    callback.state = 1
    assert roster.capture({}) == {}


class GetState(Callback):
    def get_state(self) -> Any:
        return {"seen": self.seen, "weights": self.weights}

    def set_state(self, state: Any) -> None:
        self.seen, self.weights = state["seen"], state["weights"]
        self.restored = True


class StateDict(Callback):
    def state_dict(self) -> Any:
        return self.seen

    def load_state_dict(self, state: Any) -> None:
        self.seen = state


def test_one_that_has_methods_for_it_is_asked_and_its_attributes_are_left_alone() -> None:
    one, two = GetState(seen={1}, weights=np.arange(3), other=0), StateDict(seen=(1, 2), other=0)
    roster = begun(one, two)
    one.other = two.other = 5
    fresh = GetState(seen=None, weights=None, other=0), StateDict(seen=None, other=0)
    handed_on(roster, *fresh)
    assert (fresh[0].seen, fresh[0].weights.tolist(), fresh[0].other) == ({1}, [0, 1, 2], 0)
    assert (fresh[1].seen, fresh[1].other) == ((1, 2), 0)


def test_half_a_pair_of_methods_is_none() -> None:
    half = type("Half", (Callback,), {"get_state": lambda self: 1 / 0})(n=0)
    roster = begun(half)
    half.n = 1
    assert roster.capture({}) == {"Half::0": {"attributes": {"n": 1}}}


def test_a_method_that_returns_what_is_no_plain_data_is_named_once_and_ends_nothing() -> None:
    odd = GetState(seen=object(), weights=None)
    fine = Callback(n=0)
    roster = begun(odd, fine)
    fine.n = 1
    for _ in range(3):
        arrays: dict[str, Any] = {}
        assert roster.capture(arrays) == {"Callback::0": {"attributes": {"n": 1}}}
        through_a_checkpoint(arrays)
    (named,) = roster.skipped
    assert named == "GetState.get_state() (no plain data)"
    fresh = GetState(seen=None, weights=None)
    handed_on(roster, fresh, Callback(n=0))
    assert not hasattr(fresh, "restored"), "nothing was kept for it"


def test_a_method_that_returns_plain_data_in_part() -> None:
    """The arrays of a state that was refused in the middle belong to nobody."""
    odd = type("Odd", (GetState,), {"get_state": lambda self: [np.ones(2), object()]})()
    arrays: dict[str, Any] = {}
    assert begun(odd).capture(arrays) == {}
    through_a_checkpoint(arrays)


def test_a_method_that_fails_is_named_and_ends_nothing() -> None:
    failing = type("Failing", (GetState,), {"get_state": lambda self: 1 / 0})()
    fine = Callback(n=0)
    roster = begun(failing, fine)
    fine.n = 1
    assert roster.capture({}) == {"Callback::0": {"attributes": {"n": 1}}}
    (named,) = roster.skipped
    assert "get_state()" in named
    assert "ZeroDivisionError" in named


def test_what_is_skipped_is_named_with_its_callback() -> None:
    callback = Callback(stream=object(), function=print)
    roster = begun(callback)
    roster.capture({})
    assert roster.skipped == {"Callback.stream (object)"}


def test_backup_and_restore_restores_nothing_in_a_later_attempt() -> None:
    """Its file may be torn: it is not even looked at."""
    loaded: list[int] = []
    backup = built_in("BackupAndRestore")
    type(backup)._load_model = lambda self: loaded.append(1)
    roster = Roster([backup])
    (note,) = roster.prepare({})
    assert "BackupAndRestore" in note
    backup._load_model()
    assert loaded == []
    roster.begin()
    backup._load_model()
    assert loaded == [1], "from then on it is as the script made it"


def test_log_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "earlier", [])
    path = str(tmp_path / "log.csv")
    Path(path).write_text("of an older run")
    logger = CSVLogger(path)
    roster = Roster([logger])
    assert roster.logs() == {}, "it will be overwritten"
    assert Roster([CSVLogger(path, append=True)]).logs() == {"CSVLogger::0": {"log": {"size": 15, "keys": None}}}
    assert roster.prepare({}) == []
    logger.on_train_begin()
    roster.begin()
    logger.on_epoch_end(0, loss=1)
    states = roster.capture({})
    logger.on_train_end()
    assert states["CSVLogger::0"]["log"] == {"size": 15, "keys": ["loss"]}
    Path(path).unlink()
    (note,) = Roster([CSVLogger(path)]).prepare(states)
    assert "shorter than it was" in note
