"""Damage on the disk is found, told apart and set aside; what is whole is never blamed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import Checkpoint, CheckpointStore, DamagedCheckpoint, NewerFormat, StoreUnwritable

from .helpers import RUN, assert_whole, at, flip, put
from .test_manifest import signed

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ["state.safetensors", "extra.json", "MANIFEST.json"]


def is_valid(store: CheckpointStore, checkpoint: Checkpoint) -> bool:
    if checkpoint.path not in [each.path for each in store.checkpoints()]:
        return False
    try:
        store.verify(checkpoint)
    except DamagedCheckpoint:
        return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_a_flip_or_a_truncation_anywhere_is_found(store: CheckpointStore, seed: int) -> None:
    dice = random.Random(seed)
    old, new = put(store, 1), put(store, 2)
    path = os.path.join(new.path, dice.choice(FILES))
    size = os.path.getsize(path)
    if dice.random() < 0.5:
        flip(path, dice.randrange(size), dice.randrange(8))
    else:
        os.truncate(path, dice.randrange(size))
    assert not is_valid(store, new)
    assert is_valid(store, old)
    assert_whole(store, old)


def spoil_manifest(path: Path) -> None:
    (path / "MANIFEST.json").write_bytes(b"")


def spoil_size(path: Path) -> None:
    os.truncate(path / "state.safetensors", 1)


def spoil_file(path: Path) -> None:
    (path / "extra.json").unlink()


def spoil_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def spoil_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def spoil_all(path: Path) -> None:
    for name in FILES:
        (path / name).unlink()


SPOILERS = [spoil_manifest, spoil_size, spoil_file, spoil_directory, spoil_link, spoil_all]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_damage_is_listed_with_a_reason_and_set_aside(
    store: CheckpointStore, root: Path, spoil: Callable[[Path], None]
) -> None:
    old, new = put(store, 1), put(store, 2)
    spoil(Path(new.path))
    assert store.newest() == old
    [(path, reason)] = store.damaged()
    assert path == new.path
    assert store.next_seq() == 3
    aside = store.set_aside(path, reason)
    assert store.damaged() == []
    assert store.checkpoints() == [old]
    assert os.path.dirname(aside) == str(root / "aside")
    assert os.path.lexists(aside)
    assert Path(f"{aside}.reason.txt").read_text() == f"{reason}\n"
    assert store.next_seq() == 3, "a number is never used twice"


def test_not_even_an_empty_wreck_is_written_over(store: CheckpointStore) -> None:
    wreck = Path(put(store, 1).path)
    for name in FILES:
        (wreck / name).unlink()
    with pytest.raises(StoreUnwritable, match="in the way"):
        store.commit(at(2), {}, seq=1, attempt=1, holder="here", origin="interval")
    assert [path for path, _ in store.damaged()] == [str(wreck)]
    assert_whole(store, put(store, 2))


def test_two_of_one_name_are_both_kept_aside(store: CheckpointStore, root: Path) -> None:
    put(store, 1)
    for _ in range(2):
        (root / "checkpoints" / "x y").mkdir()
        store.set_aside(str(root / "checkpoints" / "x y"), "no manifest")
    assert len([each for each in os.listdir(root / "aside") if each.endswith(".reason.txt")]) == 2
    assert len(os.listdir(root / "aside")) == 4


def test_only_what_lies_among_the_checkpoints_is_set_aside(store: CheckpointStore, root: Path) -> None:
    for path in (root / "tmp", root / "checkpoints", root / "checkpoints" / "a" / "b", Path("/etc/passwd")):
        with pytest.raises(ValueError, match="is not in"):
            store.set_aside(str(path), "no")


def test_another_runs_checkpoint_does_not_count(store: CheckpointStore, root: Path) -> None:
    stranger = CheckpointStore(root, "another run")
    put(stranger, 1)
    assert store.newest() is None
    assert [reason for _, reason in store.damaged()] == ["it belongs to another run (another run)"]


def test_a_newer_version_s_checkpoint_stops_rather_than_loses_work(store: CheckpointStore) -> None:
    put(store, 1)
    new = put(store, 2)
    manifest = Path(new.path, "MANIFEST.json")
    manifest.write_bytes(signed({"format": 2, "writer": "ksupervise 99"}))
    for call in (store.checkpoints, store.damaged, store.newest, store.next_seq, lambda: store.prune(1)):
        with pytest.raises(NewerFormat, match="ksupervise 99"):
            call()
    assert manifest.exists()


def test_the_name_decides_nothing(store: CheckpointStore, root: Path) -> None:
    old, new = put(store, 1), put(store, 2)
    os.rename(new.path, root / "checkpoints" / "aaa")
    os.rename(old.path, root / "checkpoints" / "zzz")
    os.utime(root / "checkpoints" / "zzz")
    found = CheckpointStore(root, RUN).checkpoints()
    assert [each.manifest for each in found] == [new.manifest, old.manifest]
    for each in found:
        assert_whole(store, each)


def test_verify_notices_a_manifest_exchanged_for_another_valid_one(store: CheckpointStore) -> None:
    one, two = put(store, 1), put(store, 2)
    shutil.copy(os.path.join(two.path, "MANIFEST.json"), one.path)
    with pytest.raises(DamagedCheckpoint):
        store.verify(one)


def test_files_beside_the_payload_do_not_matter(store: CheckpointStore) -> None:
    new = put(store, 1)
    Path(new.path, ".DS_Store").write_text("x")
    assert store.newest() == new
    assert_whole(store, new)


def test_sweep_takes_leftovers_and_nothing_else(store: CheckpointStore, root: Path) -> None:
    new = put(store, 1)
    for name in ("tmp", "trash"):
        (root / name / "left" / "deep").mkdir(parents=True)
        (root / name / "left" / "file").write_text("x")
        (root / name / "link").symlink_to(new.path)
    (root / ".run.json.tmp.12.abcd").write_text("half")
    (root / "run.json").write_text("{}")
    assert len(store.sweep()) == 5
    assert os.listdir(root / "tmp") == os.listdir(root / "trash") == []
    names = ["aside", "attempts", "checkpoints", "run.json", "tmp", "trash"]
    assert sorted(os.listdir(root)) == names
    assert_whole(store, new)
    assert store.sweep() == []
