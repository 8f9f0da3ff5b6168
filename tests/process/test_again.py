"""Calling a run again: DESIGN section 9's table, as far as it needs no Keras."""

from __future__ import annotations

import json
import os
import signal
import uuid
from pathlib import Path

import pytest

from ksupervise.store import CheckpointStore, Position

from .helpers import LEAVER, Place
from .test_ownership import terminal

COUNT = "print('trained')"


def test_a_completed_run_is_done_at_once(place: Place) -> None:
    script = place.script(COUNT)
    assert place.run(*script).out == b"trained\n"
    again = place.run(*script)
    assert (again.code, again.out) == (0, b"")
    assert again.said("the run is completed; --fresh trains it anew")
    assert len(place.events("launched")) == 1


def test_quiet_is_quiet_about_it(place: Place) -> None:
    script = place.script(COUNT)
    place.run(*script)
    assert place.run("--quiet", *script).err == b""


@pytest.mark.parametrize("option", ["--retry", "--fresh"])
def test_a_completed_run_and_an_option(place: Place, option: str) -> None:
    script = place.script(COUNT)
    place.run(*script)
    assert place.run(option, *script).out == (b"trained\n" if option == "--fresh" else b"")


def test_a_completed_run_starts_when_its_script_changed(place: Place) -> None:
    place.run(*place.script(COUNT))
    again = place.run(*place.script(COUNT + "\nprint('more')"))
    assert (again.code, again.out) == (0, b"trained\nmore\n")
    assert again.said("script.py changed since the last attempt")
    assert place.status()["attempt"] == 2
    assert place.run(*place.script(COUNT + "\nprint('more')")).out == b"", "the change is noticed once"


def test_a_command_without_a_script_never_changes(place: Place) -> None:
    place.run("sh", "-c", "echo x")
    assert place.run("sh", "-c", "echo x").out == b""


def test_fresh_archives_and_starts_anew(place: Place) -> None:
    script = place.script(COUNT)
    place.run(*script)
    name, old = place.run_dir.name, place.record()["id"]
    for _ in range(2):
        again = place.run("--fresh", *script)
        assert (again.code, again.out) == (0, b"trained\n")
        assert again.said(f"the old run was archived: {place.store}/.archive/{name}-")
    archived = sorted((place.store / ".archive").iterdir())
    assert len(archived) == 2
    assert (archived[0] / "journal.jsonl").exists()
    assert place.record()["id"] != old
    assert json.loads((archived[0] / "run.json").read_bytes())["id"] == old
    status = place.status()
    assert (status["state"], status["attempt"]) == ("completed", 1)
    assert status["run"] == name


def test_fresh_on_nothing_is_a_start(place: Place) -> None:
    assert place.run("--fresh", *place.script(COUNT)).out == b"trained\n"
    assert not (place.store / ".archive").exists()


def test_the_archive_is_no_run(place: Place) -> None:
    script = place.script(COUNT)
    place.run(*script)
    place.run("--fresh", *script)
    done = place.report("status", "nobody")
    assert done.err.count(b"script-") == 1


def test_preempted_goes_on(place: Place) -> None:
    script = place.script(LEAVER)
    for number in (1, 2):
        parent = place.start(*script)
        parent.line("ready")
        parent.send(signal.SIGTERM)
        assert parent.wait().code == 75
        assert place.status()["attempt"] == number
    assert [attempt["cause"] for attempt in place.status()["attempts"]] == ["preempted", "preempted"]


FAILED = {
    "gave_up": (["--max-failures", "2"], "raise SystemExit(9)", 125),
    "failed": ([], "import nothing_of_that_name", 1),
    "failed 2": ([], "raise SystemExit(2)", 2),
}


@pytest.mark.parametrize("what", FAILED)
def test_a_failed_run_needs_a_person_or_retry(place: Place, what: str) -> None:
    options, source, code = FAILED[what]
    script = place.script(source)
    assert place.run(*options, *script).code == code
    attempts = len(place.events("launched"))
    again = place.run(*options, *script)
    assert again.code == code
    assert again.seconds < 5
    assert again.said("before (exit code")
    assert again.said("--retry")
    assert len(place.events("launched")) == attempts, "a cron line must not retry it every minute"
    assert place.record()["state"] == what.split(maxsplit=1)[0]

    assert place.run("--retry", "--max-failures", "1", *script).code in (code, 125)
    assert len(place.events("launched")) == attempts + 1
    with terminal() as stdin:
        place.run("--max-failures", "1", *script, stdin=stdin)
    assert len(place.events("launched")) == attempts + 2


