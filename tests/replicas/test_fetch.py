"""Bringing a run back to an empty machine, from a replica that may be torn, rotten or hostile."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ksupervise.replicas import fetch as fetching
from ksupervise.replicas.fetch import INCOMING, Fetched, Found, fetch, look
from ksupervise.replicas.format import Generation
from ksupervise.replicas.place import ReplicaUnreachable
from ksupervise.replicas.upload import Flow, Source, upload
from ksupervise.store import (
    Checkpoint,
    CheckpointStore,
    FileRecord,
    Manifest,
    NewerFormat,
    Position,
    RunLayout,
    StoreFull,
)

from .memory_place import GENERATION, NAME, RUN, MemoryPlace, new_run, put, tree

BIG = 20 * 1024 * 1024  # bytes: three chunks


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Of the machine that is lost."""
    return new_run(tmp_path / "lost" / "run")


@pytest.fixture
def place() -> MemoryPlace:
    return MemoryPlace()


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """Of the empty machine."""
    layout = RunLayout(tmp_path / "new" / "run")
    layout.create()
    return layout


def send(
    place: MemoryPlace, store: CheckpointStore, checkpoint: Checkpoint, generation: Generation = GENERATION
) -> None:
    root = Path(store.layout.root)
    journal = b'{"event":"committed","seq":%d}\n' % checkpoint.manifest.seq
    upload(place, generation, Source(store, checkpoint, journal, (root / "run.json").read_bytes()), Flow())


def found(place: MemoryPlace) -> Found:
    return look(place, NAME)[0]


def bring(place: MemoryPlace, layout: RunLayout) -> Fetched:
    return fetch(place, found(place), layout)


def here(layout: RunLayout) -> list[int]:
    """Seqs of what is whole here, newest first; every byte is read."""
    local = CheckpointStore(layout.root, RUN)
    for checkpoint in local.checkpoints():
        local.verify(checkpoint)
    assert not local.damaged()
    return [each.manifest.seq for each in local.checkpoints()]


def key(checkpoint: Checkpoint, name: str) -> str:
    return f"{GENERATION.checkpoints}{os.path.basename(checkpoint.path)}/{name}"


def rot(place: MemoryPlace, checkpoint: Checkpoint, name: str = "state.safetensors") -> None:
    data = place.objects[key(checkpoint, name)]
    place.objects[key(checkpoint, name)] = data[:-1] + bytes([data[-1] ^ 1])


