"""Which stage is committed when: a real stage, a real store, the persister's real thread; the clock is the test's."""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksupervise.core.cadence import Pace
from ksupervise.parent.commits import Commits, Shelf
from ksupervise.parent.console import Console
from ksupervise.parent.journal import Journal, read
from ksupervise.parent.pace import Pacer
from ksupervise.parent.persist import Persister, restore
from ksupervise.parent.stage import Stage, content, fill
from ksupervise.parent.voice import Voice
from ksupervise.store import CHUNK, CheckpointStore, Retention, RunLayout
from ksupervise.wire import PAGE, Control


class FixedPacer(Pacer):
    """A commit every minute, a stage every second; nothing is measured."""

    def tell(self, control: Control) -> None:
        self.pace = Pace(1.0, "shortest", 60.0, "failures")


class Office:
    """Commits with everything around them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        layout = RunLayout(folder)
        layout.create()
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = CheckpointStore(folder, "run")
        self.stage = Stage(folder)
        self.journal = Journal(Path(layout.journal))
        self.console = Console()
        self.persister = Persister(self.calls.put)
        self.pacer = FixedPacer(0.01, 300.0, [])
        self.page = os.memfd_create("page")
        os.ftruncate(self.page, PAGE)
        self.control = Control(self.page)
        self.pacer.tell(self.control)
        self.sent: list[dict[str, Any]] = []
        shelf = Shelf(
            holder="here",
            retention=Retention(),
            store=self.store,
            stage=self.stage,
            persister=self.persister,
            pacer=self.pacer,
            journal=self.journal,
            voice=Voice(self.console, quiet=True, json_log=False),
        )
        self.shelf = shelf
        self.commits = self.attempt(1)
        self.seq = 0

    def attempt(self, number: int) -> Commits:
        return Commits(self.shelf, number, self.control, self.sent.append)

    def staged(self, *, durable: bool = False, kind: str = "batch") -> int:
        """The child makes a stage and says so."""
        self.seq += 1
        index = self.seq % 2
        text = json.dumps({"seq": self.seq}).encode()
        position = {"fit": 1, "epoch": 0, "batch": self.seq, "step": self.seq, "kind": kind}
        about = {"position": position, "attempt": 1, "origin": "interval", "extra": {}, "staged": True}
        fill(self.stage.slots[index], {"state.json": (len(text), [memoryview(text)])}, self.seq, about)
        description = self.stage.slots[index].read_description()
        assert description is not None
        self.commits.staged(index, description, {"durable": durable, "stall": 0.01})
        return self.seq

    def turn(self, answers: int = 2) -> None:
        """The loop hears the persister's answers: a commit's, and that old ones were removed."""
        for _ in range(answers):
            self.calls.get(timeout=30)()

    def on_disk(self) -> list[int]:
        return [checkpoint.manifest.seq for checkpoint in self.store.checkpoints()]

    def freed(self) -> list[tuple[int, bool]]:
        return [(each["seq"], each["committed"]) for each in self.sent if each["op"] == "free"]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [each for each in read(self.journal.path) if each["event"] == name]

    def close(self) -> None:
        self.persister.close(30)
        self.stage.close()
        self.control.close()
        os.close(self.page)
        self.journal.close()
        self.console.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.close()


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock is so much further from now on."""
    now = time.monotonic()
    monkeypatch.setattr("ksupervise.parent.commits.time.monotonic", lambda: now + seconds)


def test_the_first_stage_is_committed_at_once(office: Office) -> None:
    office.staged()
    office.turn()
    assert office.on_disk() == [1]
    assert office.freed() == [(1, True)]
    assert office.commits.is_settled(1)


def test_then_stages_wait_and_are_superseded(office: Office) -> None:
    office.staged()
    office.turn()
    office.staged()
    office.staged()
    office.commits.look()
    assert office.on_disk() == [1]
    assert office.freed() == [(1, True), (2, False)], "the child may write over the second, not over the third"


