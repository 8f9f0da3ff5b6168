"""One commit or one prune between two marks that strace sees: `torture_child.py ACT ROOT SCRATCH`.

It says `acked` or `refused SLUG` and exits 0; anything else it does is a bug.
"""

from __future__ import annotations

import os
import sys

from ksupervise.errors import KsuperviseError
from ksupervise.store import CHUNK, CheckpointStore, Position, RunLayout

RUN = "tortured"
BEGIN, END = "/torture-begins", "/torture-ends"


def big_payload(seed: int) -> dict[str, list[bytes]]:
    """One block past the page cache, a tail, and a small file."""
    return {"state": [bytes([seed]) * CHUNK, b"tail %d" % seed], "extra.json": [b"%d" % seed]}


def commit(store: CheckpointStore, seed: int) -> None:
    """Commit checkpoint number `seed`."""
    position = Position(fit=1, epoch=0, batch=0, step=seed, kind="batch")
    extra = {"seed": seed}
    store.commit(position, big_payload(seed), seq=seed, attempt=1, holder="h", origin="interval", extra=extra)


def act(name: str, store: CheckpointStore) -> None:
    """What is to be tortured."""
    if name == "commit":
        commit(store, 2)
    else:
        store.prune(1)


def main(name: str, root: str, scratch: str) -> None:
    """Once on a scratch run, so that nothing is left to import, then in earnest."""
    RunLayout(scratch).create()
    rehearsal = CheckpointStore(scratch, RUN)
    commit(rehearsal, 1)
    act(name, rehearsal)
    os.path.lexists(BEGIN)
    try:
        act(name, CheckpointStore(root, RUN))
        said = "acked"
    except KsuperviseError as error:
        said = f"refused {error.slug}"
    os.path.lexists(END)
    print(said)


if __name__ == "__main__":
    main(*sys.argv[1:])
