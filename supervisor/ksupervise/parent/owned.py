"""A run that this parent owns: its directory, lock, record and store, opened in the right order."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksupervise import __version__
from ksupervise.core.actions import Finish, RunState
from ksupervise.core.admission import Admission, Verb, admit
from ksupervise.core.clock import TAKEN, lives_here
from ksupervise.core.ledger import Account, AttemptAccount, account
from ksupervise.core.policy import History, history_from_json
from ksupervise.errors import RunBusy, RunDamaged, RunNotFound, UsageError
from ksupervise.parent import boot, journal, run
from ksupervise.parent.launch import LIVE
from ksupervise.parent.replicate import adopt
from ksupervise.parent.replicate.claims import Claims
from ksupervise.parent.room import Room, retention_of
from ksupervise.parent.run import RunRecord
from ksupervise.parent.stage import live_page
from ksupervise.parent.watch import host
from ksupervise.parent.watch.lookout import usage_of
from ksupervise.parent.watch.oom import OomCounter, infer
from ksupervise.settings import Settings
from ksupervise.store import (
    CheckpointStore,
    Retention,
    RunLayout,
    RunLock,
    StoreFull,
    owner_is_alive,
    read_owner,
    write_fault,
)
from ksupervise.store.mounts import has_reliable_flock
from ksupervise.wire import ENV_RUN_DIR

if TYPE_CHECKING:
    from ksupervise.replicas.local import SharedOwnership

_A_DAY = 86400.0  # seconds that may lie between an attempt's last record and its last beat
_MANY = 3  # attempts in a row that were lost without a newer checkpoint
ARCHIVE = ".archive"
_ANNOUNCING = 1.0  # seconds in which a new owner has surely written who it is
_SHARED_PATIENCE = 60.0  # seconds without a sign of life after which an owner on a shared file system counts as dead
_LEAVING = 15.0  # seconds beyond the grace that a lost parent's child may take to save and leave


def steps(number: int) -> str:
    """`1 step`, `12 steps`."""
    return f"{number} step{'' if number == 1 else 's'}"


@dataclass
class OwnedRun:
    """What the parent works with. `history` is where the judgement goes on.

    Attributes:
        replicas: the configuration of each one's worker.
        shared: the lease on a store that other machines see, too.
        lost: what is said when another machine has taken the run over.
        ended: why nothing is trained, None if something is; then it is owned for the sake of its replicas.
    """

    layout: RunLayout
    lock: RunLock
    record: RunRecord
    store: CheckpointStore
    history: History
    holder: str
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    replicas: list[dict[str, Any]] = field(default_factory=list)
    shared: SharedOwnership | None = None
    lost: list[str] = field(default_factory=list)
    ended: Admission | None = None

    def account(self) -> Account:
        """The accounts as of now; `unwritten` are records that the disk did not take."""
        return account([*journal.read(Path(self.layout.journal)), *self.unwritten], time.time())

    def restart_line(self, wait: float, log: str, staged: int | None, older: int | None) -> str:
        """Why the last attempt ended and how it goes on, in one line.

        `staged`: step of the newest state in memory. `older`: of the checkpoint that is gone back to instead.
        """
        accounts = self.account()
        if not accounts.attempts:  # the disk was full when the journal should have been written
            return f"the attempt ended, and its record could not be written; the next one in {wait:.1f} s; log: {log}"
        last = accounts.attempts[-1]
        reached = "before any step" if last.last_step is None else f"at step {last.last_step}"
        committed = None if accounts.checkpoint is None else int(accounts.checkpoint["step"])
        if older is not None:
            resume = f"resuming from step {older} (lost work: {steps(max(0, (last.last_step or older) - older))})"
        elif committed is None and staged is None:
            resume = "starting over (no checkpoint yet)"
        else:
            step = max(committed or 0, staged or 0)
            lost = last.lost_steps if step == committed else max(0, (last.last_step or step) - step)
            resume = f"resuming from step {step} (lost work: {steps(lost)})"
        when = "now" if wait < 0.05 else f"in {wait:.1f} s"
        ended = f"attempt {last.number} ended {reached}: {last.detail}"
        return f"{ended}; {resume}, attempt {last.number + 1} {when}; log: {log}"

    def conclude(self, verdict: Finish) -> None:
        """Write the verdict and let the run go."""
        ended = replace(self.record, state=verdict.state.value, exit_code=verdict.exit_code, detail=verdict.detail)
        try:
            if self.shared is None or not self.lost:  # else the record is another machine's now
                run.save(Path(self.layout.run_json), ended)
        finally:
            self.release()

    def release(self) -> None:
        """Let the run go."""
        if self.shared is not None:
            self.shared.release()
        self.lock.release()


def run_directory(settings: Settings, command: Sequence[str], script: str) -> Path:
    """STORE/NAME for this call. Raises UsageError."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    name = settings.name or run.default_name(command, script, index)
    directory = settings.store.absolute() / name
    if os.pathsep in str(directory):
        raise UsageError(
            f"--store {settings.store}: {directory} holds a {os.pathsep!r}, which would part PYTHONPATH and with it "
            "our way into the script; choose a place without one"
        )
    return directory


