"""The first thing that runs in every interpreter of the child's group. Kept light: data workers pay for it too.

It says hello to the parent, waits for the modules to be imported that we have a part in (Keras; python's and numpy's
random numbers, see `pin.py`), and says goodbye at the interpreter's orderly end.
"""

from __future__ import annotations

import _socket
import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import FunctionType, ModuleType

    from ksupervise.child.standby import Stash

_PRELOAD = "KSUPERVISE_PRELOAD"
HOOKED = "keras.src.callbacks.callback_list"
_attached_pid = 0
_address = ""  # the script may clear its environment
_run_seed = ""
_lock_fd = -1


def attach() -> None:
    """Hook this interpreter. Called twice it does nothing the second time."""
    global _attached_pid, _address, _run_seed
    _address = os.environ.get("KSUPERVISE_ADDRESS", "")
    if _attached_pid == os.getpid() or not _address:
        return
    _attached_pid = os.getpid()
    _run_seed = os.environ.get("KSUPERVISE_PIN", "")
    stash = _imported_ahead()
    _guard_lock()
    version = ".".join(map(str, sys.version_info[:3]))
    stacks = _watch_for_crashes()
    if not tell(f'{{"op":"hello","pid":{os.getpid()},"python":"{version}","stacks":{stacks}}}'):
        return  # no parent listens: an environment that outlived its run
    atexit.register(_say_goodbye)
    awaited: dict[str, Callable[[ModuleType], None]] = {}
    if _run_seed:
        awaited = {"random": _pin, "numpy.random.mtrand": _pin}
    if os.environ.get("KSUPERVISE_SEED"):
        awaited["keras"] = _seed  # after the pins: it seeds the same generators
    awaited[HOOKED] = _install
    for name in [name for name in awaited if name in sys.modules]:
        awaited.pop(name)(sys.modules[name])  # a notebook's kernel, or a fork of a process that has imported it
    finder = _Finder(awaited)
    if awaited:
        sys.meta_path.insert(0, finder)
    if stash is not None:
        awaited.pop("numpy.random.mtrand", None)  # pinned when it was imported
        stash.imported = finder.imported
        stash.standard_at_exit()
        sys.meta_path.insert(0, stash)
    elif os.environ.get(_PRELOAD) == "record":
        _record()


def _imported_ahead() -> Stash | None:
    """With --standby: an interpreter that is to wait for its attempt does so here. What it imported meanwhile."""
    if not os.environ.get(_PRELOAD, "").isdigit():
        return None
    from ksupervise.child import standby

    awaited: dict[str, Callable[[ModuleType], None]] = {"": lambda module: None}  # never there: the finder stays
    if _run_seed:
        awaited["numpy.random.mtrand"] = _pin
    if os.environ.get("KSUPERVISE_SEED"):
        awaited["keras"] = _seed
    finder = _Finder(awaited)
    sys.meta_path.insert(0, finder)
    try:
        return standby.wait(tell, _run_seed)
    finally:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not finder]


def _record() -> None:
    """With --standby: note what the script imports, if this is the process that the parent started."""
    if os.getpid() != os.getsid(0) or not hasattr(sys, "stdlib_module_names"):
        return
    try:
        from ksupervise.child import standby

        standby.record(tell)
    except Exception as error:
        _note(f"what the script imports could not be noted: {error!r}")


def tell(line: str) -> bool:
    """Send one message over a connection of its own. False if nobody listens."""
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.settimeout(2.0)
            sock.connect("\0" + _address[1:] if _address.startswith("@") else _address)
            sock.sendall(line.encode() + b"\n")
        finally:
            sock.close()
    except OSError:
        return False
    return True


def _guard_lock() -> None:
    """The run's lock is for this process: not for programs it starts, nor for forked data workers."""
    global _lock_fd
    try:
        fd = int(os.environ.get("KSUPERVISE_LOCK_FD", ""))
        lock = os.stat(os.path.join(os.environ["KSUPERVISE_RUN_DIR"], "lock"))
        if not os.path.samestat(os.fstat(fd), lock):
            return  # closed on the way here, and the number is something else's now
        os.set_inheritable(fd, False)
    except (KeyError, ValueError, OSError):
        return
    _lock_fd = fd
    os.register_at_fork(after_in_child=_drop_lock)


def _drop_lock() -> None:
    global _lock_fd
    fd, _lock_fd = _lock_fd, -1
    if fd >= 0:
        try:
            os.close(fd)
        except OSError:
            pass


def _watch_for_crashes() -> int:
    """Number of the signal that asks for the stacks of all threads, 0 for none."""
    try:
        from ksupervise.child import crash

        return crash.watch(os.environ["KSUPERVISE_STACKS"])
    except Exception:
        return 0


def _say_goodbye() -> None:
    """The interpreter ends in good order, perhaps after an exception that it has shown."""
    if _attached_pid != os.getpid():
        return  # a fork that ends like its parent
    try:
        from ksupervise.child import failure

        about = failure.fields()
    except Exception:  # there may be no memory left
        about = ',"exception":"Exception"' if getattr(sys, "last_type", None) else ""
    tell(f'{{"op":"exit","pid":{os.getpid()}{about}}}')


def _pin(module: ModuleType) -> None:
    """Where the script sets no seed it is to draw the same numbers at each attempt. A fork draws its own, as ever."""
    if os.getpid() != _attached_pid:
        return
    try:
        from ksupervise.child import pin

        pin.pin(module, _run_seed)
    except Exception as error:
        _note(f"what an unseeded script draws from {module.__name__} could not be pinned: {error!r}")


def _seed(keras: ModuleType) -> None:
    """--seed N: what `keras.utils.set_random_seed(N)` right after the import would do."""
    try:
        keras.utils.set_random_seed(int(os.environ["KSUPERVISE_SEED"]))
    except Exception as error:
        _note(f"--seed could not be handed to Keras: {error!r}")


def _install(module: ModuleType) -> None:
    try:
        from ksupervise.child import hook

        tell(f'{{"op":"keras","version":"{hook.install(module)}"}}')
    except Exception as error:
        _note(f"our hook could not be put into Keras: {error!r}")


def _note(text: str) -> None:
    try:
        import json

        tell(json.dumps({"op": "note", "text": text}))
    except Exception:
        pass  # the script has a json.py of its own


class _Finder:
    """Finds nothing by itself; it only wraps the loaders of the modules it waits for."""

    def __init__(self, awaited: dict[str, Callable[[ModuleType], None]]) -> None:
        self._awaited = awaited

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the others find, with a loader that calls us afterwards.

        It may be asked for by somebody who only wants to know whether there is such a module: we wait on.
        """
        if name not in self._awaited:
            return None
        before = next((at for at, finder in enumerate(sys.meta_path) if finder is self), -1)
        for finder in sys.meta_path[before + 1 :]:  # those before us were asked already
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def imported(self, module: ModuleType) -> None:
        """A module that we wait for is there: our part in it."""
        then = self._awaited.pop(module.__name__, None)
        if not self._awaited:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        if then is not None:
            then(module)


def _unseen(function: FunctionType) -> FunctionType:
    """Have Python leave `function` out of the traceback of a module that cannot be imported, like the import's own."""
    function.__code__ = function.__code__.replace(co_filename="<frozen importlib._bootstrap_external>")
    return function


class _Loader:
    """The module's own loader, and then our part."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    @_unseen  # type: ignore[arg-type]
    def exec_module(self, module: ModuleType) -> None:
        """Run the module, put its own loader back in place, hook it."""
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._finder.imported(module)
