"""What a replica's place can do, whatever it is: a directory, Drive, a bucket.

A place holds immutable objects under keys (`run/g0001-1f2e/…/MANIFEST.json`). Each is written once, under a name that
was never used before, and never changed: nothing is appended, overwritten or renamed, for a Drive folder may never
upload what changes often, and buckets and FUSE mounts have no rename. An object that breaks off in mid-write may be
seen, short or empty; what counts is decided by manifests, which are written last and name every size and digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ksupervise.errors import KsuperviseError
from ksupervise.store import Buffer, FileRecord


class ReplicaFault(KsuperviseError):
    """A place could not do what was asked. The text says what happened, to what, and what to do now."""

    slug = "replica"


class ReplicaUnreachable(ReplicaFault):
    """It does not answer, or not for now (a mount that went away, a network, a timeout): worth trying again."""

    slug = "replica-unreachable"


class ReplicaRefused(ReplicaFault):
    """It answers and refuses (no credentials, no such bucket, read-only): somebody has to do something first."""

    slug = "replica-refused"


class ReplicaFull(ReplicaFault):
    """No room, or no quota."""

    slug = "replica-full"


class NotThere(ReplicaFault):
    """There is no object of that key."""

    slug = "replica-not-there"


class Arrival(Enum):
    """How far an object has come."""

    CACHED = "cached"  # the place took it; it may still lie on this machine only (Drive)
    UPLOADED = "uploaded"  # the place says that it has it, with the right size and, where it tells, the right digest


@dataclass(frozen=True)
class Entry:
    """An object in a listing. `key` is the whole key, `size` its bytes."""

    key: str
    size: int


class Place(Protocol):
    """Every method may block, for ever on a dead mount: call it only in a process that can be killed.

    All raise ReplicaUnreachable, ReplicaRefused or ReplicaFull; those that name one object also NotThere.

    Attributes:
        name: as the user gave it, without anything secret.
        excludes: `create` succeeds for one of many machines only. Not on Drive, nor on a mount that cannot tell.
    """

    name: str
    excludes: bool

    def write(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        """Write a new object of `size` bytes. What is left of an earlier attempt under this key is replaced."""

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless there is one of that key: False then, and nothing is changed.

        A place with `excludes` does that for all machines at once; after a time-out it looks whose object is there.
        """

    def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `begin` on, `length` of them at most, all without it."""

    def entries(self, prefix: str) -> list[Entry]:
        """All objects below `prefix` (which ends in "/"), in the order of their keys; none if there is nothing."""

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects for good: on Drive they are emptied first, since the trash counts. Missing ones are fine."""

    def arrival(self, key: str, record: FileRecord) -> Arrival:
        """How far the object of `key`, written here from the file that `record` describes, has come.

        Raises NotThere, also when what is there has another size or digest.
        """

    def room(self) -> int | None:
        """Bytes that can still be written, None where it does not tell."""
