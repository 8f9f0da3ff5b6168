"""Two or three machines at one place, in every order that hypothesis thinks of.

The real code runs, each machine in a thread of its own; but only one moves at a time, from one call of its place to
the next, and somebody else says which. So a machine can be stopped between any two calls for as long as one likes,
its calls can fail before or after they were done, and time is a number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksupervise.replicas.claim import Mark, listed
from ksupervise.replicas.lease import Acquired, Lease
from ksupervise.replicas.place import ReplicaUnreachable

from .lease_place import GENERATION, Table, View

INTERVAL = 20.0  # seconds
PATIENCE = 60.0
STUCK = 60.0  # seconds of real time in which a machine surely comes to its next call
RETRY = 5.0
BOUND = 3 * PATIENCE  # seconds in which a run has an owner again: one that died unseen, and one that died meanwhile


class Over(BaseException):
    """Ends a machine's thread."""


class World:
    """Time, one place, and the machines. What must never happen is asserted as it happens."""

    def __init__(self, tokens: list[int], *, excludes: bool) -> None:
        self.now = 0.0
        self.over = False
        self.table = Table(excludes=excludes)
        self.back = threading.Semaphore(0)
        self.holder_of: dict[int, str] = {}
        self.machines = [Machine(self, number, token) for number, token in enumerate(tokens)]

    def top(self) -> Mark:
        """The highest claim that there is."""
        claims = listed(GENERATION.owners, self.table.objects).claims
        return max(claims, default=(0, ""))

    def acquired(self, token: int, holder: str) -> None:
        """Where the place excludes, a token is one machine's for ever."""
        if self.table.excludes:
            assert self.holder_of.setdefault(token, holder) == holder, f"two hold token {token}"

    def settle(self, seconds: float, machines: list[Machine] | None = None) -> None:
        """Let these machines (None: all) run on time for so long."""
        end = self.now + seconds
        machines = self.machines if machines is None else machines
        while True:
            for machine in machines:
                while machine.move():
                    pass
            soonest = min((machine.ready for machine in machines if machine.moves), default=end)
            if soonest >= end:
                self.now = end
                return
            self.now = max(self.now, soonest)


class Machine:
    """A parent that wants the run, and keeps it until it loses it. A killed one never moves again."""

    def __init__(self, world: World, number: int, token: int) -> None:
        self.world = world
        self.ready = 0.0
        self.cut = ""  # "before" or "after": when its calls fail
        self.dead = False
        self.ended = False
        self.error: BaseException | None = None
        self.lease: Lease | None = None  # that it holds
        self.lost = False
        self.looked = 0
        self._number = number
        self._token = token
        self._listed: Mark = (0, "")  # the highest claim when it last looked
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def moves(self) -> bool:
        return not (self.dead or self.ended)

    @property
    def owns(self) -> bool:
        return self.lease is not None

    def move(self) -> bool:
        """Go on to the next call, or wait. False if there is nothing to do for now."""
        if not self.moves or self.ready > self.world.now:
            return False
        self._go.release()
        assert self.world.back.acquire(timeout=STUCK)
        if self.error:
            raise self.error
        return True

    def end(self) -> None:
        self._go.release()
        self._thread.join(STUCK)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._stand()
            self._live()
        except Over:
            return
        except BaseException as error:
            self.error = error
        self.ended = True
        self.world.back.release()

    def _stand(self) -> None:
        """Until it is our turn."""
        self._go.acquire()
        if self.world.over:
            raise Over

    def _pause(self) -> None:
        self.world.back.release()
        self._stand()

    def _wait(self, seconds: float) -> None:
        self.ready = self.world.now + seconds
        self._pause()

    def _around(self, name: str, done: bool) -> None:
        if done and name == "entries":
            self._listed = self.world.top()
            self.looked += 1
        self._pause()
        if self.cut == ("after" if done else "before"):
            raise ReplicaUnreachable("cut off")

    def _live(self) -> None:
        view = View(self.world.table, self._around)
        for life in range(1_000_000):
            holder = f"m{self._number}-{life}"
            lease = Lease(view, GENERATION, holder, self._token, clock=lambda: self.world.now, interval=INTERVAL)
            if isinstance(self._insist(partial(lease.acquire, self._wait)), Acquired):
                self._own(lease, holder)
                return
            self._wait(RETRY)

    def _insist(self, act: Callable[[], object]) -> object:
        while True:
            try:
                return act()
            except ReplicaUnreachable:
                self._wait(RETRY)

    def _own(self, lease: Lease, holder: str) -> None:
        self.world.acquired(lease.token, holder)
        self.lease = lease
        while True:
            try:
                if not lease.until_beat:
                    lease.beat()
                ours = lease.check()
            except ReplicaUnreachable:
                self._wait(RETRY)
                continue
            superseded = self._superseded(lease.token, holder)
            assert ours is not superseded, f"{holder} says {ours}, and the highest claim was {self._listed}"
            if not ours:
                self.lease, self.lost = None, True
                return
            self._wait(min(RETRY, lease.until_beat or RETRY))

    def _superseded(self, token: int, holder: str) -> bool:
        """By what its last listing had in it."""
        return self._listed > ((token, "") if self.world.table.excludes else (token, holder))