def take(
    settings: Settings, command: Sequence[str], *, interactive: bool, say: Callable[[str], None]
) -> OwnedRun | Admission:
    """Own the run that this call means, or say why there is nothing to do.

    Raises RunBusy, RunDamaged, ReplicaAway, StoreUnwritable, StoreFull.
    """
    script = run.find_script(command)
    directory = run_directory(settings, command, script)
    layout = RunLayout(directory)
    layout.create()
    lock = _acquire(layout, settings.grace, say)
    shared: SharedOwnership | None = None
    claims, replicas = Claims(), list[dict[str, Any]]()
    kept = False
    try:
        lost: list[str] = []
        shared = _share(layout, settings.grace, lost, say)
        if settings.fresh:
            if shared is not None:  # its folder goes with what is archived
                shared.release()
            lock = _archive(layout, lock, say)
            shared = _share(layout, settings.grace, lost, say)
        found = adopt.look_into(settings, layout, script, say)
        if found.fetch is not None:  # nothing is brought here for a run that another machine is at work on
            replicas = _own_in_replicas(layout, settings, found, claims, found.fetch.run_id, 0, say)
            adopt.fetch(found, layout, say)
        taken = _admit(settings, command, script, layout, lock, interactive, say)
        if isinstance(taken, Admission) and not claims.held and not found.behind:
            return taken
        owned = taken if isinstance(taken, OwnedRun) else _ended(taken, layout, lock)
        if found.fetch is None:
            replicas = _own_in_replicas(layout, settings, found, claims, owned.record.id, owned.history.attempt, say)
        owned.replicas = replicas
        tokens = [int(each["token"] or each["attempt"]) for each in replicas]
        owned.history = replace(owned.history, attempt=max([owned.history.attempt, *(each - 1 for each in tokens)]))
        owned.shared, owned.lost = shared, lost
        claims.pass_on()
        kept = True
        return owned
    finally:
        if not kept:
            claims.release()
            if shared is not None:
                shared.release()
            lock.release()


def _ended(admission: Admission, layout: RunLayout, lock: RunLock) -> OwnedRun:
    """A run that is not trained any more, and of which a replica may lack the end."""
    record = run.load(Path(layout.run_json))
    store = CheckpointStore(layout.root, record.id, __version__)
    return OwnedRun(layout, lock, record, store, History(), _holder(), ended=admission)


def _share(layout: RunLayout, grace: float, lost: list[str], say: Callable[[str], None]) -> SharedOwnership | None:
    """Exclude other machines where the store is on a file system that they see, too. Raises RunBusy."""
    if has_reliable_flock(layout.root):
        return None
    from ksupervise.replicas.local import Busy, SharedOwnership

    shared = SharedOwnership(layout.root, lost.append, patience=max(_SHARED_PATIENCE, grace + _LEAVING))
    told = False

    def wait(seconds: float) -> None:
        nonlocal told
        if not told:
            say(f"{layout.root} is on a shared file system, and another process had it: waiting for a sign of life")
            told = True
        time.sleep(seconds)

    found = shared.acquire(wait)
    if isinstance(found, Busy):
        raise RunBusy(f"run {Path(layout.root).name} is being supervised by {found.where}; nothing was done")
    if found.line:
        say(f"the run is taken over from {found.line}")
    return shared


