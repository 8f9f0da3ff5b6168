"""--standby: a warm interpreter becomes the next attempt, and only the time it takes tells. Without TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from .helpers import KSUPERVISE, PYTHON, Parent, Place, alive, until, wait_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="--standby needs memfd and /proc")

# What imports change, in two packages that lie where packages are installed: `keras` brings `numpy`.
KERAS = """
import atexit, os, random, signal, sys, time, warnings
import numpy
from keras import layers
with open("loaded", "a") as file:
    file.write(f"{os.getpid()}\\n")
while os.path.exists("hold"):
    time.sleep(0.005)
if os.path.exists("broken") and os.environ["KSUPERVISE_ATTEMPT"] != "1":
    os.unlink("broken")
    raise ImportError("broken")
class Nobody:
    @staticmethod
    def find_spec(name, path, target=None): return None
backend = os.environ.get("KERAS_BACKEND")
os.environ["KERAS_WAS_HERE"] = "1"
os.environ.pop("KERAS_TAKES_THIS", None)
sys.path.append("/nowhere")
sys.meta_path.append(Nobody)
warnings.filterwarnings("ignore", message="keras")
atexit.register(print, "keras is through")
print("keras: hello", flush=True)
os.write(2, b"keras: from native code\\n")
drawn = random.random()
"""
# Tells all that it sees, before and after, with what is the same in each attempt.
SCRIPT = """
import os, sys
OURS = ("Recorder", "Stash", "_Finder")
def look():
    import atexit, random, warnings, signal
    installed = [name for name in sys.modules if "site-packages" in (getattr(sys.modules[name], "__file__", "") or "")]
    ours = ("KSUPERVISE_ATTEMPT", "KSUPERVISE_STACKS")
    return [
        {k: v for k, v in os.environ.items() if k not in ours}, sys.path, os.getcwd(), installed, sys.argv,
        [repr(each) for each in warnings.filters],
        [name for f in sys.meta_path if (name := getattr(f, "__name__", type(f).__name__)) not in OURS],
        [signal.getsignal(n) for n in (1, 2, 15)] == [0, signal.default_int_handler, 0],
        random.random(), sorted(int(fd) for fd in os.listdir("/proc/self/fd")), os.sched_getscheduler(0), os.nice(0),
        open("/proc/self/oom_score_adj").read(), os.umask(0o22), len(os.listdir("/proc/self/task")),
    ]
print("begin", flush=True)
import json
print(json.dumps(look()))
{before}
import keras.layers
print(json.dumps([look(), keras.drawn, keras.backend, keras.__spec__.loader.name, keras.__loader__.name,
    keras.__spec__.name, repr(keras), keras.layers.__name__]))
import time
print("ready", flush=True)
while not os.path.exists("done-" + os.environ["KSUPERVISE_ATTEMPT"]):
    time.sleep(0.005)
"""


class Rig:
    """A place with those packages, and a parent that takes any script for a steady one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        for name, text in {"keras": KERAS, "numpy": "", "keras/layers": ""}.items():
            folder = place.root / "lib" / "site-packages" / name
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(text)

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> Parent:
        quick = "from ksupervise.parent import standby; standby.QUIET = 0.0; from ksupervise.cli import main"
        front = [*KSUPERVISE[:-1], KSUPERVISE[-1].replace("from ksupervise.cli import main", quick)]
        path = str(self.place.root / "lib" / "site-packages")
        options = ["--store", str(self.place.store), "--standby", "--quiet"]
        environ = {**self.place.environ, "PYTHONPATH": path, "KERAS_TAKES_THIS": "1", **(env or {})}
        streams = {"stdin": subprocess.DEVNULL, "cwd": self.place.root, "env": environ}
        parent = Parent([*front, *options, *command], **streams)
        self.place.parents.append(parent)
        return parent

    def script(self, before: str = "") -> list[str]:
        return self.place.script(SCRIPT.replace("{before}", before))

    def told(self, what: str, times: int = 1) -> dict[str, Any]:
        """The `times`-th event of that kind."""

        def found() -> dict[str, Any] | None:
            records = [record for record in self.place.events("standby") if record["what"] == what]
            return records[times - 1] if len(records) >= times else None

        return until(found, f"standby {what}")

    def child(self, attempt: int) -> int:
        """The process of that attempt."""
        return int(
            until(lambda: [r for r in self.place.events("launched") if r["attempt"] == attempt], "launch")[-1]["pid"]
        )

    def end(self, parent: Parent, attempt: int) -> None:
        """It ends well, and nothing is left."""
        self.place.write(f"done-{attempt}", "")
        assert parent.wait().code == 0
        assert self.place.marked() == []
        assert not (self.place.run_dir / "attempts" / f"{attempt + 1:03d}").exists()


