"""What a replica holds of a run, and bringing it back to a machine that has less.

A download lies in `RUN/incoming/CHECKPOINT/` until it is whole: the store sweeps tmp/ at its start, and what took an
hour to come must survive the next kill. Each chunk is verified by the manifest's digest as it arrives; a later call
goes on behind the last chunk that verifies. Then the checkpoint is published as the store does it: synced, by one
rename. Whatever lies in the replica, nothing is written outside the run's directory, and little is held in memory.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ksupervise.replicas.claim import listed
from ksupervise.replicas.format import JOURNAL, MANIFEST, Generation, generation_of
from ksupervise.replicas.history import read_history, told
from ksupervise.replicas.place import Entry, NotThere, Place
from ksupervise.replicas.plan import Copy, Item, Name, item_of, newest_finals, parse_name
from ksupervise.replicas.upload import MAX_JOURNAL, MAX_RECORD, run_id
from ksupervise.store import (
    CHUNK,
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    FileRecord,
    Manifest,
    NewerFormat,
    RunLayout,
    StoreFull,
    sync,
    sync_dir,
    write_fault,
    write_file,
)
from ksupervise.store.atomic import move, remove_tree
from ksupervise.store.checkpoint import MAX_MANIFEST, decode

INCOMING = "incoming"  # in the run's directory
_MOST_LISTED = 10_000  # checkpoints of a generation that are looked at, the newest: a bound on memory
_MARGIN = 64 * 1024 * 1024  # bytes that a disk keeps free beyond what is downloaded

Skipped = tuple[str, str]  # name, reason


@dataclass(frozen=True)
class Inventory:
    """The checkpoints of one generation in a place.

    Attributes:
        copies: complete by manifest and sizes, newest first; no payload was read.
        leftovers: without a manifest that parses, or with files missing: nobody's, or being written.
        damaged: name and reason, of all that has a manifest and does not count.
        newer: of those that a newer ksupervise wrote, by name.
        keys: all keys of a checkpoint, by its name.
    """

    copies: tuple[Copy, ...] = ()
    leftovers: tuple[Name, ...] = ()
    damaged: tuple[Skipped, ...] = ()
    newer: Mapping[str, NewerFormat] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A generation of a run in a place.

    Attributes:
        generation: which.
        record: bytes of its run.json; b"" with a `problem`.
        id: the run's uuid, "" with a `problem`.
        inventory: its checkpoints.
        problem: why it cannot be used, "" if it can.
        token: the highest that anybody has claimed; 0 for none.
        told: first attempt of the owner who last said how it ended; 0 for nobody.
    """

    generation: Generation
    record: bytes
    id: str
    inventory: Inventory
    problem: str = ""
    token: int = 0
    told: int = 0


@dataclass(frozen=True)
class Fetched:
    """What came.

    Attributes:
        newest: the checkpoint to go on from, None if the replica has none that is newer than what is here.
        checkpoints: all that were published here now.
        journal: what had happened until the newest checkpoint that is here now, and what an owner said at its end
            since; b"" if the replica does not have that.
        record: bytes of the run's run.json.
        skipped: name and reason of what is damaged there.
    """

    newest: Checkpoint | None
    checkpoints: tuple[Checkpoint, ...]
    journal: bytes
    record: bytes
    skipped: tuple[Skipped, ...]


def look(place: Place, run: str) -> list[Found]:
    """The generations of the run of that name, newest first. Reads manifests, no payload.

    Raises:
        ReplicaFault: the place failed. What is malformed there is no fault; see `Found.problem`.
    """
    by_generation: dict[Generation, list[Entry]] = {}
    for entry in place.entries(f"{run}/"):
        generation = generation_of(entry.key)
        if generation is not None and generation.run == run and generation.number > 0:
            by_generation.setdefault(generation, []).append(entry)
    return [_look_at(place, each, by_generation[each]) for each in sorted(by_generation, reverse=True)]


