"""A state.json that somebody changed becomes plain data or an error, whatever was done to it."""

from __future__ import annotations

import binascii
import json
import random
from collections import Counter, defaultdict, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksupervise.child import codec

from .helpers import through_a_checkpoint

# What a restore takes for "it cannot be put back": it refuses to go on, and says why.
REFUSED = (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, binascii.Error)
JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, float("nan"), 2**63, 2**70, -(2**70), 10**4000, "", "x" * 300, "\ud800", [], {}, [[]]),
    *(
        {"$": "tuple"},
        {"$": "int", "v": "zz"},
        {"$": "int", "v": "0x" + "f" * 100_000},
        {"$": "set", "v": [None, [[1]]]},
    ),
    *({"$": "deque", "v": [-1, []]}, {"$": "deque", "v": [2**70, []]}, {"$": "array", "v": "../../etc"}),
    *({"$": "generator", "v": ["os", None]}, {"$": "defaultdict", "v": ["eval", []]}, "PCG64", "MT19937"),
]
WORDS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b"-",
    b"9" * 5000,
    b"e9",
    b"NaN",
    b"null",
    b'"',
    b"\\ud800",
    b",",
    b"\xff",
    b'"$"',
    b"true",
]


@pytest.fixture(scope="module")
def state() -> tuple[bytes, dict[str, Any]]:
    """The text of everything that can be written down, and its arrays."""
    kinds = {
        "plain": [1, 2.5, float("nan"), (1, "x", None), b"abc", 10**3000, Path("/x")],
        "sets": [{1, 2}, frozenset("a"), deque([1, 2], maxlen=3), Counter("aab"), defaultdict(list, {"a": [1]})],
        "generators": [random.Random(1), np.random.default_rng(1), np.random.RandomState(1)],
        "arrays": [np.arange(4), np.float32(2)],
    }
    arrays: dict[str, Any] = {}
    text = json.dumps(codec.encode(kinds, arrays, "state")).encode()
    return text, through_a_checkpoint(arrays)


def decode_or_refuse(text: bytes, arrays: dict[str, Any]) -> None:
    with suppress(*REFUSED):
        codec.decode(json.loads(text), arrays)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Containers with their keys; of a long list of numbers only the first."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 20)) if isinstance(value, list) else ()
    return [pair for key in keys for pair in [(value, key), *places(value[key])]]


@pytest.mark.parametrize("seed", range(10))
def test_changed_values_are_data_or_an_error(state: tuple[bytes, dict[str, Any]], seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        value = json.loads(state[0])
        container, key = dice.choice(places(value))
        container[key] = dice.choice(JUNK)
        decode_or_refuse(json.dumps(value).encode(), state[1])


@pytest.mark.parametrize("seed", range(10))
def test_changed_bytes_are_data_or_an_error(state: tuple[bytes, dict[str, Any]], seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        text = bytearray(state[0])
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(text))
            text[place : place + dice.randrange(3)] = dice.choice(WORDS)
        decode_or_refuse(bytes(text), state[1])


@pytest.mark.parametrize("depth", [30, 300, 900, 100_000])
def test_a_deep_one_is_data_or_an_error(depth: int) -> None:
    for head, tail in ((b"[", b"]"), (b'{"$":"tuple","v":[', b"]}"), (b'{"$":"dict","v":[[1,', b"]]}")):
        decode_or_refuse(head * depth + b"1" + tail * depth, {})
