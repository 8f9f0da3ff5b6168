"""`--standby`: what a script imports is recorded in one attempt, and imported ahead of time in a warm interpreter.

A cold attempt has a `Recorder`: it notes each import of an installed package by the script until its first fit, and
under what it was made (environment, sys.path, directory, random numbers). The parent hands that to the interpreter
that waits to be the next attempt. There those packages that belong to Keras, and a few more that are known to do
nothing but define things, are imported under the same circumstances. What that changed is then undone, as far as
a script could see it, and kept in a `Stash`: modules, environment, hooks, warnings filters, callbacks at exit, output.

When the script itself imports a package, the stash gives it all of that, at that moment. If the circumstances are not
what they were, or the order is not, nothing is given: native code cannot be loaded twice, so the parent begins the
attempt anew in a cold interpreter. Whatever goes wrong before the script's first line: the interpreter executes itself,
cold.

Modules of the standard library are not taken away again.
"""

from __future__ import annotations

import _thread
import os
import sys

from ksupervise.child.failure import is_users

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import FunctionType, ModuleType
    from typing import Any

    Tell = Callable[[str], bool]
    Facts = dict[str, Any]

MARK = "KSUPERVISE_PRELOAD"  # as in wire.py, which would bring json and mmap into every interpreter
RECORD = "record"
FRAMEWORKS = frozenset({"keras", "tensorflow", "tf_keras", "jax", "torch"})
# Imported ahead too, where the script does: they take long, and start no threads, processes or devices.
KNOWN = FRAMEWORKS | {"numpy", "scipy", "pandas", "sklearn", "h5py", "PIL"}
_OURS = "KSUPERVISE_"
_NOT_PYTHONS = frozenset({"ksupervise", "sitecustomize", "usercustomize", "__main__"})
_STANDARD = frozenset(getattr(sys, "stdlib_module_names", ())) | _NOT_PYTHONS
_FIRST_VICTIM = "1000"  # of the kernel, when memory is short: rather the one that waits than the one that trains

_recorder: Recorder | None = None


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_standard(name: str) -> bool:
    return _top(name) in _STANDARD


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


def circumstances(initial: Mapping[str, str]) -> Facts:
    """Under what an import is made now: what must be the same for its outcome to be."""
    now = _environment()
    changed: dict[str, str | None] = {name: value for name, value in now.items() if initial.get(name) != value}
    changed.update((name, None) for name in initial if name not in now)
    try:
        folder = os.getcwd()
    except OSError:
        folder = ""
    logging = sys.modules.get("logging")
    configured = bool(getattr(getattr(logging, "root", None), "handlers", None))
    return {"environ": changed, "path": list(map(str, sys.path)), "directory": folder, "logging": configured}


def _differing(then: Facts, now: Facts) -> str:
    """What differs, "" if nothing does."""
    if then["environ"] != now["environ"]:
        before, after = then["environ"], now["environ"]
        missing = object()
        names = [name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing)]
        return f"the environment ({', '.join(sorted(names)[:3])})"
    names = [name for name in ("path", "directory", "logging") if then[name] != now[name]]
    return {"path": "sys.path", "directory": "the working directory", "logging": "logging"}.get("".join(names[:1]), "")


def _draws() -> list[Any]:
    """Where the global generators stand: python's, numpy's, numpy's entropy; None for one that is not there."""
    random, numpy, pin = map(sys.modules.get, ("random", "numpy.random", "ksupervise.child.pin"))
    found: list[Any] = [None, None, None if pin is None else pin.capture()]
    if random is not None and hasattr(random, "getstate"):
        found[0] = random.getstate()
    if numpy is not None and hasattr(numpy, "get_state"):
        kind, words, *rest = numpy.get_state(legacy=True)
        if kind == "MT19937":
            found[1] = [kind, words.tolist(), *rest]
    return [_plain(each) for each in found]


def _plain(state: Any) -> Any:
    """As JSON would give it back."""
    return [_plain(each) for each in state] if isinstance(state, list | tuple) else state


def _set_draws(states: Sequence[Any]) -> None:
    from ksupervise.child import pin

    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if states[0] is not None and random is not None:
        random.setstate(_of_python(states[0]))
    if states[1] is not None and numpy is not None:
        numpy.set_state(tuple(states[1]))
    if states[2] is not None:
        pin.put_back(_of_python(states[2]))


