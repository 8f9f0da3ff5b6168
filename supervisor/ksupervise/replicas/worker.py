"""`python -m ksupervise.replicas.worker`: the process that keeps one replica up to date, or looks into one.

Any call into a place may hang for ever, so whoever starts this watches its reports and kills it. Configuration is one
JSON line on stdin; orders are further ones, reports are JSON lines on stdout (DESIGN has them all). It reads the run's
directory and never writes there, but for `fetch`, which brings checkpoints to it.

It is never silent for long but in a call that hangs: CEILING seconds at most between two tries.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Protocol

from ksupervise.errors import KsuperviseError, UsageError
from ksupervise.replicas.fetch import Inventory, inventory, read_manifest
from ksupervise.replicas.format import MANIFEST, Generation
from ksupervise.replicas.history import write_history
from ksupervise.replicas.owning import ClaimConfig, Ownership, generation
from ksupervise.replicas.place import (
    Arrival,
    NotThere,
    Place,
    ReplicaFault,
    ReplicaFull,
    ReplicaUnreachable,
)
from ksupervise.replicas.plan import Copy, Item, is_superseded, item_of, parse_name, to_remove, to_upload
from ksupervise.replicas.questions import serve_claim, serve_fetch, serve_look
from ksupervise.replicas.talk import (
    CEILING,
    Config,
    Ended,
    FetchConfig,
    Opener,
    Orders,
    Reports,
    config_from_json,
    tell_failure,
)
from ksupervise.replicas.upload import Abandoned, Flow, Source, Superseded, arrival, journal_tail, run_id, upload
from ksupervise.store import (
    Checkpoint,
    CheckpointStore,
    DamagedCheckpoint,
    RunLayout,
    StoreUnreadable,
    read_fault,
)

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

POLL = 30.0  # seconds between two looks whether what is cached has been uploaded
_ALIVE = 30.0  # seconds between two signs of life with nothing to do


class Owner(Protocol):
    """The ownership of the run in the place; see `owning.Ownership`. All may raise ReplicaFault."""

    @property
    def lost(self) -> str:
        """Whose it is now, "" as long as it is ours."""

    @property
    def until_beat(self) -> float:
        """Seconds until `beat` has something to do."""

    def hold(self, sleep: Callable[[float], None]) -> bool:
        """Hold it from here on; False: it is somebody else's."""

    def still_ours(self) -> bool:
        """Asked before every manifest and every removal."""

    def beat(self) -> None:
        """Give a sign of life, if one is due."""

    def release(self) -> None:
        """Let go."""


Owning = Callable[[Place, Generation], Owner]