def test_a_new_budget_is_a_whole_one(place: Place) -> None:
    assert place.run("--max-failures", "2", "sh", "-c", "exit 9").code == 125
    assert place.run("--retry", "--max-failures", "2", "sh", "-c", "exit 9").code == 125
    assert len(place.events("launched")) == 4


def test_a_failed_run_goes_on_when_its_script_was_mended(place: Place) -> None:
    assert place.run(*place.script("import nothing_of_that_name")).code == 1
    done = place.run(*place.script(COUNT))
    assert (done.code, done.out) == (0, b"trained\n")
    assert done.said("changed since the last attempt")


@pytest.mark.parametrize("how", ["ctrl-c", "stop"])
def test_a_run_stopped_by_the_user_stays_stopped(place: Place, how: str) -> None:
    script = place.script(LEAVER)
    parent = place.start(*script)
    parent.line("ready")
    if how == "stop":
        place.report("stop")
    else:
        parent.send(signal.SIGINT)
    assert parent.wait().code == 130
    again = place.run(*script)
    assert (again.code, again.out) == (130, b"")
    with terminal() as stdin:
        third = place.start(*script, stdin=stdin)
        third.line("ready")
        third.send(signal.SIGTERM)
        assert third.wait().code == 75


DAMAGED = {
    "empty": b"",
    "garbage": b"\x00\xff\x01garbage",
    "half of it": b'{"id": "0',
    "no object": b"[1, 2]",
    "an empty object": b"{}",
    "foreign": b'{"name": "something", "scripts": {"test": "jest"}}',
    "newer": b'{"format": 99, "id": "x"}',
    "deep": b"[" * 100_000,
    "wrong types": b'{"id": 3, "name": [], "command": 1, "script": null, "script_digest": 1, "created": "", "seed": 1}',
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_record_that_cannot_be_read_is_not_touched(place: Place, what: str) -> None:
    path = place.store / "mine" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[what])
    done = place.run("--name", "mine", *place.script(COUNT))
    assert done.code == 2
    assert len(done.ours) == len(done.err.splitlines()) == 1
    assert done.said("--fresh")
    assert path.read_bytes() == DAMAGED[what]


def test_fresh_archives_what_cannot_be_read_as_it_is(place: Place) -> None:
    path = place.store / "mine" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    assert place.run("--name", "mine", "--fresh", *place.script(COUNT)).out == b"trained\n"
    (archived,) = (place.store / ".archive").iterdir()
    assert (archived / "run.json").read_bytes() == b"garbage"


@pytest.mark.parametrize("journal", ["with the journal", "without"])
def test_checkpoints_without_a_record_are_not_touched(place: Place, journal: str) -> None:
    script = place.script(COUNT)
    place.run(*script)
    run = place.run_dir
    store = CheckpointStore(run, str(uuid.uuid4()), "test")
    made = store.commit(
        Position(step=1, fit=1, epoch=0, batch=1, kind="batch"),
        {"state.json": [memoryview(b"{}")]},
        seq=1,
        attempt=1,
        holder="test",
        origin="epoch",
        extra={},
    )
    (run / "run.json").unlink()
    if journal == "without":
        (run / "journal.jsonl").unlink()
    done = place.run(*script)
    assert done.code == 2
    assert done.said("is missing though")
    assert done.said("--fresh")
    assert Path(made.path).exists()

    fresh = place.run("--fresh", *script)
    assert (fresh.code, fresh.out) == (0, b"trained\n")
    (archived,) = (place.store / ".archive").iterdir()
    assert list((archived / "checkpoints").iterdir())


def test_a_record_that_is_a_directory_is_not_touched(place: Place) -> None:
    path = place.store / "mine" / "run.json"
    path.mkdir(parents=True)
    assert place.run("--name", "mine", *place.script(COUNT)).code == 2
    assert path.is_dir()
    assert place.run("--name", "mine", "--fresh", *place.script(COUNT)).out == b"trained\n"


def test_an_empty_directory_is_a_run_to_be(place: Place) -> None:
    (place.store / "mine").mkdir(parents=True)
    assert place.run("--name", "mine", *place.script(COUNT)).out == b"trained\n"


def test_a_torn_journal_is_read_as_far_as_it_goes(place: Place) -> None:
    place.run("--max-failures", "1", "sh", "-c", "exit 1")
    with open(place.run_dir / "journal.jsonl", "ab") as journal:
        journal.write(b'\x00\xff{"event": "laun')
    assert place.run("--retry", "--max-failures", "1", "sh", "-c", "exit 1").code == 125
    assert place.status()["attempt"] == 2
    assert os.path.exists(place.run_dir / "attempts" / "002")
