"""`rehearse` without a training: refusals, bad input, plain programs, and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ksupervise.errors import CommandNotFound, RunNotFound
from ksupervise.parent.journal import Journal
from ksupervise.parent.launch import LIVE
from ksupervise.parent.rehearse import WHAT, CannotRehearse, Rehearsal, on_new, on_running
from ksupervise.parent.rehearse.deeds import DEEDS
from ksupervise.parent.rehearse.full import fill_disk
from ksupervise.parent.rehearse.outside import Glance, Subject
from ksupervise.parent.rehearse.recovery import Recovery
from ksupervise.parent.rehearse.scene import Deed, Scene
from ksupervise.parent.rehearse.scratch import Disk
from ksupervise.parent.rehearse.squeeze import Squeeze, is_gone
from ksupervise.parent.stage import live_page
from ksupervise.parent.watch.oom import OomCounter
from ksupervise.report import rehearsal as report

from .helpers import LEAVER, PYTHON, SUPERVISOR, TALKER, Place, until, wait_gone

SHORT = 2.0  # seconds; what is waited for never comes
NEVER_MIND = 30.0


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made: what is left behind is seen."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def said() -> list[str]:
    """What was said while it was going on."""
    return []


def new(command: list[str], said: list[str], **arguments: Any) -> Rehearsal:
    """A crash of a new run."""
    return on_new("crash", command, **{"store": None, "wait": SHORT, "keep": False, "say": said.append, **arguments})


def running(place: Place, what: str, *, yes: bool = False) -> Rehearsal:
    """`what` on the place's run."""
    return on_running(place.run_dir, what, wait=SHORT, yes=yes, say=lambda text: None)


# A run that is going on ---------------------------------------------------------------------------


def test_there_is_no_such_run(place: Place) -> None:
    with pytest.raises(RunNotFound):
        on_running(place.store / "nobody", "crash", wait=SHORT, yes=False, say=print)


@pytest.mark.parametrize("what", WHAT)
def test_a_finished_run_has_to_be_called_first(place: Place, what: str) -> None:
    place.run("true")
    with pytest.raises(CannotRehearse, match="is not running: call it and rehearse while it trains, or rehearse on a"):
        running(place, what, yes=True)


