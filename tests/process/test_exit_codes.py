"""DESIGN section 9: the exit code says what to do now."""

from __future__ import annotations

import signal

import pytest

from .helpers import LEAVER, PYTHON, TALKER, Place, call

FINAL = {
    "ImportError": ("import no_such_module", 1),
    "ImportError of a name": ("from os import no_such_name", 1),
    "SyntaxError": ("def :", 1),
    "IndentationError": ("  x = 1\n y = 2", 1),
    "SystemExit(2)": ("raise SystemExit(2)", 2),
    "argparse": ("import argparse; argparse.ArgumentParser().parse_args(['--nonsense'])", 2),
}


def test_a_script_that_ends_well_is_0(place: Place) -> None:
    done = place.run("sh", "-c", "echo done")
    assert (done.code, done.out) == (0, b"done\n")
    assert done.said("completed (1 attempt)")
    assert place.record()["state"] == "completed"


@pytest.mark.parametrize("fault", FINAL)
def test_an_error_that_repeating_cannot_cure_is_final_at_once(place: Place, fault: str) -> None:
    source, code = FINAL[fault]
    done = place.run(*place.script(source))
    assert done.code == code
    assert len(place.events("launched")) == 1
    assert place.record()["state"] == "failed"


def test_a_missing_script_is_the_interpreters_own_2(place: Place) -> None:
    done = place.run(PYTHON, "missing.py")
    assert done.code == 2
    assert b"can't open file" in done.theirs
    assert len(place.events("launched")) == 1


@pytest.mark.parametrize("code", [126, 127])
def test_a_shells_cannot_run_is_final(place: Place, code: int) -> None:
    assert place.run("sh", "-c", f"exit {code}").code == code
    assert len(place.events("launched")) == 1


# The fewest of several looks: a watcher has files open for a moment.
_count_descriptors = "for i in 1 2 3 4 5; do ls /proc/$PPID/fd | wc -l; done | sort -n | head -n 1"


def test_three_failures_are_125(place: Place) -> None:
    done = place.run("sh", "-c", f"{_count_descriptors}; exit 9")
    assert done.code == 125
    assert len(place.events("launched")) == 3
    assert place.record()["state"] == "gave_up"
    assert done.said("exit code 9; 3 failures without a newer checkpoint (3 attempts)")
    # Every restart is explained in one line: cause, step, where from, how soon, log (law 10).
    restarts = [line for line in done.ours if "attempt 2 now" in line or "attempt 3 in" in line]
    assert len(restarts) == 2
    assert all("ended before any step: exit code 9; starting over (no checkpoint yet)" in line for line in restarts)
    assert all("/attempts/00" in line for line in restarts)
    first, second, third = map(int, done.out.split())
    assert first == second == third, "the parent keeps descriptors of dead attempts"


def test_max_failures_is_obeyed(place: Place) -> None:
    assert place.run("--max-failures", "2", "sh", "-c", "exit 9").code == 125
    assert len(place.events("launched")) == 2


def test_a_single_failure_allowed_is_the_childs_own_code(place: Place) -> None:
    assert place.run("--max-failures", "1", "sh", "-c", "exit 9").code == 9


