"""Where the replicas of `scripts/torture lost` lie, the weather there, and what they hold, read by code of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the server and its weather are the tests'
from tests.replicas.s3_server import Fate, Server, Weather, make_bucket, weather

MANIFEST = "/MANIFEST.json"
# What moto takes for a signature: without one, objects are nobody's business.
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/s3/aws4_request"}
_JOIN = 30.0  # seconds for the weather's thread to end
# Of 100 requests: refused with 503; done but never answered; answered by half; late, and then one of these or fine.
FAILING, LOST, CUT, LATE = 8, 3, 3, 3
LONGEST = 3.0  # seconds that one is late


@dataclass(frozen=True, order=True)
class Held:
    """A checkpoint that is complete in a replica, by its manifest and the sizes of its files. Ordered by age."""

    attempt: int
    seq: int
    holder: str
    step: int
    kind: str


class Replica(Protocol):
    """A place for a replica.

    Attributes:
        url: behind --replica.
        environ: what a process needs to reach it.
        spells: how often the weather was bad.
        flaws: what went wrong that only the place can see.
    """

    url: str
    environ: Mapping[str, str]
    spells: int
    flaws: list[str]

    def bad_weather(self, ready: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
        """Meanwhile it fails now and then. `ready`: whether the run's own worker has used it by now."""

    def calm(self) -> None:
        """No more bad weather from here on."""

    def objects(self) -> dict[str, int]:
        """All there is: key and size."""

    def read(self, key: str) -> bytes:
        """An object; empty if it has gone."""


def held_in(replica: Replica) -> tuple[list[Held], list[str]]:
    """The complete checkpoints there, oldest first, and the directories of those that are not."""
    sizes = replica.objects()
    folders = {match[0] for key in sizes if (match := re.match(r".*/checkpoints/[^/]+", key))}
    complete: list[Held] = []
    partial: list[str] = []
    for folder in sorted(folders):
        manifest = _parsed(replica.read(folder + MANIFEST)) if folder + MANIFEST in sizes else None
        if manifest is not None and all(
            sizes.get(f"{folder}/{each['name']}") == each["size"] for each in manifest["files"]
        ):
            at = manifest["position"]
            complete.append(
                Held(manifest["attempt"], manifest["seq"], manifest["holder"], int(at["step"]), str(at["kind"]))
            )
        else:
            partial.append(folder)
    return sorted(complete), partial


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(text))
    except ValueError:
        return None


class FolderReplica:
    """A folder with a space in its path. Bad weather: it is gone for a second or two, at best in mid-write."""

    def __init__(self, base: Path, number: random.Random) -> None:
        self._path = base / "My Drive" / "model"
        self._away = base / "My Drive" / "model.away"
        self.url = str(self._path)
        self.environ: Mapping[str, str] = {}
        self.spells = 0
        self.flaws: list[str] = []
        self._random = number
        self._calm = threading.Event()

    @contextlib.contextmanager
    def bad_weather(self, ready: Callable[[], bool]) -> Iterator[None]:
        """See `Replica`. It never goes before it was used: it would be a folder that was never there."""
        self._calm.clear()
        pause, gone = self._random.uniform(0.0, 1.0), self._random.uniform(0.3, 2.0)
        thread = threading.Thread(target=self._storm, args=(ready, pause, gone))
        thread.start()
        try:
            yield
        finally:
            self._calm.set()
            thread.join(_JOIN)

    def calm(self) -> None:
        """See `Replica`."""
        self._calm.set()

    def objects(self) -> dict[str, int]:
        """See `Replica`."""
        found = {}
        for path in self._path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[str(path.relative_to(self._path))] = path.stat().st_size
        return found

    def read(self, key: str) -> bytes:
        """See `Replica`."""
        with contextlib.suppress(FileNotFoundError):
            return (self._path / key).read_bytes()
        return b""

    def _storm(self, ready: Callable[[], bool], pause: float, gone: float) -> None:
        while not ready():
            if self._calm.wait(0.02):
                return
        end = time.monotonic() + pause + 5.0
        self._calm.wait(pause)
        while not self._calm.wait(0.001) and time.monotonic() < end:
            if self._is_written():
                break
        if self._calm.is_set():
            return
        os.rename(self._path, self._away)
        self.spells += 1
        self._calm.wait(gone)
        if self._path.exists():
            self.flaws.append(f"{self._path} was made anew while it was away, with {sorted(self.objects())}")
            os.rename(self._path, self._path.with_name(f"model.anew{self.spells}"))
        os.rename(self._away, self._path)

    def _is_written(self) -> bool:
        return any(not (folder / MANIFEST[1:]).exists() for folder in self._path.glob("*/*/checkpoints/*"))


class BucketReplica:
    """A bucket. Bad weather: requests fail, are late, or succeed without an answer."""

    def __init__(self, server: Server, between: Weather, bucket: str, number: random.Random) -> None:
        self._server, self._between, self._bucket = server, between, bucket
        self._random = number
        self.url = f"s3://{bucket}/my runs"
        self.spells = 0
        self.flaws: list[str] = []
        self.environ: Mapping[str, str] = {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "example",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": between.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",  # nobody there
        }

    @classmethod
    @contextlib.contextmanager
    def on(cls, server: Server, bucket: str, number: random.Random) -> Iterator[BucketReplica]:
        """A new one on that server, with a sky of its own."""
        make_bucket(server, bucket)
        with weather(server) as between:
            yield cls(server, between, bucket, number)

    @contextlib.contextmanager
    def bad_weather(self, ready: Callable[[], bool]) -> Iterator[None]:
        """See `Replica`. It is bad from the first question on."""
        self._between.rule = self._fate
        try:
            yield
        finally:
            self.calm()

    def calm(self) -> None:
        """See `Replica`."""
        self._between.rule = lambda _method, _path: "fine"

    def objects(self) -> dict[str, int]:
        """See `Replica`."""
        text = self._server.ask("GET", f"/{self._bucket}?list-type=2&max-keys=1000&encoding-type=url").decode()
        found = re.findall(r"<Contents>.*?<Key>(.*?)</Key>.*?<Size>(\d+)</Size>.*?</Contents>", text, re.DOTALL)
        return {unquote(key): int(size) for key, size in found}

    def read(self, key: str) -> bytes:
        """See `Replica`."""
        with contextlib.suppress(OSError):
            return self._server.ask("GET", f"/{self._bucket}/{quote(key)}", headers=_SIGNED)
        return b""

    def _fate(self, _method: str, _path: str) -> Fate:
        drawn = self._random.uniform(0, 100)
        if drawn < LATE:
            self.spells += 1
            time.sleep(self._random.uniform(0.0, LONGEST))
            drawn = LATE + self._random.uniform(0, 100 - LATE)
        fates: tuple[tuple[float, Fate], ...] = ((FAILING, "failing"), (LOST, "lost"), (CUT, "cut"))
        at = float(LATE)
        for share, fate in fates:
            at += share
            if drawn < at:
                self.spells += 1
                return fate
        return "fine"
