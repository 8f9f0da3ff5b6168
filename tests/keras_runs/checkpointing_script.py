"""A training that dies, or runs short of something, at a chosen moment: `checkpointing_script.py CASE OUT`.

It leaves OUT.json: a digest of its final weights and the History. Only what stands in the run's directory tells it of
ksupervise, and only in its first life.
"""

import ctypes
import faulthandler
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

CASE, OUT = sys.argv[1], Path(sys.argv[2])
FIRST = os.environ.get("KSUPERVISE_ATTEMPT") == "1"
RUN = Path(os.environ.get("KSUPERVISE_RUN_DIR", "."))
EPOCHS = int(os.environ.get("EPOCHS", "6"))
WIDTH = 2000 if CASE.startswith("short") else 24
MEGABYTE = 1024 * 1024


def committed() -> list[int]:
    """Steps of the checkpoints on the disk."""
    found = []
    for path in RUN.glob("checkpoints/*/MANIFEST.json"):
        try:
            found.append(json.loads(path.read_text())["position"]["step"])
        except (OSError, ValueError):
            continue
    return found


class Fate(keras.callbacks.Callback):
    """Ends the first life once the time has come."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.staged = self.settled = 0
        live = RUN / "attempts" / "001" / "live"
        self.page = np.memmap(live, dtype="uint64", mode="r+", shape=(512,)) if FIRST else np.zeros(512, "uint64")

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        if FIRST:
            getattr(self, CASE, self.nothing)()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        # 48 MB of state. The first step has taken what training itself takes.
        room = {"short_of_two": 3 * 48, "short_of_one": 70}.get(CASE)
        if FIRST and self.steps == 1 and room is not None:
            limit_memory(room)

    def nothing(self) -> None:
        pass

    def uncommitted(self) -> None:
        """A stage is in memory that is newer than all that is on the disk."""
        if self._newer_stage():
            os.kill(os.getpid(), signal.SIGKILL)

    def scribbles(self) -> None:
        """Pointers run wild, over the memory that states are staged in."""
        if self._newer_stage():
            faulthandler.disable()
            maps = Path("/proc/self/maps").read_text().splitlines()
            slots = [line.split()[:2] for line in maps if "ksupervise-slot" in line]
            for span, _ in sorted(slots, key=lambda each: "w" not in each[1]):  # what may be written to comes first
                begin, end = (int(address, 16) for address in span.split("-"))
                ctypes.memset(begin, 0x5A, end - begin)

    def both(self) -> None:
        """The parent goes with us: memory is lost."""
        if self._newer_stage():
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def _newer_stage(self) -> bool:
        staged = int(self.page[24])
        if staged == self.staged:
            return False
        self.staged = staged
        return 0 < max(committed(), default=0) < staged

    def hopeless(self) -> None:
        """A notice, and a commit would take longer than there is time.

        Not while one is under way: at its end the parent writes how long it really took.
        """
        staged = int(self.page[24])
        self.settled = self.settled + 1 if 0 < staged <= max(committed(), default=0) else 0
        if self.settled > 25 and self.steps > staged + 5:
            self.page.view("float64")[4] = 1000.0
            os.kill(os.getpid(), signal.SIGTERM)

    def short_of_one(self) -> None:
        if self.steps > 10 and len(committed()) > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    short_of_two = short_of_one


VERSION_1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
GROUP = Path("/sys/fs/cgroup/memory" if VERSION_1 else "/sys/fs/cgroup", f"ksupervise-test-{os.getpid()}")


def join_group() -> None:
    """What this process takes from now on is counted."""
    GROUP.mkdir()
    OUT.with_suffix(".group").write_text(str(GROUP))
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))


def limit_memory(megabytes: int) -> None:
    """From now on this process may take so much more, and no more."""
    used = int((GROUP / ("memory.usage_in_bytes" if VERSION_1 else "memory.current")).read_text())
    limit = GROUP / ("memory.limit_in_bytes" if VERSION_1 else "memory.max")
    limit.write_text(str(used + megabytes * MEGABYTE))


keras.utils.set_random_seed(7)
x = np.random.default_rng(3).normal(size=(640, 12)).astype("float32")
y = (x[:, :3].sum(axis=1) > 0).astype("float32")
model = keras.Sequential(
    [
        keras.Input((12,)),
        keras.layers.Dense(WIDTH, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(WIDTH, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
if FIRST and CASE.startswith("short"):
    join_group()
history = model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0, callbacks=[Fate()])

digest = hashlib.sha256()
for variable in [*model.variables, *model.optimizer.variables]:
    digest.update(np.ascontiguousarray(np.asarray(variable)).tobytes())
OUT.with_suffix(".json").write_text(json.dumps({"digest": digest.hexdigest(), "history": history.history}))
