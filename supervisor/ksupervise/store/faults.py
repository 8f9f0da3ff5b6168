"""What can go wrong with a store: what happened, to what, and what to do now."""

from __future__ import annotations

import errno
import os

from ksupervise.errors import EXIT_GAVE_UP, EXIT_NOT_EXECUTABLE, EXIT_USAGE, KsuperviseError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

# These say that the bytes are not there or that the disk lost them. Every other errno (too many open
# files, no permission, a mount that went away, a server that does not answer) says nothing about the
# checkpoint: it may be whole, and whoever set it aside for that would lose it.
_LOST = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENXIO", "EIO", "ENODATA", "EBADMSG", "EUCLEAN")
    if hasattr(errno, name)
)

# The place is out of reach: advice alike for who reads and who writes.
_REACH_ADVICE = {
    errno.ENOTCONN: "The mount went away: remount it",
    errno.ECONNABORTED: "The mount went away: remount it",
    errno.ESTALE: "The server has forgotten the folder, or it was replaced there: remount it",
    errno.ETIMEDOUT: "The server does not answer: see whether it and the network are up",
    errno.EHOSTDOWN: "The server is down: wait for it",
    errno.EHOSTUNREACH: "The server cannot be reached: see whether the network is up",
    errno.ENODEV: "The disk has gone: attach it again",
}
_WRITE_ADVICE = {
    errno.ENOSPC: "Free some space on that disk, or choose another place with --store.",
    errno.EDQUOT: "Free some of your quota there, or choose another place with --store.",
    errno.EACCES: "Make the folder yours (chown, chmod), or choose another place with --store.",
    errno.EPERM: "Make the folder yours (chown, chmod), or choose another place with --store.",
    errno.EROFS: (
        "It is mounted read-only, perhaps since the disk reported errors (see dmesg): "
        "remount it writable, or choose another place with --store."
    ),
    errno.ENOTDIR: "A folder is needed there: move the file away, or choose another place with --store.",
    errno.EEXIST: "Something is in the way: move it aside, or choose another place with --store.",
    errno.ENOENT: "The folder has gone: was the run's directory moved or deleted?",
    errno.EFBIG: "Files may not grow so large there (ulimit -f, or FAT): choose another place with --store.",
    errno.ENOMEM: "Memory is short: see ulimit -v, and what the container or the job allows.",
    errno.EIO: "The disk reports errors: see dmesg, and choose another place with --store.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
    **{number: f"{advice}, or choose another place with --store." for number, advice in _REACH_ADVICE.items()},
}
_READ_ADVICE = {
    errno.EACCES: "Make it yours (chown, chmod).",
    errno.EPERM: "Make it yours (chown, chmod).",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
    **{number: f"{advice}." for number, advice in _REACH_ADVICE.items()},
}
_OTHER_ADVICE = "Choose another place with --store."


class StoreUnwritable(KsuperviseError):
    """Nothing can be written to the store; what was published before is unharmed."""

    exit_code = EXIT_NOT_EXECUTABLE
    slug = "store-unwritable"


class StoreFull(StoreUnwritable):
    """The store's disk or quota is full; what was published before is unharmed."""

    slug = "store-full"


class StoreUnreadable(KsuperviseError):
    """The store cannot be read at the moment; this says nothing about the checkpoints in it."""

    exit_code = EXIT_NOT_EXECUTABLE
    slug = "store-unreadable"


class DamagedCheckpoint(KsuperviseError):
    """A checkpoint is not what its manifest says, or has no manifest that parses.

    Attributes:
        path: the file or directory that is wrong.
        reason: what is wrong with it, without the path.
    """

    exit_code = EXIT_GAVE_UP
    slug = "damaged-checkpoint"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}. It is never loaded; an older checkpoint is used.")
        self.path = path
        self.reason = reason

    def reason_in(self, checkpoint: str) -> str:
        """The reason, with the file's name if it is not the whole of `checkpoint` that is wrong."""
        return self.reason if self.path == checkpoint else f"{os.path.basename(self.path)}: {self.reason}"


class NewerFormat(KsuperviseError):
    """A newer ksupervise wrote this checkpoint. It is not damaged, so it must not be set aside."""

    exit_code = EXIT_USAGE
    slug = "newer-format"


def write_fault(error: OSError, path: str) -> StoreUnwritable:
    """The error to raise when writing at `path` failed with `error`."""
    kind = StoreFull if error.errno in _FULL else StoreUnwritable
    return kind(f"Cannot write {path}: {_words(error)}. {_WRITE_ADVICE.get(error.errno or 0, _OTHER_ADVICE)}")


def read_fault(error: OSError, path: str) -> DamagedCheckpoint | StoreUnreadable:
    """The error to raise when reading `path` failed with `error`: is it lost, or only out of reach?"""
    if error.errno in _LOST:
        return DamagedCheckpoint(path, _words(error))
    advice = _READ_ADVICE.get(error.errno or 0, "Try again when it can be read.")
    return StoreUnreadable(f"Cannot read {path}: {_words(error)}. It may be whole: nothing was changed. {advice}")


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
