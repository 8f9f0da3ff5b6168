"""The process that keeps a replica: its orders and reports, its retries, and what its death leaves."""

from __future__ import annotations

import io
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pytest

from ksupervise.replicas import talk as talking
from ksupervise.replicas.fetch import look, read_manifest
from ksupervise.replicas.folder import Folder
from ksupervise.replicas.format import MANIFEST, Generation
from ksupervise.replicas.place import Arrival, ReplicaFull, ReplicaRefused, ReplicaUnreachable
from ksupervise.replicas.talk import Config, Ended, Orders, Reports
from ksupervise.replicas.upload import arrival
from ksupervise.replicas.worker import Owning, Worker, serve
from ksupervise.store import CheckpointStore, RunLayout

from .memory_place import GENERATION, NAME, RUN, MemoryPlace, manifests, new_run, put, told, tree

PATIENCE = 60.0  # seconds until a report that does not come is missed
MIB = 1024 * 1024


class Talk:
    """Orders to a worker, and its reports, heard by a thread."""

    def __init__(self, orders: IO[bytes], reports: IO[bytes]) -> None:
        self._orders = orders
        self.heard: list[dict[str, Any]] = []
        self.ended = False
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, args=(reports,), daemon=True)
        self._thread.start()

    def _listen(self, reports: IO[bytes]) -> None:
        for line in reports:
            self._waiting.put(json.loads(line))
        reports.close()
        self._waiting.put(None)

    def order(self, **order: Any) -> None:
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()

    def close(self) -> None:
        if not self._orders.closed:
            self._orders.close()

    def next(self) -> dict[str, Any] | None:
        """What it says next, None when it has left."""
        report = None if self.ended else self._waiting.get(timeout=PATIENCE)
        if report is None:
            self.ended = True
            self._thread.join(PATIENCE)
        else:
            self.heard.append(report)
        return report

    def until(self, op: str, **values: Any) -> dict[str, Any]:
        """The next report of that kind with these values."""
        while (report := self.next()) is not None:
            if report["op"] == op and values.items() <= report.items():
                return report
        raise AssertionError(f"it left without {op} {values}: {self.heard}")

    def rest(self) -> list[dict[str, Any]]:
        """What it says until it leaves."""
        return list(iter(self.next, None))

    def ops(self) -> list[str]:
        return [report["op"] for report in self.heard if report["op"] != "beat"]


class Anybody:
    """An ownership as a test wants it."""

    def __init__(self, *, holds: bool = True, ours: bool = True, due: float = 1000.0) -> None:
        self.holds, self.ours, self.until_beat = holds, ours, due
        self.calls: list[str] = []
        self.lost = "" if holds and ours else "it is theirs"

    def hold(self, sleep: Callable[[float], None]) -> bool:
        self.calls.append("hold")
        return self.holds

    def still_ours(self) -> bool:
        self.calls.append("still ours?")
        return self.ours

    def beat(self) -> None:
        self.calls.append("beat")
        self.until_beat = 1000.0

    def release(self) -> None:
        self.calls.append("release")


class Restless(Anybody):
    """A sign of life is due all the time."""

    def beat(self) -> None:
        super().beat()
        self.until_beat = 0.01


class Patient(Anybody):
    """It has to watch another one for a while."""

    LOOKS = 20

    def hold(self, sleep: Callable[[float], None]) -> bool:
        if not self.calls:
            for _ in range(self.LOOKS):
                sleep(0.001)
        return super().hold(sleep)


@contextmanager
def serving(
    store: CheckpointStore,
    place: MemoryPlace,
    *,
    opener: Callable[[], MemoryPlace] | None = None,
    owner: Anybody | None = None,
    poll: float = 0.01,
    **settings: Any,
) -> Iterator[Talk]:
    """A worker on a thread of this process."""
    config = Config(str(store.layout.root), RUN, NAME, "memory", **settings)
    orders_end, orders = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    reports, reports_end = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    failed: list[BaseException] = []
    owning: Owning | None = None if owner is None else lambda _place, _generation: owner

    def run() -> None:
        try:
            serve(config, opener or (lambda: place), orders_end, reports_end, owning, poll)
        except BaseException as error:
            failed.append(error)
        finally:
            reports_end.close()

    thread = threading.Thread(target=run)
    talk = Talk(orders, reports)
    thread.start()
    try:
        yield talk
    finally:
        talk.close()
        thread.join(PATIENCE)
        talk.rest()
        orders_end.close()
    assert not thread.is_alive()
    assert not failed, failed


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return new_run(tmp_path / "local" / NAME)


