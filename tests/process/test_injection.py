"""Our part arrives in every interpreter that lets it, and the script cannot tell (law 1)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ksupervise.parent import boot

from .helpers import LEAVER, PYTHON, Place

_THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
OURS = {
    "KSUPERVISE_RUN",
    "KSUPERVISE_ATTEMPT",
    "KSUPERVISE_RUN_DIR",
    "KSUPERVISE_ADDRESS",
    "KSUPERVISE_STACKS",
    "KSUPERVISE_LOCK_FD",
    "KSUPERVISE_BOOT",
    "KSUPERVISE_PIN",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
}

PROBE = """
import builtins, gc, json, os, signal, sys, threading
def handlers():
    return {n: repr(signal.getsignal(n)) for n in range(1, 32)}
try:
    import sitecustomize
    site = repr(sitecustomize)
except BaseException as error:
    site = repr(error)
main = sys.modules["__main__"]
print(json.dumps({
    "path": sys.path,
    "argv": sys.argv,
    "orig_argv": getattr(sys, "orig_argv", None),
    "main": sorted(set(vars(main)) - {"__cached__"}),
    "main file": main.__file__,
    "main name": main.__name__,
    "main spec": main.__spec__ and main.__spec__.origin,
    "main loader": type(main.__loader__).__name__,
    "cwd": os.getcwd(),
    "environ": dict(os.environ),
    "flags": {n: getattr(sys.flags, n) for n in dir(sys.flags) if isinstance(getattr(sys.flags, n), int)},
    "builtins": sorted(vars(builtins)),
    "handlers": handlers(),
    "threads": threading.active_count(),
    "enumerated": [thread.name for thread in threading.enumerate()],
    "excepthook": repr(sys.excepthook),
    "hooks": len(sys.path_hooks),
    "gc": [gc.get_threshold(), gc.isenabled()],
    "recursion": sys.getrecursionlimit(),
    "warnings": sys.warnoptions,
    "executable": sys.executable,
    "prefix": sys.prefix,
    "site": site,
    "user modules": sorted(name for name in sys.modules if name.split(".")[0] in ("json5", "keras", "numpy", "socket")),
}))
"""


def _compared(command: list[str], place: Place, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What PROBE sees under us, found equal to what it sees without us but for the environment."""
    done, plain = place.run("--quiet", *command, env=env), place.plain(command, env)
    assert (done.code, done.err) == (plain.code, plain.err) == (0, b"")
    supervised, alone = json.loads(done.out), json.loads(plain.out)
    seen = dict(supervised)
    environ = supervised.pop("environ")
    assert {name for name in environ if name not in alone["environ"]} | {"PYTHONPATH"} == OURS
    kept = {name: value for name, value in alone.pop("environ").items() if name != "PYTHONPATH"}
    assert kept.items() <= environ.items()
    for facts in (supervised, alone):
        facts["flags"].pop("unbuffered", None)  # PYTHONUNBUFFERED=1 is one of the names that we add
    assert supervised == alone
    return seen


def _interpreters() -> dict[str, str]:
    """Version → path: this one, those that we promise, and one that is too old for us."""
    found = {_THIS: PYTHON}
    for minor in (8, 10, 12, 13):
        for path in sorted(PYENV.glob(f"3.{minor}.*/bin/python")):
            found.setdefault(f"3.{minor}", str(path))
    return found


INTERPRETERS = _interpreters()


@pytest.mark.parametrize("version", sorted({*INTERPRETERS, "3.10", "3.12", "3.13"}))
def test_the_script_cannot_tell(place: Place, version: str) -> None:
    if version not in INTERPRETERS:
        pytest.skip(f"there is no Python {version} in {PYENV}")
    _compared([INTERPRETERS[version], place.write("probe.py", PROBE), "--one", "two words"], place)
    hooked = place.events("hooked")
    if version == "3.8":
        assert hooked == []
    else:
        assert hooked[0]["python"].startswith(f"{version}.")
        assert hooked[0]["pid"] == place.events("launched")[0]["pid"]


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-IS"])
def test_an_interpreter_that_shuts_us_out_is_supervised_all_the_same(place: Place, option: str) -> None:
    script = place.write(
        "script.py", "import os; print('hi'); raise SystemExit(os.environ['KSUPERVISE_ATTEMPT'] == '1')"
    )
    done = place.run(PYTHON, option, script)
    assert (done.code, done.out) == (0, b"hi\nhi\n")
    assert sum("our hook did not arrive" in line for line in done.ours) == 1
    assert place.events("hooked") == []


