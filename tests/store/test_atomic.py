"""Files that are whole or not there."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import weakref
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from ksupervise.store import (
    CHUNK,
    DamagedCheckpoint,
    FileRecord,
    StoreUnreadable,
    atomic,
    read_into,
    read_verified,
    replace_file,
    sync_dir,
    verify_file,
    write_file,
)

from .helpers import flip

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


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


def belongings() -> tuple[list[str], list[threading.Thread]]:
    """Descriptors and threads of this process."""
    return os.listdir("/proc/self/fd"), threading.enumerate()


def test_no_descriptor_and_no_thread_is_left(tmp_path: Path) -> None:
    before = belongings()
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
    assert belongings() == before


class Bored(Exception):
    """Whoever reads has had enough."""


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
@pytest.mark.parametrize("how", ["closed", "let go of", "left by an exception", "damaged"])
def test_a_reader_that_stops_early_leaves_nothing(tmp_path: Path, taken: int, how: str) -> None:
    record = write_file(tmp_path / "f", [bytes(5 * CHUNK + 1)])
    before = belongings()
    if how == "damaged":
        flip(str(tmp_path / "f"), taken * CHUNK)
    with suppress(Bored, DamagedCheckpoint):
        chunks = cast("Generator[memoryview]", read_verified(tmp_path / "f", record))
        for _ in range(taken):
            next(chunks)
        if how == "closed":
            chunks.close()
        elif how == "left by an exception":
            raise Bored
        elif how == "damaged":
            next(chunks)
    del chunks
    assert belongings() == before


def test_a_write_that_stops_early_leaves_nothing(tmp_path: Path) -> None:
    def buffers() -> Iterator[bytes]:
        yield bytes(2 * CHUNK)
        assert threading.active_count() > len(before[1]), "large files have their digests taken on a thread"
        raise Bored

    before = belongings()
    with pytest.raises(Bored):
        write_file(tmp_path / "f", buffers())
    assert belongings() == before
    assert os.listdir(tmp_path) == []


def test_small_files_need_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", None)
    record = write_file(tmp_path / "f", [b"abc"])
    assert [bytes(chunk) for chunk in read_verified(tmp_path / "f", record)] == [b"abc"]


def test_where_no_thread_can_be_had_it_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    data = random.Random(1).randbytes(3 * CHUNK + 5)
    expected = write_file(tmp_path / "f", [data])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    os.unlink(tmp_path / "f")
    assert write_file(tmp_path / "f", [data]) == expected
    assert b"".join(bytes(chunk) for chunk in read_verified(tmp_path / "f", expected)) == data


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [0.5, 0.5, 2], [0.25, 1, 1.75], [2.5, 0.5]])
@pytest.mark.parametrize("shift", [0, 1])
def test_buffers_of_any_size_and_place_are_written_right(tmp_path: Path, sizes: list[float], shift: int) -> None:
    memory = memoryview(mmap.mmap(-1, 3 * CHUNK + 4096))[shift:][: 3 * CHUNK]
    memory[:] = random.Random(4).randbytes(3 * CHUNK)
    ends = [int(sum(sizes[: n + 1]) * CHUNK) for n in range(len(sizes))]
    record = write_file(tmp_path / "f", (memory[a:b] for a, b in zip([0, *ends], ends, strict=False)))
    assert record.crc32 == tuple(zlib.crc32(memory[n * CHUNK : (n + 1) * CHUNK]) for n in range(3))
    assert (tmp_path / "f").read_bytes() == memory


@pytest.mark.parametrize("size", [CHUNK, CHUNK // 2, 3 * CHUNK, 100])
def test_a_buffer_is_let_go_once_it_is_written(tmp_path: Path, size: int) -> None:
    """They may be windows on a large memory: of those, three at a time."""
    made: list[weakref.ref[mmap.mmap]] = []

    def mappings() -> Iterator[mmap.mmap]:
        for n in range(5):
            mapping = mmap.mmap(-1, size)
            mapping[:] = bytes([n]) * size
            made.append(weakref.ref(mapping))
            yield mapping
            del mapping
            assert not any(reference() for reference in made[:-2])

    assert write_file(tmp_path / "f", mappings()).size == 5 * size
    assert (tmp_path / "f").read_bytes() == b"".join(bytes([n]) * size for n in range(5))


def test_a_whole_block_is_written_from_where_it_lies() -> None:
    memory = mmap.mmap(-1, 2 * CHUNK)
    assert [block.obj for block in atomic._blocks([memory])] == [memory, memory]


def cached(path: Path) -> list[bool]:
    """Of each chunk, whether it lies in the page cache."""
    found = []
    fd = os.open(path, os.O_RDONLY)
    for start in range(0, os.fstat(fd).st_size, CHUNK):
        try:
            os.preadv(fd, [bytearray(1)], start, os.RWF_NOWAIT)
            found.append(True)
        except BlockingIOError:
            found.append(False)
        except OSError as error:
            pytest.skip(f"this file system does not tell: {error}")
    os.close(fd)
    return found


@pytest.mark.parametrize("direct", [True, False])
def test_the_page_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    if not direct:
        monkeypatch.setattr(atomic, "_DIRECT", 0)
    path = tmp_path / "f"
    with open(path, "wb") as file:
        file.write(bytes(CHUNK))
        os.fsync(file.fileno())
        was = cached(path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (was, cached(path)) != ([True], [False]):
        pytest.skip("a file system in memory, or one that does not tell")
    path.unlink()
    record = write_file(path, [bytes(4 * CHUNK + 100)])
    assert not any(cached(path)), "written"
    verify_file(path, record)
    assert sum(cached(path)) <= 1, "read: the kernel reads ahead by itself, if it reads through the cache"


def test_memory_stays_flat_whatever_the_size(tmp_path: Path) -> None:
    program = """
import mmap, resource, sys
from ksupervise.store import CHUNK, verify_file, write_file
block = mmap.mmap(-1, CHUNK)
block[:] = bytes(CHUNK)
def run(count):
    record = write_file(sys.argv[1] + str(count), (block[:100] if n == 3 else block for n in range(count)))
    verify_file(sys.argv[1] + str(count), record)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(run(6), run(40))
"""
    ran = subprocess.run([sys.executable, "-c", program, tmp_path / "f"], capture_output=True, check=True, text=True)
    few, many = map(int, ran.stdout.split())
    assert many - few < 2 * CHUNK / 1024


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


@pytest.mark.parametrize("chunks", [1, 2, 3, 6])
def test_each_chunk_is_valid_until_the_next_is_asked_for(tmp_path: Path, chunks: int) -> None:
    data = random.Random(3).randbytes(chunks * CHUNK - 100)
    record = write_file(tmp_path / "f", [data])
    position = 0
    for chunk in read_verified(tmp_path / "f", record):
        for _ in range(3):  # the next ones are read meanwhile
            assert chunk == data[position : position + len(chunk)]
        position += len(chunk)
    assert position == len(data)


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
