"""An S3 server on loopback (moto's, in a process of its own), and what can go wrong on the way to it.

with serving() as server:
    make_bucket(server, "bucket")
    with weather(server) as between:
        between.rule = lambda method, path: "lost" if method == "PUT" else "fine"
        ... ask http://127.0.0.1:{between.port} instead
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

_WAIT = 60.0  # seconds; for a process that is to start or end
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}

# What happens to a request: answered as it should be; done, but the connection ends without an answer; neither done nor
# answered until `Weather.clear`; refused with HTTP 503; half of the answer's body comes and then the connection ends.
Fate = Literal["fine", "lost", "stalled", "failing", "cut"]


@dataclass(frozen=True)
class Server:
    """Where one listens.

    Attributes:
        port: on 127.0.0.1.
    """

    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """The body of the answer to a plain request. Raises OSError for one that is none of success."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_WAIT)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 300:
            raise OSError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return text


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """moto's server, empty; its process ends with this one, whatever becomes of us."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for each request
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Server(int(process.stdout.readline()))
    finally:
        process.stdin.close()  # the process takes the end of its input for the end
        try:
            process.wait(_WAIT)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def make_bucket(server: Server, name: str) -> None:
    """Make an empty bucket."""
    server.ask("PUT", f"/{name}")


def reset(server: Server) -> None:
    """Forget all buckets, and who may do what."""
    server.ask("POST", "/moto-api/reset")


@contextlib.contextmanager
def wanting_credentials(server: Server) -> Iterator[None]:
    """Meanwhile it believes nobody: there are no users."""
    plain = {"Content-Type": "text/plain"}
    server.ask("POST", "/moto-api/reset-auth", b"0", plain)
    try:
        yield
    finally:
        server.ask("POST", "/moto-api/reset-auth", b"inf", plain)


@dataclass
class Weather:
    """Something between a client and the server.

    Attributes:
        port: to ask instead of the server's.
        rule: what happens to the next request, by its method and path.
        seen: method, path and fate of each request there was.
        done: told of each request that the server has answered: method, path, body, and the answer's status.
        host: address that it listens on.
    """

    port: int = 0
    rule: Callable[[str, str], Fate] = lambda _method, _path: "fine"
    seen: list[tuple[str, str, Fate]] = field(default_factory=list)
    done: Callable[[str, str, bytes, int], None] = lambda _method, _path, _body, _status: None
    host: str = "127.0.0.1"
    _clear: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def clear(self) -> None:
        """What is stalled ends, without an answer."""
        self._clear.set()

    def wait(self) -> None:
        """Until `clear`."""
        self._clear.wait(_WAIT)


@contextlib.contextmanager
def weather(server: Server, host: str = "127.0.0.1") -> Iterator[Weather]:
    """A proxy before the server, fine at first. `host`: an address of this machine's, to listen on."""
    between = Weather(host=host)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def handle_any(self) -> None:
            """Let the request meet its fate."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fate = between.rule(self.command, self.path)
            between.seen.append((self.command, self.path, fate))
            if fate == "failing":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.close_connection = fate != "fine"
            if fate == "stalled":
                between.wait()
                return
            status, headers, answer = _forward(server, self, body)
            between.done(self.command, self.path, body, status)
            if fate == "lost":
                return
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer[: len(answer) // 2] if fate == "cut" else answer)

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    proxy = ThreadingHTTPServer((host, 0), Handler)
    proxy.daemon_threads = True
    proxy.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that gave up
    between.port = proxy.server_address[1]
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield between
    finally:
        between.clear()
        proxy.shutdown()
        thread.join(_WAIT)
        proxy.server_close()


def _forward(server: Server, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_WAIT)
    with contextlib.closing(connection):
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        return answer.status, [*headers, ("Content-Length", length or "0")], content


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
