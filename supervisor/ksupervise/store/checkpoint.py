"""What a checkpoint says about itself: position, files and their digests.

The manifest is one JSON object. Its last key, "self", is the crc32 of all text before that key: it tells
a torn or flipped manifest before a single value is believed. That, and the keys "format" and "writer",
stay as they are in every later format, so that an older ksupervise can say who wrote what it cannot read.
"""

from __future__ import annotations

import json
import math
import os
import stat
import zlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from ksupervise.store.atomic import FileRecord, check_name, open_plain
from ksupervise.store.faults import DamagedCheckpoint, NewerFormat, read_fault

FORMAT = 1
MANIFEST = "MANIFEST.json"
MAX_MANIFEST = 4 * 1024 * 1024  # bytes: digests of 2.5 TB. Parsed, the worst of that size takes 100 MB

Kind = Literal["batch", "epoch", "final"]
Origin = Literal["interval", "epoch", "drain", "crash", "final", "user"]
KINDS: tuple[str, ...] = get_args(Kind)
ORIGINS: tuple[str, ...] = get_args(Origin)

_SELF = b',"self":"'
_TAIL = len(_SELF) + len('00000000"}\n')
_MAX_COUNT = 2**63 - 1
_MAX_TEXT = 200  # characters
_EXTRA_COUNTS = ("epochs", "model")  # what this package itself writes into `extra` and reads from it as numbers


