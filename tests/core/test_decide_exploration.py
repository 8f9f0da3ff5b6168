"""All states that a run can reach, found by letting everything happen everywhere: what holds in each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from ksupervise.core.actions import Action, Cause, EndAttempt, Relaunch
from ksupervise.core.decide import TABLE, Decision, Phase, State, UnexpectedEvent, decide
from ksupervise.core.events import (
    Advised,
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

from .world import ALWAYS, CTRL_C, NEVER, STALL, Evidences, World, exited, few, killed, many

ATTEMPTS = 2
LIVES = 5
POLICY = Policy(max_failures=2, always_retry=frozenset({ALWAYS}), never_retry=frozenset({NEVER}))
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
    Advised(),
    Settled(exited(0)),
    *map(TimerFired, Timer),
)


LATE = [event for event in ONE_OF_EACH if not isinstance(event, Start | Spawned | SpawnFailed)]


@pytest.mark.parametrize("event", LATE, ids=str)
def test_nothing_happens_any_more_once_a_run_is_done(event: Event) -> None:
    """Whatever comes late: a second SIGTERM, what the dead had said, a timer that nobody stopped."""
    done = State(phase=Phase.DONE)
    assert decide(done, event) == (done, ())


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


def is_a_plain_life(world: World, event: Event, attempts: int) -> bool:
    """Nothing but attempts that end, before a step or after some, and the next ones."""
    plain = (Start, Spawned, FitBegan, ChildExited, Settled)
    backoff = event == TimerFired(Timer.BACKOFF) and world.state.history.attempt < attempts
    return backoff or (isinstance(event, plain) and world.state.phase is not Phase.DONE)


def explore(
    policy: Policy,
    attempts: int = ATTEMPTS,
    evidences: Evidences = few,
    bounds: Callable[[World, Event, int], bool] = in_bounds,
) -> Map:
    """Everything that can happen within `bounds`, wherever it can, from the beginning."""
    found = Map()
    unseen = [World(State(policy=policy))]
    while unseen:
        world = unseen.pop()
        if world in found.ways:
            continue
        ways = found.ways[world] = []
        for event in world.possible(evidences):
            if not bounds(world, event, attempts):
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
    return explore(POLICY)


@pytest.fixture(scope="module")
def lives() -> Map:
    """Whole attempts, one after the other, with every kind of end that the judgement tells apart."""
    return explore(POLICY, LIVES, many, is_a_plain_life)


def ends(found: Map) -> Iterator[tuple[Edge, Evidence]]:
    """The ends of attempts, with their evidence."""
    for edge in found.edges:
        if isinstance(edge.event, Settled):
            yield edge, edge.event.evidence


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


def test_failures_stay_within_the_budget_and_one_more_if_an_older_checkpoint_is_tried(lives: Map) -> None:
    for world in lives.ways:
        history, most = world.state.history, world.state.policy.max_failures
        assert history.failures <= most + history.went_back
        if world.state.phase is Phase.WAITING:
            assert history.failures < most + history.went_back
            assert history.failures <= history.fruitless


# Lives, one after the other -----------------------------------------------------------------------


def test_no_order_of_deaths_leads_to_what_is_forbidden(lives: Map) -> None:
    """`World` knows it: a relaunch after a verdict, a second going back without progress …"""
    assert not lives.faults, f"{len(lives.faults)} faults, the first: {lives.faults[0]}"


def test_the_lives_are_varied_enough_to_mean_something(lives: Map) -> None:
    assert len(lives.ways) > 5000
    assert max(world.state.history.attempt for world in lives.ways) == LIVES
    assert {cause_of(edge) for edge, _ in ends(lives)} >= {
        Cause.COMPLETED,
        Cause.EXCEPTION,
        Cause.EXITED,
        Cause.INTERRUPTED,
        Cause.NATIVE_CRASH,
        Cause.NOT_RERUNNABLE,
        Cause.OUT_OF_MEMORY,
        Cause.PREEMPTED,
        Cause.SIGNAL,
        Cause.TRAINER_DIED,
        Cause.USER_ERROR,
    }
    assert any(isinstance(action, Relaunch) and action.back_to for edge in lives.edges for action in edge.actions)


def test_every_failure_without_progress_brings_the_end_nearer(lives: Map) -> None:
    """So there are at most as many as are allowed, and one: whatever their causes, in whatever order."""
    free = {Cause.PREEMPTED}
    for edge, evidence in ends(lives):
        before, after = edge.before.state.history, edge.after.state.history
        if edge.after.state.phase is not Phase.WAITING or cause_of(edge) in free or before.progressed(evidence):
            continue
        if evidence.exit_code == ALWAYS or not evidence.checkpoint_known:
            continue
        assert after.failures == before.failures + 1


def test_what_costs_nothing_costs_nothing(lives: Map) -> None:
    """A code that is always tried again; a store that could not be asked whether there was progress; a preemption."""
    seen = set()
    for edge, evidence in ends(lives):
        before, after = edge.before.state.history, edge.after.state.history
        if evidence.exit_code == ALWAYS or not evidence.checkpoint_known or cause_of(edge) is Cause.PREEMPTED:
            seen.add((evidence.exit_code == ALWAYS, evidence.checkpoint_known))
            assert edge.after.state.phase is Phase.WAITING
            assert (after.failures, after.from_failures) == (before.failures, before.from_failures)
    assert seen == {(True, True), (False, True), (False, False)}


def test_progress_gives_the_budget_back(lives: Map) -> None:
    for edge, evidence in ends(lives):
        if edge.before.state.history.progressed(evidence) and edge.after.state.phase is Phase.WAITING:
            after = edge.after.state.history
            assert (after.failures, after.fruitless, after.memory, after.went_back) == (0, 0, 0, False)
            assert after.mark == evidence.checkpoint_step


def test_a_code_that_is_never_tried_again_is_the_end(lives: Map) -> None:
    for edge, evidence in ends(lives):
        assert edge.after.state.phase is Phase.DONE or evidence.exit_code != NEVER


def test_only_what_never_trained_ends_in_silence(lives: Map) -> None:
    silent = [edge for edge, _ in ends(lives) if edge.after.verdicts and edge.after.verdicts[0].silent]
    assert silent
    for edge in silent:
        assert cause_of(edge) is Cause.USER_ERROR
        assert not edge.after.state.history.stepped


def cause_of(edge: Edge) -> Cause:
    """Of the attempt that ended."""
    return next(action.cause for action in edge.actions if isinstance(action, EndAttempt))


# Stops --------------------------------------------------------------------------------------------


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
    assert any("KILLING" in fault for fault in explore(POLICY, attempts=1).faults)


def test_the_exploration_would_notice_a_swallowed_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(state: State, event: Event) -> Decision:
        return replace(state), ()

    monkeypatch.setitem(TABLE, (Phase.KILLING, type(CTRL_C)), swallow)
    assert any("after a stop was asked for" in fault for fault in explore(POLICY, attempts=1).faults)
