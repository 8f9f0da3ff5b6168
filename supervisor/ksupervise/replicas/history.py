"""The last word of whoever trained a run: its journal, copied to a place when it ends in good order.

With each checkpoint goes what had happened until then. How the run ended from there on (completed, preempted, failed)
is in no checkpoint, and is small: it lies beside them.

```
history/000007-HOLDER.0001.jsonl   the journal of the owner whose first attempt was 7; the ones before are removed
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from ksupervise.replicas.format import Generation
from ksupervise.replicas.place import NotThere, Place, ReplicaFault

_NAME = re.compile(r"(\d{6,9})-([A-Za-z0-9_-]{1,80})\.(\d{4,9})\.jsonl")
_Told = tuple[int, str, int]  # first attempt, holder, number: sorts them from old to new


def write_history(place: Place, generation: Generation, attempt: int, holder: str, journal: bytes) -> None:
    """Write it under a name that nothing had before, then remove what it replaces. Only while owning the run.

    Args:
        place: where to.
        generation: of the run, there.
        attempt: number of the owner's first attempt, at least 1.
        holder: the owner, as a part of a key.
        journal: whole lines.

    Raises:
        ReplicaFault: the place failed; the one before is still there.
    """
    known = _listed(generation, (entry.key for entry in place.entries(generation.histories)))
    numbers = [number for first, whose, number in known if (first, whose) == (attempt, holder)]
    mine: _Told = (attempt, holder, max(numbers, default=0) + 1)
    place.write(_key(generation, mine), [journal], len(journal))
    replaced = [each for each in known if each < mine and (each[0] < attempt or each[1] == holder)]
    with suppress(ReplicaFault):  # they are in nobody's way
        if replaced:
            place.remove([_key(generation, each) for each in replaced])


def told(generation: Generation, keys: Iterable[str]) -> int:
    """First attempt of the owner who had the last word, 0 if nobody had. `keys`: all of the generation's."""
    return max((first for first, _, _ in _listed(generation, keys)), default=0)


def read_history(place: Place, generation: Generation, limit: int) -> bytes:
    """Whole lines of the newest one, at most so many bytes; none if there is none. Raises ReplicaFault."""
    known = _listed(generation, (entry.key for entry in place.entries(generation.histories)))
    if not known:
        return b""
    try:
        data = place.read(_key(generation, max(known)), 0, limit)
    except NotThere:  # replaced at this moment: its owner lives
        return b""
    return data[: data.rfind(b"\n") + 1]


def _key(generation: Generation, which: _Told) -> str:
    first, holder, number = which
    return f"{generation.histories}{first:06d}-{holder}.{number:04d}.jsonl"


def _listed(generation: Generation, keys: Iterable[str]) -> list[_Told]:
    prefix = generation.histories
    matches = [_NAME.fullmatch(key[len(prefix) :]) for key in keys if key.startswith(prefix)]
    return [(int(match[1]), match[2], int(match[3])) for match in matches if match]
