"""Who may own: what a claimant concludes from what it sees. Pure: no place, no clock, no waiting.

No other machine's clock is ever compared with ours. An owner is alive if something of it changes while we look, and
may be taken over when nothing changed for `patience` of our own clock. Time in which we did not look does not count
for more than two looks' worth: neither our own pause nor a place that was down for everybody makes an owner dead.

Of two claims the one with the higher (token, holder) is the owner's, whoever came first: everybody who sees both
comes to the same end, without asking anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

from ksupervise.replicas.claim import Mark

LEAST_PATIENCE = 60.0  # seconds
_BEATS_MISSED = 3


@dataclass(frozen=True)
class Seen:
    """The highest claim of a listing.

    Attributes:
        mark: its token and holder ("" for a claim that could not be read), None if nobody ever claimed.
        beat: the number of its latest sign of life, 0 without one.
        gone: its holder let go.
        dead: its holder was a process of this machine, and that has ended.
        interval: seconds between beats as announced, None if unknown.
        exclusive: the place lets one machine only claim this token.
    """

    mark: Mark | None = None
    beat: int = 0
    gone: bool = False
    dead: bool = False
    interval: float | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Wait:
    """Look again in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Free:
    """Claim `token` now. `why`: in words, what became of the owner before; "" if there was none."""

    token: int
    why: str


@dataclass(frozen=True)
class Taken:
    """Another owner lives: `mark`."""

    mark: Mark


@dataclass(frozen=True)
class Held:
    """We are the owner."""

    mark: Mark


@dataclass(frozen=True)
class Lost:
    """We were the owner, and `mark` is it now."""

    mark: Mark


Verdict = Wait | Free | Taken | Held | Lost


@dataclass
class _Watch:
    """An owner that is being watched. Times in seconds."""

    mark: Mark
    beat: int
    needed: float  # without change, until it counts as dead
    poll: float
    last: float  # when we looked
    quiet: float = 0.0  # without change until then

    def looked(self, now: float) -> None:
        """Nothing had changed by `now`."""
        self.quiet += max(0.0, min(now - self.last, 2 * self.poll))
        self.last = now


class Contest:
    """One claimant's view. `observe` every look, `claimed` or `refused` after every attempt to claim."""

    def __init__(self, holder: str, token: int, *, interval: float, patience: float | None = None) -> None:
        """`token` is the least to claim; `interval` in seconds, for claims that do not tell theirs.

        `patience`: seconds without change after which an owner counts as dead; None: three of its intervals, and a
        minute at least.
        """
        self.holder = holder
        self.mark: Mark | None = None
        self.lost_to: Mark | None = None
        self._token = max(1, token)
        self._interval = interval
        self._patience = patience
        self._watch: _Watch | None = None
        self._refused = 0

    def observe(self, seen: Seen, now: float) -> Verdict:
        """What follows from this look. `now`: our monotonic clock, seconds."""
        if self.mark is None and seen.mark is not None and seen.mark[1] == self.holder and not seen.gone:
            self.mark = seen.mark  # our own, of which we were told that it had failed
        if self.mark is not None:
            return self._hold(self.mark, seen)
        watch = self._watch
        if watch is not None and (seen.mark is None or seen.mark < watch.mark):
            return self._still(watch, now)  # a claim is never taken back: this listing is older than the last
        if seen.mark is None:
            return self._free(0, "")
        if seen.gone:
            return self._free(seen.mark[0], "it let go")
        if seen.dead:
            return self._free(seen.mark[0], "its process has ended")
        if self._is_alive(seen.mark, seen.beat):
            return self._taken(seen.mark)
        if watch is None:
            watch = self._watch = self._begun(seen.mark, seen, now)
        return self._still(watch, now)

    def claimed(self, token: int) -> None:
        """The claim to `token` was made. It counts once a look taken after it was observed as Held."""
        self.mark = (token, self.holder)

    def refused(self, token: int) -> None:
        """Somebody else has claimed `token` since our last look."""
        self._refused = max(self._refused, token)

    def _hold(self, mark: Mark, seen: Seen) -> Verdict:
        if self.lost_to is None and seen.mark is not None and (seen.mark > mark or _robbed(mark, seen)):
            self.lost_to = seen.mark
        return Held(mark) if self.lost_to is None else Lost(self.lost_to)

    def _is_alive(self, mark: Mark, beat: int) -> bool:
        """Something is there that was not before: a sign of life, or a claim whose maker lived a moment ago."""
        watch = self._watch
        if watch is None:
            return mark[0] <= self._refused
        return mark > watch.mark or beat > watch.beat

    def _still(self, watch: _Watch, now: float) -> Verdict:
        watch.looked(now)
        if watch.quiet >= watch.needed:
            return self._free(watch.mark[0], f"it gave no sign of life for {watch.quiet:.0f} s")
        return Wait(min(watch.poll, watch.needed - watch.quiet))

    def _free(self, highest: int, why: str) -> Verdict:
        token = max(self._token, highest + 1)
        if token <= self._refused:  # the listing does not show yet what was in our way
            return self._taken((self._refused, ""))
        return Free(token, why)

    def _taken(self, mark: Mark) -> Verdict:
        self._watch, self._refused = None, 0
        return Taken(mark)

    def _begun(self, mark: Mark, seen: Seen, now: float) -> _Watch:
        announced = seen.interval or self._interval
        needed = self._patience or max(_BEATS_MISSED * announced, LEAST_PATIENCE)
        return _Watch(mark, seen.beat, needed, min(announced / 2, needed / 4), now)


def _robbed(mark: Mark, seen: Seen) -> bool:
    """Our claim was removed by hand, and the token given away again."""
    assert seen.mark is not None
    token, holder = seen.mark
    return seen.exclusive and token == mark[0] and holder not in ("", mark[1])