def test_an_environment_of_its_own_is_said_too(place: Place) -> None:
    done = place.run("env", "-i", *place.script("print('hi')"))
    assert (done.code, done.out) == (0, b"hi\n")
    assert done.said("our hook did not arrive")


@pytest.mark.parametrize("options", [["-u", "-B", "-O", "-s"], ["-X", "dev"]], ids=" ".join)
def test_other_options_do_not(place: Place, options: list[str]) -> None:
    _compared([PYTHON, *options, place.write("probe.py", PROBE)], place)
    assert len(place.events("hooked")) == 1


def test_a_module_is_run_as_ever(place: Place) -> None:
    place.write("probe.py", PROBE)
    _compared([PYTHON, "-m", "probe"], place)


# The user's sitecustomize


def _customized(place: Place, text: str) -> dict[str, str]:
    folder = place.root / "custom"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_the_users_sitecustomize_runs_and_is_the_users(place: Place) -> None:
    env = _customized(place, "import sys; sys.flavour = 'mine'; print('custom', sys.path[0] if sys.path else '')")
    script = place.script(
        "import sitecustomize, sys; print(sys.flavour, sitecustomize.__file__, sitecustomize.__name__)"
    )
    plain = place.plain(script, env)
    done = place.run("--quiet", *script, env=env)
    assert done.out == plain.out
    assert b"mine" in done.out
    assert len(place.events("hooked")) == 1


def test_the_users_sitecustomize_runs_once(place: Place) -> None:
    env = _customized(place, "print('once')")
    assert place.run(*place.script("import sitecustomize"), env=env).out == b"once\n"


@pytest.mark.parametrize("fault", ["1/0", "raise ImportError('not that')", "import nothing_of_that_name", "def :"])
def test_a_broken_sitecustomize_is_as_broken_as_ever(place: Place, fault: str) -> None:
    env = _customized(place, fault)
    script = place.script("print('hi')")
    plain = place.plain(script, env)
    done = place.run(*script, env=env)
    assert (done.code, done.out, done.theirs) == (plain.code, plain.out, plain.err)
    assert len(place.events("hooked")) == 1


def test_a_sitecustomize_that_exits_does_so(place: Place) -> None:
    env = _customized(place, "raise SystemExit(2)")
    script = place.script("print('hi')")
    plain = place.plain(script, env)
    done = place.run("--max-failures", "1", *script, env=env)
    assert (done.code, done.out) == (plain.code, plain.out)


# PYTHONPATH


@pytest.mark.parametrize("path", ["{0}", "{0}:{0}/more", ":{0}", "{0}:", "{0}::{0}/more", "relative", ""])
def test_the_users_pythonpath_stays(place: Place, path: str) -> None:
    (place.root / "more").mkdir()
    env = {"PYTHONPATH": path.format(place.root)}
    script = [PYTHON, place.write("more/probe.py", PROBE)]
    ours, *rest = _compared(script, place, env)["environ"]["PYTHONPATH"].split(os.pathsep)
    assert ours == str(place.run_dir / "boot.zip")
    assert os.pathsep.join(rest) == env["PYTHONPATH"]


def test_modules_of_the_users_that_have_the_names_of_ours(place: Place) -> None:
    """Nothing in the script's folder is imported because of us."""
    for name in ("json", "zlib", "struct", "mmap", "socket", "random", "queue", "wire", "errors", "child", "store"):
        place.write(f"{name}.py", f"print('{name} was imported')")
    assert place.run(*place.script("print('hi')")).out == b"hi\n"


# Faults of ours


def test_a_broken_boot_zip_breaks_no_child(place: Place) -> None:
    source = """
import os
if os.environ["KSUPERVISE_ATTEMPT"] == "1":
    open(os.path.join(os.environ["KSUPERVISE_RUN_DIR"], "boot.zip"), "wb").write(b"garbage")
    raise SystemExit(1)
print("hi")
"""
    done = place.run(*place.script(source))
    assert (done.code, done.out, done.theirs) == (0, b"hi\n", b"")


@pytest.fixture
def stray(place: Place) -> dict[str, str]:
    """The environment of a program that outlived its run."""
    boot.pack(place.root / "boot.zip")
    return {
        "KSUPERVISE_BOOT": str(place.root / "boot.zip"),
        "PYTHONPATH": str(place.root / "boot.zip"),
        "KSUPERVISE_ADDRESS": "@nobody-listens",
        "KSUPERVISE_RUN_DIR": str(place.root),
        "KSUPERVISE_LOCK_FD": "200",
    }


