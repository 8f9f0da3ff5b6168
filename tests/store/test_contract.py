"""What every store promises about a commit. A new kind of store joins by one line in RIGS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ksupervise.store import CHUNK, Checkpoint, DamagedCheckpoint

from .helpers import Rig, assert_whole, at, content, local_rig, payload, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ksupervise.store import Buffer

RIGS: dict[str, Callable[[Path], Rig]] = {"local": local_rig}


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return RIGS[request.param](tmp_path / "run")


def test_an_empty_store_has_no_newest(rig: Rig) -> None:
    store = rig.open()
    assert store.newest() is None
    assert store.checkpoints() == []
    assert store.damaged() == []
    assert store.next_seq() == 1
    assert store.prune(1) == []


def test_what_was_committed_is_found_by_the_next_process(rig: Rig) -> None:
    committed = put(rig.open(), 1)
    found = rig.open().newest()
    assert found == committed
    assert_whole(rig.open(), found)


def test_the_manifest_gives_back_what_was_given(rig: Rig) -> None:
    store = rig.open()
    extra = {"history": [1.5, float("inf")], "name": "été\udc80", "none": None, "deep": {"a": [True]}}
    position = at(7, "epoch", fit=3)
    store.commit(position, {}, seq=5, attempt=2, holder="h\n/é", origin="drain", extra=extra)
    found = rig.open().checkpoints()[0].manifest
    assert (found.position, found.seq, found.attempt, found.holder) == (position, 5, 2, "h\n/é")
    assert (found.origin, found.extra, found.files) == ("drain", extra, ())


def test_newest_is_by_attempt_then_seq_never_by_step(rig: Rig) -> None:
    store = rig.open()
    for seq, attempt, step in [(3, 1, 900), (1, 2, 10), (2, 1, 1000), (4, 2, 5)]:
        store.commit(at(step), {}, seq=seq, attempt=attempt, holder="h", origin="interval")
    assert [each.manifest.seq for each in rig.open().checkpoints()] == [4, 1, 3, 2]


@pytest.mark.parametrize("size", [0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 4097])
def test_files_of_every_size_come_back(rig: Rig, size: int) -> None:
    store = rig.open()
    data = payload(size, size)["state.safetensors"]
    found = store.commit(at(1), {"state": data}, seq=1, attempt=1, holder="h", origin="interval")
    assert content(rig.open(), found, "state") == b"".join(data)
    assert found.manifest.size == size


def test_buffers_of_every_kind_are_written(rig: Rig) -> None:
    import array

    numbers = memoryview(array.array("d", [1.0, 2.0, 3.0, 4.0]))
    pieces: list[Buffer] = [
        b"ab",
        bytearray(b"cd"),
        memoryview(b"efgh")[::1],
        numbers,
        memoryview(array.array("d")),
    ]
    found = rig.open().commit(at(1), {"s": pieces}, seq=1, attempt=1, holder="h", origin="user")
    assert content(rig.open(), found, "s") == b"abcdefgh" + numbers.tobytes()


def test_one_changed_byte_is_noticed(rig: Rig) -> None:
    old, new = put(rig.open(), 1), put(rig.open(), 2)
    rig.damage(new, "state.safetensors")
    store = rig.open()
    with pytest.raises(DamagedCheckpoint, match="crc32 differs"):
        store.verify(new)
    with pytest.raises(DamagedCheckpoint):
        content(store, new)
    assert_whole(store, old)


class Unplugged(BaseException):
    """Not even an Exception: as a KeyboardInterrupt in the middle of a commit."""


@pytest.mark.parametrize("error", [OSError(5, "EIO"), RuntimeError("no"), Unplugged()])
def test_a_payload_that_fails_leaves_the_old_one(rig: Rig, error: BaseException) -> None:
    store = rig.open()
    old = put(store, 1)

    def failing() -> Iterator[bytes]:
        yield b"x" * 100
        raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        store.commit(at(2), {"a": [b"1"], "b": failing()}, seq=2, attempt=1, holder="h", origin="interval")
    assert raised.value is error or raised.value.__cause__ is error
    assert rig.open().checkpoints() == [old]
    assert rig.open().damaged() == []


BAD_NAMES = [
    "",
    ".",
    "..",
    ".x",
    "a/b",
    "a\\b",
    "a\0b",
    "é",
    "a b",
    "x" * 101,
    "MANIFEST.json",
    "manifest.JSON",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_directory_are_refused(rig: Rig, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        rig.open().commit(at(1), {name: [b""]}, seq=1, attempt=1, holder="h", origin="interval")
    assert rig.open().checkpoints() == []


@pytest.mark.parametrize("extra", [{"a": object()}, {"a": {1: 1, "1": 2}}, {"a": b"bytes"}])
def test_extra_that_is_not_json_is_refused_before_writing(rig: Rig, extra: dict[str, object]) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("asked for")
        yield b""

    with pytest.raises((TypeError, ValueError)):
        rig.open().commit(at(1), {"a": never()}, seq=1, attempt=1, holder="h", origin="interval", extra=extra)


def test_a_taken_seq_is_refused_and_the_first_stays(rig: Rig) -> None:
    from ksupervise.store import StoreUnwritable

    first = put(rig.open(), 1)
    with pytest.raises(StoreUnwritable):
        rig.open().commit(at(9), {}, seq=1, attempt=1, holder="here", origin="interval")
    assert rig.open().checkpoints() == [first]
    assert_whole(rig.open(), first)


def test_prune_keeps_the_newest_and_the_pinned(rig: Rig) -> None:
    store = rig.open()
    kinds = [(1, "batch"), (1, "epoch"), (1, "epoch"), (1, "final"), (2, "batch"), (2, "epoch"), (2, "batch")]
    made: list[Checkpoint] = [put(store, n, at(n, kind, fit)) for n, (fit, kind) in enumerate(kinds, 1)]  # type: ignore[arg-type]
    removed = store.prune(2)
    assert removed == [made[0].path, made[1].path, made[4].path]
    assert rig.open().checkpoints() == [made[6], made[5], made[3], made[2]]
    for each in rig.open().checkpoints():
        assert_whole(store, each)
    with pytest.raises(ValueError, match="at least one"):
        store.prune(0)
