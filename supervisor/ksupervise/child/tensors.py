"""Named arrays in the safetensors layout, written straight into shared memory and read from it.

Layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length of the header, the
header as JSON, then the arrays back to back. The header is padded with spaces so that the data
begins at a multiple of 4096. Any stock safetensors reader opens the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ALIGNMENT = 4096
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
    """The Spec of a numpy array."""
    return name, array.dtype.name, tuple(array.shape), array.nbytes


def put(view: memoryview, place: tuple[int, int], array: Any) -> None:
    """Copy `array`'s bytes to `place` in `view`."""
    import numpy as np

    offset, size = place
    if size:
        target = np.frombuffer(view, np.uint8, size, offset)
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
        target[:] = native.reshape(-1).view(np.uint8)


def read(view: memoryview) -> Mapping[str, Any]:
    """The arrays of a file, as read-only views into it. Raises ValueError for what is not one."""
    import numpy as np

    length = int.from_bytes(view[:8], "little")
    if not 0 < length <= len(view) - 8:
        raise ValueError("not a safetensors file: its header is longer than the file")
    entries = json.loads(bytes(view[8 : 8 + length]))
    arrays = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype = _numpy_dtype(entry["dtype"])
        array = np.frombuffer(view, np.uint8, end - begin, begin).view(dtype).reshape(entry["shape"])
        array.flags.writeable = False
        arrays[name] = array
    return arrays


def _numpy_dtype(code: str) -> Any:
    import numpy as np

    name = _DTYPES[code]
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes  # Keras' own dependency wherever such a dtype can exist

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)