def _own_in_replicas(
    layout: RunLayout,
    settings: Settings,
    found: adopt.Found,
    claims: Claims,
    run_id: str,
    attempt: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Become the owner in every place that can be reached, under one number. Returns what each one's worker is told.

    `attempt`: the last one that is known here. Raises RunBusy.
    """
    token = max(found.token, attempt) + 1
    holder = adopt.holder_of(_holder())
    path = Path(layout.run_json)
    replicas: list[dict[str, Any]] = []
    for place in found.places:
        about: dict[str, Any] = {
            "place": place,
            "name": Path(layout.root).name,
            "run": run_id,
            "holder": holder,
            "attempt": token,
            "pid": os.getpid(),
        }
        claimed = None
        if place not in found.away:
            record = path.read_text() if path.exists() else found.record
            claimed = claims.claim({**about, "record": record}, say)
            token = max(token, claimed or 0)
        kept = {"directory": str(layout.root), "keep": settings.replica_keep, "rate": settings.replica_rate}
        replicas.append({**about, **kept, "token": claimed})
    return replicas


def _admit(
    settings: Settings,
    command: Sequence[str],
    script: str,
    layout: RunLayout,
    lock: RunLock,
    interactive: bool,
    say: Callable[[str], None],
) -> OwnedRun | Admission:
    path = Path(layout.run_json)
    record = _recorded(path, layout)
    reseeded = record is not None and settings.seed not in (None, record.seed)
    if record is None:
        record = run.new(Path(layout.root).name, command, script)
        _name_siblings(layout, record, say)
        admission = admit(None, None, changed=False, interactive=interactive, retry=settings.retry)
    else:
        changed = run.digest(script) != record.script_digest
        state = RunState(record.state)
        admission = admit(state, record.exit_code, changed=changed, interactive=interactive, retry=settings.retry)
        if changed:
            say(f"{script or 'the script'} changed since the last attempt of run {record.name}")
    if admission.verb in (Verb.DONE, Verb.DECLINE):
        return admission
    if admission.line:
        say(admission.line)
    if reseeded:
        say(f"--seed {settings.seed} is not the seed that run {record.name} had: what the script draws may change")
    record = run.with_seed(record, settings.seed)
    return _prepare(record, admission, command, script, layout, lock, retention_of(settings), say)


def _recorded(path: Path, layout: RunLayout) -> RunRecord | None:
    """The run's record, None for a directory that holds no run yet."""
    try:
        return run.load(path)
    except RunNotFound:
        if os.listdir(layout.checkpoints):
            raise RunDamaged(
                f"{path} is missing though {layout.checkpoints} holds checkpoints. Nothing was changed; put it "
                "back, or begin anew with --fresh (the old run is archived) or under another --name"
            ) from None
        return None


def _prepare(
    record: RunRecord,
    admission: Admission,
    command: Sequence[str],
    script: str,
    layout: RunLayout,
    lock: RunLock,
    retention: Retention,
    say: Callable[[str], None],
) -> OwnedRun:
    record = replace(
        record,
        state=RunState.RUNNING.value,
        exit_code=None,
        detail="",
        command=tuple(command),
        script=script,
        script_digest=run.digest(script),
    )
    store = CheckpointStore(layout.root, record.id, __version__)
    store.sweep()
    newest = store.newest()
    try:
        _write_beginning(layout, record)
    except StoreFull:
        Room(store, retention, 0).make(refused=True)
        _write_beginning(layout, record)
    with contextlib.closing(open_journal(layout)) as book:
        records = list(journal.read(Path(layout.journal)))
        accounts = account(records, time.time())
        book.write(TAKEN, host=host.hostname(), boot=host.boot_id(), version=__version__)
        _enter_orphans_commits(store, accounts, book)
        _enter_lost_attempts(layout, accounts, records, book)
        records = list(journal.read(Path(layout.journal)))
    if newest is None and accounts.checkpoint is not None:
        at = accounts.checkpoint["step"]
        say(f"no valid checkpoint is left of this run, which had one at step {at}: training starts over")
    known = History() if admission.verb is Verb.RETRY else _budget(records)
    history = replace(
        known,
        attempt=max([attempt.number for attempt in accounts.attempts], default=0),
        stepped=_budget(records).stepped or newest is not None,
        mark=newest.manifest.position.step if newest else None,
    )
    _tell_of_many_lost(records, say)
    return OwnedRun(layout, lock, record, store, history, _holder())


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _budget(records: Sequence[Mapping[str, Any]]) -> History:
    """What the last judged attempt left of the failures allowed: a lost parent must not give a run a new budget."""
    budgets = [record["budget"] for record in records if isinstance(record.get("budget"), dict)]
    try:
        return history_from_json(budgets[-1]) if budgets else History()
    except (TypeError, ValueError):
        return History()


def _tell_of_many_lost(records: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Preemptions and lost machines cost nothing; many of them in a row without a newer checkpoint are worth a word."""
    row = []
    for attempt in reversed(account(records, time.time()).attempts):
        free = attempt.cause in ("lost", "parent_lost", "preempted", "deadline")
        if not free or any(r["event"] == "committed" and r.get("attempt") == attempt.number for r in records):
            break
        row.append(attempt)
    if len(row) < _MANY:
        return
    lasted = sorted((attempt.ended or attempt.started) - attempt.started for attempt in row)
    say(
        f"the last {len(row)} attempts were preempted or lost without a newer checkpoint, half of them within "
        f"{lasted[len(row) // 2]:.0f} s: if that is less than the first steps take, no checkpoint can ever be made"
    )


def _write_beginning(layout: RunLayout, record: RunRecord) -> None:
    run.save(Path(layout.run_json), record)
    boot.pack(Path(layout.boot_zip))


def open_journal(layout: RunLayout) -> journal.Journal:
    """The run's journal, to be written. Raises StoreUnwritable, StoreFull."""
    try:
        return journal.Journal(Path(layout.journal))
    except OSError as error:
        raise write_fault(error, layout.journal) from error


def _enter_orphans_commits(store: CheckpointStore, accounts: Account, book: journal.Journal) -> None:
    """Checkpoints that a child made after its parent had died are in the store and not in the journal."""
    known = int(accounts.checkpoint["seq"]) if accounts.checkpoint else 0
    for checkpoint in reversed(store.checkpoints()):
        manifest = checkpoint.manifest
        if manifest.seq > known:
            position = vars(manifest.position)
            book.write("committed", attempt=manifest.attempt, seq=manifest.seq, **position, path=checkpoint.path)


def _enter_lost_attempts(
    layout: RunLayout, accounts: Account, records: Sequence[Mapping[str, Any]], book: journal.Journal
) -> None:
    """Close the accounts of attempts whose parents died: their control pages tell how far they came."""
    here = {life.name for life in lives_here(records)}
    for attempt in accounts.attempts:
        is_open = attempt is accounts.attempts[-1] and attempt.ended is None
        page = _Page.of(layout, attempt.number) if attempt.life in here else None
        if is_open or (page is not None and attempt.at_least):  # found lost elsewhere, where there was no page
            _enter_lost_attempt(attempt, page, records, book)


def _enter_lost_attempt(
    attempt: AttemptAccount, page: _Page | None, records: Sequence[Mapping[str, Any]], book: journal.Journal
) -> None:
    known = [
        record
        for record in records
        if record.get("attempt") == attempt.number and record.get("life") in (attempt.life or None, None)
    ]
    ended = max((float(record["at"]) for record in known), default=attempt.started)
    if page is not None and known:  # its last beat, if that is of the same boot as its last record
        ended += max(0.0, min(_A_DAY, page.beat - float(known[-1]["mono"])))
    its_life = [record for record in records if record.get("life") == attempt.life] or records
    cause, detail = _how_lost(its_life, None if page is None else page.usage)
    steps = {} if page is None else page.steps
    book.write("attempt_ended", attempt=attempt.number, cause=cause, detail=detail, ended=round(ended, 3), **steps)


@dataclass(frozen=True)
class _Page:
    """What the control page of an attempt says that nobody saw end: steps, last beat, memory."""

    steps: Mapping[str, int]
    beat: float
    usage: tuple[int, int] | None

    @classmethod
    def of(cls, layout: RunLayout, attempt: int) -> _Page | None:
        """None if there is none: the machine went down before it was written."""
        try:
            with contextlib.closing(live_page(Path(layout.attempt(attempt)) / LIVE)) as control:
                steps = {"executed": control.integer("executed")}
                if steps["executed"]:
                    steps |= {"first_step": control.integer("first_step"), "last_step": control.integer("step")}
                return cls(steps, control["beat"], usage_of(control))
        except (OSError, ValueError, KeyError):
            return None


def _how_lost(records: Sequence[Mapping[str, Any]], usage: tuple[int, int] | None) -> tuple[str, str]:
    """Cause and words for an attempt whose parent is gone. `usage`: of memory, when it was last noted."""
    owners = [record for record in records if record["event"] == TAKEN]
    before: Mapping[str, Any] = owners[-1] if owners else {}
    marks = [
        record["oom"] for record in records if record["event"] == "launched" and isinstance(record.get("oom"), dict)
    ]
    memory = infer(marks[-1], OomCounter().read(), usage) if marks else ""
    if memory:
        return "out_of_memory", f"parent and child were killed: {memory}"
    here, there = host.hostname(), str(before.get("host") or "")
    if there and there != here:
        return "lost", f"machine {there} was lost; this is {here}"
    if not host.same_boot(str(before.get("boot") or ""), host.boot_id()):
        return "lost", "the machine went down and was started again"
    return "parent_lost", "the parent was killed"


def _acquire(layout: RunLayout, grace: float, say: Callable[[str], None]) -> RunLock:
    """The run's lock. A dead parent's child may still be saving: it is awaited, then ended.

    Raises RunBusy if a living parent holds it, or one that did not say who it is.
    """
    lock = RunLock(layout.lock)
    began = time.monotonic()
    end = began + grace + _LEAVING
    told = False
    while not lock.acquire():
        owner = read_owner(layout.lock)
        now = time.monotonic()
        unknown = owner is None and now - began > _ANNOUNCING  # it cannot write: its disk is full
        if unknown or (owner is not None and owner_is_alive(owner) is not False):
            where = f"process {owner.pid} on {owner.host}" if owner else "a process that could not say who it is"
            raise RunBusy(f"run {Path(layout.root).name} is being supervised by {where}; nothing was done")
        if owner is not None and not told and now - began > _ANNOUNCING:
            say("the parent of this run is gone; waiting for its child to save and leave")
            told = True
        if owner is not None and now > end:
            end += _LEAVING
            _kill_strays(str(layout.root))
        time.sleep(0.05)
    return lock


def _kill_strays(run_dir: str) -> None:
    """SIGKILL this user's processes that carry the run's mark: a dead attempt's leftovers."""
    import psutil

    for candidate in psutil.process_iter():
        try:
            if candidate.pid != os.getpid() and candidate.environ().get(ENV_RUN_DIR) == run_dir:
                candidate.kill()
        except (psutil.Error, OSError):
            continue


def _archive(layout: RunLayout, lock: RunLock, say: Callable[[str], None]) -> RunLock:
    """Move the run's directory away and make an empty one. Returns the new directory's lock."""
    root = Path(layout.root)
    if not any(map(os.path.lexists, (layout.run_json, layout.journal))) and not os.listdir(layout.checkpoints):
        return lock
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime())
    target = root.parent / ARCHIVE / f"{root.name}-{stamp}"
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{root.name}-{stamp}-{number}")
    target.parent.mkdir(mode=0o700, exist_ok=True)
    root.rename(target)
    lock.release()
    say(f"the old run was archived: {target}")
    layout.create()
    return _acquire(layout, 0.0, say)


def _name_siblings(layout: RunLayout, record: RunRecord, say: Callable[[str], None]) -> None:
    """A new run of a script that has others: name them, in case one of those was meant."""
    if not record.script:
        return
    store = Path(layout.root).parent
    names = []
    for path in sorted(store.glob("*/run.json")):
        try:
            other = run.load(path)
        except (RunDamaged, RunNotFound):
            continue
        if other.script == record.script and other.name != record.name:
            names.append(f"{other.name} ({other.state})")
    if names:
        say(f"this is a new run, {record.name}; other runs of this script: {', '.join(names[:5])}")
