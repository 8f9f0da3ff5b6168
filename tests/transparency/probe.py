"""What a script can find out about the process it runs in. `python probe.py FACTS [WORDS]...` writes it as JSON.

A stand-in for a script of a user's that looks around: nothing of ksupervise is imported here. The facts are flat,
so that a difference has a name.
"""

import sys

MODULES = sorted(sys.modules)  # before our own imports bring more
PATH_CACHE = sorted(sys.path_importer_cache)
META_PATH = [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path]
THREAD_MODULES = sys.modules.get("threading") is not None

import atexit  # noqa: E402
import builtins  # noqa: E402
import ctypes  # noqa: E402
import fcntl  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import locale  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import site  # noqa: E402
import stat  # noqa: E402
import tempfile  # noqa: E402
import termios  # noqa: E402
import threading  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

_STATUS = {
    *("SigBlk", "SigIgn", "SigCgt", "ShdPnd", "SigPnd", "Umask", "Uid", "Gid", "Groups", "Threads"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed", "CoreDumping"),
}
_KINDS = {
    *((stat.S_IFIFO, "pipe"), (stat.S_IFCHR, "device"), (stat.S_IFREG, "file"), (stat.S_IFDIR, "directory")),
    *((stat.S_IFSOCK, "socket"), (stat.S_IFBLK, "block device")),
}


def look_around() -> dict[str, Any]:
    """Every fact."""
    found: dict[str, Any] = {}
    parts = (_words, _main, _interpreter, _hooks, _process, _kernel, _signals, _descriptors, _streams, _environ)
    for part in (*parts, _standard_library):
        found.update(part())
    return found


def _words() -> dict[str, Any]:
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "cwd": os.getcwd(),
        "executable": sys.executable,
        "prefixes": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix],
        "path": sys.path,
        "path cache": PATH_CACHE,
        "cmdline": Path("/proc/self/cmdline").read_bytes().decode(errors="replace"),
        "comm": Path("/proc/self/comm").read_text(),
    }


def _main() -> dict[str, Any]:
    module = sys.modules["__main__"]
    spec, loader = module.__spec__, module.__loader__
    return {
        "main names": sorted(name for name in vars(module) if name.startswith("__")),
        "main name": module.__name__,
        "main file": module.__file__,
        "main doc": module.__doc__,
        "main package": module.__package__,
        "main spec": spec and [spec.name, spec.origin, spec.cached, type(spec.loader).__name__],
        "main loader": getattr(loader, "__name__", type(loader).__name__),
        "main annotations": repr(getattr(module, "__annotations__", None)),
        "builtins": sorted(vars(builtins)),
        "builtins made elsewhere": sorted(
            name for name, value in vars(builtins).items() if type(value).__name__ == "function"
        ),
        "site": [site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE, *site.getsitepackages()],
    }


def _interpreter() -> dict[str, Any]:
    flags = {f"flags.{name}": getattr(sys.flags, name) for name in dir(sys.flags) if name[0].isalpha()}
    flags = {name: value for name, value in flags.items() if isinstance(value, int)}
    return {
        **flags,
        "xoptions": dict(sys._xoptions),
        "warnoptions": sys.warnoptions,
        "warning filters": [repr(entry) for entry in warnings.filters],
        "show warning": f"{warnings.showwarning.__module__}.{warnings.showwarning.__qualname__}",
        "warned of": sorted(vars(sys.modules["__main__"]).get("__warningregistry__", {})),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "dlopen flags": sys.getdlopenflags(),
        "int digits": getattr(sys, "get_int_max_str_digits", int)(),
        "gc": [gc.isenabled(), *gc.get_threshold(), gc.get_debug(), gc.get_freeze_count(), len(gc.callbacks)],
        "bytecode": [sys.dont_write_bytecode, sys.pycache_prefix],
        "encodings": [sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()],
        "last exception": [hasattr(sys, name) for name in ("last_type", "last_value", "last_exc")],
        "traced": [sys.gettrace() is None, sys.getprofile() is None],
        "interactive": [hasattr(sys, "ps1"), hasattr(sys, "__interactivehook__")],
    }


