"""Settings: what each accepts, what it refuses and how, and which source wins."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksupervise.errors import UsageError
from ksupervise.settings import DEFAULTS, Settings, Stall, duration, load, now


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty directory: no pyproject.toml of ours."""
    monkeypatch.chdir(tmp_path)


def one(name: str, value: Any) -> Any:
    """What the flag `name` comes to."""
    return getattr(load({name: value}, {}), name.removesuffix("_exit"))


def test_a_relative_replica_is_where_it_was_named() -> None:
    assert one("replica", "runs") == (str(Path.cwd() / "runs"),)
    assert one("replica", "./nas:/runs") == (str(Path.cwd() / "nas:" / "runs"),)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("12h", 43200), ("2d", 172800), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration("--every", text) == seconds
    assert one("every", f" {text} ") == seconds


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("name", "run_1.2-b", "run_1.2-b"),
        ("store", "runs", Path("runs")),
        ("store", "~/runs", Path.home() / "runs"),
        ("replica", "/mnt/My Drive/model", ("/mnt/My Drive/model",)),
        ("replica", ("s3://bucket/runs", "/a", "/a"), ("s3://bucket/runs", "/a")),
        ("replica", "gs://bucket; /a ", ("gs://bucket", "/a")),
        ("replica", ("/a/", "/a/../a", "/a//.", "file:///a", "FILE://localhost/a"), ("/a",)),
        ("replica", ("S3://bucket/x/", "s3://bucket/x"), ("s3://bucket/x",)),
        ("replica", ("s3://bucket/my%20model", "az://c/me@here"), ("s3://bucket/my%20model", "az://c/me@here")),
        ("replica", ("file:///mnt/My%20Drive", "/a;b"), ("/mnt/My Drive", "/a;b")),
        ("replica", ("~/x", "/C:/x"), (str(Path.home() / "x"), "/C:/x")),
        ("replica", [], ()),
        ("replica_keep", "5", 5),
        ("replica_rate", "20MB", 20_000_000),
        ("overhead", "1", 0.01),
        ("overhead", "0.5%", 0.005),
        ("keep", "7", 7),
        ("keep_best", "val_loss", ("val_loss", "min")),
        ("keep_best", "val_accuracy", ("val_accuracy", "max")),
        ("keep_best", "acc", ("acc", "max")),
        ("keep_best", "auc_1", ("auc_1", "max")),
        ("keep_best", "val_mean_io_u", ("val_mean_io_u", "max")),
        ("keep_best", "Precision", ("Precision", "max")),
        ("keep_best", "val_root_mean_squared_error", ("val_root_mean_squared_error", "min")),
        ("keep_best", "accuracy_loss", ("accuracy_loss", "min")),
        ("keep_best", "val_loss:max", ("val_loss", "max")),
        ("keep_best", "previous:min", ("previous", "min")),
        ("keep_every", "10", 10),
        ("keep_bytes", "20GB", 20_000_000_000),
        ("keep_bytes", "500MiB", 500 * 1024**2),
        ("keep_bytes", " 1.5 gb ", 1_500_000_000),
        ("keep_bytes", "1B", 1),
        ("keep_bytes", "2kB", 2000),
        ("keep_bytes", "1TiB", 1024**4),
        ("max_failures", 1, 1),
        ("grace", "0s", 0.0),
        ("stall", "off", Stall(watched=False)),
        ("stall", "auto", Stall()),
        ("stall", "auto:90s", Stall(floor=90.0)),
        ("stall", "10m", Stall(fixed=600.0)),
        ("notice", "off", "off"),
        ("notice", "auto", "auto"),
        ("notice", "file:/run/notice", "file:/run/notice"),
        ("never_retry_exit", "3", frozenset({3})),
        ("always_retry_exit", "64-66, SIGSEGV", frozenset({64, 65, 66, 139})),
        ("seed", "0", 0),
        ("seed", str(2**32 - 1), 2**32 - 1),
        ("quiet", True, True),
        ("retry", "yes", True),
        ("json_log", "0", False),
        ("fresh", True, True),
    ],
)
def test_good_values(name: str, value: Any, read: Any) -> None:
    assert one(name, value) == read