@pytest.fixture
def place() -> MemoryPlace:
    return MemoryPlace()


def complete(place: MemoryPlace | Folder) -> list[int]:
    """Seqs that count in the place, newest first."""
    return [copy.item.seq for found in look(place, NAME) for copy in found.inventory.copies]


def once(method: str, ending: str, then: Callable[[], None]) -> Callable[[str, str], None]:
    """Call `then` before the first call of that method for a key that ends so."""
    left = [True]

    def before(called: str, key: str) -> None:
        if called == method and key.endswith(ending) and left.pop() if left else False:
            then()

    return before


def breaking(fault: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise fault

    return fail


def test_the_newest_is_copied_and_what_follows_when_it_is_told(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    put(store, 2)
    before = tree(Path(store.layout.root))
    with serving(store, place) as talk:
        assert talk.until("ready") == {"op": "ready", "generation": 1, "place": "memory", "excludes": True}
        assert talk.until("room") == {"op": "room", "bytes": None, "needed": 3 * 3001}
        assert talk.until("uploading") == {"op": "uploading", "seq": 2, "bytes": 3001}
        replicated = talk.until("replicated")
        assert (replicated["seq"], replicated["arrival"], replicated["bytes"]) == (2, "uploaded", 3001)
        talk.until("idle")
        assert complete(place) == [2]
        assert tree(Path(store.layout.root)) == before, "nothing is written here"
        put(store, 3)
        talk.order(op="wake")
        talk.until("replicated", seq=3)
        put(store, 4)
        talk.order(op="wake")
        talk.until("removed", seqs=[2])
        talk.until("idle")
        assert complete(place) == [4, 3]


def test_a_run_without_a_checkpoint_waits(store: CheckpointStore, place: MemoryPlace) -> None:
    with serving(store, place) as talk:
        talk.until("idle")
        put(store, 1)
        talk.order(op="wake")
        talk.until("replicated", seq=1)
    assert talk.ops() == ["ready", "idle", "room", "uploading", "replicated", "idle"]


def test_final_states_are_copied_after_the_newest(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1, kind="final", fit=1)
    put(store, 2, kind="final", fit=2)
    put(store, 3, fit=3)
    with serving(store, place) as talk:
        assert [talk.until("replicated")["seq"] for _ in range(3)] == [3, 2, 1]
        talk.until("idle")
    assert complete(place) == [3, 2, 1]


class Awake(Orders):
    """Orders of a parent that is committing all the time, until there is nothing to do."""

    @property
    def over(self) -> bool:
        return False

    def take_wake(self) -> bool:
        return True

    def wait(self, seconds: float) -> bool:
        raise Ended


def test_a_newer_one_supersedes_but_one_in_three_is_finished(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1, size=2 * MIB)

    def another(method: str, key: str) -> None:
        if method == "write" and key.endswith("state.safetensors") and store.next_seq() < 9:
            put(store, store.next_seq(), size=2 * MIB)

    place.before = another
    said, config = io.BytesIO(), Config(str(store.layout.root), RUN, NAME, "memory")
    Worker(config, lambda: place, Awake(io.BytesIO()), Reports(said)).run()
    uploads = [(report["op"], report["seq"]) for report in told(said.getvalue()) if "seq" in report]
    assert [seq for op, seq in uploads if op == "uploading"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [seq for op, seq in uploads if op == "abandoned"] == [1, 2, 4, 5, 7]
    assert [seq for op, seq in uploads if op == "replicated"] == [3, 6, 8]


def test_what_is_cached_is_asked_for_until_it_has_arrived(store: CheckpointStore, place: MemoryPlace) -> None:
    place.state = Arrival.CACHED
    for step in (1, 2):
        put(store, step)
        if step == 1:
            with serving(store, place) as talk:
                talk.until("replicated", seq=1, arrival="cached")
    with serving(store, place, keep=1) as talk:
        assert talk.until("there") == {"op": "there", "seq": 1, "arrival": "cached", "bytes": 3001}
        talk.until("replicated", seq=2, arrival="cached")
        talk.until("idle")
        assert complete(place) == [2, 1], "nothing goes before a newer one has left the machine"
        place.state = Arrival.UPLOADED
        talk.until("arrived", seq=2)
        talk.until("removed", seqs=[1])
    assert complete(place) == [2]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(ReplicaUnreachable, "unreachable"), (ReplicaRefused, "refused"), (ReplicaFull, "full")],
)
@pytest.mark.parametrize("method", ["create", "write", "entries", "arrival"])
def test_a_failure_is_told_and_tried_again(
    store: CheckpointStore, place: MemoryPlace, fault: type[Exception], kind: str, method: str
) -> None:
    put(store, 1)
    place.before = once(method, "", breaking(fault("it broke")))
    with serving(store, place) as talk:
        failed = talk.until("failed")
        assert (failed["reason"], failed["kind"]) == ("it broke", kind)
        assert 0 < failed["again_s"] <= 60
        talk.until("replicated", seq=1)


def test_a_place_that_cannot_be_opened_is_tried_again(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    answers: list[MemoryPlace | Exception] = [ReplicaUnreachable("no mount"), place]

    def opener() -> MemoryPlace:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with serving(store, place, opener=opener) as talk:
        talk.until("failed", kind="unreachable", reason="no mount")
        talk.until("replicated", seq=1)


def test_a_full_place_gives_up_all_but_the_last_that_has_left(store: CheckpointStore, place: MemoryPlace) -> None:
    for step in (1, 2):
        put(store, step)
        with serving(store, place) as talk:
            talk.until("idle")
    assert complete(place) == [2, 1]
    put(store, 3)
    place.before = once("write", "state.safetensors", breaking(ReplicaFull("no room")))
    with serving(store, place) as talk:
        talk.until("failed", kind="full")
        talk.until("removed", seqs=[1])
        talk.until("replicated", seq=3)
        talk.until("idle")
    assert complete(place) == [3, 2]


def test_who_keeps_one_is_told_that_there_has_to_be_room_for_two(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    place.before = once("write", "state.safetensors", breaking(ReplicaFull("no room")))
    with serving(store, place, keep=1) as talk:
        assert "room for two" in talk.until("failed", kind="full")["reason"]


def test_leftovers_of_a_dead_worker_are_removed(store: CheckpointStore, place: MemoryPlace) -> None:
    place.objects[f"{GENERATION.checkpoints}000000000001-a0001-haaaaaa/state.safetensors"] = b"torn"
    put(store, 1)
    put(store, 2, attempt=2)
    with serving(store, place) as talk:
        talk.until("removed", seqs=[1])
        talk.until("idle")
    assert not [key for key in place.objects if "haaaaaa" in key]


def test_a_half_removed_checkpoint_never_looks_complete(store: CheckpointStore, place: MemoryPlace) -> None:
    for step in (1, 2):
        put(store, step)
        with serving(store, place) as talk:
            talk.until("idle")
    put(store, 3)
    seen: list[list[str]] = []

    def watch(method: str, key: str) -> None:
        if method == "remove" and not key.endswith("MANIFEST.json"):
            seen.append(manifests(place))

    place.before = watch
    with serving(store, place) as talk:
        talk.until("removed", seqs=[1])
    assert seen
    assert all(len(each) == 2 for each in seen)


def test_the_end_waits_for_the_newest(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    with serving(store, place) as talk:
        talk.until("idle")
        put(store, 2)
        talk.order(op="finish", seconds=60)
        assert talk.rest()[-1] == {"op": "finished", "complete": True}
    assert complete(place)[0] == 2


def test_how_it_ended_goes_there_before_the_last_checkpoint(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    with serving(store, place, holder="here", attempt=3) as talk:
        talk.until("idle")
        assert not [key for key in place.objects if "/history/" in key], "it goes on"
        with open(store.layout.journal, "a", encoding="utf-8") as journal:
            journal.write('{"event":"verdict"}\n')
        put(store, 2)
        place.calls.clear()
        talk.order(op="finish", seconds=60)
        talk.until("finished", complete=True)
    written = [key for method, key in place.calls if method == "write"]
    assert written[0] == f"{GENERATION.histories}000003-here.0001.jsonl"
    assert place.objects[written[0]].endswith(b'{"event":"verdict"}\n')
    assert MANIFEST in written[-1]


def test_at_the_end_an_older_one_gives_way(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1, size=8 * MIB)
    finishing = threading.Event()
    with serving(store, place, finish=1) as talk:

        def end() -> None:
            put(store, 2)
            talk.order(op="finish", seconds=60)
            finishing.set()

        place.before = once("write", "state.safetensors", end)
        talk.order(op="wake")
        said = talk.rest()
    if not finishing.is_set():
        pytest.fail("nothing was copied")
    assert said[-1] == {"op": "finished", "complete": True}
    assert complete(place)[0] == 2


def test_the_end_does_not_wait_for_ever(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    place.before = lambda method, _key: breaking(ReplicaUnreachable("gone"))() if method != "open" else None
    with serving(store, place) as talk:
        talk.until("failed")
        talk.order(op="finish", seconds=0.05)
        assert talk.rest()[-1] == {"op": "finished", "complete": False}
    place.before = lambda _method, _key: None
    assert complete(place) == []


def test_a_closed_stdin_ends_an_upload_and_a_wait(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1, size=8 * MIB)
    with serving(store, place) as talk:
        talk.until("idle")
        talk.close()
        assert talk.rest() == []
    put(store, 2, size=8 * MIB)
    with serving(store, place, rate=MIB) as talk:
        talk.until("uploading", seq=2)
        talk.close()
        assert {report["op"] for report in talk.rest()} <= {"beat"}
    assert complete(place) == [1]


def test_another_owner_ends_it_before_a_manifest_or_a_removal(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    with serving(store, place, owner=Anybody(ours=False)) as talk:
        assert talk.rest()[-1] == {"op": "superseded", "by": "it is theirs"}
    assert not manifests(place)
    with serving(store, place) as talk:
        talk.until("idle")
    place.objects[f"{GENERATION.checkpoints}000000000000-a0000-haaaaaa/state.safetensors"] = b"torn"
    with serving(store, place, owner=Anybody(ours=False)) as talk:
        assert talk.rest()[-1] == {"op": "superseded", "by": "it is theirs"}
    assert [key for key in place.objects if "haaaaaa" in key]


def test_an_owner_is_asked_before_anything_is_written(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    with serving(store, place, owner=Anybody(holds=False)) as talk:
        assert talk.rest()[-1] == {"op": "superseded", "by": "it is theirs"}
    assert place.objects == {}


def test_an_owner_gives_signs_of_life_and_lets_go_at_the_end_only(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    owner = Anybody(due=0.0)
    with serving(store, place, owner=owner) as talk:
        talk.until("replicated")
        assert owner.calls[:2] == ["hold", "beat"], "also while bytes move"
        talk.until("idle")
        owner.until_beat = 0.0
        talk.order(op="wake")
        talk.until("idle")
        talk.order(op="finish", seconds=60)
        assert talk.rest()[-1]["op"] == "finished"
    assert owner.calls[-1] == "release"
    taken = Anybody()
    with serving(store, place, owner=taken) as talk:
        talk.until("idle")
        taken.until_beat, taken.lost = 0.0, "it is theirs"
        talk.order(op="wake")
        assert talk.rest()[-1] == {"op": "superseded", "by": "it is theirs"}, "also with nothing to do"
    orphan = Anybody()
    with serving(store, place, owner=orphan) as talk:
        talk.until("idle")
    assert "release" not in orphan.calls


def test_who_tries_again_is_alive_meanwhile(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    owner = Restless()

    def refuse(method: str, _: str) -> None:
        if method == "write":
            raise ReplicaUnreachable("it is away")

    place.before = refuse
    with serving(store, place, owner=owner) as talk:
        assert talk.until("failed")["again_s"] >= 0.5
        before = owner.calls.count("beat")
        talk.until("failed")
        assert owner.calls.count("beat") - before >= 5
        owner.lost = "it is theirs"
        assert talk.until("superseded")["by"] == "it is theirs"


def test_who_waits_for_a_dead_owner_is_alive_meanwhile(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    owner = Patient()
    with serving(store, place, owner=owner) as talk:
        talk.until("replicated")
        before = [report["op"] for report in talk.heard].index("room")
        assert len([report for report in talk.heard[:before] if report["op"] == "beat"]) >= Patient.LOOKS


def test_what_is_rotten_here_is_told_and_the_one_before_copied(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    rotten = put(store, 2)
    Path(rotten.path, "state.safetensors").write_bytes(bytes(3000))
    with serving(store, place) as talk:
        failed = talk.until("failed", kind="local")
        assert rotten.path in failed["reason"]
        talk.until("replicated", seq=1)
        talk.until("idle")
    assert talk.ops().count("failed") == 1


def test_a_place_that_does_not_list_what_it_took_is_not_written_without_end(
    store: CheckpointStore, place: MemoryPlace
) -> None:
    put(store, 1)
    forgets = [True]

    def forget(method: str, _key: str) -> None:
        if method == "entries" and manifests(place) and forgets and forgets.pop():
            for key in [key for key in place.objects if "/checkpoints/" in key]:
                del place.objects[key]

    place.before = forget
    with serving(store, place) as talk:
        assert "does not list" in talk.until("failed", kind="unreachable")["reason"]
        talk.until("replicated", seq=1)
        talk.until("idle")
    assert complete(place) == [1]


def test_a_run_begins_a_generation_after_those_of_others(store: CheckpointStore, place: MemoryPlace) -> None:
    other = {"id": "ffffffff-6f0e-4c43-9d7a-000000000002"}
    place.objects[Generation(4, "ffffffff", NAME).record] = json.dumps(other).encode()
    put(store, 1)
    for _ in range(2):
        with serving(store, place) as talk:
            assert talk.until("ready")["generation"] == 5
            talk.until("idle")
    with serving(store, place, generation=9) as talk:
        assert talk.until("ready")["generation"] == 9
        talk.until("idle")
    assert [found.generation.number for found in look(place, NAME)] == [9, 5, 4]


def test_orders_that_make_no_sense_are_passed_over(store: CheckpointStore, place: MemoryPlace) -> None:
    put(store, 1)
    with serving(store, place) as talk:
        talk.until("idle")
        put(store, 2)
        for nonsense in (["wake"], {"op": "dance"}, {"op": "finish", "seconds": "x"}, {}):
            talk.order(**{"op": nonsense} if isinstance(nonsense, list) else nonsense)
        talk.order(op="wake")
        talk.until("replicated", seq=2)


class Counting(io.BytesIO):
    """Lets whoever waits know of the third line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.three = 0, threading.Event()

    def flush(self) -> None:
        self.lines += 1
        if self.lines == 3:
            self.three.set()


def test_a_call_that_may_last_is_borne_with_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talking, "_QUIET", 0.01)
    said, now = Counting(), [0.0]
    reports = Reports(said, clock=lambda: now[0])
    with reports.patience(talking._SLOW):
        assert said.three.wait(PATIENCE), "signs of life go on while it lasts"
        now[0] = 2.0
        for thread in threading.enumerate():
            if thread.name == "patience":
                thread.join(PATIENCE)
                assert not thread.is_alive(), "and end when it is a hang"
    before = said.lines
    with reports.patience(0):
        assert said.lines == before + 1


@contextmanager
def process(store: CheckpointStore, folder: Path, *arguments: str, **settings: Any) -> Iterator[tuple[Talk, Any]]:
    """A worker as the parent starts it."""
    config = {**asdict(Config(str(store.layout.root), RUN, NAME, str(folder))), **settings}
    if arguments:
        config = {"name": NAME, "place": str(folder), **settings}
    command = [sys.executable, "-m", "ksupervise.replicas.worker", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        talk = Talk(child.stdin, child.stdout)
        talk.order(**config)
        try:
            yield talk, child
        finally:
            talk.close()
            talk.rest()
            child.wait(PATIENCE)


def test_the_process_copies_and_leaves(store: CheckpointStore, tmp_path: Path) -> None:
    put(store, 1, size=8 * MIB)
    before = tree(Path(store.layout.root))
    with process(store, tmp_path / "My Drive") as (talk, child):
        talk.until("replicated", seq=1)
        child.send_signal(signal.SIGINT)  # a Ctrl-C is the parent's
        talk.order(op="finish", seconds=60)
        assert talk.rest()[-1] == {"op": "finished", "complete": True}
        assert child.wait(PATIENCE) == 0
    assert complete(Folder(str(tmp_path / "My Drive"))) == [1]
    assert tree(Path(store.layout.root)) == before


def test_a_place_that_is_none_is_refused_for_good(store: CheckpointStore, tmp_path: Path) -> None:
    with process(store, tmp_path, place="nosuch://bucket") as (talk, child):
        failed = talk.until("failed", kind="refused", again_s=None)
        assert "nosuch" in failed["reason"]
        assert talk.rest() == []
        assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize("arguments", [[], ["fetch"], ["look"], ["claim"]])
def test_a_configuration_that_is_not_understood_is_refused(
    store: CheckpointStore, tmp_path: Path, arguments: list[str]
) -> None:
    with process(store, tmp_path, *arguments, nosuch=1) as (talk, child):
        assert "nosuch" in talk.until("failed", kind="refused", again_s=None)["reason"]
        assert child.wait(PATIENCE) == 0


def test_a_claimed_run_is_held_and_its_token_seen(store: CheckpointStore, tmp_path: Path) -> None:
    put(store, 1)
    folder, record = tmp_path / "replica", Path(store.layout.run_json).read_text()
    mine = {"run": RUN, "holder": "here-1-abc", "attempt": 3, "record": record, "pid": os.getpid()}
    with process(store, folder, "claim", **mine) as (talk, _):
        assert talk.until("owned")["token"] == 3
    with process(store, folder, holder="here-1-abc", token=3, pid=os.getpid()) as (talk, _):
        talk.until("idle")
    with process(store, folder, "look") as (talk, _):
        assert talk.until("found")["generations"][0]["token"] == 3
    with process(store, folder, holder="there-2-xyz", token=2, pid=os.getpid()) as (talk, _):
        assert talk.until("superseded")["by"]
    with process(store, folder, holder="here-1-abc", token=3, pid=os.getpid()) as (talk, _):
        talk.order(op="finish", seconds=60)
        assert talk.rest()[-1] == {"op": "finished", "complete": True}
    assert list(folder.glob("*/*/owner/*gone*"))


def test_a_claim_gives_signs_of_life_until_a_worker_goes_on_with_it_or_it_is_let_go(
    store: CheckpointStore, tmp_path: Path
) -> None:
    put(store, 1)
    folder, record = tmp_path / "replica", Path(store.layout.run_json).read_text()
    mine = {"run": RUN, "holder": "here-1-abc", "attempt": 3, "record": record, "pid": os.getpid(), "interval": 0.05}
    with process(store, folder, "claim", **mine) as (talk, child):
        talk.until("owned")
        seen: set[str] = set()
        while len(seen) < 4:
            assert child.poll() is None
            seen |= {path.name for path in folder.glob("*/*/owner/*-here-1-abc.0*")}
        talk.close()
        assert child.wait(PATIENCE) == 0
    assert not list(folder.glob("*/*/owner/*gone*")), "others have to wait: it may go on"
    with process(store, folder, "claim", **mine) as (talk, child):
        talk.until("owned")
        talk.order(op="finish", seconds=60)
        assert child.wait(PATIENCE) == 0
    assert list(folder.glob("*/*/owner/*gone*"))


def test_killed_at_any_time_nothing_half_counts_and_the_next_one_finishes(
    store: CheckpointStore, tmp_path: Path
) -> None:
    folder, chance, newest = tmp_path / "replica", random.Random(5), 0
    for life in range(8):
        newest = put(store, life, size=6 * MIB).manifest.seq
        with process(store, folder, rate=24 * MIB) as (talk, child):
            talk.until("uploading", seq=newest)
            with_luck = chance.uniform(0.0, 0.5)
            try:
                child.wait(with_luck)
            except subprocess.TimeoutExpired:
                child.kill()
        place = Folder(str(folder))
        for number, copy in enumerate(each for found in look(place, NAME) for each in found.inventory.copies):
            name = copy.item.name.text
            manifest, text = read_manifest(place, GENERATION, name, RUN)
            assert arrival(place, f"{GENERATION.checkpoints}{name}/", manifest, text) is Arrival.UPLOADED
            assert number < 3
    with process(store, folder) as (talk, _):
        talk.order(op="finish", seconds=60)
        assert talk.rest()[-1] == {"op": "finished", "complete": True}
    assert complete(Folder(str(folder)))[0] == newest
    assert not [found.inventory.leftovers for found in look(Folder(str(folder)), NAME) if found.inventory.leftovers]


def test_an_empty_machine_looks_and_fetches(store: CheckpointStore, tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    put(store, 1, kind="final")
    put(store, 2, fit=2)
    with process(store, folder) as (talk, _):
        talk.until("idle")
    new = tmp_path / "new" / NAME
    with process(store, folder, "look") as (talk, child):
        [generation] = talk.until("found")["generations"]
        assert child.wait(PATIENCE) == 0
    assert generation["number"] == 1
    assert (generation["run_id"], generation["name"], generation["script_digest"]) == (RUN, NAME, "d1")
    assert (generation["newest"]["seq"], generation["newest"]["step"], generation["checkpoints"]) == (2, 2, 2)
    with process(store, folder, "fetch", directory=str(new)) as (talk, child):
        fetched = talk.until("fetched")
        assert child.wait(PATIENCE) == 0
    assert [Path(path).parent for path in fetched["checkpoints"]] == [new / "checkpoints"] * 2
    assert fetched["newest"] == fetched["checkpoints"][-1]
    assert Path(fetched["incoming"], "run.json").read_bytes() == Path(store.layout.run_json).read_bytes()
    assert Path(fetched["incoming"], "journal.jsonl").read_bytes() == b'{"event":"taken"}\n'
    assert (fetched["step"], fetched["bytes"], generation["token"]) == (2, 6002, 0)
    assert generation["newest"]["order"] == [1, 2, "here:1"]
    assert [each.manifest.seq for each in CheckpointStore(new, RUN).checkpoints()] == [2, 1]
    assert {report["of"] for report in talk.heard if report["op"] == "fetching"} == {3001}
    with process(store, folder, "fetch", directory=str(new)) as (talk, _):
        assert "nothing that is newer" in talk.until("nothing")["reason"]


def test_what_is_not_there_cannot_be_fetched(store: CheckpointStore, tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    put(store, 1)
    with process(store, folder) as (talk, _):
        talk.until("idle")
    new = str(tmp_path / "new" / NAME)
    for other in ({"generation": 7}, {"run": RUN.replace("0001", "0002")}, {"name": "other"}):
        with process(store, folder, "fetch", directory=new, **other) as (talk, _):
            assert talk.until("nothing")["reason"] == "the replica holds no such run"
    assert not os.path.exists(new)


def test_a_killed_fetch_goes_on(store: CheckpointStore, tmp_path: Path) -> None:
    folder, new = tmp_path / "replica", tmp_path / "new" / NAME
    put(store, 1, size=40 * MIB)
    with process(store, folder) as (talk, _):
        talk.until("idle")
    for _ in range(3):
        with process(store, folder, "fetch", directory=str(new)) as (talk, child):
            talk.until("fetching")
            child.kill()
        valid = CheckpointStore(new, RUN).checkpoints() if new.exists() else []
        for each in valid:
            CheckpointStore(new, RUN).verify(each)
    with process(store, folder, "fetch", directory=str(new)) as (talk, _):
        talk.rest()
    [checkpoint] = CheckpointStore(new, RUN).checkpoints()
    CheckpointStore(new, RUN).verify(checkpoint)
    assert os.listdir(RunLayout(new).tmp) == []
