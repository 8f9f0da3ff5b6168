"""One local checkpoint, copied to a place: its files, what had happened until then, and last its manifest.

Nothing is read but what was committed, and every chunk is verified on its way. The files are opened at once: the
run's retention may remove the checkpoint meanwhile (it knows nothing of us), and what is open can still be read. So a
slow upload is finished all the same.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from ksupervise.replicas.format import JOURNAL, MANIFEST, Generation
from ksupervise.replicas.place import Arrival, NotThere, Place, ReplicaRefused
from ksupervise.store import (
    CHUNK,
    Buffer,
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    StoreUnreadable,
    read_fault,
)
from ksupervise.store.checkpoint import MAX_MANIFEST, decode

MAX_JOURNAL = 16 * 1024 * 1024  # bytes of the journal that travel with a checkpoint: the last ones
MAX_RECORD = 1024 * 1024  # bytes of a run.json
_PIECE = 1024 * 1024  # bytes handed over at a time: between two of them there is time to give up
_NAP = 0.5  # seconds slept at a time under a bandwidth cap
_OPEN_AT_ONCE = 4  # files; each holds two chunks of memory


class Abandoned(Exception):
    """This upload was given up: something newer is there, or what was read has been removed. Not a fault."""


class Superseded(Exception):
    """Another machine owns the run now: nothing more may be written to the replica."""


Patience = Callable[[int], AbstractContextManager[None]]


def _without(_: int) -> AbstractContextManager[None]:
    return nullcontext()


class Flow:
    """The bytes on their way out: counted, held back under a bandwidth cap, stopped where they are given up.

    Args:
        progress: called with the number of bytes handed over since the last call; with 0 while it waits.
        abandoned: asked before each piece; True gives the upload up.
        rate: bytes per second at most; None for no cap.
        clock: seconds that never go back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        progress: Callable[[int], None] = lambda _: None,
        abandoned: Callable[[], bool] = lambda: False,
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._progress, self._abandoned = progress, abandoned
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._piece = _PIECE if rate is None else int(min(_PIECE, max(4096, rate / 2)))
        self._next = clock()  # when the next piece may go
        self.stopped: Exception | None = None

    def pieces(self, chunks: Iterable[Buffer]) -> Iterator[bytes]:
        """The bytes of `chunks`, copied: a place may hold on to what it is given.

        Raises:
            Abandoned: it was given up. This, and whatever `chunks` raises, is also left in `stopped`: a place may
                make something else of it.
        """
        self.stopped = None
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                for begin in range(0, len(view), self._piece):
                    piece = bytes(view[begin : begin + self._piece])
                    self.wait(len(piece))
                    yield piece
                    self._progress(len(piece))
        except Exception as error:
            self.stopped = error
            raise

    def wait(self, size: int) -> None:
        """Return when `size` more bytes may go. Raises Abandoned."""
        self.check()
        if self._rate is None:
            return
        while (rest := self._next - self._clock()) > 0:
            self._sleep(min(rest, _NAP))
            self._progress(0)
            self.check()
        self._next = max(self._next, self._clock()) + size / self._rate

    def check(self) -> None:
        """Raise Abandoned if it was given up."""
        if self._abandoned():
            raise Abandoned


@dataclass(frozen=True)
class Source:
    """What is copied, and from where.

    Attributes:
        store: the run's own, only read.
        checkpoint: as that store listed it.
        journal: bytes of the run's journal as of now; see `journal_tail`.
        record: bytes of the run's run.json; it begins a generation that is not there yet.
    """

    store: CheckpointStore
    checkpoint: Checkpoint
    journal: bytes
    record: bytes

    @property
    def name(self) -> str:
        """Of the checkpoint's directory."""
        return os.path.basename(self.checkpoint.path)


def upload(
    place: Place,
    generation: Generation,
    source: Source,
    flow: Flow,
    still_ours: Callable[[], bool] = lambda: True,
    patience: Patience = _without,
) -> Arrival:
    """Copy a checkpoint, its manifest last, after all else has been seen to be there. How far it has come.

    What an earlier attempt left whole is not copied again.

    Args:
        place: where to.
        generation: of the run, there.
        source: what.
        flow: which the bytes take.
        still_ours: asked before the manifest is written; False if another machine owns the run now.
        patience: held around each call that may read or write so many bytes without a word.

    Raises:
        Abandoned: given up by `flow`, or the checkpoint was removed here.
        Superseded: `still_ours` said so.
        DamagedCheckpoint: what lies here is not what was committed.
        StoreUnreadable: it cannot be read now.
        ReplicaFault: the place failed. In all cases no manifest was written, or (when only its answer was lost) a
            whole checkpoint is there.
    """
    prefix = f"{generation.checkpoints}{source.name}/"
    manifest = source.checkpoint.manifest
    text = _manifest_text(source.checkpoint)
    begin_generation(place, generation, source.record)
    sizes = {entry.key: entry.size for entry in place.entries(prefix)}
    flow.check()
    missing = [each for each in manifest.files if not _is_there(place, prefix, sizes, each, patience)]
    if prefix + MANIFEST in sizes:  # torn, or its files have gone: it must not count before they are back
        place.remove([prefix + MANIFEST])
    _write_files(place, prefix, source, missing, flow, patience)
    if not _names_journal(manifest):
        _write(place, prefix + JOURNAL, [source.journal], len(source.journal), flow)
    arrivals = _arrivals(place, prefix, manifest.files, patience)
    flow.check()
    if not still_ours():
        raise Superseded
    place.write(prefix + MANIFEST, [text], len(text))
    arrivals += _arrivals(place, prefix, [record_of(MANIFEST, text)], patience)
    return _least(arrivals)


