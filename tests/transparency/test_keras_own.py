"""Keras' own tests of callbacks and trainers come to the same under ksupervise as without it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.process.helpers import KSUPERVISE, PYTHON, Place

pytestmark = pytest.mark.keras

PLUGIN = Path(__file__).with_name("outcomes.py")
SILENCE = 240.0  # seconds without an outcome after which a test hangs
ROUNDS = 3
# Those in which much happens in little time: of every kind of callback, and of trainers what they call in callbacks.
QUICK = (
    *("callback_test.py", "csv_logger_test.py", "early_stopping_test.py", "lambda_callback_test.py"),
    *("backup_and_restore_test.py", "terminate_on_nan_test.py", "trainer_test.py"),
)
QUICK_OF_TRAINERS = "not TestTrainer or callback"

Outcomes = dict[str, list[str]]


def _source() -> Path:
    spec = importlib.util.find_spec("keras")  # imports nothing: that would cost seconds
    if spec is None or spec.origin is None:
        pytest.skip("there is no Keras")
    return Path(spec.origin).parent / "src"


def _files() -> list[Path]:
    folders = [_source() / room for room in ("callbacks", "trainers")]
    found = sorted(path for folder in folders for path in folder.rglob("*_test.py"))
    if not found:
        pytest.skip("this Keras ships without its tests")
    return found


@dataclass
class Laboratory:
    """Runs pytest over Keras' tests, plainly and supervised, each in a process of its own."""

    place: Place
    files: Sequence[Path]
    words: Sequence[str]

    def compare(self) -> dict[str, tuple[list[str], list[str], str]]:
        """Test → outcomes plainly, outcomes supervised, why: of those that differ.

        Some of Keras' tests draw without a seed, or measure time. What differs is run again, and is a difference
        only if it differs each time.
        """
        differing: dict[str, tuple[list[str], list[str], str]] = {}
        for turn in range(ROUNDS):
            only = sorted(differing)
            plain, _ = self._run([], f"plain{turn}", only)
            store = self.place.root / f"store{turn}"
            ours = [*KSUPERVISE, "--store", str(store), "--name", "own", "--"]
            supervised, why = self._run(ours, f"supervised{turn}", only)
            assert plain, "no test was run"
            ids = only or sorted({*plain, *supervised})
            pairs = {test: (plain.get(test, []), supervised.get(test, [])) for test in ids}
            differing = {test: (*pair, why.get(test, "")) for test, pair in pairs.items() if pair[0] != pair[1]}
            if not differing:
                break
        return differing

    def events(self, name: str) -> list[dict[str, object]]:
        """The journal's events of that name, of the first supervised run."""
        lines = (self.place.root / "store0" / "own" / "journal.jsonl").read_bytes().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == name]

    def _run(self, front: Sequence[str], name: str, only: Sequence[str]) -> tuple[Outcomes, dict[str, str]]:
        here = self.place.root / name
        here.mkdir()
        shutil.copy(PLUGIN, here)
        config, told, log = here / "pytest.ini", here / "outcomes.jsonl", here / "log"
        config.write_text("[pytest]\n")  # else ours would be found, and its filters with it
        (here / "only.json").write_text(json.dumps(only))
        environ = {
            **self.place.environ,
            "KERAS_BACKEND": "tensorflow",
            "KERAS_HOME": str(here),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": str(here),
            "OUTCOMES": str(told),
            "ONLY": str(here / "only.json") if only else "",
        }
        pytest_ = [PYTHON, "-m", "pytest", "-c", str(config), "--rootdir", str(here), "-p", "no:cacheprovider"]
        words = ["-p", "outcomes", "--continue-on-collection-errors", *self.words, *map(str, self.files)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*front, *pytest_, *words], env=environ, cwd=here, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            self._await(process, told)
        assert process.returncode == 0, log.read_text(errors="replace")[-3000:]
        return _read(told)

    def _await(self, process: subprocess.Popen[bytes], told: Path) -> None:
        """Wait for its end. One that hangs is killed, with all that it started; the test fails and says where."""
        size = -1
        while process.poll() is None:
            try:
                process.wait(SILENCE)
            except subprocess.TimeoutExpired:
                before, size = size, told.stat().st_size if told.exists() else 0
                if size == before:
                    process.kill()
                    process.wait()
                    for left in self.place.marked():
                        with contextlib.suppress(Exception):
                            left.kill()
                    last = told.read_text().splitlines()[-1:] if told.exists() else []
                    pytest.fail(f"hangs: {process.args!r} after {last}")


def _read(told: Path) -> tuple[Outcomes, dict[str, str]]:
    outcomes: Outcomes = {}
    why: dict[str, str] = {}
    for fact in map(json.loads, told.read_text(encoding="utf-8").splitlines()):
        outcomes.setdefault(fact["id"], []).append(f"{fact['when']} {fact['outcome']}")
        if fact.get("why"):
            why[fact["id"]] = fact["why"][-2000:]
    return outcomes, why


def _compared(place: Place, files: Sequence[Path], words: Sequence[str], fits: int) -> None:
    laboratory = Laboratory(place, files, words)
    differing = laboratory.compare()
    told = [f"{test}: plainly {one}, supervised {two}\n{why}" for test, (one, two, why) in differing.items()]
    assert not told, "\n\n".join(told)
    # The hook was there, and it was at work.
    assert len(laboratory.events("hooked")) >= 1
    assert len(laboratory.events("claimed")) == 1
    assert len(laboratory.events("fit_began")) >= fits
    assert len(laboratory.events("committed")) >= fits
    assert len(laboratory.events("launched")) == 1
    failures = [note["text"] for note in laboratory.events("note") if "ksupervise failed" in str(note["text"])]
    assert failures == []


def test_a_quick_choice_of_keras_own_tests(place: Place) -> None:
    files = [path for path in _files() if path.name in QUICK]
    _compared(place, files, ["-k", QUICK_OF_TRAINERS], fits=25)


@pytest.mark.torture
def test_keras_own_tests(place: Place) -> None:
    _compared(place, _files(), [], fits=200)
