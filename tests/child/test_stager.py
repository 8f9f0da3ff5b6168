"""Stages into real memory, through a link that answers as the parent would; where memory is short, into the store."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksupervise.child import memory, tensors
from ksupervise.child.stager import Stager, Taken
from ksupervise.store import StoreFull
from ksupervise.wire import PAGE, Control, Slot

ABOUT = {"position": {"fit": 1, "epoch": 0, "batch": 1, "step": 7, "kind": "batch"}, "origin": "interval", "extra": {}}


class StandInLink:
    """The parent's answers, given by the test."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.freed: dict[int, bool] = {}

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def is_free(self, seq: int) -> bool:
        return seq in self.freed

    def is_committed(self, seq: int) -> bool:
        return self.freed.get(seq, False)

    def wait_free(self, seq: int, seconds: float) -> bool:
        return self.is_free(seq)


class Bench:
    """A stager with all that it needs."""

    def __init__(self, taken: tuple[int, int] = (0, 0)) -> None:
        self.link = StandInLink()
        self.fds = [os.memfd_create(f"test-{number}") for number in range(3)]
        os.ftruncate(self.fds[2], PAGE)
        self.slots = [Slot(fd) for fd in self.fds[:2]]
        self.control = Control(self.fds[2])
        self.notes: list[str] = []
        self.written: list[dict[str, bytes]] = []
        self.stager = Stager(
            self.link,  # type: ignore[arg-type]
            self.slots,
            1,
            1,
            write_through=self.write_through,
            note=self.notes.append,
            control=self.control,
            taken=taken,
        )

    def write_through(self, files: dict[str, Any], about: dict[str, Any], seq: int) -> str:
        self.written.append({name: b"".join(map(bytes, chunks)) for name, chunks in files.items()})
        return f"checkpoint {seq}"

    def stage(self, arrays: dict[str, Any], **how: Any) -> int | None:
        return self.stager.stage(lambda: Taken(arrays, {"the": "state"}, dict(ABOUT)), **how)

    def whole(self, index: int) -> dict[str, Any]:
        """The arrays in that slot."""
        arrays, state = self.stager.read(index)
        assert state == {"the": "state"}
        return arrays

    def close(self) -> None:
        self.stager.close()
        self.control.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def arrays(value: float, items: int = 1000) -> dict[str, Any]:
    """Variables of several dtypes, among them scalars and empty ones, and the rest."""
    return {
        "model/a": np.full(items, value, "float32"),
        "model/b": np.arange(items, dtype=">i4"),
        "model/c": np.float32(value),
        "model/d": np.zeros((0, 3), "float64"),
        "extra/e": np.full(3, value, "float64"),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_two_slots_take_turns(bench: Bench) -> None:
    for value in range(1, 6):
        assert bench.stage(arrays(value)) == value
        bench.link.freed[value] = False
        index = bench.link.sent[-1]["slot"]
        assert_same(bench.whole(index), arrays(value))
        if value > 1:
            assert_same(bench.whole(1 - index), arrays(value - 1))
    assert bench.stager.newest_seq == 5
    assert bench.control["staged_step"] == 7


def test_a_slot_that_the_parent_still_wants_is_left_alone(bench: Bench) -> None:
    assert bench.stage(arrays(1)) == 1
    assert bench.stage(arrays(2)) == 2
    assert bench.stager.busy
    assert bench.stage(arrays(3)) is None
    bench.link.freed[1] = True
    assert bench.stage(arrays(3)) == 3
    assert_same(bench.whole(bench.link.sent[-2]["slot"]), arrays(2))


def test_what_an_earlier_trainer_left_is_committed_first() -> None:
    bench = Bench(taken=(4, 0))
    assert bench.stage(arrays(1)) is None
    assert bench.stager.newest_seq == 0, "it is not ours"
    bench.link.freed[4] = True
    assert bench.stage(arrays(1)) == 1
    bench.close()


def test_large_arrays_are_copied_by_two_threads_to_the_same_bytes(bench: Bench) -> None:
    dice = np.random.default_rng(1)
    many = {f"model/{number}": dice.random(int(size)) for number, size in enumerate(dice.integers(1, 300_000, 40))}
    assert sum(array.nbytes for array in many.values()) > 2 * 16 * 1024 * 1024
    bench.stage(many)
    assert_same(bench.whole(bench.link.sent[-1]["slot"]), many)


def test_what_cannot_be_taken_leaves_the_slots_alone(bench: Bench) -> None:
    bench.stage(arrays(1))

    def fail() -> Taken:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        bench.stager.stage(fail)
    with pytest.raises(tensors.UnknownType):
        bench.stage({"model/c": np.zeros(3, "complex64")})
    assert_same(bench.whole(bench.link.sent[0]["slot"]), arrays(1))
    assert bench.stage(arrays(2)) is not None


def wait_until(condition: Any) -> None:
    """It holds, or will: the threads that it waits for need the interpreter."""
    event = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        event.wait(0.001)
    raise AssertionError("it never came to be")


@pytest.mark.parametrize("items", [1000, 5_000_000], ids=["small", "large"])
def test_what_is_whole_is_guarded_and_what_comes_next_is_ready(bench: Bench, items: int) -> None:
    for seq in range(1, 5):
        assert bench.stage(arrays(seq, items), wait=30.0) == seq
        bench.link.freed[seq] = False
        wait_until(lambda: not bench.stager.busy)
        newest = bench.link.sent[-1]["slot"]
        assert bench.slots[newest].guarded
        assert_same(bench.whole(newest), arrays(seq, items))
        # The first one of all knows of no other yet.
        assert not bench.slots[1 - newest].guarded


def test_what_the_parent_still_wants_stays_guarded(bench: Bench) -> None:
    assert bench.stage(arrays(1)) == 1
    assert bench.stage(arrays(2)) == 2
    assert [slot.guarded for slot in bench.slots] == [True, True]
    bench.link.freed[1] = True
    assert bench.stage(arrays(3)) == 3
    assert_same(bench.whole(bench.link.sent[-1]["slot"]), arrays(3))


def test_the_state_that_was_gone_back_to_is_guarded_once_memory_is_warm(bench: Bench) -> None:
    bench.stage(arrays(1))
    held = bench.link.sent[-1]["slot"]
    bench.slots[held].close()  # as a new process finds it
    bench.stager.hold(held)
    bench.stager.prepare(2_000_000)
    wait_until(lambda: not bench.stager.busy)
    assert bench.slots[held].guarded
    assert_same(bench.whole(held), arrays(1))
    bench.stager.prepare(4_000_000)  # a second fit, of a larger model
    wait_until(lambda: not bench.stager.busy)
    bench.stager.prepare(1_000_000)
    wait_until(lambda: not bench.stager.busy)
    assert_same(bench.whole(held), arrays(1))


def test_prepared_memory_is_warm_and_its_content_unharmed(bench: Bench) -> None:
    bench.stage(arrays(1))
    held = bench.link.sent[-1]["slot"]
    bench.stager.prepare(20_000_000)
    wait_until(lambda: not bench.stager.busy)
    assert all(slot.taken >= 20_000_000 for slot in bench.slots), "every page was touched"
    assert_same(bench.whole(held), arrays(1))
    assert bench.stage(arrays(2, items=1_000_000)) == 2
    assert not bench.link.sent[-1]["cold"]


def test_who_is_in_a_hurry_does_not_wait_for_warm_memory(bench: Bench) -> None:
    bench.stager.prepare(200_000_000)
    assert bench.stage(arrays(1), wait=30.0) == 1
    assert not bench.stager.busy or bench.link.sent


# Handles, copied while training goes on ---------------------------------------------------------------


class SlowHandle:
    """A value on a device that takes its time."""

    def __init__(self, value: Any, gate: threading.Event) -> None:
        self._value, self._gate = value, gate
        self.dtype, self.shape, self.nbytes = value.dtype, value.shape, value.nbytes

    def numpy(self) -> Any:
        assert self._gate.wait(30)
        return self._value


def test_a_stage_may_be_copied_while_training_goes_on(bench: Bench) -> None:
    gate = threading.Event()
    value = np.arange(1000, dtype="float32")
    assert bench.stage({"model/a": SlowHandle(value, gate), "extra/b": np.ones(3)}, overlap=True) == 1
    assert bench.link.sent == [], "it is not whole yet"
    assert bench.slots[0].read_description() is None
    assert bench.stager.busy
    assert bench.stager.newest_seq == 0
    gate.set()
    bench.stager.settle(30.0)
    assert bench.stager.newest_seq == 1
    assert_same(bench.whole(0), {"model/a": value, "extra/b": np.ones(3)})
    assert bench.link.sent[0]["stall"] <= bench.link.sent[0]["copy"]


def test_a_stage_that_has_to_be_waits_for_the_copy_before(bench: Bench) -> None:
    gate = threading.Event()
    bench.stage({"model/a": SlowHandle(np.ones(10), gate)}, overlap=True)
    threading.Timer(0.0, gate.set).start()
    assert bench.stage({"model/a": np.zeros(10)}, wait=30.0) == 2
    assert [told["seq"] for told in bench.link.sent] == [1, 2]


def test_a_copy_that_fails_is_told_and_leaves_the_older_stage(bench: Bench) -> None:
    class Lost(SlowHandle):
        def numpy(self) -> Any:
            raise RuntimeError("the device is gone")

    bench.stage({"model/a": np.zeros(10)})
    bench.stage({"model/a": Lost(np.ones(10), threading.Event())}, overlap=True)
    bench.stager.settle(30.0)
    assert "the device is gone" in bench.notes[0]
    assert bench.stager.newest_seq == 1
    bench.link.freed[1] = True
    assert bench.stage({"model/a": np.full(10, 2.0)}, wait=30.0) == 3


# Memory short -------------------------------------------------------------------------------------


def limited(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(memory, "available", lambda: free)


def test_one_slot_is_written_over_only_when_what_it_held_is_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(array.nbytes for array in arrays(1, 100_000).values())
    limited(monkeypatch, 3 * size)
    assert bench.stage(arrays(1, 100_000)) == 1
    assert bench.stager.slots == 1
    assert bench.control["slots"] == 2
    assert "memory is short" in bench.notes[0]
    assert bench.link.sent[0]["durable"], "the parent must not wait with it"
    assert bench.stage(arrays(2, 100_000)) is None
    bench.link.freed[1] = True
    assert bench.stage(arrays(2, 100_000)) == 2
    assert bench.link.sent[0]["slot"] == bench.link.sent[1]["slot"]
    assert len(bench.notes) == 1


def test_the_slot_that_is_not_used_gives_its_memory_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (1, 2):
        bench.stage(arrays(value, 100_000))
        bench.link.freed[value] = True
    limited(monkeypatch, 0)
    bench.stage(arrays(3, 150_000 + 2**19))
    assert bench.stager.slots in (0, 1)
    assert min(slot.taken for slot in bench.slots) < 2 * PAGE


def test_without_any_slot_the_state_goes_straight_into_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 1000)
    assert bench.stage(arrays(1)) == 1
    assert bench.stager.slots == 0
    [message] = bench.link.sent
    assert (message["op"], message["path"], message["position"]) == ("saved", "checkpoint 1", ABOUT["position"])
    found = dict(tensors.read(memoryview(bench.written[0]["state.safetensors"])))
    found |= tensors.read(memoryview(bench.written[0]["rest.safetensors"]))
    assert_same(found, arrays(1))
    assert json.loads(bench.written[0]["state.json"]) == {"the": "state"}
    assert bench.stager.is_durable(1)
    assert bench.stager.newest_seq == 1
    assert bench.stager.newest() is None, "there is nothing that an orphan would have to commit"


def test_the_newest_state_stays_in_memory_until_a_newer_one_is_in_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.stage(arrays(1, 100_000))
    bench.stager.hold(held := bench.link.sent[0]["slot"])
    bench.link.freed[1] = False  # it could not be committed
    limited(monkeypatch, 0)
    with monkeypatch.context() as patch:
        patch.setattr(bench.stager, "_write_through", lambda *_: (_ for _ in ()).throw(StoreFull("no room")))
        assert bench.stage(arrays(2, 3_000_000)) is None
    assert bench.stager.slots == 0
    assert_same(bench.whole(held), arrays(1, 100_000))
    assert bench.stage(arrays(2, 3_000_000)) is not None
    assert bench.slots[held].read_description() is None
    assert bench.slots[held].taken < 2 * PAGE


def test_a_store_that_is_full_is_told_to_the_parent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can make room; training goes on."""

    def refuse(files: dict[str, Any], about: dict[str, Any], seq: int) -> str:
        raise StoreFull("no room")

    limited(monkeypatch, 1000)
    monkeypatch.setattr(bench.stager, "_write_through", refuse)
    assert bench.stage(arrays(1)) is None
    [message] = bench.link.sent
    assert (message["op"], message["full"], message["reason"]) == ("unsaved", True, "no room")
    assert message["size"] > 8000
    assert bench.stager.newest_seq == 0


def test_memory_that_is_refused_after_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the address space, say: then the store has to do, now and later."""

    def refuse(self: Slot, size: int) -> None:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr(Slot, "reserve", refuse)
    for value in (1, 2):
        seq = bench.stage(arrays(value))
        assert seq == bench.stager.newest_seq
        assert len(bench.written) == value


def test_an_address_space_that_is_too_small(tmp_path: Path) -> None:
    """`ulimit -v`: a slot cannot be mapped. The store has to do, and it is said once."""
    program = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from child.test_stager import Bench, arrays, wait_until

bench = Bench()
bench.stage(arrays(1))
bench.link.freed[1] = True
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
bench.stager.prepare(400_000_000)
wait_until(lambda: not bench.stager.busy)
large = arrays(2, 5_000_000)
bench.slots[0]._HEADROOM = bench.slots[1]._HEADROOM = 400_000_000
for seq in (2, 3):
    assert bench.stage(large) is not None
    bench.link.freed[seq] = True
assert (bench.stager.slots, len(bench.written), len(bench.notes)) == (0, 2, 1), (bench.stager.slots, bench.notes)
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1])]
    subprocess.run(command, check=True, timeout=60)


def test_memory_that_the_slots_have_taken_is_theirs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free shrinks by what we took: that is no reason to give it up."""
    bench.stager.prepare(30_000_000)
    wait_until(lambda: not bench.stager.busy)
    limited(monkeypatch, 1_000_000)
    bench.stager.prepare(30_000_000)
    wait_until(lambda: not bench.stager.busy)
    assert bench.stage(arrays(1, 1_000_000)) == 1
    assert bench.stager.slots == 2