BAD = {
    "name": ["", ".hidden", "a/b", "a b", "x" * 101, "..", "größe"],
    "store": ["", "~nobody-of-that-name/runs"],
    "replica": [
        "ftp://host/x",
        "s3://",
        "~nobody-of-that-name/runs",
        "s3:///",
        "",
        " ",
        "a;;b",
        "/a;",
        "file://host/x",
    ],
    "replica_keep": ["0", "-1", "many", ""],
    "replica_rate": ["0MB", "", "20", "fast"],
    "every": ["", "5", "0s", "-5s", "5 m", "five", "s", "1e3s", "9" * 400 + "s", "5q"],
    "overhead": ["0", "-1", "101", "nan", "inf", "much", ""],
    "keep": ["0", "-1", "2.5", "many", "", "9" * 5000],
    "keep_best": ["", "previous", "fancy_metric", "val_loss:", "val_loss:best", ":min", "loss:max:min"],
    "keep_every": ["0", "-1", "two", ""],
    "keep_bytes": ["0GB", "", "20", "GB", "-1GB", "1e3MB", "20G", "1IB", "0.1B", "9" * 400 + "GB", "nanGB", "1 PB"],
    "max_failures": ["0", "none", "9" * 5000],
    "grace": ["soon", "30", ""],
    "stall": ["auto:", "auto:never", "off:1s", "never", "0s", ""],
    "deadline": ["25:00", "12:60", "noon", "0s", ""],
    "notice": ["file:", "aws gcp", "smoke", ""],
    "never_retry_exit": ["", "0", "256", "3-", "SIGNAL", "-1"],
    "always_retry_exit": ["", "many"],
    "seed": ["-1", str(2**32), "9" * 5000, "x", ""],
    "quiet": ["maybe"],
    "standby": ["maybe"],
    "retry": ["2"],
    "json_log": ["json"],
}
BAD_VALUES = [(name, value) for name, values in BAD.items() for value in values]
IDS = [f"{name}={value[:12]}" for name, value in BAD_VALUES]


def test_every_setting_has_bad_values_to_try() -> None:
    assert {name.removesuffix("_exit") for name in BAD} == set(Settings.__dataclass_fields__) - {"fresh"}


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=IDS)
def test_a_bad_flag_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')}"):
        load({name: value}, {})


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=IDS)
def test_a_bad_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^KSUPERVISE_{name.upper()} "):
        load({}, {f"KSUPERVISE_{name.upper()}": value})


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=IDS)
def test_a_bad_line_in_pyproject_is_named(name: str, value: str) -> None:
    key = name.replace("_", "-")
    project(f'[tool.ksupervise]\n{key} = "{value}"\n')
    with pytest.raises(UsageError, match=rf"\[tool.ksupervise\] {key} ="):
        load({}, {})


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,30}(ms|s|m|h|d)", fullmatch=True))
def test_any_text_is_a_finite_duration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        seconds = duration("--every", text)
        assert seconds >= 0
        assert math.isfinite(seconds)


# Replicas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is a shell variable not set"),
        ("gcs://b/x", "Google Cloud Storage is gs://BUCKET/PREFIX"),
        ("abfss://c@account/x", "az://CONTAINER/PREFIX"),
        ("r2://b", "s3://BUCKET/PREFIX, with the server's address in AWS_ENDPOINT_URL"),
        ("https://b.s3.amazonaws.com/x", "s3://BUCKET/PREFIX"),
        ("nfs://nas/x", "mount it"),
        ("sftp://me:HIDDEN@host/x", "mount it"),
        ("strange://me:HIDDEN@host/x", "file:///FOLDER"),
        ("nas:/export", "mount it"),
        ("me@nas:/export", "mount it"),
        (r"C:\runs", "a path of Windows"),
        ("c:/runs", "a path of Windows"),
        (r"\\nas\runs", "a path of Windows"),
        ("s3:/bucket/x", "write s3://BUCKET/PREFIX"),
        ("gs:bucket", "write gs://BUCKET/PREFIX"),
        ("file:x", "write file:///FOLDER"),
        ("file://host/x", "write file:///FOLDER"),
        ("s3://key:HIDDEN@bucket/x", "credentials belong in the environment"),
        ("s3://key:HID/DEN@bucket/x", "credentials belong in the environment"),
        ("s3://bucket/x?secret=HIDDEN", "credentials belong in the environment"),
        ("az://container#HIDDEN", "credentials belong in the environment"),
        ("s3:///x", "names no bucket"),
        ("s3://buc ket/x", "names no bucket"),
        ("s3://../x", "names no bucket"),
        ("s3://bucket/a//b", "write a prefix without"),
        ("s3://bucket/a/../b", "write a prefix without"),
        ("s3://bucket/a%2F..%2Fb", "write a prefix without"),
        (r"s3://bucket/a\b", "write a prefix without"),
    ],
)
def test_what_is_no_place_is_refused_with_what_may_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        one("replica", ("/fine", text))
    assert words in str(raised.value)
    assert "HID" not in str(raised.value)


