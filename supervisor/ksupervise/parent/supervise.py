"""`ksupervise COMMAND`, from settings to exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ksupervise import settings as reading
from ksupervise.core.actions import Finish, RunState
from ksupervise.core.admission import Admission
from ksupervise.errors import RunBusy, UsageError
from ksupervise.parent import process
from ksupervise.parent.console import Console
from ksupervise.parent.loop import Supervisor
from ksupervise.parent.owned import OwnedRun, open_journal, steps, take
from ksupervise.parent.replicate.deliver import deliver
from ksupervise.parent.voice import Voice
from ksupervise.replicas.open import check_places
from ksupervise.store import StoreUnwritable

# Set to a number above 0 in every process of a group but the first.
_RANKS = ("SLURM_PROCID", "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def supervise(flags: Mapping[str, Any], command: Sequence[str]) -> int:
    """Supervise `command` to its verdict and return the exit code. Raises KsuperviseError."""
    settings = reading.load(flags)
    check_places(settings.replica, settings.store)
    refuse_ranks(os.environ)
    process.resolve(command)
    console = Console()
    voice = Voice(console, quiet=settings.quiet, json_log=settings.json_log)
    try:
        owned = take(settings, command, interactive=_interactive(), say=voice.say)
        if isinstance(owned, Admission):
            voice.say(owned.line)
            return owned.exit_code
        return _to_verdict(owned, command, settings, console, voice)
    except RunBusy as busy:
        if _interactive() or settings.replica:  # what was said of replicas wants its end
            raise
        return busy.exit_code  # a cron line that finds its run at work says nothing
    finally:
        console.close()


def _to_verdict(
    owned: OwnedRun, command: Sequence[str], settings: reading.Settings, console: Console, voice: Voice
) -> int:
    if owned.ended is not None:
        return _deliver(owned, owned.ended, voice)
    verdict = Supervisor(owned, command, settings, console, voice).run()
    line = _last_line(owned, verdict)
    try:
        owned.conclude(verdict)
    except StoreUnwritable as error:  # the verdict stands all the same; the next call finds a run that was lost
        voice.say(str(error), urgent=True)
    if not verdict.silent:  # else the script's own traceback, or its usage line, is the last that is read
        voice.say(line, urgent=verdict.state is not RunState.COMPLETED)
    return verdict.exit_code


def _deliver(owned: OwnedRun, ended: Admission, voice: Voice) -> int:
    voice.say(ended.line)
    try:
        with contextlib.closing(open_journal(owned.layout)) as book:
            deliver(owned.replicas, book, voice)
    finally:
        owned.release()
    return ended.exit_code


def _last_line(owned: OwnedRun, verdict: Finish) -> str:
    accounts = owned.account()
    attempts = len(accounts.attempts)
    line = f"run {owned.record.name} {verdict.state.value.replace('_', ' ')}"
    if verdict.state is not RunState.COMPLETED:
        line += f": {verdict.detail}"
    line += f" ({attempts} attempt{'s' if attempts != 1 else ''}"
    if accounts.steps_executed:
        at_least = "at least " if accounts.at_least else ""
        line += f", {at_least}{steps(accounts.steps_executed)} executed, {accounts.lost_steps} lost"
    line += ")"
    if owned.lost:
        line += "; it goes on there"
    elif verdict.state in (RunState.PREEMPTED, RunState.INTERRUPTED) and accounts.checkpoint:
        line += f"; saved at step {accounts.checkpoint['step']}, the same command goes on"
    return line


def _interactive() -> bool:
    """Somebody is there to want a failed run again."""
    return sys.stdin is not None and sys.stdin.isatty()


def refuse_ranks(environ: Mapping[str, str]) -> None:
    """Refuse to be one of several. Raises UsageError."""
    for name in _RANKS:
        if environ.get(name, "0") not in ("", "0"):
            raise UsageError(
                f"{name}={environ[name]}: this is one of several ranks, and training on several is not "
                "supervised yet; start one ksupervise for one process"
            )
