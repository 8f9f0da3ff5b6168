"""Plain values and back, with the same kinds and the same bits; what is no plain data is refused."""

from __future__ import annotations

import decimal
import enum
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ksupervise.child import codec

from .helpers import Thing, same, there_and_back

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def drawn_from(generator: Any) -> Any:
    """The generator, not at its beginning and with half of a draw left over."""
    if isinstance(generator, random.Random):
        generator.gauss(0, 1)
    elif isinstance(generator, np.random.RandomState):
        generator.normal(size=3)
    else:
        generator.integers(9, size=3, dtype=np.uint32)
    return generator


def numpy_generator(kind: str, seed: int = 5) -> np.random.Generator:
    return np.random.Generator(getattr(np.random, kind)(seed))


GENERATORS = [
    random.Random(5),
    np.random.RandomState(5),
    *(numpy_generator(kind) for kind in BIT_GENERATORS),
]

VALUES: list[Any] = [
    None,
    True,
    [True, 1, 1.0],
    2**64,
    -(10**4000),
    [0.0, -0.0, 5e-324, 1e308, 0.1],
    [float("nan"), float("inf"), float("-inf")],
    "a\0b\ud800 日本",
    b"\x00\xff",
    [],
    (),
    {},
    set(),
    frozenset(),
    {1, "a", None, (1, 2), frozenset({3})},
    frozenset({1.5, b"x"}),
    deque([1, [2], 3], maxlen=3),
    deque(["a"]),
    deque(maxlen=0),
    Path("a/b.csv"),
    Path("/"),
    {(1, 2): {"deep": [{"$": "array", "v": "not one"}]}, None: 1, 1.5: {2}, frozenset({1}): "x"},
    np.arange(6, dtype="float32").reshape(2, 3),
    np.zeros((0, 3)),
    np.array(3.5),
    np.float64(0.1),
    np.bool_(True),
    np.int8(-3),
    {"history": [np.float32(0.5), np.float32("nan")], "of": (np.array([True, False]),)},
]


@pytest.mark.parametrize("value", VALUES, ids=[f"{type(value).__name__}{index}" for index, value in enumerate(VALUES)])
def test_plain_data_comes_back(value: Any) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda it: type(getattr(it, "bit_generator", it)).__name__)
def test_a_generator_goes_on_where_it_was(generator: Any) -> None:
    copy = there_and_back({"inside": [drawn_from(generator)]})["inside"][0]
    assert copy is not generator
    assert same(copy, generator)
    assert repr([copy.random() for _ in range(700)]) == repr([generator.random() for _ in range(700)])


keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary()
leaves = (
    keys
    | st.floats()
    | st.integers().map(lambda number: number * 10**300)
    | st.sampled_from(["x.csv", "/a/b", "..", "a b"]).map(Path)
    | arrays_of.arrays(st.sampled_from(["f2", "f4", "f8", "i1", "u8", "?"]), arrays_of.array_shapes(min_side=0))
    | st.builds(numpy_generator, st.sampled_from(BIT_GENERATORS), st.integers(0, 9))
)


def hashable(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(of, of) | st.frozensets(of, max_size=4)


def nested(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(of, max_size=4)
    return (
        lists
        | lists.map(tuple)
        | st.builds(deque, lists, st.none() | st.integers(0, 5))
        | st.dictionaries(st.recursive(keys, hashable, max_leaves=4), of, max_size=4)
        | st.sets(st.recursive(keys, hashable, max_leaves=4), max_size=4)
    )


@given(st.recursive(leaves, nested, max_leaves=12))
@settings(deadline=None)
def test_whatever_is_made_of_plain_data_comes_back(value: Any) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("filled_with", [(8, 0), (0, 8), (16, 8, 0, 1), (frozenset((8, 0)), 5)])
def test_a_set_comes_back_in_the_order_in_which_it_is_read(filled_with: tuple[Any, ...]) -> None:
    """Two that are equal may differ in it, and the script may go through it."""
    value: set[Any] = set()
    for item in filled_with:
        value.add(item)
    assert repr(there_and_back(value)) == repr(value)


def test_what_comes_back_is_a_copy() -> None:
    value = np.arange(3)
    arrays: dict[str, Any] = {}
    encoded = codec.encode(value, arrays, "name")
    back = codec.decode(encoded, arrays)
    back[0] = 7
    assert value[0] == 0
    there_and_back(value)[0] = 7  # in a checkpoint it is read-only


class Whole(int):
    pass


class Many(list[int]):
    pass


class Letters(enum.Enum):
    A = 1


class Pair(NamedTuple):
    one: int


NOT_PLAIN: list[Any] = [
    object(),
    Thing(),
    lambda: None,
    print,
    Thing,
    json,
    Whole(3),
    Many([3]),
    Letters.A,
    Pair(1),
    1j,
    range(3),
    bytearray(b"x"),
    memoryview(b"x"),
    iter([]),
    decimal.Decimal(1),
    Fraction(1, 2),
    np.array([object()]),
    np.array(["text"]),
    np.array([1j]),
    np.array(["2026-01-01"], "M8[D]"),
    np.zeros(2, [("a", "f4")]),
    np.ma.array([1], mask=[True]),
    np.dtype("f4"),
    random.SystemRandom(),
    np.random.PCG64(1),
    np.random.SeedSequence(1),
]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: [1, it], lambda it: {"a": (it,)}, lambda it: deque([it])])
def test_all_else_is_refused(value: Any, wrap: Any) -> None:
    with pytest.raises(codec.NotPlain, match="name"):
        codec.encode(wrap(value), {}, "name")


