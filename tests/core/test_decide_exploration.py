"""All states that a run can reach, found by letting everything happen everywhere: what holds in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from ksupervise.core.actions import Action
from ksupervise.core.decide import TABLE, Decision, Phase, State, UnexpectedEvent, decide
from ksupervise.core.events import (
    ChildExited,
    Claimed,
    Event,
    Evidence,
    FitBegan,
    FitEnded,
    Left,
    Refused,
    Released,
    Settled,
    Spawned,
    SpawnFailed,
    Staged,
    Start,
    Timer,
    TimerFired,
)
from ksupervise.core.policy import Policy

from .world import CTRL_C, STALL, World, exited, killed

ATTEMPTS = 3
ONE_OF_EACH: tuple[Event, ...] = (
    Start(),
    Spawned(),
    SpawnFailed(127, "it is gone"),
    Claimed(),
    Released(),
    FitBegan(1),
    FitEnded(1),
    Staged(1),
    Refused("another model"),
    Left("drained"),
    ChildExited(),
    CTRL_C,
    STALL,
    Settled(exited(0)),
    *map(TimerFired, Timer),
)


@dataclass(frozen=True)
class Edge:
    """What followed from one event in one world."""

    before: World
    event: Event
    actions: tuple[Action, ...]
    after: World


@dataclass
class Map:
    """Every world that was reached, with the ways out of it; and what went wrong on the way."""

    ways: dict[World, list[Edge]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def edges(self) -> Iterator[Edge]:
        """All ways out of all worlds."""
        for ways in self.ways.values():
            yield from ways


def in_bounds(world: World, event: Event, attempts: int) -> bool:
    """What is left out, lest there be no end: one attempt more, a second fit of one life, what comes after DONE."""
    if event == TimerFired(Timer.BACKOFF) and world.state.history.attempt == attempts:
        return False
    return not (isinstance(event, FitBegan) and world.state.fits_done) and world.state.phase is not Phase.DONE


def explore(policy: Policy, attempts: int = ATTEMPTS) -> Map:
    """Everything that can happen, wherever it can, from the beginning."""
    found = Map()
    unseen = [World(State(policy=policy))]
    while unseen:
        world = unseen.pop()
        if world in found.ways:
            continue
        ways = found.ways[world] = []
        for event in world.possible():
            if not in_bounds(world, event, attempts):
                continue
            try:
                after, actions = world.after(event)
            except (UnexpectedEvent, AssertionError) as fault:
                found.faults.append(f"{fault!r} when {event} came to {world}")
                continue
            ways.append(Edge(world, event, actions, after))
            if after not in found.ways:
                unseen.append(after)
    return found


@pytest.fixture(scope="module")
def world_map() -> Map:
    """The map, drawn once."""
    return explore(Policy(max_failures=2))


def test_whatever_can_happen_is_in_the_table_and_nothing_forbidden_is_done(world_map: Map) -> None:
    """`World` knows what is forbidden: a launch beside a living child or after a stop, 75 for a user's stop …"""
    assert not world_map.faults, f"{len(world_map.faults)} faults, the first: {world_map.faults[0]}"


def test_the_map_is_large_enough_to_mean_something(world_map: Map) -> None:
    assert len(world_map.ways) > 1000
    assert {world.state.phase for world in world_map.ways} == set(Phase)
    assert max(world.state.history.attempt for world in world_map.ways) == ATTEMPTS


def test_the_table_has_no_row_that_is_never_used(world_map: Map) -> None:
    used = {(edge.before.state.phase, key_of(edge.event)) for edge in world_map.edges}
    unused = {row for row in TABLE if row not in used and row[0] is not Phase.DONE}
    assert not unused


def test_a_run_that_is_done_has_exactly_one_verdict_and_no_other_has_one(world_map: Map) -> None:
    for world in world_map.ways:
        assert len(world.verdicts) == (world.state.phase is Phase.DONE)


def test_a_run_that_is_done_leaves_nothing_behind(world_map: Map) -> None:
    for world in world_map.ways:
        if world.state.phase is Phase.DONE:
            assert not world.timers
            assert not world.spawning
            assert not world.settling
            lost_hold = ("survives SIGKILL", "did not take the last stage")
            assert not world.alive or any(words in world.verdicts[0].detail for words in lost_hold)


def test_every_run_can_end(world_map: Map) -> None:
    sources: dict[World, list[World]] = {}
    for edge in world_map.edges:
        sources.setdefault(edge.after, []).append(edge.before)
    ends = [world for world in world_map.ways if world.state.phase is Phase.DONE]
    seen = set(ends)
    while ends:
        for source in sources.get(ends.pop(), ()):
            if source not in seen:
                seen.add(source)
                ends.append(source)
    assert seen == set(world_map.ways)