@pytest.mark.parametrize("written", ['[""]', "[3]", "3", "true", '"/a;"'])
def test_a_pyproject_with_other_things_than_places_is_refused(written: str) -> None:
    project(f"[tool.ksupervise]\nreplica = {written}\n")
    with pytest.raises(UsageError, match=r"\[tool.ksupervise\] replica ="):
        load({}, {})


# The deadline -------------------------------------------------------------------------------------


def test_a_deadline_as_a_duration_counts_from_now() -> None:
    before = now()
    assert before + 3600 <= one("deadline", "1h") <= now() + 3600


@pytest.mark.parametrize(
    ("clock", "text", "ahead"),
    [
        ((7, 0, 0), "07:30", 1800),
        ((7, 0, 0), "7:00:05", 5),
        ((7, 0, 0), "07:00", 86400),
        ((23, 59, 30), "00:00", 30),
        ((12, 0, 0), "11:00", 82800),
    ],
)
def test_a_deadline_as_a_time_is_its_next_occurrence(
    clock: tuple[int, int, int], text: str, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = time.struct_time((2026, 5, 4, *clock, 0, 124, 0))
    monkeypatch.setattr("ksupervise.settings.time.localtime", lambda: today)
    monkeypatch.setattr("ksupervise.settings.now", lambda: 1000.0)
    assert one("deadline", text) == 1000.0 + ahead


# Sources ------------------------------------------------------------------------------------------


def project(text: str) -> None:
    """Write the pyproject.toml of the directory we are in."""
    Path("pyproject.toml").write_text(text)


def test_nothing_given_is_the_defaults() -> None:
    assert load({}, {}) == Settings()


def test_the_defaults_of_the_command_line_and_of_the_object_are_the_same() -> None:
    assert load(DEFAULTS, {}) == Settings()


def test_flags_win_over_the_environment_over_pyproject_over_defaults() -> None:
    project('[tool.ksupervise]\nkeep = 5\nmax-failures = 5\ngrace = "5s"\n')
    environ = {"KSUPERVISE_KEEP": "6", "KSUPERVISE_MAX_FAILURES": "6"}
    settings = load({"keep": "7", "max_failures": None, "grace": None}, environ)
    assert (settings.keep, settings.max_failures, settings.grace) == (7, 6, 5.0)
    assert settings.every == Settings().every


def test_pyproject_may_write_a_setting_either_way() -> None:
    project("[tool]\nksupervise.max_failures = 9\nksupervise.json-log = true\n")
    settings = load({}, {})
    assert (settings.max_failures, settings.json_log) == (9, True)


def test_what_the_child_is_told_is_no_setting_of_ours() -> None:
    environ = {"KSUPERVISE_RUN": "x", "KSUPERVISE_ATTEMPT": "1", "KSUPERVISE_RUN_DIR": "/x", "KSUPERVISE_WHATEVER": "x"}
    assert load({}, environ) == Settings()


def test_fresh_is_for_the_command_line_only() -> None:
    assert load({}, {"KSUPERVISE_FRESH": "1"}).fresh is False
    project("[tool.ksupervise]\nfresh = true\n")
    with pytest.raises(UsageError, match="no setting named fresh"):
        load({}, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[tool.ksupervise]\nkep = 5\n", "no setting named kep"),
        ("[tool.ksupervise]\nkeep = \n", "not valid TOML"),
        ("[[tool.ksupervise]]\nkeep = 5\n", "not a table"),
        ("[tool]\nksupervise = 3\n", "not a table"),
        ("[tool.ksupervise]\nstore = 3\n", "store ="),
        ("[tool.ksupervise]\nkeep = true\n", "keep ="),
        ("[tool.ksupervise]\nevery = 30\n", "a duration such as"),
        ("[tool.ksupervise]\nkeep-best = true\n", "the name of a value"),
        ("[tool.ksupervise]\nkeep-bytes = 30\n", "a size such as"),
    ],
)
def test_a_pyproject_that_is_wrong_is_refused(text: str, complaint: str) -> None:
    project(text)
    with pytest.raises(UsageError, match=complaint):
        load({}, {})


@pytest.mark.parametrize("text", ["", "[tool.ruff]\nkeep = 3\n", "tool = 3 # ksupervise\n", "\x00 not TOML at all"])
def test_a_pyproject_without_a_word_for_us_is_left_alone(text: str) -> None:
    project(text)
    assert load({}, {}) == Settings()
