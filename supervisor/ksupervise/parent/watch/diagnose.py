"""The evidence of a death: what the child told, what the machine counted, what the store holds."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ksupervise.core.events import Evidence, Failure
from ksupervise.parent.launch import Attempt
from ksupervise.parent.trainer import Facts
from ksupervise.parent.watch import stacks
from ksupervise.store import CheckpointStore

_POISON_AGE = 600.0  # seconds; a state that went wrong did so a while before it failed
_TAIL = 4096  # characters of output that the judgement looks at


@dataclass(frozen=True)
class Held:
    """What the store holds.

    Attributes:
        seq, step: of the newest valid checkpoint, 0 and None if there is none.
        older: number of one that could be gone back to instead of the one that the attempt went on from, 0 for none.
    """

    seq: int = 0
    step: int | None = None
    older: int = 0


def held(store: CheckpointStore, resumed: int) -> Held:
    """Ask the store. `resumed`: number of the checkpoint that the attempt went on from. Raises StoreUnreadable."""
    newest = store.newest()
    if newest is None:
        return Held()
    return Held(newest.manifest.seq, newest.manifest.position.step, _older(store, resumed) if resumed else 0)


def _older(store: CheckpointStore, resumed: int) -> int:
    """Of the same fit: the newest that is ten minutes older, or else the one before."""
    known = [checkpoint.manifest for checkpoint in store.checkpoints()]
    current = next((manifest for manifest in known if manifest.seq == resumed), None)
    if current is None:
        return 0
    older = [each for each in known if each.seq < resumed and each.position.fit == current.position.fit]
    aged = [each for each in older if current.created - each.created >= _POISON_AGE]
    return (aged or older)[0].seq if older else 0


def evidence(attempt: Attempt, found: Held | None, oom: str) -> Evidence:
    """What is known of the attempt's end. `found`: None if the store could not be asked."""
    facts, control, known = attempt.facts, attempt.control, found or Held()
    failure, orderly = _last_words(facts, attempt.child.pid)
    return Evidence(
        exit_code=attempt.child.exit_code if attempt.child.signal is None else None,
        signal=attempt.child.signal,
        orderly=orderly,
        failure=failure,
        crash=_crash(attempt),
        oom=oom,
        tail=attempt.log.tail[-_TAIL:],
        nan=facts.nan,
        hooked=facts.hooked,
        keras=bool(facts.keras),
        fit_open=facts.fit_open,
        stepped=bool(control.integer("trained")),
        claimed=bool(facts.claimant),
        lasted=time.monotonic() - attempt.launched,
        step=control.integer("step"),
        checkpoint_known=found is not None,
        checkpoint_step=known.step,
        checkpoint_seq=known.seq,
        resumed_seq=facts.resumed_seq,
        older_seq=known.older,
        at=time.time(),
        survivors=attempt.survivors,
    )


def _crash(attempt: Attempt) -> str:
    place = stacks.crash(stacks.read(attempt.stacks))
    return f"{place}; all stacks: {attempt.stacks}" if place else ""


def _last_words(facts: Facts, child: int) -> tuple[Failure | None, bool]:
    """The exception that ended the script, and whether its interpreter ended in good order.

    A trainer that said no goodbye was killed, whatever its wrapper says. Else the child's own word counts; behind
    a wrapper that is no Python the trainer's, or that of any interpreter that failed.
    """
    exits, trainer = facts.exits, facts.claimant
    spoke = [pid for pid in (child, trainer) if pid in exits]
    if spoke and (not trainer or trainer in exits):
        return exits[spoke[0]], True
    return next((failure for failure in exits.values() if failure is not None), None), False
