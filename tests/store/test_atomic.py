"""Files that are whole or not there."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest

from ksupervise.store import (
    CHUNK,
    DamagedCheckpoint,
    FileRecord,
    StoreUnreadable,
    read_into,
    read_verified,
    replace_file,
    sync_dir,
    write_file,
)

from .helpers import flip


def test_the_record_tells_size_and_digest_of_each_chunk(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(CHUNK + 5)
    record = write_file(tmp_path / "f", [data[:10], data[10:]])
    digests = (zlib.crc32(data[:CHUNK]), zlib.crc32(data[CHUNK:]))
    assert record == FileRecord("f", CHUNK + 5, CHUNK, digests)
    assert (tmp_path / "f").read_bytes() == data
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "f", [b"new"])
    assert (tmp_path / "f").read_bytes() == b"old"


def test_replace_leaves_the_new_bytes_and_nothing_else(tmp_path: Path) -> None:
    for data in (b"old", b"", b"new"):
        replace_file(tmp_path / "f", data)
        assert (tmp_path / "f").read_bytes() == data
    assert os.listdir(tmp_path) == ["f"]


def test_a_replace_that_fails_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").is_dir()


def test_replace_of_a_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_file("f", b"new")
    assert Path("f").read_bytes() == b"new"
    sync_dir(".")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    record = write_file(tmp_path / "f", [b"abc"])
    next(read_verified(tmp_path / "f", record))
    wrong = FileRecord("f", 4, CHUNK, record.crc32)
    for _ in range(3):
        with pytest.raises(DamagedCheckpoint):
            next(read_verified(tmp_path / "f", wrong))
        with pytest.raises(FileExistsError):
            write_file(tmp_path / "f", [b"abc"])
        with pytest.raises(ValueError, match="not a file name"):
            write_file(tmp_path / "a b", [b"abc"])
    assert os.listdir("/proc/self/fd") == before


def test_read_into_fills_the_target_and_only_so_far(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(CHUNK + 5)
    record = write_file(tmp_path / "f", [data])
    target = bytearray(CHUNK + 8)
    read_into(tmp_path / "f", record, memoryview(target))
    assert target == data + b"\0\0\0"
    with pytest.raises(ValueError, match="needs"):
        read_into(tmp_path / "f", record, memoryview(target)[:CHUNK])
    flip(str(tmp_path / "f"), CHUNK + 2)
    with pytest.raises(DamagedCheckpoint, match=f"bytes {CHUNK} to {CHUNK + 5}"):
        read_into(tmp_path / "f", record, memoryview(target))


def test_what_was_verified_stays_what_it_was(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(2 * CHUNK)
    record = write_file(tmp_path / "f", [data])
    assert b"".join(list(read_verified(tmp_path / "f", record))) == data


@pytest.mark.parametrize("lie", ["missing", "directory", "link", "pipe", "longer", "shorter"])
def test_whatever_else_lies_there_is_damage(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "f"
    record = write_file(path, [b"abc"])
    if lie in ("longer", "shorter"):
        path.write_bytes(b"abcd" if lie == "longer" else b"ab")
    else:
        path.rename(tmp_path / "g")
    if lie == "directory":
        path.mkdir()
    elif lie == "link":
        path.symlink_to(tmp_path / "g")
    elif lie == "pipe":
        os.mkfifo(path)
    with pytest.raises(DamagedCheckpoint):
        list(read_verified(path, record))


def test_out_of_descriptors_is_not_damage(tmp_path: Path) -> None:
    import resource

    record = write_file(tmp_path / "f", [b"abc"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(StoreUnreadable, match="may be whole"):
            list(read_verified(tmp_path / "f", record))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
