"""The table: `decide(state, event) -> (state, actions)`. The loop obeys it and never thinks.

Theory
------
A run is in one phase at a time:

    IDLE ──Start──► STARTING ──Spawned──► RUNNING ──ChildExited──► SETTLING ──Settled──► DONE
                        ▲                  │    ▲                       ▲        │
                        │        StopAsked │    └ (news of the child)   │        │ another attempt
                        │                  ▼                            │        ▼
                        │   INTERRUPTING · DRAINING · STOPPING · KILLING┘     WAITING
                        └──────────────────────────BACKOFF───────────────────────┘

- A stop is asked for from outside. Inside a fit a user's Ctrl-C waits for a stage (INTERRUPTING) and
  is then passed on, so that the script's own `except KeyboardInterrupt` works; any other stop
  raises the drain flag (DRAINING) and becomes SIGTERM only when its grace is over. A child that
  has nothing to save gets the signal at once (STOPPING). SIGKILL to the group is the last resort
  (KILLING). Every one of these phases is left by a timer if by nothing else.
- A warning without a deadline (Advised) has the state saved, and nothing else.
- A child that says it leaves (somebody else sent it SIGTERM) drains by its own wish: DRAINING
  bounds that as well.
- A repeated stop hurries: it moves one phase further down that road.
- While the child is alive, news of it (a claim, a fit began or ended, staged …) may come in any
  phase and only updates what is known; it changes the phase only for the stage that INTERRUPTING
  waits for, and for a leave. A stall counts in RUNNING only: elsewhere a timer is set already.
- SETTLING waits for the evidence; the judgement over it is `policy.judge`.
- DONE swallows everything: a second SIGTERM after the verdict changes nothing.

A pair that the table does not list is a fault of ours: it raises `UnexpectedEvent` and leaves the
state as it was. There is no default case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from ksupervise.core import policy as judgement
from ksupervise.core.actions import (
    Action,
    Cause,
    ClearTimer,
    EndAttempt,
    Finish,
    Launch,
    RaiseDrain,
    Relaunch,
    RequestStage,
    RunState,
    SetTimer,
    Settle,
    Signal,
    Target,
)
from ksupervise.core.events import (
    Advised,
    ChildExited,
    Claimed,
    Event,
    FitBegan,
    FitEnded,
    Left,
    Refused,
    Released,
    Settled,
    Spawned,
    SpawnFailed,
    Staged,
    Stalled,
    Start,
    StopAsked,
    StopKind,
    Timer,
    TimerFired,
)
from ksupervise.core.policy import Circumstances, History, Policy


class Phase(Enum):
    """Where a run stands."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    INTERRUPTING = "interrupting"
    DRAINING = "draining"
    STOPPING = "stopping"
    KILLING = "killing"
    SETTLING = "settling"
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True)
class State:
    """Everything that the next decision depends on."""

    policy: Policy = field(default_factory=Policy)
    phase: Phase = Phase.IDLE
    history: History = field(default_factory=History)
    stop: StopAsked | None = None
    # Of the attempt in hand; reset at each launch:
    in_fit: bool = False
    fits_done: int = 0
    sent: str = ""  # the last signal we sent the child
    left: str = ""
    refused: str = ""
    stalled: str = ""

    @property
    def grace(self) -> float:
        """Seconds that the stop in hand allows."""
        if self.stop is not None and self.stop.grace is not None:
            return self.stop.grace
        return self.policy.grace


class UnexpectedEvent(Exception):
    """The table does not list this event in this phase: a fault of ours, never swallowed."""


Decision = tuple[State, tuple[Action, ...]]
Handler = Callable[[State, Event], Decision]


def decide(state: State, event: Event) -> Decision:
    """What follows from `event` in `state`. Raises UnexpectedEvent for a pair not in the table."""
    handler = TABLE.get((state.phase, _key(event)))
    if handler is None:
        raise UnexpectedEvent(f"{event} in phase {state.phase.name}")
    return handler(state, event)


def _key(event: Event) -> type[Event] | Timer:
    return event.timer if isinstance(event, TimerFired) else type(event)


# Launching ----------------------------------------------------------------------------------------


def _launch(state: State, event: Event) -> Decision:
    attempt = state.history.attempt + 1
    fresh = State(state.policy, Phase.STARTING, replace(state.history, attempt=attempt))
    return fresh, (Launch(attempt),)


def _spawned(state: State, event: Event) -> Decision:
    running = replace(state, phase=Phase.RUNNING)
    return (running, ()) if state.stop is None else _begin_stop(running)


def _spawn_failed(state: State, event: Event) -> Decision:
    assert isinstance(event, SpawnFailed)
    return replace(state, phase=Phase.DONE), (
        EndAttempt(Cause.CANNOT_RUN, event.reason),
        Finish(RunState.FAILED, event.exit_code, event.reason),
    )