class Worker:
    """Keeps one replica of one run."""

    def __init__(
        self,
        config: Config,
        opener: Opener,
        orders: Orders,
        reports: Reports,
        owning: Owning | None = None,
        poll: float = POLL,
    ) -> None:
        """Do nothing yet.

        Args:
            config: what, where to and how.
            opener: opens the place; may raise ReplicaFault.
            orders: from the parent.
            reports: to the parent.
            owning: makes what knows whether another machine owns the run: nothing is written then. None: nobody else
                can.
            poll: seconds between two looks whether what is cached was uploaded.
        """
        self._config, self._opener, self._orders, self._reports = config, opener, orders, reports
        self._owning, self._poll = owning, poll
        self._layout = RunLayout(config.directory)
        self._store = CheckpointStore(config.directory, config.run)
        self._flow = Flow(reports.moved, self._is_abandoned, config.rate, sleep=orders.sleep)
        self._place: Place | None = None
        self._generation: Generation | None = None
        self._owner: Owner | None = None
        self._known: dict[str, Item] = {}  # complete ones there, by name
        self._arrivals: dict[str, Arrival] = {}  # of those
        self._rotten: set[str] = set()  # checkpoints here that do not verify: never tried again
        self._local: dict[Item, Checkpoint] = {}
        self._copies: tuple[Copy, ...] = ()
        self._uploading: Item | None = None
        self._abandoned = 0  # in a row
        self._tight = False  # the place was full
        self._room_told = False
        self._just_uploaded = ""
        self._last_word = False  # has been written

    def run(self) -> None:
        """Until stdin closes, the end that was announced has come, or another machine owns the run."""
        retrying = self._retrying()
        try:
            while True:
                while retrying(self._step):
                    self._orders.check()
                if self._orders.finishing:
                    self._let_go()
                    self._reports.tell("finished", complete=True)
                    return
                self._reports.tell("idle")
                self._idle()
        except Superseded:
            self._reports.tell("superseded", by=self._owner.lost if self._owner else "")
        except KsuperviseError as error:  # no place is meant by that: trying again helps nothing
            tell_failure(self._reports, error, None)
        except Ended:
            if self._orders.finishing:
                with suppress(Ended):
                    self._let_go()
                    self._reports.tell("finished", complete=False)

    def _idle(self) -> None:
        """Wait for an order, or until cached ones are to be looked at again; alive meanwhile. Raises Ended."""
        end = self._poll if Arrival.CACHED in self._arrivals.values() else math.inf
        began = time.monotonic()
        while (left := began + end - time.monotonic()) > 0 and not self._orders.wait(min(left, self._until_beat())):
            self._beat()

    def _pause(self, seconds: float) -> None:
        """Between two tries; alive meanwhile, or another machine takes the run over. The end's announcement ends it."""
        end, finishing = time.monotonic() + seconds, self._orders.finishing
        while (left := end - time.monotonic()) > 0 and self._orders.finishing == finishing:
            self._orders.sleep(min(left, self._until_beat()))
            self._beat()

    def _watch(self, seconds: float) -> None:
        """Between two looks at an owner that may be dead; whoever started us must not take us for dead meanwhile."""
        self._reports.beat()
        self._orders.sleep(seconds)

    def _until_beat(self) -> float:
        return min(_ALIVE, self._owner.until_beat if self._owner else _ALIVE)

    def _beat(self) -> None:
        """A sign of life to the parent, and one in the place where that is due."""
        self._reports.beat()
        if self._owner is not None:
            self._owner.beat()
            if self._owner.lost:
                raise Superseded

    def _still_ours(self) -> bool:
        return self._owner is None or self._owner.still_ours()

    def _let_go(self) -> None:
        """The run is free for others. That it could not be said is told by our silence."""
        if self._owner is not None:
            with suppress(ReplicaFault):
                self._owner.release()

    def _step(self) -> bool:
        """Bring the replica one checkpoint further. False: there is nothing left to do for now."""
        self._orders.take_wake()  # before looking, so that no later one is lost
        place = self._opened()
        generation = self._generation or self._find_generation(place)
        self._hold(place, generation)
        self._write_last_word(place, generation)
        self._scan()
        there = self._take_stock(place, generation)
        self._tell_room(place)
        self._ask_arrivals(place, generation)
        self._remove(place, there)
        item = to_upload(self._local, self._copies)
        if item is None:
            return False
        self._upload(place, generation, item)
        return True

    def _opened(self) -> Place:
        if self._place is None:
            self._place = self._opener()
        return self._place

    def _find_generation(self, place: Place) -> Generation:
        """The generation of this run's id; the next number if there is none."""
        name, run, number = self._config.name, self._config.run, self._config.generation
        if number is not None:
            found = Generation(number, run.replace("-", "")[:8], name)
        else:
            self._reports.beat()
            found = generation(place, name, run)
        self._generation = found
        self._reports.tell("ready", generation=found.number, place=place.name, excludes=place.excludes)
        return found

    def _hold(self, place: Place, generation: Generation) -> None:
        """Raises Superseded if it is another's."""
        if self._owning is not None and self._owner is None:
            self._owner = self._owning(place, generation)
        if self._owner is not None and not self._owner.hold(self._watch):
            raise Superseded

    def _write_last_word(self, place: Place, generation: Generation) -> None:
        """How the run ended, once it is known: before the last checkpoint, for which there may be no time."""
        if not self._orders.finishing or self._last_word:
            return
        journal = journal_tail(self._layout.journal)
        if journal:
            if not self._still_ours():
                raise Superseded
            holder = self._config.holder or "nobody"
            write_history(place, generation, self._config.token or self._config.attempt, holder, journal)
        self._last_word = True

    def _scan(self) -> None:
        """What lies here now."""
        self._local = {}
        for checkpoint in self._store.survey().valid:
            name = parse_name(os.path.basename(checkpoint.path))
            if name is not None and name.text not in self._rotten:
                with suppress(ValueError):
                    self._local[item_of(name, checkpoint.manifest)] = checkpoint

    def _take_stock(self, place: Place, generation: Generation) -> Inventory:
        """What lies there now."""
        self._reports.beat()
        entries = place.entries(generation.checkpoints)
        there = inventory(place, generation, self._config.run, entries, self._known)
        just, self._just_uploaded = self._just_uploaded, ""
        if just and all(copy.item.name.text != just for copy in there.copies):  # not to copy it again and again
            raise ReplicaUnreachable(f"{place.name} took checkpoint {just} and does not list it.")
        self._known = {copy.item.name.text: copy.item for copy in there.copies}
        self._arrivals = {name: each for name, each in self._arrivals.items() if name in self._known}
        self._copies = tuple(replace(copy, arrival=self._arrivals.get(copy.item.name.text)) for copy in there.copies)
        return there

    def _tell_room(self, place: Place) -> None:
        """Once, as soon as it is known: what is free there, and what is needed for all that is kept."""
        if self._room_told or not self._local:
            return
        self._room_told = True
        newest = max(self._local, key=lambda each: each.order)
        needed = newest.bytes * (self._config.keep + 1) - sum(copy.item.bytes for copy in self._copies)
        self._reports.tell("room", bytes=place.room(), needed=max(0, needed))

    def _ask_arrivals(self, place: Place, generation: Generation) -> None:
        """Of the newest there, and of those that were cached when last asked."""
        for copy in self._copies:
            name = copy.item.name.text
            before = self._arrivals.get(name)
            if before is Arrival.UPLOADED or (before is None and copy is not self._copies[0]):
                continue
            try:
                manifest, text = read_manifest(place, generation, name, self._config.run)
                prefix = f"{generation.checkpoints}{name}/"
                came = self._arrivals[name] = arrival(place, prefix, manifest, text, self._reports.patience)
            except (NotThere, DamagedCheckpoint):  # it goes away, or is not whole: it may be copied again
                self._known.pop(name, None)
                continue
            if before is None:
                self._reports.tell("there", seq=copy.item.seq, arrival=came.value, bytes=copy.item.bytes)
            elif came is Arrival.UPLOADED:
                self._reports.tell("arrived", seq=copy.item.seq)
        whole = [copy for copy in self._copies if copy.item.name.text in self._known]
        self._copies = tuple(replace(copy, arrival=self._arrivals.get(copy.item.name.text)) for copy in whole)

    def _remove(self, place: Place, there: Inventory) -> None:
        """Remove what is not kept, its manifest first: it must not look complete when it is half gone."""
        victims = to_remove(self._copies, there.leftovers, 1 if self._tight else self._config.keep)
        self._tight = False
        if not victims:
            return
        if not self._still_ours():
            raise Superseded
        self._reports.beat()
        keys = [key for name in victims for key in there.keys.get(name.text, ())]
        place.remove([key for key in keys if key.endswith(f"/{MANIFEST}")])
        place.remove([key for key in keys if not key.endswith(f"/{MANIFEST}")])
        self._reports.tell("removed", seqs=[name.seq for name in victims])

    def _upload(self, place: Place, generation: Generation, item: Item) -> None:
        checkpoint = self._local[item]
        self._uploading = item
        self._reports.tell("uploading", seq=item.seq, bytes=item.bytes)
        began = time.monotonic()
        try:
            source = Source(self._store, checkpoint, journal_tail(self._layout.journal), self._record())
            came = upload(place, generation, source, self._flow, self._still_ours, self._reports.patience)
        except Abandoned:
            self._orders.check()
            self._abandoned += 1
            self._reports.tell("abandoned", seq=item.seq)
            return
        except DamagedCheckpoint as damage:
            self._rotten.add(item.name.text)
            self._reports.tell("failed", reason=str(damage), kind="local", again_s=0.0)
            return
        except ReplicaFull as full:
            self._tight = True
            if self._config.keep > 1:
                raise
            two = "Even --replica-keep 1 takes room for two: one stays until the next is whole."
            raise ReplicaFull(f"{full} {two}") from full
        finally:
            self._uploading = None
        self._abandoned = 0
        self._known[item.name.text] = item
        self._just_uploaded = item.name.text
        self._arrivals[item.name.text] = came
        seconds = round(time.monotonic() - began, 3)
        self._reports.tell("replicated", seq=item.seq, arrival=came.value, bytes=item.bytes, seconds=seconds)

    def _is_abandoned(self) -> bool:
        """Asked between two pieces: is it time to leave, or is there something newer?"""
        if self._owner is not None:
            self._owner.beat()
        if self._orders.over:
            return True
        if self._uploading is None or not self._orders.take_wake():
            return False
        try:
            self._scan()
        except StoreUnreadable:
            return False
        finish = (
            2 + self._abandoned if self._orders.finishing else self._config.finish
        )  # at the end only the newest counts
        return is_superseded(self._uploading, self._local, self._copies, self._abandoned, finish)

    def _record(self) -> bytes:
        try:
            with open(self._layout.run_json, "rb") as file:
                record = file.read()
            run_id(record)
        except OSError as error:
            raise StoreUnreadable(str(read_fault(error, self._layout.run_json))) from error
        except ValueError as error:
            raise StoreUnreadable(f"Cannot read {self._layout.run_json}: {error}. Put the file back.") from error
        return record

    def _retrying(self) -> Retrying:
        from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

        return Retrying(
            retry=retry_if_exception_type((ReplicaFault, StoreUnreadable)),
            wait=wait_random_exponential(multiplier=1.0, min=0.5, max=CEILING),
            sleep=self._pause,
            before_sleep=self._tell_failure,
        )

    def _tell_failure(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        tell_failure(self._reports, state.outcome.exception(), state.next_action.sleep)


def serve(
    config: Config,
    opener: Opener,
    stdin: IO[bytes],
    stdout: IO[bytes],
    owning: Owning | None = None,
    poll: float = POLL,
) -> None:
    """Keep a replica until stdin closes or says so; see `Worker`."""
    Worker(config, opener, Orders(stdin), Reports(stdout), owning, poll).run()


def main(arguments: list[str]) -> int:
    """Serve stdin and stdout: no argument to keep a replica, `claim`, `fetch` or `look` for those. The exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's: it says when to finish
    # Whatever prints must not be taken for a report.
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    stdin = os.fdopen(os.dup(0), "rb", buffering=0)
    line = _first_line(stdin)
    if not line:
        return 0  # whoever started us has gone
    with suppress(Ended):
        _serve(arguments, line, stdin, stdout)
    return 0


def _serve(arguments: list[str], line: bytes, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    from ksupervise.replicas.open import open_place

    try:
        if not arguments:
            config: Config = config_from_json(Config, line)
            serve(config, lambda: open_place(config.place), stdin, stdout, _owning(config))
        elif arguments == ["claim"]:
            claiming: ClaimConfig = config_from_json(ClaimConfig, line)
            serve_claim(claiming, lambda: open_place(claiming.place), stdin, stdout)
        else:
            meant: FetchConfig = config_from_json(FetchConfig, line)
            {"fetch": serve_fetch, "look": serve_look}[arguments[0]](meant, lambda: open_place(meant.place), stdout)
    except UsageError as error:
        tell_failure(Reports(stdout), error, None)


def _owning(config: Config) -> Owning | None:
    """How a worker owns its run; not at all without a holder."""
    if not config.holder:
        return None
    from ksupervise.replicas.lease import Lease

    def owning(place: Place, generation: Generation) -> Owner:
        least = config.token or config.attempt
        lease = Lease(place, generation, config.holder, least, pid=config.pid, interval=config.interval)
        return Ownership(lease, config.token)

    return owning


def _first_line(stdin: IO[bytes]) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and (byte := stdin.read(1)):
        line += byte
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
