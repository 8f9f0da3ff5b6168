"""Law 7: nothing outlives a run that should not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from .helpers import LEAVER, TALKER, Place, alive, until, wait_gone

# A double fork into a session of its own, deaf to everything but SIGKILL; the child goes on with BODY.
ESCAPE = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.write(1, f"escapee {os.getpid()}\\n".encode())
        while True:
            signal.pause()
    os._exit(0)
os.wait()
"""

WAYS = {
    "it ends well": "while not os.path.exists('go'): time.sleep(0.002)",
    "it fails": "while not os.path.exists('go'): time.sleep(0.002)\nraise SystemExit(3)",
    "it is killed": "while not os.path.exists('go'): time.sleep(0.002)\nos.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_escapee_does_not_outlive_its_attempt(place: Place, way: str) -> None:
    parent = place.start("--max-failures", "1", *place.script(ESCAPE + WAYS[way]))
    escapee = int(parent.line("escapee").split()[1])
    assert os.getsid(escapee) != os.getsid(parent.pid)
    place.write("go", "")
    parent.wait()
    assert not psutil.pid_exists(escapee)
    assert place.marked() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nor_when_the_parent_is_asked_to_go(place: Place, number: int) -> None:
    parent = place.start(*place.script(ESCAPE + LEAVER))
    escapee = int(parent.line("escapee").split()[1])
    parent.line("ready")
    parent.send(number)
    parent.wait()
    assert not psutil.pid_exists(escapee)
    assert place.marked() == []


def test_nor_when_the_child_had_to_be_killed(place: Place) -> None:
    parent = place.start("--grace", "100ms", *place.script(ESCAPE + TALKER))
    escapee = int(parent.line("escapee").split()[1])
    parent.line("ready")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
    assert not psutil.pid_exists(escapee)


def test_a_whole_bush_of_processes_is_gone(place: Place) -> None:
    source = """
import os, signal
for depth in range(4):
    os.fork()
    if depth == 2: os.setsid() if os.getpid() != os.getpgid(0) else None
os.write(1, f"pid {os.getpid()}\\n".encode())
while True: signal.pause()
"""
    parent = place.start("--grace", "100ms", *place.script(source))
    parent.line("pid", times=16)
    pids = [int(line.split()[1]) for line in parent.out.splitlines()]
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def test_the_child_dies_with_a_killed_parent(place: Place) -> None:
    parent = place.start(*place.script(TALKER))
    parent.line("ready")
    child = int(place.events("launched")[0]["pid"])
    parent.kill()
    wait_gone(child)


def test_orphans_that_died_are_collected_while_the_run_goes_on(place: Place) -> None:
    """We are their subreaper: without us init would collect them."""
    source = """
import os
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
"""
    parent = place.start(*place.script(source + LEAVER))
    parent.line("ready")
    ours = psutil.Process(parent.pid)
    until(lambda: len(ours.children(recursive=True)) == 1, "end of the zombies")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75


def test_a_child_killed_by_somebody_is_tried_again(place: Place) -> None:
    parent = place.start("--grace", "1h", *place.script(LEAVER))
    parent.line("ready")
    child = int(place.events("launched")[0]["pid"])
    os.kill(child, signal.SIGKILL)
    parent.line("ready", times=2)
    assert not psutil.pid_exists(child)
    parent.send(signal.SIGTERM)
    done = parent.wait()
    assert done.code == 75
    assert done.said("killed by SIGKILL")


def test_no_file_but_the_runs_own_is_left(place: Place, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = set(Path("/tmp").glob("*ksupervise*")) | set(Path("/dev/shm").glob("*"))
    script = place.script("")
    place.run(*script, env={"TMPDIR": str(elsewhere)})
    assert list(elsewhere.iterdir()) == []
    assert set(Path("/tmp").glob("*ksupervise*")) | set(Path("/dev/shm").glob("*")) == before
    assert sorted(path.name for path in place.root.iterdir()) == ["elsewhere", "script.py", "store"]
    run = place.run_dir
    assert sorted(path.relative_to(run).as_posix() for path in run.rglob("*")) == [
        "aside",
        "attempts",
        "attempts/001",
        "attempts/001/live",
        "attempts/001/output.log",
        "boot.zip",
        "checkpoints",
        "journal.jsonl",
        "lock",
        "run.json",
        "tmp",
        "trash",
    ]


def test_a_run_is_for_its_owners_eyes_only(place: Place) -> None:
    place.run("true", umask=0)
    for path in [place.run_dir, *place.run_dir.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


DESCRIPTORS = '''
import json, os
def mine():
    names = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            names[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass
    return names
def fork():
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        open_now = mine()
        del open_now[write]
        os.write(write, json.dumps(open_now).encode())
        os._exit(0)
    os.close(write)
    with open(read) as stream:
        return json.load(stream)
import subprocess, sys
code = """
import json, os
print(json.dumps([os.readlink(f"/proc/self/fd/{n}") for n in range(1000) if os.path.lexists(f"/proc/self/fd/{n}")]))
"""
program = subprocess.run([sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE)
print(json.dumps([mine(), fork(), json.loads(program.stdout)]))
'''


def test_the_childs_descriptors(place: Place) -> None:
    done = place.run(*place.script(DESCRIPTORS))
    child, fork, program = json.loads(done.out)
    lock = str(place.run_dir / "lock")
    extra = {int(fd): path for fd, path in child.items() if int(fd) > 2}
    held = [fd for fd, path in extra.items() if path == lock]
    assert len(held) == 1
    assert min(extra) >= 200
    assert [Path(path).name for path in extra.values() if path != lock] == ["stacks.txt"]
    assert lock not in fork.values(), "a forked data worker holds the run"
    assert lock not in program, "a program of the script's holds the run"


def test_a_lock_file_of_the_users_own_is_left_alone(place: Place) -> None:
    """`exec 200>file; flock 200` is what everybody writes; our number may be the same."""
    source = """
import json, os, sys
fd = int(sys.argv[1])
inherits = os.get_inheritable(fd)
read, write = os.pipe()
if os.fork() == 0:
    os.close(read)
    os.write(write, os.readlink(f"/proc/self/fd/{fd}").encode())
    os._exit(0)
os.close(write)
print(json.dumps([inherits, os.read(read, 1000).decode()]))
"""
    script = " ".join(place.script(source))
    done = place.run("bash", "-c", f'eval "exec $KSUPERVISE_LOCK_FD>mine"; {script} $KSUPERVISE_LOCK_FD')
    assert json.loads(done.out) == [True, str(place.root / "mine")]


def test_descriptors_that_the_caller_opened_reach_the_script_and_are_closed_with_the_run(place: Place) -> None:
    """`ksupervise python train.py <(zcat data.csv)`, and the reader of such a pipe sees the end when the run ends."""
    read, write = os.pipe()
    done = place.run("sh", "-c", f"echo given >/dev/fd/{write}", pass_fds=[write])
    os.close(write)
    assert os.read(read, 100) == b"given\n"
    assert os.read(read, 1) == b""
    os.close(read)
    assert done.code == 0


def test_a_process_that_holds_our_output_does_not_hold_us(place: Place) -> None:
    """The script ends, its daemon keeps stdout open: it is killed, we leave at once."""
    done = place.run("sh", "-c", "setsid sleep 1000 & echo $!")
    assert done.code == 0
    assert not alive(int(done.out))
