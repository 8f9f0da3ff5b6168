"""What a death is called: from real messages, and from those that only look like them."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from ksupervise.core import causes
from ksupervise.core.actions import Cause
from ksupervise.core.causes import Named, is_in_the_way, is_transient, words
from ksupervise.core.events import Evidence, Failure

from .world import exited, failure, killed

TF = "{{function_node __wrapped__Op_device_/job:localhost/replica:0/task:0/device:%s:0}} %s [Op:Op] name: "


def named(evidence: Evidence, left: str = "", stalled: str = "") -> Named:
    """The cause, with nothing else known."""
    return causes.name(evidence, left, stalled)


def of(raised: Failure) -> Named:
    """The cause of a script that this exception ended, at some step."""
    return named(exited(1, failure=raised, stepped=True, step=5))


def tf(name: str, message: str, device: str = "CPU") -> Failure:
    """An error of TensorFlow's, with what it puts around the message."""
    return Failure(name, frozenset({"OpError", "Exception", "BaseException"}), TF % (device, message), "train.py:9")


def python(number: int) -> Failure:
    """An error of the system's as Python raises it."""
    error = OSError(number, os.strerror(number), "some/file")
    return failure(type(error).__name__, str(error), errno=number)


# Memory -------------------------------------------------------------------------------------------

SHAPE = "OOM when allocating tensor with shape[64,1024,1024] and type float on /job:localhost/replica:0/task:0/device:"
ON_DEVICE = [
    tf("ResourceExhaustedError", f"{SHAPE}GPU:0 by allocator GPU_0_bfc", "GPU"),
    failure(
        "OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15 GiB"
    ),
    failure("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.78 GiB total capacity)"),
    failure("InternalError", "failed to allocate 2.5G (2684354560 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY"),
    tf(
        "InternalError",
        "Failed copying input tensor from /job:localhost/replica:0/task:0/device:CPU:0 to /job:localhost/replica:0/"
        "task:0/device:GPU:0 in order to run _EagerConst: Dst tensor is not initialized.",
    ),
    failure("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED on CUDA device 0"),
    failure("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    failure("XlaRuntimeError", "RESOURCE_EXHAUSTED: Attempting to reserve 9.2G at the bottom of memory. TPU HBM: 8.0G"),
]
ON_HOST = [
    failure("OutOfMemoryError", "Allocation on device 0 failed"),
    tf("ResourceExhaustedError", f"{SHAPE}CPU:0 by allocator mklcpu"),
    failure("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."),
    failure("MemoryError"),
    Failure("_ArrayMemoryError", frozenset({"MemoryError", "Exception"}), "Unable to allocate 1.46 TiB for an array"),
    python(errno.ENOMEM),
    failure("RuntimeError", "DefaultCPUAllocator: out of memory: you tried to allocate 4000000000000 bytes."),
    Failure("ResourceExhaustedError", message="Graph execution error:\n\nDetected at node model/dense/MatMul …"),
]


@pytest.mark.parametrize("raised", ON_DEVICE)
def test_memory_of_the_device(raised: Failure) -> None:
    found = of(raised)
    assert found.cause is Cause.OUT_OF_MEMORY
    assert found.detail.startswith("out of memory on the device: ")
    assert "mixed precision" in found.advice
    assert found.sign == "memory", "at the same step it would happen again"
    assert is_transient(raised)


@pytest.mark.parametrize("raised", ON_HOST)
def test_memory_of_the_machine(raised: Failure) -> None:
    found = of(raised)
    assert found.cause is Cause.OUT_OF_MEMORY
    assert found.detail.startswith("out of memory: ")
    assert "data workers" in found.advice
    assert found.sign == "memory"
    assert is_transient(raised)


@pytest.mark.parametrize(
    "raised",
    [
        failure("ValueError", "unsupported memory layout: NHWC"),
        failure("ValueError", "index 7 is out of memory-mapped range"),
        failure("RuntimeError", "the room is out of memorysticks"),
        failure("TypeError", "memory must be a MemoryView"),
        failure("RuntimeError", "bad allocation of GPU time"),
        tf("ResourceExhaustedError", "train.tfrecord; Too many open files"),
        tf("ResourceExhaustedError", "Received message larger than max (4194310 vs. 4194304)"),
        failure("ResourceExhausted", "429 RESOURCE_EXHAUSTED: Quota exceeded for requests per minute"),
    ],
)
def test_what_is_not_memory(raised: Failure) -> None:
    assert of(raised).cause is Cause.EXCEPTION


@pytest.mark.parametrize(
    ("evidence", "cause", "detail"),
    [
        (killed(9, oom="so says the kernel"), Cause.OUT_OF_MEMORY, "out of memory: so says the kernel"),
        (exited(137, oom="so says the kernel"), Cause.OUT_OF_MEMORY, "out of memory: so says the kernel"),
        (
            killed(
                6, tail="terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc"
            ),
            Cause.OUT_OF_MEMORY,
            "out of memory: an allocation failed (killed by SIGABRT)",
        ),
        (
            exited(134, tail="F tensorflow/core/… Check failed: Failed to allocate memory"),
            Cause.OUT_OF_MEMORY,
            "out of memory: an allocation failed (killed by SIGABRT (exit code 134))",
        ),
        (killed(6, tail="mmap: Cannot allocate memory"), Cause.OUT_OF_MEMORY, "out of memory: an allocation failed"),
        (killed(9, tail="std::bad_alloc"), Cause.SIGNAL, "killed by SIGKILL"),
        (killed(11, tail="std::bad_alloc"), Cause.NATIVE_CRASH, "native crash, killed by SIGSEGV"),
        (killed(11, oom="so says the kernel"), Cause.NATIVE_CRASH, "native crash, killed by SIGSEGV"),
        (killed(6, tail="assertion failed"), Cause.NATIVE_CRASH, "native crash, killed by SIGABRT"),
    ],
)
def test_memory_that_only_the_machine_or_the_output_tells_of(evidence: Evidence, cause: Cause, detail: str) -> None:
    found = named(evidence)
    assert found.cause is cause
    assert found.detail.startswith(detail)
    assert bool(found.advice) == (cause is Cause.OUT_OF_MEMORY)


# The disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised",
    [
        python(errno.ENOSPC),
        python(errno.EDQUOT),
        failure("OSError", errno=errno.ENOSPC),
        failure("OSError", errno=errno.EDQUOT),
        tf("ResourceExhaustedError", "logs/events.out; No space left on device"),
        tf("ResourceExhaustedError", "logs/events.out; Disk quota exceeded"),
        failure(
            "OSError", "Can't write data (file write failed: errno = 28, error message = 'No space left on device')"
        ),
    ],
)
def test_the_disk_is_full(raised: Failure) -> None:
    found = of(raised)
    assert found.cause is Cause.DISK_FULL
    assert found.detail.startswith("the script found the disk full: ")
    assert "make room" in found.advice
    assert found.sign == ""
    assert is_transient(raised)


