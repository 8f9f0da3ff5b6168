"""Who hangs and who does not: real processes that speak through the control page, and a clock turned by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import ksupervise
from ksupervise.core.patience import Doing, Patience, Slowest, limit
from ksupervise.parent.stage import live_page
from ksupervise.parent.watch import watchdog, witness
from ksupervise.parent.watch.watchdog import Watchdog
from ksupervise.wire import PHASE_BETWEEN, PHASE_EVALUATE, PHASE_OUTSIDE, PHASE_STAGE, PHASE_TRAIN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the witness reads /proc")

PATIENCE = 30.0  # seconds that anything real may take on a loaded machine
QUICK = Patience(floor=10.0)
STEP = 2.0  # seconds of the turned clock between two looks

# Sets words of the page as it is told to, and hangs in several ways. argv: the page, where stacks go.
PROGRAM = """\
import faulthandler, os, pdb, signal, sys, threading, time
from ksupervise.wire import Control
control = Control(os.open(sys.argv[1], os.O_RDWR))
faulthandler.register(signal.SIGUSR1, open(sys.argv[2], "ab"))
def say(text):
    print(text, flush=True)
def hang():
    say("hangs")
    threading.Event().wait()
def spin():
    while True:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        say("spun")
def work():
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass
    say("done")
def fork():
    pid = os.fork()
    if not pid:
        signal.pause()
    say(str(pid))
def copy():
    with open(os.devnull, "wb", buffering=0) as stream:
        for _ in range(20):
            stream.write(bytes(10**6))
    say("done")
def debug():
    pdb.set_trace()
def train():
    say("ready")
    while True:
        word, _, value = sys.stdin.readline().strip().partition(" ")
        if value:
            control[word] = float(value)
            say("done")
        else:
            globals()[word]()
train()
"""


class Clock:
    """It goes only when it is turned."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def turn(self, seconds: float) -> None:
        """Let so many seconds have passed."""
        self._now += seconds


def await_state(pid: int, letter: str) -> None:
    """Wait until the process is in that state of proc(5)."""
    end = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != letter:
        assert time.monotonic() < end
        os.sched_yield()


class Child:
    """The program, its page, and who watches it.

    Attributes:
        notes: what the user was told.
        asked: how often its stacks were asked for.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self.notes: list[str] = []
        self.asked = 0
        self.dump = folder / "stacks.txt"
        self.control = live_page(folder / "live", create=True)
        script = folder / "train.py"
        script.write_text(PROGRAM)
        path = str(Path(ksupervise.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(script), str(folder / "live"), str(self.dump)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert self.hear() == "ready"

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        """Say something to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def rests(self) -> None:
        """Wait until it waits itself: what it said may have been heard before."""
        await_state(self.process.pid, "S")

    def set(self, **fields: float) -> None:
        """Have it write to the page."""
        for name, value in fields.items():
            self.tell(f"{name} {value!r}")
            assert self.hear() == "done"

    def beat(self) -> None:
        """A batch begins."""
        self.set(beat=self.clock())

    def enter(self, phase: int, **fields: float) -> None:
        """It does something else now."""
        self.set(phase=phase, phase_since=self.clock(), **fields)

    def trains(self) -> None:
        """It is in training, well warm, one second a step."""
        self.enter(PHASE_TRAIN, fit=1, warm=3, slowest_step=1.0)
        self.beat()

    def ask(self) -> bool:
        """Have its stacks written; does not wait, as the real one does not."""
        self.asked += 1
        self.process.send_signal(signal.SIGUSR1)
        return True

    def watched(self, patience: Patience = QUICK, ask: Callable[[], bool] | None = None) -> Watchdog:
        """By a new watchdog."""
        return Watchdog(
            patience,
            {},
            self.control,
            self.process.pid,
            self.dump,
            ask or self.ask,
            self.notes.append,
            {"PATH": ""},  # no nvidia-smi
        )

    def written(self) -> None:
        """Wait for its stacks."""
        end = time.monotonic() + PATIENCE
        while not (self.dump.exists() and self.dump.read_text().endswith("<module>\n")):
            assert time.monotonic() < end, "it never wrote its stacks"

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()
        self.control.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The watchdog's clock, and the witness': who does nothing does nothing in an hour, too."""
    clock = Clock()
    for module in (watchdog, witness):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def works(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness measures in true seconds, and few will do: of an hour that was turned nobody can have worked much."""
    monkeypatch.setattr(witness, "time", time)
    monkeypatch.setattr(watchdog, "_WINDOW", 0.0)