def inventory(
    place: Place, generation: Generation, run: str, entries: Iterable[Entry], known: Mapping[str, Item] | None = None
) -> Inventory:
    """Sort what lies among the checkpoints of a generation.

    Args:
        place: where.
        generation: which.
        run: the run's id; checkpoints of another do not count.
        entries: a listing that holds all of them.
        known: by name, complete checkpoints whose manifests need not be read again.

    Raises:
        ReplicaFault: the place failed.
    """
    copies: list[Copy] = []
    leftovers: list[Name] = []
    damaged: list[Skipped] = []
    newer: dict[str, NewerFormat] = {}
    listed = _by_checkpoint(generation, entries)
    for name, sizes in listed.items():
        if MANIFEST not in sizes:
            leftovers.append(name)
            continue
        if known and name.text in known:
            copies.append(Copy(known[name.text]))
            continue
        try:
            manifest, _ = read_manifest(place, generation, name.text, run)
            copies.append(Copy(_complete(name, manifest, sizes)))
        except NewerFormat as error:
            newer[name.text] = error
        except _Foreign as error:
            damaged.append((name.text, str(error)))
        except (DamagedCheckpoint, NotThere) as error:
            leftovers.append(name)
            damaged.append((name.text, error.reason if isinstance(error, DamagedCheckpoint) else str(error)))
    copies.sort(key=lambda copy: copy.item.order, reverse=True)
    keys = {
        name.text: tuple(f"{generation.checkpoints}{name.text}/{file}" for file in sizes)
        for name, sizes in listed.items()
    }
    return Inventory(tuple(copies), tuple(leftovers), tuple(damaged), newer, keys)


def read_manifest(place: Place, generation: Generation, name: str, run: str) -> tuple[Manifest, bytes]:
    """The manifest of that checkpoint, and its bytes.

    Raises:
        DamagedCheckpoint: it is not valid, or another run's.
        NewerFormat: a newer ksupervise wrote it.
        ReplicaFault: the place failed, NotThere among them.
    """
    key = f"{generation.checkpoints}{name}/{MANIFEST}"
    text = place.read(key, 0, MAX_MANIFEST + 1)
    manifest = decode(text, f"{place.name}: {key}")
    if manifest.run != run:
        raise _Foreign(f"{place.name}: {key}", f"it belongs to another run ({manifest.run})")
    return manifest, text


