"""What the store's tests share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, get_args

from ksupervise.store import Checkpoint, CheckpointStore, Kind, Origin, Position, RunLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from ksupervise.store import Buffer, Damage

RUN = "0b0e7e1c-6f0e-4c43-9d7a-000000000001"
KINDS: tuple[Kind, ...] = get_args(Kind)


class Store(Protocol):
    """What every place for checkpoints must offer to pass the contract."""

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
    ) -> Checkpoint: ...
    def checkpoints(self) -> list[Checkpoint]: ...
    def damaged(self) -> list[Damage]: ...
    def newest(self) -> Checkpoint | None: ...
    def next_seq(self) -> int: ...
    def verify(self, checkpoint: Checkpoint) -> None: ...
    def read(self, checkpoint: Checkpoint, name: str) -> Iterator[memoryview]: ...
    def prune(self, keep: int) -> list[str]: ...


@dataclass(frozen=True)
class Rig:
    """A store to test, and how to hurt it.

    Attributes:
        open: the same store as a new process would see it.
        damage: change one byte of that file of a checkpoint, behind the store's back.
    """

    open: Callable[[], Store]
    damage: Callable[[Checkpoint, str], None]


def local_rig(root: Path) -> Rig:
    """The store on a local disk."""
    RunLayout(root).create()
    return Rig(lambda: CheckpointStore(root, RUN), lambda checkpoint, name: flip(checkpoint.file_path(name), 0))


def flip(path: str, offset: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def payload(seed: int, size: int = 3000) -> dict[str, list[bytes]]:
    """Two files with bytes that no other seed gives, in uneven pieces."""
    data = random.Random(seed).randbytes(size)
    return {"state.safetensors": [data[:7], b"", data[7:]], "extra.json": [b"%d" % seed]}


def at(step: int, kind: Kind = "batch", fit: int = 1) -> Position:
    """A position of that step."""
    return Position(fit=fit, epoch=0, batch=0, step=step, kind=kind)


def put(store: Store, seed: int, position: Position | None = None, *, attempt: int = 1) -> Checkpoint:
    """Commit the payload of that seed under the next free seq."""
    return store.commit(
        position or at(seed),
        payload(seed),
        seq=store.next_seq(),
        attempt=attempt,
        holder="here",
        origin="interval",
        extra={"seed": seed},
    )


def content(store: Store, checkpoint: Checkpoint, name: str = "state.safetensors") -> bytes:
    """That file's bytes."""
    return b"".join(store.read(checkpoint, name))


def assert_whole(store: Store, checkpoint: Checkpoint) -> None:
    """Every byte is what `put` wrote."""
    store.verify(checkpoint)
    seed = checkpoint.manifest.extra["seed"]
    for name, buffers in payload(seed).items():
        assert content(store, checkpoint, name) == b"".join(buffers)