# Not a number -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised",
    [
        tf("InvalidArgumentError", "loss : Tensor had NaN values"),
        tf("InvalidArgumentError", "loss : Tensor had Inf values"),
        tf("InvalidArgumentError", "loss : Tensor had -Inf and NaN values"),
        tf("InvalidArgumentError", "loss : Tensor had +Inf values"),
        tf("InvalidArgumentError", '!!! Detected Infinity or NaN in output 0 of eagerly-executing op "Log" !!!'),
        failure("FloatingPointError", "overflow encountered in exp"),
        failure("RuntimeError", "got a nan loss at batch 3"),
        failure("ValueError", "Invalid loss: nan"),
    ],
)
def test_not_a_number(raised: Failure) -> None:
    found = of(raised)
    assert found.cause is Cause.NAN
    assert "learning rate" in found.advice
    assert found.sign == f"{raised.name} {raised.where}", "it is no accident"


@pytest.mark.parametrize(
    "raised",
    [
        failure("KeyError", "'inf'"),
        failure("KeyError", "'nan'"),
        failure("ValueError", "infinite loop in nanny"),
        failure("ValueError", "information values are missing"),
        failure("ValueError", "cannot convert float NaN to integer"),
        tf("InvalidArgumentError", "Incompatible shapes: [2,3] vs. [3,2]"),
    ],
)
def test_what_is_a_number_or_another_matter(raised: Failure) -> None:
    assert of(raised).cause is Cause.EXCEPTION


# The surroundings ---------------------------------------------------------------------------------

PASSING = (
    errno.ENOTCONN,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ETIMEDOUT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
)


