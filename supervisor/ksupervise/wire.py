"""What parent and child agree on: names in the environment, shared memory, messages. A leaf.

Three channels join the two processes:

- the *environment* tells an interpreter where its parent listens;
- the *control page* and the two *slots* are shared memory, written without a system call and read
  by the parent even after the child's death;
- the *link*, a stream socket, carries one JSON object a line: see `child/link.py` and `parent/trainer.py`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sys
from typing import Any, ClassVar

ENV_RUN = "KSUPERVISE_RUN"  # the run's name
ENV_ATTEMPT = "KSUPERVISE_ATTEMPT"  # number of the attempt, from 1
ENV_RUN_DIR = "KSUPERVISE_RUN_DIR"
ENV_ADDRESS = "KSUPERVISE_ADDRESS"  # where the parent listens; "@name" is Linux' abstract namespace
ENV_LOCK_FD = "KSUPERVISE_LOCK_FD"  # the inherited copy of the run's lock
ENV_BOOT = "KSUPERVISE_BOOT"  # the boot.zip that PYTHONPATH begins with
ENV_SEED = "KSUPERVISE_SEED"  # for Keras; only with --seed
ENV_STACKS = "KSUPERVISE_STACKS"  # the file that stacks are appended to, at a crash and when asked
ENV_PRELOAD = "KSUPERVISE_PRELOAD"  # only with --standby: "record", or the descriptor at which a warm child waits
ENV_PIN = "KSUPERVISE_PIN"  # the run's seed: what is drawn without one of the script's own comes from it

# How the files are called that TensorFlow makes for itself and removes at an orderly end.
AUTOGRAPH = "__autograph_generated_file"
PAGE = 4096
# The file with the model's and the optimizers' variables: apart, because of a fit that was completed long ago only the
# rest is kept.
VARIABLES = "state.safetensors"
MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes of one message; a longer one is not ours

# Phases of the child as its beat tells them.
PHASE_OUTSIDE, PHASE_TRAIN, PHASE_EVALUATE, PHASE_STAGE, PHASE_BETWEEN = range(5)
PHASE_NAMES = ("outside fit", "training", "validating", "staging", "between epochs")


def socket_address(text: str) -> str:
    """The address that `connect` takes for the printable `text` ("@name" is abstract)."""
    return "\0" + text[1:] if text.startswith("@") else text


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line. Raises ValueError for what JSON cannot hold."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Cuts a byte stream into messages; what is not a JSON object is dropped, never raised."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take `data` and return the messages that are now whole."""
        self._buffer += data
        if b"\n" not in data:
            if len(self._buffer) > MESSAGE_LIMIT:
                self._buffer = bytearray(b"?")  # no JSON begins so: what is still to come of the line is dropped too
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        return [message for message in map(_decode, lines) if message is not None]


def _decode(line: bytes | bytearray) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or brackets upon brackets
        return None
    return message if isinstance(message, dict) else None


class Control:
    """One page of numbers shared by parent and child; every field is 8 aligned bytes.

    The parent writes the fields below 16, the child those above. Points in time are seconds of
    CLOCK_MONOTONIC, which all processes of one boot share.
    """

    _WORDS: ClassVar = {
        "drain": 0,  # 0 go on · 1 stage at the next batch · 2 stage and leave · 3 stage and wait for a signal
        "stage_term": 7,  # what binds the interval: index into core/cadence.TERMS
        "commit_term": 8,
        "memory_used": 10,  # bytes, of the cgroup with the tightest limit; 0 if there is none
        "memory_limit": 11,
        "phase": 16,
        "fit": 17,  # ordinal of the fit, from 1
        "epoch": 18,
        "batch": 19,
        "step": 20,  # run-wide optimizer steps begun
        "executed": 21,  # optimizer steps begun in this attempt, repeated ones included
        "epochs": 22,  # epochs that the fit was asked for
        "first_step": 23,  # run-wide step at which this attempt began to train
        "staged_step": 24,  # run-wide step of the newest stage
        "slots": 25,  # that memory suffices for, plus 1; 0 while that is unknown
        "warm": 26,  # batches of this fit that are over, as far as it matters: the first one is compiled
        "trained": 27,  # 1 once a batch of this attempt was trained to its end
    }
    _TIMES: ClassVar = {
        "deadline": 1,
        "stage_every": 2,  # seconds between stages
        "commit_every": 3,
        "persist": 4,  # seconds that a commit is expected to take
        "slowdown": 5,  # share of that by which training is slower
        "stage_seconds": 9,  # for which a stage stops training, over the last few
        "mttf": 6,  # seconds expected between interruptions of the machine
        "beat": 32,
        "stage_cost": 33,  # seconds for which the newest stage stopped training
        "staged_at": 34,
        "phase_since": 35,
        "slowest_step": 36,  # seconds from one batch's begin to the next one's, once warm
        "slowest_test": 37,  # of a validation's batches
        "slowest_validation": 38,
        "slowest_between": 39,  # from an epoch's end to the next one's first batch
    }

    STAGE, LEAVE, HOLD = 1, 2, 3

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, PAGE, access=access)
        _keep_out_of_forks(self._map)
        # Views of machine words: one store each, so a reader never sees half a number.
        self.words = memoryview(self._map).cast("Q")
        self.times = memoryview(self._map).cast("d")

    def __getitem__(self, name: str) -> float:
        if name in self._WORDS:
            return int(self.words[self._WORDS[name]])
        return float(self.times[self._TIMES[name]])

    def __setitem__(self, name: str, value: float) -> None:
        if name in self._WORDS:
            self.words[self._WORDS[name]] = int(value)
        else:
            self.times[self._TIMES[name]] = value

    def integer(self, name: str) -> int:
        """The whole number in field `name`."""
        return int(self.words[self._WORDS[name]])

    def close(self) -> None:
        """Unmap the page; the descriptor stays the caller's."""
        self.words.release()
        self.times.release()
        self._map.close()