# Stopping -----------------------------------------------------------------------------------------


def _stop_asked(state: State, event: Event) -> Decision:
    assert isinstance(event, StopAsked)
    return _begin_stop(replace(state, stop=event))


def _begin_stop(state: State) -> Decision:
    assert state.stop is not None
    if state.stop.kind is StopKind.USER:
        if not state.in_fit:
            return _pass_on_interrupt(state)
        waiting = replace(state, phase=Phase.INTERRUPTING)
        return waiting, (RequestStage(hold=True), SetTimer(Timer.STAGE, state.policy.stage_wait))
    if not state.in_fit and not state.fits_done:
        return _terminate(state, state.grace)  # nothing is trained yet: nothing to save
    draining = replace(state, phase=Phase.DRAINING)
    return draining, (RaiseDrain(state.grace), SetTimer(Timer.DRAIN, state.grace))


def _pass_on_interrupt(state: State, event: Event | None = None) -> Decision:
    return _ask_to_end(state, "INT", state.grace)


def _terminate(state: State, seconds: float) -> Decision:
    return _ask_to_end(state, "TERM", seconds)


def _ask_to_end(state: State, signal: str, seconds: float) -> Decision:
    return replace(state, phase=Phase.STOPPING, sent=signal), (
        ClearTimer(Timer.STAGE),
        ClearTimer(Timer.DRAIN),
        Signal(signal, Target.TRAINER),
        SetTimer(Timer.GRACE, seconds),
    )


def _drain_over(state: State, event: Event) -> Decision:
    return _terminate(state, state.policy.kill_after)


def _kill(state: State, event: Event) -> Decision:
    return replace(state, phase=Phase.KILLING, sent="KILL"), (
        ClearTimer(Timer.GRACE),
        Signal("KILL", Target.GROUP),
        SetTimer(Timer.KILL, state.policy.give_up_killing),
    )


def _hurry_interrupt(state: State, event: Event) -> Decision:
    return _terminate(_heard(state, event), state.policy.kill_after)


def _hurry_drain(state: State, event: Event) -> Decision:
    """A user's second word ends the drain; anything else may only bring its deadline nearer."""
    assert isinstance(event, StopAsked)
    if _user_again(state, event):
        return _terminate(state, state.policy.kill_after)
    grace = state.grace if event.grace is None else min(event.grace, state.grace)
    heard = _heard(state, event)
    assert heard.stop is not None
    heard = replace(heard, stop=replace(heard.stop, grace=grace))
    return heard, (RaiseDrain(grace), SetTimer(Timer.DRAIN, grace)) if grace < state.grace else ()


def _hurry_stopping(state: State, event: Event) -> Decision:
    """Only a user hurries, from SIGINT to SIGTERM to SIGKILL; systemd and Slurm repeat theirs as a matter of course."""
    if not _user_again(state, event):
        return _remember_stop(state, event)
    return _terminate(state, state.policy.kill_after) if state.sent == "INT" else _kill(state, event)


def _remember_stop(state: State, event: Event) -> Decision:
    return _heard(state, event), ()


def _user_again(state: State, event: Event) -> bool:
    assert isinstance(event, StopAsked)
    return event.kind.by_user and state.stop is not None and state.stop.kind.by_user


def _heard(state: State, event: Event) -> State:
    """`state` with the stop that counts: a user's word outweighs a preemption, else the first."""
    assert isinstance(event, StopAsked)
    if state.stop is None or (event.kind.by_user and not state.stop.kind.by_user):
        return replace(state, stop=event)
    return state


def _stop_idle(state: State, event: Event) -> Decision:
    """No child is alive: the verdict comes at once."""
    assert isinstance(event, StopAsked)
    verdict = judgement.stopped(event.kind, event.words).finish
    assert verdict is not None
    return replace(state, phase=Phase.DONE, stop=event), (ClearTimer(Timer.BACKOFF), verdict)


def _stalled(state: State, event: Event) -> Decision:
    assert isinstance(event, Stalled)
    return _kill(replace(state, stalled=event.detail), event)


def _advised(state: State, event: Event) -> Decision:
    return state, (RequestStage(),) if state.in_fit else ()


# News of the child --------------------------------------------------------------------------------


def _released(state: State, event: Event) -> Decision:
    return replace(state, in_fit=False), ()


def _fit_began(state: State, event: Event) -> Decision:
    return replace(state, in_fit=True), ()


def _fit_ended(state: State, event: Event) -> Decision:
    return replace(state, in_fit=False, fits_done=state.fits_done + 1), ()


def _fit_ended_interrupting(state: State, event: Event) -> Decision:
    """The fit's end staged its final state: what INTERRUPTING waits for."""
    return _pass_on_interrupt(_fit_ended(state, event)[0])


def _refused(state: State, event: Event) -> Decision:
    assert isinstance(event, Refused)
    return replace(state, refused=event.reason), ()


