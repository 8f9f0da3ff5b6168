"""`run.json`: what a run is, and its verdict. Written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ksupervise.core.actions import RunState
from ksupervise.errors import RunDamaged, RunNotFound
from ksupervise.store import replace_file, write_fault

FORMAT = 1
_STEM_LIMIT = 60  # characters of the script's stem in a run's name: a file name may have 255 bytes


@dataclass(frozen=True)
class RunRecord:
    """Identity and standing of a run.

    Attributes:
        id: uuid; checkpoints carry it, so another run's are never taken for ours.
        script: absolute path of the script, "" where the command names none.
        script_digest: sha256 of its text when the latest attempt began.
        state: a `RunState` value; "running" while no verdict was reached.
        exit_code: the verdict's, None before one.
        seed: what an unseeded script draws comes from it, at every attempt; `--seed`, or drawn once.
        seed_given: it is `--seed`'s, and for Keras too.
    """

    id: str
    name: str
    command: tuple[str, ...]
    script: str
    script_digest: str
    created: float
    seed: int
    state: str = RunState.RUNNING.value
    exit_code: int | None = None
    detail: str = ""
    format: int = FORMAT
    seed_given: bool = False


def new(name: str, command: Sequence[str], script: str) -> RunRecord:
    """The record of a run that begins now."""
    seed = int.from_bytes(os.urandom(4), "little")
    return RunRecord(str(uuid.uuid4()), name, tuple(command), script, digest(script), time.time(), seed)


def with_seed(record: RunRecord, seed: int | None) -> RunRecord:
    """The record of a run that was called with `--seed`, None without."""
    return record if seed is None else replace(record, seed=seed, seed_given=True)


def ended(record: RunRecord, verdict: Mapping[str, Any]) -> RunRecord:
    """The record of a run that came to that "verdict"; as it was if that makes no sense."""
    try:
        state, code = RunState(verdict["state"]), int(verdict["exit"])
    except (KeyError, TypeError, ValueError):
        return record
    return replace(record, state=state.value, exit_code=code, detail=str(verdict.get("detail", "")))


def load(path: Path) -> RunRecord:
    """Read a record. Raises RunNotFound if there is none, RunDamaged if it is not one."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunNotFound(f"there is no run at {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(values, dict):
        raise _damaged(path, "it is not a JSON object")
    if isinstance(values.get("format"), int) and values["format"] > FORMAT:
        raise _damaged(path, f"format {values['format']} was written by a newer ksupervise")
    return _parse(path, values)


def _parse(path: Path, values: dict[str, object]) -> RunRecord:
    known = {field.name for field in fields(RunRecord)}
    try:
        record = RunRecord(**{key: value for key, value in values.items() if key in known})  # type: ignore[arg-type]
        record = replace(record, command=tuple(record.command))
        _check(record)
    except (TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    return record


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "name", "script", "script_digest", "state", "detail"), str),
    "created": (int, float),
    **dict.fromkeys(("seed", "format"), int),
    "exit_code": (int, type(None)),
    "seed_given": bool,
}


def _check(record: RunRecord) -> None:
    """Raises TypeError or ValueError for what is no record."""
    wrong = [name for name, kind in _TYPES.items() if not isinstance(getattr(record, name), kind)]
    if wrong or not all(isinstance(word, str) for word in record.command):
        raise TypeError(f"not of the right type: {', '.join(wrong) or 'command'}")
    uuid.UUID(record.id)
    RunState(record.state)


def _damaged(path: Path, reason: str) -> RunDamaged:
    return RunDamaged(
        f"{path} cannot be used ({reason}). Nothing was changed; put the file back, or "
        "begin anew with --fresh (the old run is archived) or under another --name"
    )


def save(path: Path, record: RunRecord) -> None:
    """Write `record`. Raises StoreUnwritable, StoreFull."""
    try:
        replace_file(path, json.dumps(asdict(record), indent=1).encode() + b"\n")
    except OSError as error:
        raise write_fault(error, str(path)) from error


def digest(script: str) -> str:
    """sha256 of the script's text, "" if there is none to read."""
    try:
        return hashlib.sha256(Path(script).read_bytes()).hexdigest() if script else ""
    except OSError:
        return ""


def find_script(command: Sequence[str]) -> str:
    """Absolute path of the script that `command` runs, "" if none can be told.

    It is the program itself when it is a text file (`./train.py`); else the first argument that is an existing file,
    after `python`, `torchrun`, `bash` … and their options, or the file of `-m module` if it lies here.
    """
    program = command[0]
    itself = os.path.abspath(program) if _is_text(program) else ""
    if itself and Path(program).suffix[1:].isalpha():
        return itself  # not a launcher: those have no suffix
    for word, following in zip(command[1:], [*command[2:], ""], strict=False):
        if word == "-c":
            return ""
        if word == "-m" and (found := _module_file(following)):
            return found
        if not word.startswith("-") and os.path.isfile(word):
            return os.path.abspath(word)
    return itself


def _module_file(module: str) -> str:
    base = os.path.join(*module.split("."))
    places = (f"{base}.py", os.path.join(base, "__main__.py"))
    return next((os.path.abspath(place) for place in places if os.path.isfile(place)), "")


def _is_text(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(2) == b"#!"
    except OSError:
        return False


def default_name(command: Sequence[str], script: str, array_index: str = "") -> str:
    """The script's stem and a short hash of its arguments; not of interpreter, path or directory.

    `array_index` is Slurm's: every task of an array is a run of its own.
    """
    stem = Path(script or command[0]).stem
    if not script and stem.startswith("python"):
        stem = "python"  # `python3.11 -c …` is what `python -c …` is
    arguments = _arguments(command, script)
    short = hashlib.sha256("\0".join(arguments).encode(errors="surrogateescape")).hexdigest()[:6]
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip(".-")[:_STEM_LIMIT] or "run"
    return f"{safe}-{short}" + (f"-{array_index}" if array_index else "")


def _arguments(command: Sequence[str], script: str) -> Sequence[str]:
    for index, word in enumerate(command):
        if script and os.path.abspath(word) == script:
            return command[index + 1 :]
    return command[1:]