def test_a_lost_run_has_to_be_called_first(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    child = place.events("launched")[0]["pid"]
    parent.kill()
    wait_gone(child)
    with pytest.raises(CannotRehearse, match="is not running"):
        running(place, "crash")


def test_a_run_elsewhere(place: Place) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    note = json.loads((place.run_dir / "lock").read_bytes())
    (place.run_dir / "lock").write_text(json.dumps({**note, "host": "elsewhere.example"}))
    with pytest.raises(CannotRehearse, match=r"supervised on elsewhere\.example: rehearse there"):
        running(place, "crash")
    parent.send(signal.SIGTERM)
    parent.wait()


@pytest.mark.parametrize("what", WHAT)
def test_a_program_that_trains_nothing_is_left_alone(place: Place, what: str) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    with pytest.raises(CannotRehearse, match="is inside no fit at the moment: try again when"):
        running(place, what, yes=True)
    assert not place.events("attempt_ended")
    parent.send(signal.SIGTERM)
    assert parent.wait().out == b"ready\ngot SIGTERM\n", "our SIGTERM was the first signal it got"


@pytest.mark.parametrize("what", ["preempt", "lost"])
def test_where_somebody_has_to_call_again_a_yes_is_asked_for(place: Place, what: str) -> None:
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    with pytest.raises(CannotRehearse) as refusal:
        running(place, what)
    for words in (f"process {parent.pid}", f"cd {shlex.quote(str(place.root))}", "script.py", "--yes"):
        assert words in str(refusal.value)
    parent.send(signal.SIGTERM)
    parent.wait()


# A new run ----------------------------------------------------------------------------------------


def test_a_command_that_does_not_exist(scratch: Path, said: list[str]) -> None:
    with pytest.raises(CommandNotFound):
        new(["nothing-of-that-name"], said)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(("source", "reason"), [("print('bye')", "completed"), ("print('bye'); 1/0", "ZeroDivision")])
def test_a_program_that_ends_at_once(place: Place, scratch: Path, said: list[str], source: str, reason: str) -> None:
    with pytest.raises(CannotRehearse, match="ended before anything was done to it") as refusal:
        new(place.script(source), said, wait=NEVER_MIND)
    assert reason in str(refusal.value)
    assert "bye" in str(refusal.value), "what it printed last"
    assert not list(scratch.iterdir())


FOR_EVER = """
import os, signal, sys
print("ready", flush=True)
with open(sys.argv[1], "w") as stream:
    stream.write(str(os.getpid()))
signal.pause()
"""


def test_a_program_that_never_trains(place: Place, scratch: Path, said: list[str], capfd: Any) -> None:
    mark = place.root / "pid"
    with pytest.raises(CannotRehearse, match=r"no call of model\.fit was seen\. If it only needs longer: --wait"):
        new([*place.script(FOR_EVER), str(mark)], said)
    assert is_gone(int(mark.read_text()))
    assert not list(scratch.iterdir())
    assert "What the script itself writes elsewhere it really writes" in said[0]
    assert capfd.readouterr() == ("", ""), "the script's output is in its log alone"


def test_a_program_that_our_hook_does_not_reach(place: Place, scratch: Path, said: list[str]) -> None:
    [python, script] = place.script(TALKER)
    with pytest.raises(CannotRehearse, match="our hook did not arrive"):
        new([python, "-I", script], said)
    assert not list(scratch.iterdir())


def test_in_a_store_that_exists_only_the_rehearsal_goes(place: Place, said: list[str]) -> None:
    place.run("--name", "mine", "true")
    with pytest.raises(CannotRehearse):
        new(place.script("print('bye')"), said, store=place.store, wait=NEVER_MIND)
    assert [path.name for path in place.store.iterdir()] == ["mine"]


def test_a_store_that_did_not_exist_goes_too(place: Place, said: list[str]) -> None:
    with pytest.raises(CannotRehearse):
        new(place.script("print('bye')"), said, store=place.store, wait=NEVER_MIND)
    assert not place.store.exists()


def test_what_is_to_be_kept_is_kept(place: Place, said: list[str]) -> None:
    with pytest.raises(CannotRehearse):
        new(place.script("print('bye')"), said, store=place.store, wait=NEVER_MIND, keep=True)
    assert (place.run_dir / "attempts" / "001" / "output.log").read_text() == "bye\n"
    assert place.run_dir.name.startswith("rehearsal-crash-")


REHEARSE = f"""
import sys
sys.path.insert(0, {SUPERVISOR!r})
from ksupervise.parent.rehearse import on_new
on_new("crash", sys.argv[1:], store=None, wait={NEVER_MIND}, keep=False, say=lambda text: None)
"""


@contextlib.contextmanager
def rehearsing(place: Place, scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A rehearsal in a process of its own, and its program and that one's parent, once they run."""
    mark = place.root / "pid"
    command = [PYTHON, "-I", "-c", REHEARSE, *place.script(FOR_EVER), str(mark)]
    program = supervisor = 0
    environ = {**place.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: mark.exists() and mark.read_text(), "start of the program")
            program = int(mark.read_text())
            supervisor = psutil.Process(program).ppid()
            yield process, program, supervisor
        finally:
            process.kill()
            for pid in filter(None, (supervisor, program)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(place: Place, scratch: Path, number: int) -> None:
    with rehearsing(place, scratch) as (process, program, supervisor):
        process.send_signal(number)
        assert process.wait(NEVER_MIND) != 0
        assert is_gone(program)
        assert is_gone(supervisor)
    assert not list(scratch.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells the parent")
def test_killed_it_leaves_no_process(place: Place, scratch: Path) -> None:
    with rehearsing(place, scratch) as (process, program, supervisor):
        process.kill()
        wait_gone(program)
        wait_gone(supervisor)


# What it makes for itself -------------------------------------------------------------------------


def test_without_cgroups_there_is_no_squeeze() -> None:
    with pytest.raises(OSError, match="not accounted for"):
        Squeeze([])


def test_version_2_needs_somebody_who_hands_limits_on(tmp_path: Path) -> None:
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    (group / "cgroup.subtree_control").write_text("cpu\n")
    with pytest.raises(OSError, match="hands memory limits on"):
        Squeeze([{"path": str(group), "version": 2}])
    (tmp_path / "outer" / "cgroup.subtree_control").write_text("cpu memory\n")
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):  # no kernel makes the files here
        Squeeze([{"path": str(group), "version": 2}])
    assert [path.name for path in (tmp_path / "outer").iterdir() if path.is_dir()] == ["inner"], "it was removed"


def squeeze_or_skip() -> Squeeze:
    """A real one."""
    try:
        return Squeeze(OomCounter().read()["groups"])
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")


def test_the_kernel_takes_the_process_that_was_chosen() -> None:
    squeeze = squeeze_or_skip()
    folder = squeeze.procs.parent
    counter = OomCounter()
    mark = counter.read()
    hold = "import sys; held = b'x' * 10**8; print('ready', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([PYTHON, "-c", hold], **pipes) as chosen:  # type: ignore[call-overload]
        try:
            assert chosen.stdout.readline() == b"ready\n"
            assert squeeze.kill(chosen.pid, NEVER_MIND) == ""
            assert chosen.wait(NEVER_MIND) == -signal.SIGKILL
            assert counter.since(mark, [chosen.pid]) is not None, "the machine counted it"
        finally:
            chosen.kill()
            squeeze.remove()
    assert not folder.exists()


def test_a_squeeze_that_was_left_lets_its_processes_go() -> None:
    squeeze = squeeze_or_skip()
    with subprocess.Popen([PYTHON, "-c", "input()"], stdin=subprocess.PIPE) as inside:
        squeeze.enter(inside.pid)
        squeeze.remove()
        assert not squeeze.procs.exists()
        assert inside.poll() is None
        inside.kill()


def test_a_disk_that_is_full_and_then_is_not(tmp_path: Path) -> None:
    try:
        disk = Disk(tmp_path)
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        (tmp_path / "before").write_bytes(bytes(300_000))
        disk.fill()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (tmp_path / "more").write_bytes(bytes(5 * 4096))
        (tmp_path / "more").unlink()
        (tmp_path / "journal").write_bytes(bytes(4096))
        disk.free()
        (tmp_path / "more").write_bytes(bytes(300_000))
    finally:
        disk.close()
    assert not os.path.ismount(tmp_path)
    assert not list(tmp_path.iterdir())


# What it makes of a journal -----------------------------------------------------------------------

GLANCE = Glance(0.0, 1, 1, 1, 57, 57, True, 55, 8.0, 46.0, 0.4)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Over a run of which only a journal is there, in the middle of its first attempt."""
    with contextlib.ExitStack() as undo:
        scene = Scene("crash", Subject(tmp_path), 0.2, lambda text: None, undo)
        write(scene, "launched", attempt=1)
        yield scene


def write(scene: Scene, event: str, **fields: Any) -> None:
    """One more record."""
    book = Journal(Path(scene.subject.layout.journal))
    book.write(event, **fields)
    book.close()


def page(scene: Scene, attempt: int, **words: int) -> None:
    """The control page of an attempt."""
    path = Path(scene.subject.layout.attempt(attempt)) / LIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    control = live_page(path, create=True)
    for name, value in words.items():
        control[name] = value
    control.close()


def follow(scene: Scene, *, mark: int = 1, called: str = "") -> Rehearsal:
    """What becomes of a deed that was done after `mark` records."""
    at = json.loads(Path(scene.subject.layout.journal).read_text().splitlines()[0])["mono"]
    recovery = Recovery(scene, Deed("it was done", at, GLANCE), mark, called)
    recovery.follow(at + scene.wait)
    return recovery.result(on_disk=48, pace=0.4)


def die(scene: Scene, cause: str = "signal") -> None:
    """The first attempt ends."""
    write(scene, "attempt_ended", attempt=1, cause=cause, detail="killed by SIGKILL", last_step=57)


def test_what_survived(scene: Scene) -> None:
    die(scene)
    write(scene, "launched", attempt=2)
    write(scene, "resumed", attempt=2, step=55, guarantee="exact")
    page(scene, 2, executed=3, step=58, phase=1, fit=1)
    found = follow(scene)
    assert (found.step, found.resumed_from, found.lost_steps, found.lost_seconds) == (57, 55, 2, 0.8)
    assert (found.cause, found.guarantee, found.disk_step, found.memory_step) == ("signal", "exact", 48, 55)
    assert None not in (found.noticed, found.relaunched, found.training, found.back)
    assert found.notes == ()
    text = report.as_text(found)
    assert text.splitlines()[-1].startswith("survived: 2 steps (0.8 s of work) were trained again; back after ")
    assert "from step 55 of 57; lost: 2 steps (0.8 s of work); guarantee: exact" in text
    assert "step 55 in memory, step 48 on disk" in text
    facts = json.loads(json.dumps(report.as_json(found)))
    assert (facts["survived"], facts["after"]["back"], facts["lost_steps"]) == (True, found.back, 2)
    assert facts["summary"] == report.summary(found)
    assert report.exit_code(found) == 0


def test_a_run_that_was_done_before_it_could_be_seen_survived(scene: Scene) -> None:
    die(scene)
    write(scene, "launched", attempt=2)
    write(scene, "resumed", attempt=2, step=57, guarantee="exact")
    write(scene, "attempt_ended", attempt=2, cause="completed", detail="completed", last_step=60)
    write(scene, "verdict", state="completed", exit=0, detail="completed")
    found = follow(scene)
    assert not found.failure
    assert found.back is not None


def not_survived(found: Rehearsal) -> str:
    """Its closing line."""
    assert report.exit_code(found) == 1
    line = report.as_text(found).splitlines()[-1]
    assert line.startswith("NOT survived: ")
    assert "What to do: " in line
    assert found.advice
    return line


def test_nobody_noticed(scene: Scene) -> None:
    assert "nobody noticed within" in not_survived(follow(scene))


def test_nobody_relaunched(scene: Scene) -> None:
    die(scene)
    assert "no other attempt was launched" in not_survived(follow(scene))


def test_the_next_attempt_did_not_train(scene: Scene) -> None:
    die(scene)
    write(scene, "launched", attempt=2)
    page(scene, 2)
    assert "attempt 2 began no step" in not_survived(follow(scene))


def test_the_next_attempt_did_not_catch_up(scene: Scene) -> None:
    die(scene)
    write(scene, "launched", attempt=2)
    write(scene, "resumed", attempt=2, step=55, guarantee="exact")
    page(scene, 2, executed=2, step=57, phase=1, fit=1)
    assert "did not come past step 57" in not_survived(follow(scene))


def test_it_began_anew(scene: Scene) -> None:
    die(scene)
    write(scene, "launched", attempt=2)
    write(scene, "fit_began", attempt=2, fit=1, mode="fresh", seq=None)
    page(scene, 2, executed=60, step=60, phase=1, fit=1)
    found = follow(scene)
    assert "began anew, though there was a checkpoint" in not_survived(found)
    assert (found.resumed_from, found.lost_steps) == (None, 57)
    assert "from nothing, having been at step 57" in report.as_text(found)


def test_it_gave_up(scene: Scene) -> None:
    log = Path(scene.subject.layout.output_log(1))
    log.parent.mkdir(parents=True)
    log.write_text("Traceback: the reason\n")
    die(scene)
    write(scene, "verdict", state="gave_up", exit=125, detail="3 failures without a newer checkpoint")
    found = follow(scene)
    assert "the run gave up: 3 failures" in not_survived(found)
    assert "    Traceback: the reason" in report.as_text(found)


def test_it_was_over_before(scene: Scene) -> None:
    write(scene, "attempt_ended", attempt=1, cause="completed", detail="completed", last_step=57)
    write(scene, "verdict", state="completed", exit=0, detail="completed")
    assert "the training was over before it was done" in not_survived(follow(scene))


@pytest.mark.parametrize("what", ["preempt", "lost"])
def test_nobody_called_it_again(scene: Scene, what: str) -> None:
    scene.what = what
    write(scene, "committed", attempt=1, step=57, seq=3)
    if what == "preempt":
        write(scene, "stop_asked", kind="term")
        die(scene, "preempted")
        write(scene, "verdict", state="preempted", exit=75, detail="SIGTERM")
    line = not_survived(follow(scene, called="cd /there && ksupervise python train.py"))
    assert "nobody called it again within" in line
    assert "its state is kept at step 57" in line
    assert "or call: cd /there && ksupervise python train.py" in line


def test_a_wrong_name_is_said(scene: Scene) -> None:
    die(scene, "exited")
    for attempt in (2, 3):
        write(scene, "launched", attempt=attempt)
    write(scene, "resumed", attempt=3, step=55, guarantee="exact")
    page(scene, 3, executed=5, step=60, phase=1, fit=1)
    found = follow(scene)
    assert found.notes == ("it was named exited, and should have been signal", "it took 2 attempts")
    assert "note       it took 2 attempts" in report.as_text(found)


def test_a_run_that_nobody_watches_is_not_hung(scene: Scene) -> None:
    write(scene, "supervised", stall={"watched": False, "floor": None, "fixed": None})
    with pytest.raises(CannotRehearse, match=r"not watched for hangs \(--stall off\)"):
        DEEDS["hang"](scene, GLANCE)


def test_a_parent_that_cannot_play_a_full_disk(scene: Scene) -> None:
    write(scene, "claimed", attempt=1, pid=os.getpid())
    page(scene, 1, executed=5, step=5, phase=1, fit=1)
    with pytest.raises(CannotRehearse, match="does not play a full disk"):
        fill_disk(replace(scene, what="disk-full"), GLANCE)
