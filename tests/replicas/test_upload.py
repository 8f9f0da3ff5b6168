"""One checkpoint copied to a place: in order, whole or not at all, and given up without harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ksupervise.replicas import upload as uploading
from ksupervise.replicas.fetch import look
from ksupervise.replicas.place import Arrival, NotThere, ReplicaFull, ReplicaRefused, ReplicaUnreachable
from ksupervise.replicas.upload import (
    Abandoned,
    Flow,
    Source,
    Superseded,
    begin_generation,
    journal_tail,
    record_of,
    run_id,
    upload,
)
from ksupervise.store import Checkpoint, CheckpointStore, DamagedCheckpoint

from .memory_place import GENERATION, NAME, RUN, MemoryPlace, manifests, new_run, put, tree


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return new_run(tmp_path / "run")


@pytest.fixture
def place() -> MemoryPlace:
    return MemoryPlace()


def source(store: CheckpointStore, checkpoint: Checkpoint) -> Source:
    root = Path(store.layout.root)
    return Source(store, checkpoint, (root / "journal.jsonl").read_bytes(), (root / "run.json").read_bytes())


def key(checkpoint: Checkpoint, name: str) -> str:
    return f"{GENERATION.checkpoints}{os.path.basename(checkpoint.path)}/{name}"


def complete(place: MemoryPlace) -> list[int]:
    """Seqs that count in the place, by what a fetch would see."""
    place.before = lambda _method, _key: None
    return [copy.item.seq for found in look(place, NAME) for copy in found.inventory.copies]


def writes(place: MemoryPlace) -> list[str]:
    return [key.rpartition("/")[2] for method, key in place.calls if method in ("write", "create")]


def test_everything_is_copied_the_record_first_and_the_manifest_last(
    store: CheckpointStore, place: MemoryPlace
) -> None:
    before = tree(Path(store.layout.root))
    checkpoint = put(store, 5)
    begun = tree(Path(store.layout.root))
    sent: list[int] = []
    assert upload(place, GENERATION, source(store, checkpoint), Flow(sent.append)) is Arrival.UPLOADED
    assert writes(place) == ["run.json", "state.safetensors", "extra.json", "journal.jsonl", "MANIFEST.json"]
    for name in ("state.safetensors", "extra.json", "MANIFEST.json"):
        assert place.objects[key(checkpoint, name)] == (Path(checkpoint.path) / name).read_bytes()
    assert place.objects[key(checkpoint, "journal.jsonl")] == b'{"event":"taken"}\n'
    assert place.objects[GENERATION.record] == (Path(store.layout.root) / "run.json").read_bytes()
    assert sum(sent) == checkpoint.manifest.size + len(b'{"event":"taken"}\n')
    assert complete(place) == [1]
    assert tree(Path(store.layout.root)) == begun != before, "nothing is written here"


def test_it_has_come_as_far_as_its_last_object(store: CheckpointStore, place: MemoryPlace) -> None:
    place.state = Arrival.CACHED
    checkpoint = put(store, 5)
    assert upload(place, GENERATION, source(store, checkpoint), Flow()) is Arrival.CACHED

    def late(method: str, at: str) -> None:
        place.state = Arrival.CACHED if at.endswith("MANIFEST.json") else Arrival.UPLOADED

    place.before = late
    assert upload(place, GENERATION, source(store, put(store, 6)), Flow()) is Arrival.CACHED


FAULTS = [ReplicaUnreachable, ReplicaRefused, ReplicaFull, NotThere]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_at_any_call_leaves_no_checkpoint_and_the_next_attempt_finishes(
    store: CheckpointStore, fault: type[Exception]
) -> None:
    checkpoint = put(store, 5)
    calls = 0
    for at in range(1000):
        place = MemoryPlace()
        calls = 0

        def fail(_method: str, _key: str, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls > at:
                raise fault("it broke")

        place.before = fail
        try:
            upload(place, GENERATION, source(store, checkpoint), Flow())
        except fault:
            whole = key(checkpoint, "MANIFEST.json") in place.objects
            assert complete(place) in ([1], []) if whole else complete(place) == []
            upload(place, GENERATION, source(store, checkpoint), Flow())
            assert complete(place) == [1]
        else:
            break
    assert calls > 10


def test_what_came_whole_before_is_not_copied_again(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)

    def fail(method: str, at: str) -> None:
        if method == "write" and at.endswith("extra.json"):
            raise ReplicaUnreachable("gone")

    place.before = fail
    with pytest.raises(ReplicaUnreachable):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    place.before = lambda _method, _key: None
    place.calls.clear()
    upload(place, GENERATION, source(store, checkpoint), Flow())
    assert writes(place) == ["run.json", "extra.json", "journal.jsonl", "MANIFEST.json"]


def test_what_came_garbled_before_is_copied_again(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)
    place.objects[key(checkpoint, "state.safetensors")] = bytes(3000)
    upload(place, GENERATION, source(store, checkpoint), Flow())
    assert (
        place.objects[key(checkpoint, "state.safetensors")] == Path(checkpoint.path, "state.safetensors").read_bytes()
    )


def test_what_the_place_garbles_gets_no_manifest(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)

    def garble(method: str, at: str) -> None:
        if method == "arrival" and at.endswith("state.safetensors"):
            place.objects[at] = bytes(len(place.objects[at]))

    place.before = garble
    with pytest.raises(NotThere):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    assert not manifests(place)


def test_a_manifest_whose_files_are_gone_does_not_stand_while_they_come_back(
    store: CheckpointStore, place: MemoryPlace
) -> None:
    checkpoint = put(store, 5)
    upload(place, GENERATION, source(store, checkpoint), Flow())
    del place.objects[key(checkpoint, "state.safetensors")]
    seen = []
    place.before = lambda method, _key: seen.append(bool(manifests(place))) if method == "piece" else None
    upload(place, GENERATION, source(store, checkpoint), Flow())
    assert True not in seen[:-1]
    assert complete(place) == [1]


def test_an_upload_is_given_up_between_two_pieces(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5, size=5 * 1024 * 1024)
    sent: list[int] = []
    flow = Flow(sent.append, lambda: sum(sent) >= 2 * 1024 * 1024)
    with pytest.raises(Abandoned):
        upload(place, GENERATION, source(store, checkpoint), flow)
    assert sum(sent) == 2 * 1024 * 1024
    assert not manifests(place)


def test_giving_up_is_no_fault_of_the_place_whatever_it_makes_of_it(store: CheckpointStore) -> None:
    class Wrapping(MemoryPlace):
        def write(self, key: str, chunks: object, size: int) -> None:
            try:
                super().write(key, chunks, size)  # type: ignore[arg-type]
            except Exception as error:
                raise ReplicaUnreachable(str(error)) from error

    flow = Flow(abandoned=iter([False, True]).__next__)
    checkpoint = put(store, 5)
    with pytest.raises(Abandoned):
        upload(Wrapping(), GENERATION, source(store, checkpoint), flow)


def test_another_owner_gets_no_manifest_from_us(store: CheckpointStore, place: MemoryPlace) -> None:
    with pytest.raises(Superseded):
        upload(place, GENERATION, source(store, put(store, 5)), Flow(), still_ours=lambda: False)
    assert not manifests(place)


def remove(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    put(store, 99)
    store.prune(1)
    assert not os.path.exists(checkpoint.path)


def thin(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    store.thin(checkpoint, "state.safetensors")


def test_a_checkpoint_removed_before_its_upload_is_no_fault(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)
    remove(store, checkpoint)
    with pytest.raises(Abandoned):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    assert not manifests(place)


def test_a_checkpoint_thinned_before_its_upload_is_no_fault(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)
    thin(store, checkpoint)
    with pytest.raises(Abandoned):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    assert not manifests(place)


@pytest.mark.parametrize("change", [remove, thin])
def test_what_is_removed_here_in_mid_upload_is_finished_all_the_same(
    store: CheckpointStore, place: MemoryPlace, change: Callable[[CheckpointStore, Checkpoint], None]
) -> None:
    checkpoint = put(store, 5, size=20 * 1024 * 1024)
    expected = Path(checkpoint.path, "state.safetensors").read_bytes()
    sent: list[int] = []

    def progress(count: int) -> None:
        if not sent:
            change(store, checkpoint)
        sent.append(count)

    upload(place, GENERATION, source(store, checkpoint), Flow(progress))
    assert place.objects[key(checkpoint, "state.safetensors")] == expected
    assert complete(place) == [1]


@pytest.mark.parametrize("change", [remove, thin])
def test_what_was_not_opened_before_it_was_removed_is_no_fault(
    store: CheckpointStore,
    place: MemoryPlace,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[CheckpointStore, Checkpoint], None],
) -> None:
    monkeypatch.setattr(uploading, "_OPEN_AT_ONCE", 0)
    checkpoint = put(store, 5)

    def before(method: str, _key: str) -> None:
        if method == "entries":
            change(store, checkpoint)

    place.before = before
    with pytest.raises(Abandoned):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    assert not manifests(place)


def test_what_is_rotten_here_is_not_copied(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)
    Path(checkpoint.path, "state.safetensors").write_bytes(bytes(3000))
    with pytest.raises(DamagedCheckpoint):
        upload(place, GENERATION, source(store, checkpoint), Flow())
    assert not manifests(place)


def test_the_cap_on_bandwidth_holds(store: CheckpointStore, place: MemoryPlace) -> None:
    now = [0.0]
    alive: list[int] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    checkpoint = put(store, 5, size=1_000_000)
    flow = Flow(alive.append, rate=100_000, clock=lambda: now[0], sleep=sleep)
    upload(place, GENERATION, source(store, checkpoint), flow)
    assert 9.0 <= now[0] <= 11.0
    assert alive.count(0) >= 10, "it is alive while it waits"


def test_an_upload_that_waits_for_its_share_can_be_given_up(store: CheckpointStore, place: MemoryPlace) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    flow = Flow(abandoned=lambda: now[0] > 3.0, rate=1000, clock=lambda: now[0], sleep=sleep)
    with pytest.raises(Abandoned):
        upload(place, GENERATION, source(store, put(store, 5, size=1_000_000)), flow)
    assert now[0] < 5.0


def test_another_runs_generation_is_not_touched(place: MemoryPlace) -> None:
    other = json.dumps({"id": RUN.replace("0001", "0002")}).encode()
    place.objects[GENERATION.record] = other
    with pytest.raises(ReplicaRefused, match="another run"):
        begin_generation(place, GENERATION, json.dumps({"id": RUN}).encode())
    assert place.objects == {GENERATION.record: other}


@pytest.mark.parametrize("torn", [b"", b'{"id": "0b0e', b"[]", b"{}", b'{"id": 5}', b"null", b"[" * 100_000])
def test_a_record_that_broke_off_is_written_anew(place: MemoryPlace, torn: bytes) -> None:
    record = json.dumps({"id": RUN}).encode()
    place.objects[GENERATION.record] = torn
    begin_generation(place, GENERATION, record)
    assert place.objects[GENERATION.record] == record
    assert run_id(record) == RUN


def test_of_a_long_journal_the_last_whole_lines_travel(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert journal_tail(str(path)) == b""
    path.write_bytes(b"one\ntwo\nthree\nfour")
    assert journal_tail(str(path)) == b"one\ntwo\nthree\n"
    expected = {
        3: b"",
        4: b"",
        5: b"",
        9: b"",
        10: b"three\n",
        11: b"three\n",
        14: b"two\nthree\n",
        18: b"one\ntwo\nthree\n",
    }
    for limit, tail in expected.items():
        assert journal_tail(str(path), limit) == tail, limit


def test_a_digest_covers_every_byte() -> None:
    data = bytes(range(256)) * 40_000
    record = record_of("a", data)
    assert len(record.crc32) == 2
    assert record != record_of("a", data[:-1] + b"x")
    assert record_of("a", b"").crc32 == ()


def test_a_run_directory_that_is_gone_is_no_fault(store: CheckpointStore, place: MemoryPlace) -> None:
    checkpoint = put(store, 5)
    from_here = source(store, checkpoint)
    shutil.rmtree(store.layout.root)
    with pytest.raises(Abandoned):
        upload(place, GENERATION, from_here, Flow())