@pytest.mark.parametrize(
    "raised",
    [
        failure("ConnectionRefusedError", "[Errno 111] Connection refused"),
        Failure("HTTPError", frozenset({"URLError", "OSError", "Exception"}), "HTTP Error 503: Service Unavailable"),
        Failure("URLError", frozenset({"OSError"}), "<urlopen error [Errno -3] Temporary failure in name resolution>"),
        Failure("RemoteDisconnected", frozenset({"ConnectionResetError", "ConnectionError"}), "Remote end closed"),
        Failure("ReadTimeout", frozenset({"RequestException", "OSError"}), "read timed out"),
        Failure("gaierror", frozenset({"OSError"}), "[Errno -2] Name or service not known", errno=-2),
        failure("Exception", "URL fetch failure on https://storage/mnist.npz: None -- [Errno 111] Connection refused"),
        tf("UnavailableError", "failed to connect to all addresses"),
        tf("DeadlineExceededError", "Deadline Exceeded"),
        Failure("IncompleteRead", frozenset({"HTTPException", "Exception"}), "IncompleteRead(5 bytes read)"),
        Failure("SSLEOFError", frozenset({"SSLError", "OSError"}), "EOF occurred in violation of protocol"),
        python(errno.EIO),
        python(errno.ESTALE),
        *(failure("OSError", errno=number) for number in PASSING),
    ],
)
def test_trouble_of_the_surroundings(raised: Failure) -> None:
    assert is_transient(raised)
    found = of(raised)
    assert (found.cause, found.sign, found.advice) == (Cause.EXCEPTION, "", "")


@pytest.mark.parametrize(
    "raised",
    [
        failure("ValueError", "the connection matrix is singular"),
        failure("RuntimeError", "TimeoutError was expected"),
        python(errno.ENOENT),
        python(errno.EACCES),
        python(errno.EEXIST),
        tf("InvalidArgumentError", "Unavailable"),
    ],
)
def test_the_scripts_own_trouble(raised: Failure) -> None:
    assert not is_transient(raised)
    assert of(raised).sign == f"{raised.name} {raised.where}"


# What an earlier attempt left ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised",
    [
        failure("FileExistsError", "[Errno 17] File exists: 'logs'"),
        failure("FileExistsError"),
        python(errno.EEXIST),
        python(errno.ENOTEMPTY),
        failure("OSError", "[Errno 17] Unable to create file", errno=errno.EEXIST),
        failure("ValueError", "Unable to create dataset (name already exists)"),
        failure("RuntimeError", "Output directory runs/1 already exists and is not empty."),
        failure("ValueError", "Output directory () Is Not Empty"),
        tf("AlreadyExistsError", "file already exists"),
    ],
)
def test_something_in_the_way(raised: Failure) -> None:
    assert is_in_the_way(raised)


@pytest.mark.parametrize(
    "raised",
    [
        failure("ValueError", "give me an already existing file"),
        failure("ValueError", "the profile exists twice"),
        failure("KeyError", "already exists"),
        failure("FileNotFoundError", "not empty", errno=errno.ENOENT),
        tf("AlreadyExistsError", "Resource __per_step_0 of another step"),
    ],
)
def test_nothing_in_the_way(raised: Failure) -> None:
    assert not is_in_the_way(raised)


# Signals, as they are and as shells tell of them --------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_native_crashes(number: signal.Signals) -> None:
    crash = "train.py:9 in step; all stacks: stacks.txt"
    direct = named(killed(number, crash=crash))
    assert direct.cause is Cause.NATIVE_CRASH
    assert direct.detail == f"native crash, killed by {number.name}; Python stood at {crash}"
    passed_on = named(exited(128 + number, crash=crash))
    assert (passed_on.cause, passed_on.sign) == (direct.cause, direct.sign)
    assert passed_on.detail.startswith(f"native crash, killed by {number.name} (exit code {128 + number});")
    assert direct.sign == f"{int(number)} train.py:9 in step", "where the file lies is no part of it"
    assert named(killed(number)).detail == f"native crash, killed by {number.name}"


