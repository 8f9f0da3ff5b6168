"""Asking a metadata service over HTTP: bounded in time and size, past every proxy, never redirected.

urllib of the standard library, with an opener that has no handler for redirects, errors or other schemes: whatever
the answer is, it comes back as an answer.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from typing import Any

from ksupervise.notices.notice import Unavailable, Unusable, plain

LARGEST = 64 * 1024  # bytes of an answer: the longest honest one has a few hundred
CONNECT = 3.0  # seconds for the connection alone: the service is one hop away or it is not there

_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?\s*(?:[Zz]|([+-])(\d\d):?(\d\d))?", re.ASCII
)


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status.

    Attributes:
        status: of HTTP.
        headers: names without regard to case.
        body: at most LARGEST bytes.
    """

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, without white space around it."""
        return self.body.decode("utf-8", "replace").strip()

    def fields(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Unavailable if it is none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Unavailable(f"it answers with {glimpse(self.text)}, which is no JSON object")
        return value

    def left(self, moment: float) -> float:
        """Seconds from the server's now to `moment` (seconds since 1970), below 0 for one that is over.

        By the server's own Date, so that a wrong clock on this side does not matter; that is cut to the second, so
        the answer may be up to one too many. Without a Date our own clock has to do.
        """
        now = moment_of(self.headers.get("Date", ""))
        return moment - (time.time() if now is None else now)


class Client:
    """Asks one service; one thread asks, any thread may close.

    Args:
        base: http://host[:port][/path]; check it with `address` first.
    """

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False
        self._opener = urllib.request.OpenerDirector()
        self._opener.addheaders = [("User-Agent", "ksupervise")]
        # An empty ProxyHandler: a metadata service means the machine that asks, never a proxy's.
        for handler in (urllib.request.ProxyHandler({}), _Handler(self), urllib.request.UnknownHandler()):
            self._opener.add_handler(handler)

    def ask(self, path: str, headers: Mapping[str, str], *, timeout: float, method: str = "GET") -> Answer:
        """What the service says at `path`, within about `timeout` seconds. Raises Unavailable."""
        request = urllib.request.Request(f"{self.base}{path}", headers=dict(headers), method=method)  # noqa: S310
        until = time.monotonic() + timeout
        try:
            with contextlib.closing(self._opener.open(request, timeout=timeout)) as response:
                return Answer(response.status, response.headers, _body(response, until))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unavailable(f"it gives no answer ({_reason(error)})") from error
        finally:
            with self._lock:
                self._socket = None

    def close(self) -> None:
        """Hang up: a request under way ends with Unavailable, as does every later one."""
        with self._lock:
            self._closed = True
            _hang_up(self._socket)

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            if self._closed:
                _hang_up(sock)


class _Connection(http.client.HTTPConnection):
    """Waits for a connection less long than for an answer, and shows its socket so that it can be hung up."""

    def __init__(self, client: Client, host: str, timeout: float) -> None:
        super().__init__(host, timeout=min(timeout, CONNECT))
        self._client = client
        self._patience = timeout

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._patience)
        self._client._hold(self.sock)


class _Handler(urllib.request.HTTPHandler):
    """Opens our connections."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, /, *, timeout: float = CONNECT, **_: Any) -> http.client.HTTPConnection:
            return _Connection(self._client, host, timeout)

        return self.do_open(connection, req)


def _hang_up(sock: socket.socket | None) -> None:
    """Wake whoever reads from it."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """The whole body. Raises Unavailable for one that is too long or drips in too slowly."""
    body = b""
    while piece := response.read1(LARGEST):
        body += piece
        if len(body) > LARGEST:
            raise Unavailable(f"it answers with more than {LARGEST // 1024} KiB")
        if time.monotonic() > until:
            raise Unavailable("its answer does not end")
    return body


def _reason(error: Exception) -> str:
    """What went wrong, shortly."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "timed out"
    return plain(getattr(error, "strerror", None) or str(error) or type(error).__name__, 120)


def refused(answer: Answer) -> Unavailable:
    """For a status that says neither yes nor the no that is normal."""
    if 300 <= answer.status < 400:
        return Unavailable(f"it redirects elsewhere (HTTP {answer.status}), so something else answers in its place")
    if answer.status in (401, 403):
        return Unavailable(f"it refuses our requests (HTTP {answer.status})")
    return Unavailable(f"it answers HTTP {answer.status}")


def glimpse(text: str) -> str:
    """The beginning of an answer that makes no sense, for people."""
    return repr(plain(text, 40)) if text else "nothing"


def address(value: str, variable: str) -> str:
    """`value`, if it is the address of an HTTP server. Raises Unusable, naming the `variable` it came from."""
    try:
        parts = urllib.parse.urlsplit(value)
        good = parts.scheme == "http" and parts.hostname and parts.port != 0 and not parts.username
        good = good and not parts.query and not parts.fragment and "//" not in parts.path
        good = good and re.fullmatch(r"[\x21-\x7e]+", value, re.ASCII) is not None
    except ValueError:
        good = False
    if not good:
        raise Unusable(f"{variable} is {plain(value, 80)!r}, which is no http://HOST[:PORT]; mend or unset it")
    return value


def moment_of(text: object) -> float | None:
    """Seconds since 1970 of `2026-11-23T05:00:00Z` or `Mon, 23 Nov 2026 05:00:00 GMT`; None for anything else.

    Fractions are kept; where no zone is named it is UTC.
    """
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        if found := _MOMENT.fullmatch(text.strip()):
            return _iso(found)
        moment = email.utils.parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _iso(found: re.Match[str]) -> float:
    *fields, fraction, sign, hours, minutes = found.groups()
    year, month, day, hour, minute, second = map(int, fields)
    moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp()
    offset = (int(hours) * 60 + int(minutes)) * 60 if sign else 0
    return moment + float(fraction or 0) - (offset if sign == "+" else -offset)
