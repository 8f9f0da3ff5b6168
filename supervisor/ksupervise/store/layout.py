"""Where everything lies in a run's directory."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from ksupervise.store.atomic import StrPath, sync_dir, unique
from ksupervise.store.faults import write_fault


@dataclass(frozen=True)
class RunLayout:
    """The names in a run's directory. Naming touches nothing; only `create` writes.

    ```
    ROOT/run.json           what the run is
    ROOT/journal.jsonl      what happened, append-only
    ROOT/lock               held by the owner; its text says who that is
    ROOT/boot.zip           our part that the child imports
    ROOT/checkpoints/       published by one rename each, never changed afterwards
    ROOT/tmp/               being written; never read
    ROOT/trash/             being removed; never read
    ROOT/aside/             damaged, kept for a person to look at
    ROOT/attempts/001/      what each life of the child left: output.log
    ```
    """

    root: StrPath

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", os.path.abspath(os.fspath(self.root)))

    def _named(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    @property
    def run_json(self) -> str:
        return self._named("run.json")

    @property
    def journal(self) -> str:
        return self._named("journal.jsonl")

    @property
    def lock(self) -> str:
        return self._named("lock")

    @property
    def boot_zip(self) -> str:
        return self._named("boot.zip")

    @property
    def checkpoints(self) -> str:
        return self._named("checkpoints")

    @property
    def tmp(self) -> str:
        return self._named("tmp")

    @property
    def trash(self) -> str:
        return self._named("trash")

    @property
    def aside(self) -> str:
        return self._named("aside")

    @property
    def attempts(self) -> str:
        return self._named("attempts")

    def attempt(self, number: int) -> str:
        """The directory of that attempt, numbered from 1. It is not made by `create`."""
        return self._named("attempts", f"{number:03d}")

    def output_log(self, number: int) -> str:
        """What that attempt's child printed."""
        return os.path.join(self.attempt(number), "output.log")

    def create(self) -> None:
        """Make every directory that is missing, for the user's eyes only, and prove that files can be made.

        Raises:
            StoreUnwritable: a file is in the way, or nothing may be written there.
            StoreFull: the disk or the quota is full.
        """
        _make_parents(str(self.root))
        for path in (self.checkpoints, self.tmp, self.trash, self.aside, self.attempts):
            _make(path)
        probe = os.path.join(self.tmp, unique("probe"))
        _make(probe)
        with contextlib.suppress(FileNotFoundError):  # the owner of the run sweeps at this moment
            os.rmdir(probe)

    def make_attempt(self, number: int) -> str:
        """Make that attempt's directory; its path. Raises StoreUnwritable or StoreFull."""
        path = self.attempt(number)
        _make(path)
        return path


def _make_parents(path: str) -> None:
    parent = os.path.dirname(path)
    if parent != path and not os.path.isdir(parent):
        _make_parents(parent)
    _make(path)


def _make(path: str) -> None:
    """Make one directory if it is missing, its name on the disk: a commit inside is worth no more than it."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError as error:
        if not os.path.isdir(path):
            raise write_fault(OSError(errno.ENOTDIR, "in the way"), path) from error
        return
    except OSError as error:
        raise write_fault(error, path) from error
    try:
        sync_dir(os.path.dirname(path))
    except PermissionError:
        pass  # a parent that we may write in but not open: not ours to sync
    except OSError as error:
        raise write_fault(error, path) from error
