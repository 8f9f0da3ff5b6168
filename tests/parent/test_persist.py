"""A slot becomes a checkpoint, also on a disk that is full: real file systems, filled up."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ksupervise.parent.persist import Committed, commit
from ksupervise.parent.room import make_room, size_text
from ksupervise.parent.stage import fill
from ksupervise.store import (
    Buffer,
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    Position,
    Retention,
    RunLayout,
    StoreFull,
)
from ksupervise.wire import Slot

RUN = "full"
MB = 1024 * 1024
SIZE = 3 * MB  # bytes of one state
DISK = 24 * MB
FIVE = Retention(newest=5, ages=())


@dataclass
class Bench:
    """A store on a small disk of its own, and a slot to commit from."""

    store: CheckpointStore
    slot: Slot

    @property
    def root(self) -> Path:
        return Path(self.store.layout.root)

    def commit(self, seq: int, retention: Retention = FIVE) -> Committed:
        """Stage state number `seq` and commit it."""
        files = {"state.safetensors": (SIZE, [memoryview(state(seq))]), "state.json": (2, [memoryview(b"{}")])}
        position = {"fit": 1, "epoch": 0, "batch": 0, "step": seq, "kind": "batch"}
        about = {"position": position, "attempt": 1, "origin": "interval", "extra": {}}
        fill(self.slot, files, seq, about)
        described = self.slot.read_description()
        assert described is not None
        return commit(self.store, self.slot, described, holder="here", retention=retention)

    def listed(self) -> list[int]:
        """Numbers of the checkpoints, newest first, each read and compared."""
        found = self.store.checkpoints()
        for each in found:
            self.store.verify(each)
            data = b"".join(bytes(chunk) for chunk in self.store.read(each, "state.safetensors"))
            assert data == state(each.manifest.seq)
        return seqs(found)

    def leave_free(self, size: int) -> None:
        """Fill the disk up to the last `size` bytes."""
        room = self.store.room()
        assert room is not None
        with open(self.root / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room - size)


def state(seq: int) -> bytes:
    """Bytes that no other number gives."""
    return random.Random(seq).randbytes(SIZE)


def seqs(checkpoints: list[Checkpoint] | tuple[Checkpoint, ...]) -> list[int]:
    return [each.manifest.seq for each in checkpoints]


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "ext4"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A disk of 24 MB; on ext4 room is given back only when the journal is written."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "tmpfs":
        mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk))
    else:
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(DISK + 8 * MB)
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is missing")
        subprocess.run(["mkfs.ext4", "-q", "-m0", str(image)], check=True)
        mount("-o", "loop", str(image), str(disk))
    fd = os.memfd_create("slot", os.MFD_CLOEXEC)
    try:
        RunLayout(disk / "run").create()
        yield Bench(CheckpointStore(disk / "run", RUN), Slot(fd))
    finally:
        os.close(fd)
        subprocess.run(["umount", str(disk)], check=True)


def test_where_there_is_room_nothing_goes(bench: Bench) -> None:
    made = [bench.commit(seq) for seq in range(1, 4)]
    assert [each.freed for each in made] == [(), (), ()]
    assert bench.listed() == [3, 2, 1]


def test_a_disk_that_is_filled_up_gives_up_the_oldest(bench: Bench) -> None:
    for seq in range(1, 4):
        bench.commit(seq)
    bench.leave_free(MB)
    made = bench.commit(4)
    assert seqs(made.freed) == [1]
    assert made.set_aside == ()
    assert bench.listed() == [4, 3, 2]


class Counting(CheckpointStore):
    """Counts how often a commit was tried."""

    tries = 0

    def commit(self, *args: Any, **options: Any) -> Checkpoint:
        """One more."""
        self.tries += 1
        return super().commit(*args, **options)


def test_what_the_disk_has_no_room_for_is_not_tried_before_there_is(bench: Bench) -> None:
    for seq in range(1, 4):
        bench.commit(seq)
    bench.leave_free(MB)
    store = Counting(bench.root, RUN)
    assert seqs(Bench(store, bench.slot).commit(4).freed) == [1]
    assert store.tries == 1


def test_a_run_on_a_disk_that_is_too_small_for_what_it_is_to_keep_goes_on(bench: Bench) -> None:
    """Twenty states of 3 MB on a disk of 24 MB, with nothing else ever removed."""
    freed = []
    for seq in range(1, 21):
        made = bench.commit(seq, Retention(newest=50, ages=()))
        freed += seqs(made.freed)
        assert made.checkpoint == bench.store.newest()
    left = bench.listed()
    assert left[0] == 20
    assert len(left) >= 5
    assert sorted(freed + left) == list(range(1, 21)), "each that is gone was told"
    assert freed == sorted(freed), "the oldest first"


def test_leftovers_go_before_any_checkpoint(bench: Bench) -> None:
    bench.commit(1)
    for directory, name in (("trash", "000000000009-a0001.1.aa"), ("tmp", f"000000000010-a0001.{os.getpid()}.bb")):
        (bench.root / directory / name).mkdir()
        (bench.root / directory / name / "state").write_bytes(bytes(2 * MB))
    bench.leave_free(MB)
    assert bench.commit(2).freed == ()
    assert os.listdir(bench.root / "trash") == os.listdir(bench.root / "tmp") == []
    assert bench.listed() == [2, 1]


def test_what_another_process_writes_is_no_leftover(bench: Bench) -> None:
    bench.commit(1)
    bench.commit(2)
    theirs = bench.root / "tmp" / f"000000000010-a0001.{os.getppid()}.bb"
    theirs.mkdir()
    bench.leave_free(MB)
    bench.commit(3)
    assert theirs.exists()


def test_one_that_is_whole_is_left_whatever_it_takes(bench: Bench) -> None:
    bench.commit(1)
    bench.commit(2)
    bench.leave_free(MB)
    assert seqs(bench.commit(3).freed) == [1]
    assert bench.listed() == [3, 2]


def test_where_it_would_not_be_enough_nothing_goes(bench: Bench) -> None:
    bench.commit(1)
    bench.leave_free(MB)
    with pytest.raises(StoreFull, match="No space left"):
        bench.commit(2)
    assert bench.listed() == [1]
    assert os.listdir(bench.root / "tmp") == [], "the failed one left nothing"


def test_the_room_of_one_old_state_does_for_a_new_one(bench: Bench) -> None:
    """No margin is asked for once writing was refused."""
    bench.commit(1)
    bench.commit(2)
    bench.leave_free(64 * 1024)
    bench.commit(3)
    assert bench.listed() == [3, 2]


class LastSyncFails(Counting):
    """The checkpoint is there, but that it is there may not be on the disk."""

    def commit(self, *args: Any, **options: Any) -> Checkpoint:
        """Publish, then fail."""
        super().commit(*args, **options)
        raise StoreFull("no space left for the directory")


def test_what_is_published_is_not_written_again(bench: Bench) -> None:
    bench.commit(1)
    store = LastSyncFails(bench.root, RUN)
    with pytest.raises(StoreFull, match="for the directory"):
        Bench(store, bench.slot).commit(2)
    assert store.tries == 1
    assert bench.listed() == [2, 1]


def test_nothing_goes_for_one_that_is_rotten(bench: Bench) -> None:
    bench.commit(1)
    rotten = bench.commit(2).checkpoint
    rot(rotten)
    bench.leave_free(MB)
    store = CheckpointStore(bench.root, RUN)  # which has not written it
    with pytest.raises(StoreFull, match=r"was found damaged .* and was set aside"):
        Bench(store, bench.slot).commit(3)
    assert bench.listed() == [1]
    assert len(os.listdir(bench.root / "aside")) == 2, "the rotten one, and why"


def rot(checkpoint: Checkpoint) -> None:
    """Turn one bit over."""
    with open(checkpoint.file_path("state.safetensors"), "r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


class Quota(CheckpointStore):
    """Refused, as the file system would, is what makes the run's directory larger than `size` bytes."""

    size = 0

    def commit(self, position: Position, files: Mapping[str, Iterable[Buffer]], **how: Any) -> Checkpoint:
        return super().commit(position, {name: self._limited(data) for name, data in files.items()}, **how)

    def _limited(self, data: Iterable[Buffer]) -> Iterator[Buffer]:
        for buffer in data:
            taken = sum(path.stat().st_size for path in Path(self.layout.root).rglob("*") if path.is_file())
            if taken + len(buffer) > self.size:
                raise OSError(errno.EDQUOT, "quota")
            yield buffer


