"""What a death was: its cause, in words, and what tells whether the same happens again. Pure.

A cause is named by evidence, the strongest first: what we did ourselves, what the machine counted, what Python
raised, how the process ended. A number alone proves little: 137 is a SIGKILL by anybody, and a log line is not the
kernel's word.
"""

from __future__ import annotations

import errno
import re
import signal as signals
from dataclasses import dataclass

from ksupervise.core.actions import Cause
from ksupervise.core.events import Evidence, Failure

_MESSAGE = 160  # characters of an exception's message that are shown
_CRASHES = frozenset({signals.SIGSEGV, signals.SIGABRT, signals.SIGBUS, signals.SIGFPE, signals.SIGILL})
# What a shell or a launcher makes of its child's death by a signal: 128 + its number.
_PASSED_ON = _CRASHES | {signals.SIGKILL, signals.SIGTERM}

# Trouble of the surroundings: it may be over in a minute, and says nothing against the script.
_TRANSIENT = frozenset(
    {
        "ConnectionError",
        "TimeoutError",
        "URLError",
        "HTTPException",
        "RequestException",
        "gaierror",
        "SSLError",
        "UnavailableError",  # TensorFlow's
        "DeadlineExceededError",
    }
)
_TRANSIENT_ERRNO = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
    }
)
_TRANSIENT_WORDS = re.compile("URL fetch failure")  # Keras' get_file raises a plain Exception
_FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT})
_IN_THE_WAY_ERRNO = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_OUT_OF_MEMORY = frozenset({"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"})
_OUT_OF_MEMORY_WORDS = re.compile(
    r"RESOURCE_EXHAUSTED|OOM when allocating|CUDA_ERROR_OUT_OF_MEMORY|CU(DNN|BLAS)_STATUS_ALLOC_FAILED|"
    r"\bout of memory\b(?!-)|Dst tensor is not initialized",  # the last: TensorFlow's copy to a GPU that is full
    re.IGNORECASE,
)
# Other things that can be exhausted: TensorFlow and gRPC have one code for all of them.
_OTHER_RESOURCES = re.compile("Too many open files|Too many links|message larger than max|quota", re.IGNORECASE)
_FULL_WORDS = re.compile("No space left on device|Disk quota exceeded")
_DEVICE_WORDS = re.compile(r"(?<![a-z])(GPU|CUDA|CUDNN|CUBLAS|HBM|TPU)(?![a-z])", re.IGNORECASE)
_BAD_ALLOC = re.compile(r"std::bad_alloc|Failed to allocate memory|Cannot allocate memory")
_NAN_WORDS = re.compile(
    r"Tensor had (NaN|[-+]?Inf)|Detected Infinity or NaN|\b(nan|inf) (loss|values?)\b|invalid loss", re.IGNORECASE
)
_IN_THE_WAY = frozenset({"ValueError", "RuntimeError", "AlreadyExistsError"})  # the last one is TensorFlow's
_IN_THE_WAY_WORDS = re.compile(r"\b(already exists|File exists|not empty)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Named:
    """A cause with its reason.

    Attributes:
        detail: for people.
        sign: by which the same failure is known again (law: the same sign at the same step is no accident); "" if
            this one may pass by itself.
        advice: what the user can do, "" where nothing can be said.
    """

    cause: Cause
    detail: str
    sign: str = ""
    advice: str = ""


def name(evidence: Evidence, left: str, stalled: str) -> Named:
    """The cause of an attempt that failed. `left`, `stalled`: as in `policy.Circumstances`."""
    if left:
        return Named(Cause.PREEMPTED, left)
    number = _signal_of(evidence)
    if number == signals.SIGTERM:
        return Named(Cause.PREEMPTED, f"SIGTERM to the child from outside{_by_code(evidence)}")
    if stalled:
        return Named(Cause.STALLED, stalled)
    if number is not None:
        return _killed(evidence, number)
    if evidence.exit_code == 0:
        return Named(Cause.TRAINER_DIED, "the trainer died inside a fit, though the exit code is 0")
    if evidence.failure is not None:
        return _raised(evidence.failure, f"exit code {evidence.exit_code}")
    sign = f"exit {evidence.exit_code}" if evidence.stepped else ""
    return Named(Cause.EXITED, f"exit code {evidence.exit_code}", sign)


def is_transient(failure: Failure) -> bool:
    """Trouble of the surroundings, not of the script."""
    known = bool(_TRANSIENT & {failure.name, *failure.bases}) or failure.errno in _TRANSIENT_ERRNO
    return known or _is_full(failure) or _is_memory(failure) or bool(_TRANSIENT_WORDS.search(failure.message))


def is_in_the_way(failure: Failure) -> bool:
    """Something that an earlier attempt left behind."""
    if failure.errno in _IN_THE_WAY_ERRNO or failure.name == "FileExistsError":
        return True
    return failure.name in _IN_THE_WAY and bool(_IN_THE_WAY_WORDS.search(failure.message))


def words(failure: Failure) -> str:
    """The exception in one line: `ValueError: bad shape, at train.py:12 in load`."""
    text = " ".join(_essence(failure.message).split())
    said = f"{failure.name}: {text[:_MESSAGE]}" if text else failure.name
    return f"{said}, at {failure.where}" if failure.where else said


def _essence(message: str) -> str:
    """What happened, without the way there that TensorFlow puts before it ("Detected at node … File … line …")."""
    if "Detected at node" not in message:
        return message
    lines = message.splitlines()
    way = [number for number, line in enumerate(lines) if line.lstrip().startswith('File "')]
    rest = [line for line in lines[way[-1] + 1 if way else 0 :] if line.strip() and not line[0].isspace()]
    return rest[0] if rest else message


def _signal_of(evidence: Evidence) -> int | None:
    """The signal that killed the child, or the process that a shell in between tells of."""
    if evidence.signal is not None or evidence.orderly or (evidence.exit_code or 0) <= 128:
        return evidence.signal
    number = (evidence.exit_code or 0) - 128
    return number if number in _PASSED_ON else None


def _by_code(evidence: Evidence) -> str:
    return "" if evidence.signal is not None else f" (exit code {evidence.exit_code})"


def _killed(evidence: Evidence, number: int) -> Named:
    killed = f"killed by {_signal_name(number)}{_by_code(evidence)}"
    if number == signals.SIGKILL and evidence.oom:
        return Named(Cause.OUT_OF_MEMORY, f"out of memory: {evidence.oom}", _MEMORY, _HOST_ADVICE)
    if number == signals.SIGABRT and _BAD_ALLOC.search(evidence.tail):
        detail = f"out of memory: an allocation failed ({killed})"
        return Named(Cause.OUT_OF_MEMORY, detail, _MEMORY, _HOST_ADVICE)
    if number in _CRASHES:
        at = f"; Python stood at {evidence.crash}" if evidence.crash else ""
        return Named(Cause.NATIVE_CRASH, f"native crash, {killed}{at}", f"{number} {evidence.crash.split(';')[0]}")
    return Named(Cause.SIGNAL, killed)


def _raised(failure: Failure, code: str) -> Named:
    detail = f"{words(failure)} ({code})"
    if _is_full(failure):
        advice = "make room, or let the script write elsewhere"
        return Named(Cause.DISK_FULL, f"the script found the disk full: {detail}", "", advice)
    if _is_memory(failure):
        return _out_of_memory(failure, detail)
    sign = "" if is_transient(failure) else f"{failure.name} {failure.where}"
    if failure.name == "FloatingPointError" or _NAN_WORDS.search(failure.message):
        advice = "a smaller learning rate, gradient clipping, or a look at the data of that batch"
        return Named(Cause.NAN, detail, sign, advice)
    return Named(Cause.EXCEPTION, detail, sign)


def _out_of_memory(failure: Failure, detail: str) -> Named:
    if _DEVICE_WORDS.search(failure.message):
        return Named(Cause.OUT_OF_MEMORY, f"out of memory on the device: {detail}", _MEMORY, _DEVICE_ADVICE)
    return Named(Cause.OUT_OF_MEMORY, f"out of memory: {detail}", _MEMORY, _HOST_ADVICE)


_MEMORY = "memory"  # the sign of all that ends for lack of it
_HOST_ADVICE = "a smaller batch, less prefetching and fewer data workers, or a machine with more memory"
_DEVICE_ADVICE = "a smaller batch, mixed precision, gradient accumulation, or nothing else on that device"


def _is_full(failure: Failure) -> bool:
    return failure.errno in _FULL_ERRNO or bool(_FULL_WORDS.search(failure.message))


def _is_memory(failure: Failure) -> bool:
    if _OTHER_RESOURCES.search(failure.message):
        return False
    known = bool(_OUT_OF_MEMORY & {failure.name, *failure.bases}) or failure.errno == errno.ENOMEM
    return known or bool(_OUT_OF_MEMORY_WORDS.search(failure.message))


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
