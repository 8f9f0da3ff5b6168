"""Azure: Scheduled Events for this virtual machine.

Environment: KSUPERVISE_AZURE_METADATA, http://HOST[:PORT], is our own. Azure's clients have no common variable for the
address of the metadata service: what azure-identity reads (AZURE_POD_IDENTITY_AUTHORITY_HOST) names a server of tokens.

We never acknowledge an event. Acknowledging (a POST of StartRequests) lets Azure begin before the time announced, for
every machine that the event names, and that is not ours to allow: it would take time from a save under way, here and
in the neighbours of the same set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ksupervise.notices.client import Answer, Client, address, glimpse, moment_of, refused
from ksupervise.notices.ear import Question
from ksupervise.notices.notice import Announcer, Unavailable
from ksupervise.notices.pace import Pace

VARIABLE = "KSUPERVISE_AZURE_METADATA"
ENDPOINT = "http://169.254.169.254"
STALE = 600.0  # seconds over: what has not begun by then will not
FINAL = ("Preempt", "Terminate", "Reboot", "Redeploy")
# After these the machine comes back, while the event may still be listed for a while.
_COMES_BACK = ("Reboot", "Redeploy")

_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class Source:
    """What Azure announces for this machine. Raises Unusable for an address that is none."""

    name = "azure"
    hint = "In a container the service may be out of reach: it must use the host's network"

    def __init__(self, announcer: Announcer, environ: Mapping[str, str], pace: Pace) -> None:
        self._announcer = announcer
        self._pace = pace
        self._client = Client(endpoint(environ))
        self._machine = ""
        self._listed: set[str] | None = None  # the events of the last answer; None before the first
        self._over: set[str] = set()  # events that had begun before we looked
        self.place = f"the metadata service at {self._client.base}"

    def questions(self) -> tuple[Question, ...]:
        """One: all events come in one document."""
        return (Question("scheduled events", self._look, self._pace.azure),)

    def hang_up(self) -> None:
        """End a request under way."""
        self._client.close()

    def _look(self) -> None:
        if not self._machine:
            self._machine = self._own_name()
        # The first request ever sets the service up for this machine, which may take two minutes.
        first = self._listed is None
        answer = self._get(_EVENTS, self._pace.azure_first if first else 5 * self._pace.timeout)
        events = answer.fields().get("Events")
        if not isinstance(events, list):
            raise Unavailable(f"it answers with {glimpse(answer.text)}, which is no list of events")
        ours: dict[str, dict[str, Any]] = {event["EventId"]: event for event in events if self._is_ours(event)}
        for gone in (self._listed or set()) - set(ours):
            self._announcer.gone(gone)
        if first:
            self._over = {key for key, event in ours.items() if _has_begun(event) and event["EventType"] in _COMES_BACK}
        self._listed = set(ours)
        for key in self._listed - self._over:
            self._event(key, ours[key], answer)

    def _event(self, key: str, event: Mapping[str, Any], answer: Answer) -> None:
        kind = event["EventType"]
        left = _left(event, answer)
        if kind == "Freeze":
            when = _when(event)
            self._announcer.heard(key, f"Azure freezes this machine for a while{when}", final=False)
        elif kind in FINAL and (left is None or left > -STALE):
            until = None if left is None else self._announcer.clock() + left
            self._announcer.heard(key, f"Azure: {kind} of this machine{_when(event)}", final=True, until=until)

    def _own_name(self) -> str:
        name = self._get(_NAME, 5 * self._pace.timeout).text
        if not re.fullmatch(r"[\w.-]{1,128}", name):
            raise Unavailable(f"it answers with {glimpse(name)}, which is no name of a machine")
        return name.casefold()

    def _is_ours(self, event: object) -> bool:
        """It names this machine: the events of a whole set or group are told to each machine of it."""
        if not isinstance(event, dict) or not isinstance(event.get("EventId"), str):
            return False
        machines = event.get("Resources")
        return (
            isinstance(machines, list)
            and isinstance(event.get("EventType"), str)
            and self._machine in (machine.casefold() for machine in machines if isinstance(machine, str))
        )

    def _get(self, path: str, timeout: float) -> Answer:
        answer = self._client.ask(path, {"Metadata": "true"}, timeout=timeout)
        if answer.status != 200:
            raise refused(answer)
        return answer


def _has_begun(event: Mapping[str, Any]) -> bool:
    return event.get("EventStatus") == "Started"


def _left(event: Mapping[str, Any], answer: Answer) -> float | None:
    """Seconds until it may begin: 0 once it has, None if that is not to be read."""
    if _has_begun(event) or event.get("NotBefore") == "":
        return 0.0
    moment = moment_of(event.get("NotBefore"))
    return None if moment is None else answer.left(moment)


def _when(event: Mapping[str, Any]) -> str:
    """The time in words, with what Azure says of the reason."""
    moment = moment_of(event.get("NotBefore"))
    when = ", begun" if _has_begun(event) else "" if moment is None else f" not before {event['NotBefore']}"
    reason = event.get("Description")
    return f"{when} ({reason})" if isinstance(reason, str) and reason.strip() else when


def endpoint(environ: Mapping[str, str]) -> str:
    """Where the service is. Raises Unusable for an address that is none."""
    given = environ.get(VARIABLE, "")
    return address(given, VARIABLE) if given else ENDPOINT
