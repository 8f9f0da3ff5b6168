"""The trainer: one process of the child's group that claimed the run, and its fits.

`Session` lives from the first fit to the process' end; `Fit` is one call of `model.fit`. What they
do at which moment is the whole of the child's part:

- fit begins: claim the run, ask the parent where to go on, put the state back;
- each batch: write the beat; stage when it is time, or when the parent asks;
- epoch ends: stage; fit ends: stage the final state and wait until it is durable;
- asked to leave: stage, wait for the parent's word, flush, `os._exit`. No user code runs any more;
- the parent dies: stage, commit it ourselves, leave.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ksupervise import wire
from ksupervise.child import attach, callbacks, codec, position, randomness, state
from ksupervise.child.link import Link
from ksupervise.child.stager import Stager
from ksupervise.wire import Control, Slot

EXIT_DRAINED = 75
EXIT_REFUSED = 2
_FLOOR = 2.0  # seconds between two mid-epoch stages, unless --every asks for more
_RESTORE_WAIT = 3600.0  # seconds that the parent may take to read a checkpoint
_FINAL_WAIT = 600.0  # seconds that a completed fit waits for its final state to be durable
_LEAVE_MARGIN = 2.0  # seconds before the deadline at which a long validation is left

_session: Session | None = None


def guarded(work: Callable[..., None], *arguments: Any) -> None:
    """Do our work; if it fails, training goes on without us, and the parent hears why."""
    try:
        work(*arguments)
    except Exception as error:
        if _session is not None:
            _session.fail(error)


def restoring(work: Callable[..., None], *arguments: Any) -> None:
    """Put state back; if that fails, leave: to train on from a state half put back would be worse than to stop."""
    try:
        work(*arguments)
    except Exception as error:
        if _session is not None:
            _session.refuse(f"the checkpoint could not be put back: {_described(error)}")


def _described(error: Exception) -> str:
    """The error, and the lines of ours that it came through."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames if "ksupervise" in f.filename]
    return f"{error!r} at {' < '.join(reversed(ours))}"


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

    backend = keras.backend.backend()
    if backend != "tensorflow":
        return Session(None, f"Keras runs on {backend}; only its TensorFlow backend is checkpointed in this version")
    claim = {"op": "claim", "pid": os.getpid(), "keras": keras.__version__, "backend": backend}
    try:
        link = Link(os.environ[wire.ENV_ADDRESS], claim)
    except OSError:
        # Nothing may outlive its run: another parent may be about to train it.
        print("ksupervise: the parent of this run is gone; leaving", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_DRAINED)
    if not link.grant.get("granted"):
        link.close()
        return Session(None)
    return Session(link)


