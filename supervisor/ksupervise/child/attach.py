"""The first thing that runs in every interpreter of the child's group. Kept light: data workers pay for it too.

It says hello to the parent, waits for Keras to be imported, and says goodbye at the interpreter's orderly end.
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
    from types import ModuleType

HOOKED = "keras.src.callbacks.callback_list"
_attached_pid = 0
_lock_fd = -1


def attach() -> None:
    """Hook this interpreter. Called twice it does nothing the second time."""
    global _attached_pid
    if _attached_pid == os.getpid() or not os.environ.get("KSUPERVISE_ADDRESS"):
        return
    _attached_pid = os.getpid()
    _guard_lock()
    version = ".".join(map(str, sys.version_info[:3]))
    if not tell(f'{{"op":"hello","pid":{os.getpid()},"python":"{version}"}}'):
        return  # no parent listens: an environment that outlived its run
    atexit.register(_say_goodbye)
    if os.environ.get("KSUPERVISE_SEED"):
        sys.meta_path.insert(0, _Finder("keras", _seed))
    if HOOKED in sys.modules:  # a notebook's kernel, or a fork of a process that has imported Keras
        _install(sys.modules[HOOKED])
    else:
        sys.meta_path.insert(0, _Finder(HOOKED, _install))


def tell(line: str) -> bool:
    """Send one message over a connection of its own. False if nobody listens."""
    address = os.environ["KSUPERVISE_ADDRESS"]
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.settimeout(2.0)
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
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


def _say_goodbye() -> None:
    """The interpreter ends in good order, perhaps after an exception that it has shown."""
    if _attached_pid != os.getpid():
        return  # a fork that ends like its parent
    last = getattr(getattr(sys, "last_type", None), "__name__", "")
    # No import of json: the script may have a json.py of its own, which nobody asked to run.
    exception = last if last.isidentifier() and last.isascii() else "Exception" if last else ""
    tell(f'{{"op":"exit","pid":{os.getpid()},"exception":"{exception}"}}')


def _seed(keras: ModuleType) -> None:
    """--seed N: what `keras.utils.set_random_seed(N)` right after the import would do."""
    keras.utils.set_random_seed(int(os.environ["KSUPERVISE_SEED"]))


def _install(module: ModuleType) -> None:
    try:
        from ksupervise.child import hook

        tell(f'{{"op":"keras","version":"{hook.install(module)}"}}')
    except Exception as error:
        import json

        tell(json.dumps({"op": "note", "text": f"our hook could not be put into Keras: {error!r}"}))


class _Finder:
    """Finds nothing by itself; it only wraps the loader of the one module it waits for."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the others find, with a loader that calls us afterwards."""
        if name != self._name:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)  # type: ignore[assignment]
        return spec


class _Loader:
    """The module's own loader, and then our part."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, put its own loader back in place, hook it."""
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._then(module)