def test_what_waits_is_committed_when_it_is_due(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.staged()
    office.turn()
    office.staged()
    later(monkeypatch, 61.0)
    office.commits.look()
    office.turn()
    assert office.on_disk() == [2, 1]
    assert office.events("committed")[-1]["seconds"] >= 0


def test_what_is_to_be_durable_does_not_wait(office: Office) -> None:
    office.staged()
    office.turn()
    office.staged(durable=True)
    office.turn()
    assert office.on_disk() == [2, 1]


def test_who_leaves_has_its_last_state_committed(office: Office) -> None:
    settled = []
    office.staged()
    office.turn()
    seq = office.staged()
    office.commits.when_settled = lambda: settled.append(office.commits.is_settled(seq))
    office.commits.now(seq)
    office.turn()
    assert settled == [True]
    assert office.on_disk() == [2, 1]


def test_a_notice_that_leaves_time_commits_what_waits(office: Office) -> None:
    office.staged()
    office.turn()
    office.staged()
    office.commits.drain(time.monotonic() + 30)
    office.turn()
    assert office.on_disk() == [2, 1]


def test_with_little_time_the_last_chance_is_awaited(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes ten seconds: either what waits now, or, should it come, a newer one."""
    monkeypatch.setattr(FixedPacer, "expected", 10.0)
    office.staged()
    office.turn()
    office.staged()
    office.commits.drain(time.monotonic() + 25)
    office.commits.look()
    assert office.on_disk() == [1]
    later(monkeypatch, 13.0)
    office.commits.look()
    office.turn()
    assert office.on_disk() == [2, 1]


def test_the_newest_is_committed_when_the_child_is_gone(office: Office) -> None:
    office.staged()
    office.turn()
    office.staged()
    office.staged()
    office.commits.leftovers()
    office.turn()
    assert office.on_disk() == [3, 1]
    office.commits.leftovers()
    assert office.on_disk() == [3, 1], "once"


def test_what_the_child_could_not_announce_is_committed_too(office: Office) -> None:
    office.staged()
    office.turn()
    office.commits = office.attempt(2)
    office.commits.leftovers()
    assert office.on_disk() == [1], "that was an earlier attempt's"
    text = b"{}"
    position = {"fit": 1, "epoch": 0, "batch": 9, "step": 9, "kind": "batch"}
    about = {"position": position, "attempt": 2, "origin": "interval", "extra": {}, "staged": True}
    fill(office.stage.slots[0], {"state.json": (2, [memoryview(text)])}, 9, about)
    office.commits.leftovers()
    office.turn()
    assert office.on_disk() == [9, 1]


def test_the_next_trainer_is_told_which_slots_are_still_being_committed(office: Office) -> None:
    office.staged()
    assert office.commits.taken() == [0, 1], "the first stage lies in slot 1"
    office.turn()
    assert office.commits.taken() == [0, 0]


def test_a_commit_that_fails_is_told_and_the_next_one_tried(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.staged()
    office.turn()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_publish", lambda *_: (_ for _ in ()).throw(OSError(5, "EIO")))
        office.staged(durable=True)
        office.turn(1)
    assert office.freed()[-1] == (2, False)
    assert office.commits.is_settled(2)
    assert len(office.events("commit_failed")) == 1
    office.staged(durable=True)
    office.turn()
    assert office.on_disk() == [3, 1]


def test_a_trouble_that_is_over_is_told_and_the_next_one_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(line: str, *, urgent: bool = False) -> None:
        said.append(line)

    monkeypatch.setattr(office.shelf.voice, "say", say)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "_publish", lambda *_: (_ for _ in ()).throw(OSError(5, "EIO")))
            for _ in range(3):
                office.staged(durable=True)
                office.turn(1)
        office.staged(durable=True)
        office.turn()
    assert [line.split(":")[0] for line in said] == [
        "a checkpoint could not be written, training goes on",
        "checkpoints can be written again",
    ] * 2


def test_a_state_that_the_child_wrote_itself_is_entered(office: Office) -> None:
    position = {"fit": 1, "epoch": 0, "batch": 5, "step": 5, "kind": "batch"}
    office.commits.saved({"seq": 5, "position": position, "path": "there", "stall": 2.0})
    office.turn(1)
    assert office.commits.is_settled(5)
    [record] = office.events("committed")
    assert (record["seq"], record["step"], record["path"]) == (5, 5, "there")


def test_a_state_that_the_child_could_not_write_is_told_and_room_is_made(office: Office) -> None:
    for _ in range(3):
        office.staged(durable=True)
        office.turn()
    office.commits.unsaved({"seq": 9, "reason": "no room", "full": True, "size": 10})
    office.turn(1)
    assert office.commits.is_settled(9)
    assert office.events("commit_failed")[0]["reason"] == "no room"
    assert office.on_disk()[0] == 3, "the newest stays"
    assert office.events("freed"), "the others are optional"


# The stage ----------------------------------------------------------------------------------------


@pytest.fixture
def held(office: Office) -> Office:
    """An older state on disk, a newer one waiting in memory."""
    office.staged()
    office.turn()
    office.staged()
    return office


def test_a_stage_that_waits_in_memory_is_gone_back_to(held: Office) -> None:
    found = restore(held.store, held.stage, 1, 10)
    assert found.plan.checkpoint is not None
    assert found.plan.checkpoint.seq == 2


def test_memory_that_a_child_could_shrink_would_end_the_parent(office: Office) -> None:
    slot = office.stage.slots[0]
    slot.reserve(10 * PAGE)
    if sys.platform == "linux":
        with pytest.raises(PermissionError):
            os.ftruncate(slot.fd, PAGE)
    with pytest.raises(OSError, match="the stage ends before"):
        list(content(slot, PAGE, slot.size))


def test_content_comes_in_chunks_whatever_its_size(office: Office) -> None:
    slot = office.stage.slots[0]
    for size in (1, CHUNK, CHUNK + 1, 2 * CHUNK + 4097):
        data = os.urandom(size)
        fill(slot, {"a": (size, [memoryview(data)])}, 1, {})
        assert [len(chunk) for chunk in content(slot, PAGE, size)] == [
            min(CHUNK, size - at) for at in range(0, size, CHUNK)
        ]
        assert b"".join(map(bytes, content(slot, PAGE, size))) == data


def test_where_no_memory_is_given_the_slots_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandboxed kernel. They are reserved on the disk: a full one must not end in SIGBUS."""

    def refuse(*_: Any) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    stage = Stage(tmp_path)
    assert "Operation not permitted" in stage.on_disk or "no memfd" in stage.on_disk
    assert list(tmp_path.iterdir()) == [], "no name is left behind"
    stage.slots[0].reserve(100 * PAGE)
    assert stage.slots[0].taken >= 100 * PAGE
    about = {"position": {}, "attempt": 1, "origin": "interval", "extra": {}}
    fill(stage.slots[0], {"a": (3, [memoryview(b"abc")])}, 1, about)
    assert b"".join(content(stage.slots[0], PAGE, 3)) == b"abc"
    assert stage.newest() is not None
    stage.close()
