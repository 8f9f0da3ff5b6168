"""Interrupted and relaunched, a training ends with the bits of one that was left alone, and repeats little."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.keras_runs.conftest import SCRIPT, Laboratory, Result

# case → optimizer steps of an undisturbed run
SEEDED = {
    "built": 80,
    "unbuilt": 80,
    "functional": 80,
    "own_step": 80,
    "own_step_unused_metrics": 80,
    "own_fit": 80,
    "loss_scale": 80,
    "ema": 80,
    "gan": 80,
    "tfdata": 80,
    "repeat": 68,
    "folds": 42,
    "two_fits": 120,
}


def assert_equal(plain: Result, supervised: Result) -> None:
    assert supervised.code == 0, supervised.output
    assert supervised.result == plain.result


def assert_resumed(run: Result, planned: int) -> None:
    """It went on from a checkpoint, and the witness outside saw no step more than the journal admits."""
    status = run.status()
    assert status["state"] == "completed"
    assert len(status["attempts"]) == 2
    assert status["attempts"][1]["resumed_from"] > 0
    assert status["steps_executed"] == planned + status["lost_steps"]
    assert planned <= run.counted() <= planned + status["lost_steps"]


@pytest.mark.parametrize(("case", "planned"), SEEDED.items())
def test_killed_in_mid_epoch_it_ends_with_the_same_bits(laboratory: Laboratory, case: str, planned: int) -> None:
    plain = laboratory.plain(case)
    supervised = laboratory.supervised(case, INTERRUPT="batch:10" if case == "folds" else "batch:30")
    assert_equal(plain, supervised)
    assert_resumed(supervised, planned)


@pytest.mark.parametrize("where", ["epoch_begin:40", "epoch_end:40", "validation:40", "batch:20"])
def test_wherever_it_is_killed(laboratory: Laboratory, where: str) -> None:
    plain = laboratory.plain("callbacks")
    supervised = laboratory.supervised("callbacks", INTERRUPT=where)
    assert_equal(plain, supervised)
    assert_resumed(supervised, plain.counted())
    for name in ("out.csv", "out.best.keras"):
        assert (supervised.folder / name).exists()
    assert (supervised.folder / "out.csv").read_text() == (plain.folder / "out.csv").read_text()


def test_killed_after_the_last_fit_it_does_not_train_again(laboratory: Laboratory) -> None:
    plain = laboratory.plain("two_fits")
    supervised = laboratory.supervised("two_fits", INTERRUPT="after:0")
    assert_equal(plain, supervised)
    assert supervised.counted() == plain.counted()
    assert [event["mode"] for event in supervised.events("resumed")] == ["skip", "skip"]


def test_a_later_fit_over_the_same_shuffled_pipeline(laboratory: Laboratory) -> None:
    plain = laboratory.plain("same_pipeline")
    supervised = laboratory.supervised("same_pipeline", INTERRUPT="batch:50")
    assert_equal(plain, supervised)
    assert [event["mode"] for event in supervised.events("resumed")] == ["skip", "resume"]


def test_several_steps_an_execution(laboratory: Laboratory) -> None:
    plain = laboratory.plain("several_steps")
    supervised = laboratory.supervised("several_steps", INTERRUPT="batch:10")
    assert_equal(plain, supervised)
    assert supervised.status()["attempts"][1]["resumed_from"] > 0
    assert supervised.status()["steps_executed"] == 80 + supervised.status()["lost_steps"]


def test_a_script_without_a_seed_goes_on_with_the_samples_that_are_left(laboratory: Laboratory) -> None:
    supervised = laboratory.supervised("unseeded", INTERRUPT="batch:30")
    assert supervised.code == 0, supervised.output
    resumed = supervised.events("resumed")[0]
    assert resumed["step"] > 0
    if resumed["batch"]:
        assert "exactly once" in resumed["guarantee"]


def test_sigterm_to_the_child_saves_and_is_free(laboratory: Laboratory) -> None:
    plain = laboratory.plain("built")
    supervised = laboratory.supervised("built", "--max-failures", "1", INTERRUPT="batch:30", WITH="SIGTERM")
    assert_equal(plain, supervised)
    assert supervised.status()["attempts"][0]["cause"] == "preempted"
    assert supervised.status()["lost_steps"] == 0
    assert supervised.counted() == plain.counted()


def test_raised_epochs_go_on_from_the_end_of_the_last(cold_laboratory: Laboratory) -> None:
    first = cold_laboratory.supervised("built", EPOCHS="3")
    assert first.code == 0, first.output
    script = first.folder / "changed.py"
    script.write_text(SCRIPT_TEXT + "\n# changed\n")
    longer = cold_laboratory.supervised("built", script=script, EPOCHS="5")
    plain = cold_laboratory.plain("built", EPOCHS="5")
    assert_equal(plain, longer)
    assert longer.counted() == plain.counted()
    assert "changed since" in longer.output


def test_a_model_that_does_not_fit_is_refused_and_nothing_is_lost(cold_laboratory: Laboratory) -> None:
    first = cold_laboratory.supervised("built", EPOCHS="3")
    script = first.folder / "changed.py"
    script.write_text(SCRIPT_TEXT.replace("layers.Dense(24", "layers.Dense(25"))
    before = [checkpoint.name for checkpoint in sorted((first.folder / "store/job/checkpoints").iterdir())]
    changed = cold_laboratory.supervised("built", script=script, EPOCHS="5")
    assert changed.code == 2, changed.output
    assert "--fresh" in changed.output
    assert "[12, 25]" in changed.output
    assert [checkpoint.name for checkpoint in sorted((first.folder / "store/job/checkpoints").iterdir())] == before
    assert changed.counted() == first.counted()


def test_a_cold_interpreter_resumes_too(cold_laboratory: Laboratory) -> None:
    plain = cold_laboratory.plain("unbuilt")
    supervised = cold_laboratory.supervised("unbuilt", INTERRUPT="batch:30")
    assert_equal(plain, supervised)
    assert_resumed(supervised, 80)


SCRIPT_TEXT = SCRIPT.read_text()


def test_what_is_put_back_does_not_lie_in_the_slot(zygote: list[str], tmp_path: Path) -> None:
    """TensorFlow may adopt an array's memory; that of a slot is written over by the next stage."""
    script = tmp_path / "alias.py"
    script.write_text(ALIAS)
    subprocess.run([*zygote, str(script), str(tmp_path / "out")], check=True, timeout=180)
    assert (tmp_path / "out").read_text() == "0 of 12"


ALIAS = """
import mmap, sys
import keras, numpy as np
from ksupervise.child import state

memory = mmap.mmap(-1, 1 << 24)
base = np.frombuffer(memory, np.uint8)
first = base.ctypes.data
found = []
for offset in (4096, 4096 + 64, 4096 + 4):
    for shape in ((), (3,), (1024, 64), (64, 3, 3, 8)):
        array = base[offset : offset + 4 * int(np.prod(shape))].view("float32").reshape(shape)
        array.flags.writeable = False
        variable = keras.Variable(np.ones(shape, "float32"))
        state._assign(variable, array)
        assert np.asarray(variable).sum() == 0
        at = np.asarray(state.Source(variable).read()).ctypes.data
        found.append(first <= at < first + (1 << 24))
open(sys.argv[1], "w").write(f"{sum(found)} of {len(found)}")
"""