def _left(state: State, event: Event) -> Decision:
    assert isinstance(event, Left)
    return replace(state, left=event.reason), ()


def _leaving(state: State, event: Event) -> Decision:
    """It was not we who asked; its state is safe, so it gets the time of a drain and no more."""
    draining = replace(_left(state, event)[0], phase=Phase.DRAINING)
    return draining, (SetTimer(Timer.DRAIN, state.grace),)


def _nothing(state: State, event: Event) -> Decision:
    return state, ()


# The end of an attempt ----------------------------------------------------------------------------


def _settle(state: State, event: Event) -> Decision:
    timers = tuple(ClearTimer(t) for t in (Timer.STAGE, Timer.DRAIN, Timer.GRACE, Timer.KILL))
    wait = SetTimer(Timer.SETTLE, state.policy.settle_wait)
    return replace(state, phase=Phase.SETTLING), (*timers, wait, Settle())


def _store_hangs(state: State, event: Event) -> Decision:
    detail = f"the store did not take the last stage within {state.policy.settle_wait:.0f} s"
    return replace(state, phase=Phase.DONE), (
        EndAttempt(Cause.STORE_HANGS, detail),
        Finish(RunState.GAVE_UP, judgement.EXIT_GAVE_UP, detail),
    )


def _settled(state: State, event: Event) -> Decision:
    assert isinstance(event, Settled)
    seen = Circumstances(
        stop=state.stop.kind if state.stop else None,
        stop_words=state.stop.words if state.stop else "",
        signalled=bool(state.sent),
        left=state.left,
        refused=state.refused,
        stalled=state.stalled,
    )
    verdict = judgement.judge(event.evidence, seen, state.history, state.policy)
    history = state.history.after(event.evidence, verdict)
    end = (ClearTimer(Timer.SETTLE), EndAttempt(verdict.cause, verdict.detail))
    if verdict.finish is not None:
        return replace(state, phase=Phase.DONE, history=history), (*end, verdict.finish)
    return replace(state, phase=Phase.WAITING, history=history), (*end, Relaunch(history.fruitless, verdict.back_to))


# The table ----------------------------------------------------------------------------------------

ALIVE = (Phase.RUNNING, Phase.INTERRUPTING, Phase.DRAINING, Phase.STOPPING, Phase.KILLING)
NEWS: dict[type[Event], Handler] = {
    Claimed: _nothing,
    Released: _released,
    FitBegan: _fit_began,
    FitEnded: _fit_ended,
    Staged: _nothing,
    Refused: _refused,
    Left: _left,
}

TABLE: dict[tuple[Phase, type[Event] | Timer], Handler] = {
    (Phase.IDLE, Start): _launch,
    (Phase.IDLE, StopAsked): _stop_idle,
    (Phase.STARTING, Spawned): _spawned,
    (Phase.STARTING, SpawnFailed): _spawn_failed,
    (Phase.STARTING, StopAsked): _remember_stop,
    **{(phase, news): handler for phase in (*ALIVE, Phase.SETTLING) for news, handler in NEWS.items()},
    **{(phase, ChildExited): _settle for phase in ALIVE},
    **{(phase, Stalled): _nothing for phase in (*ALIVE, Phase.SETTLING)},
    **{(phase, Advised): _nothing for phase in Phase},
    (Phase.RUNNING, StopAsked): _stop_asked,
    (Phase.RUNNING, Stalled): _stalled,
    (Phase.RUNNING, Advised): _advised,
    (Phase.RUNNING, Left): _leaving,
    (Phase.INTERRUPTING, Staged): _pass_on_interrupt,
    (Phase.INTERRUPTING, FitEnded): _fit_ended_interrupting,
    (Phase.INTERRUPTING, Timer.STAGE): _pass_on_interrupt,
    (Phase.INTERRUPTING, StopAsked): _hurry_interrupt,
    (Phase.DRAINING, Timer.DRAIN): _drain_over,
    (Phase.DRAINING, StopAsked): _hurry_drain,
    (Phase.STOPPING, Timer.GRACE): _kill,
    (Phase.STOPPING, StopAsked): _hurry_stopping,
    (Phase.KILLING, Timer.KILL): _settle,
    (Phase.KILLING, StopAsked): _remember_stop,
    (Phase.SETTLING, Settled): _settled,
    (Phase.SETTLING, Timer.SETTLE): _store_hangs,
    (Phase.SETTLING, ChildExited): _nothing,  # it outlived KILLING and died in the sweep
    (Phase.SETTLING, StopAsked): _remember_stop,
    (Phase.WAITING, Timer.BACKOFF): _launch,
    (Phase.WAITING, StopAsked): _stop_idle,
    **{(Phase.DONE, event): _nothing for event in (StopAsked, ChildExited, Settled, Stalled, *NEWS, *Timer)},
}
