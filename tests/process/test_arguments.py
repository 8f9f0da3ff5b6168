"""The user's arguments pass untouched; ours end where the command begins."""

from __future__ import annotations

import json
import os

import pytest

from .helpers import PYTHON, SUPERVISOR, Place

ECHO = "import json, os, sys; print(json.dumps([os.fsencode(word).hex() for word in sys.argv[1:]]))"
STRANGE = [
    ["--help"],
    ["--", "--name", "x", "--fresh", "--store=elsewhere", "-h", "--", "--", "status", "-", "-x"],
    ["", " ", "two words", "a\nb", "\t", "näïve", "日本", "\N{GRINNING FACE}", "\udcff\udcfe", ""],
    ["$HOME", "*", "~", "\\", "'", '"', "%s", "{x}", "x" * 100_000],
]


@pytest.mark.parametrize("words", STRANGE, ids=lambda words: ascii(words)[:30])
def test_arguments_pass_untouched(place: Place, words: list[str]) -> None:
    done = place.run(*place.script(ECHO), *words)
    assert done.code == 0
    assert [bytes.fromhex(word) for word in json.loads(done.out)] == [os.fsencode(word) for word in words]


def test_dash_dash_ends_our_options(place: Place) -> None:
    done = place.run("--name", "one", "--", *place.script(ECHO), "--name", "two")
    assert [bytes.fromhex(word) for word in json.loads(done.out)] == [b"--name", b"two"]
    assert place.run_dir.name == "one"


@pytest.mark.parametrize("word", ["status", "run", "watch"])
def test_dash_dash_forces_a_command_of_that_name(place: Place, word: str) -> None:
    place.write(word, "#!/bin/sh\necho it is $0, $#\n", 0o755)
    done = place.run("--", word, "x", env={"PATH": f"{place.root}:{os.environ['PATH']}"})
    assert (done.code, done.out) == (0, f"it is {place.root / word}, 1\n".encode())


def test_a_path_is_never_a_sub_command(place: Place) -> None:
    place.write("status", "#!/bin/sh\necho mine\n", 0o755)
    assert place.run("./status").out == b"mine\n"


def test_run_may_be_written_out(place: Place) -> None:
    done = place.run("run", "--name", "long", "--keep", "2", "echo", "run", "--keep")
    assert (done.code, done.out) == (0, b"run --keep\n")
    assert place.run_dir.name == "long"


def test_run_and_dash_dash(place: Place) -> None:
    assert place.run("run", "--", "echo", "--", "x").out == b"-- x\n"


def test_options_on_both_sides_of_run(place: Place) -> None:
    """The nearer one counts."""
    assert place.run("--name", "one", "--quiet", "run", "--name", "two", "echo").err == b""
    assert place.run_dir.name == "two"


def test_the_default_name_is_stable_and_tells_runs_apart(place: Place) -> None:
    script = place.script("")
    other = place.root / "deeper"
    other.mkdir()
    for command, cwd in (
        ([*script, "--lr", "1"], place.root),
        ([PYTHON, "-u", *script[1:], "--lr", "1"], place.root),  # neither the interpreter …
        ([PYTHON, "../script.py", "--lr", "1"], other),  # … nor path and directory count
        ([*script, "--lr", "2"], place.root),
    ):
        assert place.run("--fresh", *command, cwd=cwd).code == 0
    names = sorted(path.name for path in place.store.glob("*/"))
    assert len([name for name in names if name.startswith("script-")]) == 2


def test_other_runs_of_the_same_script_are_named(place: Place) -> None:
    script = place.script("")
    place.run("--name", "first", *script)
    assert place.run("--name", "second", *script).said("other runs of this script: first (completed)")


def test_slurms_array_index_is_part_of_the_name(place: Place) -> None:
    place.run("true", env={"SLURM_ARRAY_TASK_ID": "7"})
    assert place.run_dir.name.endswith("-7")


def test_a_long_script_name_makes_a_name_that_fits(place: Place) -> None:
    script = place.script("print('hi')", "å" * 125 + ".py")
    assert place.run(*script).out == b"hi\n"
    assert place.status()["state"] == "completed"


def test_standard_input_is_the_scripts(place: Place) -> None:
    path = place.write("input", "one\ntwo\n")
    with open(path, "rb") as stream:
        assert place.run("cat", stdin=stream).out == b"one\ntwo\n"


def test_the_working_directory_and_the_umask_are_the_callers(place: Place) -> None:
    done = place.run("sh", "-c", "pwd; umask", umask=0o027)
    assert done.out.split() == [os.fsencode(place.root), b"0027"]


def test_settings_come_from_flags_then_environment_then_pyproject(place: Place) -> None:
    place.write("pyproject.toml", "[tool.ksupervise]\nname = 'from-file'\nquiet = true\n")
    environ = {"KSUPERVISE_NAME": "from-environment"}
    assert place.run("true").err == b""
    assert place.run("true", env=environ).err == b""
    assert place.run("--name", "from-flag", "true", env=environ).err == b""
    names = {path.name for path in place.store.iterdir()}
    assert names == {"from-file", "from-environment", "from-flag"}


def test_a_run_inside_a_run(place: Place) -> None:
    """A supervised program may call ksupervise itself, with all that is installed."""
    inner = [PYTHON, "-m", "ksupervise", "--store", str(place.root / "inner"), *place.script("print('inside')")]
    done = place.run(*inner, env={"PYTHONPATH": SUPERVISOR})
    assert (done.code, done.out) == (0, b"inside\n")
    status = [PYTHON, "-m", "ksupervise", "status", "--json", "--store", str(place.store)]
    done = place.run("--name", "asking", *status, env={"PYTHONPATH": SUPERVISOR})
    assert json.loads(done.out)["state"] == "running"
