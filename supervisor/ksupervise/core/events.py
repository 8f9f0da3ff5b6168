"""What can happen to a run. Nouns; facts only. The parent posts them, `decide` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class StopKind(Enum):
    """Who asked the run to stop."""

    USER = "interrupted by the user (Ctrl-C)"
    COMMAND = "stopped by the user (ksupervise stop)"
    TERM = "SIGTERM"
    HANGUP = "SIGHUP"
    SCHEDULER = "SIGUSR1 or SIGUSR2 (the scheduler's warning)"
    DEADLINE = "the deadline"
    NOTICE = "a notice that this machine may go"

    @property
    def by_user(self) -> bool:
        """A user's stop is final (130); any other is a preemption (75)."""
        return self in (StopKind.USER, StopKind.COMMAND)


class Timer(Enum):
    """Timers that the loop keeps for `decide`; one of each at most."""

    STAGE = "stage"  # the stage before a Ctrl-C is passed on
    DRAIN = "drain"  # the grace period of a drain
    GRACE = "grace"  # between a signal and SIGKILL
    KILL = "kill"  # between SIGKILL and giving up on a child in D state
    SETTLE = "settle"  # the last commit, on a disk that may hang
    BACKOFF = "backoff"  # between two attempts


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Start(Event):
    """The parent owns the run and is ready."""


@dataclass(frozen=True)
class Spawned(Event):
    """The child runs."""


@dataclass(frozen=True)
class SpawnFailed(Event):
    """The command could not be executed."""

    exit_code: int
    reason: str


@dataclass(frozen=True)
class Claimed(Event):
    """A process of the child's group became the trainer."""


@dataclass(frozen=True)
class Released(Event):
    """The trainer's link ended."""


@dataclass(frozen=True)
class FitBegan(Event):
    """The trainer entered fit number `fit`."""

    fit: int


@dataclass(frozen=True)
class FitEnded(Event):
    """Fit number `fit` is complete; its final state is held."""

    fit: int


@dataclass(frozen=True)
class Staged(Event):
    """The child staged its state at `step`."""

    step: int


@dataclass(frozen=True)
class Refused(Event):
    """The child could not put the checkpoint back: it does not fit the script's model."""

    reason: str


@dataclass(frozen=True)
class Left(Event):
    """The trainer said that it leaves on purpose, its state held by the parent."""

    reason: str


@dataclass(frozen=True)
class ChildExited(Event):
    """The child is gone (its group may not be)."""


@dataclass(frozen=True)
class StopAsked(Event):
    """Somebody wants the run to stop. `grace` in seconds, None for the policy's. `detail`: who said so, and what."""

    kind: StopKind
    grace: float | None = None
    detail: str = ""

    @property
    def words(self) -> str:
        """For people."""
        return self.detail or self.kind.value


@dataclass(frozen=True)
class Advised(Event):
    """A warning without a deadline: save, and go on."""


@dataclass(frozen=True)
class Stalled(Event):
    """The child lives but does not get on. `detail`: what was seen."""

    detail: str


@dataclass(frozen=True)
class TimerFired(Event):
    """A timer that `decide` asked for ran out."""

    timer: Timer


@dataclass(frozen=True)
class Failure:
    """An uncaught Python exception, as the child told of it.

    Attributes:
        name: its type's.
        bases: names of all classes that it is an instance of.
        message: what it says, cut short.
        where: innermost line that is the user's own, "train.py:12 in load"; "" if there is none.
        errno: of an OSError, else 0.
    """

    name: str
    bases: frozenset[str] = frozenset()
    message: str = ""
    where: str = ""
    errno: int = 0


@dataclass(frozen=True)
class Evidence:
    """What is known of a death. Exactly one of `exit_code` and `signal` is set.

    Attributes:
        exit_code: the child's exit code, if it exited.
        signal: the signal's number, if it was killed.
        orderly: the trainer's interpreter (or, with no trainer, the script's) finished by itself.
        failure: the uncaught Python exception, None if none was seen.
        crash: where Python stood when native code crashed, with the file of all stacks; "" if none was written.
        oom: what the machine knows of its out-of-memory killer in this attempt, "" for nothing.
        tail: the last of the child's output.
        nan: TerminateOnNaN ended the training.
        hooked: our hook arrived in an interpreter of the child.
        keras: the child imported Keras.
        fit_open: a fit was begun and not completed.
        stepped: this attempt trained a step to its end; the first one is where a model is built and compiled.
        claimed: a call of fit was seen.
        lasted: seconds from its launch to its end.
        step: run-wide step reached.
        checkpoint_known: the store could be asked; if not, nobody knows whether there was progress.
        checkpoint_step: step of the newest valid checkpoint, None if there is none.
        checkpoint_seq: its number, 0 if there is none.
        resumed_seq: number of the checkpoint that the attempt went on from, 0 for none.
        older_seq: number of an older one that could be gone back to instead, 0 for none.
        at: wall time of the end, in seconds.
        survivors: processes of the group that even SIGKILL did not end.
    """

    exit_code: int | None = None
    signal: int | None = None
    orderly: bool = False
    failure: Failure | None = None
    crash: str = ""
    oom: str = ""
    tail: str = ""
    nan: bool = False
    hooked: bool = False
    keras: bool = False
    fit_open: bool = False
    stepped: bool = False
    claimed: bool = False
    lasted: float = 0.0
    step: int = 0
    checkpoint_known: bool = True
    checkpoint_step: int | None = None
    checkpoint_seq: int = 0
    resumed_seq: int = 0
    older_seq: int = 0
    at: float = 0.0
    survivors: tuple[int, ...] = field(default=())


@dataclass(frozen=True)
class Settled(Event):
    """The group is swept, what was staged is committed, the evidence is in."""

    evidence: Evidence
