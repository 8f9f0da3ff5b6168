"""Plain values ↔ JSON, arrays beside it. Nothing executable: what is not plain data is refused.

Arrays go into `arrays` under a name and are referred to by it. Numbers come back bit for bit: Python prints
floats so that they read back as the same double, and NaN and the infinities are written as words.
"""

from __future__ import annotations

import base64
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ksupervise.child import tensors

_DEPTH = 32
_INT_BITS = 4096  # json refuses to write, and to read, much longer ones
_FLAT = 1 << 64
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class NotPlain(TypeError):
    """A value that is not plain data."""


def encode(value: Any, arrays: dict[str, Any], name: str, depth: int = 0) -> Any:
    """`value` as JSON; arrays in it are put into `arrays` under `name`/… . Raises NotPlain."""
    if depth > _DEPTH:
        raise NotPlain(f"{name} is nested deeper than {_DEPTH}")
    if value is None or type(value) in (bool, str) or (type(value) is int and value.bit_length() <= _INT_BITS):
        return value
    if type(value) is int:
        return {"$": "int", "v": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if type(value) is bytes:
        return {"$": "bytes", "v": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        if _is_flat(value):
            return list(value) if type(value) is list else {"$": "tuple", "v": list(value)}
        items = [encode(item, arrays, f"{name}/{index}", depth + 1) for index, item in enumerate(value)]
        return items if type(value) is list else {"$": "tuple", "v": items}
    if type(value) in _MAPPINGS:
        pairs = [
            [
                encode(key, arrays, f"{name}/key{index}", depth + 1),
                encode(item, arrays, f"{name}/{index}", depth + 1),
            ]
            for index, (key, item) in enumerate(value.items())
        ]
        if type(value) is defaultdict:
            return {"$": "defaultdict", "v": [getattr(value.default_factory, "__name__", ""), pairs]}
        return {"$": _MAPPINGS[type(value)], "v": pairs}
    if type(value) in _COLLECTIONS:
        return _encode_collection(value, arrays, name, depth)
    if type(value) is type(Path()):
        return {"$": "path", "v": str(value)}
    generator = generator_state(value)
    if generator is not None:
        return {"$": "generator", "v": [generator[0], encode(generator[1], arrays, name, depth + 1)]}
    return _encode_array(value, arrays, name)


_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "OrderedDict", Counter: "Counter", defaultdict: "defaultdict"}
# What makes the missing entries of a defaultdict; another one's (a lambda) is the script's and cannot be written down.
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, list, dict, set, bool)}
_COLLECTIONS: dict[type, str] = {set: "set", frozenset: "frozenset", deque: "deque"}


def _encode_collection(value: Any, arrays: dict[str, Any], name: str, depth: int) -> Any:
    # A set in the order in which it is iterated over: made anew from that it has, as far as it can, the same.
    encoded = [encode(item, arrays, f"{name}/{index}", depth + 1) for index, item in enumerate(value)]
    return {"$": _COLLECTIONS[type(value)], "v": [getattr(value, "maxlen", None), encoded]}


def generator_state(value: Any) -> tuple[str, Any] | None:
    """The kind and the state of a generator of random numbers, python's or numpy's; None for anything else."""
    if type(value) is random.Random:
        return "Random", value.getstate()
    module = sys.modules.get("numpy.random")
    if module is None:
        return None
    if type(value) is module.RandomState:
        return "RandomState", value.get_state()
    if type(value) is module.Generator and type(value.bit_generator).__name__ in _BIT_GENERATORS:
        return "Generator", value.bit_generator.state
    return None


def set_generator_state(value: Any, state: Any) -> None:
    """Put `state`, as `generator_state` gave it, into a generator of the same kind."""
    if type(value) is random.Random:
        value.setstate(state)
    elif type(value).__name__ == "RandomState":
        value.set_state(state)
    else:
        value.bit_generator.state = state


def _new_generator(kind: str, state: Any) -> Any:
    if kind == "Random":
        made: Any = random.Random()  # noqa: S311 - the script's own kind
    else:
        from numpy import random as numpy_random

        if kind == "RandomState":
            made = numpy_random.RandomState()
        elif kind == "Generator" and state["bit_generator"] in _BIT_GENERATORS:
            made = numpy_random.Generator(getattr(numpy_random, state["bit_generator"])())
        else:
            raise NotPlain(f"unknown kind of generator: {kind!r}")
    set_generator_state(made, state)
    return made


def _is_flat(values: list[Any] | tuple[Any, ...]) -> bool:
    """Only numbers that JSON holds as they are: a generator's state, a metric's history."""
    kinds = set(map(type, values))
    return (kinds <= {int} and all(-_FLAT < item < _FLAT for item in values)) or (
        kinds == {float} and all(map(math.isfinite, values))
    )


def _encode_array(value: Any, arrays: dict[str, Any], name: str) -> Any:
    import numpy as np

    if type(value) is np.str_:
        return str(value)
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        raise NotPlain(f"{name} is a {type(value).__name__}")
    if value.dtype.name not in tensors.NAMES:
        raise NotPlain(f"{name} is an array of {value.dtype}")
    # The file holds little-endian numbers, whatever the array has (IDX and FITS files: big-endian).
    arrays[name] = np.asarray(value).astype(value.dtype.newbyteorder("="), copy=False)
    return {"$": "array" if type(value) is np.ndarray else "scalar", "v": name}


def decode(value: Any, arrays: Mapping[str, Any]) -> Any:
    """What `encode` was given. Arrays are copies: their memory is the caller's."""
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value.get("$"), value.get("v")
    if kind == "float":
        return float(str(content))
    if kind == "int":
        return int(str(content), 16)
    if kind == "path":
        return Path(str(content))
    if kind == "bytes":
        return base64.b64decode(str(content))
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in content or ())
    if kind == "defaultdict":
        factory, content = content or ("", ())
        return defaultdict(_FACTORIES.get(str(factory)), _decode_pairs(content, arrays))
    if kind in ("dict", "OrderedDict", "Counter"):
        pairs = _decode_pairs(content, arrays)
        return dict(pairs) if kind == "dict" else OrderedDict(pairs) if kind == "OrderedDict" else Counter(dict(pairs))
    if kind == "array":
        return arrays[str(content)].copy()
    if kind == "scalar":
        return arrays[str(content)][()]
    if kind in _MAKERS:
        maxlen, items = content or (None, ())
        return _MAKERS[str(kind)]([decode(item, arrays) for item in items], maxlen)
    if kind == "generator":
        name, state = content or ("", None)
        return _new_generator(str(name), decode(state, arrays))
    raise NotPlain(f"unknown kind of value: {kind!r}")


def _decode_pairs(content: Any, arrays: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(decode(key, arrays), decode(item, arrays)) for key, item in content or ()]


_MAKERS: dict[str, Callable[[list[Any], int | None], Any]] = {
    "set": lambda items, _: set(items),
    "frozenset": lambda items, _: frozenset(items),
    "deque": deque,
}