def _of_python(state: Sequence[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(words), gauss


def _rss() -> int:
    """Bytes of this process in memory, 0 if unknown."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def unseen(function: FunctionType) -> FunctionType:
    """Have Python leave `function` out of the traceback of a module that cannot be imported, like the import's own."""
    function.__code__ = function.__code__.replace(co_filename="<frozen importlib._bootstrap_external>")
    return function


# In a cold attempt


class _Import:
    """One import that the script made, itself or through another package."""

    def __init__(self, name: str, under: _Import | None, facts: Facts) -> None:
        self.name = name
        self.under = under
        self.facts = facts
        self.known = _top(name) in KNOWN
        self.brought: frozenset[str] = frozenset()  # top-level names that came with it
        self.whole = False

    def above(self) -> Iterator[_Import]:
        """The imports that it is part of."""
        each = self.under
        while each is not None:
            yield each
            each = each.under


class Recorder:
    """A finder that finds nothing by itself: it notes which installed packages the script imports, and under what."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._initial = _environment()
        self._pid = os.getpid()
        self._thread = _thread.get_ident()
        self._imports: list[_Import] = []
        self._stack: list[_Import] = []
        self._last: list[Any] = []
        self._before: set[str] = set()
        self.objection = ""  # why nothing may be imported ahead for this script

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the others find, with a loader that tells us."""
        if _is_standard(name) or (self._stack and self._stack[-1].known) or not self._is_scripts():
            return None
        before = next((at for at, finder in enumerate(sys.meta_path) if finder is self), -1)
        for finder in sys.meta_path[before + 1 :]:  # those before us were asked already
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None and not is_users(spec.origin or "<none>"):
                    spec.loader = _Recorded(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def _is_scripts(self) -> bool:
        return _thread.get_ident() == self._thread and os.getpid() == self._pid

    def begin(self, name: str) -> _Import:
        """An import begins."""
        each = _Import(name, self._stack[-1] if self._stack else None, circumstances(self._initial))
        states = _draws()
        each.facts["draws"] = None if states == self._last else states
        self._imports.append(each)
        self._stack.append(each)
        if each.known:
            self._before = set(sys.modules)
        return each

    def end(self, each: _Import, *, whole: bool) -> None:
        """It is over; not `whole` if it raised."""
        while self._stack and self._stack.pop() is not each:
            pass
        each.whole = whole
        self._last = _draws()
        if each.known and whole:
            new = [name for name in sys.modules if name not in self._before]
            each.brought = frozenset(map(_top, new)) - _STANDARD
            self._report()

    def _report(self) -> None:
        import json

        self.objection = self.objection or _script_within()
        kept = self._kept()
        if any(_top(name) in FRAMEWORKS for each in kept for name in (each.name, *each.brought)) and self._is_scripts():
            entries = [{"name": each.name, **each.facts} for each in kept]
            message = {"op": "imports", "pid": self._pid, "argv": list(getattr(sys, "orig_argv", ()))}
            self._tell(json.dumps({**message, "entries": entries, "objection": self.objection, "rss": _rss()}))

    def _kept(self) -> list[_Import]:
        """What is imported ahead: what is known, and what that would bring with it, in the script's order."""
        belonging = set(KNOWN).union(*(each.brought for each in self._imports))
        kept: list[_Import] = []
        for each in self._imports:
            if each.whole and _top(each.name) in belonging and not any(above in kept for above in each.above()):
                kept.append(each)
        return kept

    def close(self) -> None:
        """Note no more."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]


def record(tell: Tell) -> None:
    """Begin to note what the script imports."""
    global _recorder
    _recorder = Recorder(tell)
    sys.meta_path.insert(0, _recorder)


def stop_recording() -> None:
    """The script has come to its first fit."""
    global _recorder
    if _recorder is not None:
        _recorder.close()
        _recorder = None


def _script_within() -> str:
    """A module of the script's own that has the name of one of the standard library's: a package might import it."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if _top(name) in _STANDARD - _NOT_PYTHONS and isinstance(file, str) and is_users(file):
            return f"{file} has the name of a module of Python's own"
    return ""


class _Recorded:
    """A module's own loader, watched."""

    def __init__(self, loader: Loader, recorder: Recorder) -> None:
        self._loader = loader
        self._recorder = recorder

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    @unseen  # type: ignore[arg-type]
    def exec_module(self, module: ModuleType) -> None:
        """Run the module with its own loader in place."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        each = self._recorder.begin(module.__name__)
        whole = False
        try:
            self._loader.exec_module(module)
            whole = True
        finally:
            self._recorder.end(each, whole=whole)


# In a warm one


class Useless(Exception):
    """This interpreter cannot stand for a cold one."""


class _Entry:
    """One import that was made ahead, and all that came of it."""

    def __init__(self, facts: Facts) -> None:
        self.name: str = facts["name"]
        self.facts = facts
        self.modules: dict[str, ModuleType] = {}  # in the order in which they were finished
        self.attributes: list[tuple[ModuleType, str, ModuleType]] = []  # submodules in packages of earlier entries
        self.environ: dict[str, str | None] = {}
        self.changes: list[_Change] = []
        self.at_exit: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.said: list[tuple[int, bytes]] = []
        self.before: list[Any] = []  # where the random generators stood
        self.draws: list[Any] = []  # where the import left them


def _lists() -> list[list[Any]]:
    import warnings

    return [sys.path, sys.meta_path, sys.path_hooks, warnings.filters]  # type: ignore[list-item]


def _handlers() -> list[Any]:
    import signal

    return [signal.getsignal(number) for number in range(1, signal.NSIG)] + [
        sys.excepthook,
        sys.displayhook,
        sys.unraisablehook,
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
    ]


class _Change:
    """What an import did to one of the interpreter's lists: put in front, put behind, taken off."""

    def __init__(self, changed: list[Any], before: list[Any]) -> None:
        self._list = changed
        after = list(changed)
        self._behind: list[Any] = []
        while after and after[-1] not in before:
            self._behind.insert(0, after.pop())
        start = next(start for start in range(len(after) + 1) if _in_order(after[start:], before))
        self._front = after[:start]
        self._gone = [each for each in before if each not in after[start:]]

    def repeat(self) -> None:
        """Do it again."""
        kept = [each for each in self._list if each not in self._gone]
        self._list[:] = [*self._front, *kept, *self._behind]


def _in_order(part: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(any(each == other for other in rest) for each in part)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in [name for name in _environment() if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _changed(environ: dict[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    changed = {**environ, **{name: value for name, value in changes.items() if value is not None}}
    return {name: value for name, value in changed.items() if changes.get(name, value) is not None}


class _Capture:
    """What is written to stdout and stderr goes to memory."""

    def __init__(self) -> None:
        self._kept = [os.dup(fd) for fd in (1, 2)]
        self._memory = [os.memfd_create("ksupervise-said", os.MFD_CLOEXEC) for _ in self._kept]
        for fd, memory in zip((1, 2), self._memory, strict=True):
            os.dup2(memory, fd)

    def end(self) -> list[tuple[int, bytes]]:
        """The streams are what they were; what was written."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        said = []
        for fd, kept, memory in zip((1, 2), self._kept, self._memory, strict=True):
            os.dup2(kept, fd)
            os.close(kept)
            data = os.pread(memory, os.fstat(memory).st_size, 0)
            os.close(memory)
            if data:
                said.append((fd, data))
        return said


class Stash:
    """What was imported ahead, out of the script's sight; a finder that gives it back, in the same order."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._initial = _environment()
        self._pid = os.getpid()
        self._entries: list[_Entry] = []
        self._hidden: dict[str, ModuleType] = {}
        self.imported: Callable[[ModuleType], None] = lambda module: None  # what else is to be done with each module

    def fill(self, record: Sequence[Facts], seed: str) -> None:
        """Import all that; `seed` is the run's. Raises whatever an import raises, and Useless."""
        import random

        from ksupervise.child import pin

        if seed:
            pin.pin(random, seed)  # as when the script imports it
        folder, path, caches = os.getcwd(), list(sys.path), set(sys.path_importer_cache)
        handlers, drawn = _handlers(), random.getstate()
        try:
            for facts in record:
                self._entries.append(self._import(facts))
        finally:
            _set_environment(self._initial)
            sys.path[:] = path
            os.chdir(folder)
        if _handlers() != handlers:
            raise Useless("an import changes a handler of signals or of exceptions")
        _check_devices()
        random.setstate(drawn)
        if "keras.src.callbacks.callback_list" in sys.modules:
            from ksupervise.child import hook  # noqa: F401 - so that this is not left for later

        self._hide()
        for name in [name for name in sys.path_importer_cache if name not in caches]:
            del sys.path_importer_cache[name]

    def _import(self, facts: Facts) -> _Entry:
        import atexit
        import importlib
        import logging

        entry, present = _Entry(facts), set(sys.modules)
        wanted = _changed(self._initial, facts["environ"])
        _set_environment(wanted)
        sys.path[:] = facts["path"]
        os.chdir(facts["directory"])
        if facts["draws"] is not None:
            _set_draws(facts["draws"])
        entry.before = _draws()
        configured = logging.NullHandler() if facts["logging"] and not logging.root.handlers else None
        if configured is not None:
            logging.root.addHandler(configured)
        lists = [(each, list(each)) for each in _lists()]
        register = atexit.register

        def note(function: Any, /, *arguments: Any, **named: Any) -> Any:
            if atexit.register is not note:  # somebody kept us
                return register(function, *arguments, **named)
            entry.at_exit.append((function, arguments, named))
            return function

        atexit.register = note
        capture = _Capture()
        try:
            importlib.import_module(entry.name)
        finally:
            entry.said = capture.end()
            atexit.register = register
            if configured is not None:
                logging.root.removeHandler(configured)
        now = _environment()
        entry.environ = {name: value for name, value in now.items() if wanted.get(name) != value}
        entry.environ.update((name, None) for name in wanted if name not in now)
        entry.draws = _draws()
        for each, before in lists:
            if each != before:
                entry.changes.append(_Change(each, before))
            each[:] = before
        _forget_filters()
        entry.modules = {name: sys.modules[name] for name in list(sys.modules) if name not in present}
        entry.modules = {name: module for name, module in entry.modules.items() if not _is_standard(name)}
        own = [file for file in (getattr(m, "__file__", None) for m in entry.modules.values()) if _own(file)]
        if own:
            raise Useless(f"{entry.name} imports {own[0]}, which is the script's own")
        return entry

    def _hide(self) -> None:
        for entry in self._entries:
            for name, module in entry.modules.items():
                self._hidden[name] = sys.modules.pop(name, module)
        for entry in self._entries:
            for name, module in entry.modules.items():
                package, _, last = name.rpartition(".")
                parent = None if package in entry.modules else self._hidden.get(package)
                if parent is not None and vars(parent).get(last) is module:
                    delattr(parent, last)
                    entry.attributes.append((parent, last, module))

    def standard_at_exit(self) -> None:
        """What the standard library does at the end does not wait for a package that the script may not import."""
        import atexit

        for entry in self._entries:
            for function, arguments, named in entry.at_exit:
                if _is_standard(str(getattr(function, "__module__", ""))):
                    atexit.register(function, *arguments, **named)
            entry.at_exit = [
                each for each in entry.at_exit if not _is_standard(str(getattr(each[0], "__module__", "")))
            ]

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a module that is here; asked for by an import, or by somebody who wants to know of it."""
        from importlib.machinery import ModuleSpec

        module = self._hidden.get(name)
        if module is None:
            return None
        own = getattr(module, "__spec__", None)
        spec = ModuleSpec(name, None)
        if own is not None:
            vars(spec).update(vars(own))
        spec.loader = _Given(spec.loader, self, own)  # type: ignore[assignment, arg-type]
        return spec

    def take(self, name: str) -> tuple[ModuleType, list[ModuleType]]:
        """The module, and all that came with it; they are in sys.modules now. Does not return if it must not be."""
        entry = self._entries[0]
        if name != entry.name and not entry.name.startswith(f"{name}."):
            self._start_over(f"{name} is imported where {entry.name} was")
        differing = _differing(entry.facts, circumstances(self._initial))
        if differing:
            self._start_over(f"{differing} differs from what it was when {entry.name} was imported")
        module = self._hidden[name]
        before = _draws()
        for each, found in entry.modules.items():
            sys.modules[each] = self._hidden.pop(each, found)
        for parent, last, child in entry.attributes:
            setattr(parent, last, child)
        _set_environment(_changed(_environment(), entry.environ))
        for change in entry.changes:
            change.repeat()
        _forget_filters()
        _continue_draws(before, entry)
        import atexit

        for function, arguments, named in entry.at_exit:
            atexit.register(function, *arguments, **named)
        for fd, data in entry.said:
            _write(fd, data)
        del self._entries[0]
        if not self._entries:
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        return module, list(entry.modules.values())

    def _start_over(self, why: str) -> None:
        """What is loaded cannot be unloaded: this process ends, and the parent begins the attempt anew."""
        import json

        if os.getpid() != self._pid:
            return  # a fork, of which the parent knows nothing

        self._tell(json.dumps({"op": "start_over", "pid": os.getpid(), "why": why}))
        os._exit(1)


def _own(file: object) -> bool:
    return isinstance(file, str) and is_users(file)


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass


def _forget_filters() -> None:
    import warnings

    mutated = getattr(warnings, "_filters_mutated", None) or getattr(warnings, "_filters_mutated_lock_held", None)
    if mutated is not None:
        mutated()


def _continue_draws(before: Sequence[Any], entry: _Entry) -> None:
    """The generators stand where the import would have left them; one that the script has set otherwise stays so."""
    pairs = zip(entry.before, before, entry.draws, strict=True)
    _set_draws([after if then is None or then == now else None for then, now, after in pairs])


def _check_devices() -> None:
    """Raises Useless if an import has begun to use a device: the attempt that is training may need all of it."""
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if getattr(context, "_context_handle", None) is not None:
        raise Useless("an import of this script makes TensorFlow use its devices")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise Useless("an import of this script makes torch use its devices")
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and getattr(bridge, "_backends", None):
        raise Useless("an import of this script makes JAX use its devices")


class _Given:
    """Stands for a module's own loader where the module is loaded already."""

    def __init__(self, loader: Loader, stash: Stash, spec: ModuleSpec | None) -> None:
        self._loader = loader
        self._stash = stash
        self._spec = spec
        self._came: list[ModuleType] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that was imported ahead."""
        module, self._came = self._stash.take(spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was run; what our part waits for is done now."""
        module.__spec__ = self._spec
        for each in self._came:
            self._stash.imported(each)


def wait(tell: Tell, seed: str) -> Stash:
    """Be the interpreter that waits: returns when the parent makes it an attempt. Without a parent it ends."""
    import json
    import socket

    gate = socket.socket(fileno=int(os.environ[MARK]))
    gate.set_inheritable(False)
    os.environ[MARK] = RECORD
    lines = gate.makefile("rb")
    try:
        stash: Stash | None = None
        was_victim = _be_first_victim()
        meek = _be_meek()
        record = _read(lines)
        try:
            stash = Stash(tell)
            stash.fill(record["entries"], seed)
            told: dict[str, Any] = {"op": "warm", "rss": _rss()}
        except BaseException as error:
            stash, told = None, {"op": "useless", "why": f"{type(error).__name__}: {error}"}
        if meek:
            _be_ordinary()
        _tell(gate, json.dumps(told).encode() + b"\n")
        _read(lines)
        _set_victim(was_victim)
    finally:
        lines.close()
        gate.close()
    if stash is None or not _is_first(seed):
        execute_anew()
    assert stash is not None
    return stash


def _is_first(seed: str) -> bool:
    """We are the first interpreter of this attempt that runs this program, as `fill` took for granted."""
    from ksupervise.child import pin

    return not seed or pin.enter() == 0


def _tell(gate: socket.socket, line: bytes) -> None:
    try:
        gate.sendall(line)
    except OSError:
        pass  # its word has come already, and the gate is closed; or it is gone, as we shall read


def _read(lines: Any) -> dict[str, Any]:
    import json

    try:
        line = lines.readline()
    except OSError:
        line = b""
    if not line:
        os._exit(1)  # the parent is gone. Never 0: an attempt that ends so has completed its run
    return dict(json.loads(line))


def execute_anew() -> None:
    """Become a cold interpreter: not one line of the script has run."""
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair]
        environ = {each[0]: each[1] for each in pairs}
        environ[MARK.encode()] = RECORD.encode()
        os.execve(sys.executable, sys.orig_argv, environ)  # noqa: S606 - it is what we are
    except OSError:
        os._exit(1)


def _be_first_victim() -> str:
    try:
        with open("/proc/self/oom_score_adj") as file:
            before = file.read()
    except OSError:
        return ""
    _set_victim(_FIRST_VICTIM)
    return before


def _set_victim(score: str) -> None:
    if not score:
        return
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(score)
    except OSError:
        pass


def _be_meek() -> bool:
    """Take only processor time that nobody else wants, where that can be taken back again. False if nothing changed."""
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False
        policy = os.SCHED_IDLE if _may_come_back() else os.SCHED_BATCH
        os.sched_setscheduler(0, policy, os.sched_param(0))
        return True
    except (OSError, AttributeError):
        return False


def _may_come_back() -> bool:
    """The kernel lets a process leave SCHED_IDLE if it may have the nice value that it has."""
    import resource

    try:
        if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - os.getpriority(os.PRIO_PROCESS, 0):
            return True
        with open("/proc/self/status") as file:
            capable = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
        return bool(capable >> 23 & 1)  # CAP_SYS_NICE
    except (OSError, AttributeError, StopIteration):
        return False


def _be_ordinary() -> None:
    """All threads: what was started meanwhile has inherited it."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            pass
