"""The trainer's end of the socket: asks, tells, and notices when the parent is gone.

One thread reads. It is started below `threading`, so that the script's `threading.enumerate()` is what it
would be without us.
"""

from __future__ import annotations

import _thread
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from ksupervise.wire import Decoder, encode, socket_address

Message = dict[str, Any]


class Link:
    """A connection on which this process asked to be the trainer.

    Attributes:
        grant: the parent's answer; `grant["granted"]` says whether we are.
        fds: the control page, the two slots, the lock; empty if we are not.
        orphaned: the parent is gone.
    """

    def __init__(self, address: str, claim: Message) -> None:
        """Connect and claim. Raises OSError when no parent listens."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(60.0)
        self._sock.connect(socket_address(address))
        self._sock.sendall(encode(claim))
        self._decoder = Decoder()
        self.grant, self.fds = self._receive_grant()
        self._sock.settimeout(None)
        self._sock = _out_of_the_way(self._sock)
        self._condition = threading.Condition()
        self._sending = threading.Lock()  # messages come from several threads
        self._answers: dict[str, Message] = {}
        self._freed: dict[int, bool] = {}  # seq → committed
        self.orphaned = False

    def _receive_grant(self) -> tuple[Message, list[int]]:
        fds: list[int] = []
        while True:
            data, received, _, _ = socket.recv_fds(self._sock, 65536, 8)
            fds += received
            if not data:
                raise ConnectionError("the parent hung up during the claim")
            for message in self._decoder.feed(data):
                return message, [_high(fd) for fd in fds]

    def listen(self, when_orphaned: Callable[[], None]) -> None:
        """Start reading; `when_orphaned` is called on the reading thread once the parent is gone."""
        _thread.start_new_thread(self._read, (when_orphaned,))

    def send(self, message: Message) -> None:
        """Tell the parent. One that is gone is noticed by the reading thread."""
        try:
            with self._sending:
                self._sock.sendall(encode(message))
        except OSError:
            pass

    def ask(self, message: Message, answer: str, seconds: float) -> Message | None:
        """Send, and wait for the answer with that "op"; None if none came in time."""
        with self._condition:
            self._answers.pop(answer, None)
        self.send(message)
        with self._condition:
            self._condition.wait_for(lambda: answer in self._answers or self.orphaned, seconds)
            return self._answers.pop(answer, None)

    def is_free(self, seq: int) -> bool:
        """The parent is through with stage `seq`."""
        return seq in self._freed or self.orphaned

    def is_committed(self, seq: int) -> bool:
        """Stage `seq` is durable."""
        return self._freed.get(seq, False)

    def wait_free(self, seq: int, seconds: float) -> bool:
        """Wait until the parent is through with stage `seq`. False if it was not in time."""
        with self._condition:
            return self._condition.wait_for(lambda: self.is_free(seq), max(0.0, seconds))

    def close(self) -> None:
        """Let go of the socket, without a word to the parent."""
        self._sock.close()

    def _read(self, when_orphaned: Callable[[], None]) -> None:
        try:
            while True:
                data = self._sock.recv(65536)
                if not data:
                    break
                for message in self._decoder.feed(data):
                    self._take(message)
        except Exception:
            pass
        with self._condition:
            self.orphaned = True
            self._condition.notify_all()
        when_orphaned()

    def _take(self, message: Message) -> None:
        with self._condition:
            if message.get("op") == "free":
                self._freed[int(message["seq"])] = bool(message.get("committed"))
            else:
                self._answers[str(message.get("op"))] = message
            self._condition.notify_all()


def _high(fd: int) -> int:
    """The descriptor moved out of the way of the script's own numbers."""
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(fd)
    return moved


def _out_of_the_way(sock: socket.socket) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=_high(sock.detach()))