def fetch(
    place: Place,
    found: Found,
    layout: RunLayout,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Fetched:
    """Bring here the newest checkpoint that verifies, and the newest final state of every completed fit.

    What is here already is not fetched, nor what is older than the newest here, final states apart. Killed at any
    point, a later call goes on; what was published is whole, and the newest comes last: with it all has come. Only
    while holding the run's lock.

    Args:
        place: where from.
        found: the generation, as `look` found it.
        layout: of the run here; its directories exist.
        progress: called with the bytes of the checkpoint at hand that are here, and all its bytes.

    Raises:
        ValueError: `found` has a problem.
        NewerFormat: the newest there was written by a newer ksupervise.
        ReplicaFault: the place failed; what has come so far stays for a later call.
        StoreFull, StoreUnwritable, StoreUnreadable: the disk here failed.
    """
    if found.problem:
        raise ValueError(found.problem)
    store = CheckpointStore(layout.root, found.id)
    bring = _Bringing(place, found, store, progress)
    newer = _newer_than_here(found.inventory, store)
    for final in newest_finals(copy.item for copy in found.inventory.copies):
        bring.first([copy.item for copy in found.inventory.copies if _is_final_of(copy.item, final.fit)])
    newest = bring.first(newer)
    journal = _journal_of(place, found, newest or store.newest())
    bring.tidy()
    skipped = [*found.inventory.damaged, *bring.skipped]
    return Fetched(newest, tuple(bring.brought), journal, found.record, tuple(skipped))


class _Foreign(DamagedCheckpoint):
    """It is whole, perhaps, but another run's or under another's name: not ours to remove."""

    slug = "foreign-checkpoint"


class _Bringing:
    """Downloads into one run's directory, and publishes there."""

    def __init__(
        self, place: Place, found: Found, store: CheckpointStore, progress: Callable[[int, int], None]
    ) -> None:
        self._place, self._found, self._store, self._progress = place, found, store, progress
        self._incoming = os.path.join(store.layout.root, INCOMING)
        self.brought: list[Checkpoint] = []
        self.skipped: list[Skipped] = []
        self._bad: set[str] = set()

    def first(self, newest_first: Sequence[Item]) -> Checkpoint | None:
        """The first of them that verifies, brought here if need be. None: there is none."""
        for item in newest_first:
            name = item.name.text
            here = next((each for each in self._store.survey().valid if os.path.basename(each.path) == name), None)
            if here is not None:
                return here
            if name in self._bad:
                continue
            try:
                return self._bring(item)
            except (DamagedCheckpoint, NotThere) as error:
                self._bad.add(name)
                self.skipped.append((name, error.reason if isinstance(error, DamagedCheckpoint) else str(error)))
                remove_tree(os.path.join(self._incoming, name))
        return None

    def tidy(self) -> None:
        """Remove what earlier calls began and nobody wants any more."""
        with suppress(FileNotFoundError):
            for name in os.listdir(self._incoming):
                if parse_name(name) is not None:
                    remove_tree(os.path.join(self._incoming, name))

    def _bring(self, item: Item) -> Checkpoint:
        name = item.name.text
        generation = self._found.generation
        manifest, text = read_manifest(self._place, generation, name, self._found.id)
        _checked_item(item.name, manifest)
        directory = os.path.join(self._incoming, name)
        target = os.path.join(self._store.layout.checkpoints, name)
        try:
            _make_directories(self._incoming, directory)
            self._download(f"{generation.checkpoints}{name}/", manifest, directory)
            _leave_only(directory, [each.name for each in manifest.files])
            write_file(os.path.join(directory, MANIFEST), [text])
            sync_dir(directory)
            if os.path.lexists(target):  # it is not valid: see `first`
                self._store.set_aside(target, "it is damaged; the replica's copy of it was taken instead")
            move(directory, target)
            sync_dir(self._store.layout.checkpoints)
            sync_dir(self._incoming)
        except OSError as error:
            raise write_fault(error, target) from error
        checkpoint = Checkpoint(target, manifest)
        self.brought.append(checkpoint)
        return checkpoint

    def _download(self, prefix: str, manifest: Manifest, directory: str) -> None:
        done = 0
        self._check_room(manifest, directory)
        for record in manifest.files:
            fd = _open_partial(os.path.join(directory, record.name))
            try:
                whole = _verified_chunks(fd, record)
                done += min(record.size, whole * record.chunk)
                self._progress(done, manifest.size)
                os.ftruncate(fd, min(record.size, whole * record.chunk))
                for begin, data in _pieces(self._place, prefix + record.name, record, whole):
                    _write_at(fd, data, begin)
                    done += len(data)
                    self._progress(done, manifest.size)
                sync(fd)
            finally:
                os.close(fd)

    def _check_room(self, manifest: Manifest, directory: str) -> None:
        """Raise StoreFull before anything is written if it cannot fit."""
        here = sum(_size(os.path.join(directory, each.name)) for each in manifest.files)
        needed, room = manifest.size - here + _MARGIN, self._store.room()
        if room is not None and room < needed:
            raise StoreFull(
                f"Cannot fetch {os.path.basename(directory)} from {self._place.name}: it needs {needed} bytes and the "
                f"disk of {self._store.layout.root} has {room}. Free some space on that disk, or choose another place "
                "with --store."
            )


def _look_at(place: Place, generation: Generation, entries: Sequence[Entry]) -> Found:
    claims = listed(generation.owners, (entry.key for entry in entries)).claims
    last = told(generation, (entry.key for entry in entries))
    found = Found(generation, b"", "", Inventory(), token=max((token for token, _ in claims), default=0), told=last)
    try:
        record = place.read(generation.record, 0, MAX_RECORD + 1)
        run = run_id(record)
        if not run.replace("-", "").startswith(generation.short):
            raise ValueError(f"it is the record of run {run}")
    except NotThere:
        return replace(found, problem=f"{generation.record} is missing in {place.name}")
    except ValueError as error:
        return replace(found, problem=f"{generation.record} in {place.name} cannot be used: {error}")
    return replace(found, record=record, id=run, inventory=inventory(place, generation, run, entries))


def _by_checkpoint(generation: Generation, entries: Iterable[Entry]) -> dict[Name, dict[str, int]]:
    """Sizes of the files of each checkpoint, the newest so many of them. What is not ours is passed over."""
    found: dict[Name, dict[str, int]] = {}
    for entry in entries:
        if not entry.key.startswith(generation.checkpoints):
            continue
        directory, _, file = entry.key[len(generation.checkpoints) :].partition("/")
        name = parse_name(directory)
        if name is not None and file and "/" not in file:
            found.setdefault(name, {})[file] = entry.size
    newest = sorted(found, key=lambda name: (name.attempt, name.seq, name.branch), reverse=True)[:_MOST_LISTED]
    return {name: found[name] for name in newest}


def _complete(name: Name, manifest: Manifest, sizes: Mapping[str, int]) -> Item:
    """The checkpoint, if all its files are there. Raises DamagedCheckpoint."""
    item = _checked_item(name, manifest)
    for record in manifest.files:
        size = sizes.get(record.name)
        if size != record.size:
            there = "is missing" if size is None else f"has {size} bytes instead of {record.size}"
            raise DamagedCheckpoint(name.text, f"{record.name} {there}")
    return item


def _checked_item(name: Name, manifest: Manifest) -> Item:
    try:
        return item_of(name, manifest)
    except ValueError as error:
        raise _Foreign(name.text, str(error)) from error


def _newer_than_here(there: Inventory, store: CheckpointStore) -> list[Item]:
    """Complete ones that are newer than all that is valid here, newest first. Raises NewerFormat, StoreUnreadable."""
    here = store.newest()
    newest_there = there.copies[0].item.name if there.copies else None
    for text, error in there.newer.items():
        name = parse_name(text)
        if name is not None and (newest_there is None or not newest_there.follows(name)):
            raise error
    return [copy.item for copy in there.copies if here is None or copy.item.order > here.manifest.order]


def _is_final_of(item: Item, fit: int) -> bool:
    return item.kind == "final" and item.fit == fit


def _journal_of(place: Place, found: Found, newest: Checkpoint | None) -> bytes:
    """Whole lines only, each once."""
    last = read_history(place, found.generation, MAX_JOURNAL)
    known = set(last.splitlines())
    before = _journal_of_checkpoint(place, found, newest).splitlines(keepends=True)
    return b"".join(line for line in before if line.rstrip() not in known) + last


def _journal_of_checkpoint(place: Place, found: Found, newest: Checkpoint | None) -> bytes:
    """None if it cannot be had: training needs it not."""
    if newest is None:
        return b""
    key = f"{found.generation.checkpoints}{os.path.basename(newest.path)}/{JOURNAL}"
    try:
        data = place.read(key, 0, MAX_JOURNAL)
    except NotThere:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _pieces(place: Place, key: str, record: FileRecord, first: int) -> Iterator[tuple[int, bytes]]:
    """Verified bytes from the chunk of index `first` on, with where they belong. Raises DamagedCheckpoint, NotThere."""
    together = max(1, CHUNK // record.chunk)  # small chunks are asked for by the handful
    for index in range(first, len(record.crc32), together):
        chunks = range(index, min(index + together, len(record.crc32)))
        try:
            yield index * record.chunk, _read_chunks(place, key, record, chunks)
        except DamagedCheckpoint:  # on the way, perhaps
            yield index * record.chunk, _read_chunks(place, key, record, chunks)


def _read_chunks(place: Place, key: str, record: FileRecord, chunks: range) -> bytes:
    begin = chunks[0] * record.chunk
    length = min(record.size, chunks[-1] * record.chunk + record.chunk) - begin
    data = place.read(key, begin, length)
    if len(data) != length:
        raise DamagedCheckpoint(key, f"{record.name} ends early")
    view = memoryview(data)
    for index in chunks:
        offset = index * record.chunk - begin
        if zlib.crc32(view[offset : offset + record.length(index)]) != record.crc32[index]:
            raise DamagedCheckpoint(key, f"{record.name} is not what was written (crc32 differs)")
    return data


def _verified_chunks(fd: int, record: FileRecord) -> int:
    """How many chunks an earlier call left whole at the file's begin."""
    for index, digest in enumerate(record.crc32):
        length = record.length(index)
        data = os.pread(fd, length, index * record.chunk)
        if len(data) != length or zlib.crc32(data) != digest:
            return index
    return len(record.crc32)


def _open_partial(path: str) -> int:
    """A descriptor of the file, made if it is missing; never of anything else."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _write_at(fd: int, data: bytes, begin: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, begin)
        if count == 0:
            raise OSError(errno.EIO, "nothing was written")
        view, begin = view[count:], begin + count


def _make_directories(*paths: str) -> None:
    for path in paths:
        if not os.path.isdir(path) or os.path.islink(path):
            os.mkdir(path, 0o700)
            sync_dir(os.path.dirname(path))


def _leave_only(directory: str, names: Sequence[str]) -> None:
    """Remove what an earlier call left there and what does not belong there: its manifest, at least."""
    for name in os.listdir(directory):
        if name not in names:
            remove_tree(os.path.join(directory, name))


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
