"""What `doctor` finds out: real interpreters with a Keras of ours in place of the heavy one, and stores that hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.store.fuse import mounted, why_not

import ksupervise
from ksupervise.parent import run
from ksupervise.parent.doctor import probes
from ksupervise.parent.doctor.examine import Card, Findings, examine, interpreter_of, interpreter_options, keeping_away
from ksupervise.parent.doctor.probes import Report, read_report
from ksupervise.parent.doctor.surroundings import limits, memory, surroundings
from ksupervise.settings import Settings
from ksupervise.store import RunLayout, RunLock

SUPERVISOR = str(Path(ksupervise.__file__).resolve().parent.parent)
PYTHON = sys.executable
ON_JAX = "__version__ = '3.9.1'\nclass backend:\n    backend = staticmethod(lambda: 'jax')\n"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are made; empty again afterwards, and no process of ours is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield folder
    assert list(folder.iterdir()) == []
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Findings]:
    """`examine`, with a Keras that is `keras`, a package's text."""

    def find(*command: str, keras: str = ON_JAX, store: Path = tmp_path / "store", **arguments: float) -> Findings:
        package = tmp_path / "site" / "keras"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(keras)
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        return examine(command or (PYTHON,), Settings(store=store), environ, **arguments)  # type: ignore[arg-type]

    return find


# Which interpreter --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("train.py -u", ""),
        ("-u -I train.py -X dev", "-u -I"),
        ("-X importtime -Wonce -W error train.py", "-X importtime -Wonce -W error"),
        ("-um package --x", "-u"),
        ("-Ic code", "-I"),
        ("-c code -I", ""),
        ("-i -V -O train.py", "-O"),
        ("--check-hash-based-pycs never -S train.py", "--check-hash-based-pycs never -S"),
        ("-", ""),
    ],
)
def test_the_options_of_an_interpreter(words: str, options: str) -> None:
    assert interpreter_options(words.split()) == options.split()


