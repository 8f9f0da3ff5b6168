"""The trainer: the one process of the child's group that claimed the run, from its first fit to its end.

It asks the parent where each fit begins, and it knows the ways out: drained, refused, orphaned. A process
that is asked to leave stages, waits for the parent's word, flushes, and is gone by `os._exit`: no user code
runs any more. When the parent dies it commits its newest stage itself.
"""

from __future__ import annotations

import _thread
import os
import sys
import time
import weakref
from types import FrameType
from typing import Any, NoReturn

from ksupervise import wire
from ksupervise.child import crash, fingerprint, logs, temporary
from ksupervise.child.fit import Fit
from ksupervise.child.link import Link
from ksupervise.child.stager import Stager
from ksupervise.wire import Control, Slot

EXIT_DRAINED = 75
EXIT_REFUSED = 2
_RESTORE_WAIT = 3600.0  # seconds that the parent may take to read a checkpoint

_session: Session | None = None


def begin_fit(callback_list: Any, caller: FrameType) -> Fit | None:
    """A fit begins. None if it is not ours to look after."""
    global _session
    try:
        if _session is None or (_session.pid != os.getpid()):
            _session = _claim()
        if _session is None or not _session.active:
            return None
        return _session.begin_fit(callback_list, caller)
    except Exception as error:
        if _session is not None:
            _session.fail(error)
        return None


def _claim() -> Session | None:
    import keras

    claim = {
        "op": "claim",
        "pid": os.getpid(),
        "attempt": int(os.environ.get(wire.ENV_ATTEMPT, "0")),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "stacks": crash.asked_by,
    }
    try:
        link = Link(os.environ[wire.ENV_ADDRESS], claim)
    except OSError:
        # Nothing may outlive its run: another parent may be about to train it.
        print("ksupervise: the parent of this run is gone; leaving", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_DRAINED)
    if link.grant.get("late"):
        os._exit(EXIT_DRAINED)  # the next attempt is under way: nothing may train beside it
    if not link.grant.get("granted"):
        link.close()
        return Session(None)
    return Session(link)


