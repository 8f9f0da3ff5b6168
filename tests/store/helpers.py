"""What the store's tests share."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, get_args

from ksupervise.store import Checkpoint, CheckpointStore, Kind, Origin, Position, RunLayout

from .fuse import Switches, mounted
from .memory import Memory, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from ksupervise.store import Buffer, Damage, Retention

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
    def set_aside(self, path: str, reason: str) -> str: ...
    def thin(self, checkpoint: Checkpoint, name: str) -> Checkpoint: ...
    def prune(self, retention: Retention | int) -> list[str]: ...
    def free(self, wanted: int, retention: Retention | int, *, refused: bool = False) -> list[Checkpoint]: ...
    def sweep(self) -> list[str]: ...


@dataclass(frozen=True)
class Rig:
    """A store to test, and how to hurt it.

    Attributes:
        open: the same store as a new process would see it.
        damage: change one byte of that file of a checkpoint, behind the store's back.
        faults: ways to make every later write fail somewhere, by what they are called.
        mend: make writes work again.
    """

    open: Callable[[], Store]
    damage: Callable[[Checkpoint, str], None]
    faults: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    mend: Callable[[], None] = lambda: None


def local_rig(root: Path, _: ExitStack) -> Rig:
    """The store on a local disk."""
    RunLayout(root).create()
    return Rig(lambda: CheckpointStore(root, RUN), lambda checkpoint, name: flip(checkpoint.file_path(name), 0))


def memory_rig(_: Path, __: ExitStack) -> Rig:
    """The store in memory."""
    memory = Memory()

    def damage(checkpoint: Checkpoint, name: str) -> None:
        memory.files[checkpoint.path, name][0] ^= 1

    faults = {"full": lambda: setattr(memory, "limit", memory.used + 10)}
    return Rig(lambda: MemoryStore(memory, RUN), damage, faults, lambda: setattr(memory, "limit", None))


# What a network's file system, or one in a user's process, does that a local disk does not.
NFS_LIKE = {"no_direct": True, "no_dir_sync": True, "no_flock": "ENOLCK", "hide": ".nfs"}

FAULTS: dict[str, dict[str, Any]] = {
    "full, said by write": {"limit": 1000, "limit_at": "write"},
    "full, said by fsync": {"limit": 1000, "limit_at": "fsync"},
    "full, said by close": {"limit": 1000, "limit_at": "close"},
    "over quota, said by close": {"limit": 1000, "limit_error": "EDQUOT"},
    "the last bytes do not fit": {"limit": 2999},
    "an fsync fails, once": {"sync_error": "EIO"},
    "all dead": {"fail_after": 0},
    "dead after a write": {"fail_after": 1},
    "dead after two": {"fail_after": 2},
    "dead before the rename": {"fail_after": 3},
    "read-only": {"fail_after": 0, "fail_error": "EROFS"},
    "read-only before the rename": {"fail_after": 3, "fail_error": "EROFS"},
    "full before the rename": {"fail_after": 3, "fail_error": "ENOSPC"},
}


def mounted_rig(root: Path, ends: ExitStack, **switches: Any) -> Rig:
    """The store on a mounted file system of ours, which can be made to fail."""
    backing, mountpoint = root.parent / "backing", root.parent / "mount"
    backing.mkdir()
    mountpoint.mkdir()
    mount = ends.enter_context(mounted(backing, mountpoint, **switches))
    healthy = asdict(Switches(**switches))
    directory = mountpoint / "run"
    RunLayout(directory).create()

    def damage(checkpoint: Checkpoint, name: str) -> None:
        flip(checkpoint.file_path(name), 0)

    def mend() -> None:
        if mount.alive:
            mount.switch(**healthy)
        else:
            mount.unmount()
            ends.enter_context(mounted(backing, mountpoint, **switches))

    faults: dict[str, Callable[[], None]] = {name: partial(mount.switch, **fault) for name, fault in FAULTS.items()}
    faults["not mounted any more"] = mount.kill
    return Rig(lambda: CheckpointStore(directory, RUN), damage, faults, mend)


def nfs_rig(root: Path, ends: ExitStack) -> Rig:
    """The store where there is no O_DIRECT, no flock, no fsync of directories, and removed files linger."""
    return mounted_rig(root, ends, **NFS_LIKE)


def repeating_rig(root: Path, ends: ExitStack) -> Rig:
    """The store where each rename of a directory is done and then reported as failed."""
    return mounted_rig(root, ends, rename_error="ENOENT")


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
    return b"".join(bytes(chunk) for chunk in store.read(checkpoint, name))  # a chunk is valid until the next


def assert_whole(store: Store, checkpoint: Checkpoint) -> None:
    """Every byte is what `put` wrote."""
    store.verify(checkpoint)
    seed = checkpoint.manifest.extra["seed"]
    for name, buffers in payload(seed).items():
        assert content(store, checkpoint, name) == b"".join(buffers)
