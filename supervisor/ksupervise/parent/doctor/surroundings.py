"""Where we are: in a container, a notebook, a job, a unit, and when that ends. Reads only; nothing here raises.

Each is known by the mark that it leaves on purpose: a variable, a file, a line of /proc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# The kernel's constant in gVisor's own sources, whatever its version.
_GVISOR = "#1 SMP Sun Jan 10 15:06:54 PST 2016"


@dataclass(frozen=True)
class Surrounding:
    """One thing that we are inside of.

    Attributes:
        name: container, Kubernetes, WSL, gVisor, Colab, Kaggle, Jupyter, Slurm or systemd.
        why: the mark.
        ends: seconds of the wall clock (since 1970) at which it is over; None if that is not known.
    """

    name: str
    why: str
    ends: float | None = None


def surroundings(environ: Mapping[str, str], root: Path = Path("/")) -> list[Surrounding]:
    """All of them. `root` is another one for tests."""
    found = [*_sandboxes(environ, root), *_notebooks(environ)]
    if "SLURM_JOB_ID" in environ:
        end = environ.get("SLURM_JOB_END_TIME", "")
        found.append(Surrounding("Slurm", f"job {environ['SLURM_JOB_ID']}", float(end) if end.isdigit() else None))
    unit = _unit(_text(root / "proc/self/cgroup"))
    if unit and "INVOCATION_ID" in environ:
        found.append(Surrounding("systemd", f"unit {unit}"))
    return found


def _sandboxes(environ: Mapping[str, str], root: Path) -> Iterator[Surrounding]:
    version = _text(root / "proc/version")
    if _GVISOR in version:
        yield Surrounding("gVisor", "its /proc/version")
    elif "microsoft" in version.lower():
        yield Surrounding("WSL", "its /proc/version")
    if "KUBERNETES_SERVICE_HOST" in environ or (root / "var/run/secrets/kubernetes.io").exists():
        yield Surrounding("Kubernetes", "its variables, or its secrets")
    for mark in (".dockerenv", "run/.containerenv"):
        if (root / mark).exists():
            yield Surrounding("container", f"/{mark} is there")
            return
    if environ.get("container") or b"container=" in _bytes(root / "proc/1/environ"):
        yield Surrounding("container", "the variable `container` is set")


def _notebooks(environ: Mapping[str, str]) -> Iterator[Surrounding]:
    if environ.get("COLAB_RELEASE_TAG") or environ.get("COLAB_GPU"):
        yield Surrounding("Colab", "its variables")
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        yield Surrounding("Kaggle", "its variables")
    if environ.get("JPY_PARENT_PID") or environ.get("JPY_SESSION_NAME"):
        yield Surrounding("Jupyter", "its variables")


def _unit(cgroups: str) -> str:
    """The unit in which systemd started us, "" if it was none."""
    for line in cgroups.splitlines():
        for part in reversed(line.split("/")):
            if part.endswith(".service") and not part.startswith("user@"):
                return part
    return ""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def limits() -> dict[str, int | None]:
    """What `ulimit` says, soft: bytes of address space, of a file and of a core; open files. None: no limit."""
    import resource

    names = {
        "address space": resource.RLIMIT_AS,
        "open files": resource.RLIMIT_NOFILE,
        "file size": resource.RLIMIT_FSIZE,
        "core": resource.RLIMIT_CORE,
    }
    found = {name: resource.getrlimit(number)[0] for name, number in names.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in found.items()}


def memory(proc: Path = Path("/proc")) -> dict[str, int]:
    """Bytes, as the machine has them: `MemTotal`, `MemAvailable`, `SwapTotal`, `SwapFree`; those that it tells."""
    found = {}
    for line in _text(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree") and rest.split()[:1]:
            found[name] = 1024 * int(rest.split()[0])
    return found


def processors() -> int:
    """That we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
