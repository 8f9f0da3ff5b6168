"""Everything that hears that this machine may go: the clouds' notices, a file that appears, a disk that fills up.

`watch` starts threads that ask and tell; `check` validates the setting; `explain` says what `auto` chooses and why. A
watcher never raises, never ends a training and never holds up the exit. Importing this imports no source, no HTTP.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ksupervise.notices.detect import DMI, Finding, detect, explain
from ksupervise.notices.notice import Announcer, Notice, Unusable
from ksupervise.notices.pace import Pace

if TYPE_CHECKING:
    from ksupervise.notices.ear import Ear, Source

__all__ = ["CHOICES", "Finding", "Notice", "Pace", "Watch", "check", "detect", "explain", "watch"]

CLOUDS = ("aws", "gcp", "azure")
CHOICES = "off, auto, aws, gcp, azure or file:PATH"
PATIENCE = 1.0  # seconds that closing may take


def check(choice: str) -> str:
    """`choice` as it is to be kept. Raises ValueError, saying what is allowed, for anything else."""
    text = choice.strip()
    if text in ("off", "auto", *CLOUDS) or (text.startswith("file:") and text[5:].strip() and "\0" not in text):
        return text
    raise ValueError(CHOICES)


def watch(
    choice: str,
    *,
    tell: Callable[[Notice], None],
    note: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
    dmi: Path = DMI,
    store: Path | None = None,
    least: Callable[[], int] | None = None,
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Watch:
    """Watch for notices until the Watch is closed. Returns at once; asks on threads of its own.

    Args:
        choice: off, auto, aws, gcp, azure or file:PATH.
        tell: is given every notice, on a watcher's thread. The same notice comes again only when its deadline has come
            nearer or it has become final.
        note: is given lines that the user should see once, on a watcher's thread or (before this returns) on ours.
        environ: for the variables that send a source elsewhere or switch it off.
        dmi: where the firmware's words are, for auto.
        store: with `least`, the folder whose file system must not fill up; watched unless `choice` is off.
        least: bytes that must be free there.
        pace: how often each source is asked.

    Raises:
        ValueError: for a `choice` that `check` refuses.
    """
    choice = check(choice)
    made = Watch()
    for name in _names(choice, environ, dmi, disk=store is not None and least is not None):
        announcer = Announcer(name, tell, made.closing, lead=pace.lead)
        try:
            made.add(_open(name, choice, announcer, environ, store, least, pace), note, pace)
        except (Unusable, RuntimeError) as error:  # RuntimeError: no thread or no home is to be had
            note(f"{name}: its notices are not heard: {error}")
    return made


class Watch:
    """What is watched, until it is closed.

    Attributes:
        names: the sources that are watched: of aws, gcp, azure, file, disk.
        closing: set once no notice is told any more.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.closing = threading.Event()
        self._sources: list[Source] = []
        self._ears: list[Ear] = []

    def close(self) -> None:
        """End it: from now on nothing is told that is not being told already. Takes a second at most; may be repeated.

        A thread that hangs even then (a file on a dead NFS) is left behind and holds nothing up.
        """
        self.closing.set()
        for source in self._sources:
            source.hang_up()
        until = time.monotonic() + PATIENCE
        for ear in self._ears:
            ear.join(max(0.0, until - time.monotonic()))
        self._ears.clear()

    def add(self, source: Source, note: Callable[[str], None], pace: Pace) -> None:
        """Ask `source` from now on. Raises RuntimeError if no thread is to be had."""
        from ksupervise.notices.ear import Ear, Health

        self._sources.append(source)
        health = Health(source, note, pace.slow)
        for question in source.questions():
            ear = Ear(question, health, pace, self.closing)
            ear.start()
            self._ears.append(ear)
        self.names = (*self.names, source.name)


def _names(choice: str, environ: Mapping[str, str], dmi: Path, *, disk: bool) -> tuple[str, ...]:
    """The sources that `choice` means, here."""
    if choice == "off":
        return ()
    chosen = detect(environ, dmi) if choice == "auto" else (choice.partition(":")[0],)
    return (*chosen, "disk") if disk else chosen


def _open(
    name: str,
    choice: str,
    announcer: Announcer,
    environ: Mapping[str, str],
    store: Path | None,
    least: Callable[[], int] | None,
    pace: Pace,
) -> Source:
    """The source called `name`; only its own module is imported. Raises Unusable."""
    if name == "file":
        from ksupervise.notices import file

        return file.Source(announcer, Path(choice.partition(":")[2]), pace)
    if name == "disk":
        from ksupervise.notices import disk

        assert store is not None
        assert least is not None
        return disk.Source(announcer, store, least, pace)
    if name == "aws":
        from ksupervise.notices import aws

        return aws.Source(announcer, environ, pace)
    if name == "gcp":
        from ksupervise.notices import gcp

        return gcp.Source(announcer, environ, pace)
    from ksupervise.notices import azure

    return azure.Source(announcer, environ, pace)
