"""Plain values ↔ JSON, arrays beside it. Nothing executable: what is not plain data is refused.

Arrays go into `arrays` under a name and are referred to by it. Numbers come back bit for bit: Python prints
floats so that they read back as the same double, and NaN and the infinities are written as words.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

_DEPTH = 32


class NotPlain(TypeError):
    """A value that is not plain data."""


def encode(value: Any, arrays: dict[str, Any], name: str, depth: int = 0) -> Any:
    """`value` as JSON; arrays in it are put into `arrays` under `name`/… . Raises NotPlain."""
    if depth > _DEPTH:
        raise NotPlain(f"{name} is nested deeper than {_DEPTH}")
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if isinstance(value, bytes):
        return {"$": "bytes", "v": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        if _is_flat(value):
            return list(value) if type(value) is list else {"$": "tuple", "v": list(value)}
        items = [encode(item, arrays, f"{name}/{index}", depth + 1) for index, item in enumerate(value)]
        return items if type(value) is list else {"$": "tuple", "v": items}
    if type(value) is dict:
        pairs = [
            [
                encode(key, arrays, f"{name}/key{index}", depth + 1),
                encode(item, arrays, f"{name}/{index}", depth + 1),
            ]
            for index, (key, item) in enumerate(value.items())
        ]
        return {"$": "dict", "v": pairs}
    return _encode_array(value, arrays, name)


def _is_flat(values: list[Any] | tuple[Any, ...]) -> bool:
    """Only numbers that JSON holds as they are: a generator's state, a metric's history."""
    kinds = set(map(type, values))
    return kinds <= {int} or (kinds == {float} and all(map(math.isfinite, values)))


def _encode_array(value: Any, arrays: dict[str, Any], name: str) -> Any:
    import numpy as np

    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        arrays[name] = np.asarray(value)
        return {"$": "scalar", "v": name}
    if type(value) is np.ndarray and value.dtype.kind in "biufV" and value.dtype.names is None:
        arrays[name] = value
        return {"$": "array", "v": name}
    raise NotPlain(f"{name} is a {type(value).__name__}")


def decode(value: Any, arrays: Mapping[str, Any]) -> Any:
    """What `encode` was given. Arrays are copies: their memory is the caller's."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value.get("$"), value.get("v")
    if kind == "float":
        return float(str(content))
    if kind == "bytes":
        return base64.b64decode(str(content))
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in content or ())
    if kind == "dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content or ()}
    if kind == "array":
        return arrays[str(content)].copy()
    if kind == "scalar":
        return arrays[str(content)][()]
    raise NotPlain(f"unknown kind of value: {kind!r}")