@pytest.mark.parametrize(
    ("words", "away"),
    [("python -u", ""), ("python -sIE", "-I -E"), ("nice -S python3.11 -S", "-S"), ("python -X dev -W Ignore", "")],
)
def test_the_options_that_keep_the_hook_away(words: str, away: str) -> None:
    assert keeping_away(words.split()) == away.split()


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: A001 - so it is called
    """A folder of programs, the first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_what_passes_its_command_on_is_seen_through(bin: Path) -> None:  # noqa: A002
    for name in ("python3.11", "taskset", "run.sh"):
        program(bin / name, "#!/bin/sh\n")
    tool = program(bin / "train-tool", "#!/usr/bin/env -S python3.11 -u\n")
    plain = program(bin / "plain.py", f"#!{bin}/python3.11\n")
    start = {
        "python3.11 -u train.py": "python3.11 -u",
        "env -u A B=python3.11 nice -n 5 python3.11 -I x.py": None,  # what -u takes could be a program
        "env A=b nice -n 5 taskset -c 0,1 python3.11 -I x.py": "env A=b nice -n 5 taskset -c 0,1 python3.11 -I",
        f"{tool} --epochs 3": "/usr/bin/env python3.11 -u",
        f"{plain} -I": f"{bin}/python3.11",
        "env run.sh python3.11 x.py": None,
        f"sh {plain} python3.11": None,
        "nice": None,
    }
    for command, words in start.items():
        found = interpreter_of(command.split())
        assert (" ".join(found.words) if not found.unknown else None) == words, command
        assert not found.fault


def test_a_command_that_is_not_there_is_a_fault() -> None:
    assert "not found" in interpreter_of(["no-such-program-here"]).fault


# The interpreter, tried ---------------------------------------------------------------------------


def test_the_hook_and_keras_are_found(look: Callable[..., Findings]) -> None:
    found = look(PYTHON, "train.py")
    assert found.heard.hello
    assert found.interpreter.found["python"]["version"] == sys.version.split()[0]
    keras = found.interpreter.found["keras"]
    assert (keras["version"], keras["backend"]) == ("3.9.1", "jax")
    assert found.interpreter.code == 0
    assert not found.interpreter.doing


def test_the_script_is_not_run(look: Callable[..., Findings], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("open('it was run', 'w')")
    look(PYTHON, str(script))
    assert not (tmp_path / "it was run").exists()
    assert not Path("it was run").exists()


def test_an_isolated_interpreter_gets_no_hook_and_is_looked_at_all_the_same(look: Callable[..., Findings]) -> None:
    found = look(PYTHON, "-ES", "train.py")
    assert not found.heard.hello
    assert "version" in found.interpreter.found["python"]


def test_a_keras_that_never_comes_is_not_waited_for(look: Callable[..., Findings]) -> None:
    found = look(keras="import signal\nsignal.pause()\n", interpreter_seconds=1.0)
    assert found.interpreter.code is None
    assert found.interpreter.doing == "keras"


def test_a_keras_that_crashes_is_told(look: Callable[..., Findings]) -> None:
    found = look(keras="import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    assert (found.interpreter.code, found.interpreter.doing) == (-signal.SIGILL, "keras")


def test_a_keras_that_fails_is_told(look: Callable[..., Findings]) -> None:
    found = look(keras="raise ImportError('libcudart.so.12: cannot open')\n")
    assert found.interpreter.found["keras"] == {"error": "ImportError: libcudart.so.12: cannot open"}


def test_an_interpreter_that_is_none_is_told(look: Callable[..., Findings], bin: Path) -> None:  # noqa: A002
    found = look(program(bin / "python9", "#!/bin/sh\necho no such library >&2\nexit 3\n"), "train.py")
    assert (found.interpreter.code, found.interpreter.err) == (3, "no such library\n")
    assert not found.heard.hello
    assert "kind" in found.disk.found, "the rest was found out"


def test_what_an_interpreter_leaves_running_is_ended(look: Callable[..., Findings], tmp_path: Path) -> None:
    started = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(worker.pid))"
    keras = f"import subprocess\nworker = subprocess.Popen(['sleep', '1000'])\n{started}\n{ON_JAX}"
    look(keras=keras)
    pid = int((tmp_path / "pid").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(20)


# The store ----------------------------------------------------------------------------------------


def test_a_store_on_a_good_disk_has_everything(look: Callable[..., Findings], tmp_path: Path) -> None:
    found = look().disk
    assert found.code == 0
    assert found.found["place"] == {"folder": str(tmp_path), "exists": False}
    assert found.found["lock"] == found.found["rename"] == {}
    assert found.found["room"]["bytes"] > 0
    assert abs(found.found["clock"]["ahead"]) < 5
    assert not (tmp_path / "store").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_store_that_cannot_be_written_says_why(look: Callable[..., Findings], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    found = look(store=closed if os.getuid() else Path("/proc")).disk.found
    assert found["write"]["error"]
    assert "lock" not in found


def test_a_file_in_the_way_is_told(look: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    assert "in the way" in look().disk.found["place"]["error"]


def test_a_run_at_work_is_read_and_left_alone(look: Callable[..., Findings], tmp_path: Path) -> None:
    name = run.default_name([PYTHON, "train.py"], "")
    directory = tmp_path / "store" / name
    layout = RunLayout(directory)
    layout.create()
    run.save(directory / "run.json", run.new(name, ["python"], ""))
    lock = RunLock(layout.lock)
    assert lock.acquire()
    try:
        before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        found = look(PYTHON, "train.py").disk.found
        assert found["run"]["pid"] == os.getpid()
        assert found["run"]["count"] == 0
        assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
        assert [path.name for path in (tmp_path / "store").iterdir()] == [name]
    finally:
        lock.release()


def test_a_store_that_hangs_is_not_waited_for(look: Callable[..., Findings], tmp_path: Path) -> None:
    """A FIFO where the run's record should be: who reads it waits for ever."""
    directory = tmp_path / "store" / run.default_name([PYTHON], "")
    directory.mkdir(parents=True)
    os.mkfifo(directory / "run.json")
    found = look(probe_seconds=1.0)
    assert (found.disk.code, found.disk.doing) == (None, "run")
    assert found.heard.hello, "the rest was found out"


