"""What `doctor` makes of what was found out: verdicts, words, and a table that fits its terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksupervise.notices import Finding
from ksupervise.parent.doctor.examine import Card, Ended, Findings, Heard, Start
from ksupervise.parent.doctor.surroundings import Surrounding
from ksupervise.report import doctor
from ksupervise.report.doctor import BAD, GOOD, LIMITED, Row
from ksupervise.settings import Settings

GB = 10**9
EXACT = {"guarantee": "exact", "same": True, "batches": 2}
UNSEEDED = {"guarantee": "exactly once, later epochs in a new order (the script sets no seed)", "same": True}
NOWHERE = "neither the firmware nor the environment says so"


def well() -> Findings:
    """A machine on which all is well."""
    interpreter: dict[str, dict[str, Any]] = {
        "python": {"version": "3.12.4", "executable": "/usr/bin/python"},
        "keras": {"version": "3.15.1", "backend": "tensorflow", "tensorflow": "2.21.0", "seconds": 5.0},
        "devices": {"gpus": [], "tpus": 0, "deterministic": ""},
        "fit": dict.fromkeys(("hooked", "initial_epoch", "position", "build", "put_back"), True) | {"variables": 10},
        "source arrays": EXACT,
    }
    disk: dict[str, dict[str, Any]] = {
        "place": {"folder": "/data", "exists": True},
        "kind": {"type": "ext4", "point": "/data"},
        "room": {"bytes": 100 * GB, "files": 10**6},
        "run": {"exists": False},
        "write": {"folder": "/data/.ksupervise-doctor-1"},
        "clock": {"ahead": 0.01},
        **{name: {} for name in ("rename", "lock")},
        "direct": {"taken": True},
    }
    machine = {"memfd": {"on_disk": ""}, "pidfd": {}, "tree": {}, "terminal": {}, "kernel log": {}}
    return Findings(
        command=("python", "train.py"),
        start=Start(("python",)),
        settings=Settings(),
        store=Path("/data"),
        interpreter=Ended(interpreter),
        heard=Heard(hello=True, keras=True, claimed=True),
        disk=Ended(disk),
        machine=Ended(machine),
        cards=None,
        surroundings=[],
        notices=tuple(Finding(name, False, NOWHERE) for name in ("aws", "gcp", "azure")),
        limits={"address space": None, "open files": 1024, "file size": None, "core": 0},
        memory={"MemTotal": 16 * GB, "MemAvailable": 8 * GB, "SwapTotal": 0},
        processors=2,
        cgroup=None,
        cgroup_version=2,
        oom_counted=True,
        suspended=0.0,
        year=2026,
        environ={},
        refused="",
    )


def row(found: Findings, subject: str) -> Row:
    rows = [each for each in doctor.rows(found) if each.subject == subject]
    assert len(rows) == 1, [each.subject for each in doctor.rows(found)]
    return rows[0]


def in_trial(name: str, result: dict[str, Any]) -> Callable[[Findings], None]:
    return lambda found: found.interpreter.found.update({name: result})


def on_disk(name: str, result: dict[str, Any]) -> Callable[[Findings], None]:
    return lambda found: found.disk.found.update({name: result})


def on_machine(name: str, result: dict[str, Any]) -> Callable[[Findings], None]:
    return lambda found: found.machine.found.update({name: result})


def having(**values: Any) -> Callable[[Findings], None]:
    return lambda found: vars(found).update(values)


def together(*changes: Callable[[Findings], None]) -> Callable[[Findings], None]:
    def change_all(found: Findings) -> None:
        for change in changes:
            change(found)

    return change_all


def test_where_all_is_well_it_says_so() -> None:
    rows = doctor.rows(well())
    assert {each.verdict for each in rows} == {GOOD}
    assert doctor.exit_code(rows) == 0
    assert doctor.as_text(rows).splitlines()[-1] == "all is well"
    assert not any(each.remedy for each in rows)


KERAS = {"version": "3.15.1", "backend": "tensorflow", "tensorflow": "2.21.0", "seconds": 5.0}
FITTED = dict.fromkeys(("hooked", "initial_epoch", "position", "build", "put_back"), True) | {"variables": 10}
SEEN = {"gpus": ["Tesla T4"], "tpus": 0, "deterministic": ""}
T4 = [Card("Tesla T4", "550.54", "15360", "3")]
STATE = {"exists": True, "size": GB, "total": 3 * GB, "count": 3, "pid": None}


@pytest.mark.parametrize(
    ("change", "subject", "verdict", "words"),
    [
        (having(heard=Heard(hello=True, keras=True, notes=["no CallbackList"])), "hook", BAD, "no CallbackList"),
        (having(heard=Heard(), start=Start(("python", "-uI"))), "hook", BAD, "-I keeps it away"),
        (having(heard=Heard()), "hook", BAD, "takes PYTHONPATH away"),
        (having(heard=Heard(), interpreter=Ended({}, code=3, err="boom\n")), "hook", BAD, "boom"),
        (having(heard=Heard(), interpreter=Ended({"python": {"version": "3.8.1"}})), "hook", BAD, "in Python 3.8.1"),
        (having(start=Start(("python",), unknown="what `sh` starts …")), "command", LIMITED, "instead: the `python`"),
        (having(start=Start((), fault="x: not found")), "command", BAD, "not found"),
        (having(refused="RANK=1: …"), "run", BAD, "RANK=1"),
        (in_trial("python", {"version": "3.9.1"}), "Python", LIMITED, "not tested"),
        (in_trial("keras", {"error": "ModuleNotFoundError: No module named 'keras'"}), "Keras", BAD, "No module"),
        (in_trial("keras", {**KERAS, "backend": "jax"}), "Keras", BAD, "on jax: it is restarted"),
        (in_trial("keras", {**KERAS, "version": "3.3.3"}), "Keras", BAD, "3.3.3"),
        (having(environ={"TF_USE_LEGACY_KERAS": "1"}), "tf_keras", LIMITED, "restarted, not resumed"),
        (in_trial("fit", {**FITTED, "position": False}), "hooks in fit", LIMITED, "epoch's end is gone back to"),
        (in_trial("fit", {**FITTED, "initial_epoch": False}), "hooks in fit", BAD, "_initial_epoch"),
        (in_trial("fit", {"error": "TypeError: x"}), "hooks in fit", BAD, "TypeError: x"),
        (in_trial("source arrays", {**EXACT, "same": False}), "numpy arrays", BAD, "were others"),
        (in_trial("source dataset", {"error": "ValueError: x"}), "tf.data", LIMITED, "but its end: ValueError"),
        (in_trial("unseeded arrays", UNSEEDED), "arrays, no seed", LIMITED, "exactly once"),
        (having(disk=Ended({}, "lock", None, seconds=15.0)), "answer", BAD, "15 s (asked for: lock)"),
        (on_disk("write", {"error": "Permission denied"}), "writing", BAD, "/data cannot be written: Permission"),
        (having(disk=Ended({}, code=-31)), "writing", BAD, "killed by SIGSYS"),
        (on_disk("kind", {"type": "tmpfs", "point": "/dev/shm"}), "file system", LIMITED, "it is memory"),
        (on_disk("kind", {"type": "overlay", "point": "/"}), "file system", LIMITED, "it goes with its mount"),
        (on_disk("kind", {"type": "fuse.drive", "point": "/d"}), "file system", LIMITED, "long before it is uploaded"),
        (on_disk("kind", {"type": "fuse.sshfs", "point": "/d"}), "file system", LIMITED, "served by a program"),
        (on_disk("kind", {"type": "nfs4", "point": "/d"}), "file system", LIMITED, "over a network"),
        (on_disk("kind", {"type": "newfs", "point": "/d"}), "file system", LIMITED, "not known here"),
        (on_disk("lock", {"error": "no locks"}), "locks", BAD, "could own one run: no locks"),
        (on_disk("rename", {"error": "EIO"}), "commit", LIMITED, "EIO"),
        (on_disk("direct", {"taken": False}), "O_DIRECT", LIMITED, "page cache"),
        (on_disk("room", {"bytes": 0, "files": None}), "room", BAD, "0 B are free"),
        (on_disk("room", {"bytes": GB, "files": 12}), "inodes", LIMITED, "12 more files"),
        (on_disk("room", {"bytes": GB, "files": 0}), "inodes", BAD, "0 more files"),
        (together(on_disk("run", {**STATE, "size": 60 * GB})), "room", LIMITED, "room for 1 more"),
        (on_disk("run", {**STATE, "size": 3 * GB}), "free", LIMITED, "one copy of it"),
        (on_disk("run", {**STATE, "size": 5 * GB}), "free", LIMITED, "no copy of it"),
        (on_disk("run", {**STATE, "pid": 17}), "run", GOOD, "process 17, and was left alone"),
        (on_disk("run", {"error": "run.json cannot be used"}), "run", LIMITED, "cannot be used"),
        (having(cgroup=(3 * GB, 4 * GB)), "free", GOOD, "1.00 GB may be taken: the cgroup's limit is 4.00 GB"),
        (having(cgroup_version=None), "out of memory", LIMITED, "guessed"),
        (having(oom_counted=False), "out of memory", LIMITED, "cannot be read"),
        (having(limits={"address space": GB, "core": 0}), "address space", LIMITED, "ulimit -v"),
        (having(limits={"address space": None, "open files": 64, "core": 0}), "open files", LIMITED, "is 64"),
        (together(having(limits={"file size": GB // 2, "core": 0}), on_disk("run", STATE)), "file size", BAD, "-f"),
        (having(limits={"file size": GB, "core": 0}), "file size", LIMITED, "1.00 GB"),
        (having(limits={"core": None}), "core dumps", LIMITED, "as large as its memory"),
        (on_machine("memfd", {"on_disk": "memfd is refused here"}), "stage", LIMITED, "memfd is refused"),
        (on_machine("pidfd", {"error": "Function not implemented"}), "deaths", LIMITED, "not implemented"),
        (on_machine("tree", {"error": "x"}), "no orphans", LIMITED, "may outlive the run"),
        (having(machine=Ended({}, "tree", -31)), "kernel", LIMITED, "SIGSYS, in: tree"),
        (having(cards=[]), "cards", LIMITED, "does not answer"),
        (having(cards=T4), "TensorFlow", LIMITED, "sees no card"),
        (having(cards=T4, environ={"CUDA_VISIBLE_DEVICES": ""}), "TensorFlow", LIMITED, "CUDA_VISIBLE_DEVICES is ''"),
        (together(having(cards=T4), in_trial("devices", SEEN)), "TensorFlow", GOOD, "sees Tesla T4"),
        (together(having(cards=T4), in_trial("devices", SEEN)), "cards", GOOD, "driver 550.54"),
        (in_trial("devices", SEEN), "exact bits", LIMITED, "some kernels race"),
        (in_trial("devices", {**SEEN, "deterministic": "1"}), "exact bits", GOOD, "is set"),
        (having(surroundings=[Surrounding("Colab", "its variables")]), "Colab", LIMITED, "12 hours"),
        (having(surroundings=[Surrounding("Slurm", "job 17")]), "Slurm", LIMITED, "job 17; at its time limit"),
        (having(notices=(Finding("aws", True, "sys_vendor is 'Amazon EC2'"),)), "aws", GOOD, "sys_vendor"),
        (having(notices=(Finding("gcp", False, "NO_GCE_CHECK is true"),)), "notices", GOOD, "(gcp: NO_GCE_CHECK"),
        (having(settings=Settings(notice="file:/x")), "notices", GOOD, "file:/x is listened to"),
        (having(year=1970), "wall clock", LIMITED, "1970"),
        (on_disk("clock", {"ahead": -75.0}), "wall clock", LIMITED, "1 m 15 s behind ours"),
        (having(suspended=7260.0), "suspended", GOOD, "slept for 2 h 01 m"),
    ],
)
def test_each_finding_has_its_verdict(
    change: Callable[[Findings], None], subject: str, verdict: str, words: str
) -> None:
    found = well()
    change(found)
    told = row(found, subject)
    assert told.verdict == verdict, told
    assert words in told.found, told
    assert doctor.exit_code(doctor.rows(found)) == (1 if BAD in {each.verdict for each in doctor.rows(found)} else 0)


def test_a_store_that_does_not_answer_is_all_that_is_told_of_it() -> None:
    found = replace(well(), disk=Ended({"place": {"folder": "/", "exists": True}}, "kind", None, seconds=15.0))
    assert [each.subject for each in doctor.rows(found) if each.group == "store"] == ["answer"]


def test_a_slurm_job_tells_how_long_it_has_and_a_deadline_is_enough() -> None:
    job = Surrounding("Slurm", "job 17", time.time() + 7230)
    found = replace(well(), surroundings=[job])
    assert "ends in 2 h 00 m" in row(found, "Slurm").found
    found.settings = Settings(deadline=99.0)
    assert row(found, "Slurm").verdict == GOOD


def test_what_is_said_of_both_without_a_seed_is_said_once() -> None:
    found = well()
    found.interpreter.found.update({"unseeded arrays": UNSEEDED, "unseeded dataset": UNSEEDED})
    assert "--seed" in row(found, "no seed").remedy
    found.interpreter.found["unseeded dataset"] = {**UNSEEDED, "guarantee": "approximate"}
    assert row(found, "tf.data, no seed").found == "approximate"
    assert row(found, "arrays, no seed").found.startswith("exactly once")


def test_a_hook_that_did_not_arrive_is_told_once() -> None:
    found = replace(well(), heard=Heard(), start=Start(("python", "-S")))
    found.interpreter.found["fit"]["hooked"] = False
    assert [each.subject for each in doctor.rows(found) if each.verdict == BAD] == ["hook"]


# The table ----------------------------------------------------------------------------------------


def troubled() -> list[Row]:
    found = replace(well(), refused="RANK=1: not supervised yet", cgroup_version=None)
    found.disk.found["kind"] = {"type": "fuse.drive", "point": "/content/drive"}
    found.disk.found["lock"] = {"error": "Cannot lock /content/drive/x/lock: its file system has no locks (…)"}
    return doctor.rows(found)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_it_fits_the_terminal(width: int) -> None:
    lines = doctor.as_text(troubled(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > width - 25, "and makes use of it"


def test_a_terminal_that_is_too_narrow_is_not_believed() -> None:
    assert max(map(len, doctor.as_text(troubled(), 0).splitlines())) <= 60


def test_what_is_bad_comes_first_then_what_is_limited() -> None:
    marks = re.findall(r"^  (BAD|limited|ok) ", doctor.as_text(troubled()), re.MULTILINE)
    assert marks == sorted(marks, key=("BAD", "limited", "ok").index)
    assert marks.count("BAD") == marks.count("limited") == 2


def test_every_row_is_in_the_table_once() -> None:
    words = " ".join(doctor.as_text(troubled(), 140).split())
    for each in troubled():
        assert words.count(" ".join(each.found.split())) >= 1, each
        assert each.remedy in words


@pytest.mark.parametrize(
    ("verdicts", "closing"),
    [
        ("g", "all is well"),
        ("gl", "1 thing to know, nothing is in the way"),
        ("lll", "3 things to know, nothing is in the way"),
        ("bg", "1 thing is in the way of a resumable run"),
        ("bbl", "2 things are in the way of a resumable run; 1 thing more to know"),
    ],
)
def test_the_closing_line(verdicts: str, closing: str) -> None:
    names = {"g": GOOD, "l": LIMITED, "b": BAD}
    rows = [Row("x", "y", names[each], "z") for each in verdicts]
    assert doctor.as_text(rows).splitlines()[-1] == closing


def test_for_programs_there_is_a_list_of_objects() -> None:
    entries = doctor.as_json(troubled())
    assert {tuple(each) for each in entries} == {("group", "subject", "verdict", "found", "remedy")}
    assert {each["verdict"] for each in entries} == {GOOD, LIMITED, BAD}
