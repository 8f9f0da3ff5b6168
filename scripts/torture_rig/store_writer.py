"""Saves again and again through our store: `store_writer.py ROOT BYTES [--unsynced] [--first SEQ]`.

It says `begin N` and `saved N` around each commit; after a refusal it says `refused WORDS` and exits 0.
`state_of` gives the content that belongs to a number.
"""

from __future__ import annotations

import argparse
import importlib
import random

from ksupervise.errors import KsuperviseError
from ksupervise.store import CHUNK, CheckpointStore, Position, RunLayout

RUN = "tortured"
KEEP = 3
STATE, REST = "state.safetensors", "rest.safetensors"
SHARES = {STATE: 0.9, REST: 0.1}  # of the bytes; state.json is beside them


def state_of(seq: int, size: int) -> dict[str, list[bytes]]:
    """The files of checkpoint `seq`: bytes that no other has, about `size` of them."""
    files = {name: _bytes_of(f"{seq} {name}", int(size * share)) for name, share in SHARES.items()}
    return {**files, "state.json": [b'{"seq":%d}' % seq]}


def _bytes_of(seed: str, size: int) -> list[bytes]:
    source = random.Random(seed)
    whole, rest = divmod(size, CHUNK)
    return [source.randbytes(length) for length in [CHUNK] * whole + [rest] if length]


def commit(store: CheckpointStore, seq: int, size: int, files: dict[str, list[bytes]]) -> None:
    """Commit checkpoint `seq`; `files` are those of `state_of`."""
    position = Position(fit=1, epoch=seq, batch=0, step=seq, kind="batch")
    extra = {"size": size, "epochs": 2**31, "stopped": False}
    store.commit(position, files, seq=seq, attempt=1, holder="h", origin="interval", extra=extra)


def flaws_of(store: CheckpointStore, acked: int) -> str:
    """What is wrong with a store whose newest acknowledged checkpoint is `acked`; empty if nothing is.

    Every byte of every checkpoint that is listed is looked at. Raises what the store raises.
    """
    listed = store.checkpoints()
    if acked and not listed:
        return "no checkpoint is left"
    if acked and listed[0].manifest.seq < acked:
        return f"{acked} was acknowledged, the newest is {listed[0].manifest.seq}"
    if damaged := store.damaged():
        return f"damaged: {damaged}"
    for each in listed:
        store.verify(each)
        for name, buffers in state_of(each.manifest.seq, each.manifest.extra["size"]).items():
            if b"".join(map(bytes, store.read(each, name))) != b"".join(buffers):
                return f"{name} of {each.manifest.seq} is whole, but not what was written"
    return ""


def main() -> None:
    """Save until killed or refused."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("bytes", type=int)
    parser.add_argument("--unsynced", action="store_true", help="as if no fsync were in the store: a control")
    parser.add_argument("--first", type=int, default=0, help="by default what the store says is free")
    args = parser.parse_args()
    if args.unsynced:
        _leave_out_syncs()
    RunLayout(args.root).create()
    store = CheckpointStore(args.root, RUN)
    store.sweep()
    seq = args.first or store.next_seq()
    try:
        while True:
            files = state_of(seq, args.bytes)
            print("begin", seq, flush=True)
            commit(store, seq, args.bytes, files)
            print("saved", seq, flush=True)
            store.prune(KEEP)
            seq += 1
    except KsuperviseError as error:
        print("refused", error.slug, str(error).replace("\n", " "), flush=True)


def _leave_out_syncs() -> None:
    for module in ("atomic", "store"):
        for name in ("sync", "sync_dir"):
            setattr(importlib.import_module(f"ksupervise.store.{module}"), name, lambda _: None)


if __name__ == "__main__":
    main()