@pytest.fixture
def rig(place: Place) -> Rig:
    return Rig(place)


def _assert_same(one: list[bytes], other: list[bytes]) -> None:
    """Two attempts saw and said the same, but for the end that only the last one came to."""
    for line, its in zip(one, other, strict=False):
        if line.startswith(b"["):
            for number, (fact, its_fact) in enumerate(zip(json.loads(line), json.loads(its), strict=True)):
                assert fact == its_fact, number
        assert line.startswith(b"[") or line == its
    assert abs(len(one) - len(other)) <= 1


def _parts(out: bytes) -> list[list[bytes]]:
    """The output, attempt by attempt."""
    return [part.splitlines() for part in out.split(b"begin\n")[1:]]


def test_a_warm_interpreter_becomes_the_next_attempt_and_the_script_cannot_tell(rig: Rig) -> None:
    parent = rig.start(
        *rig.script("import os; os.environ['KERAS_BACKEND'] = 'mine'; random_before = __import__('random').random()")
    )
    for attempt in (1, 2):
        parent.line("ready", times=attempt)
        warm = rig.told("warm", times=attempt)
        assert warm["next"] == attempt + 1
        assert warm["rss"] > 1e6
        os.kill(rig.child(attempt), signal.SIGKILL)
    parent.line("ready", times=3)
    assert [bool(record.get("warm")) for record in rig.place.events("launched")] == [False, True, True]
    loaded = (rig.place.root / "loaded").read_text().split()
    assert loaded[:3] == [str(rig.child(attempt)) for attempt in (1, 2, 3)]
    rig.end(parent, 3)
    first, second, third = _parts(parent.out)
    _assert_same(first, second)
    _assert_same(second, third)
    assert third[-1] == b"keras is through"
    assert parent.err.count(b"keras: from native code\n") == 3


@pytest.mark.parametrize("stage", ["started", "warm"])
def test_one_that_is_killed_is_replaced_once_and_then_done_without(rig: Rig, stage: str) -> None:
    hold = stage == "started"
    parent = rig.start(*rig.script())
    parent.line("ready")
    if hold:
        rig.place.write("hold", "")
    for times in (1, 2):
        pid = int(rig.told("started", times=times)["pid"])
        if not hold:
            rig.told("warm", times=times)
        os.kill(pid, signal.SIGKILL)
        rig.told("discarded", times=times)
        wait_gone(pid)
    (rig.place.root / "hold").unlink(missing_ok=True)
    os.kill(rig.child(1), signal.SIGKILL)
    parent.line("ready", times=2)
    assert [bool(record.get("warm")) for record in rig.place.events("launched")] == [False, False]
    rig.told("warm", times=1 if hold else 3)
    rig.end(parent, 2)


def test_one_that_is_still_importing_when_it_is_needed_is_ahead_of_a_cold_one(rig: Rig) -> None:
    parent = rig.start(*rig.script())
    parent.line("ready")
    rig.place.write("hold", "")
    pid = int(rig.told("started")["pid"])
    until(lambda: str(pid) in (rig.place.root / "loaded").read_text().split(), "import")
    os.kill(rig.child(1), signal.SIGKILL)
    assert rig.child(2) == pid
    (rig.place.root / "hold").unlink()
    parent.line("ready", times=2)
    rig.end(parent, 2)
    first, second = _parts(parent.out)
    _assert_same(first, second)


def test_one_that_was_released_dies_like_any_attempt(rig: Rig) -> None:
    parent = rig.start(
        "--max-failures",
        "5",
        *rig.script("import time, os\nwhile os.environ['KSUPERVISE_ATTEMPT'] == '2': time.sleep(1)"),
    )
    parent.line("ready")
    rig.told("warm")
    os.kill(rig.child(1), signal.SIGKILL)
    parent.line("begin", times=2)
    os.kill(rig.child(2), signal.SIGKILL)
    parent.line("ready", times=2)
    rig.end(parent, 3)
    assert [record["cause"] for record in rig.place.events("attempt_ended")] == ["signal", "signal", "completed"]


def test_an_import_that_fails_ahead_costs_nothing(rig: Rig) -> None:
    parent = rig.start(*rig.script())
    parent.line("ready")
    rig.place.write("broken", "")
    assert "broken" in rig.told("off")["why"]
    os.kill(rig.child(1), signal.SIGKILL)
    parent.line("ready", times=2)
    rig.end(parent, 2)


