"""Every error a user can meet, with the exit code it ends in. A leaf: the standard library only.

The message of an error says three things: what happened, to what, and what to do now.
The slug is stable: documentation and scripts may rely on it.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_DRAINED = 75  # EX_TEMPFAIL of sysexits.h: state is saved, run me again
EXIT_GAVE_UP = 125  # we retried and stopped: do not requeue
EXIT_NOT_EXECUTABLE = 126  # POSIX shell: found but cannot be executed
EXIT_NOT_FOUND = 127  # POSIX shell: command not found
EXIT_INTERRUPTED = 130  # 128 + SIGINT: the user stopped it


class KsuperviseError(Exception):
    """Base of all our errors.

    Attributes:
        exit_code: what the command line exits with when this error ends it.
        slug: a stable, greppable name of the kind of error.
    """

    exit_code: int = 1
    slug: str = "error"


class UsageError(KsuperviseError):
    """The command line, the environment or pyproject.toml asks for something impossible."""

    exit_code = EXIT_USAGE
    slug = "usage"


class CommandNotFound(KsuperviseError):
    """The command to supervise does not exist."""

    exit_code = EXIT_NOT_FOUND
    slug = "command-not-found"


class CommandNotExecutable(KsuperviseError):
    """The command to supervise exists but cannot be executed."""

    exit_code = EXIT_NOT_EXECUTABLE
    slug = "command-not-executable"


class RunBusy(KsuperviseError):
    """Another parent owns the run."""

    exit_code = EXIT_DRAINED
    slug = "run-busy"


class RunDamaged(KsuperviseError):
    """The run's own record (run.json) cannot be read or is another run's."""

    exit_code = EXIT_USAGE
    slug = "run-damaged"


class RunNotFound(KsuperviseError):
    """No run of that name is in the store."""

    exit_code = EXIT_USAGE
    slug = "run-not-found"