class Slot:
    """One staged state in a memfd: a header page, then files at page boundaries.

    The header is written in an order that makes a torn slot recognizable: `WRITING` before the
    first byte of the content, `COMPLETE` after the last. Content is whatever `files` names:
    ``{"state.safetensors": (offset, size), "rest.safetensors": (offset, size), "state.json": (offset, size)}``.

    While nobody is to change it, its mapping can be guarded: a dying process whose pointers run wild ends at it instead
    of scribbling on it. That takes 10 ms for 300 MB, where a digest to find it out afterwards takes 80 to 140.
    """

    WRITING, COMPLETE = 1, 2  # 0 is memory that was never written
    _MAGIC = 0x31544F4C53555053  # "SPUSLOT1"
    _WORDS = 4  # magic, status, seq, bytes of the description
    _DESCRIPTION = 64  # where the JSON description begins
    # The state grows a little with each epoch's History, and a new mapping costs a fault for every page (0.15 s for
    # 300 MB, where the copy into mapped pages takes 0.03). Pages that nobody touched take no memory.
    _HEADROOM = 1024 * 1024

    def __init__(self, fd: int, *, on_disk: bool = False) -> None:
        """`on_disk`: it is a file, where there is no memfd; its blocks are reserved before it is mapped."""
        self.fd = fd
        self.on_disk = on_disk
        self._map: mmap.mmap | None = None
        self.guarded = False

    @property
    def size(self) -> int:
        """Bytes that the memfd has now."""
        return os.fstat(self.fd).st_size

    @property
    def taken(self) -> int:
        """Bytes of memory that it takes now: of the pages that were touched."""
        return os.fstat(self.fd).st_blocks * 512

    def reserve(self, size: int) -> None:
        """Grow to at least `size` bytes. Raises OSError when memory does not suffice."""
        if size > self.size:
            self.close()
            size = -(-(size + self._HEADROOM) // PAGE) * PAGE
            if self.on_disk and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, size)  # a full disk is an error here, and SIGBUS later
            os.ftruncate(self.fd, size)

    def empty(self) -> None:
        """Give its memory back; what is still mapped reads as zeros."""
        with contextlib.suppress(OSError, AttributeError):  # Linux, and an address space that has room for the mapping
            if self.size:
                self.release()
                self.view().release()
                assert self._map is not None
                self._map.madvise(mmap.MADV_REMOVE)
        self.close()

    def view(self) -> memoryview:
        """All bytes of the slot, writable, mapped at first use."""
        if self._map is None or len(self._map) != self.size:
            self.close()
            self._map = mmap.mmap(self.fd, self.size)
            _keep_out_of_forks(self._map)
        return memoryview(self._map)

    def close(self) -> None:
        """Unmap; the descriptor stays the caller's. A view still held keeps its mapping alive."""
        if self._map is not None:
            with contextlib.suppress(BufferError):  # numpy still looks at it: unmapped when that array goes
                self._map.close()
            self._map, self.guarded = None, False

    def guard(self) -> None:
        """From now on whoever writes to this process' mapping of it is ended by SIGSEGV, until `release` or `begin`."""
        self.view().release()
        self.guarded = self._protect(mmap.PROT_READ)

    def release(self) -> None:
        """It may be written to."""
        if self.guarded:
            self.guarded = not self._protect(mmap.PROT_READ | mmap.PROT_WRITE)

    def _protect(self, protection: int) -> bool:
        """Whether it could be done. It needs ctypes, which some interpreters are built without."""
        assert self._map is not None
        try:
            import ctypes

            library = ctypes.CDLL(None)
            size = len(self._map)
            address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._map)))
            return int(library.mprotect(address, ctypes.c_size_t(size), protection)) == 0
        except (ImportError, AttributeError, OSError):
            return False

    def begin(self) -> None:
        """Mark the slot torn until `complete` is called."""
        self.release()
        self.reserve(PAGE)
        with self.view() as view:
            header = view[: 8 * self._WORDS].cast("Q")
            header[1] = self.WRITING
            header[0] = self._MAGIC

    def complete(self, seq: int, description: dict[str, Any]) -> None:
        """Publish the content as stage number `seq`. `description` must fit the header page."""
        text = json.dumps(description, separators=(",", ":")).encode()
        if len(text) > PAGE - self._DESCRIPTION:
            raise ValueError(f"the stage's description has {len(text)} bytes, more than a page holds")
        with self.view() as view:
            view[self._DESCRIPTION : self._DESCRIPTION + len(text)] = text
            header = view[: 8 * self._WORDS].cast("Q")
            header[2], header[3] = seq, len(text)
            header[1] = self.COMPLETE

    def void(self) -> None:
        """What it holds is not to be used."""
        os.pwrite(self.fd, self.WRITING.to_bytes(8, "little"), 8)

    def read_description(self) -> dict[str, Any] | None:
        """The description with its "seq" if the slot is complete, else None. Never maps the content."""
        head = os.pread(self.fd, PAGE, 0)
        if len(head) < PAGE:
            return None
        magic, status, seq, length = memoryview(head)[:32].cast("Q")
        if magic != self._MAGIC or status != self.COMPLETE or length > PAGE - self._DESCRIPTION:
            return None
        description = _decode(head[self._DESCRIPTION : self._DESCRIPTION + length])
        return None if description is None else {**description, "seq": seq}


def _keep_out_of_forks(mapping: mmap.mmap) -> None:
    """A forked data worker must neither hold a dead run's memory nor write to it."""
    if sys.platform == "linux":
        mapping.madvise(mmap.MADV_DONTFORK)
