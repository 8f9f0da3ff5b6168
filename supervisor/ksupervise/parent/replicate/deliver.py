"""A run that has ended, and of which a replica lacks something: it is brought there, and nothing is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ksupervise.parent.journal import Journal
from ksupervise.parent.replicate.fleet import LAST_COPY, Fleet
from ksupervise.parent.signals import SignalPipe
from ksupervise.parent.voice import Voice


def deliver(configurations: Sequence[Mapping[str, Any]], book: Journal, voice: Voice) -> None:
    """Bring all replicas up to date, as far as that can be done in time."""
    fleet = Fleet(
        configurations,
        watch=lambda fd, callback: None,  # what they say is heard by `finish`
        unwatch=lambda fd: None,
        record=lambda event, **fields: voice.record(book.write(event, **fields)),
        voice=voice,
        superseded=voice.say,
    )
    with contextlib.closing(SignalPipe()) as signals, contextlib.closing(fleet):
        fleet.committed()
        fleet.look()
        fleet.finish(LAST_COPY, voice.say, signals)
        for place in fleet.incomplete:
            voice.say(f"replica {place}: the newest checkpoint is not there, only here", urgent=True)
