"""What a Keras script can find out: `python keras_script.py` writes facts.json, and fails in a fit of its own.

A stand-in for a script of a user's that looks around: nothing of ksupervise is imported here. The facts are flat,
so that a difference has a name.
"""

import atexit
import contextlib
import copy
import gc
import inspect
import io
import json
import os
import pickle
import random
import re
import signal
import sys
import threading
import traceback
import warnings
import weakref
from pathlib import Path

ENVIRON = dict(os.environ)
MOMENTS = [
    *("on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin"),
    *("on_test_batch_begin", "on_test_batch_end", "on_test_end", "on_epoch_end", "on_train_end"),
]
facts = {}


@contextlib.contextmanager
def silent():
    """TensorFlow's first words hold times and process ids."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    yield
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


with silent():
    import keras
    import numpy as np
    import tensorflow as tf

    tf.constant(1) + 1
    tf.get_logger().setLevel("ERROR")  # its warnings hold addresses

CallbackList = keras.callbacks.CallbackList
X, Y = np.arange(24.0).reshape(12, 2) / 24, np.ones((12, 1))


def made():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse", metrics=["mae"])
    return model


def look(when):
    """The process, at this moment."""
    fds = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    found = {
        **{number.name: handler(number) for number in signal.Signals},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup": signal.set_wakeup_fd(-1),
        "threads": sorted(f"{type(thread).__name__} {thread.daemon}" for thread in threading.enumerate()),
        "descriptors": sorted(os.readlink(name) for fd, name in fds.items() if fd > 2 and os.path.lexists(name)),
        "environ": os.environ == ENVIRON,
        "meta path": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
        "atexit": atexit._ncallbacks(),
        "hooks": [sys.excepthook is sys.__excepthook__, sys.gettrace() is None, sys.getprofile() is None],
        "gc": [gc.isenabled(), *gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)],
        "recursion": sys.getrecursionlimit(),
        "filters": [repr(entry) for entry in warnings.filters],
        "path": sys.path,
        "streams": [repr(type(stream)) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "umask and directory": [os.umask(0o022), os.getcwd()],
    }
    facts.update({f"{name} {when}": value for name, value in found.items()})


def handler(number):
    return getattr(signal.getsignal(number), "__qualname__", None) or repr(signal.getsignal(number))


def plain(value):
    """A value, as far as it is one; else what it is."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(type(value))


def attributes(thing):
    return {name: plain(value) for name, value in sorted(vars(thing).items())}


def look_at_the_class():
    module = sys.modules[CallbackList.__module__]
    facts["class names"] = sorted(dir(CallbackList))
    facts["class own names"] = list(vars(CallbackList))
    facts["class source"] = inspect.getsource(CallbackList)
    facts["class bases"] = [repr(base) for base in CallbackList.__mro__]
    facts["module names"] = list(vars(module))
    facts["module loader"] = [type(module.__loader__).__name__, type(module.__spec__.loader).__name__]
    facts["module file"] = [module.__file__, module.__cached__, module.__spec__.origin, module.__package__]
    for name, method in inspect.getmembers(CallbackList, inspect.isfunction):
        code = method.__code__
        facts[f"{name} signature"] = str(inspect.signature(method))
        facts[f"{name} names"] = [method.__name__, method.__qualname__, method.__module__, method.__doc__]
        facts[f"{name} attributes"] = sorted(vars(method))
        facts[f"{name} defaults"] = [
            repr(method.__defaults__),
            repr(method.__kwdefaults__),
            repr(method.__annotations__),
        ]
        facts[f"{name} file"] = code.co_filename
        facts[f"{name} line"] = code.co_firstlineno
        facts[f"{name} code names"] = [code.co_name, getattr(code, "co_qualname", "")]
        facts[f"{name} arguments"] = [code.co_argcount, *code.co_varnames[: code.co_argcount]]
        facts[f"{name} inner"] = [*code.co_varnames, *code.co_freevars, *code.co_cellvars]
        facts[f"{name} globals"] = method.__globals__.get("__name__")
        facts[f"{name} closure"] = len(method.__closure__ or ())
        facts[f"{name} source"] = inspect.getsource(method)