class Session:
    """This process as the trainer; without a link it is inert."""

    def __init__(self, link: Link | None) -> None:
        self.pid = os.getpid()
        self.active = link is not None
        self.fit: Fit | None = None
        self.step = 0  # run-wide steps that are complete, also by trainers before this one
        if link is None:
            return
        self.link = link
        # The lock is held just by being open. So are the read ends of our own stdout and stderr: the script's
        # next print must not fail, and end it before it is saved, because the parent is gone.
        control, one, other, _lock, *self._outputs = link.fds
        self.control = Control(control)
        self.step = self.control.integer("step")
        self.attempt = int(link.grant["attempt"])
        logs.earlier = [(int(pid), float(since), float(until)) for pid, since, until in link.grant["earlier"]]
        on_disk = bool(link.grant.get("slots_on_disk"))
        slots = [Slot(one, on_disk=on_disk), Slot(other, on_disk=on_disk)]
        self.told: set[str] = set()
        self._temporary: list[str] = []  # what was told of
        self._modules = 0  # how many there were then
        next_seq = int(link.grant["next_seq"])
        self.stager = Stager(
            link,
            slots,
            next_seq,
            self.attempt,
            write_through=self._commit,
            note=self.note,
            control=self.control,
            taken=link.grant.get("taken", (0, 0)),
        )
        self._models: list[tuple[weakref.ref[Any], int]] = []
        self.fingerprint = fingerprint.take()
        _survive_parent()
        os.register_at_fork(after_in_child=self._drop)
        link.listen(self._orphaned)

    def _drop(self) -> None:
        """A forked data worker holds nothing of the run."""
        self.active = False
        for fd in self.link.fds:
            try:
                os.close(fd)
            except OSError:
                pass
        self.link.close()

    def begin_fit(self, callback_list: Any, caller: FrameType) -> Fit | None:
        """Ask the parent where this fit begins."""
        if self.fit is not None and self.fit.open:
            self.fit.abandon()
        epochs = int((callback_list.params or {}).get("epochs") or 1)
        asked = time.monotonic()
        answer = self.link.ask({"op": "fit", "epochs": epochs}, "restore", _RESTORE_WAIT)
        if self.link.orphaned:
            self.leave_orphaned()
        if answer is None:
            raise TimeoutError("the parent did not say where the fit begins")
        if answer["mode"] == "refused":
            self.leave(EXIT_REFUSED)
        try:
            self.fit = Fit(self, callback_list, caller, int(answer["fit"]), epochs, answer, asked)
        except Exception as error:
            if answer["mode"] != "fresh":
                self.fail_to_restore(error)
            self.link.send({"op": "abandon"})
            raise
        return self.fit

    def ordinal_of(self, model: Any, fit: int) -> int:
        """The first fit of this model; the same in every attempt, which an identity of the object is not."""
        self._models = [(reference, first) for reference, first in self._models if reference() is not None]
        for reference, first in self._models:
            if reference() is model:
                return first
        self._models.append((weakref.ref(model), fit))
        return fit

    def note(self, text: str) -> None:
        """Tell the user something, once, through the parent."""
        if text not in self.told:
            self.told.add(text)
            self.link.send({"op": "note", "text": text})

    def tell_temporary(self) -> None:
        """Name the files that a kill would leave behind: the parent removes them then."""
        if len(sys.modules) == self._modules:
            return  # each is a module; to look through thousands at every epoch's end would be felt
        self._modules = len(sys.modules)
        found = temporary.files()
        if found != self._temporary:
            self._temporary = found
            self.link.send({"op": "temporary", "paths": found})

    def fail(self, error: Exception) -> None:
        """Something of ours went wrong: tell it and look after this training no longer."""
        if self.active:
            self.note(f"ksupervise failed inside the script, training goes on: {described(error)}")

    def fail_to_restore(self, error: Exception) -> NoReturn:
        """To train on from a state half put back would be worse than to stop."""
        self.refuse(f"the checkpoint could not be put back: {described(error)}")

    def refuse(self, why: str) -> NoReturn:
        """The checkpoint does not fit: say why and leave, before anything is trained or overwritten."""
        self.link.send({"op": "refused", "why": why})
        self.leave(EXIT_REFUSED)

    def leave_drained(self, reason: str, seconds: float) -> None:
        """Leave on purpose, once the newest stage is durable or `seconds` are over."""
        self.stager.settle(seconds)
        seq = self.stager.newest_seq
        self.link.ask({"op": "leave", "reason": reason, "seq": seq}, "go", max(0.5, seconds))
        if self.link.orphaned:
            self.leave_orphaned()
        self.leave(EXIT_DRAINED)

    def leave(self, code: int) -> NoReturn:
        """Flush what the script wrote and be gone. Not one line of the script runs any more."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        temporary.remove()
        os._exit(code)

    def _orphaned(self) -> None:
        """On the reading thread: the parent is gone. Inside a fit the next batch saves and leaves."""
        for fd in self._outputs:
            _thread.start_new_thread(_drain, (fd,))
        grace = float(self.link.grant.get("grace", 30.0))
        fit = self.fit
        if fit is not None and fit.open:
            time.sleep(grace)
        self.leave_orphaned()

    def leave_orphaned(self) -> None:
        """Commit what is staged and be gone: the parent cannot any more."""
        try:
            self._commit_newest()
        finally:
            self.leave(EXIT_DRAINED)

    def await_durable(self, seconds: float) -> None:
        """Wait until the newest state is durable, or cannot be."""
        self.stager.settle(seconds)
        seq = self.stager.newest_seq
        if seq and not self.stager.is_durable(seq):
            self.link.wait_free(seq, seconds)

    def _commit_newest(self) -> None:
        """The parent's work, with the parent's code; the lock that we hold a copy of keeps others out."""
        newest = self.stager.newest()
        if newest is None or self.stager.is_durable(self.stager.newest_seq):
            return
        from ksupervise.store import CheckpointStore, StoreFull, retention_from_json

        slot, about = newest
        with slot.view() as view:
            files = {name: [view[offset : offset + size]] for name, (offset, size) in about["files"].items()}
            try:
                self._commit(files, about, about["seq"])
            except StoreFull:  # as the parent would: older ones that are optional go
                grant, size = self.link.grant, sum(size for _, size in about["files"].values())
                store = CheckpointStore(grant["run_dir"], grant["run"])
                store.free(size + size // 10, retention_from_json(grant["retention"]), refused=True)
                self._commit(files, about, about["seq"])

    def _commit(self, files: dict[str, Any], about: dict[str, Any], seq: int) -> str:
        """Make a checkpoint, in this process. Returns its path. Raises StoreUnwritable."""
        from ksupervise.store import CheckpointStore, Position

        grant = self.link.grant
        made = CheckpointStore(grant["run_dir"], grant["run"]).commit(
            Position(**about["position"]),
            files,
            seq=seq,
            attempt=about["attempt"],
            holder=f"{grant['holder']}/{self.pid}",
            origin=about["origin"],
            extra=about["extra"],
        )
        return made.path


def _drain(fd: int) -> None:
    """Read, and drop, what the script prints while nobody else does: a full pipe would stop it."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass


def _survive_parent() -> None:
    """From now on the parent's death is noticed on the link: the state is saved before we leave."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG, none


def described(error: Exception) -> str:
    """The error, and the lines of ours that it came through."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames if "ksupervise" in f.filename]
    return f"{error!r} at {' < '.join(reversed(ours))}"
