"""What `scripts/torture faults` does to a run from outside, and what it prepares before.

A function of OUTSIDE is called with the run when its script has come to the place of the fault; one of BEFORE when
the run's folder was made, before ksupervise is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.store.fuse import Mount, why_not

if TYPE_CHECKING:
    from faults_run import Run

HERE = Path(__file__).resolve().parent
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1
ENOUGH = 1500 << 20  # bytes: what the job takes and some
SMALL = "size=256k"  # a tmpfs


# Signals ------------------------------------------------------------------------------------------


def _to_child(name: str) -> Callable[[Run], None]:
    return lambda run: run.strike(lambda: os.kill(run.trainer, getattr(signal, f"SIG{name}")))


def _to_parent(name: str) -> Callable[[Run], None]:
    return lambda run: run.strike(lambda: os.kill(run.parent, getattr(signal, f"SIG{name}")))


def ctrl_c(run: Run) -> None:
    """As a terminal does it: to the whole group of the parent."""
    run.strike(lambda: os.killpg(run.parent, signal.SIGINT))


def kill_both(run: Run) -> None:
    """The parent first: it must not judge."""
    os.kill(run.parent, signal.SIGSTOP)
    run.strike(lambda: os.kill(run.trainer, signal.SIGKILL))
    os.kill(run.parent, signal.SIGKILL)


def kill_once_staged(run: Run) -> None:
    """When a state is held that is newer than the fault."""
    run.wait(lambda: run.staged() > run.numbers[0], "a stage of the poisoned state")
    run.strike(lambda: os.kill(run.trainer, signal.SIGKILL))


def suspend(run: Run) -> None:
    """Parent and child stand still, and go on."""
    group = os.getpgid(run.trainer)
    os.kill(run.parent, signal.SIGSTOP)
    os.killpg(group, signal.SIGSTOP)
    time.sleep(run.fault.seconds)
    os.kill(run.parent, signal.SIGCONT)
    os.killpg(group, signal.SIGCONT)


# Words --------------------------------------------------------------------------------------------


def stop_command(run: Run) -> None:
    """`ksupervise stop`."""
    command = [sys.executable, "-m", "ksupervise", "stop", "--store", str(run.run_dir.parent), run.run_dir.name]
    run.strike(lambda: subprocess.run(command, check=True, capture_output=True, timeout=30))


def notice(run: Run) -> None:
    """The file appears; it is gone again before the next call."""
    run.strike((run.folder / "notice").touch)
    run.between.append((run.folder / "notice").unlink)


# Debuggers ----------------------------------------------------------------------------------------


def trace(run: Run) -> None:
    """A debugger holds all threads: they are in a stop that only it ends."""
    command = [sys.executable, "-I", "-S", str(HERE / "faults_tracer.py"), str(run.trainer), str(run.fault.seconds)]
    subprocess.run(command, check=True, timeout=120)


def answer(run: Run) -> None:
    """Somebody who thinks before he goes on."""
    time.sleep(run.fault.seconds)
    run.say(b"c\n")


# Memory -------------------------------------------------------------------------------------------


def cgroup(run: Run) -> None:
    """The run gets a memory cgroup of its own with a limit."""
    group = MEMORY / f"torture-{os.getpid()}-{run.folder.name}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(ENOUGH))
    run.launcher = ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    run.undo.callback(_remove_cgroup, group)


def _remove_cgroup(group: Path) -> None:
    end = time.monotonic() + 10
    while group.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.01)


def let_go(run: Run) -> None:
    """It may take what it wants."""
    run.strike((run.folder / "go").touch)


def oom_of_all(run: Run) -> None:
    """The kernel takes the child, and the parent is gone before it can say so."""
    os.kill(run.parent, signal.SIGSTOP)
    run.strike((run.folder / "go").touch)
    run.wait(lambda: run.is_dead(run.trainer), "the out-of-memory killer")
    os.kill(run.parent, signal.SIGKILL)


# Disks --------------------------------------------------------------------------------------------


def small_disk(run: Run) -> None:
    """A file system that is full soon."""
    small = run.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL, "torture", small], check=True)
    run.undo.callback(lambda: subprocess.run(["umount", "-l", small], check=False))


def nfs(run: Run) -> None:
    """A file system that can be made to hang."""
    backing, mountpoint = run.folder / "backing", run.folder / "nfs"
    backing.mkdir()
    mountpoint.mkdir()
    (backing / "data").write_bytes(bytes(1 << 16))
    process = subprocess.Popen(
        [sys.executable, str(HERE / "faults_fuse.py"), str(backing), str(mountpoint), str(run.folder / "stuck")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run.mount = Mount(str(mountpoint), process)
    run.undo.callback(run.mount.unmount)
    run.undo.callback(run.mount.kill)


def nfs_dies(run: Run) -> None:
    """It does not even take the question; once the child is gone it answers again."""
    assert run.mount is not None
    os.kill(run.mount.pid, signal.SIGSTOP)
    run.strike((run.folder / "go").touch)
    run.wait(lambda: run.is_dead(run.trainer), "the end of the child that reads from a dead file system")
    os.kill(run.mount.pid, signal.SIGCONT)


def nfs_keeps(run: Run) -> None:
    """It takes the question and never answers: whoever asked cannot even be killed."""
    assert run.mount is not None
    (run.folder / "stuck").touch()
    run.strike((run.folder / "go").touch)
    run.between.append(run.mount.kill)


# The machine --------------------------------------------------------------------------------------


def deadline(run: Run) -> None:
    """It comes while the job trains, if the machine is not too busy."""
    run.first += ["--grace", "2s", "--deadline", f"{run.random.uniform(6.0, 8.0):.1f}s"]


def reboot(run: Run) -> None:
    """The machine is started anew."""
    kill_both(run)
    run.between.append(lambda: _rewrite(run, boot="00000000-0000-4000-8000-000000000000"))


def move_away(run: Run) -> None:
    """The run goes on on another machine."""
    kill_both(run)
    run.between.append(lambda: _rewrite(run, boot="00000000-0000-4000-8000-000000000000", host="elsewhere"))


def _rewrite(run: Run, **changed: str) -> None:
    """What the journal and the lock's note say of the machine becomes that of another boot, or another machine."""
    journal = run.run_dir / "journal.jsonl"
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in _changed(journal, changed)))
    lock = run.run_dir / "lock"
    with contextlib.suppress(ValueError):
        note = json.loads(lock.read_text())
        note.update(boot_id=changed["boot"], host=changed.get("host", note.get("host")))
        lock.write_text(json.dumps(note))