def test_a_mount_whose_server_is_silent_is_not_waited_for(look: Callable[..., Findings], tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    backing, mountpoint = tmp_path / "backing", tmp_path / "mounted"
    backing.mkdir()
    mountpoint.mkdir()
    with mounted(backing, mountpoint) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            found = look(store=mountpoint / "store", probe_seconds=1.0)
        finally:
            os.kill(mount.pid, signal.SIGCONT)
        assert found.disk.code is None
        assert found.heard.hello, "the rest was found out"


def test_a_mount_without_locks_or_direct_writes_says_so(look: Callable[..., Findings], tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    backing, mountpoint = tmp_path / "backing", tmp_path / "mounted"
    backing.mkdir()
    mountpoint.mkdir()
    with mounted(backing, mountpoint, no_flock="ENOLCK", no_direct=True):
        found = look(store=mountpoint).disk.found
    assert str(found["kind"]["type"]).startswith("fuse")
    assert "has no locks" in found["lock"]["error"]
    assert found["direct"] == {"taken": False}
    assert list(backing.iterdir()) == []


def test_a_probe_that_is_told_to_go_undoes_what_it_did(tmp_path: Path) -> None:
    stops = "import signal, os\nprobes._clock = lambda folder: (os.write(1, b'x'), signal.pause())\n"
    words = [str(tmp_path / "report"), "60", "store", str(tmp_path)]
    code = f"import sys; sys.path.insert(0, {SUPERVISOR!r})\nfrom ksupervise.parent.doctor import probes\n{stops}"
    process = subprocess.Popen([PYTHON, "-c", f"{code}probes.main({words!r})"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read(1) == b"x"
        assert list(tmp_path.glob(".ksupervise-doctor-*"))
        process.terminate()
        process.wait(20)
    assert not list(tmp_path.glob(".ksupervise-doctor-*"))


def test_what_a_killed_probe_left_is_swept_an_hour_later(look: Callable[..., Findings], tmp_path: Path) -> None:
    old, new = tmp_path / ".ksupervise-doctor-old", tmp_path / ".ksupervise-doctor-new"
    for each in (old, new):
        each.mkdir()
    os.utime(old, (0, 0))
    look()
    assert not old.exists()
    assert new.exists(), "somebody may be at it"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/data/store", "nfs4"), ("/data", "nfs4"), ("/database", "ext4"), ("/with blank/x", "fuse.drive"), ("/", "ext4")],
)
def test_the_mount_of_a_path(path: str, kind: str) -> None:
    table = [
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
        "30 27 0:30 / /data rw shared:1 - nfs4 server:/export rw,vers=4.2",
        "31 27 0:31 / /with\\040blank rw - fuse.drive drive rw",
        "a line that is none",
    ]
    assert probes.mount_of(path, table)["type"] == kind


def test_a_report_that_was_cut_tells_what_it_came_in(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    report.add("one", lambda: {"value": 1})
    report.add("two", lambda: {"size": os.stat("/no/such").st_size})
    with open(tmp_path / "report", "a") as stream:
        stream.write('{"doing": "three"}\n{"name": "thr')
    assert read_report(tmp_path / "report") == (
        {"one": {"value": 1}, "two": {"error": "No such file or directory"}},
        "three",
    )
    assert read_report(tmp_path / "none") == ({}, "")


# The machine --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' own")
def test_what_the_kernel_allows_is_tried(tmp_path: Path) -> None:
    words = [str(tmp_path / "report"), "60", "machine"]
    code = f"import sys; sys.path.insert(0, {SUPERVISOR!r})\n"
    code += f"from ksupervise.parent.doctor.probes import main; main({words!r})"
    subprocess.run([PYTHON, "-I", "-c", code], check=True, timeout=60)
    found, doing = read_report(tmp_path / "report")
    assert not doing
    assert found["memfd"] == {"on_disk": ""}
    assert found["pidfd"] == found["tree"] == found["terminal"] == {}


def test_without_a_subreaper_orphans_are_told_of(tmp_path: Path) -> None:
    words = [str(tmp_path / "report"), "60", "machine"]
    code = f"import sys; sys.path.insert(0, {SUPERVISOR!r})\nfrom ksupervise.parent.doctor import probes\n"
    code += f"probes.become_subreaper = lambda: None\nprobes.main({words!r})"
    subprocess.run([PYTHON, "-I", "-c", code], check=True, timeout=60)
    assert "does not become ours" in read_report(tmp_path / "report")[0]["tree"]["error"]


def test_cards_are_asked_for_and_one_that_hangs_is_not_waited_for(look: Callable[..., Findings], bin: Path) -> None:  # noqa: A002
    program(bin / "nvidia-smi", "#!/bin/sh\necho 'Tesla T4, 550.54.15, 15360, 3'\n")
    assert look().cards == [Card("Tesla T4", "550.54.15", "15360", "3")]
    program(bin / "nvidia-smi", "#!/bin/sh\nexec sleep 1000\n")
    assert look(probe_seconds=1.0).cards == []


GROUPS = Path("/sys/fs/cgroup")
IN_A_BOX = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from pathlib import Path
from ksupervise.parent.doctor.examine import examine
from ksupervise.settings import Settings
found = examine(["/bin/true"], Settings(store=Path(sys.argv[3])), {"PATH": ""})
print(json.dumps([found.cgroup, found.cgroup_version, found.oom_counted]))
"""


def test_the_limit_of_a_real_cgroup_is_told(tmp_path: Path) -> None:
    version = 1 if (GROUPS / "memory" / "memory.limit_in_bytes").exists() else 2
    folder = (GROUPS / "memory" if version == 1 else GROUPS) / f"ksupervise-doctor-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text("300000000")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no cgroup is to be had: {error}")
    try:
        words = [str(folder), SUPERVISOR, str(tmp_path)]
        answer = subprocess.run([PYTHON, "-c", IN_A_BOX, *words], check=True, timeout=60, capture_output=True)
        (used, limit), found_version, counted = json.loads(answer.stdout)
    finally:
        folder.rmdir()
    assert 0 < used < limit <= 300_000_000
    assert limit > 299_000_000, "whole pages"
    assert (found_version, counted) == (version, True)


# Where we are -------------------------------------------------------------------------------------


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_plain_machine_is_inside_of_nothing(tmp_path: Path) -> None:
    text(tmp_path / "proc/version", "Linux version 6.1 #1 SMP")
    text(tmp_path / "proc/self/cgroup", "0::/user.slice/user-0.slice/user@0.service/app.slice/run.scope\n")
    assert surroundings({"INVOCATION_ID": "x"}, tmp_path) == []


@pytest.mark.parametrize(
    ("path", "content", "name"),
    [
        ("proc/version", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", "gVisor"),
        ("proc/version", "Linux version 5.15-microsoft-standard-WSL2", "WSL"),
        (".dockerenv", "", "container"),
        ("run/.containerenv", "", "container"),
        ("proc/1/environ", "A=b\0container=lxc\0", "container"),
        ("var/run/secrets/kubernetes.io/token", "", "Kubernetes"),
    ],
)
def test_marks_on_the_disk(tmp_path: Path, path: str, content: str, name: str) -> None:
    text(tmp_path / path, content)
    assert [each.name for each in surroundings({}, tmp_path)] == [name]


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("COLAB_RELEASE_TAG", "Colab"),
        ("KAGGLE_KERNEL_RUN_TYPE", "Kaggle"),
        ("JPY_PARENT_PID", "Jupyter"),
        ("KUBERNETES_SERVICE_HOST", "Kubernetes"),
        ("SLURM_JOB_ID", "Slurm"),
        ("INVOCATION_ID", "systemd"),
    ],
)
def test_marks_in_the_environment(tmp_path: Path, variable: str, name: str) -> None:
    text(tmp_path / "proc/self/cgroup", "0::/system.slice/train.service\n")
    assert [each.name for each in surroundings({variable: "17"}, tmp_path)] == [name]


def test_a_slurm_job_tells_when_it_ends(tmp_path: Path) -> None:
    environ = {"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "1800000000"}
    assert [each.ends for each in surroundings(environ, tmp_path)] == [1_800_000_000.0]
    assert surroundings({**environ, "SLURM_JOB_END_TIME": "soon"}, tmp_path)[0].ends is None


def test_limits_and_memory_are_read(tmp_path: Path) -> None:
    text(tmp_path / "meminfo", "MemTotal: 8 kB\nMemAvailable: 5 kB\nSwapTotal:   0 kB\nDirty: 3 kB\nMemFree\n")
    assert memory(tmp_path) == {"MemTotal": 8192, "MemAvailable": 5120, "SwapTotal": 0}
    assert memory(tmp_path / "none") == {}
    assert set(limits()) == {"address space", "open files", "file size", "core"}


def test_a_rank_that_is_refused_in_a_run_is_told_of(tmp_path: Path) -> None:
    found = examine(["/bin/true"], Settings(store=tmp_path), {"PATH": "", "RANK": "2"})
    assert "RANK=2" in found.refused
