"""Two machines for `scripts/torture partition`: network namespaces with a link each to a bucket, which can be cut.

Every machine has a host name of its own, too, so that nothing of another machine's can be told from its process table;
what it asks of the bucket goes through a proxy of its own, which writes down what was written and removed.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the server and its weather are the tests'
from tests.replicas.s3_server import Server, Weather, weather

# How a link is cut: packets vanish in both directions, and nobody says so; the questions arrive and are obeyed, the
# answers vanish; the machine itself knows that there is no way.
Cut = Literal["dropped", "one way", "unreachable"]
CUTS: tuple[Cut, ...] = ("dropped", "one way", "unreachable")
_NETWORK = "198.18"  # for tests of networks: nobody's
_numbers = itertools.count()


@dataclass(frozen=True)
class Deed:
    """An object that was written or removed there.

    Attributes:
        at: CLOCK_MONOTONIC, seconds.
        who: the machine.
        verb: `wrote` or `removed`.
        key: without the bucket.
    """

    at: float
    who: str
    verb: str
    key: str


class Deeds:
    """All of a run, by all its machines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Deed] = []

    def note(self, who: str, method: str, path: str, body: bytes, status: int) -> None:
        """A request that was answered."""
        plain, _, query = path.partition("?")
        key = unquote(plain).lstrip("/").partition("/")[2]
        if status >= 300:
            return
        if method == "PUT" and key:
            self._add(who, "wrote", [key])
        elif method == "DELETE":
            self._add(who, "removed", [key])
        elif method == "POST" and "delete" in query:
            self._add(who, "removed", [html.unescape(each) for each in re.findall(r"<Key>(.*?)</Key>", body.decode())])

    def _add(self, who: str, verb: str, keys: list[str]) -> None:
        with self._lock:
            self._all += [Deed(time.monotonic(), who, verb, key) for key in keys]

    def all(self) -> list[Deed]:
        """In the order of their answers."""
        with self._lock:
            return list(self._all)


class Link:
    """What joins a machine to the bucket.

    Attributes:
        between: the machine's proxy, and the weather there.
        url: where the machine finds the bucket.
        cuts: how often it was cut.
    """

    def __init__(self, name: str, number: int, between: Weather) -> None:
        self._name = name
        self._number = number
        self.between = between
        self.url = between.url
        self.cuts = 0
        self._cut: Cut | None = None

    def enter(self, host: str, clock: int | None) -> list[str]:
        """What a command begins with to run on that machine. `clock`: seconds that its monotonic clocks are ahead."""
        words = ["ip", "netns", "exec", self._name, "unshare", "--uts", "--fork", "--kill-child"]
        if clock is not None:
            words += ["--time", "--monotonic", str(clock), "--boottime", str(clock)]
        return [*words, "sh", "-c", 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"', host]

    def cut(self, kind: Cut) -> None:
        """From here on nothing gets through."""
        self._cut = kind
        self.cuts += 1
        if kind == "dropped":
            _ip("link", "set", f"{self._name}h", "down")
        elif kind == "one way":
            _ip("route", "replace", "blackhole", f"{_address(self._number, 2)}/32")
        else:
            _ip("-n", self._name, "route", "replace", "unreachable", f"{_address(self._number, 1)}/32")

    def heal(self) -> None:
        """It is as before."""
        kind, self._cut = self._cut, None
        if kind == "dropped":
            _ip("link", "set", f"{self._name}h", "up")
        elif kind == "one way":
            _ip("route", "del", "blackhole", f"{_address(self._number, 2)}/32")
        elif kind == "unreachable":
            _ip("-n", self._name, "route", "del", "unreachable", f"{_address(self._number, 1)}/32")


def _address(number: int, end: int) -> str:
    return f"{_NETWORK}.{number // 64}.{number % 64 * 4 + end}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root, for network namespaces"
    missing = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"it needs {' and '.join(missing)} (iproute2, util-linux)"
    try:
        with _wired(next(_numbers)):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {str(error.stderr).strip()}"


@contextlib.contextmanager
def linked(server: Server, who: str, deeds: Deeds) -> Iterator[Link]:
    """A machine's network, with the bucket's server at its other end."""
    number = next(_numbers)
    with _wired(number) as name, weather(server, _address(number, 1)) as between:
        between.done = lambda *request: deeds.note(who, *request)
        yield Link(name, number, between)


@contextlib.contextmanager
def _wired(number: int) -> Iterator[str]:
    """A namespace and its link; the name of both."""
    name = f"ks{os.getpid()}-{number}"
    host, inside = f"{name}h", f"{name}m"
    ours, theirs = _address(number, 1), _address(number, 2)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", host, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("address", "add", f"{ours}/30", "dev", host)
        _ip("link", "set", host, "up")
        _ip("-n", name, "address", "add", f"{theirs}/30", "dev", inside)
        for device in (inside, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        # Known for good: a machine that asks in vain who has an address would say so, instead of waiting.
        hardware = Path(f"/sys/class/net/{host}/address").read_text().strip()
        _ip("-n", name, "neighbor", "replace", ours, "lladdr", hardware, "dev", inside, "nud", "permanent")
        yield name
    finally:
        for words in (("route", "del", "blackhole", f"{theirs}/32"), ("link", "del", host), ("netns", "del", name)):
            with contextlib.suppress(subprocess.CalledProcessError):  # there is none
                _ip(*words)
