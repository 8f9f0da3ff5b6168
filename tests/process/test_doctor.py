"""`ksupervise doctor`: tries out what a run would meet, and says what is in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .helpers import PYTHON, Done, Place

ON_JAX = "__version__ = '3.9.1'\nclass backend:\n    backend = staticmethod(lambda: 'jax')\n"


@pytest.fixture
def on_jax(place: Place) -> Place:
    """A place whose Keras costs nothing to import."""
    folder = place.root / "site" / "keras"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(ON_JAX)
    place.environ["PYTHONPATH"] = str(folder.parent)
    return place


def rows(done: Done) -> dict[str, dict[str, Any]]:
    return {each["subject"]: each for each in json.loads(done.out)}


def test_it_says_what_is_in_the_way_and_exits_with_1(on_jax: Place) -> None:
    script = on_jax.write("train.py", "open('it was run', 'w')")
    done = on_jax.run("doctor", PYTHON, script, "--epochs", "3")
    assert done.code == 1
    assert b"BAD      Keras              3.9.1 on jax: it is restarted, not resumed" in done.out
    assert done.out.decode().splitlines()[-1].startswith("1 thing is in the way of a resumable run")
    assert done.err == b"", "no terminal waits for it"
    assert not (on_jax.root / "it was run").exists()
    assert not on_jax.store.exists()


def test_for_programs(on_jax: Place) -> None:
    done = on_jax.run("doctor", "--json", PYTHON, "-S", "train.py")
    found = rows(done)
    assert done.code == 1
    assert found["hook"]["verdict"] == "bad"
    assert "-S" in found["hook"]["found"]
    assert found["writing"]["verdict"] == "good"


def test_without_a_command_it_is_the_python_on_path(on_jax: Place) -> None:
    folder = on_jax.root / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(PYTHON)
    done = on_jax.run("doctor", "--json", env={"PATH": f"{folder}:{on_jax.environ['PATH']}"})
    assert str(folder / "python") in rows(done)["hook"]["found"]


def test_the_store_may_be_named_on_either_side(on_jax: Place) -> None:
    (on_jax.root / "file").write_text("")
    other = str(on_jax.root / "file" / "store")
    done = on_jax.run("doctor", "--store", other, "--json", PYTHON)
    assert rows(done)["writing"]["verdict"] == "bad"
    assert other in rows(done)["writing"]["found"]


def test_a_command_that_is_not_there(on_jax: Place) -> None:
    done = on_jax.run("doctor", "--json", "no-such-program", "train.py")
    assert done.code == 1
    assert rows(done)["command"]["verdict"] == "bad"


def test_a_wrong_setting_is_an_error_of_usage(on_jax: Place) -> None:
    assert on_jax.run("doctor", env={"KSUPERVISE_EVERY": "often"}).code == 2


@pytest.mark.keras
def test_with_keras_every_source_is_gone_back_to(place: Place) -> None:
    done = place.run("doctor", "--json", PYTHON, "train.py")
    found = rows(done)
    assert done.code == 0, done.out
    assert found["hook"]["found"].endswith("and in Keras' fit")
    assert found["hooks in fit"]["verdict"] == "good"
    for source in ("numpy arrays", "tf.data", "PyDataset"):
        assert (found[source]["verdict"], found[source]["found"]) == ("good", "exact")
    assert found["tf.data, random map"]["found"] == "exact, position replayed"
    for source in ("from_generator", "generator", "PyDataset, workers"):
        assert found[source]["verdict"] == "good"
    assert found["no seed"]["verdict"] == "limited"
    assert [path.name for path in Path(place.root).iterdir()] == []
