"""The safetensors layout: stock readers open what we write, and nothing that somebody else wrote harms ours."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksupervise.child import tensors

from .helpers import same, through_a_checkpoint

OTHERS = {name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}


def of_every_type() -> dict[str, Any]:
    """An array of each type that the format has a name for, and of awkward shapes."""
    bits = np.random.default_rng(1).integers(0, 2, 24)
    arrays = {name: bits.reshape(2, 3, 4).astype(OTHERS.get(name, name)) for name in tensors.NAMES}
    return {**arrays, "scalar": np.float64(0.1), "empty": np.zeros((0, 3), "int8"), "été/#2@1": np.arange(5)}


def written(arrays: dict[str, Any]) -> bytes:
    """The file of those arrays."""
    plan = tensors.plan([tensors.spec(name, array) for name, array in arrays.items()])
    memory = memoryview(bytearray(plan.size))
    memory[: len(plan.header)] = plan.header
    for name, array in arrays.items():
        tensors.put(memory, plan.places[name], array)
    return bytes(memory)


def file_of(entries: Any, data: bytes = b"") -> bytes:
    """A file with that header, whatever it says."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_every_type_comes_back() -> None:
    arrays = of_every_type()
    back = through_a_checkpoint(arrays)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert same(np.asarray(array), np.asarray(back[name])), name
        assert not back[name].flags.writeable


def test_stock_safetensors_opens_every_type() -> None:
    safetensors = pytest.importorskip("safetensors", reason="the stock reader is not installed")
    arrays = of_every_type()
    found = dict(safetensors.deserialize(written(arrays)))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        array = np.asarray(array)
        assert found[name]["dtype"] == tensors.NAMES[array.dtype.name]
        assert found[name]["shape"] == list(array.shape)
        assert bytes(found[name]["data"]) == array.tobytes(), name


def test_stock_safetensors_reads_it_as_numpy(tmp_path: Any) -> None:
    stock = pytest.importorskip("safetensors.numpy", reason="the stock reader is not installed")
    arrays = {name: array for name, array in of_every_type().items() if name not in OTHERS}
    (tmp_path / "f").write_bytes(written(arrays))
    found = stock.load_file(tmp_path / "f")
    assert all(same(found[name], np.asarray(array)) for name, array in arrays.items())


