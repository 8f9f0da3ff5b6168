"""What we change in Keras: two methods of the class CallbackList, and two callbacks that each fit is given.

`on_train_begin` is wrapped because a completed fit must not call the script's callbacks at all; all else is done by the
two callbacks. One comes last: it restores after, and captures after, every callback of the script. One comes first: a
stage at a batch's begin is the state before the script's callbacks have seen it, as they will see it begin again; and
an epoch's logs are noted before they add to them.
Neither has a batch-*end* method where it can do without: on JAX and torch one would force a device sync at each step.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ksupervise.child import session
from ksupervise.child.disguise import disguise
from ksupervise.child.fit import Fit

Method = Callable[..., Any]
_hooked: set[type] = set()


def install(callback_list: ModuleType) -> str:
    """Hook the module `keras.src.callbacks.callback_list`, once. Returns the version of Keras, "" if unknown."""
    version = str(getattr(sys.modules.get("keras.src.version"), "__version__", ""))
    cls = callback_list.CallbackList
    if cls in _hooked:
        return version
    _hooked.add(cls)
    file = callback_list.__file__ or ""
    make = _callback_classes(sys.modules["keras.src.callbacks.callback"].Callback)
    cls.on_train_begin = disguise(_train_begin(cls.on_train_begin, make), cls.on_train_begin, file)
    cls.on_train_end = disguise(_train_end(cls.on_train_end), cls.on_train_end, file)
    return version


def _stop_recording() -> None:
    """With --standby: what the script imports from its first fit on is not imported ahead."""
    standby = sys.modules.get("ksupervise.child.standby")
    if standby is not None:
        standby.stop_recording()


def _train_begin(original: Method, make: Callable[[Fit], tuple[Any, Any]]) -> Method:
    def on_train_begin(self: Any, logs: Any = None) -> None:
        _take_out(self)
        _stop_recording()
        fit = session.begin_fit(self, sys._getframe(1))
        if fit is None:
            original(self, logs)
            return
        self._ksupervise_fit = fit
        if fit.complete:
            fit.put_back()
            return
        fit.prepare()
        first, last = make(fit)
        self.callbacks.insert(0, first)
        self.callbacks.append(last)
        fit.listed_in = weakref.ref(self, _when_vanished(weakref.ref(fit)))
        original(self, logs)

    return on_train_begin


def _train_end(original: Method) -> Method:
    def on_train_end(self: Any, logs: Any = None) -> None:
        fit = self.__dict__.pop("_ksupervise_fit", None)
        if fit is None:
            original(self, logs)
        elif fit.complete:
            fit.after_complete()
        else:
            original(self, fit.last_logs(logs))
            _take_out(self)

    return on_train_end


def _take_out(callback_list: Any) -> None:
    """Take our callbacks out of a list; one of the script's own may still have those of a fit that raised."""
    left = [callback for callback in callback_list.callbacks if not isinstance(getattr(callback, "_fit", None), Fit)]
    if len(left) < len(callback_list.callbacks):
        callback_list.callbacks[:] = left
        callback_list.__dict__.pop("_ksupervise_fit", None)


def _when_vanished(reference: weakref.ref[Fit]) -> Callable[[object], None]:
    """A call of fit is gone with its CallbackList. If it did not end, an exception ended it."""

    def vanished(_: object) -> None:
        fit = reference()
        try:
            if fit is not None and fit.open and sys._getframe(1) is not None:
                fit.abandon()
        except Exception:
            pass  # no frame below ours: the interpreter ends, and not one line of the script will run any more

    return vanished


def _interruptible(cls: type, base: type) -> None:
    """A Ctrl-C may come in any moment of ours: its traceback then ends in Keras' own line that called us."""
    file = sys.modules[base.__module__].__file__ or ""
    for name, method in list(vars(cls).items()):
        if name.startswith("on_"):
            setattr(cls, name, disguise(_without_our_frames(method), getattr(base, name), file))


def _without_our_frames(method: Method) -> Method:
    def moment(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            method(self, *arguments, **named)
            return
        except KeyboardInterrupt:
            pass  # raised again outside: the one that was caught names the frames it came through
        raise KeyboardInterrupt

    return moment


def _callback_classes(base: Any) -> Callable[[Fit], tuple[Any, Any]]:
    """What makes the two callbacks of a fit. A failure of ours stays ours: see `Fit`."""

    class KsuperviseFirst(base):  # type: ignore[misc]
        """Before the script's callbacks see a batch begin: after a resume they will see it begin."""

        def __init__(self, fit: Fit) -> None:
            super().__init__()
            self._fit = fit

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self._fit.attend(batch)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._fit.note_logs(logs)

    class KsuperviseLast(base):  # type: ignore[misc]
        """After the script's callbacks have seen all else."""

        def __init__(self, fit: Fit) -> None:
            super().__init__()
            self._fit = fit

        def on_train_begin(self, logs: Any = None) -> None:
            self._fit.begin()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._fit.begin_epoch(epoch)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self._fit.begin_batch(batch)

        def on_test_begin(self, logs: Any = None) -> None:
            self._fit.begin_validation()

        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            self._fit.begin_test_batch()

        def on_test_end(self, logs: Any = None) -> None:
            self._fit.end_validation()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._fit.end_epoch(epoch)

        def on_train_end(self, logs: Any = None) -> None:
            self._fit.end(logs)

    class KsuperviseCounting(KsuperviseLast):
        """For data of unknown length: an epoch's last batch begins, and then there is none."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self._fit.end_batch(logs)

    for cls in (KsuperviseFirst, KsuperviseLast, KsuperviseCounting):
        _interruptible(cls, base)
    return lambda fit: (KsuperviseFirst(fit), (KsuperviseCounting if fit.of_unknown_length else KsuperviseLast)(fit))
