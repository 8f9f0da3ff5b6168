"""The ownership of a run in one place, as a replica's process keeps it: claimed before training, held while it lasts.

It is claimed by a process of its own before the first attempt (`claim`), held by the worker (`Ownership`), which says
so with a sign of life now and then, and let go at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ksupervise.replicas.format import Generation, generation_of
from ksupervise.replicas.lease import Busy, Lease
from ksupervise.replicas.place import Place, ReplicaFault
from ksupervise.replicas.talk import Ended, Orders, Reports


@dataclass(frozen=True)
class ClaimConfig:
    """What a claim is told.

    Attributes:
        name: the run's name.
        run: its id.
        record: the text of its run.json: with it a generation begins.
        place: as the user gave it.
        holder: a name of this owner's that fits into a key.
        attempt: number of the first attempt to come, the least token.
        pid: the process with which the ownership ends.
        interval: seconds between signs of life, None for the place's own.
    """

    name: str
    run: str
    record: str
    place: str
    holder: str
    attempt: int = 1
    pid: int | None = None
    interval: float | None = None


def generation(place: Place, name: str, run: str) -> Generation:
    """The generation of the run with that id; the next one if there is none yet."""
    short = run.replace("-", "")[:8]
    known = {found for entry in place.entries(f"{name}/") if (found := generation_of(entry.key)) is not None}
    ours = [each for each in known if each.short == short]
    return max(ours) if ours else Generation(max((each.number for each in known), default=0) + 1, short, name)


def claim(config: ClaimConfig, place: Place, reports: Reports, sleep: Callable[[float], None]) -> Lease | None:
    """Become the owner, or find out who is: reports `owned` with the token, or `busy` with who it is.

    Returns what is held, None if it is somebody else's.

    Raises ReplicaFault.
    """
    mine = generation(place, config.name, config.run)
    # Two machines may begin one run at the same time, each with an id of its own: the number decides between them.
    if not place.create(mine.mark, config.run.encode()) and place.read(mine.mark) != config.run.encode():
        reports.tell("busy", who="another machine, which began it at this moment")
        return None
    place.create(mine.record, config.record.encode())
    lease = Lease(place, mine, config.holder, config.attempt, pid=config.pid, interval=config.interval)
    told = False

    def wait(seconds: float) -> None:
        nonlocal told
        if not told:
            told = True
            reports.tell("waiting")
        reports.beat()
        sleep(seconds)

    found = lease.acquire(wait)
    if isinstance(found, Busy):
        reports.tell("busy", who=found.where)
        return None
    reports.tell("owned", token=found.token, line=found.line, generation=mine.number)
    return lease


def stay(lease: Lease, orders: Orders) -> None:
    """Give signs of life until there are no more orders: another process of this owner goes on then, or none.

    Ordered to finish, let go: the run is free for others.
    """
    with suppress(Ended):
        while not orders.finishing and not lease.lost:
            with suppress(ReplicaFault):
                if not lease.until_beat:
                    lease.beat()
                    lease.check()
            orders.sleep(lease.until_beat)
        with suppress(ReplicaFault):
            lease.release()


class Ownership:
    """Held by a worker. Every method may raise ReplicaFault, and may be called again then."""

    def __init__(self, lease: Lease, token: int | None) -> None:
        """`token`: what `claim` got for the same holder; None if the place could not be reached then."""
        self._lease = lease
        self._token = token
        self._held = False

    def hold(self, sleep: Callable[[float], None]) -> bool:
        """Hold it from here on. False: it is somebody else's."""
        if not self._held:
            if self._token is not None:
                self._held = self._lease.resume(self._token)
                return self._held
            found = self._lease.acquire(sleep)
            if isinstance(found, Busy):
                self._by = found.where
                return False
            self._token, self._held = found.token, True
        return True

    _by = ""

    @property
    def lost(self) -> str:
        """Whose it is now, and why, for people; "" as long as it is ours."""
        return self._lease.lost or (f"it is owned by {self._by}" if self._by else "")

    @property
    def until_beat(self) -> float:
        """Seconds until the next sign of life is due, infinite for who holds nothing."""
        return self._lease.until_beat if self._held else math.inf

    def still_ours(self) -> bool:
        """Asked before every manifest. A sign of life is given, if one is due."""
        if self._held and not self._lease.until_beat:
            self._lease.beat()
        return self._held and self._lease.check()

    def beat(self) -> None:
        """Give a sign of life, if one is due, and look whether it is still ours. One that fails is given later."""
        if self._held and not self._lease.until_beat:
            with suppress(ReplicaFault):
                self._lease.beat()
                self._lease.check()

    def release(self) -> None:
        """Let go, so that another can own it at once."""
        if self._held:
            self._lease.release()