@contextmanager
def world_of(tokens: list[int], *, excludes: bool) -> Iterator[World]:
    world = World(tokens, excludes=excludes)
    try:
        yield world
    finally:
        world.over = True
        for machine in world.machines:
            machine.end()


def steps(machines: int) -> st.SearchStrategy[list[tuple[str, int, float]]]:
    who = st.integers(0, machines - 1)
    step = st.one_of(
        st.tuples(st.just("go"), who, st.sampled_from([1.0, 2.0, 5.0, 15.0])),
        st.tuples(st.just("pass"), who, st.sampled_from([1.0, 5.0, 10.0, 20.0, 60.0, 600.0])),
        st.tuples(st.just("run"), who, st.sampled_from([10.0, 60.0, 100.0])),
        st.tuples(st.sampled_from(["before", "after", "mend", "kill"]), who, st.just(0.0)),
    )
    return st.lists(step, max_size=40)


def perform(world: World, step: tuple[str, int, float]) -> None:
    """`go`: one machine makes a few moves; `pass`: time, for nobody; `run`: one machine goes on alone, on time."""
    name, number, amount = step
    machine = world.machines[number]
    if name == "go":
        for _ in range(int(amount)):
            machine.move()
    elif name == "pass":
        world.now += amount
    elif name == "run":
        world.settle(amount, [machine])
    elif name == "kill":
        machine.dead = True
    else:
        machine.cut = "" if name == "mend" else name


@settings(max_examples=120, deadline=None)
@given(
    excludes=st.booleans(),
    tokens=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    history=st.data(),
)
def test_whatever_happens_there_is_one_owner_in_the_end(
    excludes: bool, tokens: list[int], history: st.DataObject
) -> None:
    """Never two of a token, no superseded owner that does not learn it: asserted on the way. Then all is mended."""
    with world_of(tokens, excludes=excludes) as world:
        for step in history.draw(steps(len(tokens))):
            perform(world, step)
        for machine in world.machines:
            machine.cut = ""
        world.settle(BOUND)
        owners = [machine for machine in world.machines if machine.moves and machine.owns]
        able = [machine for machine in world.machines if not machine.dead and not machine.lost]
        assert len(owners) == min(1, len(able))


@settings(max_examples=60, deadline=None)
@given(excludes=st.booleans(), tokens=st.lists(st.integers(1, 4), min_size=2, max_size=2), history=st.data())
def test_an_owner_that_lives_is_left_alone(excludes: bool, tokens: list[int], history: st.DataObject) -> None:
    """The first machine runs on time and is never cut off; whatever the others do, it stays the owner."""
    with world_of([1, *tokens], excludes=excludes) as world:
        owner, *_ = world.machines
        world.settle(1.0, [owner])
        assert owner.owns
        for name, number, amount in history.draw(steps(2)):
            if name == "pass":
                world.settle(amount, [owner])
            elif name == "run":
                world.settle(amount, [owner, world.machines[1 + number]])
            else:
                perform(world, (name, 1 + number, amount))
            world.settle(0.0, [owner])
        assert owner.owns
        assert not any(machine.owns for machine in world.machines[1:])


@pytest.mark.parametrize("excludes", [True, False])
def test_a_dead_owner_is_followed_in_bounded_time(excludes: bool) -> None:
    with world_of([1, 1], excludes=excludes) as world:
        first, second = world.machines
        world.settle(100.0, [first])
        first.dead = True
        began = world.now
        while not second.owns:
            world.settle(1.0, [second])
        assert world.now - began <= PATIENCE + 1.0


def test_of_two_that_start_at_once_one_owns_and_one_is_told() -> None:
    """Both saw an empty place before either claimed."""
    with world_of([1, 1], excludes=True) as world:
        first, second = world.machines
        for machine in world.machines:
            while machine.looked < 1:
                assert machine.move()
        assert not world.table.objects
        world.settle(BOUND)
        assert [machine.owns for machine in world.machines].count(True) == 1
        assert not first.lost
        assert not second.lost