@pytest.mark.parametrize(
    ("evidence", "cause", "detail"),
    [
        (killed(15), Cause.PREEMPTED, "SIGTERM to the child from outside"),
        (exited(143), Cause.PREEMPTED, "SIGTERM to the child from outside (exit code 143)"),
        (killed(9), Cause.SIGNAL, "killed by SIGKILL"),
        (exited(137), Cause.SIGNAL, "killed by SIGKILL (exit code 137)"),
        (exited(137, orderly=True), Cause.EXITED, "exit code 137"),
        (exited(143, orderly=True), Cause.EXITED, "exit code 143"),
        (exited(130), Cause.EXITED, "exit code 130"),
        (exited(129), Cause.EXITED, "exit code 129"),
        (exited(128), Cause.EXITED, "exit code 128"),
        (exited(255), Cause.EXITED, "exit code 255"),
        (exited(9), Cause.EXITED, "exit code 9"),
        (killed(1), Cause.SIGNAL, "killed by SIGHUP"),
        (killed(99), Cause.SIGNAL, "killed by signal 99"),
        (exited(0), Cause.TRAINER_DIED, "the trainer died inside a fit, though the exit code is 0"),
        (exited(0, exception="ValueError"), Cause.TRAINER_DIED, "the trainer died"),
    ],
)
def test_how_the_process_ended(evidence: Evidence, cause: Cause, detail: str) -> None:
    found = named(evidence)
    assert found.cause is cause
    assert found.detail == detail or (cause is Cause.TRAINER_DIED and found.detail.startswith(detail))


@pytest.mark.parametrize(("stepped", "sign"), [(True, "exit 3"), (False, "")])
def test_a_bare_code_is_known_again_only_by_its_step(stepped: bool, sign: str) -> None:
    assert named(exited(3, stepped=stepped)).sign == sign


def test_what_we_did_ourselves_outweighs_how_it_ended() -> None:
    crash = killed(11, crash="train.py:9 in step")
    assert named(crash, left="drained", stalled="silent") == Named(Cause.PREEMPTED, "drained")
    assert named(crash, stalled="silent") == Named(Cause.STALLED, "silent")
    assert named(killed(15), stalled="silent").cause is Cause.PREEMPTED
    assert named(exited(1, exception="ValueError"), stalled="silent").cause is Cause.STALLED


# Words --------------------------------------------------------------------------------------------


def test_an_exception_in_one_line() -> None:
    assert words(failure("ValueError", "bad\n  shape\n")) == "ValueError: bad shape, at train.py:12 in load"
    assert words(failure("ValueError", "", where="")) == "ValueError"
    assert words(failure("ValueError", " \n", where="a.py:1")) == "ValueError, at a.py:1"
    long = words(failure("ValueError", "x" * 5000, where=""))
    assert long == "ValueError: " + "x" * 160
    assert of(failure("ValueError", "bad")).detail == "ValueError: bad, at train.py:12 in load (exit code 1)"


def test_tensorflows_way_to_an_error_is_left_out() -> None:
    """As `fit` raises it: one line of what happened after many of how it came there."""
    message = (
        "Graph execution error:\n\nDetected at node CheckNumerics defined at (most recent call last):\n"
        '  File "train.py", line 10, in <module>\n\n  File "train.py", line 4, in loss\n\n'
        "my loss : Tensor had NaN values\n\t [[{{node CheckNumerics}}]] [Op:__inference_f_8]"
    )
    assert (
        words(failure("InvalidArgumentError", message, "")) == "InvalidArgumentError: my loss : Tensor had NaN values"
    )
    worker = (
        "Graph execution error:\n\nDetected at node PyFunc defined at (most recent call last):\n"
        "  File \"train.py\", line 10, in <module>\n\nKeyError: 'colour'\nTraceback (most recent call last):\n\n"
        '  File "data.py", line 4, in load\n    return table["colour"]\n\nKeyError: \'colour\'\n\n'
        "\n\t [[{{node PyFunc}}]] [Op:__inference_f_8]"
    )
    assert words(failure("UnknownError", worker, "")) == "UnknownError: KeyError: 'colour'"
    unknown = "Detected at node CheckNumerics defined at <stack traces unavailable>\nTensor had NaN values"
    assert words(failure("E", unknown, "")) == "E: Detected at node CheckNumerics defined at <stack traces unavailable>"
    cut = 'Detected at node X defined at (most recent call last):\n  File "train.py", line 10, in <module>'
    assert words(failure("E", cut, "")).startswith("E: Detected at node X defined at")