def test_a_list_that_holds_itself_is_refused() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    with pytest.raises(codec.NotPlain, match="nested deeper"):
        codec.encode(ring, {}, "name")


@pytest.mark.parametrize(
    "text",
    [
        '{"$": "pickle", "v": "gASVAAAA"}',
        '{"$": "object", "v": ["os.system", ["true"]]}',
        '{"plain": 1}',
        '[{"$": null, "v": 1}]',
        '{"$": "generator", "v": ["SystemRandom", null]}',
        '{"$": "generator", "v": ["Generator", {"$": "dict", "v": [["bit_generator", "SeedSequence"]]}]}',
        '{"$": "generator", "v": ["Generator", {"$": "dict", "v": [["bit_generator", "__class__"]]}]}',
        '{"$": "tuple", "v": [{"$": "set ", "v": [null, []]}]}',
    ],
)
def test_what_is_of_no_known_kind_is_not_read(text: str) -> None:
    with pytest.raises(codec.NotPlain, match="unknown kind"):
        codec.decode(json.loads(text), {})


KINDS = ("float", "path", "bytes", "tuple", "dict", "array", "scalar", "set", "frozenset", "deque", "generator", "?")
junk = st.recursive(
    st.none() | st.integers(-9, 9) | st.text("os.system()_$", max_size=9),
    lambda of: (
        st.lists(of, max_size=3) | st.fixed_dictionaries({"$": st.sampled_from(KINDS), "v": st.lists(of, max_size=3)})
    ),
    max_leaves=9,
)


@given(junk)
@settings(deadline=None)
def test_nothing_in_a_checkpoint_is_executed(value: Any) -> None:
    """Whatever is written there becomes plain data, or an error."""
    try:
        read = codec.decode(value, {"a": np.arange(3)})
    except (codec.NotPlain, TypeError, ValueError, KeyError, IndexError):
        return
    codec.encode(read, {}, "name")


@pytest.mark.parametrize("kind", [">i4", ">f4", ">f8", ">u2"])
def test_an_array_of_another_byte_order_keeps_its_values(kind: str) -> None:
    value = np.arange(5).astype(kind)
    assert there_and_back(value).tolist() == value.tolist()
    assert there_and_back(value[3]) == value[3]


def test_an_integer_of_any_length_comes_back() -> None:
    """Python refuses to print those of more than 4300 digits, and with them the whole checkpoint."""
    for value in (10**5000, -(10**5000), 2**100_000 + 1):
        assert there_and_back([value, 1]) == [value, 1]


class Phase(str, enum.Enum):
    WARM = "warm"


class Name(str):
    __slots__ = ()


class Raw(bytes):
    __slots__ = ()


@pytest.mark.parametrize("value", [Phase.WARM, Name("x"), Raw(b"x")], ids=lambda value: type(value).__name__)
def test_what_looks_like_a_text_is_not_made_one(value: Any) -> None:
    """The script may ask what it is: `phase is Phase.WARM`."""
    with pytest.raises(codec.NotPlain):
        codec.encode(value, {}, "name")


@pytest.mark.parametrize("value", [Counter("aab"), OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]})])
def test_other_kinds_of_dict_come_back_as_what_they_were(value: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    assert list(back.items()) == list(value.items())
    assert getattr(back, "default_factory", None) is getattr(value, "default_factory", None)
