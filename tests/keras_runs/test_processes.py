"""Who is the trainer: whatever process of the group calls fit first, behind a shell script or in a process per fold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.keras_runs.conftest import LIMIT, SCRIPT, Laboratory

IN_PROCESSES = """
import multiprocessing, os, pathlib, signal, sys
OUT, FOLDS = sys.argv[2], 3

def fold(number):
    import hashlib, keras, numpy as np
    keras.utils.set_random_seed(number)
    layers = [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    data = np.random.default_rng(number).normal(size=(640, 4)).astype("float32")

    class Witness(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with open(OUT + ".steps", "ab") as stream:
                stream.write(b".")

        def on_train_batch_begin(self, batch, logs=None):
            checkpoints = pathlib.Path(os.environ.get("KSUPERVISE_RUN_DIR", "/nowhere"), "checkpoints")
            texts = [path.read_text().replace(" ", "") for path in checkpoints.glob("*/MANIFEST.json")]
            if number == 1 and any('"fit":2' in text for text in texts) and os.environ["KSUPERVISE_ATTEMPT"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)

    model.fit(data, data[:, :1], epochs=4, verbose=0, callbacks=[Witness()])
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest()
    with open(f"{OUT}.{number}", "w") as stream:
        stream.write(digest)

if __name__ == "__main__":
    import keras
    for number in range(FOLDS):
        process = multiprocessing.get_context("fork").Process(target=fold, args=(number,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(1)
    print("done")
"""


def digests(folder: Path) -> list[str]:
    return [(folder / f"out.{number}").read_text() for number in range(3)]


def test_a_process_for_each_fold(cold_laboratory: Laboratory, tmp_path: Path) -> None:
    script = tmp_path / "folds.py"
    script.write_text(IN_PROCESSES)
    plain = cold_laboratory.plain("folds", script=script)
    supervised = cold_laboratory.supervised("folds", script=script)
    assert supervised.code == 0, supervised.output
    assert digests(supervised.folder) == digests(plain.folder)
    status = supervised.status()
    assert len(status["attempts"]) == 2
    assert status["attempts"][1]["resumed_from"] > 80
    assert 240 <= supervised.counted() <= 240 + status["lost_steps"]


def test_a_shell_script_with_two_trainings(laboratory: Laboratory, tmp_path: Path) -> None:
    train = " ".join([*laboratory.launcher, str(SCRIPT), "built"])
    wrapper = tmp_path / "run.sh"
    wrapper.write_text(f"set -e\n{train} {tmp_path}/one\nINTERRUPT=batch:30 {train} {tmp_path}/two\n")
    front = [sys.executable, "-m", "ksupervise", "--store", str(tmp_path / "store"), "--every", "50ms"]
    done = subprocess.run(
        [*front, "bash", str(wrapper)], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    plain = laboratory.plain("built").result
    assert one == two == plain
    assert os.path.getsize(tmp_path / "one.steps") == 80
    assert os.path.getsize(tmp_path / "two.steps") < 110


def test_a_trainer_that_outlives_the_child_does_not_train_beside_the_next_attempt(laboratory: Laboratory) -> None:
    plain = laboratory.plain("built")
    supervised = laboratory.supervised("built", INTERRUPT="batch:30", WITH="CLIENT")
    assert supervised.code == 0, supervised.output
    assert supervised.result == plain.result
    status = supervised.status()
    assert len(status["attempts"]) == 2
    assert supervised.counted() <= 80 + status["lost_steps"]
