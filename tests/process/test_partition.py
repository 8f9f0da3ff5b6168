"""Two machines, one bucket, and a link between that lets nothing through: who owns the run, and who notices.

With root and real trainings, and with all that takes minutes: `scripts/torture partition`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.replicas.s3_server import Server, make_bucket, reset, serving

from .helpers import LEAVER, Parent, Place, until

pytest.importorskip("obstore")
pytest.importorskip("moto")

# In a replica's processes time is short: an owner that says nothing for 3 seconds counts as dead, not for a minute.
HURRY = """
import sys
if "ksupervise.replicas.worker" in sys.orig_argv:
    from ksupervise.replicas import contest, lease
    contest.LEAST_PATIENCE, lease.INTERVAL = 3.0, 0.5
"""


class Wire:
    """What joins a machine to the server. Cut, it takes everything and passes nothing on, until it is mended."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._whole = threading.Event()
        self._whole.set()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def cut(self) -> None:
        """Nobody hears of anybody any more, nor that it is so."""
        self._whole.clear()

    def mend(self) -> None:
        """What was under way arrives now."""
        self._whole.set()

    def close(self) -> None:
        """The end, for everybody."""
        for each in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._whole.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server.port))
                self._ends += (near, far)
                self._start(self._pass_on, near, far)
                self._start(self._pass_on, far, near)

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self._whole.wait()
                other.sendall(data)
            self._whole.wait()
            other.shutdown(socket.SHUT_WR)

    @staticmethod
    def _start(target: object, *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


class Machine(Place):
    """A place with a link of its own."""

    def __init__(self, root: Path, server: Server) -> None:
        root.mkdir()
        super().__init__(root)
        self.wire = Wire(server)
        self.write("sitecustomize.py", HURRY)
        self.environ |= {
            "PYTHONPATH": str(root),
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "example",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.wire.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",  # nobody there
        }

    def supervise(self) -> Parent:
        """The run, here."""
        return self.start("--name", "run", "--replica", "s3://bucket", *self.script(LEAVER))

    def close(self) -> None:
        """See `Place`."""
        try:
            super().close()
        finally:
            self.wire.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server, for all tests here."""
    with serving() as found:
        yield found


@pytest.fixture
def bucket(server: Server) -> Server:
    """The server with one empty bucket."""
    reset(server)
    make_bucket(server, "bucket")
    return server


@pytest.fixture
def machines(tmp_path: Path, bucket: Server) -> Iterator[tuple[Machine, Machine]]:
    """Two, with a store and a link each."""
    with contextlib.ExitStack() as stack:
        found = [Machine(tmp_path / name, bucket) for name in ("a", "b")]
        for each in found:
            stack.callback(each.close)
        yield found[0], found[1]


def owners(server: Server) -> list[str]:
    """What lies below the owners, in the bucket."""
    text = server.ask("GET", "/bucket?list-type=2").decode()
    keys = [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]
    return [key.rpartition("/")[2] for key in keys if "/owner/" in key]


def sign(server: Server, token: int) -> int:
    """The number of the latest sign of life of who holds that token, 0 if there is none."""
    signs = [key for key in owners(server) if key.startswith(f"{token:06d}-") and key[-1].isdigit()]
    return max((int(key.rpartition(".")[2]) for key in signs), default=0)


def test_one_that_is_cut_off_is_taken_over_and_stops_when_it_hears_of_it(
    machines: tuple[Machine, Machine], bucket: Server
) -> None:
    here, there = machines
    first = here.supervise()
    first.line("ready")
    until(lambda: sign(bucket, 1) >= 2, "second sign of life")
    here.wire.cut()
    second = there.supervise()
    second.line("ready")
    assert first.process.poll() is None, "who cannot be reached may train"
    known = sign(bucket, 2)
    here.wire.mend()
    done = first.wait()
    assert done.code == 75
    assert done.said(f"is owned by process {second.pid} on")
    assert b"got SIGTERM" in done.out, "it was asked to save"
    assert second.process.poll() is None
    until(lambda: sign(bucket, 2) > known > 0, "further sign of life of the new owner")
    second.send(signal.SIGTERM)
    assert second.wait().code == 75
    left = owners(bucket)
    assert {"000001.json", "000002.json"} <= {*left}
    assert [key[:6] for key in left if key.endswith(".gone")] == ["000002"], "who let go is who owned it"


def test_one_that_comes_back_in_time_goes_on(machines: tuple[Machine, Machine], bucket: Server) -> None:
    here, there = machines
    first = here.supervise()
    first.line("ready")
    until(lambda: sign(bucket, 1) >= 2, "second sign of life")
    here.wire.cut()
    second = there.supervise()
    second.err_line("waiting for a sign of life")
    here.wire.mend()
    done = second.wait()
    assert (done.code, done.out) == (75, b"")
    known = sign(bucket, 1)
    until(lambda: sign(bucket, 1) > known, "further sign of life")
    assert first.process.poll() is None
    first.send(signal.SIGTERM)
    assert first.wait().code == 75
    assert "000001.json" in owners(bucket)
    assert "000002.json" not in owners(bucket)