class Session:
    """This process as the trainer; without a link it is inert."""

    def __init__(self, link: Link | None, why: str = "") -> None:
        """`why`: what to tell the user about a session that has no link."""
        self.pid = os.getpid()
        self.active = link is not None
        self.fit: Fit | None = None
        self.step = 0  # run-wide steps that are complete, also by trainers before this one
        if link is None:
            if why:
                attach.tell(json.dumps({"op": "note", "text": why}))
            return
        self.link = link
        # The lock is held just by being open. So are the read ends of our own stdout and stderr: the script's
        # next print must not fail, and end it before it is saved, because the parent is gone.
        control, one, other, _lock, *self._outputs = link.fds
        self.control = Control(control)
        self.step = self.control.integer("step")
        slots = [Slot(one), Slot(other)]
        self.stager = Stager(link, slots, int(link.grant["next_seq"]), int(link.grant["attempt"]))
        self.told: set[str] = set()
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
        epochs = int((callback_list.params or {}).get("epochs") or 1)
        answer = self.link.ask({"op": "fit", "epochs": epochs}, "restore", _RESTORE_WAIT)
        if self.link.orphaned:
            self._leave_orphaned()
        if answer is None:
            raise TimeoutError("the parent did not say where the fit begins")
        if answer["mode"] == "refused":
            self.leave(EXIT_REFUSED)
        self.fit = Fit(self, callback_list, caller, int(answer["fit"]), epochs, answer)
        return self.fit

    def note(self, text: str) -> None:
        """Tell the user something, once, through the parent."""
        if text not in self.told:
            self.told.add(text)
            self.link.send({"op": "note", "text": text})

    def fail(self, error: Exception) -> None:
        """Something of ours went wrong: tell it and look after this training no longer."""
        if self.active:
            self.note(f"ksupervise failed inside the script, training goes on: {_described(error)}")

    def refuse(self, why: str) -> None:
        """The checkpoint does not fit: say why and leave, before anything is trained or overwritten."""
        self.link.send({"op": "refused", "why": why})
        self.leave(EXIT_REFUSED)

    def leave_drained(self, reason: str, seconds: float) -> None:
        """Leave on purpose, once the newest stage is durable or `seconds` are over."""
        seq = self.stager.newest_seq
        self.link.ask({"op": "leave", "reason": reason, "seq": seq}, "go", max(0.5, seconds))
        if self.link.orphaned:
            self._leave_orphaned()
        self.leave(EXIT_DRAINED)

    def leave(self, code: int) -> None:
        """Flush what the script wrote and be gone. Not one line of the script runs any more."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        os._exit(code)

    def _orphaned(self) -> None:
        """On the reading thread: the parent is gone. Inside a fit the next batch saves and leaves."""
        for fd in self._outputs:
            _thread.start_new_thread(_drain, (fd,))
        grace = float(self.link.grant.get("grace", 30.0))
        fit = self.fit
        if fit is not None and fit.open:
            time.sleep(grace)
        self._leave_orphaned()

    def _leave_orphaned(self) -> None:
        try:
            self._commit_newest()
        finally:
            self.leave(EXIT_DRAINED)

    def _commit_newest(self) -> None:
        """The parent's work, with the parent's code; the lock that we hold a copy of keeps others out."""
        newest = self.stager.newest()
        if newest is None or self.link.is_committed(self.stager.newest_seq):
            return
        from ksupervise.store import CheckpointStore, Position

        slot, about = newest
        grant = self.link.grant
        with slot.view() as view:
            files = {name: [view[offset : offset + size]] for name, (offset, size) in about["files"].items()}
            CheckpointStore(grant["run_dir"], grant["run"]).commit(
                Position(**about["position"]),
                files,
                seq=about["seq"],
                attempt=about["attempt"],
                holder=f"{grant['holder']}/{self.pid}",
                origin=about["origin"],
                extra=about["extra"],
            )


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


class Fit:
    """One call of `model.fit`.

    Attributes:
        open: it began and did not end.
        complete: it was complete before this attempt; it only gets its final state back.
    """

    def __init__(
        self,
        session: Session,
        callback_list: Any,
        caller: FrameType,
        ordinal: int,
        epochs: int,
        answer: dict[str, Any],
    ) -> None:
        self._session = session
        self._list = callback_list
        self._model = callback_list.model
        self._ordinal = ordinal
        self._epochs = epochs
        self._answer = answer
        self._iterator = caller.f_locals.get("epoch_iterator")
        self._position = position.Position(self._iterator) if self._iterator is not None else None
        self._roster = callbacks.Roster(list(callback_list.callbacks))
        self._stride = self._position.steps_per_execution if self._position else 1
        self._loaded: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._last_logs: Any = None
        self._epoch = 0
        self._batches = 0  # of the epoch in hand, begun
        self._epoch_step = session.step  # run-wide step at which the epoch in hand began
        self._due = 0.0
        self._validation = position.Validation()
        self._validation_began = 0.0
        self._validation_seconds = 0.0
        self._handler: Any = None
        self._signalled = False
        self._staged_step = -1  # run-wide step of the newest state that would be gone back to
        self.open = False
        self.complete = answer["mode"] == "skip"

    # Beginning

    def prepare(self) -> None:
        """Before the script's own on_train_begin: read the state, let log files go on where they were."""
        if self._answer["mode"] == "resume":
            self._loaded = self._session.stager.read(int(self._answer["slot"]))
            self._roster.prepare(self._loaded[1]["callbacks"])

    def begin(self) -> None:
        """After the script's own on_train_begin: put the state back, start to watch."""
        self.open = True
        self._roster.begin()
        session, control = self._session, self._session.control
        if self._loaded is not None:
            self._resume(*self._loaded)
        self._staged_step = session.step
        control["fit"] = self._ordinal
        control["epochs"] = self._epochs
        control["phase"] = wire.PHASE_TRAIN
        control["epoch"] = self._epoch
        control["step"] = session.step
        if not control.integer("executed"):
            control["first_step"] = session.step
        self._listen_to_sigterm()
        self._plan_next()

    def _resume(self, arrays: dict[str, Any], saved: dict[str, Any]) -> None:
        at = saved["position"]
        self._put_back_everything(arrays, saved)
        self._epoch = int(at["epoch"])
        session = self._session
        session.stager.hold(int(self._answer["slot"]))
        session.step = int(at["step"])
        self._epoch_step = session.step - int(at["batch"])
        guarantee = "exact to the epoch (the position in the data is not known)"
        if self._position is not None:
            data = codec.decode(saved["data"], arrays)
            guarantee = self._position.resume(data, self._at_position)
        self._validation.resume(int(saved["validations"]))
        ended = saved["stopped"] or self._epoch >= self._epochs
        if ended:
            self._last_logs = codec.decode(saved["logs"], arrays)
        # An empty loop if the fit had only its end before it.
        self._model._initial_epoch = self._epochs if ended else self._epoch
        self._model.stop_training = bool(saved["stopped"])
        self._tell_restored(saved, guarantee)
        if not at["batch"]:
            self._loaded = None

    def _put_back_everything(self, arrays: dict[str, Any], saved: dict[str, Any]) -> None:
        """All or nothing: what does not fit the model ends the attempt before anything is changed."""
        state.build(self._model, self._iterator, saved["optimizers"])
        try:
            state.put_back(self._model, _variables_of(arrays))
        except state.Mismatch as mismatch:
            self._session.refuse(str(mismatch))  # never returns
        self._roster.put_back(saved["callbacks"], arrays)
        randomness.put_back(codec.decode(saved["randomness"], arrays))

    def _tell_restored(self, saved: dict[str, Any], guarantee: str) -> None:
        at = saved["position"]
        told = {**{name: at[name] for name in ("fit", "epoch", "batch", "step")}, "epochs": self._epochs}
        message = {"op": "restored", "mode": self._answer["mode"], "seq": self._answer["seq"], **told}
        self._session.link.send({**message, "guarantee": guarantee})

    def put_back(self) -> None:
        """A completed fit: its final state comes back, the script's callbacks are not called."""
        arrays, saved = self._session.stager.read(int(self._answer["slot"]))
        self._put_back_everything(arrays, saved)
        self._session.stager.hold(int(self._answer["slot"]))
        self._session.step = int(saved["position"]["step"])
        self._session.control["step"] = self._session.step
        self._model._initial_epoch = self._epochs
        self._model.stop_training = bool(saved["stopped"])
        self._tell_restored(saved, "exact")

    def after_complete(self) -> None:
        """The empty loop of a completed fit is over."""
        self._model._initial_epoch = None

    # On the way

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins; after a resume in its middle, its accumulators are put back here."""
        self._model._initial_epoch = None  # it is sticky: the next fit would begin there
        self._epoch = epoch
        self._batches = 0
        if self._position is not None:
            self._position.begin_epoch()
        self._session.control["epoch"] = epoch
        if self._loaded is not None:
            # Keras has just reset the metrics, and callbacks may have changed the learning rate once more.
            arrays, saved = self._loaded
            state.put_back(self._model, _variables_of(arrays))
            self._roster.put_back(saved["callbacks"], arrays)

    def _at_position(self) -> None:
        """The data stands where the checkpoint was made: now the generators may be put back."""
        if self._loaded is not None:
            arrays, saved = self._loaded
            if self._position is not None and not self._position._drawn_by_python:
                randomness.put_back(codec.decode(saved["randomness"], arrays))
            self._loaded = None

    def begin_batch(self, batch: int) -> None:
        """Batch number `batch` of the epoch begins: the state is that after `batch` batches."""
        control = self._session.control
        now = time.monotonic()
        if (
            now >= self._due
            or control.words[0]
            or self._signalled
            or self._session.link.orphaned
            or self._validation_comes(batch, now)
        ):
            guarded(self._attend, batch)
        count = self._stride
        control.words[19] = batch
        control.words[20] = self._epoch_step + batch + count
        control.words[21] += count
        control.times[32] = now
        self._batches = batch + count

    def _validation_comes(self, batch: int, now: float) -> bool:
        """The last batch before a validation that would let the stage grow older than it may."""
        if not self._validation_seconds or self._position is None:
            return False
        steps = self._position.steps
        is_last = steps is not None and batch + self._stride >= steps
        return is_last and now + self._validation_seconds >= self._due

    def _attend(self, batch: int) -> None:
        leaving = self._leaving()
        if self._wants_stage() or leaving or time.monotonic() >= self._due or self._validation_seconds:
            self._stage("batch", batch, "drain" if leaving else "interval", wait=self._time_left(leaving))
        if leaving:
            self._leave(leaving)

    def _wants_stage(self) -> bool:
        control = self._session.control
        if control.words[0] == Control.STAGE:
            control["drain"] = 0
            return True
        return False

    def _leaving(self) -> str:
        """Why we should leave, "" if we should not."""
        if self._session.link.orphaned:
            return "the parent is gone"
        if self._session.control.words[0] == Control.LEAVE:
            return "asked to leave"
        return "SIGTERM" if self._signalled else ""

    def _time_left(self, leaving: str) -> float:
        """Seconds that may be waited for a slot."""
        if not leaving:
            return 0.0
        deadline = self._session.control["deadline"]
        return max(1.0, deadline - time.monotonic()) if deadline else float(self._session.link.grant["grace"])

    def _leave(self, reason: str) -> None:
        if self._session.link.orphaned:
            self._session._leave_orphaned()
        self._session.leave_drained(reason, self._time_left(reason))

    def begin_validation(self) -> None:
        """A validation begins."""
        guarded(self._validation.begin, getattr(self._model, "_eval_epoch_iterator", None))
        self._validation_began = time.monotonic()
        self._session.control["phase"] = wire.PHASE_EVALUATE

    def begin_test_batch(self) -> None:
        """Never stage in a validation: it could not be resumed. The epoch's end is awaited if there is time."""
        self._session.control["beat"] = time.monotonic()
        if not (self._session.control.words[0] or self._signalled or self._session.link.orphaned):
            return
        guarded(self._attend_validation)

    def _attend_validation(self) -> None:
        leaving = self._leaving()
        if leaving and self._validation_seconds_left() > self._time_left(leaving) - _LEAVE_MARGIN:
            self._leave(leaving)

    def _validation_seconds_left(self) -> float:
        spent = time.monotonic() - self._validation_began
        return max(0.0, self._validation_seconds - spent) if self._validation_seconds else 0.0

    def end_validation(self) -> None:
        """A validation ended."""
        self._validation_seconds = time.monotonic() - self._validation_began
        self._session.control["phase"] = wire.PHASE_TRAIN

    def end_epoch(self, epoch: int, logs: Any) -> None:
        """An epoch is over and the script's callbacks have seen its end."""
        session = self._session
        self._count_partial_execution()
        session.step = self._epoch_step + self._batches
        self._epoch_step = session.step
        self._epoch = epoch + 1
        self._batches = 0
        session.control["epoch"] = self._epoch
        session.control["batch"] = 0
        session.control["step"] = session.step
        self._last_logs = dict(logs or {})
        last = self._epoch >= self._epochs or bool(self._model.stop_training)
        leaving = self._leaving()
        if last or leaving or self._wants_stage() or self._epoch_due():
            wait = _FINAL_WAIT if last else self._time_left(leaving)
            self._stage("epoch", 0, "drain" if leaving else "epoch", wait=wait)
        if leaving:
            self._leave(leaving)

    def _count_partial_execution(self) -> None:
        """With several steps an execution the epoch's last one may have been shorter than counted."""
        steps = self._position.steps if self._position is not None else None
        if steps is not None and self._batches > steps:
            self._session.control["executed"] = self._session.control.integer("executed") - (self._batches - steps)
            self._batches = steps

    def _epoch_due(self) -> bool:
        """An epoch's end is staged as often as the allowed overhead permits."""
        stager, control = self._session.stager, self._session.control
        pause = min(stager.cost / max(control["overhead"], 1e-6), control["interval"])
        return time.monotonic() - stager.at >= pause

    def last_logs(self, logs: Any) -> Any:
        """What on_train_end is to be told: after a resume behind the last epoch Keras does not know."""
        return self._last_logs if logs is None and self._last_logs is not None else logs

    def end(self, logs: Any) -> None:
        """The fit is over and the script's callbacks have seen its end: the final state must not be lost."""
        self._stop_listening()
        self._model._initial_epoch = None
        self._stage("final", 0, "final", wait=_FINAL_WAIT)
        self.open = False
        self._session.control["phase"] = wire.PHASE_OUTSIDE
        self._session.link.wait_free(self._session.stager.newest_seq, _FINAL_WAIT)
        if self._list.callbacks and self._list.callbacks[-1].__class__.__name__ == "KsuperviseCallback":
            self._list.callbacks.pop()
        if self._session.link.orphaned:
            self._session._leave_orphaned()

    # Staging

    def _stage(self, kind: str, batch: int, origin: str, *, wait: float) -> None:
        session = self._session
        if kind == "batch" and self._position is None:
            self._due = float("inf")  # a loop of somebody's own: only an epoch's end can be gone back to
            return
        if kind == "batch" and self._epoch_step + batch == self._staged_step:
            self._plan_next()  # nothing was trained since
            return
        if session.stager.busy and not wait:
            self._due = time.monotonic() + 0.1  # look again soon
            return
        phase = session.control.integer("phase")
        session.control["phase"] = wire.PHASE_STAGE
        try:
            arrays, saved, about = self._capture(kind, batch, origin)
            if session.stager.stage(arrays, saved, about, wait) is not None:
                self._staged_step = about["position"]["step"]
        finally:
            session.control["phase"] = phase
            self._plan_next()

    def _capture(self, kind: str, batch: int, origin: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Arrays and plain state as of now, and what the manifest says of them."""
        model = self._model
        arrays = {named.name: state.read(named.variable) for named in state.variables(model)}
        at = {
            "fit": self._ordinal,
            "epoch": self._epoch,
            "batch": batch,
            "step": self._epoch_step + batch,
            "kind": kind,
        }
        extras: dict[str, Any] = {}
        saved = {
            "format": 1,
            "position": at,
            "stopped": bool(model.stop_training) and kind != "batch",
            "optimizers": state.recipe(model),
            "callbacks": self._roster.capture(extras),
            "randomness": codec.encode(randomness.capture(), extras, "extra/randomness"),
            "data": codec.encode(self._position.capture(batch, inside=kind == "batch"), extras, "extra/data")
            if self._position
            else None,
            "validations": self._validation.made,
            "logs": codec.encode(_plain_logs(self._last_logs), extras, "extra/logs"),
        }
        for skipped in sorted(self._roster.skipped):
            self._session.note(f"not carried over a restart, it is no plain data: {skipped}")
        about = {
            "position": at,
            "origin": origin,
            "extra": {"epochs": self._epochs, "stopped": saved["stopped"]},
        }
        return {**arrays, **extras}, saved, about

    def _plan_next(self) -> None:
        """When the next mid-epoch stage is due: as seldom as its cost demands, as often as --every asks."""
        stager, control = self._session.stager, self._session.control
        every = control["interval"]
        pause = max(stager.cost / max(control["overhead"], 1e-6), _FLOOR)
        self._due = time.monotonic() + min(pause, every)

    # SIGTERM to the child itself

    def _listen_to_sigterm(self) -> None:
        """Slurm and systemd may signal parent and child at once: note it, the next batch saves and leaves."""
        try:
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._handler = self._on_sigterm
                signal.signal(signal.SIGTERM, self._handler)
        except ValueError:
            self._handler = None  # not the main thread

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def _stop_listening(self) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGTERM) == self._handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._handler = None


def _variables_of(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if not name.startswith("extra/")}


def _plain_logs(logs: Any) -> dict[str, Any]:
    plain = {}
    for name, value in (logs or {}).items():
        try:
            plain[name] = float(value)
        except (TypeError, ValueError):
            continue
    return plain