@pytest.fixture
def child(tmp_path: Path, clock: Clock) -> Iterator[Child]:
    """A program that waits to be told what to do."""
    started = Child(tmp_path, clock)
    yield started
    started.end()


def looked(
    dog: Watchdog, clock: Clock, seconds: float, *, keras: bool = True, step: float = STEP, trainer: int = 0
) -> str:
    """What is said within so many seconds, one look after the other."""
    for _ in range(round(seconds / step)):
        clock.turn(step)
        found = dog.look(trainer, keras)
        if found:
            return found
    return ""


def condemned(dog: Watchdog, child: Child, seconds: float) -> str:
    """The same, with time for it to write its stacks once it is asked."""
    asked = child.asked
    found = ""
    for _ in range(round(seconds / STEP)):
        found = found or looked(dog, child.clock, STEP)
        if child.asked > asked and not found:
            child.written()
            asked = child.asked
    return found


def line_of(text: str) -> int:
    """Its number in the program."""
    return PROGRAM.splitlines().index(text) + 1


# Those that hang ----------------------------------------------------------------------------------


def test_one_that_waits_for_ever_is_named_with_its_line_and_its_stacks(child: Child, clock: Clock) -> None:
    child.trains()
    child.tell("hang")
    assert child.hear() == "hangs"
    child.rests()
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    words = condemned(dog, child, 12.0)
    assert words.startswith("no sign of life for 1"), words
    assert " s in training (10 s are allowed: the shortest limit); idle; it stands at " in words
    assert words.endswith(
        f"it stands at train.py:{line_of('    threading.Event().wait()')} in hang; all stacks: {child.dump}"
    )
    assert child.notes == []


def test_one_that_was_stopped_is_named_without_its_stacks(child: Child, clock: Clock) -> None:
    """It cannot write them; it is not waited for long."""
    child.trains()
    child.process.send_signal(signal.SIGSTOP)
    await_state(child.process.pid, "T")
    words = looked(child.watched(), clock, 20.0)
    assert words.endswith("(10 s are allowed: the shortest limit); stopped by a signal (state T)"), words
    assert child.asked == 1


@pytest.mark.usefixtures("works")
def test_one_that_spins_is_given_longer_and_then_named(child: Child, clock: Clock) -> None:
    child.trains()
    child.tell("spin")
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    assert [child.hear() for _ in range(3)] == ["spun"] * 3
    assert looked(dog, clock, 1700.0, step=4.0) == ""
    assert child.asked == 0
    words = condemned(dog, child, 120.0)
    assert words.startswith("no sign of life for 18"), words
    assert "; busy: " in words
    assert " in spin; all stacks: " in words


@pytest.mark.usefixtures("works")
def test_what_the_user_gave_holds_for_one_that_spins_too(child: Child, clock: Clock) -> None:
    child.trains()
    child.tell("spin")
    dog = child.watched(Patience(fixed=20.0))
    assert looked(dog, clock, 12.0) == ""
    assert child.hear() == "spun"
    words = condemned(dog, child, 12.0)
    assert words.startswith("no sign of life for 2"), words
    assert "(20 s are allowed: --stall)" in words


