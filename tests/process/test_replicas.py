"""Whose run a replica holds, without any Keras: a script's own checkpoints are not needed to own a name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 120.0


def call(store: Path, replica: Path, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    front = [sys.executable, "-m", "ksupervise", "--store", str(store), "--replica", str(replica), *options]
    return subprocess.run(
        [*front, sys.executable, str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT,
    )


@pytest.fixture
def scripts(tmp_path: Path) -> list[Path]:
    """Two that have one name, and so one default name of a run."""
    found = []
    for word in ("one", "two"):
        (tmp_path / word).mkdir()
        found.append(tmp_path / word / "train.py")
        found[-1].write_text(f"print('{word} ran')\n")
    return found


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def test_a_run_of_another_script_is_left_alone(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "My Drive" / "model"
    assert call(tmp_path / "s1", replica, scripts[0]).returncode == 0
    before = snapshot(replica)
    assert before, "the generation is marked though there are no checkpoints"
    refused = call(tmp_path / "s2", replica, scripts[1])
    assert refused.returncode == 2, refused.stdout
    assert "another script" in refused.stdout
    assert "--fresh" in refused.stdout
    assert "two ran" not in refused.stdout
    assert snapshot(replica) == before
    anew = call(tmp_path / "s3", replica, scripts[1], "--fresh")
    assert anew.returncode == 0, anew.stdout
    assert "two ran" in anew.stdout
    assert len(list(replica.glob("*/g*-*"))) == 2, "both generations are there"
    left_behind = call(tmp_path / "s1", replica, scripts[0], "--retry")
    assert left_behind.returncode == 2, left_behind.stdout
    assert "begun anew" in left_behind.stdout


def test_what_cannot_be_written_to_never_ends_a_run_that_is_here(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "replica"
    replica.write_text("a file is in the way")
    done = call(tmp_path / "s1", replica, scripts[0], "--fresh")
    assert done.returncode == 0, done.stdout
    assert "one ran" in done.stdout
    assert str(replica) in done.stdout


def test_an_empty_machine_does_not_begin_anew_while_it_cannot_look(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "replica"
    replica.write_text("a file is in the way")
    done = call(tmp_path / "s1", replica, scripts[0])
    assert done.returncode == 2, done.stdout
    assert "--fresh" in done.stdout
    assert "one ran" not in done.stdout


def test_nor_while_one_of_two_is_away_and_the_other_empty(tmp_path: Path, scripts: list[Path]) -> None:
    away, empty = tmp_path / "away", tmp_path / "empty"
    away.write_text("a file is in the way")
    done = call(tmp_path / "s1", empty, scripts[0], "--replica", str(away))
    assert done.returncode == 2, done.stdout
    assert "one ran" not in done.stdout
    assert not list(empty.glob("*"))
    assert call(tmp_path / "s1", empty, scripts[0]).returncode == 0
    known = call(tmp_path / "s2", empty, scripts[0], "--replica", str(away))
    assert known.returncode == 0, "what is found counts"
    assert "is completed" in known.stdout


def test_one_place_is_given_once_and_not_in_the_store(tmp_path: Path, scripts: list[Path]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "replica")
    twice = call(tmp_path / "s1", tmp_path / "replica", scripts[0], "--replica", str(tmp_path / "link"))
    inside = call(tmp_path / "s1", tmp_path / "s1" / "replica", scripts[0])
    for refused in (twice, inside):
        assert refused.returncode == 2, refused.stdout
        assert "one ran" not in refused.stdout


def test_how_a_run_ended_is_known_on_every_machine(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "replica"
    assert call(tmp_path / "s1", replica, scripts[0]).returncode == 0
    elsewhere = call(tmp_path / "s2", replica, scripts[0])
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert "is completed" in elsewhere.stdout
    assert "one ran" not in elsewhere.stdout
    before = snapshot(replica)
    again = call(tmp_path / "s2", replica, scripts[0])
    assert "is completed" in again.stdout
    assert snapshot(replica) == before, "there is nothing to say any more"


def test_a_failure_is_not_repeated_elsewhere(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "replica"
    scripts[0].write_text("print('one ran'); raise ValueError('it is broken')\n")
    failed = call(tmp_path / "s1", replica, scripts[0])
    assert "one ran" in failed.stdout
    elsewhere = call(tmp_path / "s2", replica, scripts[0])
    assert elsewhere.returncode == failed.returncode == 125, elsewhere.stdout
    assert "--retry" in elsewhere.stdout
    assert "one ran" not in elsewhere.stdout
    assert "one ran" in call(tmp_path / "s2", replica, scripts[0], "--retry").stdout


def test_what_a_replica_lacks_of_an_ended_run_is_brought_there_later(tmp_path: Path, scripts: list[Path]) -> None:
    replica = tmp_path / "replica"
    assert call(tmp_path / "s1", replica, scripts[0]).returncode == 0
    (last_word,) = replica.glob("*/g*-*/history/*")
    last_word.unlink()
    later = call(tmp_path / "s1", replica, scripts[0])
    assert later.returncode == 0, later.stdout
    assert "one ran" not in later.stdout
    assert list(replica.glob("*/g*-*/history/*"))
    elsewhere = call(tmp_path / "s2", replica, scripts[0])
    assert "is completed" in elsewhere.stdout