@pytest.mark.parametrize("name", ["SEGV", "KILL", "ABRT"])
def test_a_signal_is_128_and_its_number(place: Place, name: str) -> None:
    done = place.run("--max-failures", "1", "sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert done.code == 128 + signal.Signals[f"SIG{name}"]
    assert done.said(f"killed by SIG{name}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_go_is_75(place: Place, number: int) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    parent.send(number)
    assert parent.wait().code == 75
    assert place.record()["state"] == "preempted"


def test_a_child_that_ends_well_when_asked_to_go_is_75_too(place: Place) -> None:
    parent = place.start(*place.script(LEAVER.replace("_exit(7)", "_exit(0)")))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75


def test_ctrl_c_is_130(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    parent.send(signal.SIGINT)
    assert parent.wait().code == 130
    assert place.record()["state"] == "interrupted"


def test_stop_is_130(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    asked = place.report("stop")
    assert asked.code == 0
    assert b"was asked to save and stop" in asked.out
    assert parent.wait().code == 130
    assert b"got SIGTERM" in parent.out


def test_a_keyboard_interrupt_of_the_scripts_own_shows_its_traceback(place: Place) -> None:
    source = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    parent = place.start(*place.script(source))
    parent.line("ready")
    parent.send(signal.SIGINT)
    done = parent.wait()
    assert done.code == 130
    assert done.theirs.splitlines()[-1].startswith(b"KeyboardInterrupt")


CANNOT_RUN = {
    "not found": (["no-such-program-anywhere"], 127, "command not found"),
    "no such path": (["./missing"], 127, "command not found"),
    "empty": ([""], 127, "command not found"),
    "not executable": (["./plain.py"], 126, "did you mean: python ./plain.py"),
    "not executable, no Python": (["./plain"], 126, "did you mean: chmod +x ./plain"),
    "a directory": (["./folder"], 126, "is a directory"),
}


@pytest.mark.parametrize("what", CANNOT_RUN)
def test_a_command_that_cannot_run(place: Place, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("plain.py", "")
    place.write("plain", "")
    (place.root / "folder").mkdir()
    monkeypatch.chdir(place.root)
    command, code, words = CANNOT_RUN[what]
    done = call(*command)
    assert done.code == code
    assert done.said(words)
    assert len(done.ours) == 1
    assert not (place.root / ".ksupervise").exists()


@pytest.mark.parametrize(("text", "code"), [("#!/no/such/interpreter\n", 127), ("\x01\x02", 126)])
def test_a_program_that_the_system_will_not_start(place: Place, text: str, code: int) -> None:
    done = place.run(place.write("program", text, 0o755))
    assert done.code == code
    assert done.said("cannot be run")
    assert b"Traceback" not in done.err
    assert place.record()["state"] == "failed"


BAD_OPTIONS = [
    *(["--name", value] for value in ("", "a/b", ".hidden", "..", "a b", "x" * 101, "-")),
    ["--store", ""],
    *([option, value] for option in ("--every", "--deadline", "--stall") for value in ("", "0s", "-1s", "soon", "5")),
    *(["--grace", value] for value in ("", "-1s", "5", "1s junk")),
    ["--deadline", "25:00"],
    *(["--overhead", value] for value in ("", "0", "-1", "101", "much")),
    *([option, value] for option in ("--keep", "--max-failures") for value in ("", "0", "-1", "1.5", "many")),
    *(["--seed", value] for value in ("", "-1", "x", "4294967296")),
    *(["--notice", value] for value in ("", "file:", "aws gcp", "nonsense")),
    *(
        [option, value]
        for option in ("--never-retry-exit", "--always-retry-exit")
        for value in ("", "0", "256", "SIGX")
    ),
    ["--stall", "auto:"],
    ["--stall", "off:1s"],
    ["--replica", "ftp://host/x"],
    ["--no-such-option"],
    ["--keep", "true"],  # "true" is the command, taken for the value
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=" ".join)
def test_a_bad_option_is_2_and_says_which(options: list[str], monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    monkeypatch.chdir(place.root)
    done = call(*options, "true")
    assert (done.code, done.out, done.theirs) == (2, b"", b"")
    assert done.said(options[0])
    assert list(place.root.iterdir()) == [], "a usage error leaves nothing behind"


@pytest.mark.parametrize("words", [["--keep", "2x"], ["run", "--frobnicate"]], ids=" ".join)
def test_usage_errors_from_outside(place: Place, words: list[str]) -> None:
    done = place.run(*words, "true")
    assert done.code == 2
    assert len(done.ours) == 1
    assert not place.store.exists()


@pytest.mark.parametrize("word", ["watch", "export", "report", "unit"])
def test_sub_commands_to_come_are_reserved(word: str) -> None:
    done = call(word, "--x")
    assert done.code == 2
    assert done.said(f"ksupervise -- {word} --x")


@pytest.mark.parametrize("words", [[], ["--"], ["run"], ["run", "--"], ["--keep", "2"]], ids=" ".join)
def test_no_command_is_2(words: list[str]) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, b"")
    assert done.said("no command to supervise was given")


HELP = [["--help"], ["-h"], ["status", "--help"], ["run", "--help"], ["--version"]]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_and_version_are_0(words: list[str]) -> None:
    done = call(*words)
    assert (done.code, done.err) == (0, b"")
    assert b"ksupervise" in done.out


def test_one_of_several_ranks_is_refused(place: Place) -> None:
    done = place.run("true", env={"RANK": "1"})
    assert done.code == 2
    assert done.said("RANK=1")


def test_a_setting_from_the_environment_is_named_when_it_is_bad(place: Place) -> None:
    done = place.run("true", env={"KSUPERVISE_KEEP": "none"})
    assert done.code == 2
    assert done.said("none")


def test_the_parent_imports_no_numbers(place: Place) -> None:
    done = place.run(*place.script("import os; print(open(f'/proc/{os.getppid()}/maps').read())"))
    assert done.code == 0
    assert b"python" in done.out
    assert b"numpy" not in done.out  # and so neither Keras nor TensorFlow (law 8)


def test_two_terms_while_it_leaves_are_still_75(place: Place) -> None:
    parent = place.start("--grace", "200ms", *place.script(TALKER))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    parent.line("got SIGTERM")
    parent.send(signal.SIGTERM)
    assert parent.wait().code == 75