def _hooks() -> dict[str, Any]:
    own = {
        "excepthook": sys.excepthook is sys.__excepthook__,
        "displayhook": sys.displayhook is sys.__displayhook__,
        "breakpointhook": sys.breakpointhook is sys.__breakpointhook__,
        "unraisablehook": sys.unraisablehook is sys.__unraisablehook__,
        "threading.excepthook": threading.excepthook is threading.__excepthook__,
        "streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    }
    return {
        **own,
        "modules": MODULES,
        "meta path": META_PATH,
        "path hooks": [getattr(hook, "__qualname__", repr(type(hook))) for hook in sys.path_hooks],
        "import": repr(builtins.__import__),
        "atexit callbacks": atexit._ncallbacks(),
        "threading imported early": THREAD_MODULES,
        "threads": [[thread.name, thread.daemon, type(thread).__name__] for thread in threading.enumerate()],
        "thread count": threading.active_count(),
        "main thread": threading.current_thread() is threading.main_thread(),
        "async hooks": [hook is None for hook in sys.get_asyncgen_hooks()],
    }


def _process() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"}
    pid = os.getpid()
    return {
        **{f"limit.{name}": pair for name, pair in limits.items()},
        "umask": umask,
        "nice": os.nice(0),
        "user and group": [os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups()],
        "scheduler": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "affinity": sorted(os.sched_getaffinity(0)),
        "kernel threads": len(os.listdir("/proc/self/task")),
        "children": Path(f"/proc/self/task/{pid}/children").read_text(),
        "leads its session": os.getsid(0) == pid,
        "leads its group": os.getpgrp() == pid,
        "parent's session": os.getsid(0) == os.getsid(os.getppid()),
        "parent's group": os.getpgrp() == os.getpgid(os.getppid()),
        "controlling terminal": _controlling_terminal(),
    }


def _controlling_terminal() -> Any:
    try:
        fd = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        return type(error).__name__
    try:
        return ["foreground" if os.tcgetpgrp(fd) == os.getpgrp() else "background"]
    finally:
        os.close(fd)


def _kernel() -> dict[str, Any]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    prctl = ctypes.CDLL(None).prctl
    death_signal, subreaper = ctypes.c_int(-1), ctypes.c_int(-1)
    prctl(2, ctypes.byref(death_signal), 0, 0, 0)  # PR_GET_PDEATHSIG
    prctl(37, ctypes.byref(subreaper), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    plain = ("oom_score_adj", "coredump_filter", "cgroup", "timerslack_ns", "personality", "setgroups", "uid_map")
    return {
        **{f"status.{name}": status[name].split() for name in sorted(_STATUS & set(status))},
        **{f"proc.{name}": _read(f"/proc/self/{name}") for name in plain},
        **{f"namespace.{name}": _link(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
        "death signal": death_signal.value,
        "subreaper": subreaper.value,
        "dumpable": prctl(3, 0, 0, 0, 0),  # PR_GET_DUMPABLE
        "timer slack": prctl(30, 0, 0, 0, 0),  # PR_GET_TIMERSLACK
        "transparent huge pages": prctl(42, 0, 0, 0, 0),  # PR_GET_THP_DISABLE
        "mapped files": sorted({line.split(maxsplit=5)[5] for line in _maps() if line.count("/")}),
    }


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _signals() -> dict[str, Any]:
    wakeup = signal.set_wakeup_fd(-1)
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return {
        **{f"signal.{number.name}": _handler(number) for number in signal.Signals},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup fd": wakeup,
        "timers": [signal.getitimer(timer) for timer in timers],
    }


def _handler(number: signal.Signals) -> str:
    handler = signal.getsignal(number)
    return handler.name if isinstance(handler, signal.Handlers) else getattr(handler, "__qualname__", repr(handler))


def _descriptors() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            about = os.fstat(fd)
        except OSError:
            continue  # it was the listing itself
        kind = dict(_KINDS)[stat.S_IFMT(about.st_mode)]
        found[f"fd.{fd}"] = kind
        found[f"fd.{fd} target"] = "" if kind in ("pipe", "socket") else os.readlink(f"/proc/self/fd/{fd}")
        found[f"fd.{fd} flags"] = [fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD)]
        found[f"fd.{fd} isatty"] = os.isatty(fd)
        if os.isatty(fd):
            found[f"fd.{fd} size"] = list(os.get_terminal_size(fd))
            for name, modes in zip(("input", "output", "control", "local"), termios.tcgetattr(fd)[:4], strict=True):
                found[f"fd.{fd} {name} modes"] = modes
            found[f"fd.{fd} speeds"] = termios.tcgetattr(fd)[4:6]
            found[f"fd.{fd} characters"] = [repr(code) for code in termios.tcgetattr(fd)[6]]
            found[f"fd.{fd} foreground"] = _foreground(fd)
    same = [[os.path.sameopenfile(one, two) for one in range(3) if f"fd.{one}" in found]
            for two in range(3) if f"fd.{two}" in found]  # fmt: skip
    return {**found, "same files": same}


def _foreground(fd: int) -> bool | str:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError as error:
        return type(error).__name__


def _streams() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        found[name] = stream and [stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines]
        if stream is not None:
            found[f"{name} line buffering"] = stream.line_buffering
            found[f"{name} write through"] = stream.write_through
            found[f"{name} buffer"] = type(stream.buffer).__name__
            found[f"{name} seekable"] = stream.seekable()
    found["read from stdin"] = sys.stdin and not sys.stdin.isatty() and sys.stdin.read()
    return found


def _environ() -> dict[str, Any]:
    return {f"environ.{name}": value for name, value in os.environ.items()}


def _standard_library() -> dict[str, Any]:
    try:
        sitecustomize = importlib.import_module("sitecustomize")
        customized: list[Any] = [sitecustomize.__file__, sitecustomize.__name__, sorted(vars(sitecustomize))]
        customized += [getattr(sitecustomize.__spec__, "origin", None)]
    except ImportError as error:
        customized = [repr(error), error.name, error.path]
    return {
        "sitecustomize": customized,
        "locale": [locale.getlocale(), locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False)],
        "temporary": tempfile.gettempdir(),
        "a hash": hash("a string"),
        "random": random.random(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(look_around()))
    print("stdout: ü")
    print("stderr: ü", file=sys.stderr)
