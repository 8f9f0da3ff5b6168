"""Who owns a run's generation in a place: one machine at a time, and nobody for longer than it lives.

An owner claims a token (the number of its first attempt, above every token before), gives a sign of life every
`interval`, and asks before every manifest whether it is still the owner. Who finds an owner watches it: `contest.py`
has the rules, `claim.py` the objects, here is what is done about them. There are no threads: whoever runs the replica
calls `beat` and `check` from its loop, also between the parts of a long upload.

What holds, and what does not:

- Where the place `excludes`, no two machines ever hold one token. Two may hold different tokens for a moment, until
  the one with the lower token asks (`check`): a paused or cut-off owner cannot know better before.
- Between its last `check` and the manifest it then writes, an owner may be paused and taken over. That manifest is
  valid all the same: its directory has attempt and holder in its name, so nothing of the new owner's is touched, and
  as soon as that one has a checkpoint of a later attempt, it is the newer one. Lost are steps, never the run.
- Where it does not exclude, two may believe for as long as they do not see each other's claims (on Drive: minutes)
  that they own the run. Both branches stay valid; the one with the lower (token, holder) stops when it sees the other.
- An owner that does not reach the place is not lost: it may not write there, but it may train.
- A dead owner is taken over after `patience` and one look, if the place answers in that time; at once if it let go or
  was a process of this machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ksupervise.replicas.claim import (
    MAX_CLAIM,
    MAX_INTERVAL,
    MAX_TOKEN,
    Claim,
    Listing,
    Mark,
    UnreadableClaim,
    beat_key,
    claim_key,
    claim_of,
    ended_here,
    gone_key,
    is_holder,
    listed,
    new_holder,
    parsed,
)
from ksupervise.replicas.contest import Contest, Free, Held, Lost, Seen, Wait
from ksupervise.replicas.format import Generation
from ksupervise.replicas.place import NotThere, Place, ReplicaFault, ReplicaRefused, ReplicaUnreachable

__all__ = ["Acquired", "Busy", "Claim", "Lease", "new_holder"]

INTERVAL = 20.0  # seconds between two signs of life
SLOW_INTERVAL = 60.0  # the same where every object is uploaded some time later, and counts against a quota
_WRITING = 1.0  # seconds in which a claim that has appeared is surely whole
_KEPT = 3  # earlier tokens whose claims are left for people to read


@dataclass(frozen=True)
class Acquired:
    """We own the run.

    Attributes:
        token: as asked for, or higher: an owner that came to nothing may have used that one. Our first attempt must
            have this number at least.
        line: whom it was taken over from and why, for people; "" if nobody had it.
    """

    token: int
    line: str


@dataclass(frozen=True)
class Busy:
    """Somebody else owns the run.

    Attributes:
        where: `process 123 on node7`.
        claim: what it says of itself, None if that cannot be read.
    """

    where: str
    claim: Claim | None


@dataclass(frozen=True)
class _Look:
    """One listing, and what it says: `claim` is the highest one's, None if that cannot be read."""

    listing: Listing
    seen: Seen
    claim: Claim | None = None