def test_a_validation_without_an_end_is_named_however_regular_its_batches(child: Child, clock: Clock) -> None:
    child.trains()
    child.enter(PHASE_EVALUATE, slowest_test=1.0, slowest_validation=10.0)
    dog = child.watched()
    began, words = clock(), ""
    while not words and clock() < began + 700:
        child.beat()
        words = condemned(dog, child, 4.0)
    assert 600 < clock() - began < 620
    assert words.startswith("a validation has gone on for 61"), words
    assert "(600 s are allowed: 5 times the longest, 10 s)" in words


def test_a_batch_of_a_validation_that_never_ends_is_named(child: Child, clock: Clock) -> None:
    child.trains()
    child.enter(PHASE_EVALUATE, slowest_test=1.0, slowest_validation=10.0)
    words = condemned(child.watched(), child, 20.0)
    assert words.startswith("no sign of life for 1"), words
    assert "s in validation (10 s are allowed: the shortest limit)" in words


@pytest.mark.parametrize(
    ("phase", "fields", "seconds", "words"),
    [
        (PHASE_TRAIN, {}, 1800, "s in the first step, which is compiled (1800 s are allowed: nothing was seen yet"),
        (PHASE_STAGE, {}, 600, "s while the state was staged (600 s are allowed"),
        (PHASE_BETWEEN, {"slowest_between": 20.0}, 100, "s at an epoch's end (100 s are allowed: 5 times the slowest"),
        (PHASE_OUTSIDE, {"fit": 0}, 3600, "s before the first fit (3600 s are allowed: outside fit)"),
    ],
    ids=["first step", "staging", "between epochs", "starting"],
)
def test_each_doing_has_its_own_limit(
    child: Child, clock: Clock, phase: int, fields: dict[str, float], seconds: float, words: str
) -> None:
    child.enter(phase, **{"fit": 1, **fields})
    dog = child.watched()
    assert looked(dog, clock, seconds - 8, step=4.0) == ""
    assert words in condemned(dog, child, 20.0)


