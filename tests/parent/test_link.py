"""The socket: descriptors passed, garbage ignored, nobody there."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksupervise.parent.link import Connection, Listener, ask
from ksupervise.wire import Decoder, encode, socket_address


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """A parent's end."""
    listener = Listener(tmp_path)
    yield listener
    listener.close()


@pytest.fixture
def connect(listener: Listener) -> Iterator[Callable[[], tuple[socket.socket, Connection]]]:
    """Connects a child: its end and the parent's."""
    opened: list[tuple[socket.socket, Connection]] = []

    def pair() -> tuple[socket.socket, Connection]:
        child = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        child.connect(socket_address(listener.address))
        child.settimeout(5.0)
        connection = listener.accept()
        assert connection is not None
        opened.append((child, connection))
        return opened[-1]

    yield pair
    for child, connection in opened:
        child.close()
        connection.close()


Connect = Callable[[], tuple[socket.socket, Connection]]


def test_messages_arrive_in_order_and_the_peer_is_known(connect: Connect) -> None:
    child, connection = connect()
    child.sendall(encode({"n": 1}) + encode({"n": 2})[:-3])
    assert connection.receive() == [{"n": 1}]
    child.sendall(encode({"n": 2})[-3:])
    assert connection.receive() == [{"n": 2}]
    assert connection.receive() == []
    assert connection.pid == os.getpid()


def test_what_was_said_before_hanging_up_is_still_heard(connect: Connect) -> None:
    child, connection = connect()
    child.sendall(encode({"op": "exit"}))
    child.close()
    assert connection.receive() == [{"op": "exit"}]
    assert not connection.open
    assert connection.receive() == []


def test_descriptors_are_passed(connect: Connect) -> None:
    child, connection = connect()
    reader, writer = os.pipe()
    connection.send({"op": "claim"}, [writer])
    os.close(writer)
    data, (passed,), _, _ = socket.recv_fds(child, 65536, 4)
    assert Decoder().feed(data) == [{"op": "claim"}]
    os.write(passed, b"through")
    os.close(passed)
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_the_garbage_of_strangers_is_ignored(connect: Connect) -> None:
    stranger, connection = connect()
    stranger.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\x00\xff\n[]\n" + b"[" * 50_000 + b"\n" + encode({"op": "hello"})
    )
    assert connection.receive() == [{"op": "hello"}]
    assert connection.open


def test_a_peer_that_is_gone_or_does_not_read_is_no_error(connect: Connect) -> None:
    child, connection = connect()
    for _ in range(2000):
        connection.send({"op": "free", "text": "x" * 1000})
    child.close()
    connection.send({"op": "free"})


def test_nobody_waits_at_the_door(listener: Listener) -> None:
    assert listener.accept() is None


def test_two_parents_have_two_addresses(listener: Listener, tmp_path: Path) -> None:
    other = Listener(tmp_path)
    assert other.address != listener.address
    other.close()


def test_a_listener_leaves_nothing_behind(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    listener.close()
    assert list(tmp_path.iterdir()) == []
    assert ask(listener.address, {"op": "stop"}, 1.0) is None


# Asking from outside ------------------------------------------------------------------------------


def answering(listener: Listener, answer: bytes) -> threading.Thread:
    """A parent that takes one message, says `answer` and hangs up."""
    listener.sock.setblocking(True)

    def serve() -> None:
        connection = listener.accept()
        assert connection is not None
        connection.sock.setblocking(True)
        connection.sock.recv(65536)
        connection.sock.sendall(answer)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (encode({"op": "stopping"}), {"op": "stopping"}),
        (b"garbage\n" + encode({"op": "stopping"}), {"op": "stopping"}),
        (b'{"op": "stop', None),
        (b"", None),
    ],
    ids=["an answer", "garbage first", "a torn answer", "no answer"],
)
def test_asking_a_parent(listener: Listener, said: bytes, heard: dict[str, Any] | None) -> None:
    thread = answering(listener, said)
    assert ask(listener.address, {"op": "stop"}) == heard
    thread.join(5.0)


def test_a_parent_that_does_not_answer_is_not_awaited_for_ever(listener: Listener) -> None:
    assert ask(listener.address, {"op": "stop"}, 0.05) is None


@pytest.mark.parametrize("address", ["@nobody-listens-here", "/no/such/socket", "", "@", "/" + "x" * 200])
def test_asking_where_nobody_listens(address: str) -> None:
    assert ask(address, {"op": "stop"}, 1.0) is None
