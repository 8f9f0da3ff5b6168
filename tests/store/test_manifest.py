"""Manifests that nobody wrote: clear errors only, whatever the bytes."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksupervise.store import DamagedCheckpoint, FileRecord, Manifest, NewerFormat, Position
from ksupervise.store.checkpoint import MANIFEST, MAX_MANIFEST, decode, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Manifest(
    run="run",
    seq=3,
    attempt=2,
    holder="here",
    position=Position(1, 2, 3, 4, "batch"),
    origin="interval",
    created=1.5,
    files=(FileRecord("a", 5, 4, (1, 2)), FileRecord("b", 0, 4, ())),
    extra={"x": [1, None]},
    writer="ksupervise 9",
)


def signed(values: Any) -> bytes:
    """A manifest of any values whose own crc32 is right."""
    return sign(json.dumps(values)[:-1].encode())


def sign(body: bytes) -> bytes:
    return body + f',"self":"{zlib.crc32(body):08x}"}}\n'.encode()


def good_values() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(GOOD.encode())
    del values["self"]
    return values


def test_what_is_encoded_is_decoded() -> None:
    assert decode(GOOD.encode(), "p") == GOOD
    assert decode(signed(good_values()), "p") == GOOD
    assert GOOD.encode().endswith(b'"}\n')
    assert list(json.loads(GOOD.encode()))[-1] == "self"


def test_every_flipped_bit_is_noticed() -> None:
    text = GOOD.encode()
    for position in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[position] ^= 1 << bit
            with pytest.raises(DamagedCheckpoint):
                decode(bytes(changed), "p")


def test_every_truncation_is_noticed() -> None:
    text = GOOD.encode()
    for length in range(len(text)):
        with pytest.raises(DamagedCheckpoint):
            decode(text[:length], "p")


WRONG: list[tuple[str, Any]] = [
    ("format", True),
    ("format", "1"),
    ("format", 0.5),
    ("run", ""),
    ("run", 3),
    ("run", "\x1b[2J"),
    ("run", "\ud800"),
    ("seq", -1),
    ("seq", True),
    ("seq", 1.0),
    ("seq", 2**63),
    ("attempt", None),
    ("holder", "h" * 201),
    ("origin", "nowhere"),
    ("origin", ["interval"]),
    ("created", "now"),
    ("created", float("nan")),
    ("created", True),
    ("extra", []),
    ("extra", {"epochs": []}),
    ("extra", {"epochs": 1.5}),
    ("extra", {"model": "1"}),
    ("extra", {"model": -1}),
    ("writer", None),
    ("position", None),
    ("position", {}),
    ("position", {"fit": 1, "epoch": 0, "batch": 0, "step": 0, "kind": {}}),
    ("position", {"fit": 1, "epoch": 0, "batch": 0, "step": 0, "kind": "batch", "more": 1}),
    ("position", {"fit": 1, "epoch": 0, "batch": 0, "step": "0", "kind": "batch"}),
    ("files", {}),
    ("files", [None]),
    ("files", [{"name": "../a", "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": "a/b", "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": "..", "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": "/etc/passwd", "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": MANIFEST, "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": ["a"], "size": 0, "chunk": 1, "crc32": []}]),
    ("files", [{"name": "a", "size": 0, "chunk": 0, "crc32": []}]),
    ("files", [{"name": "a", "size": 0, "chunk": 2**40, "crc32": []}]),
    ("files", [{"name": "a", "size": -1, "chunk": 1, "crc32": []}]),
    ("files", [{"name": "a", "size": 2, "chunk": 1, "crc32": [1]}]),
    ("files", [{"name": "a", "size": 1, "chunk": 1, "crc32": [2**32]}]),
    ("files", [{"name": "a", "size": 1, "chunk": 1, "crc32": ["1"]}]),
    ("files", [{"name": "a", "size": 0, "chunk": 1, "crc32": []}] * 2),
    ("files", [{"name": name, "size": 0, "chunk": 1, "crc32": []} for name in ("a", "A")]),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_refused_though_the_crc_is_right(key: str, value: Any) -> None:
    with pytest.raises(DamagedCheckpoint):
        decode(signed({**good_values(), key: value}), "p")


@pytest.mark.parametrize("key", sorted(good_values()))
def test_a_missing_key_is_refused(key: str) -> None:
    values = good_values()
    del values[key]
    with pytest.raises(DamagedCheckpoint, match=r"missing key|format"):
        decode(signed(values), "p")


def test_an_unknown_or_doubled_key_is_refused() -> None:
    with pytest.raises(DamagedCheckpoint, match="unknown key 'more'"):
        decode(signed({**good_values(), "more": 1}), "p")
    with pytest.raises(DamagedCheckpoint, match="twice"):
        decode(sign(GOOD.encode()[:-20] + b',"seq":3'), "p")


def test_a_newer_format_says_who_wrote_it() -> None:
    with pytest.raises(NewerFormat, match=r"ksupervise 12.0 in format 7.*[Uu]pgrade"):
        decode(signed({"format": 7, "writer": "ksupervise 12.0", "anything": [1]}), "p")


def test_deep_nesting_and_huge_numbers_are_refused() -> None:
    for body in (b'{"a":' + b"[" * 200_000, b'{"a":' + b"9" * 100_000, b'{"a":"\xff\xfe"', b"[", b"1"):
        with pytest.raises(DamagedCheckpoint):
            decode(sign(body), "p")


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / MANIFEST, "wb") as file:
        file.truncate(MAX_MANIFEST * 1000)  # sparse: 64 GB that nobody may read
    with pytest.raises(DamagedCheckpoint, match="larger than"):
        read_manifest(str(tmp_path))


def test_a_huge_extra_is_not_written() -> None:
    with pytest.raises(ValueError, match="too large"):
        replace(GOOD, extra={"x": "y" * (MAX_MANIFEST + 1)}).encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused(noise: bytes, is_signed: bool) -> None:
    with pytest.raises(DamagedCheckpoint):
        decode(sign(noise) if is_signed else noise, "p")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(good_values())), json_values, min_size=1, max_size=4))
def test_any_json_in_any_place_is_taken_as_it_is_or_refused(changes: dict[str, Any]) -> None:
    try:
        manifest = decode(signed({**good_values(), **changes}), "p")
    except (DamagedCheckpoint, NewerFormat):
        return
    assert decode(manifest.encode(), "p").encode() == manifest.encode()
