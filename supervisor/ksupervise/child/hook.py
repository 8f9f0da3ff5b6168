"""What we change in Keras: two methods of the class CallbackList, and one callback that each fit gets appended.

`on_train_begin` is wrapped because a completed fit must not call the script's callbacks at all; all
else is done by the appended callback. It comes last, so it restores after, and captures after,
every callback of the script. It has no batch-*end* method: on JAX and torch one would force a device sync
at each step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from ksupervise.child import session
from ksupervise.child.fit import Fit

Method = Callable[..., Any]


def install(callback_list: ModuleType) -> str:
    """Hook the module `keras.src.callbacks.callback_list`, once. Returns the version of Keras, "" if unknown."""
    version = str(getattr(sys.modules.get("keras.src.version"), "__version__", ""))
    cls = callback_list.CallbackList
    if getattr(cls, "_ksupervise", False):
        return version
    cls._ksupervise = True
    file = callback_list.__file__ or ""
    make = _appended_class(sys.modules["keras.src.callbacks.callback"].Callback)
    cls.on_train_begin = _disguise(_train_begin(cls.on_train_begin, make), cls.on_train_begin, file)
    cls.on_train_end = _disguise(_train_end(cls.on_train_end), cls.on_train_end, file)
    return version


def _train_begin(original: Method, make: Callable[[Fit], Any]) -> FunctionType:
    def on_train_begin(self: Any, logs: Any = None) -> None:
        fit = session.begin_fit(self, sys._getframe(1))
        if fit is None:
            original(self, logs)
            return
        self._ksupervise_fit = fit
        if fit.complete:
            fit.put_back()
            return
        fit.prepare()
        self.callbacks.append(make(fit))
        original(self, logs)

    assert isinstance(on_train_begin, FunctionType)
    return on_train_begin


def _train_end(original: Method) -> FunctionType:
    def on_train_end(self: Any, logs: Any = None) -> None:
        fit = self.__dict__.pop("_ksupervise_fit", None)
        if fit is None:
            original(self, logs)
        elif fit.complete:
            fit.after_complete()
        else:
            original(self, fit.last_logs(logs))

    assert isinstance(on_train_end, FunctionType)
    return on_train_end


def _disguise(function: FunctionType, original: Method, file: str) -> FunctionType:
    """Let `function` look like the method it wraps, also to Keras' traceback filter.

    A frame that claims Keras' own file is dropped from the tracebacks that users see, as Keras' are.
    """
    function.__code__ = function.__code__.replace(co_filename=file)
    function.__name__ = original.__name__
    function.__qualname__ = original.__qualname__
    function.__module__ = original.__module__
    function.__doc__ = original.__doc__
    return function


def _appended_class(base: Any) -> Callable[[Fit], Any]:
    class KsuperviseCallback(base):  # type: ignore[misc]
        """Hands the events of one fit to `Fit`; a failure of ours stays ours."""

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
            self._fit.end_epoch(epoch, logs)

        def on_train_end(self, logs: Any = None) -> None:
            self._fit.end(logs)

    return KsuperviseCallback
