"""Which of a run's generations in its replicas this call means, and whether there is something newer to be had. Pure.

A generation is one life of a run's name, numbered from 1; `--fresh` begins the next. A run in a replica is taken for
this call's only if its script is the same to the letter, or if the user named it with `--name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksupervise.core.clock import TAKEN

Order = tuple[int, int, str]  # attempt, seq, holder: sorts checkpoints from old to new


@dataclass(frozen=True)
class Seen:
    """A generation as one place has it.

    Attributes:
        place: index of the place.
        number: the generation's.
        run_id: from its record, "" if that cannot be read.
        script_digest: sha256 of the script's text, "" if unknown.
        newest: of its newest whole checkpoint, None if there is none.
        step: of that checkpoint.
        token: the highest number of an attempt that was claimed there.
        told: first attempt of the owner who last said there how it ended, 0 for nobody.
    """

    place: int
    number: int
    run_id: str
    script_digest: str = ""
    newest: Order | None = None
    step: int = 0
    token: int = 0
    told: int = 0


@dataclass(frozen=True)
class Local:
    """The run as the local store has it. `newest` as in `Seen`."""

    run_id: str
    newest: Order | None = None


@dataclass(frozen=True)
class Choice:
    """What is done.

    Attributes:
        token: no attempt above this number is known in the places.
        fetch: what is brought here first, None for nothing. On an empty machine also a run without a checkpoint: its
            record says who it is.
        refusal: why nothing is done, "" if something is: what it is, and what to do now.
    """

    token: int = 0
    fetch: Seen | None = None
    refusal: str = ""


def choose(local: Local | None, seen: Sequence[Seen], *, digest: str, named: bool, fresh: bool) -> Choice:
    """The generation that a call means.

    Args:
        local: None if the local store has no such run, or an empty one.
        seen: every generation of the run's name in every place that could be looked at.
        digest: of the script that is called.
        named: the user gave `--name`.
        fresh: the user wants to begin anew.
    """
    if fresh or not seen:
        return Choice()
    newest = max(each.number for each in seen)
    last = [each for each in seen if each.number == newest]
    if local is not None:
        return _with_local(local, seen, last)
    if len({each.run_id for each in last}) > 1:
        return Choice(refusal="the replicas hold different runs of that name; give the one that is meant")
    if not named and not any(digest and each.script_digest == digest for each in last):
        return Choice(
            refusal="the replica holds a run of another script (or this one was changed since); --name takes it all "
            "the same, --fresh begins anew beside it"
        )
    return _from(last, None, empty=True)


def _with_local(local: Local, seen: Sequence[Seen], last: Sequence[Seen]) -> Choice:
    ours = [each for each in seen if each.run_id == local.run_id]
    if not ours:
        return Choice(
            refusal="the replica holds another run of that name than this machine does; --fresh begins anew in both "
            "(nothing is lost), --name keeps them apart"
        )
    if ours[0].number < last[0].number:
        return Choice(
            refusal="the run was begun anew (--fresh) on another machine since; --fresh begins anew here, too, and "
            "without the run's directory here that one is taken over"
        )
    return _from(ours, local.newest, empty=False)


def _from(seen: Sequence[Seen], have: Order | None, *, empty: bool) -> Choice:
    """Of one generation: the newest that a place has, if it is newer than what is here."""
    best = max(seen, key=lambda each: (each.newest is not None, each.newest or (0, 0, ""), -each.place))
    newer = empty or (best.newest is not None and (have is None or best.newest > have))
    token = max(each.token for each in seen)
    return Choice(token=token, fetch=best if newer else None)


def verdict(records: Iterable[Mapping[str, Any]], newest: int) -> Mapping[str, Any] | None:
    """How the run ended elsewhere: the "verdict" that is the journal's last word, None if there is none that counts.

    It does not if somebody took the run on since, or if a checkpoint was committed that did not come here: then what
    is here is no end.

    Args:
        records: of the merged journal.
        newest: number of the newest checkpoint that is here, 0 for none.
    """
    found: Mapping[str, Any] | None = None
    committed = 0
    for record in records:
        event = record.get("event")
        if event == "verdict":
            found = record
        elif event in (TAKEN, "launched"):
            found = None
        elif event == "committed":
            committed = max(committed, int(record.get("seq", 0)))
    return found if committed <= newest else None
