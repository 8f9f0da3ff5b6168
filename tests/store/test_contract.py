"""What every store promises. A new kind of store joins by one line in RIGS.

The mounted ones are real file systems that do what NFS, a mount in a user's process, a full quota or a dying disk does;
see `fuse`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from ksupervise.store import (
    CHUNK,
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    StoreFull,
    StoreUnreadable,
    StoreUnwritable,
)

from . import fuse
from .helpers import (
    FAULTS,
    Rig,
    assert_whole,
    at,
    content,
    local_rig,
    memory_rig,
    nfs_rig,
    payload,
    put,
    repeating_rig,
)
from .memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ksupervise.store import Buffer

RIGS: dict[str, Callable[[Path, ExitStack], Rig]] = {
    "local": local_rig,
    "memory": memory_rig,
    "nfs": nfs_rig,
    "repeating": repeating_rig,
}
MOUNTED = {"nfs", "repeating"}
why_not = cache(fuse.why_not)


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param in MOUNTED and (reason := why_not()):
        pytest.skip(reason)
    with ExitStack() as ends:
        yield RIGS[request.param](tmp_path / "run", ends)


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


def test_what_prune_removes_while_it_is_read_does_no_harm(rig: Rig) -> None:
    store = rig.open()
    old = put(store, 1)
    reading = store.read(old, "state.safetensors")
    assert bytes(next(reading)) == b"".join(payload(1)["state.safetensors"])
    new = put(store, 2)
    assert store.prune(1) == [old.path]
    store.sweep()
    assert rig.open().checkpoints() == [new]
    assert rig.open().damaged() == []
    assert list(reading) == []
    store.sweep()
    assert store.sweep() == [], "nothing is left"
    assert_whole(rig.open(), new)


def test_a_thinned_one_is_valid_without_that_file(rig: Rig) -> None:
    store = rig.open()
    thinned = store.thin(put(store, 1), "state.safetensors")
    assert rig.open().checkpoints() == [thinned]
    assert [each.name for each in thinned.manifest.files] == ["extra.json"]
    store.verify(thinned)


def test_what_was_set_aside_is_not_listed_and_its_seq_not_used_again(rig: Rig) -> None:
    store = rig.open()
    old, new = put(store, 1), put(store, 2)
    store.set_aside(new.path, "no reason")
    assert rig.open().checkpoints() == [old]
    assert rig.open().damaged() == []
    assert rig.open().next_seq() == 3


@pytest.mark.parametrize("error", [RuntimeError("unmapped"), OSError(5, "EIO"), Unplugged()])
def test_a_payload_that_cannot_be_read_abandons_the_commit(rig: Rig, error: BaseException) -> None:
    store = rig.open()
    old = put(store, 1)

    def torn() -> Iterator[bytes]:
        yield b"{"
        raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        store.commit(at(2), {**payload(2), "extra.json": torn()}, seq=2, attempt=1, holder="h", origin="drain")
    assert raised.value is error or raised.value.__cause__ is error
    assert rig.open().checkpoints() == [old]
    assert rig.open().damaged() == []
    assert store.sweep() == [], "nothing is left"


def test_each_store_offers_the_same() -> None:
    def offers(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert offers(MemoryStore) == offers(CheckpointStore)


def assert_only(rig: Rig, *expected: Checkpoint) -> None:
    """Those are there, whole, and nothing else; leftovers go."""
    store = rig.open()
    store.sweep()
    assert store.checkpoints() == list(expected)
    assert store.damaged() == []
    assert store.sweep() == [], "the first has left nothing"
    for each in expected:
        assert_whole(store, each)


@pytest.fixture
def fault(request: pytest.FixtureRequest, rig: Rig) -> Callable[[], None]:
    return rig.faults[request.param]


WAYS_TO_FAIL = [("memory", "full"), *(("nfs", fault) for fault in ["not mounted any more", *FAULTS])]
every_fault = pytest.mark.parametrize(("rig", "fault"), WAYS_TO_FAIL, indirect=True)


@every_fault
def test_a_store_that_fails_keeps_the_old_one(
    rig: Rig, fault: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    store = rig.open()
    old = put(store, 1)
    fault()
    with pytest.raises(StoreUnwritable) as raised:
        store.commit(at(2), payload(2), seq=2, attempt=1, holder="here", origin="interval")
    assert isinstance(raised.value, StoreFull) == any(word in request.node.name for word in ("full", "fit", "quota"))
    assert_nothing_damaged(store)
    rig.mend()
    assert_only(rig, old)
    assert_only(rig, put(rig.open(), 3), old)


def assert_nothing_damaged(store: Any) -> None:
    """What is out of reach is not taken for damaged."""
    with suppress(StoreUnreadable):
        assert store.damaged() == []


@every_fault
def test_a_store_that_fails_in_mid_write_keeps_the_old_one(rig: Rig, fault: Callable[[], None]) -> None:
    store = rig.open()
    old = put(store, 1)

    def interrupted() -> Iterator[bytes]:
        yield bytes(CHUNK)
        fault()
        yield bytes(CHUNK)

    with pytest.raises(StoreUnwritable):
        store.commit(at(2), {"a": [b"1" * 2000], "b": interrupted()}, seq=2, attempt=1, holder="h", origin="interval")
    rig.mend()
    assert_only(rig, old)


@every_fault
def test_a_removal_that_fails_keeps_the_newest(rig: Rig, fault: Callable[[], None]) -> None:
    store = rig.open()
    made = [put(store, seed) for seed in range(1, 4)]
    fault()
    with suppress(StoreUnwritable, StoreUnreadable):
        store.prune(1)
    rig.mend()
    store = rig.open()
    assert store.newest() == made[-1]
    assert store.damaged() == []
    for each in store.checkpoints():
        assert_whole(store, each)
    store.prune(1)
    assert_only(rig, made[-1])
