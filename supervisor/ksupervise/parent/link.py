"""The socket that interpreters of the child's group, and `ksupervise stop`, talk to the parent through.

On Linux it lives in the abstract namespace: no file that a killed parent could leave behind, no
limit on the path's length; who connects is checked by the kernel's credentials.
"""

from __future__ import annotations

import array
import contextlib
import os
import secrets
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksupervise.wire import Decoder, encode, socket_address

Message = dict[str, Any]


class Connection:
    """One peer. Messages are delivered in order; `lost` is called once when it is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pid = peer_pid(sock)
        self.attempt = 0  # the attempt during which it was accepted
        self._decoder = Decoder()
        self.open = True

    def receive(self) -> list[Message]:
        """The messages that have arrived; `open` is False once the peer is gone."""
        messages: list[Message] = []
        while self.open:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.open = bool(data)
            messages += self._decoder.feed(data)
        return messages

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, with descriptors if any. A peer that is gone or does not read is no error."""
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            self.sock.sendmsg([encode(message)], passed)

    def close(self) -> None:
        """Hang up."""
        self.open = False
        self.sock.close()


class Listener:
    """Accepts connections of this user's processes."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the socket where there is no abstract namespace. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        token = f"ksupervise-{secrets.token_hex(8)}"
        self._path = None if sys.platform == "linux" else folder / token
        self.address = f"@{token}" if self._path is None else str(self._path)
        self.sock.bind(socket_address(self.address))
        self.sock.listen(128)
        self.sock.setblocking(False)

    def accept(self) -> Connection | None:
        """The next waiting peer, None if there is none or it is not ours."""
        try:
            sock, _ = self.sock.accept()
        except OSError:
            return None
        if not _same_user(sock):
            sock.close()
            return None
        return Connection(sock)

    def close(self) -> None:
        """Stop listening; leaves nothing behind."""
        self.sock.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def peer_pid(sock: socket.socket) -> int:
    """The peer's process id as the kernel knows it, 0 where it does not tell."""
    return _credentials(sock)[0]


def _same_user(sock: socket.socket) -> bool:
    return _credentials(sock)[1] in (os.getuid(), 0)


def _credentials(sock: socket.socket) -> tuple[int, int]:
    if not hasattr(socket, "SO_PEERCRED"):
        return 0, os.getuid()
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def ask(address: str, message: Message, seconds: float = 5.0) -> Message | None:
    """Send one message to the parent that listens at `address` and return its answer, None if none came."""
    decoder = Decoder()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            sock.connect(socket_address(address))
            sock.sendall(encode(message))
            while data := sock.recv(65536):
                for answer in decoder.feed(data):
                    return answer
    except OSError:
        return None
    return None
