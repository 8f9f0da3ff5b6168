"""Copies the training's state into memory that outlives this process.

Two slots take turns: the newest whole stage is never written over, so a death in mid-copy tears exactly
the other one. A slot that the parent is still persisting is left alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ksupervise.child import tensors
from ksupervise.child.link import Link
from ksupervise.wire import PAGE, VARIABLES, Slot

_COLD = 4.0  # how much dearer memory is at its first use

REST, STATE = "rest.safetensors", "state.json"  # and VARIABLES
EXTRA = "extra/"  # what the names of the rest's arrays begin with


class Stager:
    """Writes stages, numbered on from `next_seq`.

    Attributes:
        cost: seconds that a stage takes, capture included, as last seen in memory that was used before.
        at: CLOCK_MONOTONIC second at which the last one was finished.
    """

    def __init__(self, link: Link, slots: list[Slot], next_seq: int, attempt: int) -> None:
        self._link = link
        self._slots = slots
        self._seqs: list[int] = [0, 0]  # what this process staged in each slot
        self._newest = 1
        self._next_seq = next_seq
        self._attempt = attempt
        self._plan: tensors.Plan | None = None
        self._specs: list[tensors.Spec] = []
        self.cost = 0.0
        self.at = time.monotonic()

    def hold(self, index: int) -> None:
        """The state in slot `index` is the one we go on from: the other slot is written first."""
        self._newest = index

    @property
    def newest_seq(self) -> int:
        """Number of the newest stage of this process, 0 if there is none."""
        return self._seqs[self._newest]

    @property
    def busy(self) -> bool:
        """The slot that comes next is still being persisted."""
        seq = self._seqs[1 - self._newest]
        return seq != 0 and not self._link.is_free(seq)

    def stage(
        self, capture: Callable[[], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]], wait: float = 0.0
    ) -> int | None:
        """Stage what `capture` gives: arrays, plain state, and what the manifest says of them.

        Returns the stage's number, None if no slot came free within `wait` seconds.

        Raises OSError when memory does not suffice, tensors.UnknownType, codec.NotPlain.
        """
        index = 1 - self._newest
        if self.busy and not self._link.wait_free(self._seqs[index], wait):
            return None
        began = time.monotonic()
        arrays, state, about = capture()
        slot, seq = self._slots[index], self._next_seq
        size = slot.size
        files = self._write(slot, arrays, json.dumps(state, separators=(",", ":")).encode())
        slot.complete(seq, {**about, "attempt": self._attempt, "files": files, "staged": True})
        self._next_seq += 1
        self._seqs[index], self._newest = seq, index
        self._link.send({"op": "staged", "slot": index, "seq": seq})
        self.at = time.monotonic()
        self._note_cost(self.at - began, cold=slot.size != size)
        return seq

    def _note_cost(self, seconds: float, *, cold: bool) -> None:
        """Fresh pages are three to seven times dearer than warm ones: they say little about the next stage."""
        if not cold:
            self.cost = seconds
        elif not self.cost:
            self.cost = seconds / _COLD

    def _write(self, slot: Slot, arrays: dict[str, Any], state: bytes) -> dict[str, tuple[int, int]]:
        variables = {name: array for name, array in arrays.items() if not name.startswith(EXTRA)}
        rest = {name: array for name, array in arrays.items() if name.startswith(EXTRA)}
        specs = [tensors.spec(name, array) for name, array in variables.items()]
        if self._plan is None or specs != self._specs:
            self._plan, self._specs = tensors.plan(specs), specs
        plan, rest_plan = self._plan, tensors.plan(tensors.spec(name, array) for name, array in rest.items())
        rest_at = _page_behind(PAGE + plan.size)
        state_at = _page_behind(rest_at + rest_plan.size)
        slot.begin()
        slot.reserve(state_at + len(state))
        with slot.view() as view:
            _put(view[PAGE:], plan, variables)
            _put(view[rest_at:], rest_plan, rest)
            view[state_at : state_at + len(state)] = state
        return {
            VARIABLES: (PAGE, plan.size),
            REST: (rest_at, rest_plan.size),
            STATE: (state_at, len(state)),
        }

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
        description = self._slots[self._newest].read_description() if self.newest_seq else None
        return None if description is None else (self._slots[self._newest], description)

    def close(self) -> None:
        """Unmap the slots."""
        for slot in self._slots:
            slot.close()


def _page_behind(offset: int) -> int:
    return -(-offset // PAGE) * PAGE


def _put(view: memoryview, plan: tensors.Plan, arrays: dict[str, Any]) -> None:
    view[: len(plan.header)] = plan.header
    for name, array in arrays.items():
        tensors.put(view, plan.places[name], array)
    view.release()
