"""Our part arrives in every interpreter that lets it, and the script cannot tell (law 1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .helpers import LEAVER, PYTHON, Place

PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
OURS = {
    "KSUPERVISE_RUN",
    "KSUPERVISE_ATTEMPT",
    "KSUPERVISE_RUN_DIR",
    "KSUPERVISE_ADDRESS",
    "KSUPERVISE_LOCK_FD",
    "KSUPERVISE_BOOT",
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


def _plain(command: list[str], place: Place, env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env={**place.environ, **env}, cwd=place.root, capture_output=True)
    assert done.stderr == b""
    return dict(json.loads(done.stdout))


def _supervised(command: list[str], place: Place, env: dict[str, str]) -> dict[str, Any]:
    done = place.run("--quiet", *command, env=env)
    assert done.err == b""
    return dict(json.loads(done.out))


def _interpreters() -> list[str]:
    found = {}
    for path in sorted(PYENV.glob("3.*/bin/python")):
        minor = int(path.parts[-3].split(".")[1])
        if minor >= 6:
            found[minor] = str(path)
    return [found[minor] for minor in sorted(found)]


INTERPRETERS = [PYTHON, *_interpreters()]
NAMES = ["python", *(Path(path).parts[-3] for path in _interpreters())]


@pytest.mark.parametrize("python", INTERPRETERS, ids=NAMES)
def test_the_script_cannot_tell(place: Place, python: str) -> None:
    command = [python, place.write("probe.py", PROBE), "--one", "two words"]
    plain, supervised = _plain(command, place, {}), _supervised(command, place, {})
    added = {name: value for name, value in supervised.pop("environ").items() if name not in plain["environ"]}
    assert set(added) == OURS
    del plain["environ"]
    plain["flags"].pop("unbuffered", None)  # PYTHONUNBUFFERED=1 is said in the documentation
    supervised["flags"].pop("unbuffered", None)
    assert supervised == plain


HOOKED = [path for path in INTERPRETERS if "/3.6." not in path and "/3.7." not in path and "/3.8." not in path]


@pytest.mark.parametrize(
    "python", HOOKED, ids=[name for name, path in zip(NAMES, INTERPRETERS, strict=True) if path in HOOKED]
)
def test_the_handshake_comes(place: Place, python: str) -> None:
    place.run(python, place.write("script.py", ""))
    (hooked,) = place.events("hooked")
    version = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], capture_output=True)
    assert hooked["python"] == version.stdout.decode().strip()
    assert hooked["pid"] == place.events("launched")[0]["pid"]


@pytest.mark.parametrize("minor", [10, 12, 13])
def test_the_versions_that_we_promise_are_tried_where_they_are(minor: int) -> None:
    if not list(PYENV.glob(f"3.{minor}.*/bin/python")):
        pytest.skip(f"there is no Python 3.{minor} in {PYENV}")
    assert any(f"/3.{minor}." in path for path in INTERPRETERS)


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


@pytest.mark.parametrize("options", [["-u"], ["-B"], ["-O"], ["-X", "dev"], ["-X", "utf8"], ["-s"]], ids=" ".join)
def test_other_options_do_not(place: Place, options: list[str]) -> None:
    command = [PYTHON, *options, place.write("probe.py", PROBE)]
    plain, supervised = _plain(command, place, {}), _supervised(command, place, {})
    for seen in (plain, supervised):
        del seen["environ"]
        seen["flags"].pop("unbuffered", None)
    assert supervised == plain
    assert len(place.events("hooked")) == 1


def test_code_modules_and_standard_input_are_what_they_are(place: Place) -> None:
    place.write("probe.py", PROBE)
    for number, command in enumerate(
        (["-m", "probe"], ["-c", "import runpy; runpy.run_path('probe.py', run_name='__main__')"])
    ):
        plain = _plain([PYTHON, *command], place, {})
        supervised = _supervised([PYTHON, *command], place, {"KSUPERVISE_NAME": f"run-{number}"})
        for seen in (plain, supervised):
            del seen["environ"]
            seen["flags"].pop("unbuffered", None)
        assert supervised == plain


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
    plain = subprocess.run(script, env={**place.environ, **env}, cwd=place.root, capture_output=True)
    done = place.run("--quiet", *script, env=env)
    assert done.out == plain.stdout
    assert b"mine" in done.out
    assert len(place.events("hooked")) == 1


def test_the_users_sitecustomize_runs_once(place: Place) -> None:
    env = _customized(place, "print('once')")
    assert place.run(*place.script("import sitecustomize"), env=env).out == b"once\n"


@pytest.mark.parametrize("fault", ["1/0", "raise ImportError('not that')", "import nothing_of_that_name", "def :"])
def test_a_broken_sitecustomize_is_as_broken_as_ever(place: Place, fault: str) -> None:
    env = _customized(place, fault)
    script = place.script("print('hi')")
    plain = subprocess.run(script, env={**place.environ, **env}, cwd=place.root, capture_output=True)
    done = place.run(*script, env=env)
    assert (done.code, done.out, done.theirs) == (plain.returncode, plain.stdout, plain.stderr)
    assert len(place.events("hooked")) == 1


def test_a_sitecustomize_that_exits_does_so(place: Place) -> None:
    env = _customized(place, "raise SystemExit(2)")
    script = place.script("print('hi')")
    plain = subprocess.run(script, env={**place.environ, **env}, cwd=place.root, capture_output=True)
    done = place.run("--max-failures", "1", *script, env=env)
    assert (done.code, done.out) == (plain.returncode, plain.stdout)


# PYTHONPATH


@pytest.mark.parametrize("path", ["{0}", "{0}:{0}/more", ":{0}", "{0}:", "{0}::{0}/more", "relative", ""])
def test_the_users_pythonpath_stays(place: Place, path: str) -> None:
    (place.root / "more").mkdir()
    env = {"PYTHONPATH": path.format(place.root)}
    script = [PYTHON, place.write("more/probe.py", PROBE)]
    plain, supervised = _plain(script, place, env), _supervised(script, place, env)
    assert supervised["path"] == plain["path"]
    ours, *rest = supervised["environ"]["PYTHONPATH"].split(os.pathsep)
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


@pytest.mark.parametrize("how", ["truncated", "gone", "no attach", "attach raises", "attach exits"])
def test_whatever_is_wrong_with_our_part_the_script_runs(place: Place, how: str) -> None:
    place.run("--max-failures", "1", *place.script("raise SystemExit(9)"))
    boot = place.run_dir / "boot.zip"
    _damage(boot, how)
    environ = {
        **place.environ,
        "KSUPERVISE_BOOT": str(boot),
        "PYTHONPATH": str(boot),
        "KSUPERVISE_ADDRESS": "@nobody",
        "KSUPERVISE_RUN_DIR": str(place.run_dir),
        "KSUPERVISE_LOCK_FD": "200",
    }
    script = [PYTHON, place.write("plain.py", "import sys; print('hi', [p for p in sys.path if 'boot' in p])")]
    done = subprocess.run(script, env=environ, capture_output=True, cwd=place.root)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"hi")


def _damage(boot: Path, how: str) -> None:
    import zipfile

    if how == "truncated":
        boot.write_bytes(boot.read_bytes()[:5000])
    elif how == "gone":
        boot.unlink()
    else:
        with zipfile.ZipFile(boot) as packed:
            files = {name: packed.read(name) for name in packed.namelist()}
        del files["ksupervise/child/attach.py"]
        if how != "no attach":
            files["ksupervise/child/attach.py"] = b"raise SystemError" if how == "attach raises" else b"x: ="
        with zipfile.ZipFile(boot, "w") as packed:
            for name, data in files.items():
                packed.writestr(name, data)


@pytest.mark.parametrize("address", ["@nobody-listens", "", "@", "/no/such/socket", "@" + "x" * 500, "\N{SNOWMAN}"])
def test_an_environment_that_outlived_its_run_harms_nobody(place: Place, address: str) -> None:
    place.run("true")
    environ = {
        **place.environ,
        "KSUPERVISE_BOOT": str(place.run_dir / "boot.zip"),
        "PYTHONPATH": str(place.run_dir / "boot.zip"),
        "KSUPERVISE_ADDRESS": address,
        "KSUPERVISE_RUN_DIR": str(place.run_dir),
        "KSUPERVISE_LOCK_FD": "junk",
    }
    done = subprocess.run([PYTHON, "-c", "print('hi')"], env=environ, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi\n", b"")


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
    plain = subprocess.run(script, env=place.environ, cwd=place.root, capture_output=True)
    done = place.run("--quiet", *script)
    assert (done.code, done.out, done.err) == (plain.returncode, plain.stdout, plain.stderr)


def test_a_virtual_environment_is_its_own(place: Place) -> None:
    """A foreign environment needs no installation of ours."""
    other = [path for path in _interpreters() if "/3.12." in path]
    if not other or sys.version_info[:2] == (3, 12):
        pytest.skip("there is no second Python")
    subprocess.run([other[0], "-m", "venv", "--without-pip", place.root / "venv"], check=True)
    python = str(place.root / "venv/bin/python")
    command = [python, place.write("probe.py", PROBE)]
    plain, supervised = _plain(command, place, {}), _supervised(command, place, {})
    assert supervised["path"] == plain["path"]
    assert supervised["prefix"] == plain["prefix"] == str(place.root / "venv")
    assert place.events("hooked")[0]["python"].startswith("3.12.")


def test_the_child_is_told_which_run_and_attempt_it_is(place: Place) -> None:
    source = (
        "import os; print(*[os.environ[f'KSUPERVISE_{n}'] for n in ('RUN', 'ATTEMPT', 'RUN_DIR')]); raise SystemExit(9)"
    )
    done = place.run("--name", "mine", "--max-failures", "2", *place.script(source))
    run = place.store / "mine"
    assert done.out.decode().splitlines() == [f"mine 1 {run}", f"mine 2 {run}"]


def test_a_stopped_script_leaves_through_its_own_handler(place: Place) -> None:
    """Where the script handles SIGTERM itself, its handler is what runs."""
    import signal

    parent = place.start(*place.script(LEAVER))
    parent.line("ready")
    parent.send(signal.SIGTERM)
    assert parent.wait().out == b"ready\ngot SIGTERM\n"