@pytest.fixture
def limited(bench: Bench) -> Bench:
    """Three checkpoints, and a store with a quota."""
    for seq in range(1, 4):
        bench.commit(seq)
    return Bench(Quota(bench.root, RUN), bench.slot)


def test_a_quota_that_the_disk_does_not_tell_of(limited: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quota, "size", 3 * SIZE + MB)
    made = limited.commit(4)
    assert seqs(made.freed) == [1, 2], "as much as the state takes, and a little more"
    assert limited.listed() == [4, 3]


def test_a_quota_that_is_too_small_says_what_it_cost(limited: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quota, "size", SIZE)
    with pytest.raises(StoreFull, match=r"Older checkpoints \(2, 6\.3 MB\) were removed: it was not enough"):
        limited.commit(4)
    assert limited.listed() == [3]


def test_room_is_not_made_for_a_rotten_one(bench: Bench) -> None:
    """Nothing is removed; the rotten one is set aside, and the next time it is as if it had never been."""
    for seq in range(1, 4):
        bench.commit(seq)
    rot(bench.store.checkpoints()[0])
    store = CheckpointStore(bench.root, RUN)
    with pytest.raises(DamagedCheckpoint, match="crc32 differs"):
        make_room(store, Retention(newest=1, ages=()))
    assert bench.listed() == [2, 1]
    assert make_room(store, Retention(newest=1, ages=())) == []
    assert bench.listed() == [2]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_000_000, "98.0 MB"), (1_250_000_000, "1.25 GB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text
