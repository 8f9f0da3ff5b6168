"""What an object of the script's remembers in its attributes: a callback, a PyDataset.

Plain data, arrays and generators of random numbers are carried; variables and Keras metrics are carried by value.
Only what changed since the fit began is kept, so that a callback which merely holds the validation set does not put
it into every checkpoint. `__dict__` is never put back as a whole.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ksupervise.child import codec

_WHOLE = 16 * 1024 * 1024  # bytes of an array up to which a change in any of them is seen; a larger one is sampled
_BLOCK = 4096
_UNCHANGING = (bool, int, float, str, bytes, tuple, type(None))
_BLOCKS = 256


@dataclass(frozen=True)
class _Begun:
    """How an attribute was when the fit began."""

    value: Any
    encoded: Any
    fingerprints: dict[str, Any]


class Attributes:
    """The attributes of one object, but for `without`; `prefix` names its arrays in the checkpoint."""

    def __init__(self, owner: Any, prefix: str, without: Iterable[str] = ()) -> None:
        self._owner = owner
        self._prefix = prefix
        self._without = frozenset(without)
        self._at_begin: dict[str, _Begun] = {}
        self.skipped: set[str] = set()

    def begin(self) -> None:
        """Remember how the object looks now: what stays so need not be carried."""
        self._at_begin = {}
        for name, value in self._own():
            arrays: dict[str, Any] = {}
            encoded = self._encode(name, value, arrays)
            if encoded is not None:
                self._at_begin[name] = _Begun(value, encoded, _fingerprints(arrays))

    def capture(self, arrays: dict[str, Any], only: Sequence[str] | None = None) -> dict[str, Any]:
        """Name → value, encoded, of what changed since `begin` (or of those in `only`). Arrays go into `arrays`.

        Marked "same" where it is still the same object: the script may hold it elsewhere too.
        """
        changed = {}
        for name, value in self._own():
            if only is not None and name not in only:
                continue
            own: dict[str, Any] = {}
            encoded = self._encode(name, value, own)
            begun = self._at_begin.get(name)
            if encoded is None or (begun and (begun.encoded, begun.fingerprints) == (encoded, _fingerprints(own))):
                continue
            same = begun is not None and begun.value is value and not isinstance(value, _UNCHANGING)
            changed[name] = {"$": "same", "v": encoded} if same else encoded
            arrays.update(own)
        return changed

    def snapshot(self) -> dict[str, Any]:
        """What changed since `begin`, self-contained: plain data and copies of arrays."""
        arrays: dict[str, Any] = {}
        encoded = self.capture(arrays)
        return {"encoded": encoded, "arrays": {name: array.copy() for name, array in arrays.items()}}

    def put_back_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Put back what `snapshot` gave."""
        self.put_back(snapshot["encoded"], snapshot["arrays"])

    def put_back(self, saved: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Give the object what it remembered; generators, variables and metrics keep their identity."""
        for name, encoded in saved.items():
            same = isinstance(encoded, dict) and encoded.get("$") == "same"
            value = codec.decode(encoded["v"] if same else encoded, arrays)
            existing = vars(self._owner).get(name)
            variables = self._variables_of_its_own(existing)
            if variables is not None:
                for variable, array in zip(variables, value, strict=True):
                    variable.assign(array)
            elif codec.generator_state(existing) is not None and type(existing) is type(value):
                state = codec.generator_state(value)
                codec.set_generator_state(existing, state[1] if state else None)
            elif not (same and _filled(existing, value)):
                setattr(self._owner, name, value)

    def generators(self) -> dict[str, Any]:
        """The states of the object's generators of random numbers, as they are: cheap enough for every batch."""
        found = ((name, codec.generator_state(value)) for name, value in vars(self._owner).items())
        return {name: state[1] for name, state in found if state is not None}

    def put_back_generators(self, states: dict[str, Any]) -> None:
        """Put back what `generators` gave."""
        for name, state in states.items():
            codec.set_generator_state(vars(self._owner)[name], state)

    def _variables_of_its_own(self, value: Any) -> list[Any] | None:
        """What `value` consists of; nothing if it is a part of the model that is trained: that is saved anyway."""
        variables = _variables(value)
        model = getattr(self._owner, "model", None)
        if variables and model is not None and _ids(variables) <= _ids(model.variables):
            return []
        return variables

    def _own(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self._owner).items() if name not in self._without]

    def _encode(self, name: str, value: Any, arrays: dict[str, Any]) -> Any:
        try:
            variables = self._variables_of_its_own(value)
            plain = value if variables is None else [_numpy(variable) for variable in variables]
            return codec.encode(plain, arrays, f"{self._prefix}/{name}")
        except Exception:  # NotPlain; or whatever an object of the script's does when it is looked at
            # Functions, classes, datasets: they are what the script made them.
            if not callable(value) and not _has(value, "_variant_tensor", "element_spec"):
                self.skipped.add(f"{name} ({type(value).__name__})")
            return None