def begin_generation(place: Place, generation: Generation, record: bytes) -> None:
    """Write the run's record unless it is there.

    Raises:
        ReplicaRefused: another run's is there.
        ReplicaFault: the place failed.
    """
    if place.create(generation.record, record):
        return
    try:
        found = run_id(place.read(generation.record, 0, MAX_RECORD + 1))
    except (NotThere, ValueError):  # it broke off in mid-write
        place.write(generation.record, [record], len(record))
        return
    if found != run_id(record):
        raise ReplicaRefused(
            f"{place.name} holds another run under {generation.prefix} (id {found}). Nothing was written; give this "
            "run another --name, or the replica another place"
        )


def run_id(record: bytes) -> str:
    """The id in a run.json. Raises ValueError for what is none."""
    if len(record) > MAX_RECORD:
        raise ValueError(f"it is larger than {MAX_RECORD} bytes")
    try:
        return str(uuid.UUID(json.loads(record)["id"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no run's record ({type(error).__name__})") from error


def arrival(place: Place, prefix: str, manifest: Manifest, text: bytes, patience: Patience = _without) -> Arrival:
    """How far a complete checkpoint below `prefix` has come.

    Args:
        place: where it lies.
        prefix: of its keys.
        manifest: its own.
        text: that manifest's bytes.
        patience: as for `upload`.

    Raises:
        NotThere: it is not whole.
        ReplicaFault: the place failed.
    """
    return _least(_arrivals(place, prefix, [*manifest.files, record_of(MANIFEST, text)], patience))


def _arrivals(place: Place, prefix: str, records: Iterable[FileRecord], patience: Patience) -> list[Arrival]:
    arrivals = []
    for each in records:
        with patience(each.size):
            arrivals.append(place.arrival(prefix + each.name, each))
    return arrivals


def _least(arrivals: Iterable[Arrival]) -> Arrival:
    return Arrival.CACHED if Arrival.CACHED in arrivals else Arrival.UPLOADED


def record_of(name: str, data: bytes) -> FileRecord:
    """By which `data` is known again in a file of that name."""
    digests = [zlib.crc32(data[begin : begin + CHUNK]) for begin in range(0, len(data), CHUNK)]
    return FileRecord(name, len(data), CHUNK, tuple(digests))


def journal_tail(path: str, limit: int = MAX_JOURNAL) -> bytes:
    """The last whole lines of a journal, at most `limit` bytes; none if there is no journal. Raises StoreUnreadable."""
    try:
        with open(path, "rb") as file:
            begin = max(0, os.fstat(file.fileno()).st_size - limit)
            file.seek(max(0, begin - 1))
            data = file.read(limit + min(begin, 1))
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreUnreadable(str(read_fault(error, path))) from error
    if begin:
        data = data.partition(b"\n")[2]  # the byte before may just end a line
    return data[: data.rfind(b"\n") + 1]


def _manifest_text(checkpoint: Checkpoint) -> bytes:
    """The manifest to the byte. Raises Abandoned if it is not the one that was listed any more."""
    path = os.path.join(checkpoint.path, MANIFEST)
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_MANIFEST + 1)
    except FileNotFoundError:
        raise Abandoned from None
    except OSError as error:
        raise read_fault(error, path) from error
    if decode(text, path) != checkpoint.manifest:  # it was thinned meanwhile
        raise Abandoned
    return text


def _is_there(place: Place, prefix: str, sizes: dict[str, int], record: FileRecord, patience: Patience) -> bool:
    """Whether an earlier attempt left this file whole."""
    if sizes.get(prefix + record.name) != record.size:
        return False
    try:
        _arrivals(place, prefix, [record], patience)
    except NotThere:
        return False
    return True


def _write_files(
    place: Place, prefix: str, source: Source, records: list[FileRecord], flow: Flow, patience: Patience
) -> None:
    with ExitStack() as ends:
        chunks: dict[str, Iterator[Buffer]] = {}
        try:
            for each in sorted(records, key=lambda record: -record.size)[:_OPEN_AT_ONCE]:
                chunks[each.name] = _opened(source, each, ends)
            for each in records:
                here = chunks.pop(each.name, None) or _opened(source, each, ends)
                with patience(each.size):  # some mounts do all their work when a file is closed
                    _write(place, prefix + each.name, here, each.size, flow)
        except DamagedCheckpoint:
            if _is_unchanged(source.checkpoint):
                raise
            raise Abandoned from None


def _is_unchanged(checkpoint: Checkpoint) -> bool:
    """Whether it still lies here as it was listed: neither removed nor thinned."""
    try:
        _manifest_text(checkpoint)
    except (Abandoned, DamagedCheckpoint):
        return False
    return True


def _opened(source: Source, record: FileRecord, ends: ExitStack) -> Iterator[Buffer]:
    """The file's verified chunks. It is open when this returns, and stays readable when it is removed."""
    chunks = source.store.read(source.checkpoint, record.name)
    close = getattr(chunks, "close", None)
    if close is not None:
        ends.callback(close)
    first = next(chunks, None)
    return _with_first(first, chunks)


def _with_first(first: Buffer | None, rest: Iterator[Buffer]) -> Iterator[Buffer]:
    if first is not None:
        yield first
        yield from rest


def _write(place: Place, key: str, chunks: Iterable[Buffer], size: int, flow: Flow) -> None:
    try:
        place.write(key, flow.pieces(chunks), size)
    except Exception:
        if flow.stopped is not None:
            raise flow.stopped from None
        raise


def _names_journal(manifest: Manifest) -> bool:
    return any(each.name.casefold() == JOURNAL for each in manifest.files)
