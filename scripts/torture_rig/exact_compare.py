"""What a training left behind, and in what two of them differ. Reads files; knows no TensorFlow."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = tuple[int, int, int]  # fit, epoch, number of the execution's first batch
KNOWN = "known: "  # how the documented differences begin
# How fast something went is no result.
_TIMINGS = ("steps_per_second", "batch_steps", "examples_per_second")


@dataclass(frozen=True)
class Trained:
    """One record of the witness: an execution of one or more steps that was finished, in any life."""

    life: int
    at: Step
    last: int  # number of the execution's last batch
    ids: tuple[int, ...]  # samples, where the model tells

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.last - self.at[2] + 1


@dataclass(frozen=True)
class Left:
    """Everything in the folder of one training."""

    result: dict[str, Any]
    files: dict[str, Any]
    witness: list[Trained]

    @classmethod
    def read(cls, folder: Path) -> Left:
        """Raises OSError if the script did not come to its end."""
        result = json.loads((folder / "result.json").read_text())
        return cls(result, files(folder / "files"), witness(folder / "steps.jsonl"))

    @property
    def executed(self) -> int:
        """Steps, repeated ones included."""
        return sum(trained.steps for trained in self.witness)

    @property
    def positions(self) -> list[Step]:
        """Where steps were trained, each once, in order."""
        return sorted({trained.at for trained in self.witness})


def witness(path: Path) -> list[Trained]:
    """The witness' records. One that a kill cut short was not finished."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            life, fit, epoch, batch, last, ids = json.loads(line)
        except ValueError:
            continue
        records.append(Trained(life, (fit, epoch, batch), last, tuple(ids)))
    return records


def differences(one: Left, other: Left, *, seeded: bool) -> list[str]:
    """In words. Without a seed only the shape of the work can be the same."""
    found = []
    if one.positions != other.positions:
        found.append(f"trained at {len(other.positions)} positions instead of {len(one.positions)}")
    if not seeded:
        found += [f"{name} differ" for name in ("epochs", "stopped") if one.result[name] != other.result[name]]
        return found + _files_missing(one.files, other.files)
    for name, value in one.result.items():
        if other.result[name] != value:
            found.append(f"{name} differ{_where(value, other.result[name])}")
    return found + _files_differing(one.files, other.files)


def _where(one: Any, other: Any) -> str:
    """A hint at the first thing that differs, for what is no digest."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            if pair[0] != pair[1]:
                return _where(*pair) if isinstance(pair[0], (dict, list)) else f" (at {index})"
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in one if one[name] != other.get(name)]
        inside = _where(one[names[0]], other.get(names[0])) if names else ""
        return f" ({', '.join(names[:3]) or 'more names'}{inside})"
    if isinstance(one, list) and isinstance(other, list):
        return f" ({len(other)} instead of {len(one)})"
    return ""


def _files_missing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    missing, more = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    return [f"file {name} is missing" for name in missing] + [f"file {name} is too many" for name in more]


def _files_differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = _files_missing(one, other)
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name]:
            found.append(f"{_known(name, one[name], other[name])}file {name} differs{_how(one[name], other[name])}")
    return found


def _known(name: str, one: Any, other: Any) -> str:
    """A mark for what is documented: what a script writes by itself (into a file of a closure's) is not undone.

    Opened for appending, the file may have lines twice, but none too few; opened anew, it has those of the last life.
    """
    if not name.startswith(("lambda-", "peeked")):
        return ""
    then, now = one.splitlines(), other.splitlines()
    if name.startswith("peeked"):  # the same lines, and one again for an epoch's end that came again
        return KNOWN if set(then) == set(now) and len(now) > len(then) else ""
    nothing_lost = not collections.Counter(then) - collections.Counter(now)
    return KNOWN if nothing_lost or not now or then[-len(now) :] == now else ""


def _how(one: Any, other: Any) -> str:
    if isinstance(one, collections.Counter) and isinstance(other, collections.Counter):
        lost, doubled = one - other, other - one
        first = next(iter(doubled or lost))
        return f" ({lost.total()} events lost, {doubled.total()} too many, as {first[0]} at {first[1]})"
    if isinstance(one, dict) and isinstance(other, dict):
        return f" ({sum(1 for name in one if one[name] != other.get(name))} of {len(one)} parts)"
    if isinstance(one, str) and isinstance(other, str):
        return f" ({len(other.splitlines())} lines instead of {len(one.splitlines())})"
    return ""


def exactly_once(left: Left) -> list[str]:
    """Whether each epoch, as it went into the final weights, met every sample once.

    A step that was trained again after a resume counts as it was the last time: what came of it before was dropped.
    """
    last = {trained.at: trained for trained in left.witness}
    epochs: dict[tuple[int, int], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for (fit, epoch, _), trained in last.items():
        epochs[fit, epoch].update(trained.ids)
    every = {number for ids in epochs.values() for number in ids}
    found = []
    for (fit, epoch), ids in sorted(epochs.items()):
        missed, twice = len(every - ids.keys()), sum(count - 1 for count in ids.values())
        if missed or twice:
            found.append(f"fit {fit + 1}, epoch {epoch + 1}: {missed} samples missed, {twice} met again")
    return found


# Files


def files(folder: Path) -> dict[str, Any]:
    """What is in a folder, by name: something to compare. All event files of one folder are one."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if ".tfevents." in path.name:
            events = found.setdefault(f"{path.parent.relative_to(folder)}/events", collections.Counter())
            events.update(tensorboard_events(path.read_bytes()))
        else:
            found[name] = _READERS.get(path.suffix, _text)(path)
    return found


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="backslashreplace")


