"""When states are staged, committed, kept, and what happens where memory or time is short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.keras_runs.conftest import Laboratory, Result

SCRIPT = Path(__file__).with_name("checkpointing_script.py")
UNHURRIED = ("--every", "5m")  # as often as it costs allow


def checkpoints(run: Result) -> list[dict[str, Any]]:
    """`ksupervise checkpoints --json`."""
    command = [sys.executable, "-m", "ksupervise", "checkpoints", "--store", str(run.folder / "store"), "job", "--json"]
    return list(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, zygote: list[str]) -> Result:
    """The script left alone, for a hundred epochs."""
    return Laboratory(tmp_path_factory.mktemp("plain"), zygote).plain("nothing", script=SCRIPT, EPOCHS="100")


def test_a_stage_is_gone_back_to_before_it_was_committed(laboratory: Laboratory, undisturbed: Result) -> None:
    run = laboratory.supervised("uncommitted", *UNHURRIED, script=SCRIPT, EPOCHS="100")
    assert run.code == 0, run.output
    assert run.result == undisturbed.result
    committed = run.events("committed")
    [resumed] = run.events("resumed")
    assert resumed["seq"] > committed[0]["seq"], "what is on the disk is older"
    assert resumed["seconds"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps")
def test_a_dying_process_cannot_scribble_on_what_it_staged(laboratory: Laboratory, undisturbed: Result) -> None:
    run = laboratory.supervised("scribbles", *UNHURRIED, script=SCRIPT, EPOCHS="100")
    assert run.code == 0, run.output
    assert run.result == undisturbed.result
    assert "SIGSEGV" in run.events("attempt_ended")[0]["detail"], run.events("attempt_ended")[0]
    [resumed] = run.events("resumed")
    assert resumed["seq"] > run.events("committed")[0]["seq"], "what is on the disk is older"


def test_parent_and_child_killed_at_once_lose_no_more_than_was_in_memory(
    cold_laboratory: Laboratory, undisturbed: Result
) -> None:
    killed = cold_laboratory.supervised("both", *UNHURRIED, script=SCRIPT, EPOCHS="100")
    assert killed.code == -9, killed.output
    run = cold_laboratory.supervised("both", *UNHURRIED, script=SCRIPT, EPOCHS="100")
    assert run.code == 0, run.output
    assert run.result == undisturbed.result
    [resumed] = run.events("resumed")
    assert resumed["step"] == run.events("committed")[0]["step"]
    assert run.status()["lost_steps"] > 0


def test_a_save_that_could_not_end_is_not_begun(laboratory: Laboratory, undisturbed: Result) -> None:
    """A notice comes and a commit would take too long: the last finished state has to do."""
    run = laboratory.supervised("hopeless", *UNHURRIED, script=SCRIPT, EPOCHS="100")
    assert run.code == 0, run.output
    assert run.result == undisturbed.result
    status = run.status()
    assert status["attempts"][0]["cause"] == "preempted"
    assert 0 < status["attempts"][0]["lost_steps"] < 2000, "steps that were not saved"
    assert [each["origin"] for each in checkpoints(run)].count("drain") == 0


# Retention -----------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept(laboratory: Laboratory) -> None:
    run = laboratory.supervised("nothing", "--keep", "1", "--keep-best", "accuracy", script=SCRIPT, EPOCHS="12")
    assert run.code == 0, run.output
    accuracies = run.result["history"]["accuracy"]
    first_best = accuracies.index(max(accuracies)) + 1
    [best] = [each for each in checkpoints(run) if "best accuracy" in each["kept"]]
    assert (best["epoch"], best["kind"]) == (first_best, "epoch")
    manifest = json.loads((Path(best["path"]) / "MANIFEST.json").read_text())
    assert manifest["extra"]["monitored"] == {"accuracy": max(accuracies)}


def test_a_value_that_the_script_does_not_log_is_said(laboratory: Laboratory) -> None:
    run = laboratory.supervised("nothing", "--keep-best", "val_loss", script=SCRIPT, EPOCHS="2")
    assert run.code == 0
    assert run.output.count("--keep-best val_loss: no such value") == 1


def test_ends_of_every_so_many_epochs_are_kept(laboratory: Laboratory) -> None:
    run = laboratory.supervised("nothing", *UNHURRIED, "--keep", "1", "--keep-every", "3", script=SCRIPT, EPOCHS="8")
    assert run.code == 0, run.output
    kept = {each["epoch"]: each["kept"] for each in checkpoints(run) if each["kind"] != "batch"}
    assert {3, 6, 8} <= set(kept)
    assert len(kept) < 8


# Memory short -------------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[None]:
    """Removes the cgroups that scripts made."""
    if os.getuid() or not any(map(os.access, ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"), (os.W_OK, os.W_OK))):
        pytest.skip("a cgroup of one's own takes root")
    yield
    for note in tmp_path.rglob("*.group"):
        group = Path(note.read_text())
        if group.exists():
            group.rmdir()


@pytest.fixture(scope="session")
def with_memory(tmp_path_factory: pytest.TempPathFactory, zygote: list[str]) -> Result:
    """The larger model, left alone."""
    return Laboratory(tmp_path_factory.mktemp("plain"), zygote).plain("short_of_one", script=SCRIPT)


@pytest.mark.parametrize(
    ("case", "words"),
    [("short_of_two", "one copy is kept instead of two"), ("short_of_one", "straight to disk")],
)
def test_where_memory_is_short(
    laboratory: Laboratory, groups: None, with_memory: Result, case: str, words: str
) -> None:
    run = laboratory.supervised(case, script=SCRIPT)
    assert run.code == 0, run.output
    assert run.result == with_memory.result
    assert words in run.output
    status = run.status()
    assert status["attempts"][0]["cause"] == "signal", "the kernel did not have to kill anybody; the script did"
    assert status["attempts"][1]["resumed_from"] > 0
    assert run.output.count("memory is short") == 1, "later lives have enough"
