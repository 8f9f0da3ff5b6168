"""Questions to a replica, each by a process of its own: what it has of a run, bring that here, whose is it.

The last report answers: `found`, `fetched`, `nothing`, `owned`, `busy` or `failed`. Those before it are signs of life.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from ksupervise.errors import KsuperviseError
from ksupervise.replicas.fetch import INCOMING, Found, fetch, look
from ksupervise.replicas.format import JOURNAL, RUN
from ksupervise.replicas.lease import Lease
from ksupervise.replicas.owning import ClaimConfig, claim, stay
from ksupervise.replicas.place import Place, ReplicaFault, ReplicaRefused
from ksupervise.replicas.plan import Item
from ksupervise.replicas.talk import BEAT, CEILING, FetchConfig, Opener, Orders, Reports, tell_failure
from ksupervise.store import RunLayout, replace_file

if TYPE_CHECKING:
    from tenacity import RetryCallState

_PATIENCE = 60.0  # seconds for which a claim tries again
_MOST_TOLD = 20  # damaged checkpoints of which a report tells


def serve_fetch(config: FetchConfig, opener: Opener, stdout: IO[bytes]) -> None:
    """Bring what a replica has to the run's directory, and report it. The caller holds the run's lock."""
    reports = Reports(stdout)

    def attempt() -> None:
        place = opener()
        found = _meant(look(place, config.name), config)
        if found is None or found.problem:
            reports.tell("nothing", reason=found.problem if found else "the replica holds no such run")
            return
        _fetch(place, found, config, reports)

    _try_for(attempt, config.patience, reports)


def serve_look(config: FetchConfig, opener: Opener, stdout: IO[bytes]) -> None:
    """Report what generations of a run a replica has."""
    reports = Reports(stdout)

    def attempt() -> None:
        place = opener()
        generations = [describe(each) for each in look(place, config.name)]
        reports.tell("found", generations=generations, excludes=place.excludes)

    _try_for(attempt, config.patience, reports)


def serve_claim(config: ClaimConfig, opener: Opener, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Become the owner of a run in a place, and stay it until stdin ends; or report who is.

    What is to be fetched may take longer than an owner may be silent. The order to finish lets go.
    """
    orders, reports = Orders(stdin), Reports(stdout)
    leases: list[Lease] = []

    def attempt() -> None:
        lease = claim(config, opener(), reports, orders.sleep)
        if lease is not None:
            leases.append(lease)

    _try_for(attempt, _PATIENCE, reports)
    for lease in leases:
        stay(lease, orders)


def describe(found: Found) -> dict[str, Any]:
    """A generation in JSON."""
    record: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        values = json.loads(found.record)
        record = values if isinstance(values, dict) else {}
    newest = [_item(copy.item) for copy in found.inventory.copies[:1]]
    return {
        "number": found.generation.number,
        "run_id": found.id,
        "name": found.generation.run,
        "token": found.token,
        "told": found.told,
        "record": found.record.decode(errors="replace"),
        "script": str(record.get("script", "")),
        "script_digest": str(record.get("script_digest", "")),
        "newest": newest[0] if newest else None,
        "checkpoints": len(found.inventory.copies),
        "damaged": [list(each) for each in found.inventory.damaged[:_MOST_TOLD]],
        "newer_format": [str(error) for error in found.inventory.newer.values()][:_MOST_TOLD],
        "problem": found.problem,
    }


def _item(item: Item) -> dict[str, Any]:
    return {
        "name": item.name.text,
        "order": list(item.order),
        "attempt": item.name.attempt,
        "seq": item.seq,
        "holder": item.holder,
        "kind": item.kind,
        "fit": item.fit,
        "step": item.step,
        "bytes": item.bytes,
        "created": item.created,
    }


def _meant(generations: Iterable[Found], config: FetchConfig) -> Found | None:
    for each in generations:
        if config.generation not in (None, each.generation.number):
            continue
        if not config.run or each.id == config.run:
            return each
    return None


def _fetch(place: Place, found: Found, config: FetchConfig, reports: Reports) -> None:
    layout = RunLayout(config.directory)
    layout.create()
    last = -math.inf

    def progress(done: int, of: int) -> None:
        nonlocal last
        if done == of or time.monotonic() - last >= BEAT:
            last = time.monotonic()
            reports.tell("fetching", bytes=done, of=of)

    fetched = fetch(place, found, layout, progress)
    for name, reason in fetched.skipped[:_MOST_TOLD]:
        reports.tell("skipped", key=name, reason=reason)
    incoming = os.path.join(layout.root, INCOMING)
    os.makedirs(incoming, 0o700, exist_ok=True)
    for file, data in ((RUN, fetched.record), (JOURNAL, fetched.journal)):
        replace_file(os.path.join(incoming, file), data)
    newest = fetched.newest.manifest if fetched.newest else None
    about = {
        "generation": found.generation.number,
        "run_id": found.id,
        "incoming": incoming,
        "checkpoints": [checkpoint.path for checkpoint in fetched.checkpoints],
        "bytes": sum(checkpoint.manifest.size for checkpoint in fetched.checkpoints),
        "newest": fetched.newest.path if fetched.newest else None,
        "step": newest.position.step if newest else None,
    }
    empty = not found.inventory.copies
    reason = "it has no checkpoint of this run yet" if empty else "it has nothing that is newer than what is here"
    if fetched.checkpoints:
        reports.tell("fetched", **about)
    else:
        reports.tell("nothing", reason=reason, **about)


def _try_for(attempt: Callable[[], None], patience: float, reports: Reports) -> None:
    """Call it until it does not fail for want of the place; what is the matter in the end is reported."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    def is_passing(error: BaseException) -> bool:
        return isinstance(error, ReplicaFault) and not isinstance(error, ReplicaRefused)

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        words = {"reason": str(state.outcome.exception()), "again_s": round(state.next_action.sleep, 3)}
        reports.tell("beat", bytes=0, **words)  # "failed" is the last word here

    retrying = Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_delay(patience),
        wait=wait_random_exponential(multiplier=1.0, min=0.5, max=CEILING),
        before_sleep=tell,
        reraise=True,
    )
    try:
        retrying(attempt)
    except (KsuperviseError, OSError) as error:  # OSError: the directory here
        tell_failure(reports, error, None)
