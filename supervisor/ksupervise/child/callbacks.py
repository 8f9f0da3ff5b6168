"""What callbacks remember. Keras has no convention for it, so the built-ins' attributes are listed here.

A callback of the script's own is asked by `get_state`/`set_state` or `state_dict`/`load_state_dict`; one that has
neither gets back those of its plain attributes that changed since the fit began. `__dict__` is never dumped:
Keras flips the sign of `min_delta` lazily, and a naive restore would flip it twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ksupervise.child import codec

BUILT_IN = {
    "EarlyStopping": ("wait", "best", "best_epoch", "stopped_epoch", "best_weights"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"),
    "History": ("history", "epoch"),
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
        self._members = [(_key(callbacks, index), callback) for index, callback in enumerate(callbacks)]
        self._at_begin: dict[str, dict[str, Any]] = {}
        self.skipped: set[str] = set()

    def begin(self) -> None:
        """Remember how the script's own callbacks look when the fit begins."""
        for key, callback in self._members:
            if _built_in(callback) is None and _methods(callback) is None:
                self._at_begin[key] = self._plain(key, callback, {})

    def capture(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What all callbacks remember; arrays of it go into `arrays`."""
        states = {}
        for key, callback in self._members:
            state = self._capture_one(key, callback, arrays)
            if state:
                states[key] = state
        return states

    def prepare(self, states: dict[str, Any]) -> None:
        """Before `on_train_begin`: let CSVLogger append to the rows up to the checkpoint, and no further."""
        for key, callback in self._members:
            rows = states.get(key, {}).get("rows")
            if rows is not None and _truncate(callback.filename, rows):
                callback.append = True

    def put_back(self, states: dict[str, Any], arrays: dict[str, Any]) -> None:
        """After `on_train_begin`: give every callback what it remembered."""
        for key, callback in self._members:
            state = states.get(key, {})
            if "own" in state:
                methods = _methods(callback)
                if methods is not None:
                    getattr(callback, methods[1])(codec.decode(state["own"], arrays))
            for name, value in state.get("attributes", {}).items():
                setattr(callback, name, codec.decode(value, arrays))

    def _capture_one(self, key: str, callback: Any, arrays: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        methods = _methods(callback)
        built_in = _built_in(callback)
        try:
            if methods is not None:
                state["own"] = codec.encode(getattr(callback, methods[0])(), arrays, f"extra/callbacks/{key}/own")
        except codec.NotPlain as error:
            self.skipped.add(str(error))
        if built_in is not None:
            state["attributes"] = self._encode(key, _chosen(callback, built_in), arrays)
        elif methods is None:
            now = self._plain(key, callback, arrays)
            before = self._at_begin.get(key, {})
            state["attributes"] = {name: v for name, v in now.items() if _differs(v, before.get(name))}
        if type(callback).__name__ == "CSVLogger":
            state["rows"] = _length(callback)
        return state

    def _plain(self, key: str, callback: Any, arrays: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in vars(callback).items() if name not in _KERAS_OWN}
        return self._encode(key, own, arrays)

    def _encode(self, key: str, values: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
        encoded = {}
        for name, value in values.items():
            try:
                encoded[name] = codec.encode(value, arrays, f"extra/callbacks/{key}/{name}")
            except codec.NotPlain:
                self.skipped.add(f"{key}.{name} ({type(value).__name__})")
        return encoded


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


def _chosen(callback: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: vars(callback)[name] for name in names if name in vars(callback)}


def _differs(one: Any, other: Any) -> bool:
    """Arrays are referred to by name, so a reference proves nothing: it counts as changed."""
    return one != other or (isinstance(one, dict) and one.get("$") in ("array", "scalar"))


def _length(logger: Any) -> int | None:
    stream = getattr(logger, "csv_file", None)
    try:
        if stream is not None and not stream.closed:
            stream.flush()
        return os.path.getsize(logger.filename)
    except OSError:
        return None


def _truncate(path: str, size: int) -> bool:
    """Cut the file to `size` bytes. False if it is shorter or gone: then it begins anew."""
    try:
        if os.path.getsize(path) < size:
            return False
        os.truncate(path, size)
    except OSError:
        return False
    return True