def test_an_empty_machine_gets_the_newest_to_the_byte(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    for step in (5, 6):
        send(place, store, put(store, step))
    came = bring(place, layout)
    assert came.newest is not None
    assert came.newest.manifest.seq == 2
    assert came.journal == b'{"event":"committed","seq":2}\n'
    assert came.record == Path(store.layout.run_json).read_bytes()
    assert came.skipped == ()
    assert here(layout) == [2]
    theirs = Path(store.layout.checkpoints, os.path.basename(came.newest.path))
    for name in os.listdir(theirs):
        assert Path(came.newest.path, name).read_bytes() == (theirs / name).read_bytes()
    assert sorted(os.listdir(came.newest.path)) == sorted(os.listdir(theirs))


def test_every_completed_fits_last_state_comes_too(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    for step, kind, fit in ((1, "final", 1), (2, "final", 1), (3, "final", 2), (4, "batch", 3), (5, "batch", 3)):
        send(place, store, put(store, step, kind=kind, fit=fit))  # type: ignore[arg-type]
    came = bring(place, layout)
    assert here(layout) == [5, 3, 2]
    assert came.newest is not None
    assert came.newest.manifest.seq == 5
    assert came.checkpoints[-1] == came.newest, "the newest comes last: with it all has come"


def test_a_rotten_one_is_skipped_with_a_reason_and_the_next_taken(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    old, new = put(store, 5), put(store, 6)
    send(place, store, old)
    send(place, store, new)
    rot(place, new)
    came = bring(place, layout)
    assert here(layout) == [1]
    assert came.newest is not None
    assert came.newest.manifest == old.manifest
    assert came.journal == b'{"event":"committed","seq":1}\n'
    [(name, reason)] = came.skipped
    assert name == os.path.basename(new.path)
    assert "state.safetensors" in reason
    assert os.listdir(os.path.join(layout.root, INCOMING)) == []


def test_of_a_fit_whose_last_state_is_rotten_the_one_before_is_taken(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    finals = [put(store, step, kind="final") for step in (1, 2)]
    for each in (*finals, put(store, 3, fit=2)):
        send(place, store, each)
    rot(place, finals[1])
    assert [name for name, _ in bring(place, layout).skipped] == [os.path.basename(finals[1].path)]
    assert here(layout) == [3, 1]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"x",
    "flipped": lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:],
}


@pytest.mark.parametrize("name", ["state.safetensors", "MANIFEST.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_found(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout, name: str, damage: str
) -> None:
    send(place, store, put(store, 5))
    new = put(store, 6)
    send(place, store, new)
    data = DAMAGE[damage](place.objects.pop(key(new, name)))
    if data is not None:
        place.objects[key(new, name)] = data
    bring(place, layout)
    assert here(layout) == [1]


def test_what_is_garbled_on_its_way_once_is_asked_for_again(store: CheckpointStore, layout: RunLayout) -> None:
    class Garbling(MemoryPlace):
        garbled = False

        def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
            data = super().read(key, begin, length)
            if key.endswith("state.safetensors") and not self.garbled:
                self.garbled = True
                return bytes(len(data))
            return data

    place = Garbling()
    send(place, store, put(store, 5))
    assert bring(place, layout).skipped == ()
    assert place.garbled
    assert here(layout) == [1]


def test_a_download_goes_on_behind_the_last_chunk_that_came(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    checkpoint = put(store, 5, size=BIG)
    send(place, store, checkpoint)
    reads = 0

    def fail(method: str, at: str) -> None:
        nonlocal reads
        reads += method == "read" and at.endswith("state.safetensors")
        if reads > 2:
            raise ReplicaUnreachable("gone")

    place.before = fail
    with pytest.raises(ReplicaUnreachable):
        bring(place, layout)
    assert here(layout) == []
    CheckpointStore(layout.root, RUN).sweep()  # what the next owner does first
    place.before = lambda _method, _key: None
    place.calls.clear()
    bring(place, layout)
    assert len([1 for method, at in place.calls if (method, at) == ("read", key(checkpoint, "state.safetensors"))]) == 1
    assert here(layout) == [1]


def test_what_a_power_cut_left_of_a_download_is_verified(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    checkpoint = put(store, 5, size=BIG)
    send(place, store, checkpoint)
    partial = Path(layout.root, INCOMING, os.path.basename(checkpoint.path))
    partial.mkdir(parents=True)
    data = bytearray(Path(checkpoint.path, "state.safetensors").read_bytes())
    data[9 * 1024 * 1024] ^= 1
    (partial / "state.safetensors").write_bytes(data + b"more")
    (partial / "MANIFEST.json").write_bytes(b"torn")
    (partial / "stranger").write_bytes(b"")
    (partial.parent / "000000000001-a0000-h000000").mkdir()  # of a checkpoint that nobody wants any more
    came = bring(place, layout)
    assert here(layout) == [1]
    assert came.newest is not None
    assert sorted(os.listdir(came.newest.path)) == ["MANIFEST.json", "extra.json", "state.safetensors"]
    assert os.listdir(partial.parent) == []


def test_a_kill_at_any_point_leaves_whole_checkpoints_and_the_next_call_goes_on(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    send(place, store, put(store, 1, kind="final"))
    send(place, store, put(store, 2, fit=2))
    left = 0

    def mortal(name: str) -> None:
        real = getattr(fetching, name)

        def call(*args: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args)

        monkeypatch.setattr(fetching, name, call)

    for name in ("_make_directories", "_open_partial", "_write_at", "sync", "sync_dir", "write_file", "move"):
        mortal(name)
    points = 0
    while True:
        target = RunLayout(tmp_path / f"new{points}" / "run")
        left = 10**6
        target.create()
        left = points
        try:
            bring(place, target)
            break
        except Killed:
            assert here(target) in ([], [1], [2, 1])
        left = 10**6
        bring(place, target)
        assert here(target) == [2, 1]
        points += 1
    assert points > 10


def test_what_is_here_is_not_fetched(store: CheckpointStore, place: MemoryPlace, layout: RunLayout) -> None:
    for step in (1, 2):
        send(place, store, put(store, step))
    bring(place, layout)
    put(CheckpointStore(layout.root, RUN), 3, attempt=2)
    send(place, store, put(store, 4))
    place.calls.clear()
    came = bring(place, layout)
    assert came.newest is None
    assert came.checkpoints == ()
    assert not [at for method, at in place.calls if method == "read" and at.endswith("state.safetensors")]
    assert here(layout) == [3, 2]


def test_the_journal_comes_again_for_a_caller_that_was_killed_before_it_merged_it(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    send(place, store, put(store, 1))
    bring(place, layout)
    again = bring(place, layout)
    assert again.newest is None
    assert again.journal == b'{"event":"committed","seq":1}\n'


def test_a_damaged_one_here_is_set_aside_for_the_replicas(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    send(place, store, put(store, 1))
    came = bring(place, layout)
    assert came.newest is not None
    os.unlink(os.path.join(came.newest.path, "extra.json"))
    bring(place, layout)
    assert here(layout) == [1]
    assert len(os.listdir(layout.aside)) == 2, "it and the reason"


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(place, store, put(store, 1))
    monkeypatch.setattr(CheckpointStore, "room", lambda _: 1000)
    with pytest.raises(StoreFull, match=r"needs \d+ bytes .* has 1000"):
        bring(place, layout)
    assert here(layout) == []


def test_generations_are_listed_newest_first(store: CheckpointStore, place: MemoryPlace) -> None:
    send(place, store, put(store, 1))
    other = "ffffffff-6f0e-4c43-9d7a-000000000002"
    place.objects[f"{NAME}/g0012-ffffffff/run.json"] = json.dumps({"id": other}).encode()
    place.objects[f"{NAME}/g0003-eeeeeeee/run.json"] = b'{"id"'
    place.objects[f"{NAME}/g0004-dddddddd/run.json"] = json.dumps({"id": other}).encode()
    place.objects[f"{NAME}/g0002-cccccccc/owner/000001.json"] = b""
    place.objects[f"{NAME}/notes.txt"] = b"a stranger's"
    place.objects[f"{NAME}-2/g0099-ffffffff/run.json"] = json.dumps({"id": other}).encode()
    listed = look(place, NAME)
    assert [each.generation.number for each in listed] == [12, 4, 3, 2, 1]
    assert [bool(each.problem) for each in listed] == [False, True, True, True, False]
    assert listed[0].id == other
    assert [copy.item.seq for copy in listed[4].inventory.copies] == [1]
    assert look(place, "nobody") == []


def test_a_generation_with_a_problem_is_not_fetched(place: MemoryPlace, layout: RunLayout) -> None:
    place.objects[GENERATION.record] = b"{"
    with pytest.raises(ValueError, match=r"run\.json in memory cannot be used"):
        bring(place, layout)


def forge(place: MemoryPlace, manifest: bytes, name: str = "000000000009-a0009-h000000") -> str:
    prefix = f"{GENERATION.checkpoints}{name}/"
    place.objects[prefix + "MANIFEST.json"] = manifest
    return prefix


def a_manifest(files: tuple[FileRecord, ...] = (), run: str = RUN, seq: int = 9) -> Manifest:
    return Manifest(run, seq, 9, "h", Position(1, 0, 0, 1, "batch"), "interval", 0.0, files)


def resealed(manifest: Manifest, old: str, new: str) -> bytes:
    """The manifest with other text in it, its own digest made to fit."""
    body = manifest.encode().rpartition(b',"self":"')[0].replace(old.encode(), new.encode())
    return body + b',"self":"' + f'{zlib.crc32(body):08x}"}}\n'.encode()


ONE = FileRecord("state.safetensors", 3, 8, (0,))
HOSTILE: dict[str, bytes] = {
    "a name with slashes": resealed(a_manifest((ONE,)), "state.safetensors", "../../../../evil"),
    "an absolute name": resealed(a_manifest((ONE,)), "state.safetensors", "/tmp/evil"),
    "the manifest as a file": resealed(a_manifest((ONE,)), "state.safetensors", "MANIFEST.json"),
    "a huge size": resealed(a_manifest((ONE,)), '"size":3', '"size":9000000000000000000'),
    "a huge chunk": resealed(a_manifest((ONE,)), '"chunk":8', '"chunk":9000000000000000000'),
    "a negative size": resealed(a_manifest((ONE,)), '"size":3', '"size":-3'),
    "another run's": a_manifest(run="11111111-0000-0000-0000-000000000000").encode(),
    "another number": a_manifest(seq=10).encode(),
    "a file that is not there": a_manifest((ONE,)).encode(),
    "not JSON": b"{" * 1000,
    "deep": b"[" * 1_000_000,
    "empty": b"",
    "huge": b" " * (4 * 1024 * 1024 + 10),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_skipped_and_the_next_taken(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout, tmp_path: Path, what: str
) -> None:
    send(place, store, put(store, 1))
    forge(place, HOSTILE[what])
    outside = tree(tmp_path / "lost")
    came = bring(place, layout)
    assert here(layout) == [1]
    assert [name for name, _ in came.skipped] == ["000000000009-a0009-h000000"]
    assert tree(tmp_path / "lost") == outside
    assert sorted(os.listdir(tmp_path)) == ["lost", "new"]
    assert os.listdir(tmp_path / "new") == ["run"]


def test_keys_that_lead_elsewhere_are_passed_over(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    send(place, store, put(store, 1))
    for name in ("../../evil", "..", "a/b/c", "000000000009-a0009-h000000/x/MANIFEST.json", "", "\0"):
        place.objects[f"{GENERATION.checkpoints}{name}/MANIFEST.json"] = a_manifest().encode()
    bring(place, layout)
    assert here(layout) == [1]


def test_one_by_a_newer_version_is_not_passed_over_in_silence(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    send(place, store, put(store, 1))
    forge(place, resealed(a_manifest(), '"format":1', '"format":2'))
    with pytest.raises(NewerFormat, match="Upgrade"):
        bring(place, layout)


def test_an_old_one_by_a_newer_version_is_in_nobodys_way(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout
) -> None:
    send(place, store, put(store, 1))
    forge(place, resealed(a_manifest(), '"format":1', '"format":2'), "000000000009-a0000-h000000")
    bring(place, layout)
    assert here(layout) == [1]


def test_tiny_chunks_are_not_asked_for_one_by_one(place: MemoryPlace, layout: RunLayout) -> None:
    data = random.Random(1).randbytes(50_001)
    record = FileRecord(
        "state.safetensors",
        len(data),
        2,
        tuple(zlib.crc32(data[begin : begin + 2]) for begin in range(0, len(data), 2)),
    )
    place.objects[GENERATION.record] = json.dumps({"id": RUN}).encode()
    place.objects[forge(place, a_manifest((record,)).encode()) + "state.safetensors"] = data
    bring(place, layout)
    assert here(layout) == [9]
    assert len([1 for method, at in place.calls if method == "read" and at.endswith("state.safetensors")]) == 1


def test_a_link_planted_in_incoming_is_not_followed(
    store: CheckpointStore, place: MemoryPlace, layout: RunLayout, tmp_path: Path
) -> None:
    checkpoint = put(store, 1)
    send(place, store, checkpoint)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial = Path(layout.root, INCOMING, os.path.basename(checkpoint.path))
    partial.mkdir(parents=True)
    (partial / "state.safetensors").symlink_to(victim)
    with pytest.raises(Exception, match="Cannot write"):
        bring(place, layout)
    assert victim.read_bytes() == b"precious"


def test_only_so_many_checkpoints_are_looked_at(
    store: CheckpointStore, place: MemoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_MOST_LISTED", 2)
    for step in (1, 2, 3):
        send(place, store, put(store, step))
    assert [copy.item.seq for copy in found(place).inventory.copies] == [3, 2]


def test_progress_counts_to_the_end(store: CheckpointStore, place: MemoryPlace, layout: RunLayout) -> None:
    checkpoint = put(store, 5, size=BIG)
    send(place, store, checkpoint)
    seen: list[tuple[int, int]] = []
    fetch(place, found(place), layout, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (checkpoint.manifest.size, checkpoint.manifest.size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_another_generations_record_is_no_guide(place: MemoryPlace, layout: RunLayout) -> None:
    strange = Found(replace(GENERATION, number=2), b"", "", fetching.Inventory(), "a problem")
    with pytest.raises(ValueError, match="a problem"):
        fetch(place, strange, layout)