@pytest.mark.parametrize("how", ["truncated", "gone", "no attach", "attach raises", "attach is no Python"])
def test_whatever_is_wrong_with_our_part_the_script_runs(place: Place, stray: dict[str, str], how: str) -> None:
    _damage(place.root / "boot.zip", how)
    done = place.plain([PYTHON, "-c", "print('hi')"], stray)
    assert (done.code, done.out, done.err) == (0, b"hi\n", b"")


def _damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "gone":
        path.unlink()
    else:
        with zipfile.ZipFile(path) as packed:
            files = {name: packed.read(name) for name in packed.namelist()}
        del files["ksupervise/child/attach.py"]
        if how != "no attach":
            files["ksupervise/child/attach.py"] = b"raise SystemError" if how == "attach raises" else b"x: ="
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in files.items():
                packed.writestr(name, data)


@pytest.mark.parametrize("address", ["@nobody-listens", "", "@", "/no/such/socket", "@" + "x" * 500, "\N{SNOWMAN}"])
def test_an_environment_that_outlived_its_run_harms_nobody(place: Place, stray: dict[str, str], address: str) -> None:
    strange = {"KSUPERVISE_ADDRESS": address, "KSUPERVISE_LOCK_FD": "junk"}
    done = place.plain([PYTHON, "-c", "print('hi')"], {**stray, **strange})
    assert (done.code, done.out, done.err) == (0, b"hi\n", b"")


# Programs between us and the interpreter


def test_a_shell_script_in_between(place: Place) -> None:
    python = place.write(
        "script.py", "import os; print('hi'); raise SystemExit(os.environ['KSUPERVISE_ATTEMPT'] == '1')"
    )
    wrapper = place.write("run.sh", f"echo begin\n'{PYTHON}' '{python}'\ncode=$?\necho end\nexit $code\n")
    done = place.run("bash", wrapper)
    assert (done.code, done.out) == (0, b"begin\nhi\nend\n" * 2)
    assert len(place.events("hooked")) == 2


def test_an_import_error_behind_a_shell_is_final_too(place: Place) -> None:
    python = place.write("script.py", "import nothing_of_that_name")
    wrapper = place.write("run.sh", f"'{PYTHON}' '{python}'\n")
    assert place.run("bash", wrapper).code == 1
    assert len(place.events("launched")) == 1


def test_a_script_that_executes_another(place: Place) -> None:
    place.write("second.py", "import sys; print('second', sys.argv[1:])")
    source = "import os, sys; print('first', flush=True); os.execv(sys.executable, [sys.executable, 'second.py', 'x'])"
    done = place.run(*place.script(source))
    assert (done.code, done.out) == (0, b"first\nsecond ['x']\n")


def test_the_scripts_own_python_programs_run_as_ever(place: Place) -> None:
    source = """
import multiprocessing, subprocess, sys
def work(x): return x * x
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(work, range(4)))
    print(subprocess.run([sys.executable, "-c", "print('sub')"], capture_output=True, text=True))
"""
    script = place.script(source)
    plain = place.plain(script)
    done = place.run("--quiet", *script)
    assert (done.code, done.out, done.err) == (plain.code, plain.out, plain.err)


def test_a_virtual_environment_is_its_own(place: Place) -> None:
    """A foreign environment needs no installation of ours."""
    other = next((version for version in INTERPRETERS if version not in (_THIS, "3.8")), None)
    if other is None:
        pytest.skip(f"there is no second Python in {PYENV}")
    subprocess.run([INTERPRETERS[other], "-m", "venv", "--without-pip", place.root / "venv"], check=True)
    seen = _compared([str(place.root / "venv/bin/python"), place.write("probe.py", PROBE)], place)
    assert seen["prefix"] == str(place.root / "venv")
    assert place.events("hooked")[0]["python"].startswith(f"{other}.")


def test_the_child_is_told_which_run_and_attempt_it_is(place: Place) -> None:
    source = (
        "import os; print(*[os.environ[f'KSUPERVISE_{n}'] for n in ('RUN', 'ATTEMPT', 'RUN_DIR')]); raise SystemExit(9)"
    )
    done = place.run("--name", "mine", "--max-failures", "2", *place.script(source))
    run = place.store / "mine"
    assert done.out.decode().splitlines() == [f"mine 1 {run}", f"mine 2 {run}"]


def test_a_stopped_script_leaves_through_its_own_handler(place: Place) -> None:
    """Where the script handles SIGTERM itself, its handler is what runs."""
    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    assert parent.wait().out == b"ready\ngot SIGTERM\n"
