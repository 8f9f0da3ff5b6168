"""Room for the next checkpoint: what retention does not keep goes; on a full disk also what it has as optional."""

from __future__ import annotations

import contextlib

from ksupervise.errors import KsuperviseError
from ksupervise.settings import Settings
from ksupervise.store import Checkpoint, CheckpointStore, Damage, DamagedCheckpoint, Retention, to_thin
from ksupervise.wire import VARIABLES

_SPARE = 256 * 1024  # bytes beside the payload: manifest, directories, what blocks round up


def retention_of(settings: Settings) -> Retention:
    """Which checkpoints stay, as the settings say."""
    return Retention(settings.keep, settings.keep_best, settings.keep_every, settings.keep_bytes)


def make_room(store: CheckpointStore, retention: Retention | int) -> list[Checkpoint]:
    """Remove what retention does not keep; of completed fits beyond its cap keep no variables. Returns the latter.

    Raises:
        DamagedCheckpoint: the newest is not whole and was set aside; nothing was removed.
        StoreFull, StoreUnwritable and what `CheckpointStore.checkpoints` raises.
    """
    try:
        store.prune(retention)
    except DamagedCheckpoint as damage:
        store.set_aside(damage.path, damage.reason)
        raise
    return [store.thin(checkpoint, VARIABLES) for checkpoint in to_thin(store.checkpoints(), retention)]


class Room:
    """What was done to have room for a checkpoint. What fails here fails silently: the commit will tell."""

    def __init__(self, store: CheckpointStore, retention: Retention | int, size: int) -> None:
        """`size`: bytes of its files."""
        self._store, self._retention, self._wanted = store, retention, size + size // 20 + _SPARE
        self.freed: list[Checkpoint] = []
        self.set_aside: list[Damage] = []

    def make(self, *, refused: bool) -> bool:
        """Remove what is optional, if the disk lacks the room or `refused` to give it. Is there more room now?"""
        before, freed = self._store.room(), len(self.freed)
        with contextlib.suppress(KsuperviseError):
            while not self._tried(refused):
                pass
        return len(self.freed) > freed or self._store.room() != before

    def _tried(self, refused: bool) -> bool:
        """False: the newest proved damaged and was set aside. That leaves fewer, so it ends."""
        try:
            self.freed += self._store.free(self._wanted, self._retention, refused=refused)
        except DamagedCheckpoint as damage:
            self._store.set_aside(damage.path, damage.reason)
            self.set_aside.append((damage.path, damage.reason))
            return False
        return True

    def cost(self) -> str:
        """What went in vain, as the end of an error's message."""
        words = [f" {path} was found damaged ({reason}) and was set aside." for path, reason in self.set_aside]
        if self.freed:
            size = size_text(sum(each.manifest.size for each in self.freed))
            words.append(f" Older checkpoints ({len(self.freed)}, {size}) were removed: it was not enough.")
        return "".join(words)


def beyond_cap(store: CheckpointStore, retention: Retention) -> int:
    """Bytes of all checkpoints where those that must be kept are more than `--keep-bytes` allows; else 0."""
    if retention.bytes is None:
        return 0  # and no manifest is read
    total = sum(checkpoint.manifest.size for checkpoint in store.checkpoints())
    return total if total > retention.bytes else 0


def size_text(size: int) -> str:
    """Bytes for people: `812 B`, `3.1 kB`, `98.0 MB`, `1.25 GB`."""
    for digits, unit, name in ((2, 10**9, "GB"), (1, 10**6, "MB"), (1, 10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.{digits}f} {name}"
    return f"{size} B"
