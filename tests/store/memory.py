"""A store in memory, for tests that need no disk. It passes the same contract as the real one."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ksupervise.store import (
    CHUNK,
    Checkpoint,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    Retention,
    StoreFull,
    StoreUnwritable,
    to_free,
    to_keep,
)
from ksupervise.store.checkpoint import check_payload_names, decode
from ksupervise.store.store import Survey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ksupervise.store import Buffer, Damage, Origin, Position


@dataclass
class Memory:
    """What lies there, for as many stores as look at it.

    Attributes:
        manifests: the manifest's text of each checkpoint, by its path.
        files: the bytes of each file, by its path and name.
        aside: path and reason of what was set aside.
        limit: bytes of all files together. None: no limit.
    """

    manifests: dict[str, bytes] = field(default_factory=dict)
    files: dict[tuple[str, str], bytearray] = field(default_factory=dict)
    aside: list[Damage] = field(default_factory=list)
    limit: int | None = None

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))


class MemoryStore:
    """What `CheckpointStore` offers, on a `Memory`. Where a method says nothing, it is as there."""

    def __init__(self, memory: Memory, run: str) -> None:
        self.memory = memory
        self.run = run

    def commit(
        self,
        position: Position,
        files: Mapping[str, Iterable[Buffer]],
        *,
        seq: int,
        attempt: int,
        holder: str,
        origin: Origin,
        extra: dict[str, Any] | None = None,
    ) -> Checkpoint:
        draft = Manifest(self.run, seq, attempt, holder, position, origin, time.time(), (), extra or {})
        try:
            draft = decode(draft.encode(), "")
        except DamagedCheckpoint as error:
            raise ValueError(error.reason) from error
        check_payload_names(list(files))
        path = f"memory/{seq:012d}-a{attempt:04d}-{holder}"
        if path in self.memory.manifests:
            raise StoreUnwritable(f"{path} is taken")
        written, records = {}, []
        for name, buffers in files.items():
            written[path, name] = self._collect(path, buffers)
            records.append(_record(name, written[path, name]))
        self.memory.files.update(written)
        manifest = replace(draft, files=tuple(records))
        self.memory.manifests[path] = manifest.encode()
        return Checkpoint(path, manifest)

    def _collect(self, path: str, buffers: Iterable[Buffer]) -> bytearray:
        try:
            data = bytearray().join(bytes(buffer) for buffer in buffers)
        except OSError as error:
            raise StoreUnwritable(f"Cannot write {path}: {error}") from error
        if self.memory.limit is not None and self.memory.used + len(data) > self.memory.limit:
            raise StoreFull(f"Cannot write {path}: no memory left")
        return data

    def survey(self) -> Survey:
        valid, damaged = [], []
        for path, text in self.memory.manifests.items():
            try:
                valid.append(self._look(path, text))
            except DamagedCheckpoint as error:
                damaged.append((path, error.reason))
        valid.sort(key=lambda each: each.manifest.order, reverse=True)
        return Survey(tuple(valid), tuple(damaged), ())

    def _look(self, path: str, text: bytes) -> Checkpoint:
        manifest = decode(text, path)
        for record in manifest.files:
            if len(self.memory.files.get((path, record.name), b"")) != record.size:
                raise DamagedCheckpoint(path, f"{record.name} is not there, or of another size")
        return Checkpoint(path, manifest)

    def checkpoints(self) -> list[Checkpoint]:
        return list(self.survey().valid)

    def damaged(self) -> list[Damage]:
        return list(self.survey().damaged)

    def newest(self) -> Checkpoint | None:
        return next(iter(self.checkpoints()), None)

    def next_seq(self) -> int:
        return max((int(path[7:19]) for path in [*self.memory.manifests, *dict(self.memory.aside)]), default=0) + 1

    def verify(self, checkpoint: Checkpoint) -> None:
        if self._look(checkpoint.path, self.memory.manifests[checkpoint.path]) != checkpoint:
            raise DamagedCheckpoint(checkpoint.path, "its manifest is not the one that was listed")
        for record in checkpoint.manifest.files:
            for _ in self.read(checkpoint, record.name):
                pass

    def read(self, checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
        record = checkpoint.manifest.file(name)
        data = bytes(self.memory.files.get((checkpoint.path, name), b""))
        if _record(name, data) != record:
            raise DamagedCheckpoint(f"{checkpoint.path}/{name}", "its crc32 differs")
        for start in range(0, len(data), CHUNK):
            yield memoryview(data)[start : start + CHUNK]

    def read_into(self, checkpoint: Checkpoint, name: str, target: memoryview) -> None:
        position = 0
        for chunk in self.read(checkpoint, name):
            target[position : position + len(chunk)] = chunk
            position += len(chunk)

    def set_aside(self, path: str, reason: str) -> str:
        self._drop(path)
        self.memory.aside.append((path, reason))
        return path

    def thin(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        manifest = checkpoint.manifest
        rest = tuple(each for each in manifest.files if each != manifest.file(name))
        thinner = replace(manifest, files=rest, extra={**manifest.extra, "thin": True})
        self.memory.manifests[checkpoint.path] = thinner.encode()
        del self.memory.files[checkpoint.path, name]
        return Checkpoint(checkpoint.path, thinner)

    def prune(self, retention: Retention | int) -> list[str]:
        valid = self.checkpoints()
        kept = {each.path for each in to_keep(valid, retention)}
        victims = [each.path for each in reversed(valid) if each.path not in kept]
        for path in victims:
            self._drop(path)
        return victims

    def free(self, wanted: int, retention: Retention | int, *, refused: bool = False) -> list[Checkpoint]:
        """As there; a memory that refused has no other reason than its own limit."""
        removed = []
        for each in to_free(self.checkpoints(), retention):
            room = self.room()
            if room is None or room >= wanted:
                break
            self._drop(each.path)
            removed.append(each)
        return removed

    def room(self) -> int | None:
        return None if self.memory.limit is None else max(0, self.memory.limit - self.memory.used)

    def sweep(self) -> list[str]:
        """Nothing is ever left here."""
        return []

    def _drop(self, path: str) -> None:
        del self.memory.manifests[path]
        for key in [key for key in self.memory.files if key[0] == path]:
            del self.memory.files[key]


def _record(name: str, data: bytes | bytearray) -> FileRecord:
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return FileRecord(name, len(data), CHUNK, tuple(map(zlib.crc32, chunks)))
