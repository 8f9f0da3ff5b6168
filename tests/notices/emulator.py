"""The metadata services of three clouds on loopback, as strict as the real ones, and faulty on demand.

Honest enough for other people's clients: `test_other_clients.py` points botocore and google-auth at them.
"""

from __future__ import annotations

import email.utils
import itertools
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 20.0  # seconds that anything may take on a loaded machine


@dataclass(frozen=True)
class Reply:
    """What a server answers; `body` of None: it hangs up without an answer."""

    status: int = 200
    body: bytes | None = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case


Fault = Callable[[Asked], Reply]

HTML = b"<!DOCTYPE html>\n<html><body>Welcome! <a href='/login'>Sign in</a> to use TRUE Wi-Fi</body></html>"


class Emulator:
    """One server on 127.0.0.1. Subclasses know their cloud's paths.

    Attributes:
        host: HOST:PORT.
        url: http://HOST:PORT.
        ahead: seconds by which its clock, as seen in the Date of its answers, is ahead of ours.
        dated: it sends a Date.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.dated = True
        self.closing = threading.Event()
        self._asked: list[Asked] = []
        self._changed = threading.Condition()
        self._faults: list[tuple[str, Fault, bool]] = []
        self._surprises: list[str] = []
        self._server = _Server(self)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    # For tests ------------------------------------------------------------------------------------

    def now(self) -> float:
        """Its clock: seconds since 1970."""
        return time.time() + self.ahead

    def fault(self, part: str, fault: Fault, *, always: bool = False) -> None:
        """The next request (or every one) whose path contains `part` is answered by `fault`."""
        with self._changed:
            self._faults.append((part, fault, always))

    def mend(self) -> None:
        """No faults any more."""
        with self._changed:
            self._faults.clear()

    def asked(self, part: str = "") -> list[Asked]:
        """The requests so far whose path contains `part`."""
        with self._changed:
            return [asked for asked in self._asked if part in asked.path]

    def await_asked(self, part: str, more: int = 1) -> None:
        """Wait until `more` further requests with `part` in the path have come. Raises AssertionError after a while."""
        with self._changed:
            self._await(part, self._count(part) + more)

    def await_first(self, part: str) -> None:
        """Wait until any request with `part` in the path has come. Raises AssertionError after a while."""
        with self._changed:
            self._await(part, 1)

    def _await(self, part: str, wanted: int) -> None:
        assert self._changed.wait_for(lambda: self._count(part) >= wanted, PATIENCE), f"nobody asks for {part}"

    def _count(self, part: str) -> int:
        return sum(part in asked.path for asked in self._asked)

    def close(self) -> None:
        """End it. Raises AssertionError if a handler failed in a way nobody asked for."""
        self.closing.set()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)
        assert not self._surprises, self._surprises

    # For servers ----------------------------------------------------------------------------------

    def reply(self, asked: Asked) -> Reply:
        """The honest answer."""
        raise NotImplementedError

    def _handle(self, asked: Asked) -> Reply:
        with self._changed:
            self._asked.append(asked)
            self._changed.notify_all()
            fault = self._pick(asked)
        return fault(asked) if fault else self.reply(asked)

    def _pick(self, asked: Asked) -> Fault | None:
        for entry in self._faults:
            part, fault, always = entry
            if part in asked.path:
                if not always:
                    self._faults.remove(entry)
                return fault
        return None


# Faults -------------------------------------------------------------------------------------------


def status(code: int) -> Fault:
    """Answers nothing but that."""
    return lambda _: Reply(code, b"error")


def says(body: bytes, **headers: str) -> Fault:
    """Answers 200 and `body`."""
    return lambda _: Reply(200, body, {name.replace("_", "-"): value for name, value in headers.items()})


def redirect(url: str) -> Fault:
    """Sends to `url`, with the path asked for."""
    return lambda asked: Reply(302, b"", {"Location": url + asked.path})


def hang_up(_: Asked) -> Reply:
    """Closes the connection without an answer."""
    return Reply(body=None)


def stall(emulator: Emulator) -> Fault:
    """Never answers."""

    def wait(_: Asked) -> Reply:
        emulator.closing.wait(PATIENCE)
        return Reply(body=None)

    return wait


# The clouds ---------------------------------------------------------------------------------------


class Aws(Emulator):
    """IMDS: tokens with a life, 404 for what there is not.

    Attributes:
        documents: by path below latest/meta-data: what is there.
        optional: a request without any token is answered too (IMDSv1).
        put_status: answers PUT with that instead of a token.
        clock: what tokens age by.
    """

    ROLE = "trainer"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.optional = False
        self.put_status = 200
        self.clock = clock
        self._tokens: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self.documents: dict[str, str] = {
            "instance-id": "i-0123456789abcdef0",
            "placement/region": "eu-central-1",
            "placement/availability-zone": "eu-central-1b",
            "iam/security-credentials/": self.ROLE,
            f"iam/security-credentials/{self.ROLE}": json.dumps(
                {
                    "Code": "Success",
                    "Type": "AWS-HMAC",
                    "AccessKeyId": "ASIAEXAMPLE",
                    "SecretAccessKey": "emulated",
                    "Token": "emulated-session",
                    "Expiration": "2099-01-01T00:00:00Z",
                }
            ),
        }
        super().__init__()

    def moment(self, seconds: float) -> str:
        """`seconds` from its now, as IMDS writes times."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now() + seconds))

    def interrupt(self, seconds: float, action: str = "terminate") -> None:
        """Announce a spot interruption."""
        self.documents["spot/instance-action"] = json.dumps({"action": action, "time": self.moment(seconds)})

    def forget_tokens(self) -> None:
        """As after the service was restarted."""
        self._tokens.clear()

    def reply(self, asked: Asked) -> Reply:
        if "x-forwarded-for" in asked.headers:
            return Reply(403)
        if asked.path == "/latest/api/token":
            return self._token(asked)
        if asked.method != "GET":
            return Reply(405)
        token = asked.headers.get("x-aws-ec2-metadata-token")
        if token is None and not self.optional:
            return Reply(401)
        if token is not None and self._tokens.get(token, 0.0) <= self.clock():
            return Reply(401)
        name = asked.path.removeprefix("/latest/meta-data/")
        found = self.documents.get(name, self.documents.get(name.rstrip("/")))
        return Reply(404, b"<html>404 - Not Found</html>") if found is None else Reply(200, found.encode())

    def _token(self, asked: Asked) -> Reply:
        if asked.method != "PUT":
            return Reply(405)
        if self.put_status != 200:
            return Reply(self.put_status)
        ttl = asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= 21600:
            return Reply(400)
        token = f"AQAEAEmulated{next(self._numbers):04d}=="
        self._tokens[token] = self.clock() + int(ttl)
        return Reply(200, token.encode(), {"X-aws-ec2-metadata-token-ttl-seconds": ttl})