def test_a_file_of_stock_safetensors_is_read() -> None:
    stock = pytest.importorskip("safetensors.numpy", reason="the stock writer is not installed")
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.arange(3, dtype="int8"), "empty": np.zeros((2, 0))}
    found = tensors.read(memoryview(stock.save(arrays, metadata={"format": "np"})))
    assert found.keys() == arrays.keys()
    assert all(same(found[name], array) for name, array in arrays.items())


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\1\0\0",
    "a header of no bytes": bytes(8),
    "a header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "a header as long as can be said": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"{"),
    "no text": file_of(b'{"\xff": 1}'),
    "text of another encoding": file_of('{"a": 1}'.encode("utf-16")),
    "no object": file_of([]),
    "a number": file_of(b"1"),
    "deep nesting": file_of(b'{"a":' + b"[" * 200_000),
    "a number of 100,000 digits": file_of(b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b"]}}"),
    "a name twice": file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "an entry that is none": file_of({"a": 1}),
    "an entry without offsets": file_of({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "an entry with more": file_of({"a": {**entry(), "more": 1}}, bytes(4)),
    "a dtype nobody knows": file_of({"a": entry("U7")}, bytes(4)),
    "a dtype that is a list": file_of({"a": entry(["U8"])}, bytes(4)),
    "a dtype that is none": file_of({"a": entry(None)}, bytes(4)),
    "a negative offset": file_of({"a": entry(offsets=[-4, 0])}, bytes(4)),
    "offsets the wrong way round": file_of({"a": entry(offsets=[4, 0])}, bytes(4)),
    "an offset that is true": file_of({"a": entry(shape=[1], offsets=[0, True])}, bytes(1)),
    "an offset that is not a number": file_of({"a": entry(offsets=[0, float("nan")])}, bytes(4)),
    "an offset with a fraction": file_of({"a": entry(offsets=[0, 4.0])}, bytes(4)),
    "three offsets": file_of({"a": entry(offsets=[0, 4, 8])}, bytes(8)),
    "an array beyond the file": file_of({"a": entry(shape=[5], offsets=[0, 5])}, bytes(4)),
    "an array far beyond": file_of({"a": entry(shape=[2**62], offsets=[0, 2**62])}, bytes(4)),
    "a huge offset": file_of({"a": entry(offsets=[2**70, 2**70 + 4])}, bytes(4)),
    "overlapping arrays": file_of({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
    "two arrays in one place": file_of({"a": entry(), "b": entry()}, bytes(4)),
    "a hole": file_of({"a": entry(offsets=[4, 8])}, bytes(8)),
    "bytes left over": file_of({"a": entry()}, bytes(5)),
    "data and no array": file_of({}, bytes(5)),
    "a shape of fewer bytes": file_of({"a": entry(shape=[3])}, bytes(4)),
    "a shape of more bytes": file_of({"a": entry(shape=[8])}, bytes(4)),
    "a shape of a bigger type": file_of({"a": entry("F64")}, bytes(4)),
    "a negative shape": file_of({"a": entry(shape=[-2, -2])}, bytes(4)),
    "a shape that is a number": file_of({"a": entry(shape=4)}, bytes(4)),
    "a huge shape of no bytes": file_of({"a": entry(shape=[0, 2**63 - 1, 2**63 - 1], offsets=[0, 0])}),
    "a million dimensions": file_of({"a": entry(shape=[2**62] * 1_000_000)}, bytes(4)),
    "a hundred dimensions": file_of({"a": entry(shape=[4] + [1] * 99)}, bytes(4)),
    "metadata alone, and data": file_of({"__metadata__": {"a": "b"}}, bytes(4)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_header_that_lies_is_a_clear_error(what: str) -> None:
    with pytest.raises(ValueError, match=r"\S \S+ \S"):  # words
        tensors.read(memoryview(HOSTILE[what]))


def test_a_lie_about_sizes_costs_no_memory() -> None:
    lies = [text for what, text in HOSTILE.items() if "far" in what or "huge" in what or "longer" in what]
    tracemalloc.start()
    for text in lies:
        with pytest.raises(ValueError):  # noqa: PT011
            tensors.read(memoryview(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lies) >= 4
    assert peak < 10_000_000


def read_or_refuse(text: bytes) -> None:
    """What is read lies within the file; what is not read is refused in words."""
    try:
        arrays = tensors.read(memoryview(text))
    except ValueError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(text)
    for array in arrays.values():
        array.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_no_mutation_of_a_file_crashes(seed: int) -> None:
    dice = random.Random(seed)
    good = written(of_every_type()).replace(b" " * 2000, b"")
    good = (int.from_bytes(good[:8], "little") - 2000).to_bytes(8, "little") + good[8:]
    read_or_refuse(good)
    words = [b"[", b"]", b"{", b"}", b"-", b"9", b"e9", b"NaN", b"null", b'"', b"\\ud800", b",", b"\xff", b"0" * 5000]
    for _ in range(100):
        text = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(1600)
            text[place : place + dice.randrange(3)] = dice.choice([*words, dice.randbytes(1)])
        read_or_refuse(bytes(text))


numbers = st.integers() | st.sampled_from([0, 1, 4, 8, 2**63, -1, True, None, 1.0, float("nan")])
entries = st.dictionaries(
    st.text(max_size=3) | st.just("__metadata__"),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*tensors.NAMES.values(), "", 1]),
            "shape": st.lists(numbers, max_size=3) | numbers,
            "data_offsets": st.lists(numbers, max_size=3) | numbers,
        }
    )
    | numbers,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(entries, st.binary(max_size=16))
def test_no_header_crashes(header: dict[str, Any], data: bytes) -> None:
    read_or_refuse(file_of(header, data))
