"""`status`, `logs`, `checkpoints`, `verify`, `stop`: on everything that a store may hold."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tests.store.test_manifest import signed

from ksupervise.store import CheckpointStore, Position

from .helpers import LEAVER, PYTHON, SUPERVISOR, Place, call, wait_gone

READERS = ["status", "logs", "checkpoints", "verify", "stop"]
# DESIGN section 9
STATUS = {
    "run", "state", "attempt", "attempts", "epoch", "step", "steps_executed", "checkpoint", "goodput", "pid",
    "child_pid", "store",
}  # fmt: skip
ATTEMPT = {"number", "cause", "exit", "started", "ended", "first_step", "last_step", "resumed_from", "lost_steps"}
CHECKPOINT = {"seq", "step", "fit", "epoch", "batch", "path", "bytes", "valid", "created", "origin"}


@pytest.mark.parametrize("reader", READERS)
def test_no_store(place: Place, reader: str) -> None:
    done = place.report(reader)
    assert (done.code, done.out) == (2, b"")
    assert done.said(f"there are no runs in {place.store}; is --store right?")
    assert not place.store.exists(), "looking makes nothing"


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_store(place: Place, reader: str) -> None:
    place.store.mkdir()
    assert place.report(reader).code == 2
    assert list(place.store.iterdir()) == []


def test_an_unknown_run(place: Place) -> None:
    place.run("--name", "known", "true")
    for reader in READERS:
        done = place.report(reader, "unknown")
        assert (done.code, done.out) == (2, b"")
        assert done.said("there is no run 'unknown'")
        assert done.said("runs there: known")


@pytest.mark.parametrize("reader", READERS)
def test_a_store_that_is_a_file(place: Place, reader: str) -> None:
    done = call(reader, "--store", place.write("file", ""))
    assert done.code == 2
    assert len(done.ours) == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_record(place: Place, reader: str) -> None:
    run = place.store / "mine"
    run.mkdir(parents=True)
    (run / "run.json").write_bytes(b"garbage")
    done = place.report(reader)
    assert done.code == (0 if reader == "stop" else 2)
    assert b"Traceback" not in done.err


@pytest.mark.parametrize("reader", READERS)
def test_a_word_too_many(place: Place, reader: str) -> None:
    assert place.report(reader, "one", "two").code == 2


def test_a_finished_run(place: Place) -> None:
    place.run("--name", "mine", *place.script("print('hi')"))
    status = place.status()
    assert status.keys() >= STATUS
    assert status["run"] == "mine"
    assert status["state"] == "completed"
    assert (status["attempt"], status["step"], status["steps_executed"]) == (1, 0, 0)
    assert status["checkpoint"] is status["pid"] is status["child_pid"] is status["goodput"] is None
    assert status["store"] == str(place.store)
    (attempt,) = status["attempts"]
    assert attempt.keys() >= ATTEMPT
    assert (attempt["number"], attempt["cause"], attempt["exit"]) == (1, "completed", 0)
    assert attempt["started"] <= attempt["ended"] <= time.time()
    assert attempt["first_step"] is attempt["last_step"] is attempt["resumed_from"] is None
    text = place.report("status").out.decode()
    assert "state      completed" in text
    assert place.report("checkpoints").out == b"no checkpoints yet\n"
    assert json.loads(place.report("checkpoints", "--json").out) == []
    assert place.report("verify").out == b"0 whole, 0 damaged\n"
    assert place.report("logs").out == b"hi\n"
    assert place.report("stop").out == b"run mine is not running\n"
    assert place.status("mine") == status


@pytest.mark.parametrize(
    ("source", "options", "state", "cause", "code"),
    [
        ("raise SystemExit(9)", ["--max-failures", "2"], "gave_up", "exited", 9),
        ("1/0", ["--max-failures", "1"], "failed", "exception", 1),
        ("import nothing_of_that_name", [], "failed", "user_error", 1),
        ("import os; os.kill(os.getpid(), 9)", ["--max-failures", "1"], "failed", "signal", None),
    ],
)
def test_a_run_that_failed(
    place: Place, source: str, options: list[str], state: str, cause: str, code: int | None
) -> None:
    place.run(*options, *place.script(source))
    status = place.status()
    assert status["state"] == state
    assert (status["attempts"][-1]["cause"], status["attempts"][-1]["exit"]) == (cause, code)
    assert state.replace("_", " ") in place.report("status").out.decode()


def test_a_running_run(place: Place) -> None:
    parent = place.start("--name", "mine", *place.script(LEAVER))
    parent.line("ready")
    status = place.status()
    assert status["state"] == "running"
    assert status["pid"] == parent.pid
    assert status["child_pid"] == place.events("launched")[0]["pid"]
    (attempt,) = status["attempts"]
    assert (attempt["ended"], attempt["cause"]) == (None, None)
    text = place.report("status").out.decode()
    assert f"parent {parent.pid}, child {status['child_pid']}" in text
    assert "still running" in text
    assert place.report("logs").out == b"ready\n"
    assert place.report("checkpoints").code == place.report("verify").code == 0
    parent.send(signal.SIGTERM)
    parent.wait()
    assert place.status()["state"] == "preempted"


def test_a_lost_run(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    child = place.events("launched")[0]["pid"]
    parent.kill()
    wait_gone(child)
    status = place.status()
    assert status["state"] == "lost"
    assert status["pid"] is status["child_pid"] is None
    assert b"its parent is gone; the same command goes on" in place.report("status").out
    assert b"is not running" in place.report("stop").out


def test_the_latest_run_is_meant_where_none_is_named(place: Place) -> None:
    for name in ("zzz", "aaa"):
        place.run("--name", name, "true")
    os.utime(place.store / "zzz" / "run.json", (1, 1))
    assert place.status()["run"] == "aaa"
    os.utime(place.store / "aaa" / "run.json", (0, 0))
    assert place.status()["run"] == "zzz"


def test_a_run_may_be_named_as_it_was_when_it_began(place: Place) -> None:
    place.run("--name", "one", "true")
    place.run("--name", "two", "true")
    done = call("--store", str(place.store), "--name", "one", "status", "--json")
    assert json.loads(done.out)["run"] == "one"


def test_logs_of_an_attempt_that_never_was(place: Place) -> None:
    place.run("true")
    done = place.report("logs", "--attempt", "9")
    assert done.code == 2
    assert done.said("there is no log at")
    assert place.report("logs", "--attempt", "0").code == 2


def test_logs_events_is_the_journal(place: Place) -> None:
    place.run("true")
    lines = place.report("logs", "--events").out.splitlines()
    assert "launched" in [json.loads(line)["event"] for line in lines]


def test_logs_are_bytes(place: Place) -> None:
    place.run(*place.script("import os; os.write(1, bytes(range(128, 256)))"))
    assert place.report("logs").out == bytes(range(128, 256)) + b"\n"


def test_a_reader_that_has_seen_enough(place: Place) -> None:
    """`ksupervise logs | head -1` ends quietly."""
    place.run("--quiet", "sh", "-c", "seq 1 200000")
    read, write = os.pipe()
    parent = place.start("logs", stdout=write)
    os.close(write)
    assert os.read(read, 2) == b"1\n"
    os.close(read)
    done = parent.wait()
    assert done.err == b""
    assert done.code == -signal.SIGPIPE


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_everything(place: Place, encoding: str) -> None:
    store = place.root / "日本"
    place.run("--store", str(store), "true", store=False)
    env = {"PYTHONPATH": SUPERVISOR, "PYTHONIOENCODING": encoding}
    done = place.plain([PYTHON, "-m", "ksupervise", "status", "--store", str(store)], env)
    assert (done.code, done.err) == (0, b"")


def _checkpoint(place: Place, seq: int) -> Path:
    store = CheckpointStore(place.run_dir, place.record()["id"], "test")
    made = store.commit(
        Position(step=seq * 10, fit=1, epoch=seq, batch=0, kind="epoch"),
        {"state.json": [memoryview(b"x" * 10_000)]},
        seq=seq,
        attempt=1,
        holder="test",
        origin="epoch",
        extra={},
    )
    return Path(made.path)


def test_checkpoints_newest_first(place: Place) -> None:
    place.run("true")
    paths = [_checkpoint(place, seq) for seq in (1, 2, 3)]
    entries = json.loads(place.report("checkpoints", "--json").out)
    assert [entry["seq"] for entry in entries] == [3, 2, 1]
    assert all(entry.keys() >= CHECKPOINT for entry in entries)
    assert entries[0]["path"] == str(paths[2])
    assert (entries[0]["step"], entries[0]["valid"], entries[0]["bytes"]) == (30, True, 10_000)
    text = place.report("checkpoints").out.decode().splitlines()
    assert len(text) == 4
    assert " ".join(text[0].split()) == "seq step fit epoch batch kind size made by kept as path"
    assert "10.0 kB" in text[1]
    assert "newest" in text[1]
    assert place.status()["checkpoint"]["step"] == 30
    verified = place.report("verify")
    assert (verified.code, verified.out.splitlines()[-1]) == (0, b"3 whole, 0 damaged")


def test_verify_finds_one_flipped_bit(place: Place) -> None:
    place.run("true")
    first, second = _checkpoint(place, 1), _checkpoint(place, 2)
    data = bytearray((second / "state.json").read_bytes())
    data[5000] ^= 1
    (second / "state.json").write_bytes(data)
    assert place.report("checkpoints").out.count(b"newest") == 2, "listing reads no payload"
    done = place.report("verify")
    assert done.code == 1
    aside = place.run_dir / "aside" / second.name
    bad, good, count, moved = done.out.decode().splitlines()
    assert bad.startswith("damaged  step 20  epoch  10.0 kB")
    assert bad.endswith(f"{second}: state.json: bytes 0 to 10000 are not what was written (crc32 differs)")
    assert good.startswith("whole    step 10  epoch  10.0 kB")
    assert good.endswith(f"{first}  (state 0 B, rest 10.0 kB)")
    assert (count, moved) == ("1 whole, 1 damaged", f"set aside: {aside}")
    assert not second.exists()
    assert (aside / "state.json").exists()
    assert "crc32 differs" in aside.with_name(f"{second.name}.reason.txt").read_text()
    again = place.report("verify")
    assert (again.code, again.out.splitlines()[-1]) == (0, b"1 whole, 0 damaged")


def test_verify_leaves_a_run_that_is_owned_alone(place: Place) -> None:
    parent = place.start("--name", "mine", *place.script(LEAVER))
    parent.line("ready")
    first, second = _checkpoint(place, 1), _checkpoint(place, 2)
    (second / "state.json").write_bytes(b"y" * 10_000)
    (first / "state.json").write_bytes(b"")
    done = place.report("verify")
    assert done.code == 1
    assert done.out.splitlines()[-1] == b"0 whole, 2 damaged"
    assert done.said("its parent is at work: to have them set aside, stop the run and verify again")
    assert first.exists()
    assert second.exists()
    parent.send(signal.SIGTERM)
    parent.wait()
    assert place.report("verify").code == 1
    assert not first.exists()
    assert not second.exists()
    assert place.run("--name", "mine", *place.script("")).code == 0, "the lock was let go"


def test_verify_for_programs(place: Place) -> None:
    place.run("true")
    first, second, third = (_checkpoint(place, seq) for seq in (1, 2, 3))
    (second / "state.json").write_bytes(b"y" * 10_000)
    (third / "MANIFEST.json").write_bytes(b"{}")
    done = place.report("verify", "--json")
    assert done.code == 1
    entries = json.loads(done.out)
    assert [(entry["seq"], entry["valid"]) for entry in entries] == [(2, False), (1, True), (None, False)]
    assert all(entry.keys() >= {"path", "reason", "files", "set_aside"} for entry in entries)
    assert entries[1].keys() >= CHECKPOINT
    assert entries[1]["files"] == {"state.json": 10_000}
    aside = place.run_dir / "aside"
    assert [entry["set_aside"] for entry in entries] == [str(aside / second.name), None, str(aside / third.name)]
    assert [entry["path"] for entry in entries] == [str(second), str(first), str(third)]


def test_a_newer_version_s_checkpoint_does_not_hide_the_others(place: Place) -> None:
    place.run("true")
    first, second, newer = (_checkpoint(place, seq) for seq in (1, 2, 3))
    (newer / "MANIFEST.json").write_bytes(signed({"format": 99, "writer": "ksupervise 99"}))
    entries = json.loads(place.report("checkpoints", "--json").out)
    assert [entry["valid"] for entry in entries] == [True, True, None]
    assert b"UNKNOWN: " + os.fsencode(newer) in place.report("checkpoints").out
    done = place.report("verify")
    assert (done.code, done.out.splitlines()[-1]) == (2, b"2 whole, 0 damaged, 1 that could not be judged")
    assert b"was written by ksupervise 99 in format 99" in done.out
    (first / "state.json").unlink()
    assert place.report("verify").code == 1
    assert not first.exists()
    assert second.exists()
    assert newer.exists(), "it is not damaged"


def test_why_each_checkpoint_is_kept(place: Place) -> None:
    """As the run's parent told in its journal; where that cannot be read, as the settings here say."""
    place.run("true")
    for seq in range(1, 6):
        _checkpoint(place, seq)

    def kept(*options: str) -> list[list[str]]:
        done = call(*options, "--store", str(place.store), "checkpoints", "--json")
        return [entry["kept"] for entry in json.loads(done.out)]

    assert [words[:1] for words in kept()] == [["newest"]] * 3 + [[]] + [["next 10 min"]]
    assert kept("--keep", "1") == kept(), "what is in force is the run's own"
    with open(place.run_dir / "journal.jsonl", "a") as journal:
        told = {"newest": 1, "best": None, "every": 4, "bytes": None, "ages": [60.0]}
        journal.write(json.dumps({"event": "supervised", "at": 0.0, "retention": told}) + "\n")
    assert kept("--keep", "5") == [["newest"], ["every 4 epochs"], [], [], ["next 1 min"]]
    with open(place.run_dir / "journal.jsonl", "a") as journal:
        journal.write(json.dumps({"event": "supervised", "at": 0.0, "retention": {"of": "another version"}}) + "\n")
    assert kept("--keep", "1", "--keep-every", "2")[1] == ["every 2 epochs"]
    assert kept("--keep", "5")[3] == ["newest"]


def test_a_log_that_went_on_in_a_new_file_is_shown_whole(place: Place) -> None:
    assert place.run(*place.script("print('the end')")).code == 0
    (place.run_dir / "attempts" / "001" / "output.log.1").write_text("the beginning\n")
    assert place.report("logs").out == b"the beginning\nthe end\n"
