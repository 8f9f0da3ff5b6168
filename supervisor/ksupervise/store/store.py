"""The checkpoints of one run on a local disk.

A commit writes everything under tmp/, syncs it, and publishes it by one rename. Whoever looks, at any
instant, and whatever was killed, full or unplugged, sees the checkpoint whole or not at all. A checkpoint
is valid iff its manifest parses and every file's size and digest match; its name and its mtime mean
nothing. What is published is never changed: it goes to trash/ or to aside/ by one rename, too.

Only the owner of the run's lock may call what writes; anybody may read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ksupervise.store.atomic import (
    Buffer,
    StrPath,
    check_size,
    move,
    read_into,
    read_verified,
    remove_tree,
    replace_file,
    sync_dir,
    unique,
    verify_file,
    write_file,
)
from ksupervise.store.checkpoint import (
    MANIFEST,
    Checkpoint,
    Manifest,
    Origin,
    Position,
    check_payload_names,
    decode,
    read_manifest,
)
from ksupervise.store.faults import DamagedCheckpoint, NewerFormat, StoreUnreadable, read_fault, write_fault
from ksupervise.store.layout import RunLayout
from ksupervise.store.retention import Retention, to_free, to_keep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


Damage = tuple[str, str]  # path, reason

_WITHOUT_MARGIN = 0.8
_NAME = re.compile(r"(\d{12,19})-a\d")


@dataclass(frozen=True)
class Survey:
    """All that lies among the checkpoints, each in one of three lists.

    Attributes:
        valid: manifest and sizes are right, newest first; no payload was read.
        damaged: path and reason.
        unknown: path, and why it cannot be judged: out of reach now, or written by a newer ksupervise.
    """

    valid: tuple[Checkpoint, ...]
    damaged: tuple[Damage, ...]
    unknown: tuple[tuple[str, NewerFormat | StoreUnreadable], ...]


class CheckpointStore:
    """Commits, finds, verifies and removes checkpoints in one run's directory.

    Args:
        root: the run's directory; `RunLayout(root).create()` makes what is needed.
        run: the run's uuid. Checkpoints of another run do not count as valid here.
        writer: the version of ksupervise, written into every manifest.
    """

    def __init__(self, root: StrPath, run: str, writer: str = "ksupervise") -> None:
        self.layout = RunLayout(root)
        self.run = run
        self._writer = writer
        self._surely_whole = ""  # path of the checkpoint written or read in full since the last removal

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
        """Publish a checkpoint. When this returns it is on the disk, whole, and counts.

        Args:
            position: where the training stands.
            files: name to buffers; each file's buffers are asked for once, in order, one at a time.
            seq: number of the checkpoint in the run; `next_seq()` gives a free one.
            attempt: number of the attempt that trained it.
            holder: who writes.
            origin: why it is written.
            extra: plain JSON to find again in the manifest.

        Raises:
            StoreFull: the disk or the quota is full.
            StoreUnwritable: writing failed in another way.
            ValueError, TypeError: the arguments cannot be put into a manifest; nothing was written.

            Whatever is raised, also by `files`, nothing published before is touched. The checkpoint is
            then not there, or (when only the last sync failed) there, whole, and perhaps lost in a power
            cut. Try again with the next seq, never with the same.
        """
        draft = Manifest(
            run=self.run,
            seq=seq,
            attempt=attempt,
            holder=holder,
            position=position,
            origin=origin,
            created=time.time(),
            files=(),
            extra=extra or {},
            writer=self._writer,
        )
        draft = _as_read_back(draft)
        check_payload_names(list(files))
        target = os.path.join(self.layout.checkpoints, _directory_name(draft))
        try:
            manifest = self._publish(draft, files, target)
        except OSError as error:
            raise write_fault(error, target) from error
        self._surely_whole = target
        return Checkpoint(target, manifest)

    def _publish(self, draft: Manifest, files: Mapping[str, Iterable[Buffer]], target: str) -> Manifest:
        gone = not os.path.isdir(self.layout.tmp) or not os.path.isdir(self.layout.checkpoints)
        if gone and os.path.isdir(self.layout.root):  # without its root the mount went away, or the whole run
            self.layout.create()
        temporary = os.path.join(self.layout.tmp, unique(os.path.basename(target)))
        os.mkdir(temporary, 0o700)
        try:
            manifest = _write_all_files(temporary, draft, files)
            sync_dir(temporary)
            if os.path.lexists(target):  # an empty directory would be replaced silently
                raise FileExistsError(errno.EEXIST, "taken", target)
            move(temporary, target)
        except BaseException:
            remove_tree(temporary)
            raise
        sync_dir(self.layout.checkpoints)
        return manifest

    def checkpoints(self) -> list[Checkpoint]:
        """Those whose manifest parses and whose files have their sizes, newest first. Reads no payload.

        Raises:
            StoreUnreadable: the directory cannot be read now.
            NewerFormat: a newer ksupervise wrote one of them; going on without it would lose its work.
        """
        return self._scan()[0]

    def survey(self) -> Survey:
        """Everything that lies there. One that cannot be judged does not hide the others.

        Raises:
            StoreUnreadable: the directory itself cannot be read now.
        """
        valid: list[Checkpoint] = []
        damaged: list[Damage] = []
        unknown: list[tuple[str, NewerFormat | StoreUnreadable]] = []
        for name in sorted(_list(self.layout.checkpoints)):
            path = os.path.join(self.layout.checkpoints, name)
            try:
                valid.append(self._look(path))
            except DamagedCheckpoint as error:
                if os.path.lexists(path):  # else its owner pruned it while we looked
                    damaged.append((path, error.reason_in(path)))
            except (NewerFormat, StoreUnreadable) as error:
                unknown.append((path, error))
        valid.sort(key=lambda each: each.manifest.order, reverse=True)
        return Survey(tuple(valid), tuple(damaged), tuple(unknown))

    def damaged(self) -> list[Damage]:
        """Path and reason of everything else that lies among the checkpoints. Raises as `checkpoints`."""
        return self._scan()[1]

    def newest(self) -> Checkpoint | None:
        """The newest of `checkpoints()`, its digests not yet read. Raises as `checkpoints`."""
        return next(iter(self.checkpoints()), None)

    def next_seq(self) -> int:
        """A seq above every one that was used, also by damaged checkpoints. Raises as `checkpoints`."""
        used = [each.manifest.seq for each in self.checkpoints()]
        # Names decide nothing but which names are taken.
        for directory in (self.layout.checkpoints, self.layout.aside, self.layout.trash):
            used += [int(match[1]) for name in _list(directory) if (match := _NAME.match(name))]
        return max(used, default=0) + 1

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read every byte of it.

        Raises:
            DamagedCheckpoint: its manifest has changed, or a file's size or digest differ.
            StoreUnreadable: it could not be read now; it may be whole.
        """
        if read_manifest(checkpoint.path) != checkpoint.manifest:
            raise DamagedCheckpoint(checkpoint.path, "its manifest is not the one that was listed")
        for record in checkpoint.manifest.files:
            verify_file(checkpoint.file_path(record.name), record)

    def read(self, checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
        """That file's chunks, each verified before it is handed out.

        Raises:
            DamagedCheckpoint, StoreUnreadable: as `verify`, for this file.
            KeyError: the manifest names no such file.
        """
        return read_verified(checkpoint.file_path(name), checkpoint.manifest.file(name))

    def read_into(self, checkpoint: Checkpoint, name: str, target: memoryview) -> None:
        """Read that file into warm memory, verified; see `atomic.read_into`. Raises as `read`."""
        read_into(checkpoint.file_path(name), checkpoint.manifest.file(name), target)

    def set_aside(self, path: str, reason: str) -> str:
        """Move what is damaged out of the way, never delete it. The new path; beside it lies the reason.

        Raises:
            ValueError: `path` does not lie in checkpoints/.
            StoreFull, StoreUnwritable: it could not be moved.
        """
        if os.path.dirname(path) != self.layout.checkpoints:
            raise ValueError(f"{path} is not in {self.layout.checkpoints}")
        target = _free(os.path.join(self.layout.aside, os.path.basename(path)))
        try:
            move(path, target)
            sync_dir(self.layout.aside)
            sync_dir(self.layout.checkpoints)
        except OSError as error:
            raise write_fault(error, path) from error
        _leave_reason(f"{target}.reason.txt", reason)
        return target

    def thin(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Give up one file of a checkpoint; its manifest then says "thin" in `extra`. Returns what is left.

        Killed at any point it is valid, with the file or without: the manifest is replaced first.

        Raises:
            KeyError: the manifest names no such file.
            StoreFull, StoreUnwritable: nothing, or not all, was done.
        """
        manifest = checkpoint.manifest
        record = manifest.file(name)
        rest = tuple(each for each in manifest.files if each is not record)
        thinner = replace(manifest, files=rest, extra={**manifest.extra, "thin": True})
        try:
            replace_file(os.path.join(checkpoint.path, MANIFEST), thinner.encode())
            os.unlink(os.path.join(checkpoint.path, name))
            sync_dir(checkpoint.path)
        except OSError as error:
            raise write_fault(error, checkpoint.path) from error
        return Checkpoint(checkpoint.path, thinner)

    def prune(self, retention: Retention | int) -> list[str]:
        """Remove all but what retention keeps (see there); the paths removed, oldest first.

        Killed at any point, the survivors are as valid as before; leftovers in trash/ are swept later.
        What is damaged is not touched, nor counted.

        Args:
            retention: the policies; a number stands for so many of the newest and nothing else.

        Raises:
            ValueError: `retention` is less than 1.
            DamagedCheckpoint: the newest, for which the others were to go, is not whole; nothing was removed.
            StoreFull, StoreUnwritable: some or all victims are still there or in trash/.
            StoreUnreadable, NewerFormat: as `checkpoints`; nothing was removed.
        """
        valid = self.checkpoints()
        kept = {each.path for each in to_keep(valid, retention)}
        victims = [each for each in reversed(valid) if each.path not in kept]
        self._give_up(victims, valid)
        return [each.path for each in victims]

    def free(self, wanted: int, retention: Retention | int, *, refused: bool = False) -> list[Checkpoint]:
        """Make room for `wanted` bytes where the disk has less: what was removed, in the order in which it went.

        First what was left in trash/, and in tmp/ by this process or a dead one (this one may not be writing
        meanwhile). Then no more checkpoints than it takes, as `to_free` orders them; none if all would not do.

        Args:
            wanted: bytes.
            retention: what is optional, and how much; as for `prune`.
            refused: writing was refused for lack of room. If the disk has that much, a quota has not: then so
                many bytes of checkpoints go, or all that may.

        Raises:
            As `prune`.
        """
        room = self.room()
        short = room is not None and room < wanted  # else a quota is, or nothing
        if not short and not refused:
            return []
        self._sweep_own()
        missing = wanted - (self.room() or 0) if short else wanted
        valid = self.checkpoints()
        victims = _enough(to_free(valid, retention), missing)
        # What is wanted has a margin. Once writing was refused it is tried without: states are all of about one size,
        # and the room of one old checkpoint may be just what a new one takes.
        needed = missing * _WITHOUT_MARGIN if refused else missing
        if short and sum(each.manifest.size for each in victims) < needed:
            return []
        self._give_up(victims, valid)
        return victims

    def room(self) -> int | None:
        """Bytes that the disk has left for checkpoints, None where it does not say. It knows of no quota."""
        try:
            disk = os.statvfs(self.layout.checkpoints)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None

    def _give_up(self, victims: Sequence[Checkpoint], valid: Sequence[Checkpoint]) -> None:
        """Remove `victims`, once the newest of what stays is surely whole: it is all that may be needed."""
        if not victims:
            return
        doomed = {each.path for each in victims}
        staying = [each for each in valid if each.path not in doomed]
        if len(staying) < 2 or staying[0].path != self._surely_whole:
            self._verify_before_removal(staying[0])
        self._surely_whole = ""
        try:
            self._remove([each.path for each in victims])
            sync_dir(self.layout.trash)  # a file system with a journal may give the room back only now
        except OSError as error:
            raise write_fault(error, self.layout.trash) from error

    def _verify_before_removal(self, checkpoint: Checkpoint) -> None:
        try:
            self.verify(checkpoint)
        except DamagedCheckpoint as damage:
            raise DamagedCheckpoint(checkpoint.path, damage.reason_in(checkpoint.path)) from damage

    def _remove(self, victims: Sequence[str]) -> None:
        # The survivors' names first: they may come from a life that was killed before it synced them.
        sync_dir(self.layout.checkpoints)
        doomed = []
        for path in victims:
            doomed.append(os.path.join(self.layout.trash, unique(os.path.basename(path))))
            move(path, doomed[-1])
        # Only when they are gone for good from checkpoints/ may their bytes go: after a power cut a
        # victim that came back half-removed would look like damage.
        sync_dir(self.layout.trash)
        sync_dir(self.layout.checkpoints)
        for path in doomed:
            remove_tree(path)

    def _sweep_own(self) -> None:
        """Remove what removals and commits of the past left; another process may be writing in tmp/."""
        for name in _list(self.layout.trash):
            remove_tree(os.path.join(self.layout.trash, name))
        for name in _list(self.layout.tmp):
            if not _has_writer(name):
                remove_tree(os.path.join(self.layout.tmp, name))

    def sweep(self) -> list[str]:
        """Remove what killed owners left in tmp/, in trash/, in thinned checkpoints and as temporary files.

        Returns the paths removed.

        Only while holding the run's lock and before the first commit: what lies there is then nobody's.
        What cannot be removed now is left for the next sweep.
        """
        leftovers = [
            os.path.join(directory, name)
            for directory in (self.layout.tmp, self.layout.trash)
            for name in _list(directory)
        ]
        found = self.checkpoints()
        leftovers += [path for each in found if each.manifest.extra.get("thin") for path in _unlisted(each)]
        # A thinning that was killed before its new manifest was in place, a reason that was not written to its end.
        directories = [str(self.layout.root), self.layout.aside, *(each.path for each in found)]
        temporary = [os.path.join(each, name) for each in directories for name in _list(each) if _is_temporary(name)]
        leftovers += [path for path in temporary if path not in leftovers]
        return [path for path in leftovers if remove_tree(path)]

    def _scan(self) -> tuple[list[Checkpoint], list[Damage]]:
        found = self.survey()
        if found.unknown:
            raise found.unknown[0][1]
        return list(found.valid), list(found.damaged)

    def _look(self, path: str) -> Checkpoint:
        """The checkpoint at `path`, if manifest and sizes are right. Raises DamagedCheckpoint if not."""
        if not stat.S_ISDIR(_lstat(path).st_mode):
            raise DamagedCheckpoint(path, "it is not a directory")
        manifest = read_manifest(path)
        if manifest.run != self.run:
            raise DamagedCheckpoint(path, f"it belongs to another run ({manifest.run})")
        checkpoint = Checkpoint(path, manifest)
        for record in manifest.files:
            file = checkpoint.file_path(record.name)
            check_size(file, _lstat(file), record)
        return checkpoint


def _enough(checkpoints: Iterable[Checkpoint], missing: int) -> list[Checkpoint]:
    """The first of them that together take `missing` bytes; all, if they take less."""
    enough: list[Checkpoint] = []
    for each in checkpoints:
        if missing <= 0:
            break
        enough.append(each)
        missing -= each.manifest.size
    return enough


def _has_writer(name: str) -> bool:
    """Whether another process that is alive made the file of that name, which `unique` gave."""
    pid = name.rpartition(".")[0].rpartition(".")[2]
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _unlisted(checkpoint: Checkpoint) -> list[str]:
    """What lies in its directory and does not belong to it: thinning was interrupted."""
    known = {MANIFEST, *(record.name for record in checkpoint.manifest.files)}
    return [os.path.join(checkpoint.path, name) for name in _list(checkpoint.path) if name not in known]


def _as_read_back(draft: Manifest) -> Manifest:
    """The manifest as its reader will see it. Raises ValueError for one that no reader would take."""
    try:
        return decode(draft.encode(), "")
    except DamagedCheckpoint as error:
        raise ValueError(f"a checkpoint cannot hold this: {error.reason}") from error


def _write_all_files(directory: str, draft: Manifest, files: Mapping[str, Iterable[Buffer]]) -> Manifest:
    """Write the payload, then the manifest: without it the directory is worth nothing."""
    records = tuple(write_file(os.path.join(directory, name), data) for name, data in files.items())
    manifest = replace(draft, files=records)
    write_file(os.path.join(directory, MANIFEST), [manifest.encode()])
    return manifest


def _directory_name(manifest: Manifest) -> str:
    """Fixed width, so that `ls` sorts it. The holder is hashed: it may hold any character."""
    holder = zlib.crc32(manifest.holder.encode(errors="surrogatepass")) & 0xFFFFFF
    return f"{manifest.seq:012d}-a{manifest.attempt:04d}-h{holder:06x}"


def _list(directory: str) -> list[str]:
    """The names in a directory, none if it does not exist. Raises StoreUnreadable."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnreadable(str(read_fault(error, directory))) from error


def _lstat(path: str) -> os.stat_result:
    """What lies there, links not followed. Raises DamagedCheckpoint or StoreUnreadable."""
    try:
        return os.lstat(path)
    except OSError as error:
        raise read_fault(error, path) from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and ".tmp." in name


def _free(path: str) -> str:
    """`path`, or if that is taken, a name like it that is not."""
    return unique(path) if os.path.lexists(path) else path


def _leave_reason(path: str, reason: str) -> None:
    """Best effort: a full disk must not keep what is damaged among the checkpoints."""
    with suppress(OSError):
        replace_file(path, f"{reason}\n".encode(errors="backslashreplace"))