class Looks(keras.callbacks.Callback):
    """Looks around in each of its moments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def look(self, moment):
        if moment in self.seen:
            return
        self.seen.append(moment)
        when = f"in {moment}"
        look(when)
        stack = [(os.path.basename(frame.filename), frame.name, frame.line) for frame in traceback.extract_stack()[:-2]]
        facts[f"stack {when}"] = stack
        facts[f"callback {when}"] = attributes(self)
        facts[f"model {when}"] = attributes(self.model)
        facts[f"forked {when}"] = forked()


for moment in MOMENTS:
    setattr(Looks, moment, lambda self, *arguments, moment=moment, **named: self.look(moment))


def forked():
    """What SIGTERM does to a data worker."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train():
    look("before fit")
    facts["modules before fit"] = sorted(sys.modules)
    model = made()
    facts["model before fit"] = attributes(model)
    said = io.StringIO()
    looks = Looks()
    given = [looks]
    with contextlib.redirect_stdout(said), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        wrong = keras.callbacks.EarlyStopping("nothing of that name", mode="min")
        given.append(wrong)
        arguments = {"batch_size": 4, "epochs": 2, "steps_per_epoch": 3, "callbacks": given, "verbose": 2}
        history = model.fit(X, Y, validation_data=(X, Y), **arguments)
    facts["warned"] = [[str(each.message), each.category.__name__, each.filename, each.lineno] for each in warned]
    facts["said"] = re.sub(r"\d+m?s(/\w+)?", "TIME", said.getvalue())
    look("after fit")
    facts["modules after fit"] = sorted(sys.modules)
    facts["model after fit"] = attributes(model)
    facts["optimizer after fit"] = attributes(model.optimizer)
    facts["given callbacks"] = [type(each).__name__ for each in given]
    facts["callback after fit"] = attributes(looks)
    facts["history"] = [repr(type(history)), history.history, attributes(history), model.history is history]
    facts["weights"] = [weight.tobytes().hex() for weight in model.get_weights()]
    facts["random"] = [random.random(), np.random.rand(), float(tf.random.uniform(())), float(keras.random.uniform(()))]
    facts["copied"] = len(copy.deepcopy(model).get_weights())
    facts["pickled"] = len(pickle.loads(pickle.dumps(model)).get_weights())  # noqa: S301
    facts["evaluated"] = model.evaluate(X, Y, verbose=0, callbacks=[Looks()])
    facts["forked after fit"] = forked()
    return weakref.ref(model), weakref.ref(history), weakref.ref(looks)


def train_with_a_container():
    """Keras takes a CallbackList of the user's own, who can look into it."""
    model = made()
    container = CallbackList([keras.callbacks.History()], model=model, epochs=1)
    for turn in ("first", "second"):
        model.fit(X, Y, callbacks=container, verbose=0)
        facts[f"container after the {turn} fit"] = attributes(container)
        facts[f"contained after the {turn} fit"] = [type(callback).__name__ for callback in container.callbacks]
    boom = Booms("on_epoch_end")
    boom.set_model(model)
    container.callbacks.append(boom)
    with contextlib.suppress(ZeroDivisionError):
        model.fit(X, Y, callbacks=container, verbose=0)
    facts["container after a fit that raised"] = attributes(container)
    facts["contained after a fit that raised"] = [type(callback).__name__ for callback in container.callbacks]
    container.callbacks.remove(boom)
    model.fit(X, Y, callbacks=container, verbose=0)
    facts["contained after one more fit"] = [type(callback).__name__ for callback in container.callbacks]


class Booms(keras.callbacks.Callback):
    """Raises in one of its moments."""

    def __init__(self, moment):
        super().__init__()
        setattr(self, moment, self.boom)

    def boom(self, *arguments, **named):
        raise ZeroDivisionError


def raise_everywhere():
    model = made()
    model.fit(X, Y, verbose=0)
    for filtered in (True, False):
        (keras.config.enable_traceback_filtering if filtered else keras.config.disable_traceback_filtering)()
        for moment in MOMENTS:
            try:
                model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[Booms(moment)])
            except ZeroDivisionError as error:
                name = f"traceback {'filtered' if filtered else 'whole'} {moment}"
                facts[name] = traceback.format_exc()
                facts[f"{name} context"] = [repr(error.__cause__), repr(error.__context__)]
            facts[f"sigterm after {moment} raised"] = handler(signal.SIGTERM)
            facts[f"model after {moment} raised"] = attributes(model)
    keras.config.enable_traceback_filtering()
    look("after fits that raised")
    facts["forked after fits that raised"] = forked()


if __name__ == "__main__":
    if os.environ.get("KSUPERVISE_ATTEMPT", "1") != "1":
        sys.exit()  # the one failure at the end is enough
    keras.utils.set_random_seed(3)
    look_at_the_class()
    left = train()
    gc.collect()
    facts["left after fit"] = [reference() is None for reference in left]
    train_with_a_container()
    raise_everywhere()
    Path("facts.json").write_text(json.dumps(facts))
    made().fit(X, Y, verbose=0, callbacks=[Booms("on_epoch_end")])
