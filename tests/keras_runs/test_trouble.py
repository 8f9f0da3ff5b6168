"""Damaged checkpoints, full disks, models that nobody thought of: nothing lost, and said."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keras_runs.conftest import SCRIPT, Laboratory
from tests.keras_runs.test_resume import assert_equal


def of_kind(run: Path, kind: str) -> list[Path]:
    """The run's checkpoints of that kind, oldest first."""
    found = sorted((run / "checkpoints").iterdir())
    return [path for path in found if json.loads((path / "MANIFEST.json").read_text())["position"]["kind"] == kind]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 0x40
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(cold_laboratory: Laboratory) -> None:
    first = cold_laboratory.supervised("built", EPOCHS="3")
    assert first.code == 0, first.output
    run = first.folder / "store" / "job"
    epoch_ends = of_kind(run, "epoch")
    flip_a_byte(epoch_ends[-1] / "state.safetensors")
    script = first.folder / "changed.py"
    script.write_text(SCRIPT.read_text() + "\n# changed\n")
    longer = cold_laboratory.supervised("built", script=script, EPOCHS="5")
    assert_equal(cold_laboratory.plain("built", EPOCHS="5"), longer)
    assert "damaged checkpoint was set aside" in longer.output
    assert epoch_ends[-1].name in " ".join(path.name for path in (run / "aside").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk to be had: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_never_ends_the_training(laboratory: Laboratory, small_disk: Path) -> None:
    store = small_disk / "store"
    supervised = laboratory.supervised("built", "--store", str(store), FILL=str(small_disk / "filler"))
    assert_equal(laboratory.plain("built"), supervised)
    assert "could not be written, training goes on" in supervised.output
    assert of_kind(store / "job", "final")


RAISES = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
WHERE = sys.argv[1]
def maybe(where):
    if where == WHERE:
        raise ValueError(where)
class Faulty(keras.callbacks.Callback):
    def on_train_begin(self, logs=None): maybe("train_begin")
    def on_train_batch_begin(self, batch, logs=None): maybe("batch_begin")
    def on_epoch_end(self, epoch, logs=None): maybe("epoch_end")
model = keras.Sequential([keras.layers.Dense(2)])
model.compile("sgd", "mse")
print("training", flush=True)
model.fit(np.zeros((8, 3)), np.zeros((8, 5 if WHERE == "shapes" else 2)), verbose=2, callbacks=[Faulty()])
"""


@pytest.mark.parametrize("where", ["train_begin", "batch_begin", "epoch_end", "shapes"])
def test_the_scripts_own_traceback_is_shown_as_it_is(laboratory: Laboratory, tmp_path: Path, where: str) -> None:
    script = tmp_path / "raises.py"
    script.write_text(RAISES)
    plain = laboratory.plain(where, script=script)
    supervised = laboratory.supervised(where, "--max-failures", "1", script=script)
    lines = [line for line in supervised.output.splitlines() if not line.startswith("ksupervise: ")]
    assert lines == plain.output.splitlines()
    assert plain.code == supervised.code == 1
