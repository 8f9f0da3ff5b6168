"""Copies the training's state into memory that outlives this process.

Two slots take turns: the newest whole stage is never written over, so a death in mid-copy tears exactly
the other one. A slot that the parent still wants to persist is left alone. What is whole is guarded: no pointer that
runs wild in a dying process reaches it.

Where memory does not suffice for two slots there is one: it is written over only when what it held is durable. Where it
does not suffice for one, the state is written straight into the store, and training waits for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ksupervise.child import memory, tensors
from ksupervise.child.background import Task, in_two
from ksupervise.child.link import Link
from ksupervise.wire import PAGE, VARIABLES, Control, Slot

REST, STATE = "rest.safetensors", "state.json"  # and VARIABLES
EXTRA = "extra/"  # what the names of the rest's arrays begin with

_SHARE = 2  # slots may take one part in so many of the memory that is free
_WORTH_A_THREAD = 16 * 1024 * 1024  # bytes from which a second one is worth its start
_BLOCK = 8 * 1024 * 1024  # bytes touched, or written into the store, at a time

# Files as the store takes them, what the manifest says of them, their number → path of the checkpoint.
WriteThrough = Callable[[dict[str, Any], dict[str, Any], int], str]


@dataclass(frozen=True)
class Taken:
    """One state: arrays by name, plain values, and what the manifest says of them."""

    arrays: dict[str, Any]
    state: dict[str, Any]
    about: dict[str, Any]


class Stager:
    """Writes stages, numbered on from `next_seq`.

    Attributes:
        at: CLOCK_MONOTONIC second at which the last one was finished.
        slots: how many memory suffices for; None while that is unknown.
    """

    def __init__(
        self,
        link: Link,
        slots: list[Slot],
        next_seq: int,
        attempt: int,
        *,
        write_through: WriteThrough,
        note: Callable[[str], None],
        control: Control,
        taken: Sequence[int] = (0, 0),
    ) -> None:
        """`note` tells the user something once. `taken`: what an earlier trainer left in the slots, to be committed."""
        self._link = link
        self._slots = slots
        self._taken = list(taken)
        self._seqs: list[int] = [0, 0]  # what this process staged in each slot
        self._newest = 1
        self._next_seq = next_seq
        self._attempt = attempt
        self._write_through = write_through
        self._note = note
        self._control = control
        self._written = 0  # the newest that went straight into the store
        self._plan: tensors.Plan | None = None
        self._specs: list[tensors.Spec] = []
        self._warming: Task | None = None
        self._copying: Task | None = None
        self._guarding: Task | None = None
        self._urgent = False  # somebody waits for a slot: cold memory will do
        self.slots: int | None = None
        self.at = time.monotonic()

    def hold(self, index: int) -> None:
        """The state in slot `index` is the one we go on from: the other slot is written first."""
        self._newest = index

    @property
    def newest_seq(self) -> int:
        """Number of the newest whole state of this process, staged or written through; 0 if there is none."""
        return max(self._seqs[self._newest], self._written)

    @property
    def _next(self) -> int:
        """The slot that is written next."""
        return 1 - self._newest if self.slots != 1 else self._newest

    @property
    def busy(self) -> bool:
        """A stage could not begin now: the slot that comes next is not ready, or not free."""
        if any(not task.done for task in self._tasks):
            return True
        return not self._is_free(self._next)

    @property
    def _tasks(self) -> list[Task]:
        """What is at work on the slots beside the training, or was."""
        return [task for task in (self._warming, self._copying, self._guarding) if task is not None]

    def _is_free(self, index: int) -> bool:
        return not self._taken[index] or self._link.is_free(self._taken[index])

    def prepare(self, size: int) -> None:
        """States of about `size` bytes will come: judge the memory, and have it touched before it is needed.

        A page costs three to seven times more at its first use.
        """
        size += size // 64 + PAGE  # and the rest
        self._judge(size)
        if self.slots:
            chosen, self._urgent = self._in_use, False
            self._warming = Task(lambda: self._try_to_warm(chosen, size), hurried=True)

    def _try_to_warm(self, indices: list[int], size: int) -> None:
        """Memory that cannot be had now is missed, and told of, when a stage needs it."""
        with contextlib.suppress(OSError):
            self._warm(indices, size)
        self._guard()

    def _warm(self, indices: list[int], size: int) -> None:
        """Touch every page of the slots, and change none."""
        import numpy as np

        for index in indices:
            slot = self._slots[index]
            slot.reserve(PAGE + size)
            if slot.guarded:
                continue  # this process has written to it
            pages = np.frombuffer(slot.view(), np.uint8)
            for start in range(0, len(pages), _BLOCK):
                if self._urgent:
                    return
                some = pages[start : start + _BLOCK : PAGE]
                np.bitwise_or(some, 0, out=some)

    def _judge(self, size: int) -> None:
        """How many slots of that size there is memory for. What they have taken already is theirs."""
        if self.slots is not None and all(self._slots[index].size >= size for index in self._in_use):
            return
        free = memory.available()
        taken = sum(slot.taken for slot in self._slots)
        self._allow(2 if free is None else min(2, (free + taken) // (_SHARE * max(size, 1))), size)

    @property
    def _in_use(self) -> list[int]:
        """The slots that are written, the next one first."""
        return [self._next, 1 - self._next][: self.slots]

    def _allow(self, slots: int, size: int) -> None:
        """Never more than before: a run that swings to and fro would be slow and hard to understand."""
        if self.slots is not None and slots >= self.slots:
            return
        self.slots = slots
        self._control["slots"] = slots + 1
        if slots < 2:
            way = ("each state is written straight to disk while training waits", "one copy is kept instead of two")
            self._note(f"memory is short for a state of {size / 1e6:.0f} MB: {way[slots]}")
            self._give_back({0, 1} - {*self._in_use, self._newest})  # what the newest holds may be nowhere else

    def _give_back(self, indices: set[int]) -> None:
        """The memory of slots that are not used any more."""
        for index in indices:
            if self._is_free(index):
                self._slots[index].empty()

    def stage(
        self, take: Callable[[], Taken], *, durable: bool = False, wait: float = 0.0, overlap: bool = False
    ) -> int | None:
        """Stage what `take` gives.

        Args:
            durable: the parent is to commit it at once.
            wait: seconds that may be waited for a slot.
            overlap: copy the variables while training goes on; `take` must give handles that nobody writes to.

        Returns its number, None if no slot came free in time, or (with no slots) it could not be written.

        Raises OSError when memory or disk do not suffice, tensors.UnknownType, codec.NotPlain.
        """
        if not self._await_slot(wait):
            return None
        began = time.monotonic()
        taken = take()
        size = sum(array.nbytes for array in taken.arrays.values())
        self._judge(size)
        try:
            return self._into_memory(taken, began, durable=durable, overlap=overlap)
        except OSError as error:
            if error.errno != errno.ENOMEM or not self.slots:
                raise
            self._allow(0, size)
            return self._into_store(taken, began)

    def _await_slot(self, wait: float) -> bool:
        if self.busy and not wait:
            return False
        end = time.monotonic() + wait
        self._urgent = True
        for task in self._tasks:
            if not task.join(max(0.0, end - time.monotonic())):
                return False
        self._warming, self._copying, self._guarding, self._urgent = None, None, None, False
        return self._is_free(self._next) or self._link.wait_free(self._taken[self._next], end - time.monotonic())

    def settle(self, wait: float) -> None:
        """Wait for a copy that is under way, `wait` seconds at most."""
        if self._copying is not None:
            self._copying.join(max(0.0, wait))

    # Into a slot

    def _into_memory(self, taken: Taken, began: float, *, durable: bool, overlap: bool) -> int | None:
        if not self.slots:
            return self._into_store(taken, began)
        index, seq = self._next, self._next_seq
        self._next_seq += 1
        size = self._slots[index].size
        copy = self._begin(index, taken)
        told = {"durable": durable or self.slots == 1, "cold": self._slots[index].size != size}

        def finish() -> None:
            copy()
            self._complete(index, seq, taken, told, began=began, stall=stall)

        if overlap:
            stall = time.monotonic() - began
            self._copying = Task(lambda: self._try(finish), hurried=True)
        else:
            stall = 0.0
            finish()
        return seq

    def _try(self, finish: Callable[[], None]) -> None:
        """On a thread beside the training: a copy that fails is one stage less, and no more."""
        try:
            finish()
        except Exception as error:
            self._note(f"a state could not be copied, training goes on: {error!r}")

    def _begin(self, index: int, taken: Taken) -> Callable[[], None]:
        """Write all but the variables into the slot. Returns what copies those."""
        slot, text = self._slots[index], json.dumps(taken.state, separators=(",", ":")).encode()
        plan, rest_plan, variables, rest = self._plans(taken.arrays)
        rest_at = _page_behind(PAGE + plan.size)
        state_at = _page_behind(rest_at + rest_plan.size)
        self._files = {
            VARIABLES: (PAGE, plan.size),
            REST: (rest_at, rest_plan.size),
            STATE: (state_at, len(text)),
        }
        slot.begin()
        slot.reserve(state_at + len(text))
        with slot.view() as view:
            _put(view[rest_at:], rest_plan, rest)
            view[state_at : state_at + len(text)] = text
            view[PAGE : PAGE + len(plan.header)] = plan.header

        def copy() -> None:
            with slot.view() as view, view[PAGE:] as target:
                _copy(target, plan, variables)

        return copy

    def _plans(self, arrays: dict[str, Any]) -> tuple[tensors.Plan, tensors.Plan, dict[str, Any], dict[str, Any]]:
        variables = {name: array for name, array in arrays.items() if not name.startswith(EXTRA)}
        rest = {name: array for name, array in arrays.items() if name.startswith(EXTRA)}
        specs = [tensors.spec(name, array) for name, array in variables.items()]
        if self._plan is None or specs != self._specs:
            self._plan, self._specs = tensors.plan(specs), specs
        return self._plan, tensors.plan(tensors.spec(name, array) for name, array in rest.items()), variables, rest

    def _complete(
        self, index: int, seq: int, taken: Taken, told: dict[str, Any], *, began: float, stall: float
    ) -> None:
        """The slot is whole: say so. `stall`: seconds that training stood still, 0 for all of it."""
        slot = self._slots[index]
        slot.complete(seq, {**taken.about, "attempt": self._attempt, "files": self._files, "staged": True})
        self._taken[index] = self._seqs[index] = seq
        self._newest = index
        self.at = time.monotonic()
        took = self.at - began
        self._tell("staged", {**told, "slot": index, "seq": seq, "stall": stall or took, "copy": took}, taken)
        if slot.size < _WORTH_A_THREAD:
            self._guard()
        else:
            self._guarding = Task(self._guard, hurried=True)

    def _guard(self) -> None:
        """The newest whole state is not to be changed; what will be written over next is made ready for it."""
        newest, other = self._slots[self._newest], self._slots[1 - self._newest]
        if self.slots and newest.read_description() is not None:
            newest.guard()
        if self.slots == 2 and self._is_free(1 - self._newest):
            other.release()

    # Past the slots

    def _into_store(self, taken: Taken, began: float) -> int | None:
        """Write the state into the store, now. Returns its number, None if it could not be written."""
        from ksupervise.store import StoreFull, StoreUnwritable

        seq = self._next_seq
        self._next_seq += 1
        plan, rest_plan, variables, rest = self._plans(taken.arrays)
        files = {
            VARIABLES: _chunks(plan, variables),
            REST: _chunks(rest_plan, rest),
            STATE: [json.dumps(taken.state, separators=(",", ":")).encode()],
        }
        try:
            path = self._write_through(files, {**taken.about, "attempt": self._attempt}, seq)
        except StoreUnwritable as error:
            told = {"reason": str(error), "full": isinstance(error, StoreFull), "size": plan.size + rest_plan.size}
            self._link.send({"op": "unsaved", "seq": seq, **told})
            return None
        self._written = seq
        self._give_back({0, 1})
        self.at = time.monotonic()
        told = {"seq": seq, "position": taken.about["position"], "path": path, "stall": self.at - began}
        self._tell("saved", told, taken)
        return seq

    def _tell(self, op: str, told: dict[str, Any], taken: Taken) -> None:
        control = self._control
        control["stage_cost"] = told["stall"]
        control["staged_step"] = taken.about["position"]["step"]
        control["staged_at"] = self.at
        self._link.send({"op": op, **told})

    def is_durable(self, seq: int) -> bool:
        """State number `seq` of this process is on the disk."""
        return seq == self._written or self._link.is_committed(seq)

    # Out of a slot

    def read(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays (views into the slot) and state of a complete slot. Raises ValueError.

        There are no variables among the arrays if only the rest was kept.
        """
        slot = self._slots[index]
        description = slot.read_description()
        if description is None:
            raise ValueError("the slot holds no whole state")
        view, files = slot.view(), description["files"]
        arrays: dict[str, Any] = {}
        for name in (VARIABLES, REST):
            if name in files:
                offset, size = files[name]
                arrays.update(tensors.read(view[offset : offset + size]))
        offset, size = files[STATE]
        return arrays, json.loads(bytes(view[offset : offset + size]))

    def newest(self) -> tuple[Slot, dict[str, Any]] | None:
        """The newest stage of this process with its description, for a process that must commit it itself."""
        description = self._slots[self._newest].read_description() if self._seqs[self._newest] else None
        return None if description is None else (self._slots[self._newest], description)

    def close(self) -> None:
        """Unmap the slots, whose descriptors may be closed then."""
        for slot in self._slots:
            slot.close()


def _page_behind(offset: int) -> int:
    return -(-offset // PAGE) * PAGE


def _put(view: memoryview, plan: tensors.Plan, arrays: dict[str, Any]) -> None:
    view[: len(plan.header)] = plan.header
    _copy(view, plan, arrays)
    view.release()


def _copy(view: memoryview, plan: tensors.Plan, arrays: dict[str, Any]) -> None:
    """The arrays' bytes, each to its place."""
    entries = [(plan.places[name], array) for name, array in arrays.items()]

    def put(numbers: list[int]) -> None:
        for number in numbers:
            place, array = entries[number]
            tensors.put(view, place, array)

    if plan.size < _WORTH_A_THREAD or (os.cpu_count() or 1) < 2:
        put(list(range(len(entries))))
    else:
        in_two(put, [size for (_, size), _ in entries])


def _chunks(plan: tensors.Plan, arrays: dict[str, Any]) -> Iterator[memoryview | bytes]:
    """The bytes of a file, in the order of their places."""
    yield plan.header
    for array in arrays.values():
        data = memoryview(tensors.as_bytes(array))
        for start in range(0, len(data), _BLOCK):
            yield data[start : start + _BLOCK]
