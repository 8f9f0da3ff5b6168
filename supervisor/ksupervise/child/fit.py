"""One call of `model.fit`, and what we do at which of its moments.

- it begins: the state is put back where the parent says that it goes on;
- each batch: the beat is written; a stage is made when it is due, or when the parent asks;
- an epoch ends: a stage; the fit ends: the final state, and a wait until it is durable;
- asked to leave, or left by the parent: a stage at the next batch, and out (see `session.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from ksupervise import wire
from ksupervise.child import callbacks, codec, fingerprint, layers, randomness, state
from ksupervise.child.beat import Beat
from ksupervise.child.capture import FORMAT, Capture, Moment
from ksupervise.child.data import position
from ksupervise.child.sigterm import Sigterm
from ksupervise.wire import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ksupervise.child.session import Session

_FINAL_WAIT = 600.0  # seconds that a completed fit waits for its final state to be durable
_LEAVE_MARGIN = 2.0  # seconds before the deadline at which a long validation is left
_SAVE_MARGIN = 1.2  # a save is begun before a deadline if so many times what it takes is left
_HOLD = 10.0  # seconds that a signal, which was announced, is waited for
_SOON = 0.02  # seconds after which a slot that was not free is looked at again


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """A moment of ours: if it fails, training goes on without it, and the parent hears why."""

    @functools.wraps(method)
    def guarded(self: Fit, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            self.session.fail(error)

    return guarded


def _all_or_nothing(method: Callable[..., None]) -> Callable[..., None]:
    """A moment in which state is put back: if that fails we leave before anything is trained.

    Where there is nothing to put back it is as harmless as the others.
    """

    @functools.wraps(method)
    def guarded(self: Fit, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            if self._answer["mode"] == "fresh":
                self.session.fail(error)
            else:
                self.session.fail_to_restore(error)

    return guarded


class Fit:
    """One call of `model.fit`.

    Attributes:
        open: it began and did not end.
        complete: it was complete before this attempt; it only gets its final state back.
        listed_in: refers to the CallbackList, and tells when it is gone.
        of_unknown_length: nobody knows how many batches an epoch has before it is over.
    """

    def __init__(
        self,
        session: Session,
        callback_list: Any,
        caller: FrameType,
        ordinal: int,
        epochs: int,
        answer: dict[str, Any],
        asked: float,
    ) -> None:
        """`asked`: CLOCK_MONOTONIC second at which the parent was asked for the `answer`."""
        self.session = session
        self._model = callback_list.model
        self._ordinal = ordinal
        self._first_fit_of_model = session.ordinal_of(self._model, ordinal)
        self._epochs = epochs
        self._answer = answer
        self._asked = asked
        self._iterator = caller.f_locals.get("epoch_iterator")
        self._position = self._position_in(caller)
        self._inventory = state.Inventory(self._model)
        self._layers = layers.Layers(self._model)
        self._roster = callbacks.Roster(list(callback_list.callbacks))
        self._untraced = 2  # looks of ours until the step of this attempt has been traced
        self._stride = self._position.steps_per_execution if self._position else 1
        self._loaded: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._last_logs: Any = None
        self._set_initial_epoch = False
        self._epoch = 0
        self._batches = 0  # of the epoch in hand, begun
        self._ended = 0  # of those, if the data is of unknown length: the last one that begins is none
        self._batch_logs: Any = None
        self._epoch_step = session.step  # run-wide step at which the epoch in hand began
        self._since = time.monotonic()  # the next stage is due so long after it as the parent says
        self._validation_began = 0.0
        self._validation_seconds = 0.0
        self._sigterm = Sigterm(caller)
        self._beat = Beat(session.control)
        self._building = 0.0  # seconds of a restore that went into building the model and its optimizers
        self._staged_step = -1  # run-wide step of the newest state that would be gone back to
        self.listed_in: object = None
        self.open = False
        self.complete = answer["mode"] == "skip"
        self.of_unknown_length = self._position is not None and self._position.steps is None
        grant = session.link.grant
        self._monitor: dict[str, Any] = grant.get("monitor") or {}
        self._keep_every = int(grant.get("keep_every") or 0)
        self._capture = Capture(
            self._model,
            self._inventory,
            self._layers,
            self._roster,
            self._position,
            session.fingerprint,
            self._monitor.get("name"),
            {"epochs": epochs, "model": self._first_fit_of_model},
        )

    def _position_in(self, caller: FrameType) -> position.Position | None:
        """None where the source is not as we know it: then only an epoch's end can be gone back to."""
        if not position.is_known(self._iterator):
            return None
        given = caller.f_locals.get("validation_data")
        try:
            return position.Position(self._iterator, given[0] if isinstance(given, (tuple, list)) and given else given)
        except Exception as error:
            self.session.fail(error)
            return None

    # Beginning

    @_all_or_nothing
    def prepare(self) -> None:
        """Before the script's own on_train_begin: read the state, let log files go on where they were."""
        if self._answer["mode"] == "resume":
            self._loaded = self._read()
            self._go_back(self._loaded[1]["callbacks"])
        elif self._answer.get("logs") is not None:
            self._go_back(self._answer["logs"])  # an earlier attempt began this fit, and made no checkpoint
        else:
            self.session.link.send({"op": "logs", "fit": self._ordinal, "logs": self._roster.logs()})

    def _read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, saved = self.session.stager.read(int(self._answer["slot"]))
        if saved.get("format") != FORMAT:
            self.session.refuse(f"the checkpoint's state is of format {saved.get('format')}, this reads {FORMAT}")
        return arrays, saved

    def _go_back(self, states: dict[str, Any]) -> None:
        for note in self._roster.prepare(states):
            self.session.note(note)

    @_all_or_nothing
    def begin(self) -> None:
        """After the script's own on_train_begin: put the state back, start to watch."""
        self.open = True
        self._roster.begin()
        self._layers.begin()
        self._begin_position()
        session, control = self.session, self.session.control
        if self._loaded is not None:
            self._resume(*self._loaded)
        self._staged_step = session.step
        control["fit"] = self._ordinal
        control["epochs"] = self._epochs
        self._beat.enter(wire.PHASE_TRAIN)
        control["epoch"] = self._epoch
        control["step"] = session.step
        if not control.integer("executed"):
            control["first_step"] = session.step
        self._sigterm.listen()
        self._since = time.monotonic()

    def _begin_position(self) -> None:
        try:
            if self._position is not None:
                self._position.begin(later_attempt=self.session.attempt > 1)
        except Exception as error:
            if self._loaded is not None:
                raise
            self.session.fail(error)
            self._position = None  # then only an epoch's end can be gone back to

    def _resume(self, arrays: dict[str, Any], saved: dict[str, Any]) -> None:
        at = saved["position"]
        self._put_back_everything(arrays, saved)
        self._epoch = int(at["epoch"])
        session = self.session
        session.stager.hold(int(self._answer["slot"]))
        session.step = int(at["step"])
        self._epoch_step = session.step - int(at["batch"])
        guarantee = "the state is exact, the order of the data is not known"
        if self._position is not None and saved["data"] is not None:
            data = codec.decode(saved["data"], arrays)
            guarantee = self._position.resume(data, self._at_position, session.refuse)
        ended = saved["stopped"] or self._epoch >= self._epochs
        if ended:
            self._last_logs = codec.decode(saved["logs"], arrays)
        # An empty loop if the fit had only its end before it. (0 would mean the script's own initial_epoch.)
        self._model._initial_epoch = self._epochs if ended else self._epoch
        self._set_initial_epoch = True
        self._model.stop_training = bool(saved["stopped"])
        self._tell_restored(saved, self._with_reservations(guarantee, saved))
        if at["kind"] != "batch":
            self._loaded = None  # else it is put back once more, after Keras has begun that epoch again

    def _with_reservations(self, guarantee: str, saved: dict[str, Any]) -> str:
        """What stands against an "exact" besides the data."""
        changes = fingerprint.changes(saved["fingerprint"], self.session.fingerprint)
        if saved["skipped"]:
            guarantee += f"; not carried over: {', '.join(saved['skipped'])}"
        if saved["draws"]:
            guarantee = f"state exact, but random operations inside the compiled train_step begin anew ({guarantee})"
        return f"state exact, arithmetic differs: {changes} ({guarantee})" if changes else guarantee

    def _put_back_everything(self, arrays: dict[str, Any], saved: dict[str, Any]) -> None:
        """All or nothing: what does not fit the model ends the attempt before anything is changed."""
        began = time.monotonic()
        state.build(self._model, self._iterator, saved["optimizers"])
        state.make_global_seed_generator(arrays)
        self._building = time.monotonic() - began
        try:
            state.put_back(self._model, _variables_of(arrays))
        except state.Mismatch as mismatch:
            self.session.refuse(str(mismatch))  # never returns
        self._layers.begin()
        self._put_back_rest(arrays, saved)

    def _put_back_rest(self, arrays: dict[str, Any], saved: dict[str, Any]) -> None:
        self._layers.put_back(codec.decode(saved["layers"], arrays))
        self._roster.put_back(saved["callbacks"], arrays)
        randomness.put_back(codec.decode(saved["randomness"], arrays))

    def _tell_restored(self, saved: dict[str, Any], guarantee: str) -> None:
        at = saved["position"]
        told = {**{name: at[name] for name in ("fit", "epoch", "batch", "step")}, "epochs": self._epochs}
        message = {"op": "restored", "mode": self._answer["mode"], "seq": self._answer["seq"], **told}
        seconds = round(time.monotonic() - self._asked, 4)
        took = {"seconds": seconds, "building": round(self._building, 4)}
        self.session.link.send({**message, "guarantee": guarantee, **took})

    @_all_or_nothing
    def put_back(self) -> None:
        """A completed fit: its final state comes back, the script's callbacks are not called."""
        arrays, saved = self._read()
        self._roster.discard_logs()
        variables = _variables_of(arrays)
        if variables:
            self._put_back_everything(arrays, saved)
        else:  # a later fit has trained this model further: what it left comes back there
            self._put_back_rest(arrays, saved)
        self.session.stager.hold(int(self._answer["slot"]))
        self.session.step = int(saved["position"]["step"])
        self.session.control["step"] = self.session.step
        if self._position is not None and saved["data"] is not None:
            self._position.begin(later_attempt=True)
            self._position.pass_by(codec.decode(saved["data"], arrays))
            self._position.end()
        self._model._initial_epoch = self._epochs
        self._model.stop_training = bool(saved["stopped"])
        self._tell_restored(saved, "nothing is trained again" + ("" if variables else ", its weights were not kept"))

    @_harmless
    def after_complete(self) -> None:
        """The empty loop of a completed fit is over."""
        self._model._initial_epoch = None
        self._let_go()

    # On the way

    @_all_or_nothing
    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins; after a resume in its middle, its accumulators are put back here."""
        self._forget_initial_epoch()
        self._epoch = epoch
        self._batches = self._ended = 0
        vars(self._model).pop("_get_metrics_result_or_logs", None)
        self.session.control["epoch"] = epoch
        if self._loaded is not None:
            self._ended = int(self._loaded[1]["position"]["batch"])
            self._keep_logs(self._loaded)
            # Keras has just reset the metrics, and callbacks may have changed the learning rate once more.
            arrays, saved = self._loaded
            state.put_back(self._model, _variables_of(arrays))
            self._roster.put_back(saved["callbacks"], arrays)
            self._layers.put_back(codec.decode(saved["layers"], arrays))

    def _forget_initial_epoch(self) -> None:
        """It is sticky: the next fit on this model would begin there. What the script's own callbacks set stays."""
        if self._set_initial_epoch:
            self._model._initial_epoch = None
            self._set_initial_epoch = False

    def _at_position(self) -> None:
        """The data stands where the checkpoint was made: now the generators may be put back."""
        if self._loaded is not None:
            arrays, saved = self._loaded
            if self._position is not None and not self._position.drawn_by_python:
                randomness.put_back(codec.decode(saved["randomness"], arrays))
            self._loaded = None

    def _keep_logs(self, loaded: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """If no batch is left of the epoch that is resumed, its logs are those of the last one before."""
        arrays, saved = loaded
        before, original = codec.decode(saved["batch_logs"], arrays), self._model._get_metrics_result_or_logs
        if before and self.of_unknown_length:
            self._model._get_metrics_result_or_logs = lambda logs: original(logs or before)

    def end_batch(self, logs: Any) -> None:
        """A batch of data of unknown length was trained."""
        self._ended = self._batches
        self._batch_logs = logs

    def attend(self, batch: int) -> None:
        """Batch number `batch` is about to begin: the state is that after `batch` batches. Stage or leave, if due."""
        if self._untraced:
            self._attend_layers()
        now = time.monotonic()
        if (
            now - self._since >= self.session.control.times[2]
            or self.session.control.words[0]
            or self._sigterm.noted
            or self.session.link.orphaned
            or self._validation_comes(batch, now)
        ):
            self._attend(batch)
            self._hold()

    def _hold(self) -> None:
        """Not one batch more is trained between the stage that a Ctrl-C waits for, and its signal."""
        control, end = self.session.control, time.monotonic() + _HOLD
        while control.words[0] == Control.HOLD and time.monotonic() < end:
            time.sleep(0.002)

    @_harmless
    def _attend_layers(self) -> None:
        """Before and after the first step of this attempt, which is when it is traced."""
        self._untraced -= 1
        if self._untraced:
            self._layers.about_to_step()
        else:
            self._layers.stepped()
            self._capture.look()
            self.session.tell_temporary()
            self.session.stager.prepare(self._inventory.size)  # the optimizer has all its variables now

    def begin_batch(self, batch: int) -> None:
        """Batch number `batch` of the epoch begins, and the script's callbacks have seen it."""
        control, count = self.session.control, self._stride
        control.words[19] = batch
        control.words[20] = self._epoch_step + batch + count
        control.words[21] += count
        self._beat.batch()
        self._batches = batch + count

    def _validation_comes(self, batch: int, now: float) -> bool:
        """The last batch before a validation that would let the stage grow older than it may."""
        if not self._validation_seconds or self._position is None:
            return False
        steps = self._position.steps
        is_last = steps is not None and batch + self._stride >= steps
        return is_last and now + self._validation_seconds - self._since >= self.session.control["stage_every"]

    @_harmless
    def _attend(self, batch: int) -> None:
        leaving = self._leaving()
        asked = self._wants_stage()
        if leaving and not self._can_still_save(leaving):
            self._leave(leaving)
        if asked or leaving or self._stage_due() or self._validation_seconds:
            origin = "drain" if leaving else "user" if asked else "interval"
            self._stage("batch", batch, origin, durable=bool(asked or leaving), wait=self._time_left(leaving))
        if leaving:
            self._leave(leaving)

    def _stage_due(self) -> bool:
        return time.monotonic() - self._since >= self.session.control["stage_every"]

    def _can_still_save(self, leaving: str) -> bool:
        """A new state would be durable before the deadline; if not, the newest whole one has to do."""
        if not self.session.stager.newest_seq:
            return True  # there is none: what can be done is to try
        control = self.session.control
        return self._time_left(leaving) >= _SAVE_MARGIN * (control["stage_cost"] + control["persist"])

    def _wants_stage(self) -> bool:
        control = self.session.control
        if control.words[0] == Control.STAGE:
            control["drain"] = 0
            return True
        return bool(control.words[0] == Control.HOLD)

    def _leaving(self) -> str:
        """Why we should leave, "" if we should not."""
        if self.session.link.orphaned:
            return "the parent is gone"
        if self.session.control.words[0] == Control.LEAVE:
            return "asked to leave"
        return "SIGTERM" if self._sigterm.noted else ""

    def _time_left(self, leaving: str) -> float:
        """Seconds that may be waited for a slot."""
        if not leaving:
            return 0.0
        deadline = self.session.control["deadline"]
        return max(1.0, deadline - time.monotonic()) if deadline else float(self.session.link.grant["grace"])

    def _leave(self, reason: str) -> None:
        if self.session.link.orphaned:
            self.session.leave_orphaned()
        self.session.leave_drained(reason, self._time_left(reason))

    @_harmless
    def begin_validation(self) -> None:
        """A validation begins."""
        self._count_partial_execution()
        if self._untraced == 1:
            self._attend_layers()
        if self._position is not None:
            self._position.begin_validation()
        self._validation_began = time.monotonic()
        self._beat.enter(wire.PHASE_EVALUATE)

    def begin_test_batch(self) -> None:
        """Never stage in a validation: it could not be resumed. The epoch's end is awaited if there is time."""
        self._beat.test_batch()
        if not (self.session.control.words[0] or self._sigterm.noted or self.session.link.orphaned):
            return
        self._attend_validation()

    @_harmless
    def _attend_validation(self) -> None:
        leaving = self._leaving()
        if leaving and self._validation_seconds_left() > self._time_left(leaving) - _LEAVE_MARGIN:
            self._leave(leaving)

    def _validation_seconds_left(self) -> float:
        spent = time.monotonic() - self._validation_began
        return max(0.0, self._validation_seconds - spent) if self._validation_seconds else 0.0

    @_harmless
    def end_validation(self) -> None:
        """A validation ended."""
        self._validation_seconds = time.monotonic() - self._validation_began
        self._beat.end_validation()

    def note_logs(self, logs: Any) -> None:
        """An epoch's logs, as the fit's end will be told of them: what callbacks add to them is not among those."""
        self._last_logs = dict(logs or {})
        self._beat.enter(wire.PHASE_BETWEEN)

    @_harmless
    def end_epoch(self, epoch: int) -> None:
        """An epoch is over and the script's callbacks have seen its end."""
        session = self.session
        self._count_partial_execution()
        if self._untraced == 1:
            self._attend_layers()
        session.step = self._epoch_step + self._batches
        self._epoch_step = session.step
        self._epoch = epoch + 1
        self._batches = 0
        session.control["epoch"] = self._epoch
        session.control["batch"] = 0
        session.control["step"] = session.step
        if self._position is not None:
            self._position.end_epoch()
        session.tell_temporary()
        last = self._epoch >= self._epochs or bool(getattr(self._model, "stop_training", False))
        leaving = self._leaving()
        kept = last or self._wants_stage() or self._is_kept()
        if leaving and not self._can_still_save(leaving):
            self._leave(leaving)
        if kept or leaving or self._stage_due():
            wait = self._time_left(leaving) if leaving else _FINAL_WAIT if kept else 0.0
            self._stage("epoch", 0, "drain" if leaving else "epoch", durable=bool(kept or leaving), wait=wait)
        if leaving:
            self._leave(leaving)

    def _is_kept(self) -> bool:
        """Retention wants this epoch's end: by --keep-every, or as the best one so far by --keep-best."""
        if self._keep_every and self._epoch % self._keep_every == 0:
            return True
        value, best = self._capture.monitored(self._last_logs), self._monitor.get("best")
        if self._monitor and value is None:
            self.session.note(f"--keep-best {self._monitor['name']}: no such value among this script's logs")
        if value is None or (best is not None and (value <= best if self._monitor["mode"] == "max" else value >= best)):
            return False
        self._monitor["best"] = value
        return True

    def _count_partial_execution(self) -> None:
        """An epoch's last execution may have been shorter than counted, or there was none any more."""
        steps = self._position.steps if self._position is not None else None
        steps = self._ended if self.of_unknown_length else steps
        if steps is not None and self._batches > steps:
            control = self.session.control
            control["executed"] = control.integer("executed") - (self._batches - steps)
            control["step"] = self._epoch_step + steps
            self._batches = steps

    def last_logs(self, logs: Any) -> Any:
        """What on_train_end is to be told: after a resume behind the last epoch Keras does not know."""
        return self._last_logs if logs is None and self._last_logs is not None else logs

    @_harmless
    def end(self, logs: Any) -> None:
        """The fit is over and the script's callbacks have seen its end: the final state must not be lost."""
        self._sigterm.stop()
        self._forget_initial_epoch()
        self._stage("final", 0, "final", durable=True, wait=_FINAL_WAIT)
        self.open = False
        if self._roster.stopped_on_nan(self._last_logs):
            self.session.link.send({"op": "nan"})
        if self._position is not None:
            self._position.end()
        self._beat.enter(wire.PHASE_OUTSIDE)
        self.session.await_durable(_FINAL_WAIT)
        if self.session.link.orphaned:
            self.session.leave_orphaned()
        self._let_go()

    def _let_go(self) -> None:
        """The script may drop its model now, and have its memory back."""
        if self.session.fit is self:
            self.session.fit = None

    def abandon(self) -> None:
        """An exception ended the fit, and the script goes on without it."""
        self.open = False
        self._sigterm.stop()
        self._forget_initial_epoch()
        vars(self._model).pop("_get_metrics_result_or_logs", None)
        if self._position is not None:
            self._position.end()
        self._beat.enter(wire.PHASE_OUTSIDE, finished=False)
        self.session.link.send({"op": "abandon"})
        self._let_go()

    # Staging

    def _stage(self, kind: str, batch: int, origin: str, *, durable: bool, wait: float) -> None:
        """Stage, if there is anything new to be gone back to, and a slot comes free within `wait` seconds."""
        session, step = self.session, self._epoch_step + batch
        self._since = time.monotonic()
        if self._answer.get("unsaved") and kind != "final":
            return
        if kind == "batch" and self._position is None:
            return  # a loop of somebody's own: only an epoch's end can be gone back to
        if kind == "batch" and step == self._staged_step:
            return  # nothing was trained since
        if session.stager.busy and not wait:
            self._since += _SOON - session.control["stage_every"]
            return
        overlap = self._inventory.overlaps and not durable
        at = {"fit": self._ordinal, "epoch": self._epoch, "batch": batch, "step": step, "kind": kind}
        moment = Moment(at, origin, self._batch_logs, self._last_logs)
        try:
            take = functools.partial(self._capture.take, moment, handles=overlap)
            with self._beat.staging():
                if session.stager.stage(take, durable=durable, wait=wait, overlap=overlap) is not None:
                    self._staged_step = step
        finally:
            self._since = time.monotonic()
        for skipped in sorted(self._roster.skipped):
            session.note(f"not carried over a restart: {skipped}")


def _variables_of(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if not name.startswith("extra/")}
