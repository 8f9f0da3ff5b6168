"""Named arrays in the safetensors layout, written straight into shared memory and read from it.

Layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length of the header, the
header as JSON, then the arrays back to back. The header is padded with spaces so that the data
begins at a multiple of 4096. Any stock safetensors reader opens the file.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ALIGNMENT = 4096
_MAX_HEADER = 100_000_000  # bytes; the limit of stock readers
_MAX_COUNT = 2**63 - 1
_MAX_DIMENSIONS = 64  # numpy's limit
# numpy's name of a dtype → the format's.
NAMES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_DTYPES = {code: name for name, code in NAMES.items()}


class UnknownType(TypeError):
    """A dtype that the format has no name for."""


@dataclass(frozen=True)
class Plan:
    """The header's bytes, and where each array goes, relative to the file's begin."""

    header: bytes
    places: dict[str, tuple[int, int]]  # name → (offset, bytes)
    size: int


Spec = tuple[str, str, tuple[int, ...], int]  # name, numpy's name of the dtype, shape, bytes


def plan(specs: Iterable[Spec]) -> Plan:
    """Lay out arrays in the given order. Raises UnknownType."""
    entries: dict[str, Any] = {}
    position = 0
    for name, dtype, shape, size in specs:
        if dtype not in NAMES:
            raise UnknownType(f"{name} has dtype {dtype}")
        entries[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    start = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT
    header = (start - 8).to_bytes(8, "little") + text.ljust(start - 8)
    places = {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
    }
    return Plan(header, places, start + position)


def spec(name: str, array: Any) -> Spec:
    """The Spec of a numpy array, or of a handle that has its dtype, shape and nbytes."""
    return name, _name_of(array.dtype), tuple(array.shape), array.nbytes


@functools.cache
def _name_of(dtype: Any) -> str:
    return str(dtype.name)  # numpy makes it anew each time: 4 µs


def itemsize(dtype: str) -> int:
    """Bytes of one item of numpy's `dtype`, 0 if the format has no name for it."""
    return int(_numpy_dtype(NAMES[dtype]).itemsize) if dtype in NAMES else 0


def put(view: memoryview, place: tuple[int, int], array: Any) -> None:
    """Copy `array`'s bytes to `place` in `view`."""
    import numpy as np

    offset, size = place
    if size:
        np.frombuffer(view, np.uint8, size, offset)[:] = as_bytes(array)


def as_bytes(array: Any) -> Any:
    """The bytes of an array, or of a handle that has a method `numpy`, in native order: a flat array of uint8."""
    import numpy as np

    values = np.asarray(array.numpy() if hasattr(array, "numpy") else array)
    native = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    return native.reshape(-1).view(np.uint8)


def read(view: memoryview) -> Mapping[str, Any]:
    """The arrays of a file, as read-only views into it. Raises ValueError for what is not one, to the last byte."""
    import numpy as np

    start, entries = _header(view)
    arrays = {}
    position = 0
    for begin, end, name, dtype, shape in sorted(_entry(name, entry) for name, entry in entries.items()):
        if begin != position or end > len(view) - start:
            raise ValueError(
                f"not a safetensors file: {name!r} does not begin where the last array ends, or ends outside"
            )
        position = end
        array = np.frombuffer(view, np.uint8, end - begin, start + begin).view(_numpy_dtype(dtype)).reshape(shape)
        array.flags.writeable = False
        arrays[name] = array
    if start + position != len(view):
        raise ValueError(f"not a safetensors file: {len(view) - start - position} bytes belong to no array")
    return {name: arrays[name] for name in entries}


def _header(view: memoryview) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the entry of each array. Raises ValueError."""
    length = int.from_bytes(view[:8], "little")
    if not 0 < length <= min(len(view) - 8, _MAX_HEADER):
        raise ValueError("not a safetensors file: its header is longer than the file, or than any")
    try:
        entries = json.loads(str(view[8 : 8 + length], "utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("not a safetensors file: its header is nested too deeply") from None
    if type(entries) is not dict:
        raise ValueError("not a safetensors file: its header is no object")
    entries.pop("__metadata__", None)
    return 8 + length, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("not a safetensors file: a name appears twice in its header")
    return values


def _entry(name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """Begin and end, name, dtype and shape, which agree with each other. Raises ValueError."""
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"not a safetensors file: {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of a type that is not known here")
    if not _are_counts(shape, _MAX_DIMENSIONS) or not _are_counts(offsets, 2) or len(offsets) != 2:
        raise ValueError(f"not a safetensors file: shape or data_offsets of {name!r} are not whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * _numpy_dtype(dtype).itemsize:
        raise ValueError(f"not a safetensors file: {name!r} is not as long as its shape says")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def _are_counts(values: Any, most: int) -> bool:
    # The type is checked exactly: JSON's true would pass for 1.
    if type(values) is not list or len(values) > most:
        return False
    return all(type(value) is int and 0 <= value <= _MAX_COUNT for value in values)


def _numpy_dtype(code: str) -> Any:
    import numpy as np

    name = _DTYPES[code]
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes  # Keras' own dependency wherever such a dtype can exist

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)