@dataclass(frozen=True)
class Position:
    """Where in the run the training stands.

    Attributes:
        fit: number of the fit, in call order.
        epoch: epochs of that fit that are done, so also the index of the one in progress.
        batch: batches of that epoch already trained.
        step: optimizer steps since the run began, summed over all fits.
        kind: "batch" (between two batches), "epoch" (after an epoch's end), "final" (after a whole fit).
    """

    fit: int
    epoch: int
    batch: int
    step: int
    kind: Kind

    def __post_init__(self) -> None:
        for name in ("fit", "epoch", "batch", "step"):
            _check_count(name, getattr(self, name))
        _check_choice("kind", self.kind, KINDS)


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint without reading its payload.

    Attributes:
        run: the run's uuid.
        seq: number of the checkpoint, counted through the whole run, never used twice.
        attempt: number of the attempt that trained it, from 1.
        holder: who wrote it; tells two owners apart where the store cannot exclude one.
        position: where in the run it stands.
        origin: why it was written.
        created: wall clock, seconds since 1970. For people only, never for ordering.
        files: the payload.
        extra: whatever the writer wants back; plain JSON (NaN and infinity pass).
        writer: the version of ksupervise that wrote it.

    Raises:
        ValueError: a value is of the wrong type or out of bounds.
    """

    run: str
    seq: int
    attempt: int
    holder: str
    position: Position
    origin: Origin
    created: float
    files: tuple[FileRecord, ...]
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    writer: str = "ksupervise"

    def __post_init__(self) -> None:
        for name in ("run", "holder", "writer"):
            _check_text(name, getattr(self, name))
        if not self.run.isprintable():  # it is told to the user
            raise ValueError("run is not printable")
        for name in ("seq", "attempt"):
            _check_count(name, getattr(self, name))
        _check_choice("origin", self.origin, ORIGINS)
        if type(self.created) not in (int, float) or not math.isfinite(self.created):
            raise ValueError("created is not a time")
        if type(self.extra) is not dict:
            raise ValueError("extra is not an object")
        for name in _EXTRA_COUNTS:
            _check_count(name, self.extra.get(name, 0))
        check_payload_names([record.name for record in self.files])

    @property
    def order(self) -> tuple[int, int, str]:
        """Sorts checkpoints from old to new. Not by step: a later attempt may have begun further back."""
        return (self.attempt, self.seq, self.holder)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files)

    def file(self, name: str) -> FileRecord:
        """The record of that file. Raises KeyError."""
        for record in self.files:
            if record.name == name:
                return record
        raise KeyError(name)

    def encode(self) -> bytes:
        """The manifest's text. Raises ValueError or TypeError if `extra` is not plain JSON or too large."""
        body = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode()[:-1]
        text = body + _SELF + f'{zlib.crc32(body):08x}"}}\n'.encode()
        if len(text) > MAX_MANIFEST:
            raise ValueError(f"a manifest of {len(text)} bytes is too large")
        return text


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its directory and what its manifest says."""

    path: str
    manifest: Manifest

    def file_path(self, name: str) -> str:
        """Where that file lies. Raises KeyError if the manifest names no such file."""
        return os.path.join(self.path, self.manifest.file(name).name)


def decode(text: bytes, path: str) -> Manifest:
    """Parse a manifest, strictly. `path` is for the words of an error only.

    Raises:
        DamagedCheckpoint: it is not, to the letter, what `encode` made.
        NewerFormat: it is whole, but a newer ksupervise wrote it.
    """
    try:
        values = _parse(text)
        if type(values.get("format")) is int and values["format"] > FORMAT:
            raise NewerFormat(_newer(values, path))
        return _manifest(values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedCheckpoint(path, f"its manifest is not valid ({_brief(error)})") from error


def read_manifest(directory: str) -> Manifest:
    """The manifest of the checkpoint in that directory.

    Raises:
        DamagedCheckpoint, NewerFormat: as `decode`, or there is none, or it is larger than MAX_MANIFEST.
        StoreUnreadable: it could not be read now.
    """
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, "rb", opener=lambda name, _: open_plain(name)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DamagedCheckpoint(path, "it is not a plain file")
            text = file.read(min(found.st_size, MAX_MANIFEST) + 1)
    except OSError as error:
        raise read_fault(error, path) from error
    return decode(text, path)


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_MANIFEST:
        raise ValueError(f"it is larger than {MAX_MANIFEST} bytes")
    body, tail = text[:-_TAIL], text[-_TAIL:]
    if tail != _SELF + f'{zlib.crc32(body):08x}"}}\n'.encode():
        raise ValueError("torn or changed: its own crc32 differs")
    values = json.loads(body + b"}", object_pairs_hook=_unique_keys)
    if type(values) is not dict:
        raise ValueError("not an object")
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _newer(values: dict[str, Any], path: str) -> str:
    writer = str(values.get("writer", "a newer ksupervise"))[:_MAX_TEXT]
    writer = "".join(letter if letter.isprintable() else "?" for letter in writer)  # a terminal obeys some
    return (
        f"{path} was written by {writer} in format {values['format']}; this version reads up to {FORMAT}. "
        "Upgrade ksupervise, or start anew with --fresh."
    )


def _manifest(values: dict[str, Any]) -> Manifest:
    _check_keys(values, {"format", *(each.name for each in fields(Manifest))})
    if type(values.pop("format")) is not int:
        raise ValueError("format is not a number")
    position = values.pop("position")
    _check_keys(position, {each.name for each in fields(Position)})
    files = values.pop("files")
    if type(files) is not list:
        raise ValueError("files is not a list")
    records = tuple(_record(entry) for entry in files)
    return Manifest(position=Position(**position), files=records, **values)


def _record(entry: Any) -> FileRecord:
    _check_keys(entry, {each.name for each in fields(FileRecord)})
    if type(entry["name"]) is not str or type(entry["crc32"]) is not list:
        raise ValueError("a file's name or digests are of the wrong type")
    return FileRecord(entry["name"], entry["size"], entry["chunk"], tuple(entry["crc32"]))


def _check_keys(values: Any, expected: set[str]) -> None:
    if type(values) is not dict:
        raise ValueError("an object is missing")
    if wrong := expected.symmetric_difference(values):
        raise ValueError(f"{'missing' if wrong & expected else 'unknown'} key {min(wrong)[:_MAX_TEXT]!r}")


def _check_count(what: str, value: int) -> None:
    # The type is checked exactly: JSON's true would pass for 1.
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"{what} is not a count")


def _check_text(what: str, value: str) -> None:
    if type(value) is not str or not 0 < len(value) <= _MAX_TEXT:
        raise ValueError(f"{what} is not a text of 1 to {_MAX_TEXT} characters")


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if type(value) is not str or value not in choices:
        raise ValueError(f"{what} is none of {', '.join(choices)}")


def check_payload_names(names: list[str]) -> None:
    """Refuse names that cannot lie beside each other in a checkpoint. Raises ValueError."""
    for name in names:
        check_name(name)
    folded = [name.casefold() for name in names]  # on macOS names that differ in case only are one file
    if len(set(folded)) != len(folded):
        raise ValueError("two files have one name")
    if MANIFEST.casefold() in folded:
        raise ValueError(f"{MANIFEST} is not a name for a file of the payload")


def _brief(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:_MAX_TEXT]