def test_work_before_the_last_sign_of_life_is_no_excuse(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    child.tell("work")
    assert child.hear() == "done"
    child.beat()
    assert condemned(dog, child, 16.0).startswith("no sign of life for 1")


def test_one_that_trains_is_watched_even_if_nobody_told_of_keras(child: Child, clock: Clock) -> None:
    child.trains()
    assert looked(child.watched(ask=lambda: False), clock, 20.0, keras=False)


# Those that do not --------------------------------------------------------------------------------


def test_an_epoch_may_last_longer_than_a_validation(child: Child, clock: Clock) -> None:
    child.trains()
    child.set(slowest_validation=10.0)
    dog = child.watched()
    for _ in range(90):
        child.beat()
        assert looked(dog, clock, 8.0) == ""


def test_work_since_the_last_sign_of_life_is_one_too(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    child.tell("work")
    assert child.hear() == "done"
    assert looked(dog, clock, 16.0) == ""
    assert child.asked == 0


def test_one_that_beats_is_left_alone(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    for _ in range(30):
        child.beat()
        assert looked(dog, clock, 8.0) == ""
    assert child.asked == 0


def test_one_that_beats_again_in_time_is_given_all_of_its_time_again(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    child.beat()
    assert looked(dog, clock, 8.0) == ""
    assert child.asked == 0
    assert condemned(dog, child, 6.0)


def test_silence_while_we_ourselves_stood_still_is_not_the_childs(child: Child, clock: Clock) -> None:
    """A parent that was stopped, or a machine that was suspended."""
    child.trains()
    dog = child.watched()
    assert looked(dog, clock, 4.0) == ""
    clock.turn(1000.0)
    assert dog.look(0, True) == ""
    assert looked(dog, clock, 8.0) == ""
    assert child.asked == 0
    assert condemned(dog, child, 6.0)


def test_a_validation_in_which_we_stood_still_is_not_the_childs(child: Child, clock: Clock) -> None:
    child.trains()
    child.enter(PHASE_EVALUATE, slowest_test=1.0, slowest_validation=10.0)
    dog = child.watched()
    assert looked(dog, clock, 4.0) == ""
    clock.turn(1000.0)
    child.beat()
    assert looked(dog, clock, 8.0) == ""


def test_over_a_moment_nobody_is_called_idle(child: Child, clock: Clock) -> None:
    """Where we looked for the first time only when the limit was over: the witnesses need a while."""
    child.enter(PHASE_EVALUATE, fit=1, slowest_test=1.0, slowest_validation=10.0)
    dog = child.watched(ask=lambda: False)
    assert looked(dog, clock, 4.0) == ""
    while clock() <= child.control["phase_since"] + 598:
        child.beat()
        assert looked(dog, clock, 4.0) == ""
    child.beat()
    assert looked(dog, clock, 8.0) == ""
    child.beat()
    assert looked(dog, clock, 4.0)


def test_one_that_moves_bytes_since_its_last_sign_of_life_is_not_idle(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    assert looked(dog, clock, 8.0) == ""
    child.tell("copy")
    assert child.hear() == "done"
    assert looked(dog, clock, 100.0) == ""
    assert child.asked == 0


@pytest.mark.parametrize("share", [0.5, 0.0, None], ids=["busy", "idle", "unknown"])
def test_a_busy_gpu_is_work_too(
    child: Child, clock: Clock, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    measured = threading.Event()

    def utilization(environment: object) -> float | None:
        measured.set()
        return share

    monkeypatch.setattr(watchdog, "gpu", SimpleNamespace(available=lambda: True, utilization=utilization))
    child.trains()
    dog = child.watched(ask=lambda: False)
    assert looked(dog, clock, 8.0) == ""
    assert measured.wait(PATIENCE)
    for thread in threading.enumerate():
        if thread.name == "gpu":
            thread.join(PATIENCE)
    assert bool(looked(dog, clock, 20.0)) == (share != 0.5)


def test_who_trains_is_looked_at_not_its_wrapper(tmp_path: Path, clock: Clock) -> None:
    """The wrapper is stopped, say; the trainer below it only waits."""
    wrapper = Child(tmp_path, clock)
    try:
        wrapper.trains()
        wrapper.tell("fork")
        trainer = int(wrapper.hear())
        wrapper.process.send_signal(signal.SIGSTOP)
        await_state(trainer, "S")
        await_state(wrapper.process.pid, "T")
        words = looked(wrapper.watched(ask=lambda: False), clock, 20.0, trainer=trainer)
        assert words.endswith("; idle"), words
        words = looked(wrapper.watched(ask=lambda: False), clock, 20.0)
        assert words.endswith("stopped by a signal (state T)"), words
    finally:
        os.killpg(wrapper.process.pid, signal.SIGKILL)
        wrapper.end()


def test_what_was_silent_before_it_was_watched_is_not_counted(child: Child, clock: Clock) -> None:
    child.trains()
    clock.turn(1000.0)
    assert looked(child.watched(), clock, 8.0) == ""


def test_a_program_without_keras_may_be_silent_for_ever(child: Child, clock: Clock) -> None:
    dog = child.watched()
    assert looked(dog, clock, 8000.0, keras=False, step=4.0) == ""
    assert child.asked == 0


@pytest.mark.usefixtures("works")
def test_one_that_works_outside_of_fit_may_work_as_long_as_it_likes(child: Child, clock: Clock) -> None:
    child.enter(PHASE_OUTSIDE, fit=1)
    child.tell("spin")
    dog = child.watched()
    assert looked(dog, clock, 1804.0, step=4.0) == ""
    assert [child.hear() for _ in range(3)] == ["spun"] * 3
    assert looked(dog, clock, 3000.0, step=4.0) == ""
    assert child.asked == 0


def test_a_debuggers_prompt_is_waited_for_and_told(child: Child, clock: Clock) -> None:
    child.trains()
    child.tell("debug")
    assert any(child.hear().startswith("-> ") for _ in range(3)), "its prompt comes next"
    dog = child.watched()
    assert condemned(dog, child, 20.0) == ""
    (note,) = child.notes
    assert " in training: a debugger holds it at train.py:" in note
    assert note.endswith(" in debug; it is waited for")
    assert looked(dog, clock, 4.0) == ""
    assert len(child.notes) == 1, "it has all of its time again"


def test_one_that_is_traced_is_waited_for_and_told(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    libc, pid = ctypes.CDLL(None, use_errno=True), child.process.pid
    attach, detach = 16, 17
    if libc.ptrace(attach, pid, None, None):
        pytest.skip(f"ptrace: {os.strerror(ctypes.get_errno())}")
    try:
        os.waitpid(pid, 0)  # it stops
        assert looked(dog, clock, 20.0) == ""
    finally:
        libc.ptrace(detach, pid, None, None)
    assert child.asked == 0
    assert "a debugger is attached (process " in child.notes[0]
    assert child.notes[0].endswith("that is no stall, it is waited for")


# Stacks that cannot be had ------------------------------------------------------------------------


def test_one_that_nobody_can_ask_is_named_without_its_stacks(child: Child, clock: Clock) -> None:
    child.trains()
    words = looked(child.watched(ask=lambda: False), clock, 20.0)
    assert words.endswith("(10 s are allowed: the shortest limit); idle"), words


def test_one_that_does_not_answer_is_named_without_its_stacks_in_the_end(child: Child, clock: Clock) -> None:
    asked: list[float] = []

    def ask() -> bool:
        asked.append(clock())
        return True

    child.trains()
    dog = child.watched(ask=ask)
    assert looked(dog, clock, 12.0) == ""
    assert len(asked) == 1
    assert looked(dog, clock, 1.0, step=1.0) == ""
    words = looked(dog, clock, 1.0, step=1.0)
    assert words.endswith("idle"), words
    assert len(asked) == 1, "it is asked once"


def test_stacks_of_an_earlier_silence_are_not_taken_for_those_of_this_one(child: Child, clock: Clock) -> None:
    child.dump.write_text('Thread 0x01 (most recent call first):\n  File "/u/older.py", line 1 in <module>\n')
    child.trains()
    words = looked(child.watched(ask=lambda: True), clock, 20.0)
    assert words.endswith("idle"), words


# What is learned ----------------------------------------------------------------------------------


def test_what_the_page_tells_is_learned_and_kept(child: Child) -> None:
    child.trains()
    child.set(slowest_test=2.0, slowest_validation=30.0, slowest_between=4.0)
    dog = child.watched()
    dog.look(0, True)
    assert dog.slowest == {1: Slowest(1.0, 2.0, 30.0, 4.0)}
    child.set(slowest_step=7.0, slowest_test=0.0)
    dog.look(0, True)
    assert dog.slowest == {1: Slowest(7.0, 2.0, 30.0, 4.0)}


def test_another_fit_has_a_pace_of_its_own(child: Child) -> None:
    """A first fit's validation of a moment says nothing of the second's."""
    child.trains()
    child.set(slowest_validation=0.1)
    dog = child.watched()
    dog.look(0, True)
    child.set(fit=2, slowest_step=0.0, slowest_validation=0.0)
    dog.look(0, True)
    assert dog.slowest == {1: Slowest(step=1.0, validation=0.1), 2: Slowest()}


def test_a_judgement_that_was_wrong_is_not_made_again_at_once(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    child.tell("hang")
    assert child.hear() == "hangs"
    child.rests()
    looked(dog, clock, 8.0)
    condemned(dog, child, 12.0)
    assert limit(Doing.TRAINING, dog.slowest[1], QUICK).idle >= 24.0


def test_what_an_earlier_attempt_taught_holds(child: Child, clock: Clock) -> None:
    child.trains()
    dog = child.watched()
    dog.slowest[1] = Slowest(step=20.0)
    assert looked(dog, clock, 96.0) == ""
    assert "(100 s are allowed: 5 times the slowest step, 20 s)" in condemned(dog, child, 12.0)
