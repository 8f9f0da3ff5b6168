"""What the tests of the child share: no Keras, no TensorFlow."""

from __future__ import annotations

import json
import random
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ksupervise.child import codec, tensors


class Thing:
    """An object of the script's with attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


def through_a_checkpoint(arrays: dict[str, Any]) -> dict[str, Any]:
    """`arrays` as a later attempt reads them: written in the safetensors layout, read-only views."""
    plan = tensors.plan([tensors.spec(name, array) for name, array in arrays.items()])
    memory = memoryview(bytearray(plan.size))
    memory[: len(plan.header)] = plan.header
    for name, array in arrays.items():
        tensors.put(memory, plan.places[name], array)
    return dict(tensors.read(memory))


def there_and_back(value: Any) -> Any:
    """`value` by way of a checkpoint's two files."""
    arrays: dict[str, Any] = {}
    text = json.dumps(codec.encode(value, arrays, "name"))
    return codec.decode(json.loads(text), through_a_checkpoint(arrays))


def same(one: Any, other: Any) -> bool:
    """The same kinds, the same bits, the same order where there is one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN, and the sign of a zero
    if isinstance(one, (np.ndarray, np.generic)):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, (list, tuple, deque)):
        bounds = getattr(one, "maxlen", None), getattr(other, "maxlen", None)
        return bounds[0] == bounds[1] and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(item, each) for each in other) for item in one)
    if isinstance(one, (random.Random, np.random.RandomState, np.random.Generator)):
        return same(codec.generator_state(one), codec.generator_state(other))
    assert isinstance(one, (str, bytes, int, Path, type(None)))
    return bool(one == other)
