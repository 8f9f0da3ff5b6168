"""What a run is called, which script it runs, and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ksupervise.errors import RunDamaged, RunNotFound
from ksupervise.parent import run
from ksupervise.parent.run import default_name, find_script


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a few scripts, in which we are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("#!/usr/bin/env python\nprint('train')\n")
    (tmp_path / "other.py").write_text("print('other')\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "launcher").write_text("#!/usr/bin/python\n")
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").touch()
    (tmp_path / "package" / "fit.py").touch()
    return tmp_path


def name(command: str, array_index: str = "") -> str:
    """The default name of what this command line runs."""
    words = command.split()
    return default_name(words, find_script(words), array_index)


# The script ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py", "train.py"),
        ("python -u -X dev ./train.py --data data.csv", "train.py"),
        ("/usr/bin/python3.11 train.py -c data.csv", "train.py"),
        ("uv run train.py", "train.py"),
        ("./train.py data.csv", "train.py"),
        ("./run.sh train.py", "run.sh"),
        ("./launcher train.py", "train.py"),
        ("./launcher", "launcher"),
        ("python -m package.fit data.csv", "package/fit.py"),
        ("python -m package", "package/__main__.py"),
        ("python -m torch.distributed.run train.py", "train.py"),
        ("python -c pass data.csv", ""),
        ("python", ""),
        ("python missing.py", ""),
        ("python -m", ""),
    ],
)
def test_the_script_is_found(here: Path, command: str, script: str) -> None:
    assert find_script(command.split()) == (str(here / script) if script else "")


def test_a_binary_program_is_no_script(here: Path) -> None:
    (here / "trainer").write_bytes(b"\x7fELF")
    assert find_script(["./trainer"]) == ""


def test_a_digest_changes_with_the_text_only(here: Path) -> None:
    before = run.digest(str(here / "train.py"))
    (here / "train.py").touch()
    assert run.digest(str(here / "train.py")) == before
    assert run.digest(str(here / "other.py")) != before
    assert run.digest("") == run.digest(str(here / "missing.py")) == ""


# The name -----------------------------------------------------------------------------------------


def test_a_name_begins_with_the_scripts_stem() -> None:
    assert name("python train.py").startswith("train-")


@pytest.mark.parametrize(
    "command",
    [
        "python3.11 train.py --lr 1",
        "/opt/venv/bin/python train.py --lr 1",
        "python -u train.py --lr 1",
        "./train.py --lr 1",
        "uv run train.py --lr 1",
    ],
)
def test_a_name_is_not_of_the_interpreter(command: str) -> None:
    assert name(command) == name("python train.py --lr 1")


def test_a_name_is_not_of_path_or_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = name("python train.py --lr 1")
    assert name(f"python {here}/train.py --lr 1") == relative
    monkeypatch.chdir(here / "package")
    assert name("python ../train.py --lr 1") == relative


@pytest.mark.parametrize("command", ["python train.py", "python train.py --lr 2", "python other.py --lr 1"])
def test_a_name_is_of_script_and_arguments(command: str) -> None:
    assert name(command) != name("python train.py --lr 1")


def test_arguments_are_not_glued_together() -> None:
    assert name("python train.py ab c") != name("python train.py a bc")


def test_a_command_without_script_is_named_after_its_program() -> None:
    assert name("sleep 5").startswith("sleep-")
    assert name("python3.11 -c pass") == name("/usr/bin/python -c pass")
    assert name("python -c pass") != name("python -c fail")


def test_every_task_of_an_array_is_a_run_of_its_own() -> None:
    assert name("python train.py", "7") == name("python train.py") + "-7"


@pytest.mark.parametrize("stem", ["with space", "größe", ".hidden", "semi;colon", "--help", "x" * 200, "\udcff"])
def test_a_name_can_be_a_directory_whatever_the_script_is_called(here: Path, stem: str) -> None:
    (here / f"{stem}.py").touch()
    words = ["python", f"./{stem}.py"]
    made = default_name(words, find_script(words), "123456")
    (here / made).mkdir()
    assert "/" not in made
    assert not made.startswith((".", "-"))


# The record ---------------------------------------------------------------------------------------


@pytest.fixture
def path(here: Path) -> Path:
    """Where a record is."""
    path = here / "run.json"
    run.save(path, run.new("train-1", ["python", "train.py"], str(here / "train.py")))
    return path


def test_a_record_comes_back_as_it_was_saved(here: Path) -> None:
    record = run.new("train-1", ["python", "train.py"], str(here / "train.py"))
    run.save(here / "run.json", record)
    assert run.load(here / "run.json") == record
    assert record.script_digest == run.digest(record.script)


def test_every_run_is_another_one() -> None:
    one, other = (run.new("train-1", ["python"], "") for _ in range(2))
    assert one.id != other.id
    assert one.seed != other.seed


def test_no_record_is_no_run(here: Path) -> None:
    with pytest.raises(RunNotFound, match=str(here)):
        run.load(here / "run.json")


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"\xff", b"{", b"[]", b"3", b"null", b"{}", b"[" * 100_000, b'{"id": 1}']
)
def test_a_record_that_is_none_is_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RunDamaged, match="--fresh"):
        run.load(path)


@pytest.mark.parametrize("missing", ["id", "name", "command", "script", "script_digest", "created", "seed"])
def test_a_record_that_lacks_something_is_damaged(path: Path, missing: str) -> None:
    values = json.loads(path.read_bytes())
    del values[missing]
    path.write_text(json.dumps(values))
    with pytest.raises(RunDamaged, match=missing):
        run.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "no uuid"),
        ("id", 5),
        ("state", "finished"),
        ("state", None),
        ("state", []),
        ("command", None),
        ("command", 3),
        ("command", [1]),
        ("exit_code", "0"),
        ("exit_code", 1.5),
        ("created", "yesterday"),
        ("seed", None),
        ("seed", 1.5),
        ("name", 5),
        ("script", None),
        ("script_digest", 7),
        ("detail", {}),
        ("format", 2),
        ("format", "1"),
    ],
)
def test_a_record_with_a_wrong_value_is_damaged(path: Path, field: str, value: Any) -> None:
    values = {**json.loads(path.read_bytes()), field: value}
    path.write_text(json.dumps(values))
    with pytest.raises(RunDamaged):
        run.load(path)


def test_a_newer_format_is_said_to_be_one(path: Path) -> None:
    path.write_text(json.dumps({"format": 99, "everything": "else"}))
    with pytest.raises(RunDamaged, match="newer ksupervise"):
        run.load(path)


def test_a_field_that_is_not_known_is_passed_over(path: Path) -> None:
    before = run.load(path)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "added_later": 1}))
    assert run.load(path) == before


def test_a_directory_in_its_place_is_damaged(here: Path) -> None:
    (here / "run.json").mkdir()
    with pytest.raises(RunDamaged):
        run.load(here / "run.json")