def _filled(existing: Any, value: Any) -> bool:
    """Make `existing` what `value` is and leave it the object that it is. False if it cannot be."""
    import numpy as np

    if isinstance(existing, np.ndarray) and isinstance(value, np.ndarray):
        if existing.shape != value.shape or existing.dtype != value.dtype or not existing.flags.writeable:
            return False
        existing[...] = value
        return True
    if isinstance(existing, dict) and isinstance(value, dict):
        kept = {key: existing[key] for key in value if key in existing}
        existing.clear()
        existing.update({key: kept[key] if _filled(kept.get(key), item) else item for key, item in value.items()})
    elif isinstance(existing, list) and isinstance(value, list):
        old = existing[:]
        existing[:] = [old[at] if at < len(old) and _filled(old[at], item) else item for at, item in enumerate(value)]
    elif isinstance(existing, set) and isinstance(value, set):
        existing.clear()
        existing.update(value)
    elif isinstance(existing, deque) and isinstance(value, deque) and existing.maxlen == value.maxlen:
        existing.clear()
        existing.extend(value)
    else:
        return False
    return True


def _ids(variables: Iterable[Any]) -> set[int]:
    return {id(variable) for variable in variables}


def _variables(value: Any) -> list[Any] | None:
    """The variables that `value` is, or consists of; None if it is something else.

    A variable or a list of them; a metric, a seed generator, an optimizer, a model (an average of the trained one).
    """
    if _has(value, "assign", "shape", "dtype", "trainable"):
        return [value]
    if type(value) in (list, tuple) and value and all(_has(item, "assign", "dtype", "trainable") for item in value):
        return list(value)
    if _has(value, "reset_state", "update_state", "variables") or _has(value, "apply_gradients", "variables"):
        return list(value.variables)
    if _has(value, "trainable_weights", "get_weights", "variables"):
        return list(value.variables)
    if _has(value, "state", "next") and _has(value.state, "assign", "dtype"):
        return [value.state]
    return None


def _has(value: Any, *names: str) -> bool:
    try:
        return all(hasattr(value, name) for name in names)
    except Exception:
        return False  # a proxy that is not connected, say


def _numpy(variable: Any) -> Any:
    import numpy as np

    return np.array(variable)


def _fingerprints(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: _fingerprint(array) for name, array in arrays.items()}


def _fingerprint(array: Any) -> tuple[Any, ...]:
    import numpy as np

    about = (array.shape, array.dtype.str)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    content = array.reshape(-1).view(np.uint8)
    if content.nbytes <= _WHOLE:
        return (*about, zlib.crc32(content))
    stride = content.nbytes // _BLOCKS
    blocks = (content[index * stride : index * stride + _BLOCK] for index in range(_BLOCKS))
    return (*about, *(zlib.crc32(block) for block in blocks))
