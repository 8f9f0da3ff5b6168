"""A run as `decide` sees it, in a small world in which only what is physically possible happens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ksupervise.core.actions import (
    Action,
    ClearTimer,
    EndAttempt,
    Finish,
    Launch,
    RaiseDrain,
    Relaunch,
    RequestStage,
    SetTimer,
    Settle,
    Signal,
)
from ksupervise.core.decide import Phase, State, decide
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
    Stalled,
    Start,
    StopAsked,
    StopKind,
    Timer,
    TimerFired,
)
from ksupervise.core.policy import Policy

CTRL_C = StopAsked(StopKind.USER)
STOP_COMMAND = StopAsked(StopKind.COMMAND)
SIGTERM = StopAsked(StopKind.TERM)
NOTICE = StopAsked(StopKind.NOTICE, grace=7.0)
STALL = Stalled(60.0)
LEAVES = Left("drained")


class Impossible(AssertionError):
    """`decide` asked for what must never be done."""


@dataclass(frozen=True)
class World:
    """What is true, beside what `decide` believes (`state`).

    Attributes:
        alive: a process of the child's exists.
        in_fit: it is inside a fit.
        spawning: a launch was asked for and not answered yet.
        settling: the evidence was asked for and is not in yet.
        timers: those that will fire.
        stop_asked: somebody asked the run to stop.
        user_asked: a user did.
        verdicts: all that were given.
    """

    state: State
    alive: bool = False
    in_fit: bool = False
    spawning: bool = False
    settling: bool = False
    timers: frozenset[Timer] = frozenset()
    stop_asked: bool = False
    user_asked: bool = False
    verdicts: tuple[Finish, ...] = ()

    def after(self, event: Event) -> tuple[World, tuple[Action, ...]]:
        """The world once `event` happened and what `decide` wants is done. Raises UnexpectedEvent, Impossible."""
        state, actions = decide(self.state, event)
        world = replace(self._with(event), state=state)
        for action in actions:
            world = world._perform(action)
        return world, actions

    def _with(self, event: Event) -> World:
        match event:
            case Spawned():
                return replace(self, spawning=False, alive=True)
            case SpawnFailed():
                return replace(self, spawning=False)
            case FitBegan():
                return replace(self, in_fit=True)
            case FitEnded() | Released():
                return replace(self, in_fit=False)
            case ChildExited():
                return replace(self, alive=False)
            case StopAsked():
                return replace(self, stop_asked=True, user_asked=self.user_asked or event.kind.by_user)
            case TimerFired():
                return replace(self, timers=self.timers - {event.timer})
            case Settled():
                alive = bool(event.evidence.survivors)
                return replace(self, settling=False, alive=alive, in_fit=False)
            case _:
                return self

    def _perform(self, action: Action) -> World:
        if self.verdicts:
            raise Impossible(f"{action} after the verdict")
        match action:
            case SetTimer():
                return replace(self, timers=self.timers | {action.timer})
            case ClearTimer():
                return replace(self, timers=self.timers - {action.timer})
            case Launch():
                return self._launch()
            case Relaunch():
                if self.stop_asked:
                    raise Impossible("a relaunch after a stop was asked for")
                return replace(self, timers=self.timers | {Timer.BACKOFF})
            case Settle():
                return replace(self, settling=True)
            case Finish():
                return self._finish(action)
            case RequestStage() | RaiseDrain() | Signal():
                if not self.alive:
                    raise Impossible(f"{action} to a child that is not there")
                return self
            case EndAttempt():
                return self
            case _:
                raise Impossible(f"an unknown action: {action}")

    def _launch(self) -> World:
        if self.alive or self.spawning or self.settling:
            raise Impossible("a launch beside a living child")
        if self.stop_asked:
            raise Impossible("a launch after a stop was asked for")
        return replace(self, spawning=True)

    def _finish(self, verdict: Finish) -> World:
        if self.user_asked and verdict.exit_code == 75:
            raise Impossible("a user's stop became a preemption")
        return replace(self, settling=False, verdicts=(*self.verdicts, verdict))

    def possible(self) -> list[Event]:
        """Every event that can happen here and now, one of each kind that matters."""
        events: list[Event] = [CTRL_C, STOP_COMMAND, SIGTERM, NOTICE]
        events += [TimerFired(timer) for timer in sorted(self.timers, key=str)]
        if self.state.phase is Phase.IDLE:
            events.append(Start())
        if self.spawning:
            events += [Spawned(), SpawnFailed(127, "it is gone")]
        if self.alive:
            events += [*self._news(), ChildExited()]
        if self.settling:
            events += [Claimed(), Released(), LEAVES]  # what the dead had said before
            events += [Settled(evidence) for evidence in self._evidences()]
        return events

    def _news(self) -> list[Event]:
        if self.in_fit:
            return [FitEnded(1), Staged(5), Released(), LEAVES, STALL]
        return [Claimed(), FitBegan(1), Released(), Refused("another model")]

    def _evidences(self) -> list[Evidence]:
        about = {"fit_open": self.in_fit, "stepped": self.in_fit, "checkpoint_step": self.state.history.mark}
        newer = 10 * self.state.history.attempt
        plain = [
            exited(0, orderly=True),
            exited(0),
            exited(1, exception="ValueError", keras=True),
            exited(1, exception="ImportError"),
            killed(9),
            killed(15),
        ]
        found = [replace(evidence, **about) for evidence in plain]  # type: ignore[arg-type]
        found.append(killed(9, stepped=True, fit_open=self.in_fit, checkpoint_step=newer))
        if self.alive:
            found.append(Evidence(survivors=(4711,)))
        return found


def exited(code: int, **about: object) -> Evidence:
    """A child that exited."""
    return Evidence(exit_code=code, **about)  # type: ignore[arg-type]


def killed(signal: int, **about: object) -> Evidence:
    """A child that a signal killed."""
    return Evidence(signal=signal, **about)  # type: ignore[arg-type]


@dataclass
class Run:
    """A world that events happen to one after the other."""

    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        self.world = World(State(policy=self.policy))

    @property
    def phase(self) -> Phase:
        """Where the run stands."""
        return self.world.state.phase

    @property
    def outcome(self) -> tuple[str, int] | None:
        """State and exit code of the verdict, None before one."""
        assert len(self.world.verdicts) <= 1
        return next(((verdict.state.value, verdict.exit_code) for verdict in self.world.verdicts), None)

    def happens(self, *events: Event) -> tuple[Action, ...]:
        """What is to be done after the last of `events`, and before the next thing happens."""
        actions: tuple[Action, ...] = ()
        for event in events:
            self.world, actions = self.world.after(event)
        return actions

    def launched(self) -> Run:
        """Its first or next attempt runs, and has done nothing yet."""
        if self.phase is Phase.IDLE:
            self.happens(Start())
        elif self.phase is Phase.WAITING:
            self.happens(TimerFired(Timer.BACKOFF))
        self.happens(Spawned())
        return self

    def in_fit(self) -> Run:
        """An attempt is launched and its first fit has begun."""
        self.launched().happens(Claimed(), FitBegan(1))
        return self

    def after_fit(self) -> Run:
        """An attempt's first fit is complete, the script goes on."""
        self.in_fit().happens(FitEnded(1))
        return self

    def dies(self, evidence: Evidence) -> tuple[Action, ...]:
        """The child is gone, and this is known of its end."""
        return self.happens(ChildExited(), Settled(evidence))
