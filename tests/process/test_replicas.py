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
