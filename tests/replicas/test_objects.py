"""A place in a bucket: the contract on moto's server and in obstore's own stores, and what can go wrong on the way."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksupervise.errors import UsageError
from ksupervise.replicas import objects
from ksupervise.replicas.clouds import CLOUDS, fault
from ksupervise.replicas.objects import Objects, open_bucket
from ksupervise.replicas.open import open_place
from ksupervise.replicas.place import (
    Arrival,
    Place,
    ReplicaFull,
    ReplicaRefused,
    ReplicaUnreachable,
)
from ksupervise.store import CHUNK

from .place_contract import KEY, Opener, PlaceContract, content, put, record_of
from .s3_server import Fate, Server, Weather, make_bucket, reset, serving, wanting_credentials, weather

pytest.importorskip("obstore")
pytest.importorskip("moto")

URL = "s3://bucket/my model/run-1"
OBJECT = f"/bucket/my%20model/run-1/{KEY}"
HIDDEN = "wJalrXUtnFEMI"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """An S3 server, for all tests here."""
    with serving() as found:
        yield found


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with one empty bucket, and the environment that leads there."""
    reset(server)
    make_bucket(server, "bucket")
    environment(monkeypatch, server.url)
    return server


@pytest.fixture
def between(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """What lies between us and that bucket."""
    with weather(bucket) as found:
        environment(monkeypatch, found.url)
        yield found


def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Variables as a user would set them for a server of his own."""
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HIDDEN)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # nobody there


def hasty() -> Objects:
    """The place, with a second's patience."""
    return open_bucket(URL, connect=1.0, patience=1.0)


class TestS3(PlaceContract):
    """Over HTTP."""

    @pytest.fixture
    def opener(self, bucket: Server) -> Opener:
        return lambda: open_place(URL)


class TestMemory(PlaceContract):
    """obstore's own, where other words are used for the same faults."""

    @pytest.fixture
    def opener(self) -> Opener:
        from obstore.store import MemoryStore

        store = MemoryStore()
        return lambda: Objects(store, "memory://")


class TestLocal(PlaceContract):
    """obstore's own on a disk, which stops removing at an object that is not there."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        from obstore.store import LocalStore

        store = LocalStore(tmp_path)
        return lambda: Objects(store, "local://")

    def test_what_lies_below_an_object_is_not_there(self, place: Place) -> None:
        """A disk has words for that which no bucket uses."""
        put(place, b"x")
        with pytest.raises(ReplicaUnreachable, match="Not a directory"):
            place.read(f"{KEY}/below")


class Forgetful:
    """A store that does not know the condition "only if there is none": it ignores it, or says so."""

    def __init__(self, says_so: bool) -> None:
        from obstore.store import MemoryStore

        self._store = MemoryStore()
        self._says_so = says_so

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: Any, *, mode: str = "overwrite", **options: Any) -> Any:
        """Put it, whatever is there."""
        from obstore.exceptions import NotSupportedError

        if mode == "create" and self._says_so:
            raise NotSupportedError("conditional put")
        return self._store.put(key, data, **options)


class TestForgetful(PlaceContract):
    """What then can be kept is kept."""

    @pytest.fixture(params=[True, False], ids=["says so", "ignores it"])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        store = Forgetful(request.param)
        store.put("other", b"")

        def opened() -> Place:
            place = Objects(store, "memory://")
            assert place.create("probe", b"")
            assert not place.excludes
            place.remove(["probe", "other"])
            return place

        return opened


# What arrives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5000, CHUNK, 3 * CHUNK + 5])
def test_what_the_stores_tag_vouches_for_is_not_read_again(between: Weather, size: int) -> None:
    data = content(size)
    place = open_place(URL)
    put(place, data)
    between.seen.clear()
    assert place.arrival(KEY, record_of(data)) is Arrival.UPLOADED
    assert [method for method, _, _ in between.seen] == ["HEAD"]


def test_what_no_tag_vouches_for_is_read_again(between: Weather) -> None:
    data = content(2 * CHUNK)
    put(open_place(URL), data)
    between.seen.clear()
    assert open_place(URL).arrival(KEY, record_of(data)) is Arrival.UPLOADED
    assert [method for method, _, _ in between.seen] == ["HEAD", "GET", "GET"]


def test_a_multipart_upload_that_breaks_off_leaves_nothing(bucket: Server) -> None:
    def chunks() -> Iterator[bytes]:
        yield content(2 * CHUNK)
        raise KeyError("gone")

    with pytest.raises(KeyError):
        open_place(URL).write(KEY, chunks(), 4 * CHUNK)
    assert b"<Upload>" not in bucket.ask("GET", "/bucket?uploads")


def test_not_the_whole_object_is_held_in_memory(between: Weather) -> None:
    asked = []

    def chunks() -> Iterator[bytes]:
        for number in range(40):
            asked.append(number)
            yield bytes(CHUNK)

    between.rule = lambda method, _: "stalled" if method == "PUT" else "fine"
    with pytest.raises(ReplicaUnreachable):
        hasty().write(KEY, chunks(), 40 * CHUNK)
    assert len(asked) < 10


# The way there -------------------------------------------------------------------------------------


def test_an_answer_lost_after_the_creation_is_found_to_be_ours(between: Weather) -> None:
    between.rule = lambda method, _: "lost" if method == "PUT" else "fine"
    place = hasty()
    assert place.create(KEY, b"mine")
    assert place.excludes
    assert ("PUT", OBJECT, "lost") in between.seen


def test_a_creation_that_is_repeated_since_its_answer_was_lost_is_ours(between: Weather) -> None:
    between.rule = lambda *_: "lost" if len(between.seen) == 0 else "fine"
    assert hasty().create(KEY, b"mine")
    assert [(method, fate) for method, _, fate in between.seen] == [("PUT", "lost"), ("PUT", "fine"), ("GET", "fine")]


def test_the_condition_is_proved_once(between: Weather) -> None:
    place = open_place(URL)
    assert place.create("first", b"x")
    assert place.create("second", b"x")
    assert [path.rpartition("/")[2] for _, path, _ in between.seen] == ["first", "first", "second"]


def test_an_answer_lost_while_another_creates_is_not_ours(between: Weather, bucket: Server) -> None:
    bucket.ask("PUT", OBJECT, b"theirs")
    between.rule = lambda method, _: "lost" if method == "PUT" else "fine"
    assert not hasty().create(KEY, b"mine")


def test_a_request_that_never_gets_through_creates_nothing(between: Weather) -> None:
    between.rule = lambda method, _: "failing" if method == "PUT" else "fine"
    with pytest.raises(ReplicaUnreachable):
        hasty().create(KEY, b"mine")
    assert hasty().entries("run/") == []


def ways() -> dict[str, Callable[[Place], object]]:
    """Everything that can be asked."""
    return {
        "write": lambda place: place.write(KEY, [b"x"], 1),
        "write in parts": lambda place: place.write(KEY, [bytes(2 * CHUNK)], 2 * CHUNK),
        "create": lambda place: place.create(KEY, b"x"),
        "read": lambda place: place.read(KEY),
        "read a part": lambda place: place.read(KEY, 1, 5),
        "entries": lambda place: place.entries("run/"),
        "remove": lambda place: place.remove([KEY]),
        "arrival": lambda place: place.arrival(KEY, record_of(b"x")),
    }


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("fate", ["stalled", "failing", "lost", "cut"])
def test_a_server_that_does_not_serve_is_unreachable(between: Weather, fate: Fate, way: str) -> None:
    if fate == "cut" and way not in ("read", "read a part", "entries"):
        pytest.skip("nothing to cut")
    put(open_place(URL), content(5000))
    between.rule = lambda *_: fate
    with pytest.raises(ReplicaUnreachable, match=r"^s3://bucket/my model/run-1.*[a-z]\.$") as raised:
        ways()[way](hasty())
    assert HIDDEN not in str(raised.value)
    words = {"stalled": "does not answer in time", "failing": "answered 503 Service Unavailable", "lost": "broke off"}
    assert words.get(fate, "broke off") in str(raised.value)
    between.rule = lambda *_: "fine"
    hasty().entries("run/")


@pytest.mark.parametrize("way", ways())
def test_a_server_that_is_down_is_unreachable(bucket: Server, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(ReplicaUnreachable, match=f"127.0.0.1:{port} refuses .*, and whether AWS_ENDPOINT_URL is right"):
        ways()[way](hasty())


def test_what_was_cut_short_goes_on_being_read(between: Weather) -> None:
    put(open_place(URL), content(5000))
    between.rule = lambda *_: "fine" if between.seen[-1][0] == "GET" else "cut"
    assert hasty().read(KEY) == content(5000)


# What somebody has to mend -------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in ways() if way != "arrival"])
def test_a_bucket_that_is_not_there_is_refused(bucket: Server, way: str) -> None:
    with pytest.raises(ReplicaRefused, match=r"s3://none/x: there is no such bucket at 127.0.0.1:\d+. Create it"):
        ways()[way](open_place("s3://none/x"))


@pytest.mark.parametrize("way", ways())
def test_wrong_credentials_are_refused(bucket: Server, way: str) -> None:
    place = open_place(URL)
    with wanting_credentials(bucket), pytest.raises(ReplicaRefused, match="see AWS_ACCESS_KEY_ID") as raised:
        ways()[way](place)
    assert HIDDEN not in str(raised.value)
    assert "AKIA" not in str(raised.value)


@pytest.mark.parametrize("way", ways())
def test_no_credentials_at_all_are_refused(bucket: Server, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ReplicaRefused, match=r"no credentials were found. Set AWS_ACCESS_KEY_ID"):
        ways()[way](hasty())


def test_half_of_the_credentials_are_refused_at_once(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ReplicaRefused, match=r"Missing SecretAccessKey.* Set AWS_ACCESS_KEY_ID"):
        open_place(URL)


def test_azure_without_an_account_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ReplicaRefused, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_place("az://container/x")


def test_google_with_a_file_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(ReplicaRefused, match=r"/nowhere.json.* Set GOOGLE_APPLICATION_CREDENTIALS"):
        open_place("gs://bucket/x")


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ReplicaRefused, match=r"pip install 'ksupervise\[cloud\]'"):
        open_place("gs://bucket/x")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("status code: 507 Insufficient Storage: <Code>XMinioStorageFull</Code>", ReplicaFull, "Free some space"),
        ("status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>", ReplicaRefused, "clock"),
        ("status code: 400 Bad Request: <Code>ExpiredToken</Code>", ReplicaRefused, "expired"),
        ("status code: 301 Moved: <Code>PermanentRedirect</Code>", ReplicaRefused, "region"),
        ("status code: 429 Too Many Requests: ", ReplicaUnreachable, "overloaded"),
        ("status code: 503 Slow Down: <Code>SlowDown</Code>", ReplicaUnreachable, "overloaded"),
        ("GET http://169.254.169.254/latest/api/token - HTTP error", ReplicaRefused, "no credentials"),
        ("GET https://c.blob.core.windows.net/x?sv=1&sig=SECRET in 1 ms", ReplicaUnreachable, "network"),
    ],
)
def test_faults_are_told_apart(text: str, kind: type[Exception], words: str) -> None:
    from obstore.exceptions import GenericError
    from obstore.store import MemoryStore

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(MemoryStore(), name)

        def head(self, _: str) -> Any:
            raise GenericError(f"Generic S3 error: Server returned non-2xx {text}\n\nDebug source: SECRET")

    with pytest.raises(kind, match=words) as raised:
        Objects(Failing(), "s3://b/x").arrival(KEY, record_of(b"x"))
    assert "SECRET" not in str(raised.value)


def test_metadata_that_fails_later_is_only_unreachable() -> None:
    from obstore.exceptions import GenericError

    error = GenericError("GET http://169.254.169.254/latest/api/token - HTTP error")
    for answered, kind in [(True, ReplicaUnreachable), (False, ReplicaRefused)]:
        assert type(fault(error, URL, KEY, CLOUDS["s3"], answered=answered)) is kind


# The URL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "name"), [("s3://bucket", "s3://bucket"), ("s3://bucket/a%20b/", "s3://bucket/a b")])
def test_the_name_is_what_the_user_gave(bucket: Server, url: str, name: str) -> None:
    place = open_place(url)
    assert place.name == name
    put(place, b"x", "k")
    below = name.removeprefix("s3://bucket").lstrip("/")
    assert open_place("s3://bucket").read(f"{below}/k".lstrip("/")) == b"x"


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://host"])
def test_an_endpoint_that_is_none_is_refused(bucket: Server, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL"):
        open_place(URL)


def test_plain_http_has_to_be_wanted(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(UsageError, match="Set AWS_ALLOW_HTTP=true"):
        open_place(URL)


def test_very_big_objects_have_few_enough_parts() -> None:
    feed = objects._Feed("k", [], 5 * 10**12)
    assert feed.part % CHUNK == 0
    assert 5 * 10**12 / feed.part < 10_000


def test_more_are_removed_than_one_request_can_name(between: Weather) -> None:
    place = open_place(URL)
    keys = [f"k/{number}" for number in range(3)]
    for key in keys:
        put(place, b"x", key)
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, objects, "_BULK", objects._BULK)
        objects._BULK = 2
        between.seen.clear()
        place.remove(keys)
    assert [method for method, _, _ in between.seen] == ["POST", "POST"]
    assert place.entries("") == []
