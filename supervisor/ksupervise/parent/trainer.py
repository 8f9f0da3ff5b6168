"""The dialogue with the child: who is the trainer, what it goes on from, what it staged.

Messages of the child ("op"):

| op | says | answered by |
|---|---|---|
| `hello` | our hook arrived in an interpreter | |
| `keras` | it imported Keras | |
| `claim` | its first fit begins: may it be the trainer? | `claim`, with what it shares |
| `fit` | a fit begins, asked for so many epochs | `restore`: the mode and the slot that holds the state |
| `logs` | how far its log files were written when it first began | |
| `restored` | the state is back, with this guarantee | |
| `refused` | the state does not fit the model | |
| `staged` | slot k holds stage n | `free`, when it is committed, could not be, or is superseded |
| `saved`, `unsaved` | state n is in the store already (or could not be written): there was no memory to stage it | |
| `leave` | it will leave once stage n is committed | `go` |
| `abandon` | we cannot look after the fit that began | |
| `nan` | TerminateOnNaN ended the fit | |
| `temporary` | files that it would remove at its orderly end | |
| `note` | something to tell the user once | |
| `exit` | its interpreter ends in good order, perhaps by an exception | |
| `imports` | what the script has imported so far, and under what; with `--standby` | |
| `start_over` | what was imported ahead for it is of no use: the attempt has to begin anew | |
| `stop` | `ksupervise stop` (from anywhere) | `stopping` |
| `rehearse` | `ksupervise rehearse disk-full`: refuse ordinary saves for so many seconds | `rehearsing` |
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ksupervise.core.events import (
    Claimed,
    Event,
    Failure,
    FitBegan,
    FitEnded,
    Left,
    Refused,
    Released,
    Staged,
    StopAsked,
    StopKind,
)
from ksupervise.core.resume import Mode
from ksupervise.parent.commits import Commits, Shelf
from ksupervise.parent.journal import read
from ksupervise.parent.link import Connection, Message
from ksupervise.parent.persist import Candidate, Restored, restore
from ksupervise.store import monitored
from ksupervise.wire import Control


@dataclass
class Facts:
    """What the child told about one attempt."""

    hooked: bool = False
    keras: str = ""
    claimant: int = 0  # pid of the latest trainer
    told: bool = False  # that something is not checkpointed
    fit_open: bool = False
    exits: dict[int, Failure | None] = field(default_factory=dict)  # pid of an interpreter that ended orderly
    stacks: dict[int, int] = field(default_factory=dict)  # pid → signal that has it write the stacks of its threads
    resumed_seq: int = 0  # number of the checkpoint that it went on from
    nan: bool = False  # TerminateOnNaN ended the training
    imports: Message | None = None  # the latest `imports` of the process that was launched
    useless: str = ""  # why what was imported ahead was not to be used
    temporary: tuple[str, ...] = ()  # files that it would have removed at its orderly end


@dataclass(frozen=True)
class Desk:
    """What the dialogue works with; the same for all attempts of a parent."""

    run_id: str
    run_dir: str
    grace: float
    shelf: Shelf
    lock_fd: int
    post: Callable[[Event], None]


class Dialogue:
    """One attempt's conversation. Everything runs on the loop's thread."""

    def __init__(self, desk: Desk, attempt: int, control: Control, live_fd: int, outputs: Sequence[int]) -> None:
        """`live_fd`: the control page's. `outputs`: read ends of the child's stdout and stderr."""
        self._desk = desk
        self._attempt = attempt
        self._shared = (live_fd, *(slot.fd for slot in desk.shelf.stage.slots), desk.lock_fd, *outputs)
        self._trainer: Connection | None = None
        self._fits = 0
        self._leaving: int | None = None
        self.trainer_pid = 0
        self.facts = Facts()
        self.commits = Commits(desk.shelf, attempt, control, self._send)
        self.commits.when_settled = self._let_go

    def _send(self, message: Message) -> None:
        if self._trainer is not None:
            self._trainer.send(message)

    def receive(self, connection: Connection) -> None:
        """Handle what `connection` sent, and its end."""
        for message in connection.receive():
            handler = _HANDLERS.get(str(message.get("op")))
            if handler is not None:
                handler(self, connection, message)
        if not connection.open and connection is self._trainer:
            self._trainer = None
            self.trainer_pid = 0
            self.commits.leftovers()  # another process of the group may be the next trainer
            self._desk.post(Released())

    def end_trainer(self) -> None:
        """SIGKILL a trainer that the sweep did not find: it must not train beside the next attempt."""
        if self._trainer is not None and self._trainer.open and self.trainer_pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.trainer_pid, signal.SIGKILL)

    # Who is who

    def _hello(self, connection: Connection, message: Message) -> None:
        self._note_stacks(connection, message)
        if not self.facts.hooked:
            self.facts.hooked = True
            self._write("hooked", pid=message.get("pid"), python=message.get("python"))

    def _imports(self, connection: Connection, message: Message) -> None:
        if connection.pid in (0, message.get("pid")) and isinstance(message.get("entries"), list):
            self.facts.imports = message

    def _start_over(self, connection: Connection, message: Message) -> None:
        self.facts.useless = str(message.get("why") or "unknown")

    def _note_stacks(self, connection: Connection, message: Message) -> None:
        number = message.get("stacks")
        if type(number) is int and 0 < number <= 64:
            self.facts.stacks[connection.pid or int(message.get("pid", 0))] = number

    def _keras(self, connection: Connection, message: Message) -> None:
        self.facts.keras = str(message.get("version") or "unknown")

    def _claim(self, connection: Connection, message: Message) -> None:
        if message.get("attempt") != self._attempt:
            connection.send({"op": "claim", "granted": False, "late": True})
            return
        refusal = self._objection(connection, str(message.get("backend")))
        if refusal:
            self.facts.told = True
            connection.send({"op": "claim", "granted": False})
            self._desk.shelf.voice.once(refusal.split(" ", 1)[0], refusal)
            return
        self._trainer = connection
        self._note_stacks(connection, message)
        self.trainer_pid = self.facts.claimant = connection.pid or int(message.get("pid", 0))
        desk = self._desk
        grant = {
            "op": "claim",
            "granted": True,
            "attempt": self._attempt,
            "run": desk.run_id,
            "run_dir": desk.run_dir,
            "holder": desk.shelf.holder,
            "grace": desk.grace,
            "earlier": self._earlier_trainers(),
            "next_seq": max(desk.shelf.store.next_seq(), self.commits.submitted + 1),
            "taken": self.commits.taken(),
            "slots_on_disk": bool(desk.shelf.stage.on_disk),
            **self._wanted_by_retention(),
        }
        connection.send(grant, self._shared)
        self._write("claimed", pid=self.trainer_pid, keras=message.get("keras"), backend=message.get("backend"))
        desk.post(Claimed())

    def _wanted_by_retention(self) -> dict[str, Any]:
        """Ends of epochs that must be staged because retention keeps them."""
        shelf = self._desk.shelf
        wanted: dict[str, Any] = {"keep_every": shelf.retention.every, "retention": asdict(shelf.retention)}
        if shelf.retention.best is not None:
            name, mode = shelf.retention.best
            found = [monitored(checkpoint, name) for checkpoint in shelf.store.checkpoints()]
            values = [value for value in found if value is not None]
            best = (max if mode == "max" else min)(values, default=None)
            wanted["monitor"] = {"name": name, "mode": mode, "best": best}
        return wanted

    def _earlier_trainers(self) -> list[tuple[int, float, float]]:
        """Processes that may have written for this run before: pid, and the wall times between which they lived."""
        lives: dict[int, list[float]] = {}
        pids: list[tuple[int, int]] = []
        for record in read(self._desk.shelf.journal.path):
            attempt = int(record.get("attempt") or 0)
            if not 0 < attempt < self._attempt:
                continue
            lives.setdefault(attempt, [record["at"], record["at"]])[1] = record["at"]
            if record["event"] in ("launched", "claimed"):
                pids.append((attempt, int(record["pid"])))
        return [(pid, lives[attempt][0], lives[attempt][1]) for attempt, pid in pids]

    def _objection(self, connection: Connection, backend: str) -> str:
        """Why this process cannot be the trainer, "" if it can."""
        if backend != "tensorflow":
            return f"Keras runs on {backend}: only its TensorFlow backend is checkpointed in this version"
        if self._trainer is not None and self._trainer.open:
            return f"process {connection.pid} trains beside process {self.trainer_pid}; only the first is checkpointed"
        return ""

    def _exit(self, connection: Connection, message: Message) -> None:
        pid = connection.pid or int(message.get("pid", 0))
        self.facts.exits[pid] = _failure(message)

    # Restoring

    def _fit(self, connection: Connection, message: Message) -> None:
        self._fits += 1
        fit, epochs = self._fits, int(message.get("epochs", 1))
        shelf = self._desk.shelf
        shelf.persister.submit(
            lambda: restore(
                shelf.store, shelf.stage, fit, epochs, self._begun(fit), self._abandoned_fits(), self._passed_over()
            ),
            lambda found, error: self._answer_fit(connection, fit, found, error),
        )

    def _begun(self, fit: int) -> Mapping[int, int]:
        """How many attempts have begun the fit from which checkpoint; 0 from nothing."""
        records = (r for r in read(self._desk.shelf.journal.path) if r["event"] == "fit_began" and r["fit"] == fit)
        return Counter(int(record["seq"] or 0) for record in records)

    def _passed_over(self) -> list[range]:
        """Numbers of checkpoints that are not gone on from any more: it failed from them twice."""
        records = (r for r in read(self._desk.shelf.journal.path) if r["event"] == "went_back")
        return [range(int(record["to"]) + 1, int(record["newest"]) + 1) for record in records]

    def _abandoned_fits(self) -> set[int]:
        """Fits that an exception ended, and the script went on."""
        return {int(r["fit"]) for r in read(self._desk.shelf.journal.path) if r["event"] == "abandoned"}

    def _answer_fit(self, connection: Connection, fit: int, found: Restored | None, error: Exception | None) -> None:
        if found is None:
            self._refuse(connection, fit, f"the checkpoints cannot be read: {error}")
            return
        for path, reason in found.set_aside:
            self._write("set_aside", path=path, reason=reason)
            self._desk.shelf.voice.say(f"a damaged checkpoint was set aside: {path}: {reason}", urgent=True)
        if found.plan.refusal:
            self._refuse(connection, fit, f"fit {fit} cannot go on: {found.plan.refusal}")
            return
        if found.plan.passed_over is not None:
            self._pass_over(found.plan.passed_over)
        mode = found.plan.mode
        candidate = found.plan.checkpoint
        seq = candidate.seq if candidate else None
        self._write("fit_began", fit=fit, mode=mode.value, seq=seq)
        if mode is not Mode.SKIP:
            self.facts.fit_open = True
            self._desk.post(FitBegan(fit))
        answer = {"op": "restore", "fit": fit, "mode": mode.value, "slot": found.slot, "seq": seq}
        answer["unsaved"] = found.plan.unsaved
        if mode is Mode.FRESH:
            answer["logs"] = self._logs_at_begin_of(fit)
        connection.send(answer)

    def _pass_over(self, candidate: Candidate) -> None:
        at = f"epoch {candidate.epoch + 1}"
        self._desk.shelf.voice.say(
            f"the order of the data inside {at} cannot be gone back to: its begin is; lost once more, it will go on "
            "inside, in a new order"
        )

    def _logs_at_begin_of(self, fit: int) -> Any:
        """How far the log files were written when the fit first began, None if it begins for the first time."""
        records = read(self._desk.shelf.journal.path)
        return next((r["logs"] for r in records if r["event"] == "logs" and r["fit"] == fit), None)

    def _logs(self, connection: Connection, message: Message) -> None:
        self._write("logs", fit=message["fit"], logs=message["logs"])

    def _refuse(self, connection: Connection, fit: int, reason: str) -> None:
        self._desk.post(Refused(reason + REMEDY))
        connection.send({"op": "restore", "fit": fit, "mode": "refused"})

    def _abandon(self, connection: Connection, message: Message) -> None:
        self.facts.fit_open = False
        self._write("abandoned", fit=self._fits)
        self._desk.post(Released())

    def _restored(self, connection: Connection, message: Message) -> None:
        fields = ("fit", "epoch", "batch", "step", "seq", "mode", "guarantee", "seconds", "building")
        record = self._write("resumed", **{name: message.get(name) for name in fields})
        self.facts.resumed_seq = int(message.get("seq") or 0)
        if record["mode"] == Mode.SKIP.value:
            self._desk.post(FitEnded(int(record["fit"])))
            self._desk.shelf.voice.say(f"fit {record['fit']} was complete: its final state is back")
            return
        where = _where(int(message["epoch"]), int(message["batch"]), int(message.get("epochs", 0)))
        self._desk.shelf.voice.say(
            f"resumed fit {record['fit']} at {where} (step {record['step']}): {record['guarantee']}"
        )

    def _refused(self, connection: Connection, message: Message) -> None:
        self._desk.post(Refused(str(message.get("why", "the checkpoint does not fit")) + REMEDY))

    # Staging

    def _staged(self, connection: Connection, message: Message) -> None:
        index = int(message["slot"])
        description = self._desk.shelf.stage.slots[index].read_description()
        if description is None or description["seq"] != message["seq"]:
            connection.send({"op": "free", "slot": index, "seq": message["seq"], "committed": False})
            return
        self.commits.staged(index, description, message)
        self._tell_staged(description["position"])

    def _saved(self, connection: Connection, message: Message) -> None:
        self.commits.saved(message)
        self._tell_staged(message["position"])

    def _unsaved(self, connection: Connection, message: Message) -> None:
        self.commits.unsaved(message)

    def _tell_staged(self, position: dict[str, Any]) -> None:
        self._desk.post(Staged(position["step"]))
        if position["kind"] == "final":
            self.facts.fit_open = False
            self._desk.post(FitEnded(position["fit"]))

    def _leave(self, connection: Connection, message: Message) -> None:
        self._leaving = int(message.get("seq") or 0)
        self._desk.post(Left(str(message.get("reason", "drained"))))
        self.commits.now(self._leaving)
        self._let_go()

    def _let_go(self) -> None:
        """The child may leave as soon as what it staged last is committed, or cannot be."""
        if self._leaving is not None and (not self._leaving or self.commits.is_settled(self._leaving)):
            self._send({"op": "go"})

    # The rest

    def _nan(self, connection: Connection, message: Message) -> None:
        self.facts.nan = True

    def _temporary(self, connection: Connection, message: Message) -> None:
        paths = message.get("paths")
        if isinstance(paths, list):
            self.facts.temporary = tuple(path for path in paths if isinstance(path, str))

    def _note(self, connection: Connection, message: Message) -> None:
        text = str(message.get("text", ""))
        self._write("note", text=text)
        self._desk.shelf.voice.once(text, text)

    def _stop(self, connection: Connection, message: Message) -> None:
        connection.send({"op": "stopping"})
        self._desk.post(StopAsked(StopKind.COMMAND))

    def _rehearse(self, connection: Connection, message: Message) -> None:
        seconds = message.get("seconds")
        if message.get("what") == "disk-full" and isinstance(seconds, int | float):
            refused = self.commits.refuse(float(seconds))
            self._write("rehearsing", what="disk-full", seconds=refused)
            connection.send({"op": "rehearsing", "seconds": refused})

    def _write(self, event: str, **fields: Any) -> dict[str, Any]:
        record = self._desk.shelf.journal.write(event, attempt=self._attempt, **fields)
        self._desk.shelf.voice.record(record)
        return record


def _failure(message: Message) -> Failure | None:
    """The exception that an interpreter tells of at its end."""
    name = str(message.get("exception") or "")
    if not name:
        return None
    bases, number = message.get("bases"), message.get("errno")
    return Failure(
        name=name,
        bases=frozenset(map(str, bases)) if isinstance(bases, list) else frozenset(),
        message=str(message.get("message", "")),
        where=str(message.get("where", "")),
        errno=number if type(number) is int else 0,
    )


def _where(epoch: int, batch: int, epochs: int) -> str:
    """The position for people, who count from 1."""
    if epoch >= epochs:
        return "its end"
    return f"epoch {epoch + 1} of {epochs}" + (f", batch {batch + 1}" if batch else "")


REMEDY = ". Nothing was loaded or lost: put the script back as it was, or use --fresh or another --name"

_HANDLERS: dict[str, Callable[[Dialogue, Connection, Message], None]] = {
    "hello": Dialogue._hello,
    "keras": Dialogue._keras,
    "claim": Dialogue._claim,
    "exit": Dialogue._exit,
    "fit": Dialogue._fit,
    "logs": Dialogue._logs,
    "abandon": Dialogue._abandon,
    "restored": Dialogue._restored,
    "refused": Dialogue._refused,
    "staged": Dialogue._staged,
    "saved": Dialogue._saved,
    "unsaved": Dialogue._unsaved,
    "leave": Dialogue._leave,
    "nan": Dialogue._nan,
    "temporary": Dialogue._temporary,
    "note": Dialogue._note,
    "imports": Dialogue._imports,
    "start_over": Dialogue._start_over,
    "stop": Dialogue._stop,
    "rehearse": Dialogue._rehearse,
}