class Gcp(Emulator):
    """The metadata server: the flavor both ways, etags, long polls."""

    FLAVOR: Mapping[str, str] = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._numbers = itertools.count(1)
        self._values: dict[str, tuple[str, str]] = {}
        super().__init__()
        for path, value in {
            "instance/preempted": "FALSE",
            "instance/maintenance-event": "NONE",
            "instance/id": "4520031799277581759",
            "project/project-id": "emulated-project",
        }.items():
            self.put(path, value)

    def put(self, path: str, value: str) -> None:
        """The value at `path` becomes that; whoever waits for it is answered."""
        with self._news:
            self._values[path] = (value, f"{next(self._numbers):016x}")
            self._news.notify_all()

    def drop(self, path: str) -> None:
        """There is nothing at `path` any more."""
        with self._news:
            self._values.pop(path, None)
            self._news.notify_all()

    def close(self) -> None:
        self.closing.set()
        with self._news:
            self._news.notify_all()
        super().close()

    def reply(self, asked: Asked) -> Reply:
        if asked.path == "/":  # the one thing it says to anybody: who it is
            return Reply(200, b"computeMetadata/\n", self.FLAVOR)
        if asked.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in asked.headers:
            return Reply(403, b"Missing Metadata-Flavor:Google header.", self.FLAVOR)
        path = asked.path.removeprefix("/computeMetadata/v1/")
        if asked.method != "GET" or path == asked.path:
            return Reply(404, b"", self.FLAVOR)
        with self._news:
            if asked.query.get("wait_for_change") == "true":
                self._wait(path, asked.query)
            if path not in self._values:
                return Reply(404, b"", self.FLAVOR)
            value, etag = self._values[path]
        return Reply(200, value.encode(), {**self.FLAVOR, "ETag": etag, "Content-Type": "application/text"})

    def _wait(self, path: str, query: Mapping[str, str]) -> None:
        """Until the value is another one than the one named, or than the present one."""
        known = query.get("last_etag") or self._values.get(path, ("", ""))[1]
        seconds = float(query.get("timeout_sec", PATIENCE))
        self._news.wait_for(lambda: self.closing.is_set() or self._values.get(path, ("", ""))[1] != known, seconds)


class Azure(Emulator):
    """Scheduled Events and the machine's name.

    Attributes:
        machine: its name.
        events: the document's events.
    """

    def __init__(self) -> None:
        self.machine = "Trainer-0"
        self.events: list[dict[str, Any]] = []
        super().__init__()

    def moment(self, seconds: float) -> str:
        """`seconds` from its now, as Azure writes times."""
        return email.utils.formatdate(self.now() + seconds, usegmt=True)

    def announce(self, kind: str, seconds: float | None, **more: Any) -> dict[str, Any]:
        """Add an event for this machine, `seconds` ahead (None: Started); return it."""
        event = {
            "EventId": f"event-{len(self.events)}-{kind}",
            "EventStatus": "Started" if seconds is None else "Scheduled",
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": [self.machine],
            "NotBefore": "" if seconds is None else self.moment(seconds),
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
            **more,
        }
        self.events = [*self.events, event]
        return event

    def reply(self, asked: Asked) -> Reply:
        if asked.headers.get("metadata", "").lower() != "true" or "x-forwarded-for" in asked.headers:
            return Reply(400, b'{"error": "Bad request. Required metadata header not specified"}')
        if asked.path == "/metadata/instance/compute/name" and asked.query.get("api-version") == "2021-02-01":
            return Reply(200, self.machine.encode()) if asked.query.get("format") == "text" else Reply(400)
        if asked.path != "/metadata/scheduledevents" or asked.query.get("api-version") != "2020-07-01":
            return Reply(400, b'{"error": "Bad request"}')
        if asked.method != "GET":
            raise AssertionError("an event was acknowledged")
        document = {"DocumentIncarnation": len(self.events), "Events": self.events}
        return Reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


# HTTP ---------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is none of ours; anything else fails the test."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.emulator._surprises.append(repr(error))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fields = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        reply = self.server.emulator._handle(Asked(self.command, path, fields, headers))
        if reply.body is None:
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        if self.server.emulator.dated:
            self.send_header("Date", email.utils.formatdate(self.server.emulator.now(), usegmt=True))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