def _changed(journal: Path, changed: dict[str, str]) -> Iterator[dict[str, object]]:
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        record.update({name: value for name, value in changed.items() if name in record})
        if isinstance(record.get("oom"), dict):
            record["oom"]["boot"] = changed["boot"]
        yield record


def lacking(what: str) -> str:
    """Why what a fault needs is not here, "" if it is."""
    if not what:
        return ""
    if os.geteuid():
        return "needs root"
    if what == "cgroup" and not (MEMORY / "memory.limit_in_bytes").exists():
        return "needs the memory controller of cgroup version 1"
    return why_not() if what == "fuse" else ""


OUTSIDE: dict[str, Callable[[Run], None]] = {
    "kill_child": _to_child("KILL"),
    "term_child": _to_child("TERM"),
    "interrupt_child": _to_child("INT"),
    "stop_child": _to_child("STOP"),
    "kill_parent": _to_parent("KILL"),
    "term_parent": _to_parent("TERM"),
    "usr1_parent": _to_parent("USR1"),
    "usr2_parent": _to_parent("USR2"),
    "kill_both": kill_both,
    "kill_once_staged": kill_once_staged,
    "ctrl_c": ctrl_c,
    "suspend": suspend,
    "stop_command": stop_command,
    "notice": notice,
    "trace": trace,
    "answer": answer,
    "let_go": let_go,
    "oom_of_all": oom_of_all,
    "nfs_dies": nfs_dies,
    "nfs_keeps": nfs_keeps,
    "reboot": reboot,
    "move_away": move_away,
}
BEFORE: dict[str, Callable[[Run], None]] = {
    "cgroup": cgroup,
    "small_disk": small_disk,
    "nfs": nfs,
    "deadline": deadline,
}
