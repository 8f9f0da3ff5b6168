"""A place in a bucket: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage; by way of obstore.

Credentials are obstore's to find, in the usual variables and the metadata of the machine. Nothing of them is kept or
shown here.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from ksupervise.replicas.clouds import (
    CLOUDS,
    Cloud,
    check_environment,
    code_of,
    fault,
    is_panic,
    opening_fault,
    status_of,
)
from ksupervise.replicas.keys import parts_of, parts_of_prefix
from ksupervise.replicas.place import (
    Arrival,
    Entry,
    NotThere,
    ReplicaFault,
    ReplicaRefused,
    ReplicaUnreachable,
)
from ksupervise.store import CHUNK, Buffer, FileRecord

CONNECT = 10.0  # seconds
PATIENCE = 60.0  # seconds for one request, which moves at most a part
RETRIES = 2  # obstore's own, of a request that got no answer; the rest is for who calls

_PARTS = 9_000  # of one object; S3 takes 10,000
_AT_ONCE = 4  # parts under way: 40 MiB of memory
_BULK = 1_000  # objects removed by one request
_TRIES = 3  # for an object that is there and then is not
_NONE = Cloud()  # of a store in no cloud


def open_bucket(url: str, *, connect: float = CONNECT, patience: float = PATIENCE) -> Objects:
    """The place at `s3://BUCKET/PREFIX`, `gs://` or `az://` (a container of the account in the environment).

    Nothing is asked of it yet.

    Args:
        url: as the settings have it; without the prefix it is the whole bucket.
        connect: seconds for a connection.
        patience: seconds for a request. With its repetitions it may take three times as long.

    Raises:
        UsageError: the environment holds what cannot be meant.
        ReplicaRefused: obstore is not installed, or there are no credentials where some are needed at once.
    """
    scheme, bucket, prefix = _split(url)
    cloud = CLOUDS[scheme]
    name = f"{scheme}://{bucket}{'/' if prefix else ''}{prefix}"
    http = check_environment(cloud, name)
    try:
        import obstore.store
    except ImportError as error:
        raise ReplicaRefused(
            f"{name} needs a client for object stores: pip install 'ksupervise[cloud]' ({error})."
        ) from error
    try:
        store = getattr(obstore.store, cloud.kind)(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": http,  # given any option, it does not read this one from the environment
                "connect_timeout": timedelta(seconds=connect),
                "timeout": timedelta(seconds=patience),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=patience)},
        )
    except BaseException as error:
        if not _is_obstores(error, ValueError):
            raise
        raise opening_fault(error, name, cloud) from error
    return Objects(store, name, cloud)


class Objects:
    """A place in a bucket. See `Place`.

    Args:
        store: of obstore, already below the prefix.
        name: without anything secret.
        cloud: whose it is.

    Attributes:
        excludes: the store creates an object only if there is none. What ignores that condition shows at the first
            `create`, and then it is False.
    """

    def __init__(self, store: Any, name: str, cloud: Cloud = _NONE) -> None:
        self.name = name
        self.excludes = True
        self._store = store
        self._cloud = cloud
        self._written: dict[str, _Digests] = {}
        self._proved = False  # that it knows the condition
        self._answered = False  # so that what fails now is not for want of credentials

    def write(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        """See `Place`. What `chunks` raises is passed on, and nothing is seen of the object then.

        Raises:
            ValueError: `chunks` are not `size` bytes together.
        """
        parts_of(key)
        feed = _Feed(key, chunks, size)
        self._written.pop(key, None)
        try:
            with self._asking(key):
                self._put(key, feed, size)
        except BaseException:
            if feed.error is not None:  # the fault is not the place's
                raise feed.error from None
            raise
        self._written[key] = feed.digests

    def create(self, key: str, data: bytes) -> bool:
        """See `Place`. An object of that key with these very bytes is ours: an answer may have been lost."""
        parts_of(key)
        for _ in range(_TRIES):
            if self._put_new(key, data):
                return True
            found = self._found(key)
            if found is not None:
                return found == data
        raise ReplicaUnreachable(
            f"{self.name}/{key} cannot be created and is not there either. See what else is at work there."
        )

    def read(self, key: str, begin: int = 0, length: int | None = None) -> bytes:
        """See `Place`."""
        parts_of(key)
        if length == 0:
            return b""
        wanted = {"offset": begin} if length is None else (begin, begin + length)
        options = {"range": wanted} if begin or length is not None else None
        try:
            with self._asking(key):
                return bytes(self._store.get(key, options=options).bytes())
        except (ReplicaRefused, ReplicaUnreachable) as fault:
            # Each store has its own words for an object that ends before `begin`.
            if options is None or "range" not in str(fault).lower() or begin < self._head(key)["size"]:
                raise
            return b""

    def entries(self, prefix: str) -> list[Entry]:
        """See `Place`."""
        parts_of_prefix(prefix)
        with self._asking(prefix):
            listed = self._store.list(prefix or None, chunk_size=_BULK)
            found = [Entry(meta["path"], meta["size"]) for batch in listed for meta in batch]
        return sorted(found, key=lambda entry: entry.key)

    def remove(self, keys: Iterable[str]) -> None:
        """See `Place`. A thousand at a time, where the store can do that."""
        keys = list(keys)
        for key in keys:
            parts_of(key)
            self._written.pop(key, None)
        for begin in range(0, len(keys), _BULK):
            bulk = keys[begin : begin + _BULK]
            try:
                self._remove(bulk)
            except NotThere:  # some stores stop at a missing one
                for key in bulk:
                    self._remove_one(key)

    def arrival(self, key: str, record: FileRecord) -> Arrival:
        """See `Place`.

        If the store's tag of the object is the digest of what was written here it is not read again; so it is with
        S3 (unless it encrypts with KMS) and with Google's for small objects. Otherwise this costs one download.
        """
        parts_of(key)
        meta = self._head(key)
        if meta["size"] != record.size:
            raise NotThere(f"{self.name}/{key} has {meta['size']} bytes instead of {record.size}: it is copied again.")
        digests = self._written.get(key)
        if digests is None or not digests.vouch(record, meta["e_tag"] or ""):
            self._verify(key, record)
        return Arrival.UPLOADED

    def room(self) -> int | None:
        """None: a bucket has no end, or does not tell."""
        return None

    def _put(self, key: str, feed: _Feed, size: int) -> None:
        if size <= feed.part:  # one request: the whole is seen at once, and it is one fewer than for parts
            self._store.put(key, b"".join(feed), use_multipart=False)
        else:
            self._store.put(key, iter(feed), use_multipart=True, chunk_size=feed.part, max_concurrency=_AT_ONCE)

    def _put_new(self, key: str, data: bytes) -> bool:
        """Write it unless there is one; False then."""
        if not self.excludes:
            if self._found(key) is not None:
                return False
            with self._asking(key):
                self._store.put(key, data, use_multipart=False)
            return True
        try:
            done = self._put_if_absent(key, data)
        except (ReplicaUnreachable, ReplicaRefused) as fault:
            if not self.excludes:  # as has just come out
                return self._put_new(key, data)
            # Maybe it was done, and only the answer was lost.
            found = self._found(key) if isinstance(fault, ReplicaUnreachable) else None
            if found is None:
                raise
            return found == data
        if done and not self._proved:
            self._prove(key, data)
        return done

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        """Leave the deciding to the store. Where it cannot, `excludes` is False afterwards, and a fault is raised."""
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with self._asking(key):
            try:
                self._store.put(key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                self._proved = True
                return False
            except Exception as error:
                told = (code_of(error), status_of(error))
                if isinstance(error, NotSupportedError) or told[0] == "NotImplemented" or told[1] == 501:
                    self.excludes = False
                raise
        return True

    def _prove(self, key: str, data: bytes) -> None:
        """The same once more has to be refused; a store that takes it ignores the condition."""
        with suppress(ReplicaFault):  # the next `create` asks again
            if self._put_if_absent(key, data):
                self.excludes = False

    def _found(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except NotThere:
            return None

    def _head(self, key: str) -> Any:
        with self._asking(key):
            return self._store.head(key)

    def _remove(self, keys: list[str]) -> None:
        with self._asking(keys[0]):
            self._store.delete(keys)

    def _remove_one(self, key: str) -> None:
        try:
            self._remove([key])
        except NotThere:
            return

    def _verify(self, key: str, record: FileRecord) -> None:
        """Read it back, a chunk at a time."""
        for index, digest in enumerate(record.crc32):
            chunk = self.read(key, index * record.chunk, record.length(index))
            if zlib.crc32(chunk) != digest:
                raise NotThere(
                    f"{self.name}/{key} is not what was written (crc32 of chunk {index} differs): it is copied again."
                )

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Turn what obstore raises into a fault that names the object."""
        try:
            yield
        except BaseException as error:
            if not _is_obstores(error):
                raise
            raise fault(error, self.name, key, self._cloud, answered=self._answered) from error
        self._answered = True


