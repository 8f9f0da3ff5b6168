"""What is tortured: the acts that change a store, the store they need, and what must be left of it.

The tests and `scripts/torture store` share this. Every act ends by what it says: `acked` or `refused SLUG`;
anything else is a bug.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksupervise.errors import KsuperviseError
from ksupervise.parent import persist
from ksupervise.parent.stage import Stage, fill
from ksupervise.store import CHUNK, Buffer, Checkpoint, CheckpointStore, Position, RunLayout

RUN = "tortured"
VARIABLES, REST = "state", "extra.json"
NEW = 9  # what is committed under torture
BEGIN, END = "/torture-begins", "/torture-ends"  # marks that strace sees


def payload(seed: int) -> dict[str, list[bytes]]:
    """A block, a tail, and a small file. The block of NEW is one that goes past the page cache."""
    size = CHUNK if seed == NEW else 4096
    return {VARIABLES: [bytes([seed]) * size, b"tail %d" % seed], REST: [b"%d" % seed]}


def commit(store: CheckpointStore, seed: int) -> None:
    """Commit checkpoint number `seed`."""
    position = Position(fit=1, epoch=0, batch=0, step=seed, kind="batch")
    extra = {"seed": seed}
    store.commit(position, payload(seed), seq=seed, attempt=1, holder="h", origin="interval", extra=extra)


def assert_whole(store: CheckpointStore, checkpoint: Checkpoint) -> None:
    """Every byte is what `commit` wrote, but for the file that was given up."""
    wanted = payload(checkpoint.manifest.extra["seed"])
    if checkpoint.manifest.extra.get("thin"):
        del wanted[VARIABLES]
    store.verify(checkpoint)
    for name, buffers in wanted.items():
        assert b"".join(map(bytes, store.read(checkpoint, name))) == b"".join(buffers), (
            f"{checkpoint.path}: {name} is another"
        )


def seqs(store: CheckpointStore) -> list[int]:
    """Numbers of the checkpoints that are listed, newest first."""
    return [each.manifest.seq for each in store.checkpoints()]


@dataclass(frozen=True)
class Act:
    """One change of a store.

    Attributes:
        before: seqs of the checkpoints that it begins with.
        change: finds what is to be changed, and returns what changes it: only the latter is harmed.
        check: asserts what must be there after it was acknowledged (or not); what became of it, in a word.
        prepare: something else that must be so before.
    """

    before: tuple[int, ...]
    change: Callable[[CheckpointStore], Callable[[], object]]
    check: Callable[[CheckpointStore, bool], str]
    prepare: Callable[[CheckpointStore], object] = lambda store: None

    def make(self, root: str) -> CheckpointStore:
        """A run of that kind at `root`."""
        RunLayout(root).create()
        store = CheckpointStore(root, RUN)
        for seed in self.before:
            commit(store, seed)
        self.prepare(store)
        return store


def _check_commit(store: CheckpointStore, acked: bool) -> str:
    found = seqs(store)
    assert found in ([NEW, 1], [1]), f"{found} are there"
    assert found[0] == NEW or not acked, "acknowledged, and not there"
    return "new" if found[0] == NEW else "old"


def _check_prune(store: CheckpointStore, acked: bool) -> str:
    del acked  # an acknowledged one may have left a victim that could not be looked at
    found = seqs(store)
    assert 3 in found, f"only {found} are there"
    return f"{3 - len(found)} removed"


def _check_thin(store: CheckpointStore, acked: bool) -> str:
    assert seqs(store) == [2, 1], f"{seqs(store)} are there"
    newest, oldest = store.checkpoints()
    assert not newest.manifest.extra.get("thin"), "the wrong one was thinned"
    thin = bool(oldest.manifest.extra.get("thin"))
    assert thin or not acked, "acknowledged, and not done"
    return "thinned" if thin else "as before"


def _check_set_aside(store: CheckpointStore, acked: bool) -> str:
    aside = [name for name in os.listdir(store.layout.aside) if name[0].isdigit() and not name.endswith(".txt")]
    found = seqs(store)
    assert found == ([2, 1] if aside else [3, 2, 1]), f"{found} are there, {aside} aside"
    assert aside or not acked, "acknowledged, and not done"
    place = os.path.join(store.layout.aside, aside[0]) if aside else store.checkpoints()[0].path
    assert set(os.listdir(place)) == {VARIABLES, REST, "MANIFEST.json"}, "what is damaged is never deleted"
    _set_aside_damaged(store)  # so that the rest of the judgement finds only what is whole
    return "aside" if aside else "in place"


def _damage(store: CheckpointStore) -> None:
    with open(store.checkpoints()[0].file_path(REST), "r+b") as file:
        file.write(b"?")


def _find(store: CheckpointStore, seq: int) -> Checkpoint | None:
    return next((each for each in store.checkpoints() if each.manifest.seq == seq), None)


def _set_aside_damaged(store: CheckpointStore) -> None:
    if (damaged := _find(store, 3)) is not None:
        store.set_aside(damaged.path, "bytes 0 to 1 are not what was written")


def _committing(store: CheckpointStore) -> Callable[[], object]:
    return lambda: commit(store, NEW)


def _pruning(store: CheckpointStore) -> Callable[[], object]:
    return lambda: store.prune(1)


def _thinning(store: CheckpointStore) -> Callable[[], object]:
    oldest = store.checkpoints()[-1]
    return lambda: store.thin(oldest, VARIABLES)


def _setting_aside(store: CheckpointStore) -> Callable[[], object]:
    newest = store.checkpoints()[0]
    return lambda: store.set_aside(newest.path, "bytes 0 to 1 are not what was written")


class _FullOnce(CheckpointStore):
    """Once its first payload is written, the disk turns out to be full."""

    tried = False

    def commit(self, position: Position, files: Mapping[str, Iterable[Buffer]], **how: Any) -> Checkpoint:
        full = {} if self.tried else {"last": self._full()}
        self.tried = True
        return super().commit(position, {**files, **full}, **how)

    def _full(self) -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield b""


def _committing_full(store: CheckpointStore) -> Callable[[], object]:
    """As the parent does it, out of a slot; once the first file is written, the disk turns out to be full."""
    stage = Stage(Path(store.layout.root))
    files = {name: (len(b"".join(data)), [memoryview(each) for each in data]) for name, data in payload(NEW).items()}
    position = {"fit": 1, "epoch": 0, "batch": 0, "step": NEW, "kind": "batch"}
    about = {"position": position, "attempt": 1, "origin": "interval", "extra": {"seed": NEW}}
    fill(stage.slots[0], files, NEW, about)
    newest = stage.newest()
    assert newest is not None
    store = _FullOnce(store.layout.root, RUN)
    return lambda: persist.commit(store, stage.slots[0], newest[1], holder="h", retention=1)


def _check_committed_full(store: CheckpointStore, acked: bool) -> str:
    found = seqs(store)
    assert found, "nothing is left"
    assert NEW in found or not acked, "acknowledged, and not there"
    assert 3 in found or NEW in found, f"only {found} are there"
    return "new" if NEW in found else "old"


ACTS = {
    "commit": Act((1,), _committing, _check_commit),
    "commit to a full disk": Act((1, 2, 3), _committing_full, _check_committed_full),
    "prune": Act((1, 2, 3), _pruning, _check_prune),
    "thin": Act((1, 2), _thinning, _check_thin),
    "set aside": Act((1, 2, 3), _setting_aside, _check_set_aside, _damage),
}


def perform(act: str, root: str, mark: Callable[[str], object] = len) -> str:
    """Do it as a new process would, between two calls of `mark`; what it says."""
    change = ACTS[act].change(CheckpointStore(root, RUN))
    mark(BEGIN)
    try:
        change()
        said = "acked"
    except KsuperviseError as error:
        said = f"refused {error.slug}"
    mark(END)
    return said
