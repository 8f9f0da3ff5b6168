"""Google Compute Engine: preemption and host maintenance, each by a long poll of its own.

Environment: GCE_METADATA_HOST (before that was its name, GCE_METADATA_ROOT) as in google-auth: HOST[:PORT], no scheme.
GCE_METADATA_IP, which google-auth asks only whether anybody is there, is where we ask when neither is set: whoever
sets it alone does not want the real one asked.
"""

from __future__ import annotations

import glob
import urllib.parse
from collections.abc import Callable, Mapping

from ksupervise.notices.client import Answer, Client, address, glimpse, refused
from ksupervise.notices.ear import Question
from ksupervise.notices.notice import Announcer, Unavailable
from ksupervise.notices.pace import Pace

HOST = "metadata.google.internal"
VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
PREEMPTION = 30.0  # seconds from the announcement to the end, at most
MAINTENANCE = 60.0  # seconds from the announcement to the stop
GPU_MAINTENANCE = 3600.0  # the same for a machine with a GPU

_NOBODYS = "0"  # an etag that is not the present one's, so that the answer comes at once


def has_gpu() -> bool:
    """A GPU is seen here. Seconds too few are the price where it is not."""
    return bool(glob.glob("/dev/nvidia[0-9]*"))


class Source:
    """What Google announces for this machine. Raises Unusable for an address that is none.

    Args:
        announcer: is told what is heard.
        environ: the environment.
        pace: how often.
        gpu: whether this machine has one.
    """

    name = "gcp"
    hint = (
        "In a container the service may be out of reach, and GKE's own does not offer this: there the pod gets SIGTERM"
    )

    def __init__(
        self, announcer: Announcer, environ: Mapping[str, str], pace: Pace, gpu: Callable[[], bool] = has_gpu
    ) -> None:
        base = endpoint(environ)
        self._announcer = announcer
        self._pace = pace
        self._gpu = gpu
        self._keys = (
            _Key("instance/preempted", base, announcer.clock, pace),
            _Key("instance/maintenance-event", base, announcer.clock, pace),
        )
        self.place = f"the metadata service at {base}"

    def questions(self) -> tuple[Question, ...]:
        """One long poll for each."""
        preempted, maintenance = self._keys
        return (
            Question(preempted.path, lambda: self._preempted(preempted), self._pace.gcp),
            Question(maintenance.path, lambda: self._maintenance(maintenance), self._pace.gcp),
        )

    def hang_up(self) -> None:
        """End the long polls."""
        for key in self._keys:
            key.client.close()

    def _preempted(self, key: _Key) -> None:
        key.wait_for_change()
        if key.value == "TRUE":
            until = None if key.since is None else key.since + PREEMPTION
            self._announcer.heard("preempted", "Google Cloud preempts this machine", final=True, until=until)
        elif key.value == "FALSE":
            self._announcer.gone("preempted")
        else:
            raise Unavailable(f"it answers with {glimpse(key.value)}, which is neither TRUE nor FALSE")

    def _maintenance(self, key: _Key) -> None:
        """An event of a kind that is not known yet is nothing to act upon."""
        key.wait_for_change()
        moves, stops = (key.value == f"{what}_ON_HOST_MAINTENANCE" for what in ("MIGRATE", "TERMINATE"))
        if moves:
            self._announcer.heard("migrate", "Google Cloud moves this machine to another host", final=False)
        else:
            self._announcer.gone("migrate")
        if stops:
            given = GPU_MAINTENANCE if self._gpu() else MAINTENANCE
            until = None if key.since is None else key.since + given
            self._announcer.heard("stop", "Google Cloud stops this machine for maintenance", final=True, until=until)
        else:
            self._announcer.gone("stop")


class _Key:
    """One value of the metadata, and since when it is that.

    Attributes:
        path: below computeMetadata/v1.
        client: of its own, since each thread waits on its own connection.
        value: the last one seen; "" before the first.
        since: when it became that, on the clock; None if it was already so when we first looked, or looked again
            after a failure: then nobody knows how much of the time given is over.
    """

    def __init__(self, path: str, base: str, clock: Callable[[], float], pace: Pace) -> None:
        self.path = path
        self.client = Client(base)
        self.value = ""
        self.since: float | None = None
        self._clock = clock
        self._pace = pace
        self._etag = _NOBODYS
        self._watched = False  # the last request was answered, so that what is new now has just become so

    def wait_for_change(self) -> None:
        """Return when the value has changed, or with the same after a while. Raises Unavailable."""
        watched, self._watched = self._watched, False
        hold = max(1, round(self._pace.gcp_hold))
        path = f"/computeMetadata/v1/{self.path}?wait_for_change=true&last_etag={self._etag}&timeout_sec={hold}"
        answer = self.client.ask(path, {"Metadata-Flavor": "Google"}, timeout=self._pace.gcp_hold + self._pace.timeout)
        _check(answer)
        self._etag = urllib.parse.quote(answer.headers.get("ETag", "")[:64], safe="") or _NOBODYS
        if answer.text != self.value:
            self.value = answer.text
            self.since = self._clock() if watched else None
        self._watched = True


def _check(answer: Answer) -> None:
    """Raises Unavailable for anything but a good answer of Google's own."""
    if answer.status != 200:
        raise refused(answer)
    if answer.headers.get("Metadata-Flavor") != "Google":
        raise Unavailable("its answer has no `Metadata-Flavor: Google`, so something else answers in its place")


def endpoint(environ: Mapping[str, str]) -> str:
    """Where the service is. Raises Unusable for a host that is none."""
    for variable in VARIABLES:
        if host := environ.get(variable, ""):
            return address(f"http://{host}", variable)
    return f"http://{HOST}"
