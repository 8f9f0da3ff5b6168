"""What callbacks remember. Keras has no convention for it, so the built-ins' attributes are listed here.

A callback of the script's own is asked by `get_state`/`set_state` or `state_dict`/`load_state_dict`; one that has
neither gets back those of its plain attributes that changed since the fit began. `__dict__` is never dumped:
Keras flips the sign of `min_delta` lazily, and a naive restore would flip it twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ksupervise.child import codec, logs
from ksupervise.child.attributes import Attributes

BUILT_IN = {
    "EarlyStopping": ("wait", "best", "best_epoch", "stopped_epoch", "best_weights"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"),
    "History": ("history", "epoch"),
    "OrbaxCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen"),
    "TensorBoard": ("_global_train_batch", "_global_test_batch", "_previous_epoch_iterations"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "CSVLogger": (),
    "LearningRateScheduler": (),
    "TerminateOnNaN": (),
    "LambdaCallback": (),
    "RemoteMonitor": (),
    "ProgbarLogger": (),
    "BackupAndRestore": (),
}
# Set by Keras itself, lazily or at each fit: never ours to put back.
_KERAS_OWN = frozenset({"model", "_model", "params", "monitor_op", "monitor", "mode", "min_delta", "patience"})
_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


class Roster:
    """The callbacks of one fit, each under a key that is the same in every attempt."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._members = [_Member(_key(callbacks, index), callback) for index, callback in enumerate(callbacks)]

    @property
    def skipped(self) -> set[str]:
        """What could not be carried: it is no plain data."""
        return set().union(*(member.skipped for member in self._members))

    def stopped_on_nan(self, logs: Mapping[str, Any] | None) -> bool:
        """TerminateOnNaN had reason to end the fit whose last logs these are."""
        loss = (logs or {}).get("loss")
        watched = any(member.watches_for_nan for member in self._members)
        return watched and isinstance(loss, float) and not math.isfinite(loss)

    def prepare(self, states: dict[str, Any]) -> list[str]:
        """Before `on_train_begin`: log files go on behind what was written up to the checkpoint, and
        BackupAndRestore restores nothing. Returns what the user should know."""
        return [note for member in self._members for note in member.prepare(states.get(member.key, {})) if note]

    def begin(self) -> None:
        """After `on_train_begin`: remember how the script's own callbacks look when the fit begins."""
        for member in self._members:
            member.begin()

    def logs(self) -> dict[str, Any]:
        """How far the log files have been written, in the form that `prepare` takes."""
        logs = {member.key: {"log": member.log.at_begin()} for member in self._members if member.log is not None}
        return {key: state for key, state in logs.items() if state["log"]}

    def capture(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What all callbacks remember; arrays of it go into `arrays`."""
        states = {member.key: member.capture(arrays) for member in self._members}
        return {key: state for key, state in states.items() if state}

    def put_back(self, states: dict[str, Any], arrays: dict[str, Any]) -> None:
        """After `on_train_begin`: give every callback what it remembered."""
        for member in self._members:
            member.put_back(states.get(member.key, {}), arrays)

    def discard_logs(self) -> None:
        """The fit was complete: what its callbacks wrote when they were set up is there already."""
        for member in self._members:
            if member.log is not None:
                member.log.discard()


class _Member:
    """One callback."""

    def __init__(self, key: str, callback: Any) -> None:
        self.key = key
        self.skipped: set[str] = set()
        self.log = logs.of(callback)
        self._log_state: dict[str, Any] = {}
        self._callback = callback
        self._built_in = _built_in(callback)
        self._methods = _methods(callback)
        self._name = type(callback).__name__
        self._attributes = Attributes(callback, f"extra/callbacks/{key}", _KERAS_OWN)
        self.watches_for_nan = self._name == "TerminateOnNaN"

    def prepare(self, state: dict[str, Any]) -> list[str]:
        notes = []
        if type(self._callback).__name__ == "BackupAndRestore":
            self._callback._load_model = lambda: None
            notes.append("BackupAndRestore in the script restores nothing here: its place is taken")
        self._log_state = state.get("log", {})
        if self.log is not None:
            notes.append(self.log.go_back(self._log_state))
        return notes

    def begin(self) -> None:
        vars(self._callback).pop("_load_model", None)
        if self.log is not None:
            self.log.begun(self._log_state)
        if self._methods is None and self._built_in is None:
            self._attributes.begin()

    def capture(self, arrays: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self._methods is not None:
            try:
                own = getattr(self._callback, self._methods[0])()
                state["own"] = codec.encode(own, arrays, f"extra/callbacks/{self.key}/own")
            except codec.NotPlain:
                self.skipped.add(f"{self._name}.{self._methods[0]}() (no plain data)")
            except Exception as error:
                self.skipped.add(f"{self._name}.{self._methods[0]}() (it raised {error!r})")
        if self._built_in is not None:
            state["attributes"] = self._attributes.capture(arrays, only=self._built_in)
        elif self._methods is None:
            state["attributes"] = self._attributes.capture(arrays)
        self.skipped |= {f"{self._name}.{name}" for name in self._attributes.skipped}
        if self.log is not None:
            state["log"] = self.log.state()
        return {name: value for name, value in state.items() if value}

    def put_back(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        if "own" in state and self._methods is not None:
            getattr(self._callback, self._methods[1])(codec.decode(state["own"], arrays))
        self._attributes.put_back(state.get("attributes", {}), arrays)


def _key(callbacks: Sequence[Any], index: int) -> str:
    """Class, monitored value, and position among those of the same class."""
    callback = callbacks[index]
    earlier = sum(1 for other in callbacks[:index] if type(other) is type(callback))
    monitor = getattr(callback, "monitor", "")
    return f"{type(callback).__qualname__}:{monitor}:{earlier}"


def _built_in(callback: Any) -> tuple[str, ...] | None:
    """Attributes to carry for one of Keras' own callbacks, None for the script's own."""
    cls = type(callback)
    if cls.__module__.startswith(("keras.", "tf_keras.")):
        return BUILT_IN.get(cls.__name__, ())
    return None


def _methods(callback: Any) -> tuple[str, str] | None:
    return next((pair for pair in _METHODS if all(hasattr(callback, name) for name in pair)), None)