def _is_obstores(error: BaseException, *others: type[Exception]) -> bool:
    """It is one of the errors that obstore raises, and those are not all Exceptions."""
    from obstore.exceptions import BaseError

    return isinstance(error, (BaseError, OSError, *others)) or is_panic(error)


class _Digests:
    """Of what was written: by our own measure, and by the one that S3 tags its objects with."""

    def __init__(self) -> None:
        self.crc32: list[int] = []
        self._parts: list[bytes] = []

    def add(self, part: bytearray) -> None:
        """The next part. All but the last have the same size, a multiple of CHUNK."""
        view = memoryview(part)
        self.crc32 += [zlib.crc32(view[begin : begin + CHUNK]) for begin in range(0, len(view), CHUNK)]
        self._parts.append(_md5(part))

    def vouch(self, record: FileRecord, tag: str) -> bool:
        """The store has these bytes, by its tag, and `record` is about the same ones."""
        ours = {_md5(b"".join(self._parts)).hex() + f"-{len(self._parts)}"}
        if len(self._parts) == 1:
            ours.add(self._parts[0].hex())
        same = record.chunk == CHUNK and list(record.crc32) == self.crc32
        return same and tag.strip('"').lower() in ours


class _Feed:
    """Chunks of any size, cut anew into parts, which are new memory each: obstore holds them until they are sent.

    Attributes:
        part: bytes of each, but for the last.
        digests: of those that were handed out.
        error: what the chunks' own source raised.
    """

    def __init__(self, key: str, chunks: Iterable[Buffer], size: int) -> None:
        self.part = CHUNK * max(1, -(-size // (CHUNK * _PARTS)))
        self.digests = _Digests()
        self.error: BaseException | None = None
        self._key, self._chunks, self._size = key, chunks, size

    def __iter__(self) -> Iterator[bytearray]:
        try:
            yield from self._cut()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise

    def _cut(self) -> Iterator[bytearray]:
        written, part = 0, bytearray()
        for chunk in self._chunks:
            rest = memoryview(chunk)
            rest = rest.cast("B") if rest.nbytes else rest[:0]
            written += rest.nbytes
            while rest:
                more = rest[: self.part - len(part)]
                part += more
                rest = rest[len(more) :]
                if len(part) == self.part:
                    yield self._digested(part)
                    part = bytearray()
        if written != self._size:  # before the last part: what is not whole is not to be seen
            raise ValueError(f"{self._key} is to have {self._size} bytes, and {written} came")
        if part or not written:
            yield self._digested(part)

    def _digested(self, part: bytearray) -> bytearray:
        self.digests.add(part)
        return part


def _split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix of a URL as the settings have it."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    return scheme, bucket, unquote(prefix).strip("/")


def _md5(data: bytes | bytearray) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
