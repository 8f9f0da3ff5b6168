"""A place in memory, which can be made to fail, and small local stores to copy from."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ksupervise.replicas.format import Generation
from ksupervise.replicas.place import Arrival, Entry, NotThere
from ksupervise.store import Buffer, Checkpoint, CheckpointStore, FileRecord, Kind, Position, RunLayout

RUN = "0b0e7e1c-6f0e-4c43-9d7a-000000000001"
NAME = "train-abc123"
GENERATION = Generation(1, RUN[:8], NAME)


class MemoryPlace:
    """Objects in a dict. What breaks off in mid-write stays, short.

    Attributes:
        objects: bytes by key.
        before: called with method and key before anything is done; may raise, or change the objects.
        state: what `arrival` says of what is whole.
        calls: method and key of every call.
    """

    name = "memory"

    def __init__(self) -> None:
        self.excludes = True
        self.objects: dict[str, bytes] = {}
        self.before: Callable[[str, str], None] = lambda _method, _key: None
        self.state = Arrival.UPLOADED
        self.calls: list[tuple[str, str]] = []
        self.free: int | None = None

    def _begin(self, method: str, key: str) -> None:
        self.calls.append((method, key))
        self.before(method, key)

    def write(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        self._begin("write", key)
        self.objects[key] = b""
        for chunk in chunks:
            self.before("piece", key)
            self.objects[key] += bytes(chunk)
        assert len(self.objects[key]) == size

    def create(self, key: str, data: bytes) -> bool:
        self._begin("create", key)
        return self.objects.setdefault(key, data) is data

    def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
        self._begin("read", key)
        if key not in self.objects:
            raise NotThere(f"{key} is not there")
        return self.objects[key][begin : None if length is None else begin + length]

    def entries(self, prefix: str) -> list[Entry]:
        self._begin("entries", prefix)
        return [Entry(key, len(self.objects[key])) for key in sorted(self.objects) if key.startswith(prefix)]

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._begin("remove", key)
            self.objects.pop(key, None)

    def arrival(self, key: str, record: FileRecord) -> Arrival:
        self._begin("arrival", key)
        data = self.objects.get(key)
        if data is None or len(data) != record.size or digests(data, record.chunk) != record.crc32:
            raise NotThere(f"{key} is not there, or not whole")
        return self.state

    def room(self) -> int | None:
        return self.free


def digests(data: bytes, chunk: int) -> tuple[int, ...]:
    return tuple(zlib.crc32(data[begin : begin + chunk]) for begin in range(0, len(data), chunk))


def new_run(directory: Path) -> CheckpointStore:
    """A run's directory with its record and a journal, and no checkpoint."""
    RunLayout(directory).create()
    record = {"id": RUN, "name": NAME, "script": "/home/me/train.py", "script_digest": "d1", "seed": 7}
    (directory / "run.json").write_text(json.dumps(record))
    (directory / "journal.jsonl").write_text('{"event":"taken"}\n')
    return CheckpointStore(directory, RUN)


def put(
    store: CheckpointStore,
    step: int,
    *,
    size: int = 3000,
    attempt: int = 1,
    kind: Kind = "batch",
    fit: int = 1,
    holder: str = "here:1",
    seq: int | None = None,
) -> Checkpoint:
    """Commit a checkpoint whose bytes no other step gives."""
    files: dict[str, Iterable[Buffer]] = {"state.safetensors": pieces(step, size), "extra.json": [b"%d" % step]}
    at = Position(fit=fit, epoch=0, batch=0, step=step, kind=kind)
    number = store.next_seq() if seq is None else seq
    return store.commit(at, files, seq=number, attempt=attempt, holder=holder, origin="interval")


def pieces(step: int, size: int) -> Iterator[bytes]:
    """The state's bytes at that step."""
    yield random.Random(step).randbytes(size)


def tree(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory, to see whether anything was changed."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        found[str(path.relative_to(directory))] = (
            about.st_ino,
            about.st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
    return found


def manifests(place: MemoryPlace) -> list[str]:
    """Directories in the place that have a manifest, whole or not."""
    return [key.split("/")[-2] for key in sorted(place.objects) if key.endswith("/MANIFEST.json")]


def told(output: bytes) -> list[dict[str, Any]]:
    """The reports in what a worker wrote."""
    return [json.loads(line) for line in output.splitlines()]
