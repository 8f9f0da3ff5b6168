"""A run as `decide` sees it, in a small world in which only what is physically possible happens."""

from __future__ import annotations

import builtins
from collections.abc import Callable
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
    Advised,
    ChildExited,
    Claimed,
    Event,
    Evidence,
    Failure,
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
STALL = Stalled("no sign of life for 60 s in training")
LEAVES = Left("drained")


ALWAYS, NEVER = 77, 78  # exit codes, where a policy says so
OLDER = 3  # number of the checkpoint that could be gone back to


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
        went_back: an older checkpoint has been gone back to, and no later step was reached since.
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
    went_back: bool = False
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
                went_back = self.went_back and not self.state.history.progressed(event.evidence)
                return replace(self, settling=False, alive=alive, in_fit=False, went_back=went_back)
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
                return self._relaunch(action)
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

    def _relaunch(self, action: Relaunch) -> World:
        if self.stop_asked:
            raise Impossible("a relaunch after a stop was asked for")
        if action.back_to and self.went_back:
            raise Impossible("gone back twice with no progress in between")
        went_back = self.went_back or bool(action.back_to)
        return replace(self, timers=self.timers | {Timer.BACKOFF}, went_back=went_back)

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

    def possible(self, evidences: Evidences | None = None) -> list[Event]:
        """Every event that can happen here and now, one of each kind that matters."""
        events: list[Event] = [CTRL_C, STOP_COMMAND, SIGTERM, NOTICE, Advised()]
        events += [TimerFired(timer) for timer in sorted(self.timers, key=str)]
        if self.state.phase is Phase.IDLE:
            events.append(Start())
        if self.spawning:
            events += [Spawned(), SpawnFailed(127, "it is gone")]
        if self.alive:
            events += [*self._news(), ChildExited()]
        if self.settling:
            events += [Claimed(), Released(), LEAVES]  # what the dead had said before
            events += [Settled(evidence) for evidence in (evidences or few)(self)]
        return events

    def _news(self) -> list[Event]:
        if self.in_fit:
            return [FitEnded(1), Staged(5), Released(), LEAVES, STALL]
        return [Claimed(), FitBegan(1), Released(), Refused("another model")]


Evidences = Callable[[World], list[Evidence]]


def few(world: World) -> list[Evidence]:
    """Kinds of ends, as many as the phases need: verdicts, and other attempts of each sort."""
    plain = [
        exited(0, orderly=True),
        exited(0),
        exited(1, exception="ValueError", keras=True),
        killed(9),
        killed(15),
        killed(9, checkpoint_step=10 * world.state.history.attempt),
    ]
    found = [_here(world, evidence) for evidence in plain]
    return [*found, Evidence(survivors=(4711,))] if world.alive else found


def many(world: World) -> list[Evidence]:
    """Kinds of ends that the judgement tells apart, with progress and without."""
    attempt = world.state.history.attempt
    poison = {"resumed_seq": 7, "older_seq": OLDER}
    plain = [
        *few(world),
        exited(1, exception="ImportError"),
        exited(1, exception="ValueError", step=10 * attempt + 5),  # never the same step
        exited(1, exception="FileExistsError", keras=True),
        exited(1, exception="ConnectionError"),
        exited(1, exception="MemoryError"),
        exited(ALWAYS),
        exited(NEVER),
        exited(0, fit_open=True),
        killed(9, oom="its cgroup's limit was reached", **poison),
        killed(9, **poison),
        killed(11, **poison),
        killed(11, checkpoint_step=10 * attempt, **poison),
        killed(11, checkpoint_known=False, **poison),
    ]
    return [_here(world, evidence) for evidence in plain]


def _here(world: World, evidence: Evidence) -> Evidence:
    """`evidence` with what it must be in this world, where it does not say otherwise."""
    mark = world.state.history.mark
    progress = evidence.checkpoint_step is not None
    return replace(
        evidence,
        fit_open=evidence.fit_open or world.in_fit,
        stepped=world.in_fit or progress,
        checkpoint_step=evidence.checkpoint_step if progress else mark,
        step=evidence.step or evidence.checkpoint_step or mark or 0,
    )


def failure(name: str, message: str = "", where: str = "train.py:12 in load", errno: int = 0) -> Failure:
    """An exception as a child tells of it; one of Python's own is an instance of all that it is in truth."""
    kind = getattr(builtins, name, Exception)
    return Failure(name, frozenset(each.__name__ for each in kind.__mro__[:-1]) - {name}, message, where, errno)


def exited(code: int, *, exception: str = "", **about: object) -> Evidence:
    """A child that exited; with an exception of that name, if there is one."""
    if exception:
        about["failure"] = failure(exception)
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
