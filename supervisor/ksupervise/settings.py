"""Settings: one frozen object, made in one place from flags, environment, pyproject.toml and defaults."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ksupervise.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_SIZES = {f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_SIZES |= {f"{prefix}IB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?([KMGT]?I?B)", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")

DEFAULTS: dict[str, Any] = {
    "store": "./.ksupervise",
    "every": "5m",
    "overhead": "1",
    "keep": "3",
    "max_failures": "3",
    "grace": "30s",
    "stall": "auto",
    "notice": "auto",
    "replica_keep": "2",
}


@dataclass(frozen=True)
class Stall:
    """Which silence is a hang.

    Attributes:
        watched: somebody looks.
        floor: seconds; no learned limit is shorter. None for the default.
        fixed: seconds without a step that are one, None to learn them.
    """

    watched: bool = True
    floor: float | None = None
    fixed: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a run is supervised with. Durations in seconds.

    Attributes:
        name: the run's name, None for the default one.
        store: the directory where runs live.
        replica: directories (absolute) and URLs of buckets that committed checkpoints are copied to.
        replica_keep: newest checkpoints kept in each of them.
        replica_rate: bytes a second that a copy may take of the network, None for no cap.
        every: a checkpoint at least this often.
        overhead: share of the training's time that checkpoints may cost, 0..1.
        keep: newest checkpoints kept.
        keep_best: name of a monitored value and "min" or "max": the best one is kept, too. None for none.
        keep_every: ends of epochs kept whose number is a multiple of it, None for none.
        keep_bytes: what checkpoints may take together, None for no cap.
        max_failures: failures without a newer checkpoint after which the run stops.
        grace: between being asked to stop and being killed.
        never_retry, always_retry: exit codes, a signal as 128 + its number: what is final at once, what costs nothing.
        stall: what counts as one.
        deadline: second of `now()` at which the run must have left, None for none.
        notice: who is listened to: off, auto, aws, gcp, azure, file:PATH.
        standby: an interpreter that has imported what the script imports waits to be the next attempt.
        seed: for `keras.utils.set_random_seed`, None to leave the script's randomness alone.
    """

    name: str | None = None
    store: Path = Path(".ksupervise")
    replica: tuple[str, ...] = ()
    replica_keep: int = 2
    replica_rate: int | None = None
    every: float = 300.0
    overhead: float = 0.01
    keep: int = 3
    keep_best: tuple[str, str] | None = None
    keep_every: int | None = None
    keep_bytes: int | None = None
    max_failures: int = 3
    grace: float = 30.0
    never_retry: frozenset[int] = frozenset()
    always_retry: frozenset[int] = frozenset()
    stall: Stall = Stall()
    deadline: float | None = None
    notice: str = "auto"
    fresh: bool = False
    retry: bool = False
    seed: int | None = None
    standby: bool = False
    quiet: bool = False
    json_log: bool = False