def test_it_fails_while_it_is_needed_already(rig: Rig) -> None:
    """The interpreter executes itself: the same process, cold."""
    parent = rig.start(*rig.script())
    parent.line("ready")
    rig.place.write("broken", "")
    rig.place.write("hold", "")
    pid = int(rig.told("started")["pid"])
    until(lambda: str(pid) in (rig.place.root / "loaded").read_text().split(), "import")
    os.kill(rig.child(1), signal.SIGKILL)
    assert rig.child(2) == pid
    (rig.place.root / "hold").unlink()
    parent.line("ready", times=2)
    rig.end(parent, 2)
    first, second = _parts(parent.out)
    _assert_same(first, second)


@pytest.mark.parametrize(
    "before",
    [
        "os.environ['KERAS_BACKEND'] = os.environ['KSUPERVISE_ATTEMPT']",
        "sys.path.insert(0, '/' + os.environ['KSUPERVISE_ATTEMPT'])",
        "if os.environ['KSUPERVISE_ATTEMPT'] != '1': import numpy",
    ],
)
def test_where_the_script_is_not_the_same_twice_the_attempt_begins_anew_in_a_cold_one(rig: Rig, before: str) -> None:
    parent = rig.start(*rig.script(before))
    parent.line("ready")
    rig.told("warm")
    os.kill(rig.child(1), signal.SIGKILL)
    parent.line("ready", times=2)
    assert [record["attempt"] for record in rig.place.events("launched")] == [1, 2, 2]
    assert rig.told("off")["why"]
    rig.end(parent, 2)
    assert [record["cause"] for record in rig.place.events("attempt_ended")] == ["signal", "completed"]
    if "KERAS_BACKEND" in before:
        assert json.loads(_parts(parent.out)[2][2])[2] == "2"
    assert [attempt["number"] for attempt in rig.place.status()["attempts"]] == [1, 2]


def test_a_shell_in_between_is_not_run_twice(rig: Rig) -> None:
    words = " ".join(rig.script())
    parent = rig.start("sh", "-c", f"echo shell; exec {words}")
    parent.line("ready")
    assert "stands between" in rig.told("off")["why"]
    rig.end(parent, 1)
    assert parent.out.count(b"shell\n") == 1


def test_a_changed_script_has_it_thrown_away(rig: Rig) -> None:
    command = rig.script()
    parent = rig.start(*command)
    parent.line("ready")
    rig.told("warm")
    pid = int(rig.told("started")["pid"])
    Path(command[1]).write_text(Path(command[1]).read_text() + "\n# changed\n")
    assert "changed" in rig.told("discarded")["why"]
    wait_gone(pid)
    rig.end(parent, 1)


@pytest.mark.parametrize("stage", ["started", "warm"])
def test_it_does_not_outlive_a_parent_that_is_killed(rig: Rig, stage: str) -> None:
    parent = rig.start(*rig.script())
    parent.line("ready")
    if stage == "started":
        rig.place.write("hold", "")
    rig.told(stage)
    pid = int(rig.told("started")["pid"])
    assert alive(pid)
    parent.kill()
    wait_gone(pid)
    wait_gone(rig.child(1))


def test_a_stop_ends_it_too(rig: Rig) -> None:
    parent = rig.start(*rig.script())
    parent.line("ready")
    rig.told("warm")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
    assert rig.place.marked() == []
    assert rig.told("discarded")["why"] == "the run stops"


def test_it_waits_without_a_word_and_without_work(rig: Rig) -> None:
    parent = rig.start(*rig.script())
    parent.line("ready")
    rig.told("warm")
    waiting = psutil.Process(int(rig.told("started")["pid"]))
    spent = waiting.cpu_times()
    os.kill(rig.child(1), 0)
    until(lambda: waiting.status() == psutil.STATUS_SLEEPING, "sleep")
    assert waiting.cpu_times().user - spent.user < 0.2
    assert waiting.children() == []
    assert len(rig.place.events("hooked")) == 1
    rig.end(parent, 1)


def test_without_it_nothing_is_recorded(rig: Rig) -> None:
    done = rig.place.run(
        "--quiet", PYTHON, "-c", "import sys, os; print(len(sys.meta_path), os.environ.get('KSUPERVISE_PRELOAD'))"
    )
    assert done.out.split()[1] == b"None"
