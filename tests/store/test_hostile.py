"""Checkpoints that somebody made to do harm: a clear error, never a crash, never code, bounded memory and time."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ksupervise.store import CheckpointStore, DamagedCheckpoint, NewerFormat
from ksupervise.store.checkpoint import MANIFEST, MAX_MANIFEST

from .helpers import assert_whole, put
from .test_manifest import GOOD, sign, signed

if TYPE_CHECKING:
    from collections.abc import Callable


def look(store: CheckpointStore) -> None:
    """All that a reader does with what it finds. Anything but these errors is a fault of ours."""
    try:
        found = store.checkpoints()
        store.next_seq()
    except NewerFormat:
        return
    for each in found:
        try:
            store.verify(each)
            for record in each.manifest.files:
                for _ in store.read(each, record.name):
                    pass
        except DamagedCheckpoint:
            pass


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())
    del values["self"]
    return values


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [pair for key in keys for pair in [(value, key), *places(value[key])]]


JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**4000, "", "x" * 300, "\ud800"),
    *("../../etc/passwd", "/etc/passwd", "\0", "a\x1b[2Jb", [], {}, [[]], {"name": "a"}, [1] * 1000, {"": {"": []}}),
]


@pytest.mark.parametrize("seed", range(25))
def test_no_value_in_a_manifest_crashes_the_reader(store: CheckpointStore, seed: int) -> None:
    dice = random.Random(seed)
    old, new = put(store, 1), put(store, 2)
    path = Path(new.path, MANIFEST)
    good = path.read_bytes()
    for _ in range(20):
        values = values_of(path)
        for _ in range(dice.randrange(1, 3)):
            container, key = dice.choice(places(values))
            container[key] = dice.choice(JUNK)
        path.write_bytes(signed(values))
        look(store)
        path.write_bytes(good)
    assert_whole(store, old)


@pytest.mark.parametrize("seed", range(25))
def test_no_bytes_in_a_manifest_crash_the_reader(store: CheckpointStore, seed: int) -> None:
    dice = random.Random(seed)
    put(store, 1)
    path = Path(put(store, 2).path, MANIFEST)
    body = path.read_bytes()[:-20]
    words = [b"[", b"]", b"{", b"}", b"-", b"9" * 5000, b"e9", b"NaN", b"null", b'"', b"\\ud800", b"\xff", b"\0"]
    for _ in range(20):
        text = bytearray(body)
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(text))
            text[place : place + dice.randrange(3)] = dice.choice(words)
        path.write_bytes(sign(bytes(text)))
        look(store)


SIZES: list[dict[str, Any]] = [
    {"size": 2**63, "crc32": [0]},
    {"size": 2**63 - 1, "crc32": [0]},
    {"size": 2**62, "chunk": 64 * 2**20, "crc32": [0] * 1000},
    {"size": -1, "crc32": []},
    {"size": float("nan"), "crc32": []},
    {"chunk": 2**62},
    {"chunk": 0},
    {"crc32": [[0]]},
    {"crc32": {"0": 0}},
]


@pytest.mark.parametrize("lie", SIZES)
def test_a_size_that_lies_is_damage(store: CheckpointStore, lie: dict[str, Any]) -> None:
    path = Path(put(store, 1).path, MANIFEST)
    values = values_of(path)
    values["files"][0].update(lie)
    path.write_bytes(signed(values))
    assert store.checkpoints() == []
    assert len(store.damaged()) == 1


def test_a_vast_file_is_not_read_further_than_it_is_right(store: CheckpointStore) -> None:
    """Its size is what the manifest says, and nothing lies in it."""
    found = put(store, 1)
    path = Path(found.path, MANIFEST)
    values = values_of(path)
    values["files"][0].update({"size": 2**40, "chunk": 2**26, "crc32": [1] * 2**14})
    path.write_bytes(signed(values))
    os.truncate(Path(found.path, values["files"][0]["name"]), 2**40)
    [found] = store.checkpoints()
    with pytest.raises(DamagedCheckpoint, match=f"bytes 0 to {2**26} "):
        store.verify(found)


def make_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero: it never ends
    except PermissionError:
        pytest.skip("only root may make devices")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_forest(path: Path) -> None:
    path.joinpath(*"abcdefghij" * 20).mkdir(parents=True)


MAKERS = [make_link, make_link_to_itself, make_pipe, make_device, make_socket, make_directory, make_forest]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["state.safetensors", MANIFEST, ""])
def test_what_lies_in_the_place_of_a_file_is_not_followed(
    store: CheckpointStore, make: Callable[[Path], None], name: str
) -> None:
    old, new = put(store, 1), put(store, 2)
    place = Path(new.path, name)
    place.rename(f"{new.path}.away" if not name else f"{place}.away")
    if not name:
        Path(f"{new.path}.away").rename(store.layout.tmp + "/away")
    make(place)
    assert store.checkpoints() == [old]
    assert [path for path, _ in store.damaged()] == [new.path]
    with pytest.raises(DamagedCheckpoint):
        store.verify(new)
    if name != MANIFEST:
        with pytest.raises(DamagedCheckpoint):
            list(store.read(new, "state.safetensors"))
    store.set_aside(new.path, "hostile")
    store.sweep()
    assert store.damaged() == []
    assert_whole(store, old)


def test_a_bottomless_directory_is_left_to_a_person(store: CheckpointStore) -> None:
    """It is deeper than anything of ours can follow."""
    new = put(store, 1)
    top = os.path.join(store.layout.tmp, "deep")
    os.mkdir(top)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        assert store.sweep() == []
        assert store.checkpoints() == [new]
    finally:
        subprocess.run(["rm", "-rf", top], check=True)


def test_what_a_terminal_would_obey_is_not_told(store: CheckpointStore) -> None:
    path = Path(put(store, 1).path, MANIFEST)
    values = values_of(path)
    path.write_bytes(signed({**values, "run": "\x1b]0;owned\x07"}))
    [(_, reason)] = store.damaged()
    assert reason.isprintable()
    path.write_bytes(signed({**values, "format": 2, "writer": "\x1b[2J\ud800"}))
    with pytest.raises(NewerFormat) as raised:
        store.checkpoints()
    assert str(raised.value).isprintable()


WORST = {
    "lists": b"[],",
    "objects": b"{},",
    "small objects": b'{"a":1},',
    "fractions": b"0.5,",
    "texts": b'"\\u00e9",',
    "nested": b"[[[[[[[[[[[[]]]]]]]]]]]],",
}
MEGABYTES = 400


def decode_within_bounds(text: bytes) -> str:
    """What a process says that has so much memory, and is given that manifest."""
    bounded = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, 2 * (int(sys.argv[1]),))"
    decoding = "from ksupervise.store.checkpoint import DamagedCheckpoint, decode"
    deciding = "try: decode(sys.stdin.buffer.read(), 'p'); print('taken')\nexcept DamagedCheckpoint: print('refused')"
    command = [sys.executable, "-c", f"{bounded}\n{decoding}\n{deciding}", str(MEGABYTES * 2**20)]
    ran = subprocess.run(command, input=text, capture_output=True, check=False, timeout=60)
    assert ran.stderr == b""
    return ran.stdout.decode().strip()


@pytest.mark.parametrize("what", WORST)
def test_the_worst_manifest_takes_bounded_memory(what: str) -> None:
    head, tail = GOOD.encode()[:-20].rsplit(b"[1,null]", 1)
    assert tail.startswith(b"}")
    extra = b"[" + WORST[what] * ((MAX_MANIFEST - 4096) // len(WORST[what])) + b"1]"
    assert decode_within_bounds(sign(head + extra + tail)) == "taken"


def test_a_larger_one_is_not_parsed() -> None:
    head, tail = GOOD.encode()[:-20].rsplit(b"[1,null]", 1)
    assert decode_within_bounds(sign(head + b"[" + b"[]," * (5 * MAX_MANIFEST) + b"1]" + tail)) == "refused"


@pytest.mark.parametrize("digits", [b"0,", b"4294967295,", b"9" * 5000 + b","])
def test_a_manifest_of_digests_takes_bounded_memory(digits: bytes) -> None:
    head, tail = GOOD.encode()[:-20].split(b"[1,2]", 1)
    text = head + b"[" + digits * ((MAX_MANIFEST - 8192) // len(digits)) + b"1]" + tail
    assert decode_within_bounds(sign(text)) == "refused"
