"""What an owner says of itself in a place, and under which keys: claims, signs of life, farewells.

```
owner/000007.json               the claim to token 7, where the place lets one machine only create it
owner/000007-HOLDER.json        the same where it cannot: several may claim a token, each under its own name
owner/000007-HOLDER.00000012    the holder's 12th sign of life; it removes the ones before
owner/000007-HOLDER.gone        the holder let go
```

Others wrote what is read here, and may have written anything: it is bounded, and it is either a claim or unreadable.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields

from ksupervise.errors import KsuperviseError
from ksupervise.store import Owner, owner_is_alive
from ksupervise.store.lock import boot_id, start_time

MAX_CLAIM = 4096  # bytes
MAX_INTERVAL = 300.0  # seconds between beats that a claim may announce: a multiple of it is waited for
MAX_TOKEN = 999_999_999
MAX_BEAT = 999_999_999_999
_MAX_TEXT = 255
_HOLDER = re.compile(r"[A-Za-z0-9_-]{1,80}")
_KEY = re.compile(r"([0-9]{6,9})(?:-([A-Za-z0-9_-]{1,80}))?\.(json|gone|[0-9]{8,12})")

Mark = tuple[int, str]  # token and holder; of two claims the higher mark is the owner's


class UnreadableClaim(KsuperviseError):
    """A claim that is torn, or was not written by us."""

    slug = "unreadable-claim"


@dataclass(frozen=True)
class Claim:
    """Who owns a run. Advisory but for `interval`: the key says who won.

    Attributes:
        holder: a name that no other owner ever had, fit for a file's name.
        host: name of the machine.
        pid: the process with which the ownership ends.
        start_time: when that started, in clock ticks since its machine's boot; None if unknown.
        pids: names the set of process ids that `pid` is of (a container has its own); empty if unknown.
        boot_id: names the boot of the machine; empty if unknown.
        started: wall clock of that machine, seconds since 1970: for people.
        interval: seconds between two signs of life.
    """

    holder: str
    host: str
    pid: int
    start_time: int | None
    pids: str
    boot_id: str
    started: float
    interval: float

    @property
    def where(self) -> str:
        """`process 123 on node7`."""
        return f"process {self.pid} on {self.host}"

    def encoded(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True)
class Listing:
    """The keys below a generation's owners, understood.

    Attributes:
        claims: the holder is "" where the key does not name it.
        beats: the number of each holder's latest sign of life.
        gone: who let go.
        keys: which keys belong to each mark.
    """

    claims: frozenset[Mark]
    beats: Mapping[Mark, int]
    gone: frozenset[Mark]
    keys: Mapping[Mark, tuple[str, ...]] = field(default_factory=dict)


def new_holder(pid: int | None = None) -> str:
    """A holder's name for a process (this one if None): host, pid, and eight letters that make it the only one."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename)[:40] or "host"
    return f"{host}-{pid or os.getpid()}-{secrets.token_hex(4)}"


def is_holder(text: str) -> bool:
    """Whether this can be part of a key."""
    return _HOLDER.fullmatch(text) is not None


def claim_of(holder: str, pid: int, interval: float) -> Claim:
    """The claim of a process of this machine."""
    host, space = os.uname().nodename, _process_space()
    return Claim(holder, host, pid, start_time(pid), space, boot_id(), time.time(), interval)


def claim_key(prefix: str, mark: Mark, *, excludes: bool) -> str:
    """Where the claim lies. `prefix` ends in "/"."""
    token, holder = mark
    return f"{prefix}{token:06d}.json" if excludes or not holder else f"{prefix}{token:06d}-{holder}.json"


def beat_key(prefix: str, mark: Mark, number: int) -> str:
    """Where a sign of life lies."""
    return f"{prefix}{mark[0]:06d}-{mark[1]}.{number:08d}"


def gone_key(prefix: str, mark: Mark) -> str:
    """Where the farewell lies."""
    return f"{prefix}{mark[0]:06d}-{mark[1]}.gone"


def listed(prefix: str, keys: Iterable[str]) -> Listing:
    """Understand keys; those that are not ours are passed over."""
    claims, gone = set[Mark](), set[Mark]()
    beats: dict[Mark, int] = {}
    known: dict[Mark, tuple[str, ...]] = {}
    for key in keys:
        match = _KEY.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
        if match is None or (match[2] is None and match[3] != "json"):
            continue
        mark = (int(match[1]), match[2] or "")
        known[mark] = (*known.get(mark, ()), key)
        if match[3] == "json":
            claims.add(mark)
        elif match[3] == "gone":
            gone.add(mark)
        else:
            beats[mark] = max(beats.get(mark, 0), int(match[3]))
    return Listing(frozenset(claims), beats, frozenset(gone), known)


def parsed(data: bytes) -> Claim:
    """A claim as it was read. What it has beyond what we know is passed over.

    Raises:
        UnreadableClaim: whatever else it is.
    """
    try:
        if len(data) > MAX_CLAIM:
            raise ValueError("too long")
        values = json.loads(data)
        if type(values) is not dict:
            raise ValueError("not an object")
        claim = Claim(**{each.name: values[each.name] for each in fields(Claim)})
        _check(claim)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnreadableClaim("A claim to this run cannot be read: it is torn, or not ours") from error
    return claim


def ended_here(claim: Claim) -> bool:
    """Certain, without waiting: the process was one of this very machine, boot and container, and does not run."""
    here = (os.uname().nodename, boot_id(), _process_space())
    if "" in here or (claim.host, claim.boot_id, claim.pids) != here:
        return False
    owner = Owner(claim.pid, claim.start_time, claim.boot_id, claim.host, "", claim.started)
    return owner_is_alive(owner) is False


def _check(claim: Claim) -> None:
    for text in (claim.holder, claim.host, claim.pids, claim.boot_id):
        if type(text) is not str or len(text) > _MAX_TEXT or not text.isprintable():
            raise ValueError("not a text")
    if not is_holder(claim.holder):
        raise ValueError("not a holder")
    if type(claim.pid) is not int or not 0 < claim.pid < 2**31:
        raise ValueError("not a process id")
    if claim.start_time is not None and (type(claim.start_time) is not int or not 0 <= claim.start_time < 2**63):
        raise ValueError("not a start time")
    for seconds, most in ((claim.started, 2.0**40), (claim.interval, MAX_INTERVAL)):
        if type(seconds) not in (int, float) or not 0 < seconds <= most:  # which NaN is not either
            raise ValueError("not a time")


def _process_space() -> str:
    """Names the set that our process ids are of; two containers of one machine may well have the same host name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
