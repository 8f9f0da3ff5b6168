"""A run's directory, and what is said when it cannot be made."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from ksupervise.store import CheckpointStore, RunLayout, StoreFull, StoreUnwritable

from .helpers import RUN, assert_whole, at, put

if TYPE_CHECKING:
    from pathlib import Path


def test_the_names_are_the_ones_of_the_design(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    names = ["run.json", "journal.jsonl", "lock", "boot.zip", "checkpoints", "tmp", "trash", "aside"]
    found = [
        layout.run_json,
        layout.journal,
        layout.lock,
        layout.boot_zip,
        layout.checkpoints,
        layout.tmp,
        layout.trash,
        layout.aside,
    ]
    assert found == [str(tmp_path / "run" / name) for name in names]
    assert layout.output_log(3) == str(tmp_path / "run" / "attempts" / "003" / "output.log")


def test_everything_is_made_for_the_user_only(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "deep" / "store" / "run")
    layout.create()
    layout.create()
    made = [str(layout.root), layout.tmp, layout.checkpoints, layout.trash, layout.aside, layout.attempts]
    assert {os.stat(path).st_mode & 0o777 for path in made} == {0o700}
    assert os.listdir(layout.tmp) == []
    assert layout.make_attempt(1) == layout.attempt(1)
    assert os.path.isdir(layout.make_attempt(1))


def test_a_relative_root_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = RunLayout("run")
    layout.create()
    monkeypatch.chdir("/")
    assert layout.tmp == str(tmp_path / "run" / "tmp")


@pytest.mark.parametrize("where", ["store", "store/run", "store/run/tmp"])
def test_a_file_in_the_way_is_named(tmp_path: Path, where: str) -> None:
    blocker = tmp_path / where
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("mine")
    with pytest.raises(StoreUnwritable, match=rf"{blocker}: Not a directory.*--store"):
        RunLayout(tmp_path / "store" / "run").create()
    assert blocker.read_text() == "mine"


def test_a_place_where_nobody_may_write_is_named() -> None:
    # Even root may make no directory in /proc.
    with pytest.raises(StoreUnwritable, match="/proc/nowhere"):
        RunLayout("/proc/nowhere/run").create()


def test_a_store_that_vanished_is_named(store: CheckpointStore, root: Path) -> None:
    shutil.rmtree(root)
    with pytest.raises(StoreUnwritable, match="moved or deleted"):
        put(store, 1)
    assert not root.exists(), "its mount may have gone away: what is below is somebody else's"


@pytest.mark.parametrize("name", ["tmp", "checkpoints"])
def test_a_directory_that_somebody_removed_is_made_again(store: CheckpointStore, root: Path, name: str) -> None:
    put(store, 1)
    shutil.rmtree(root / name)
    newer = put(store, 2)
    assert store.newest() == newer


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """Where a file system of 256 kB is to be mounted."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    return directory


def test_a_full_disk_is_said_and_harms_nothing(tiny_disk: Path) -> None:
    import subprocess

    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tiny_disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        fill_the_disk(tiny_disk / "run")
    finally:
        subprocess.run(["umount", "-l", str(tiny_disk)], check=True)


def fill_the_disk(root: Path) -> None:
    RunLayout(root).create()
    store = CheckpointStore(root, RUN)
    old = put(store, 1)
    for size in (1 << 20, 9 << 20):
        data = {"state": [b"x" * size]}
        with pytest.raises(StoreFull, match=r"No space left.*Free some space"):
            store.commit(at(2), data, seq=2, attempt=1, holder="h", origin="interval")
        assert os.listdir(root / "tmp") == []
    assert store.checkpoints() == [old]
    assert_whole(store, old)
    assert_whole(store, put(store, 3))


def test_a_limit_on_file_size_is_said_and_harms_nothing(store: CheckpointStore, root: Path) -> None:
    import resource

    old = put(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StoreUnwritable, match=r"File too large.*ulimit"):
            store.commit(at(2), {"a": [b"x" * 99_999]}, seq=2, attempt=1, holder="h", origin="interval")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(root / "tmp") == []
    assert_whole(store, old)
