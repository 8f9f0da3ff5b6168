"""Run a script as it is and note when it comes to what. Call: phases.py MARKS.jsonl SCRIPT [ARGS]...

Marks: the interpreter's first line, Keras imported, and the begin and the end of the first batches of each life.
`KSUPERVISE_ATTEMPT` or else the process tells the lives apart.
"""

import time

began = time.monotonic()

import builtins  # noqa: E402
import os  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

marks = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def mark(what: str, at: float | None = None) -> None:
    now = time.monotonic() if at is None else at
    os.write(marks, f'{{"what":"{what}","pid":{os.getpid()},"at":{now}}}\n'.encode())


def watch_imports(name: str, *arguments: Any, **named: Any) -> Any:
    """In place of `__import__`, until the script has imported Keras: then its training is watched, from outside."""
    within.append(name)
    try:
        module = plain_import(name, *arguments, **named)
    finally:
        within.pop()
    if name == "keras" and not within:
        builtins.__import__ = plain_import
        mark("imported")
        watch_steps(sys.modules["keras.src.callbacks.callback_list"].CallbackList)
    return module


def watch_steps(cls: Any) -> None:
    begin, end = cls.on_train_batch_begin, cls.on_train_batch_end
    count = [0, 0]

    def on_train_batch_begin(self: Any, batch: int, logs: Any = None) -> None:
        begin(self, batch, logs)
        count[0] += 1
        if count[0] == 1:
            mark("first step begins")

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        count[1] += 1
        if count[1] in (1, 3):
            mark("first step" if count[1] == 1 else "third step")
        end(self, batch, logs)

    cls.on_train_batch_begin, cls.on_train_batch_end = on_train_batch_begin, on_train_batch_end


mark("started", began)
within: list[str] = []
plain_import = builtins.__import__
builtins.__import__ = watch_imports
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