class Lease:
    """One owner's hold on a generation. Not for sharing between threads or processes.

    Every method may raise ReplicaUnreachable, ReplicaRefused or ReplicaFull, and may be called again then.

    Attributes:
        token: the one we hold, or the least that we shall claim.
        interval: seconds between beats.
        lost: why we are not the owner any more, for people; "" as long as we are.
    """

    def __init__(
        self,
        place: Place,
        generation: Generation,
        holder: str,
        token: int,
        *,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float | None = None,
        patience: float | None = None,
    ) -> None:
        """`holder` is from `new_holder`, `token` the number of the first attempt to come.

        `pid`: the process with which the ownership ends (the parent, where a worker keeps the lease), this one if
        None. `clock` in seconds, monotonic. `interval`: seconds between signs of life, None: 20, or 60 where the place
        does not exclude. `patience`: seconds without a sign after which another owner counts as dead; None: three of
        its intervals, a minute at least.

        Raises:
            ValueError: holder, token or interval cannot be.
        """
        self._excludes = place.excludes  # once: what is mounted later does not change how we claimed
        self.interval = interval or (INTERVAL if self._excludes else SLOW_INTERVAL)
        if not is_holder(holder) or not 0 < token <= MAX_TOKEN or not 0 < self.interval <= MAX_INTERVAL:
            raise ValueError(f"not a lease: holder {holder!r}, token {token}, every {self.interval} s")
        self.token = token
        self.lost = ""
        self._place = place
        self._generation = generation
        self._run = generation.run
        self._prefix = generation.owners
        self._holder = holder
        self._clock = clock
        self._patience = patience
        self._claim = claim_of(holder, pid or os.getpid(), self.interval)
        self._contest = self._new_contest()
        self._read_claims: dict[str, Claim] = {}
        self._after = ""
        self._held = False
        self._number = 0  # of the last beat
        self._beats: list[str] = []  # keys of those that may still be there
        self._due = 0.0

    def acquire(self, wait: Callable[[float], None]) -> Acquired | Busy:
        """Become the owner, or find out who is. Lasts until a living owner's next sign, or for `patience`.

        `wait(seconds)` is called between two looks; what it raises ends the attempt. After a fault, another call goes
        on where this one was.

        Raises:
            RuntimeError: it is held already.
        """
        if self._held:
            raise RuntimeError(f"the lease of run {self._run} is already held by this very object")
        while True:
            now = self._clock()
            look = self._look()
            verdict = self._contest.observe(look.seen, now)
            if isinstance(verdict, Wait):
                wait(verdict.seconds)
            elif isinstance(verdict, Free):
                self._take(verdict, look)
            elif isinstance(verdict, Held):
                return self._begin(verdict.mark, look.listing)
            else:
                claim = self._claimant(verdict.mark, look)
                if claim is None:  # it is just being written
                    wait(_WRITING)
                    claim = self._claimant(verdict.mark, self._look())
                self._contest = self._new_contest()
                return Busy(_where(claim), claim)

    def resume(self, token: int) -> bool:
        """Go on with a hold that an earlier object of the same holder acquired: its process was ended, its owner not.

        Returns as `check` does. Raises ReplicaUnreachable also for a place that holds nothing of the run any more.
        """
        if not self._place.entries(self._generation.prefix):
            # A mount that went away leaves an empty folder of this machine's: it is not the place that was claimed.
            raise ReplicaUnreachable(
                f"{self._place.name} has nothing of run {self._run} any more, which was claimed there: it was emptied, "
                "or its mount went away. Bring it back; it is not made anew."
            )
        self.token = token
        self._contest.claimed(token)
        self._held = True
        self._due = self._clock()
        return self.check()

    @property
    def until_beat(self) -> float:
        """Seconds until the next beat is due, 0 if it is. One that failed is due again after a fourth of `interval`."""
        if self.lost:
            return self.interval
        return max(0.0, self._due - self._clock())

    def beat(self) -> None:
        """Give a sign of life, and remove the ones before. Does nothing once the lease is lost.

        Raises:
            RuntimeError: it is not held.
        """
        self._expect_held()
        if self.lost:
            return
        self._number += 1  # also after one that failed: it may be there, and would not be a change
        key = beat_key(self._prefix, self._mark, self._number)
        text = f"{time.time():.0f}\n".encode()  # for people
        self._beats.append(key)
        self._due = self._clock() + self.interval / 4
        self._place.write(key, [text], len(text))
        self._due = self._clock() + self.interval
        self._remove_beats(keep=1)

    def check(self) -> bool:
        """Whether we are still the owner: one listing. False for ever once it was; `lost` says why.

        To be asked before every manifest. A fault says nothing about the ownership: write nothing, ask again.

        Raises:
            RuntimeError: it is not held.
        """
        self._expect_held()
        if self.lost:
            return False
        look = self._look()
        removed = self._excludes and (self.token, "") not in look.listing.claims
        if removed and not self._created(self.token):  # by hand; and then the token was given away
            look = self._look()
        self._know_own_beats(look.listing)
        verdict = self._contest.observe(look.seen, self._clock())
        if isinstance(verdict, Lost):
            self.lost = self._loss(self._claimant(verdict.mark, look))
        return not self.lost

    def release(self) -> None:
        """Let go, so that another can own the run at once. Twice is harmless, and so is never having held it.

        A lease that was lost only takes its signs of life away.
        """
        if not self._held:
            return
        self._remove_beats(keep=0)  # first: in a full place the farewell needs their room
        if not self.lost:
            self._place.create(gone_key(self._prefix, self._mark), self._claim.encoded())
        self._held = False
        self._contest = self._new_contest()

    @property
    def _mark(self) -> Mark:
        return (self.token, self._holder)

    def _new_contest(self) -> Contest:
        return Contest(self._holder, self.token, interval=self.interval, patience=self._patience)

    def _expect_held(self) -> None:
        if not self._held:
            raise RuntimeError(f"the lease of run {self._run} is not held")

    def _look(self) -> _Look:
        """One listing, and a read for each claim that is new in it and high."""
        listing = listed(self._prefix, (entry.key for entry in self._place.entries(self._prefix)))
        if not listing.claims:
            return _Look(listing, Seen())
        token = max(token for token, _ in listing.claims)
        holders = {holder for number, holder in listing.claims if number == token}
        if "" in holders and self._excludes and self._foreign_signs(listing, token):
            self._read_claims.pop(claim_key(self._prefix, (token, ""), excludes=True), None)
        # At most two are read: the one whose key does not name its holder, and the highest of those that do.
        found = [((token, holder), self._claim_of((token, holder))) for holder in {min(holders), max(holders)}]
        named = [((token, mark[1] or (claim.holder if claim else "")), claim, not mark[1]) for mark, claim in found]
        mark, claim, exclusive = max(named, key=lambda each: each[0])
        return _Look(listing, _seen(listing, mark, claim, exclusive=exclusive), claim)

    def _foreign_signs(self, listing: Listing, token: int) -> bool:
        """Of somebody who holds our token, if it is ours: then our claim was removed and made anew by another."""
        signs = {*listing.beats, *listing.gone}
        return self._held and token == self.token and any(t == token and h != self._holder for t, h in signs)

    def _claim_of(self, mark: Mark) -> Claim | None:
        """What the claim says; None if it cannot be read, or has gone. Claims never change: each is read once."""
        key = claim_key(self._prefix, mark, excludes=not mark[1])
        if key not in self._read_claims:
            try:
                claim = parsed(self._place.read(key, 0, MAX_CLAIM + 1))
            except (NotThere, UnreadableClaim):
                return None
            if mark[1] not in ("", claim.holder):
                return None
            self._read_claims[key] = claim
        return self._read_claims[key]

    def _claimant(self, mark: Mark, look: _Look) -> Claim | None:
        return look.claim if look.seen.mark == mark else self._claim_of(mark)

    def _take(self, verdict: Free, look: _Look) -> None:
        """Claim the token. Whether that made us the owner, the next look says."""
        token = verdict.token
        if token > MAX_TOKEN:
            raise ReplicaRefused(
                f"{self._place.name} has a claim to run {self._run} with the number {token - 1}, which no attempt ever "
                f"had. Remove what is below {self._prefix} there if no machine works on this run."
            )
        self._after = f"{_where(look.claim)}: {verdict.why}" if verdict.why else ""
        if self._created(token):
            self._contest.claimed(token)
        else:
            self._contest.refused(token)

    def _created(self, token: int) -> bool:
        """Whether the claim to this token is ours now."""
        key = claim_key(self._prefix, (token, self._holder), excludes=self._excludes)
        if not self._place.create(key, self._claim.encoded()):
            self._read_claims.pop(key, None)
            there = self._claim_of((token, "" if self._excludes else self._holder))
            return there is not None and there.holder == self._holder
        self._read_claims[key] = self._claim
        return True

    def _begin(self, mark: Mark, listing: Listing) -> Acquired:
        self.token = mark[0]
        self._know_own_beats(listing)
        self._held = True
        try:
            self.beat()
        except ReplicaFault:
            self._held = False
            raise
        self._tidy(listing)
        return Acquired(self.token, self._after)

    def _know_own_beats(self, listing: Listing) -> None:
        """Signs that an earlier process gave for this holder: ours go on from there, and replace them."""
        self._number = max(self._number, listing.beats.get(self._mark, 0))
        known = set(self._beats)
        theirs = [key for key in listing.keys.get(self._mark, ()) if key[-1].isdigit() and key not in known]
        self._beats[:0] = theirs

    def _remove_beats(self, keep: int) -> None:
        old = self._beats[: len(self._beats) - keep]
        if old:
            self._place.remove(old)
            del self._beats[: len(old)]

    def _tidy(self, listing: Listing) -> None:
        """Remove what is left of earlier owners, but for the claims of the last few. Not missed if it fails."""
        earlier = sorted({token for token, _ in listing.claims if token < self.token})
        kept = set(earlier[-_KEPT:])
        marks = [mark for mark in listing.keys if mark[0] < self.token]
        old = [key for mark in marks for key in listing.keys[mark] if key[-1].isdigit() or mark[0] not in kept]
        with suppress(ReplicaFault):
            if old:
                self._place.remove(old)

    def _loss(self, claim: Claim | None) -> str:
        return (
            f"Run {self._run} is owned by {_where(claim)} now, as {self._place.name} says: it took the run over while "
            "nothing was heard from here. This one stops; its checkpoints stay valid. To have the run here again, "
            "stop it there first."
        )


def _where(claim: Claim | None) -> str:
    return claim.where if claim else "a process whose claim cannot be read"


def _seen(listing: Listing, mark: Mark, claim: Claim | None, *, exclusive: bool) -> Seen:
    token, holder = mark
    beats = [beat for (number, whose), beat in listing.beats.items() if number == token and holder in ("", whose)]
    return Seen(
        mark=mark,
        beat=max(beats, default=0),
        gone=any(number == token and holder in ("", whose) for number, whose in listing.gone),
        dead=claim is not None and ended_here(claim),
        interval=claim.interval if claim else None,
        exclusive=exclusive,
    )
