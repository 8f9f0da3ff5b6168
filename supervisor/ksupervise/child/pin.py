"""What a script draws without having set a seed is the same at each attempt of its run.

Else an unseeded `train_test_split` would be made anew at each attempt, and samples that were trained on would be
validated with. When `random` or `numpy.random` is imported its global generator is seeded, and what numpy asks the
operating system for (`default_rng()`, `RandomState()`, `SeedSequence()`) comes from a generator of ours. A script that
seeds itself overrides all that and gets the numbers that it always gets.

The seed is the run's, with the interpreter's arguments and a count of those that had the same ones in this attempt:
two programs of the group never draw the same numbers unless they would without us.

Not pinned: `random.Random()` without a seed, `random.seed()`, `random.SystemRandom`, `secrets`, `os.urandom` and what
is made of them (uuids, names of temporary files); TensorFlow's own generators; workers of a pool, which are to differ.
A forked process is what it would be without us: python's generator seeded anew by the system, numpy's global one a
copy, `default_rng()` from the system.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

_STREAMS = "streams"  # in the attempt's directory: one record for each interpreter that draws
_RECORD = 8  # bytes
# Programs that begin so are a library's, started in numbers and with arguments that say nothing of who they are.
_WORKER_CODE = ("from multiprocessing.", "from joblib.", "from loky.")
_WORKER_MODULES = ("multiprocessing.", "joblib.", "loky.", "ray.", "distributed.", "ipyparallel.", "pyspark.")

_stream: bytes | None = None  # b"": this interpreter is not pinned
_source: random.Random | None = None  # what numpy takes for the system's entropy
_system: Any = None  # where numpy took it from


def pin(module: ModuleType, run_seed: str) -> None:
    """Pin `random` or `numpy.random.mtrand`, which has just been imported."""
    global _stream
    if _stream is None:
        _stream = _own_stream(run_seed)
    if not _stream:
        return
    if module.__name__ != "random":
        _pin_numpy(module, _stream)
    elif os.path.dirname(module.__file__ or "") == os.path.dirname(os.__file__):  # not a random.py of the script's
        module.seed(_stream)


def capture() -> Any:
    """Where the generator behind numpy's entropy stands; None where there is none."""
    return None if _source is None else _source.getstate()


def put_back(state: Any) -> None:
    """Set the generator behind numpy's entropy to a captured state."""
    if _source is not None and state is not None:
        _source.setstate(state)


def _pin_numpy(mtrand: ModuleType, stream: bytes) -> None:
    global _source, _system
    from random import Random

    source = Random(stream + b"numpy")  # noqa: S311 - it is to be foreseen
    mtrand.seed(source.getrandbits(32))
    entropy = sys.modules["numpy.random.bit_generator"]
    system = getattr(entropy, "randbits", None)
    if callable(system):  # numpy 1.17 to 2.5, at least
        _source, _system = source, system
        entropy.randbits = source.getrandbits  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    """A forked process: its brothers must not draw what it draws."""
    global _source
    _source = None
    try:
        sys.modules["numpy.random.bit_generator"].randbits = _system  # type: ignore[attr-defined]
    except Exception:
        pass


def _own_stream(run_seed: str) -> bytes:
    """What the interpreter's generators are seeded with, empty for none."""
    words = getattr(sys, "orig_argv", None)  # not before Python 3.10
    if words is None or _is_worker(words[1:]):
        return b""
    program = os.fsencode("\0".join(words[1:]))
    return os.fsencode(f"{run_seed}\0{_count(program)}\0") + program


def enter() -> int:
    """Count this interpreter as one that draws, and return how many there were before it.

    For one that was pinned before its attempt had a directory to be counted in.
    """
    return _count(os.fsencode("\0".join(sys.orig_argv[1:]))) if _stream else 0


def _is_worker(words: Sequence[str]) -> bool:
    if "--multiprocessing-fork" in words:
        return True
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-c":
            return following.startswith(_WORKER_CODE)
        if word == "-m":
            return following.startswith(_WORKER_MODULES)
        if not word.startswith("-"):
            return "/ray/_private/" in word
    return False


def _count(program: bytes) -> int:
    """How many interpreters ran `program` in this attempt before: each member of `for i in 1 2 3` is another one."""
    record = (int.from_bytes(program, "little") % (2**61 - 1)).to_bytes(_RECORD, "little")
    try:
        attempt = int(os.environ["KSUPERVISE_ATTEMPT"])
        path = os.path.join(os.environ["KSUPERVISE_RUN_DIR"], "attempts", f"{attempt:03d}", _STREAMS)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except (KeyError, ValueError, OSError):
        return 0
    try:
        os.write(fd, record)  # appended as a whole: two that come at once get different places
        before = os.pread(fd, max(os.lseek(fd, 0, os.SEEK_CUR) - _RECORD, 0), 0)
    except OSError:
        return 0
    finally:
        os.close(fd)
    return [before[at : at + _RECORD] for at in range(0, len(before), _RECORD)].count(record)