def test_every_wait_is_bounded(world_map: Map) -> None:
    for world in world_map.ways:
        if world.alive and world.state.phase not in (Phase.RUNNING, Phase.DONE):
            assert len(world.timers) == 1, world
        if world.state.phase is Phase.SETTLING:
            assert world.timers == {Timer.SETTLE}, world
        if world.state.phase is Phase.RUNNING:
            assert not world.timers, world


def test_a_run_is_never_stuck(world_map: Map) -> None:
    for world in world_map.ways:
        if world.state.phase not in (Phase.IDLE, Phase.RUNNING, Phase.DONE):
            assert world.timers or world.spawning or world.settling, world


@pytest.mark.parametrize("dies", [True, False], ids=["SIGKILL works", "in D state"])
def test_with_only_timers_firing_a_stop_ends_the_run(world_map: Map, dies: bool) -> None:
    """The child says nothing and obeys nothing; the user walked away."""
    for start in world_map.ways:
        if start.state.phase in (Phase.IDLE, Phase.RUNNING):
            continue
        world, turns = start, 0
        while world.state.phase not in (Phase.DONE, Phase.WAITING):
            world, turns = world.after(what_time_brings(world, dies))[0], turns + 1
            assert turns < 8, f"still {world.state.phase.name} from {start}"
            if world.state.phase is Phase.RUNNING:
                break
        assert not start.stop_asked or world.state.phase is Phase.DONE, start


def what_time_brings(world: World, dies: bool) -> Event:
    """The one thing that happens to a run that is left alone with a child deaf to all but SIGKILL."""
    if world.spawning:
        return Spawned()
    if world.state.phase is Phase.KILLING and dies:
        return ChildExited()
    if world.settling:
        return Settled(Evidence(survivors=(4711,)) if world.alive else killed(9))
    (timer,) = world.timers
    return TimerFired(timer)


def test_a_preemption_never_costs_budget(world_map: Map) -> None:
    for edge in world_map.edges:
        if isinstance(edge.event, Settled) and (edge.before.state.left or edge.event.evidence.signal == 15):
            assert edge.after.state.history.failures <= edge.before.state.history.failures


def test_progress_gives_the_budget_back_and_failures_stay_within_it(world_map: Map) -> None:
    for world in world_map.ways:
        history, most = world.state.history, world.state.policy.max_failures
        assert history.failures <= most
        if world.state.phase is Phase.WAITING:
            assert history.failures < most
            assert history.failures <= history.fruitless


def test_no_stop_is_pending_between_two_attempts(world_map: Map) -> None:
    for world in world_map.ways:
        if world.state.phase is Phase.WAITING:
            assert world.state.stop is None


def test_what_is_believed_is_what_is_true(world_map: Map) -> None:
    for world in world_map.ways:
        if world.alive and not world.settling and not world.verdicts:
            assert world.state.in_fit == world.in_fit
        assert (world.state.stop is not None) == world.stop_asked or world.verdicts
        if world.state.stop is not None and not world.verdicts:
            assert world.state.stop.kind.by_user == world.user_asked


def test_nothing_happens_any_more_once_a_run_is_done() -> None:
    done = State(phase=Phase.DONE)
    late = [event for event in ONE_OF_EACH if (Phase.DONE, key_of(event)) in TABLE]
    assert CTRL_C in late
    for event in late:
        assert decide(done, event) == (done, ())


# Outside the table --------------------------------------------------------------------------------


def key_of(event: Event) -> type[Event] | Timer:
    """How the table names an event."""
    return event.timer if isinstance(event, TimerFired) else type(event)


NOT_LISTED = [(phase, event) for phase in Phase for event in ONE_OF_EACH if (phase, key_of(event)) not in TABLE]


@pytest.mark.parametrize(
    ("phase", "event"), NOT_LISTED, ids=[f"{phase.name}-{type(event).__name__}" for phase, event in NOT_LISTED]
)
def test_a_pair_not_in_the_table_raises_and_changes_nothing(phase: Phase, event: Event) -> None:
    state = State(phase=phase)
    with pytest.raises(UnexpectedEvent, match=phase.name):
        decide(state, event)
    assert state == State(phase=phase)


def test_the_exploration_would_notice_a_missing_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of the first prototype: a stop while a stalled child is being killed."""
    monkeypatch.delitem(TABLE, (Phase.KILLING, type(CTRL_C)))
    assert any("KILLING" in fault for fault in explore(Policy(max_failures=2), attempts=1).faults)


def test_the_exploration_would_notice_a_swallowed_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(state: State, event: Event) -> Decision:
        return replace(state), ()

    monkeypatch.setitem(TABLE, (Phase.KILLING, type(CTRL_C)), swallow)
    assert any("after a stop was asked for" in fault for fault in explore(Policy(max_failures=2), attempts=1).faults)