def load(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force. `flags` holds what the command line gave, None for what it did not.

    Raises UsageError naming the setting where it was given, its value and what is allowed.
    """
    given = {name: (_flag_of(name), value) for name, value in flags.items() if value is not None}
    defaults = {name: (_flag_of(name), value) for name, value in DEFAULTS.items()}
    chain = ChainMap(given, _from_environment(environ), _from_pyproject(Path("pyproject.toml")), defaults)
    values = {name.removesuffix("_exit"): read(*chain[name]) for name, read in _READERS.items() if name in chain}
    return _checked(Settings(**values))


def _checked(settings: Settings) -> Settings:
    both = sorted(settings.never_retry & settings.always_retry)
    if both:
        raise UsageError(f"--never-retry-exit and --always-retry-exit both name {both[0]}: which is it?")
    return settings


def now() -> float:
    """Seconds on the clock of deadlines: it only goes forward, on Linux also while the machine is suspended."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)


# Each source maps a setting to (what the user calls it there, its value).
_Source = dict[str, tuple[str, Any]]


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _from_environment(environ: Mapping[str, str]) -> _Source:
    """KSUPERVISE_<NAME> for every option but --fresh; KSUPERVISE_RUN and its like are the child's."""
    names = [name for name in _READERS if name != "fresh"]
    return {name: (key, environ[key]) for name in names if (key := f"KSUPERVISE_{name.upper()}") in environ}


def _from_pyproject(path: Path) -> _Source:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if "ksupervise" not in text:
        return {}  # most have none: spare the parser's import
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tools = tomllib.loads(text).get("tool", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    table = tools.get("ksupervise", {}) if isinstance(tools, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [tool.ksupervise] is not a table of settings")
    named = {key.replace("-", "_"): (f"[tool.ksupervise] {key} =", value) for key, value in table.items()}
    unknown = sorted(set(named) - (set(_READERS) - {"fresh"}))
    if unknown:
        raise UsageError(f"{path}: [tool.ksupervise] has no setting named {', '.join(unknown)}")
    return named


def duration(name: str, value: Any) -> float:
    """Seconds of `30s`, `5m`, `1h30m`. Raises UsageError."""
    text = str(value).strip()
    if _DURATION.sub("", text) or not text:
        raise _bad(name, value, "a duration such as 30s, 5m or 12h")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def _positive_duration(name: str, value: Any) -> float:
    seconds = duration(name, value)
    if seconds <= 0:
        raise _bad(name, value, "a duration longer than nothing")
    return seconds


def _deadline(name: str, value: Any) -> float:
    """A duration from now, or the next occurrence of a time of day, as a second of `now()`."""
    match = _TIME_OF_DAY.fullmatch(str(value).strip())
    if match is None:
        try:
            return now() + _positive_duration(name, value)
        except UsageError:
            raise _bad(name, value, "a duration such as 11h30m, or a time of day such as 07:30") from None
    wanted = [int(part or 0) for part in match.groups()]
    local = time.localtime()
    ahead = (wanted[0] - local.tm_hour) * 3600 + (wanted[1] - local.tm_min) * 60 + wanted[2] - local.tm_sec
    return now() + (ahead if ahead > 0 else ahead + 86400)


def _stall(name: str, value: Any) -> Stall:
    """`auto`, `auto:90s` (learned, never shorter than that), a duration, `off`."""
    text = str(value).strip()
    word, colon, floor = text.partition(":")
    if word == "off" and not colon:
        return Stall(watched=False)
    try:
        if word == "auto":
            return Stall(floor=_positive_duration(name, floor) if colon else None)
        return Stall(fixed=_positive_duration(name, text))
    except UsageError:
        raise _bad(name, value, "auto, a duration such as 10m, or off") from None


def _notice(name: str, value: Any) -> str:
    text = str(value).strip()
    if text in ("off", "auto", "aws", "gcp", "azure") or (text.startswith("file:") and len(text) > 5):
        return text
    raise _bad(name, value, "auto, aws, gcp, azure, file:PATH or off")


def _exits(name: str, value: Any) -> frozenset[int]:
    """`3`, `64-78,SIGSEGV`: exit codes; a signal stands for 128 + its number, as a shell reports it."""
    codes: set[int] = set()
    for part in str(value).replace(",", " ").split():
        first, dash, last = part.partition("-")
        low = _exit(name, value, first)
        codes.update(range(low, (_exit(name, value, last) if dash else low) + 1))
    if not codes:
        raise _bad(name, value, _EXITS)
    return frozenset(codes)


def _exit(name: str, value: Any, text: str) -> int:
    number = signal.Signals.__members__.get(text.upper())
    if number is not None:
        return 128 + number
    if not re.fullmatch(r"\d{1,3}", text) or not 1 <= int(text) <= 255:
        raise _bad(name, value, _EXITS)
    return int(text)


_EXITS = "exit codes from 1 to 255 and names of signals, such as 3,64-78,SIGSEGV"


def _count(name: str, value: Any) -> int:
    if not re.fullmatch(r"\d{1,9}", str(value).strip()) or int(value) < 1:
        raise _bad(name, value, "a whole number of 1 or more")
    return int(value)


def _best(name: str, value: Any) -> tuple[str, str]:
    """`val_loss`, `my_metric:max`: what is monitored, and whether the least or the greatest of it is best."""
    monitored, colon, direction = str(value).strip().partition(":")
    if not monitored or (colon and direction not in ("min", "max")) or not isinstance(value, str):
        raise _bad(name, value, "the name of a value in fit's logs, such as val_loss, or NAME:min or NAME:max")
    return monitored, direction or _direction(name, monitored)


def _direction(name: str, monitored: str) -> str:
    """As `mode="auto"` of Keras' callbacks: the metric decides, and where it is not known, nobody guesses.

    Keras asks the metric itself (`Metric._direction`); here its usual name has to do.
    """
    words = f"_{monitored.lower()}"
    for direction, known in (("min", _LESS), ("max", _MORE)):
        if any(f"_{word}" in words for word in known):
            return direction
    raise UsageError(f"{name} {monitored}: is less or more of it better? Give {monitored}:min or {monitored}:max")


# How words in the names of Keras' metrics and losses begin, by what is better. A name that has both is a loss.
_LESS: tuple[str, ...] = (
    "loss",
    "error",
    "mse",
    "mae",
    "mape",
    "msle",
    "rmse",
    "crossentropy",
    "hinge",
    "divergence",
    "logcosh",
)
_LESS += ("poisson", "false_positives", "false_negatives")
_MORE: tuple[str, ...] = (
    "acc",
    "auc",
    "precision",
    "recall",
    "iou",
    "io_u",
    "f1",
    "fbeta",
    "fmeasure",
    "sensitivity",
    "specificity",
)
_MORE += ("r2_score", "cosine_similarity", "correlation", "true_positives", "true_negatives")


def _size(name: str, value: Any) -> int:
    """Bytes of `20GB`, `500MiB`, `1.5 TB`."""
    match = _SIZE.fullmatch(str(value).strip())
    size = int(float(match[1]) * _SIZES[match[2].upper()]) if match and match[2].upper() in _SIZES else 0
    if size < 1:
        raise _bad(name, value, "a size such as 20GB or 500MiB")
    return size


def _seed(name: str, value: Any) -> int:
    if not re.fullmatch(r"\d{1,10}", str(value).strip()) or int(value) >= 2**32:
        raise _bad(name, value, "a whole number from 0 to 4294967295")
    return int(value)


def _percent(name: str, value: Any) -> float:
    text = str(value).strip().removesuffix("%")
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise _bad(name, value, "a percentage above 0, up to 100")
    return percent / 100


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        raise _bad(name, value, "yes or no")
    return text in ("1", "true", "yes", "on")


def _name(name: str, value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
        raise _bad(name, value, "letters, digits, '.', '_' and '-', not beginning with '.', at most 100")
    return text


def _bad(name: str, value: Any, allowed: str) -> UsageError:
    return UsageError(f"{name} {value!r} is not valid: give {allowed}")


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise _bad(name, value, "a directory")
    try:
        return Path(value).expanduser()
    except RuntimeError:  # ~ of a user who is not known here
        raise _bad(name, value, "a directory") from None


def _places(name: str, value: Any) -> tuple[str, ...]:
    """Directories, made absolute, and URLs of buckets. In one text they stand with semicolons between."""
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise _bad(name, value, _PLACES)
    return tuple(dict.fromkeys(_place(name, part.strip()) for part in parts))


def _place(name: str, text: str) -> str:
    """One of them. A text that is refused is not shown where it may hold a password."""
    if not text:
        raise UsageError(
            f"{name} names no place, or one of several is empty: is a shell variable not set? Give {_PLACES}"
        )
    if _WINDOWS.match(text):
        raise UsageError(
            f"{name} {text} is a path of Windows; in WSL drive C: is /mnt/c, and a share has to be mounted"
        )
    scheme, colon, rest = text.partition("://")
    if colon and _SCHEME.fullmatch(scheme):
        return _url(name, scheme.lower(), rest)
    if known := next((each for each in _URLS if text.lower().startswith(f"{each}:")), ""):
        raise UsageError(f"{name} {known}:… lacks its slashes: write {_URLS[known]}")
    if _OTHER_MACHINE.match(text):
        raise UsageError(
            f"{name} HOST:/… is a folder of another machine: mount it, and give the folder where it is then"
        )
    return os.path.abspath(_path(name, text))


def _url(name: str, scheme: str, rest: str) -> str:
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not path.strip("/"):
            raise UsageError(f"{name} file://{slash}… names no folder of this machine: write {_URLS['file']}")
        return os.path.abspath(unquote(f"/{path}"))
    if scheme not in _URLS:
        hint = next((hint for known, hint in _MEANT.items() if scheme in known.split()), f"give {_PLACES}")
        raise UsageError(f"{name} {scheme}://… is no kind of place that is known here: {hint}")
    bucket, _, prefix = rest.partition("/")
    named = _BUCKET.fullmatch(bucket) is not None
    if "?" in rest or "#" in rest or ("@" in rest and not named):  # a password may hold a slash
        raise UsageError(
            f"{name} {scheme}://…: nothing goes before @ or behind ? and # there; credentials belong in the environment"
        )
    if not named:
        raise UsageError(f"{name} {scheme}://… names no bucket: write {_URLS[scheme]}")
    parts = unquote(prefix).strip("/").split("/")
    if parts != [""] and (not all(parts) or not {".", ".."}.isdisjoint(parts) or set("\\\0") & set("".join(parts))):
        raise UsageError(f"{name} {scheme}://{bucket}/…: write a prefix without //, ., .. and backslashes")
    return f"{scheme}://{rest.rstrip('/')}"


_URLS = {
    "s3": "s3://BUCKET/PREFIX",
    "gs": "gs://BUCKET/PREFIX",
    "az": "az://CONTAINER/PREFIX",
    "file": "file:///FOLDER",
}
_PLACES = f"a directory, {', '.join(_URLS.values())}"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_OTHER_MACHINE = re.compile(r"[^/\s]+:/")  # as scp and mount write it
_BUCKET = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Schemes of other programs, and what is written here for what they mean.
_MEANT = {
    "gcs gc google": "Google Cloud Storage is gs://BUCKET/PREFIX",
    "azure adl abfs abfss wasb wasbs blob": (
        "Azure Blob Storage is az://CONTAINER/PREFIX, with the account in AZURE_STORAGE_ACCOUNT_NAME"
    ),
    "s3a s3n r2 b2 minio wasabi oss cos http https": (
        "what speaks S3's protocol is s3://BUCKET/PREFIX, with the server's address in AWS_ENDPOINT_URL"
    ),
    "nfs smb cifs ssh sftp scp ftp ftps rsync dav davs webdav drive gdrive rclone hdfs": (
        "mount it, and give the folder where it is then"
    ),
}

_READERS: dict[str, Any] = {
    "name": _name,
    "store": _path,
    "replica": _places,
    "replica_keep": _count,
    "replica_rate": _size,
    "every": _positive_duration,
    "overhead": _percent,
    "keep": _count,
    "keep_best": _best,
    "keep_every": _count,
    "keep_bytes": _size,
    "max_failures": _count,
    "never_retry_exit": _exits,
    "always_retry_exit": _exits,
    "grace": duration,
    "stall": _stall,
    "deadline": _deadline,
    "notice": _notice,
    "fresh": _flag,
    "retry": _flag,
    "seed": _seed,
    "standby": _flag,
    "quiet": _flag,
    "json_log": _flag,
}
