"""What the loop may be told to do. Verbs; values only. `decide` returns them, the parent performs them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ksupervise.core.events import Timer


class Cause(Enum):
    """Why an attempt ended."""

    COMPLETED = "completed"
    NAN_STOP = "ended by TerminateOnNaN"
    USER_ERROR = "error before the first step"
    NOT_RERUNNABLE = "the script cannot be run a second time"
    EXCEPTION = "exception"
    NAN = "not a number"
    OUT_OF_MEMORY = "out of memory"
    DISK_FULL = "the disk is full"
    NATIVE_CRASH = "native crash"
    EXITED = "exit"
    SIGNAL = "signal"
    TRAINER_DIED = "the trainer died"
    PREEMPTED = "preempted"
    DEADLINE = "the deadline"
    INTERRUPTED = "interrupted"
    STALLED = "stalled"
    REFUSED = "the checkpoint does not fit"
    CANNOT_RUN = "cannot run"
    STORE_HANGS = "the store does not answer"
    UNKILLABLE = "the child survives SIGKILL"
    LOST = "the machine was lost"
    PARENT_LOST = "the parent was lost"


class RunState(Enum):
    """State of a run as `status` shows it; all but RUNNING and LOST are verdicts."""

    RUNNING = "running"
    COMPLETED = "completed"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    GAVE_UP = "gave_up"
    LOST = "lost"  # derived when read: the record says running, the owner is dead


class Target(Enum):
    """Whom a signal goes to."""

    TRAINER = "trainer"  # the trainer, or the child where no trainer is known
    GROUP = "group"


@dataclass(frozen=True)
class Action:
    """Base of all actions."""


@dataclass(frozen=True)
class Launch(Action):
    """Start attempt number `attempt`."""

    attempt: int


@dataclass(frozen=True)
class RequestStage(Action):
    """Ask the trainer to stage at its next batch; then to go on, or to `hold` there until a signal comes."""

    hold: bool = False


@dataclass(frozen=True)
class RaiseDrain(Action):
    """Ask the trainer to stage and leave within `grace` seconds."""

    grace: float


@dataclass(frozen=True)
class Signal(Action):
    """Send the signal named `name` ("INT", "TERM", "KILL")."""

    name: str
    target: Target


@dataclass(frozen=True)
class SetTimer(Action):
    """(Re)start `timer`: it fires once, `seconds` from now."""

    timer: Timer
    seconds: float


@dataclass(frozen=True)
class ClearTimer(Action):
    """Forget `timer`."""

    timer: Timer


@dataclass(frozen=True)
class Settle(Action):
    """Sweep the group, commit what is staged, gather the evidence; answer with `Settled`."""


@dataclass(frozen=True)
class EndAttempt(Action):
    """Record why the attempt ended. `detail` is for people."""

    cause: Cause
    detail: str


@dataclass(frozen=True)
class Relaunch(Action):
    """Tell why, wait and launch again.

    `failures`: consecutive ones without progress (0: at once). `back_to`: number of the checkpoint to go on from
    instead of the newest, 0 for the newest.
    """

    failures: int
    back_to: int = 0


@dataclass(frozen=True)
class Finish(Action):
    """The verdict: final, one, decides the exit code. `silent`: the script has said all there is to say."""

    state: RunState
    exit_code: int
    detail: str
    silent: bool = False
