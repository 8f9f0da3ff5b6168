"""The loop: wait for an event → `decide` → perform the actions. It obeys, it never thinks."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from ksupervise.core.decide import Phase, State, decide
from ksupervise.core.events import (
    ChildExited,
    Event,
    Settled,
    Spawned,
    SpawnFailed,
    Start,
    StopAsked,
    StopKind,
    Timer,
    TimerFired,
)
from ksupervise.core.policy import Policy
from ksupervise.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND
from ksupervise.parent import outlet, process
from ksupervise.parent.backoff import delay
from ksupervise.parent.commits import Shelf
from ksupervise.parent.console import Console
from ksupervise.parent.journal import read
from ksupervise.parent.launch import Attempt, child_environment, launch
from ksupervise.parent.link import Connection, Listener
from ksupervise.parent.owned import OwnedRun, open_journal
from ksupervise.parent.pace import Pacer
from ksupervise.parent.persist import Persister
from ksupervise.parent.replicate.fleet import LAST_COPY, Fleet
from ksupervise.parent.room import retention_of
from ksupervise.parent.signals import STOPS, SignalPipe
from ksupervise.parent.stage import Stage
from ksupervise.parent.standby import Standby
from ksupervise.parent.trainer import Desk, Dialogue
from ksupervise.parent.voice import Voice
from ksupervise.parent.watch import gpu, stacks
from ksupervise.parent.watch.diagnose import Held, evidence, held
from ksupervise.parent.watch.lookout import Lookout
from ksupervise.settings import Settings
from ksupervise.store import takes_direct_writes
from ksupervise.wire import AUTOGRAPH, Control

_TICK = 1.0  # seconds between looks at what nobody announces: a stall, the deadline
_GPU_WAIT = 50.0  # seconds that the dead may take to give the GPU's memory back
_SWEEP = 10.0  # seconds that a killed group may take to go
# Causes of which the output needs no second look.
_HARMLESS = (Cause.COMPLETED, Cause.NAN_STOP, Cause.PREEMPTED, Cause.DEADLINE, Cause.INTERRUPTED)
_OUTPUT_WAIT = 1.0  # seconds that the last output of a dead child may take to be read


class Supervisor:
    """One parent over one run, from launch to verdict."""

    def __init__(
        self, owned: OwnedRun, command: Sequence[str], settings: Settings, console: Console, voice: Voice
    ) -> None:
        self._owned = owned
        self._command = command
        self._settings = settings
        self._console = console
        self._voice = voice
        policy = Policy(
            max_failures=settings.max_failures,
            grace=settings.grace,
            never_retry=settings.never_retry,
            always_retry=settings.always_retry,
        )
        self._state = State(policy=policy, history=owned.history)
        self._journal = open_journal(owned.layout)
        self._events: deque[Event] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: dict[Timer, float] = {}
        self._selector = selectors.DefaultSelector()
        self._attempt: Attempt | None = None
        self._connections: list[Connection] = []
        self._verdict: Finish | None = None
        self._told_plain = False
        self._held: dict[int, Callable[[], None]] = {}  # outputs not read while the console is full
        self._open()

    def _open(self) -> None:
        owned = self._owned
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self._signals = SignalPipe()
        self._listener = Listener(Path(owned.layout.tmp))
        owned.lock.announce(self._listener.address)
        self._stage = Stage(Path(owned.layout.tmp))
        self._persister = Persister(self._call_soon)
        settings = self._settings
        self._pacer = Pacer(settings.overhead, settings.every, read(Path(owned.layout.journal)))
        self._fleet = Fleet(
            owned.replicas,
            watch=self._watch,
            unwatch=self._unwatch,
            record=self._record,
            voice=self._voice,
            superseded=owned.lost.append,
        )
        shelf = Shelf(
            holder=owned.holder,
            retention=retention_of(settings),
            store=owned.store,
            stage=self._stage,
            persister=self._persister,
            pacer=self._pacer,
            journal=self._journal,
            voice=self._voice,
            when_committed=self._fleet.committed,
        )
        self._desk = Desk(
            run_id=owned.record.id,
            run_dir=str(owned.layout.root),
            grace=settings.grace,
            shelf=shelf,
            lock_fd=owned.lock.fileno(),
            post=self._events.append,
        )
        self._environment = child_environment(
            os.environ,
            name=owned.record.name,
            run_dir=str(owned.layout.root),
            boot=owned.layout.boot_zip,
            address=self._listener.address,
            seed=self._settings.seed,
            standby=self._settings.standby,
        )
        owned.unwritten = self._journal.unwritten
        self._lookout = Lookout(
            settings,
            owned.store,
            self._environment,
            post=self._events.append,
            call_soon=self._call_soon,
            record=self._record,
            voice=self._voice,
        )
        self._standby = self._keep_warm() if settings.standby else None
        self._tell_of_fallbacks()
        self._gpu_baseline: int | None = None
        if gpu.available():
            self._persister.submit(lambda: gpu.used(environment=self._environment), self._note_gpu)
        self._watch(self._wake, self._drain_wakeups)
        self._watch(self._signals.fileno(), self._on_signals)
        self._watch(self._listener.sock.fileno(), self._on_connection)
        self._console.when_room = lambda: self._call_soon(self._read_on)

    def _keep_warm(self) -> Standby:
        return Standby(
            self._command,
            self._environment,
            self._owned.layout,
            self._owned.lock.fileno(),
            self._owned.record.script,
            usage=self._lookout.oom.usage,
            watch=self._watch,
            unwatch=self._unwatch,
            record=self._record,
            voice=self._voice,
        )

    def _spared(self) -> tuple[int, ...]:
        """Processes of ours that are no part of the attempt."""
        return (*self._fleet.pids, *(() if self._standby is None else self._standby.pids))

    def _tell_of_fallbacks(self) -> None:
        """What this system refuses, and what is done instead."""
        direct = takes_direct_writes(self._owned.layout.tmp)
        if not direct:
            self._voice.say("the store's file system takes no direct writes: checkpoints go through the page cache")
        if self._stage.on_disk:
            self._voice.say(f"{self._stage.on_disk}: copies of the state are kept in files instead of memory")
        self._record(
            "supervised",
            memory=not self._stage.on_disk,
            direct=direct,
            every=self._settings.every,
            overhead=self._settings.overhead,
            stall=asdict(self._settings.stall),
            retention=asdict(self._desk.shelf.retention),
        )

    # The loop

    def run(self) -> Finish:
        """Supervise until the verdict, and return it."""
        process.become_subreaper()
        try:
            self._post(Start())
            while self._state.phase is not Phase.DONE:
                self._turn()
            assert self._verdict is not None
            completed = self._verdict.state is RunState.COMPLETED
            self._fleet.finish(LAST_COPY if completed else self._settings.grace, self._voice.say, self._signals)
            for place in self._fleet.incomplete:
                self._voice.say(f"replica {place}: the newest checkpoint is not there, only here", urgent=True)
            return self._verdict
        finally:
            self._close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            key.data()
        while self._calls:
            self._calls.popleft()()
        self._handle_events()  # before the clock is asked: a death clears the timers that waited for it
        self._look_around()
        self._handle_events()
        now = time.monotonic()
        while (timer := min(self._timers, key=self._timers.__getitem__, default=None)) and self._timers[timer] <= now:
            del self._timers[timer]
            self._post(TimerFired(timer))

    def _patience(self) -> float:
        due = min(self._timers.values(), default=float("inf")) - time.monotonic()
        if self._state.stop is None:
            due = min(due, self._lookout.due())
        return max(0.0, min(_TICK, due))

    def _post(self, event: Event) -> None:
        self._events.append(event)
        self._handle_events()

    def _handle_events(self) -> None:
        while self._events:
            self._state, actions = decide(self._state, self._events.popleft())
            for action in actions:
                self._perform(action)

    def _perform(self, action: Action) -> None:
        getattr(self, f"_do_{type(action).__name__.lower()}")(action)

    def _call_soon(self, call: Callable[[], None]) -> None:
        """Called on other threads: `call` runs on the loop's."""
        self._calls.append(call)
        with contextlib.suppress(OSError):  # a full pipe wakes the loop just as well, a closed one has no loop
            os.write(self._waker, b".")

    def _record(self, event: str, **fields: Any) -> None:
        self._voice.record(self._journal.write(event, **fields))

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 65536)

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    # What happens

    def _on_signals(self) -> None:
        for number in self._signals.read():
            if number == signal.SIGWINCH and self._attempt is not None:
                self._attempt.child.resize()
            if number == signal.SIGTSTP:
                self._pause()
            kind = STOPS.get(signal.Signals(number))
            if kind is not None:
                self._record("stop_asked", kind=kind.name.lower())
                self._events.append(StopAsked(kind))
        self._on_death()  # SIGCHLD, where there is no pidfd
        if self._attempt is not None:
            process.reap_orphans(spare={self._attempt.child.pid, *self._spared()})

    def _pause(self) -> None:
        """Ctrl-Z: the child, in a session of its own, does not get it from the terminal. Its time stands still too."""
        child = None if self._attempt is None else self._attempt.child
        if child is not None:
            child.send(signal.SIGSTOP, group=True)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGSTOP)  # here we are continued
        if child is not None:
            child.send(signal.SIGCONT, group=True)
        paused = time.monotonic() - began
        self._timers = {timer: due + paused for timer, due in self._timers.items()}

    def _on_connection(self) -> None:
        while (connection := self._listener.accept()) is not None:
            connection.attempt = self._state.history.attempt
            self._connections.append(connection)
            self._watch(connection.sock.fileno(), lambda peer=connection: self._on_message(peer))  # type: ignore[misc]

    def _on_message(self, connection: Connection) -> None:
        if self._attempt is not None and connection.attempt == self._attempt.number:
            self._attempt.dialogue.receive(connection)
        elif any(message.get("op") == "stop" for message in connection.receive()):
            connection.send({"op": "stopping"})
            self._events.append(StopAsked(StopKind.COMMAND))
        if not connection.open:
            self._hang_up(connection)

    def _hang_up(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._unwatch(connection.sock.fileno())
            connection.close()

    def _on_output(self, attempt: Attempt, fd: int, stream: int) -> None:
        if self._console.full and self._state.phase is not Phase.SETTLING:
            self._held[fd] = self._selector.get_key(fd).data
            self._unwatch(fd)
            return
        data = outlet.read(fd)
        if data:
            self._console.write(stream, data)
            attempt.log.write(data)
        else:
            self._unwatch(fd)
            attempt.open_outputs.discard(fd)

    def _read_on(self) -> None:
        """The console has room again, or is blocked and takes no part any more."""
        while self._held:
            self._watch(*self._held.popitem())

    def _on_death(self) -> None:
        attempt = self._attempt
        if attempt is not None and attempt.child.pidfd is not None and attempt.child.gone():
            self._unwatch(attempt.child.pidfd)
            os.close(attempt.child.pidfd)
            attempt.child.pidfd = None
            if not self._began_anew(attempt):
                self._events.append(ChildExited())
        elif attempt is not None and not hasattr(os, "pidfd_open") and not attempt.ended and attempt.child.gone():
            attempt.ended = True
            self._events.append(ChildExited())

    def _began_anew(self, attempt: Attempt) -> bool:
        """A warm interpreter was of no use after all, and said so before it trained: the attempt begins in a cold one.

        What the script did until then it does again, as after any death.
        """
        if attempt.warm and not attempt.facts.useless:
            self._read_last_messages()
        if not attempt.warm or not attempt.facts.useless or self._state.phase is not Phase.RUNNING:
            return False
        assert self._standby is not None
        attempt.survivors = attempt.child.sweep(_SWEEP, self._spared())
        if attempt.survivors or self._state.stop is not None:
            return False
        self._read_last_output(attempt)
        self._standby.useless(attempt.facts.useless)
        with contextlib.suppress(OSError):
            os.unlink(Path(self._owned.layout.attempt(attempt.number)) / "streams")  # who drew: nobody yet
        self._lookout.ended()
        try:
            self._begin(attempt.number)
        except OSError:
            return False  # it is judged as it ended
        begun, self._attempt = self._attempt, attempt
        self._forget_attempt()
        self._attempt = begun
        return True

    def _look_around(self) -> None:
        """What nobody announces."""
        if not self._console.full:
            self._read_on()
        attempt = self._attempt
        if attempt is not None:
            attempt.dialogue.commits.look()
        alive = attempt if self._state.phase is Phase.RUNNING else None
        self._lookout.look(alive, stopping=self._state.stop is not None)
        self._fleet.look()
        if self._owned.lost and self._state.stop is None:
            self._leave_to_another(self._owned.lost[0])
        if self._standby is not None:
            self._standby.look(alive, stopping=self._state.stop is not None)
            if self._standby.was_killed and attempt is not None:  # perhaps for want of memory: not of the attempt's
                self._standby.was_killed = False
                attempt.oom_mark = self._lookout.oom.read()

    def _leave_to_another(self, words: str) -> None:
        """Another machine has taken the run over, as `words` say."""
        self._voice.say(words, urgent=True)
        if self._owned.shared is not None:
            self._record("superseded", by=words)  # a replica's worker has said it itself
        self._events.append(StopAsked(StopKind.NOTICE, None, words.partition(". ")[0]))

    # What is done about it

    def _do_launch(self, action: Launch) -> None:
        try:
            self._begin(action.attempt)
        except OSError as error:
            self._record("launched", attempt=action.attempt, error=str(error))
            code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
            self._events.append(SpawnFailed(code, f"{self._command[0]} cannot be run: {error.strerror}"))
            return
        self._events.append(Spawned())

    def _begin(self, number: int) -> None:
        """Launch attempt `number`. Raises OSError when the command cannot be executed."""
        owned = self._owned
        attempt = launch(
            number,
            self._command,
            self._environment,
            owned.layout,
            owned.lock.fileno(),
            lambda number, control, live, outputs: Dialogue(self._desk, number, control, live, outputs),
            without_disk=self._stage.newest() is not None,  # what is in memory must not be lost for a log
            warm=None if self._standby is None else self._standby.take(number),
        )
        self._attempt = attempt
        if attempt.unwritten:
            self._voice.say(f"no log is kept of attempt {number}: {attempt.unwritten}", urgent=True)
        self._pacer.tell(attempt.control)
        self._lookout.launched(attempt)
        told = {"warm": True} if attempt.warm else {}
        self._record("launched", attempt=number, pid=attempt.child.pid, oom=attempt.oom_mark, **told)
        if attempt.child.pidfd is not None:
            self._watch(attempt.child.pidfd, self._on_death)
        for fd, way in attempt.child.outlets.items():
            self._watch(fd, lambda a=attempt, f=fd, s=way.stream: self._on_output(a, f, s))  # type: ignore[misc]

    def _do_requeststage(self, action: RequestStage) -> None:
        if self._attempt is not None:
            self._attempt.control["drain"] = Control.HOLD if action.hold else Control.STAGE

    def _do_raisedrain(self, action: RaiseDrain) -> None:
        if self._attempt is not None:
            deadline, earlier = time.monotonic() + action.grace, self._attempt.control["deadline"]
            # A second notice may bring the end nearer, never put it off.
            deadline = min(deadline, earlier) if earlier else deadline
            self._attempt.control["deadline"] = deadline
            self._attempt.control["drain"] = Control.LEAVE
            self._attempt.dialogue.commits.drain(deadline)

    def _do_signal(self, action: Signal) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        number = getattr(signal, f"SIG{action.name}")
        # Before there is a trainer Ctrl-C goes where a terminal would send it: a shell alone would not pass it on.
        group = action.target is Target.GROUP or (action.name == "INT" and not attempt.dialogue.trainer_pid)
        attempt.child.send(number, group=group, pid=attempt.dialogue.trainer_pid or None)
        if action.name != "KILL":  # a stopped process takes its signal only once it is continued
            attempt.child.send(signal.SIGCONT, pid=attempt.dialogue.trainer_pid or None)
        if attempt.control.integer("drain") == Control.HOLD:
            attempt.control["drain"] = 0  # it was for the signal that it waited

    def _do_settimer(self, action: SetTimer) -> None:
        due = time.monotonic() + action.seconds
        if action.timer is Timer.DRAIN:
            due = min(due, self._timers.get(Timer.DRAIN, due))
        self._timers[action.timer] = due

    def _do_cleartimer(self, action: ClearTimer) -> None:
        self._timers.pop(action.timer, None)

    def _do_settle(self, action: Settle) -> None:
        """Sweep; read what the dead still said; commit what they staged; then answer `Settled`."""
        attempt = self._attempt
        assert attempt is not None
        attempt.survivors = attempt.child.sweep(_SWEEP, self._spared())
        self._read_last_output(attempt)
        self._read_last_messages()
        attempt.dialogue.end_trainer()
        attempt.dialogue.commits.leftovers()
        self._lookout.ended()
        if self._gpu_baseline is not None:
            self._persister.submit(lambda: self._await_gpu(attempt), lambda waited, error: None)
        resumed = attempt.facts.resumed_seq
        self._persister.submit(
            lambda: held(self._owned.store, resumed), lambda found, error: self._settled(attempt, found)
        )

    def _settled(self, attempt: Attempt, found: Held | None) -> None:
        oom = self._lookout.oom.since(attempt.oom_mark, [attempt.child.pid, *attempt.facts.stacks])
        if oom is not None:
            self._record("oom", attempt=attempt.number, by=oom.by, sure=oom.sure, text=oom.text)
        self._events.append(Settled(evidence(attempt, found, oom.text if oom is not None and oom.sure else "")))

    def _note_gpu(self, used: int | None, error: Exception | None) -> None:
        self._gpu_baseline = used

    def _await_gpu(self, attempt: Attempt) -> None:
        """On the persister's thread: the next attempt needs the memory that the dead still hold."""
        gpu.await_release(
            [attempt.child.pid, *attempt.facts.stacks],
            _GPU_WAIT,
            baseline=self._gpu_baseline,
            environment=self._environment,
            say=lambda text: self._call_soon(lambda: self._voice.say(text, urgent=True)),
        )

    def _read_last_output(self, attempt: Attempt) -> None:
        self._read_on()
        end = time.monotonic() + _OUTPUT_WAIT
        while attempt.open_outputs and time.monotonic() < end:
            for key, _ in self._selector.select(0.05):
                if key.fd in attempt.open_outputs:
                    key.data()
        for fd in attempt.child.outlets:
            self._unwatch(fd)

    def _read_last_messages(self) -> None:
        """Everything that is waiting on a socket now was said before the death."""
        self._on_connection()
        for key in list(self._selector.get_map().values()):
            if key.fd not in (self._wake, self._signals.fileno(), self._listener.sock.fileno()):
                key.data()

    def _do_endattempt(self, action: EndAttempt) -> None:
        attempt = self._attempt
        number = self._state.history.attempt
        budget = self._state.history.as_json()
        fields: dict[str, Any] = {"cause": action.cause.name.lower(), "detail": action.detail, "budget": budget}
        if attempt is None:
            self._record("attempt_ended", attempt=number, **fields)
            return
        control = attempt.control
        trained = control.integer("executed") > 0
        self._record(
            "attempt_ended",
            attempt=number,
            **fields,
            exit=attempt.child.exit_code,
            signal=attempt.child.signal,
            first_step=control.integer("first_step") if trained else None,
            last_step=control.integer("step") if trained else None,
            executed=control.integer("executed"),
            output=None if action.cause in _HARMLESS else attempt.log.tail,
        )
        self._journal.sync()
        stacks.remove_if_empty(attempt.stacks)
        process.remove_temporary(attempt.facts.temporary, AUTOGRAPH)
        if action.cause is not Cause.USER_ERROR and self._state.stop is None:
            self._tell_if_plain(attempt)

    def _tell_if_plain(self, attempt: Attempt) -> None:
        if self._told_plain or attempt.facts.told or attempt.facts.claimant:
            return
        if self._owned.history.stepped or attempt.child.signal is not None:
            return  # it has been seen to train; or it was killed before it could be
        self._told_plain = True
        if attempt.facts.keras:
            note = "no call of model.fit was seen (a loop of the script's own?): nothing is checkpointed"
        elif attempt.facts.hooked:
            note = "no Keras was imported: supervised as a plain restarter, nothing is checkpointed"
        else:
            note = (
                "our hook did not arrive in the child (not Python, or an interpreter started with -I, -E or -S, or "
                "with another environment): supervised as a plain restarter, nothing is checkpointed"
            )
        self._voice.say(note)

    def _do_relaunch(self, action: Relaunch) -> None:
        attempt = self._attempt
        assert attempt is not None
        wait = delay(action.failures)
        if action.back_to:
            newest = max(self._owned.store.next_seq() - 1, attempt.dialogue.commits.submitted)
            self._record("went_back", attempt=attempt.number, to=action.back_to, newest=newest)
        line = self._owned.restart_line(wait, attempt.log_path, self._staged_step(), self._step_of(action.back_to))
        self._voice.say(line, urgent=True)
        self._record("relaunch", attempt=attempt.number + 1, delay=round(wait, 3))
        self._forget_attempt()
        self._timers[Timer.BACKOFF] = time.monotonic() + wait

    def _step_of(self, seq: int) -> int | None:
        """Step of checkpoint number `seq`, None for number 0."""
        found = (each.manifest for each in self._owned.store.checkpoints() if each.manifest.seq == seq)
        return next((manifest.position.step for manifest in found), None)

    def _staged_step(self) -> int | None:
        """Step of the newest state in memory: one that could not be committed is gone back to all the same."""
        newest = self._stage.newest()
        return newest[1]["position"]["step"] if newest is not None and newest[1].get("staged") else None

    def _do_finish(self, action: Finish) -> None:
        self._verdict = action
        self._record("verdict", state=action.state.value, exit=action.exit_code, detail=action.detail)
        self._journal.sync()

    def _forget_attempt(self) -> None:
        if self._attempt is not None:
            for connection in list(self._connections):
                self._hang_up(connection)  # whoever still speaks for that attempt has nobody to speak to
            for fd in (*self._attempt.child.outlets, self._attempt.child.pidfd):
                if fd is not None:
                    self._unwatch(fd)
            self._held.clear()
            self._attempt.close()
            self._attempt = None

    def _close(self) -> None:
        self._console.when_room = lambda: None
        self._lookout.close()
        self._fleet.close()
        if self._standby is not None:
            self._standby.discard("the run is over")
        if self._attempt is not None:
            self._attempt.child.sweep(_SWEEP)
        self._forget_attempt()
        self._persister.close(self._settings.grace)
        self._stage.close()
        self._listener.close()
        self._signals.close()
        self._journal.close()
        self._selector.close()
        os.close(self._wake)
        os.close(self._waker)
