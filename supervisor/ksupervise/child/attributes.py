"""What an object of the script's remembers in its attributes: a callback, a PyDataset.

Plain data, arrays and generators of random numbers are carried; variables and Keras metrics are carried by value.
Only what changed since the fit began is kept, so that a callback which merely holds the validation set does not put
it into every checkpoint. `__dict__` is never put back as a whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from ksupervise.child import codec

_WHOLE = 16 * 1024 * 1024  # bytes of an array up to which a change in any of them is seen; a larger one is sampled
_BLOCK = 4096
_BLOCKS = 256


class Attributes:
    """The attributes of one object, but for `without`; `prefix` names its arrays in the checkpoint."""

    def __init__(self, owner: Any, prefix: str, without: Iterable[str] = ()) -> None:
        self._owner = owner
        self._prefix = prefix
        self._without = frozenset(without)
        self._at_begin: dict[str, Any] = {}
        self.skipped: set[str] = set()

    def begin(self) -> None:
        """Remember how the object looks now: what stays so need not be carried."""
        self._at_begin = {}
        for name, value in self._own():
            arrays: dict[str, Any] = {}
            encoded = self._encode(name, value, arrays)
            if encoded is not None:
                self._at_begin[name] = (encoded, _fingerprints(arrays))

    def capture(self, arrays: dict[str, Any], only: Sequence[str] | None = None) -> dict[str, Any]:
        """Name → value, encoded, of what changed since `begin` (or of those in `only`). Arrays go into `arrays`."""
        changed = {}
        for name, value in self._own():
            if only is not None and name not in only:
                continue
            own: dict[str, Any] = {}
            encoded = self._encode(name, value, own)
            if encoded is None or self._at_begin.get(name) == (encoded, _fingerprints(own)):
                continue
            changed[name] = encoded
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
            value = codec.decode(encoded, arrays)
            existing = vars(self._owner).get(name)
            variables = _variables(existing)
            if variables is not None:
                for variable, array in zip(variables, value, strict=True):
                    variable.assign(array)
            elif codec.generator_state(existing) is not None and type(existing) is type(value):
                state = codec.generator_state(value)
                codec.set_generator_state(existing, state[1] if state else None)
            else:
                setattr(self._owner, name, value)

    def generators(self) -> dict[str, Any]:
        """The states of the object's generators of random numbers, as they are: cheap enough for every batch."""
        found = ((name, codec.generator_state(value)) for name, value in vars(self._owner).items())
        return {name: state[1] for name, state in found if state is not None}

    def put_back_generators(self, states: dict[str, Any]) -> None:
        """Put back what `generators` gave."""
        for name, state in states.items():
            codec.set_generator_state(vars(self._owner)[name], state)

    def _own(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self._owner).items() if name not in self._without]

    def _encode(self, name: str, value: Any, arrays: dict[str, Any]) -> Any:
        try:
            variables = _variables(value)
            plain = value if variables is None else [_numpy(variable) for variable in variables]
            return codec.encode(plain, arrays, f"{self._prefix}/{name}")
        except Exception:  # NotPlain; or whatever an object of the script's does when it is looked at
            if not callable(value):  # functions, classes, models: they are what the script made them
                self.skipped.add(f"{name} ({type(value).__name__})")
            return None


def _variables(value: Any) -> list[Any] | None:
    """The variables that `value` is, or (a metric) has; None if it is something else."""
    if _has(value, "assign", "shape", "dtype", "trainable"):
        return [value]
    return list(value.variables) if _has(value, "reset_state", "update_state", "variables") else None


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
