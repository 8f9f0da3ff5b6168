"""Causes and what follows from them, on real processes without Keras."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tests.notices.emulator import Aws

from .helpers import LEAVER, Place, until

CRASH = "import ctypes\ndef innermost():\n    ctypes.string_at(0)\ninnermost()\n"


def cause(place: Place, attempt: int = -1) -> str:
    """Why an attempt ended, by default the last one."""
    return str(place.events("attempt_ended")[attempt]["cause"])


def test_the_same_exception_once_more_is_no_accident(place: Place) -> None:
    done = place.run("--max-failures", "9", *place.script("def load():\n    raise KeyError('colour')\nload()\n"))
    assert done.code == 125
    assert len(place.events("launched")) == 2
    assert done.said("KeyError: 'colour', at script.py:2 in load (exit code 1); the same before any step as before")
    assert cause(place) == "exception"


def test_trouble_with_the_network_is_tried_as_often_as_any_failure(place: Place) -> None:
    done = place.run("--max-failures", "3", *place.script("raise ConnectionResetError(104, 'reset')"))
    assert done.code == 125
    assert len(place.events("launched")) == 3


def test_an_exception_is_told_with_what_it_says_whatever_that_is(place: Place) -> None:
    text = 'say "\\\\" ü \U0001f4a5 ' + "x" * 3000
    done = place.run("--max-failures", "1", *place.script(f"raise ValueError({text!r})"))
    assert done.code == 1
    detail = place.record()["detail"]
    assert detail.startswith('ValueError: say "\\\\" ü \U0001f4a5 xxx')
    assert len(detail) < 300


def test_an_exception_that_cannot_say_what_it_is(place: Place) -> None:
    source = "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute"
    assert place.run("--max-failures", "1", *place.script(source)).code == 1
    assert place.record()["detail"] == "Mute, at script.py:3 (exit code 1)"


def test_a_native_crash_leaves_the_python_stacks(place: Place) -> None:
    done = place.run("--max-failures", "1", *place.script(CRASH))
    assert done.code == 128 + signal.SIGSEGV
    assert done.said("native crash, killed by SIGSEGV; Python stood at script.py:3 in innermost; all stacks: ")
    assert done.theirs == b"", "the script's own stderr is what it is without us"
    text = (place.run_dir / "attempts" / "001" / "stacks.txt").read_text()
    assert text.startswith("Fatal Python error: Segmentation fault")
    assert cause(place) == "native_crash"


def test_no_crash_no_file(place: Place) -> None:
    assert place.run(*place.script("pass")).code == 0
    assert not (place.run_dir / "attempts" / "001" / "stacks.txt").exists()


@pytest.mark.parametrize("option", ["enable()", "disable()"])
def test_a_script_has_faulthandler_its_own_way(place: Place, option: str) -> None:
    script = place.script(f"import faulthandler\nfaulthandler.{option}\n{CRASH}")
    plain = place.plain(script)
    done = place.run("--max-failures", "1", *script)
    assert (b"Segmentation fault" in plain.err) == (option == "enable()")
    assert (b"Segmentation fault" in done.theirs) == (option == "enable()")


def test_a_shell_in_between_passes_the_signal_on(place: Place) -> None:
    script = " ".join(place.script("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    assert place.run("--max-failures", "1", "sh", "-c", f"{script}; exit $?").code == 137
    assert place.record()["detail"] == "killed by SIGKILL (exit code 137)"


def test_lack_of_memory_is_tried_once_more(place: Place) -> None:
    done = place.run("--max-failures", "9", *place.script("import random\nraise MemoryError"))
    assert done.code == 125
    assert len(place.events("launched")) == 2
    assert done.said("What helps: a smaller batch")


def test_exit_codes_that_are_final_at_once(place: Place) -> None:
    assert place.run("--never-retry-exit", "3,70-79", "sh", "-c", "exit 71").code == 71
    assert len(place.events("launched")) == 1


def test_exit_codes_that_cost_nothing(place: Place) -> None:
    source = "import os\nn = int(os.environ['KSUPERVISE_ATTEMPT'])\nos._exit(9 if n < 4 else 0)"
    assert place.run("--max-failures", "1", "--always-retry-exit", "9", *place.script(source)).code == 0
    assert len(place.events("launched")) == 4


def test_the_last_output_of_a_failed_attempt_is_in_the_journal(place: Place) -> None:
    place.run("--max-failures", "1", *place.script("print('x' * 100_000)\nprint('the last line')\nraise SystemExit(9)"))
    output = place.events("attempt_ended")[0]["output"]
    assert output.endswith("x\nthe last line\n")
    assert len(output) == 64 * 1024


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_warning_saves_and_leaves(place: Place, number: int) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    parent.send(number)
    done = parent.wait()
    assert done.code == 75
    assert done.said("the scheduler's warning")


def test_a_cloud_says_that_the_machine_goes(place: Place) -> None:
    aws = Aws()
    try:
        environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url, "http_proxy": "http://127.0.0.1:9"}
        parent = place.start("--notice", "aws", *place.script(LEAVER), env=environ)
        parent.line("ready")
        aws.await_first("spot/instance-action")
        aws.interrupt(60.0)
        done = parent.wait()
    finally:
        aws.close()
    assert done.code == 75
    assert done.out == b"ready\ngot SIGTERM\n"
    (notice,) = place.events("notice")
    assert (notice["source"], notice["final"]) == ("aws", True)
    assert 30 < notice["seconds"] <= 60
    assert done.said("run script-e3b0c4 preempted: aws: ")


@pytest.mark.skipif(sys.platform != "linux", reason="the states of /proc")
def test_ctrl_z_stops_the_script_too_and_its_time_with_it(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    child = int(place.status()["child_pid"])
    parent.send(signal.SIGTSTP)
    both = [psutil.Process(parent.pid), psutil.Process(child)]
    until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in both) or None, "both to stop")
    parent.send(signal.SIGCONT)
    until(lambda: all(each.status() != psutil.STATUS_STOPPED for each in both) or None, "both to go on")
    parent.send(signal.SIGTERM)
    parent.line("got SIGTERM")
    assert parent.wait().code == 75


def _taken_by_another(place: Place, **changes: str) -> None:
    """Let the run look as if its last parent had lived elsewhere."""
    journal = place.run_dir / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    changed = [{**record, **changes} if record["event"] == "taken" else record for record in records]
    journal.write_text("".join(json.dumps(record) + "\n" for record in changed))


@pytest.mark.parametrize(
    ("changes", "cause_of_first", "words"),
    [
        ({}, "parent_lost", "the parent was killed"),
        ({"boot": "11111111-2222-3333-4444-555555555555"}, "lost", "the machine went down and was started again"),
        ({"host": "colab-7"}, "lost", "machine colab-7 was lost; this is "),
    ],
)
def test_a_lost_machine_is_told_from_a_killed_parent(
    place: Place, changes: dict[str, str], cause_of_first: str, words: str
) -> None:
    script = place.script("import os, time\nprint('ready')\nif not os.path.exists('go'): time.sleep(60)")
    parent = place.start(*script)
    parent.line("ready")
    parent.send(signal.SIGKILL)
    parent.wait()
    _taken_by_another(place, **changes)
    Path(place.root, "go").touch()
    assert place.run(*script).code == 0
    first = place.events("attempt_ended")[0]
    assert first["cause"] == cause_of_first
    assert first["detail"].startswith(words)