def _archive(path: Path) -> dict[str, str]:
    """A `.keras` file: every array and the configuration. Its metadata hold the date."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _arrays(io.BytesIO(archive.read("model.weights.h5")))
            # An object that is shared is marked with its address.
            configuration = re.sub(rb'"shared_object_id": \d+', b"", archive.read("config.json"))
            return {**parts, "config.json": _sha(configuration)}
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        return {"unreadable": repr(error)}


def _weights(path: Path) -> dict[str, str]:
    try:
        return _arrays(path)
    except OSError as error:
        return {"unreadable": repr(error)}


def _arrays(file: Path | io.BytesIO) -> dict[str, str]:
    import h5py

    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = _sha(item[()].tobytes())

    with h5py.File(file, "r") as content:
        content.visititems(visit)
    return found


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_READERS: dict[str, Callable[[Path], Any]] = {".keras": _archive, ".h5": _weights}


# TensorBoard's files: records of protocol buffers, of which a handful of fields is read

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def tensorboard_events(content: bytes) -> Iterator[tuple[str, int, str]]:
    """(tag, step, digest of the value) of every summary; a record cut short by a kill is passed over, as readers do."""
    offset = 0
    while offset + 12 <= len(content):
        (size,) = struct.unpack_from("<Q", content, offset)
        record = content[offset + 12 : offset + 12 + size]
        offset += 12 + size + 4
        if len(record) == size:
            yield from _summaries(record)


def _summaries(record: bytes) -> Iterator[tuple[str, int, str]]:
    fields = _fields(record)
    step = next((value for number, value in fields if number == 2), 0)
    for number, summary in fields:
        for inner, value in _fields(summary) if number == 5 and isinstance(summary, bytes) else []:
            if inner == 1 and isinstance(value, bytes):
                tag, digest = _summary_value(value)
                timing = any(word in tag for word in _TIMINGS)
                yield tag, int(step), "" if timing else digest


def _summary_value(value: bytes) -> tuple[str, str]:
    fields = _fields(value)
    tag = next((v for number, v in fields if number == 1 and isinstance(v, bytes)), b"")
    rest = [v for number, v in fields if number not in (1, 9)]  # 9: metadata, written with a tag's first value only
    return tag.decode(errors="replace"), _sha(repr(rest).encode())


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    found: list[tuple[int, int | bytes]] = []
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == _VARINT:
            value, offset = _varint(message, offset)
        elif kind == _BYTES:
            size, offset = _varint(message, offset)
            value, offset = message[offset : offset + size], offset + size
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[kind]
            value, offset = message[offset : offset + size], offset + size
        found.append((number, value))
    return found


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[offset]
        value |= (byte & 127) << shift
        shift, offset = shift + 7, offset + 1
        if byte < 128:
            return value, offset
