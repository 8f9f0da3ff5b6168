"""A store that cannot be written is said so, with what to do, and costs nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .helpers import Place, call

TRAIN = "print('trained')"


def _refused(place: Place, store: Path | str) -> str:
    done = place.run("--store", str(store), *place.script(TRAIN), store=False)
    assert done.code == 126
    assert done.out == b""
    assert len(done.ours) == len(done.err.splitlines()) == 1
    return done.ours[0]


def test_the_store_is_a_file(place: Place) -> None:
    path = place.write("file", "precious")
    line = _refused(place, path)
    assert path in line
    assert "choose another place with --store" in line
    assert Path(path).read_text() == "precious"


def test_the_store_lies_below_a_file(place: Place) -> None:
    place.write("file", "precious")
    _refused(place, place.root / "file" / "deeper" / "store")


def test_the_run_is_a_file(place: Place) -> None:
    place.store.mkdir()
    (place.store / "mine").write_text("precious")
    done = place.run("--name", "mine", *place.script(TRAIN))
    assert done.code == 126
    assert (place.store / "mine").read_text() == "precious"


@pytest.mark.parametrize("store", ["/proc/ksupervise", "/sys/ksupervise", "/dev/null/store"])
def test_the_store_cannot_be_made(place: Place, store: str) -> None:
    assert os.path.dirname(store) in _refused(place, store)


def test_a_dangling_link(place: Place) -> None:
    (place.root / "link").symlink_to(place.root / "nowhere" / "at" / "all")
    _refused(place, place.root / "link")


@pytest.mark.parametrize("name", ["checkpoints", "tmp", "lock", "journal.jsonl", "boot.zip", "attempts/001/output.log"])
def test_something_is_in_the_way(place: Place, name: str) -> None:
    """A file where a directory is needed, or the other way round."""
    path = place.store / "mine" / name
    path.parent.mkdir(parents=True)
    if name in ("checkpoints", "tmp"):
        path.write_text("")
    else:
        path.mkdir()
    done = place.run("--name", "mine", *place.script(TRAIN))
    assert done.code == 126
    assert done.out == b""
    assert done.said(str(path.parent))
    assert b"Traceback" not in done.err
    assert place.marked() == []


@pytest.mark.parametrize(
    "name", ["with spaces", "ünï 日本", "a'b\"c$d", "-dash", "x" * 255, "%s{}", "semi;colon", "back\\slash", "\udcff"]
)
def test_any_name_of_a_directory_will_do(place: Place, name: str) -> None:
    store = place.root / name
    done = place.run(
        f"--store={store}", *place.script("import sys; print('sitecustomize' in sys.modules)"), store=False
    )
    assert done.code == 0
    assert done.said("no Keras was imported"), "the hook did not arrive"
    report = call("status", f"--store={store}")
    assert report.code == 0
    assert b"completed" in report.out


def test_a_colon_in_the_path_would_part_pythonpath(place: Place) -> None:
    """boot.zip goes onto PYTHONPATH, which has no way to quote: better said than unhooked."""
    done = place.run("--store", str(place.root / "12:30"), *place.script(TRAIN), store=False)
    assert done.code == 2
    assert done.said("':'")
    assert not (place.root / "12:30").exists()


def test_a_very_long_path(place: Place) -> None:
    store = place.root.joinpath(*["d" * 200] * 15)
    done = place.run("--store", str(store), *place.script(TRAIN), store=False)
    assert (done.code, done.out) == (0, b"trained\n")
    assert done.said("no Keras was imported")


@pytest.mark.parametrize("store", ["x" * 256, "/".join(["d" * 200] * 25)])
def test_a_path_that_is_too_long(place: Place, store: str) -> None:
    assert "File name too long" in _refused(place, place.root / store)


def test_a_relative_store_is_the_callers(place: Place) -> None:
    place.run("--store", "here", "sh", "-c", "cd /; pwd", store=False)
    assert (place.root / "here").is_dir()


def test_a_store_through_a_link(place: Place) -> None:
    (place.root / "real").mkdir()
    (place.root / "link").symlink_to("real")
    done = place.run("--store", "link/../link", *place.script(TRAIN), store=False)
    assert (done.code, done.out) == (0, b"trained\n")
    assert done.said("no Keras was imported")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a tiny file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.decode()}")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def _fill(place: Path, leave: int = 0) -> None:
    with open(place / "ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            ballast.truncate(ballast.tell() - leave)


def test_a_full_disk(place: Place, tiny: Path) -> None:
    _fill(tiny)
    line = _refused(place, tiny / "store")
    assert "Free some space on that disk" in line


def test_a_disk_that_is_full_before_the_boot_zip(place: Place, tiny: Path) -> None:
    _fill(tiny, leave=8192)
    done = place.run("--store", str(tiny / "store"), *place.script(TRAIN), store=False)
    assert done.code == 126
    assert b"Traceback" not in done.err
    assert done.said("Free some space")


def test_a_disk_that_fills_up_ends_no_script(place: Place, tiny: Path) -> None:
    """Neither log nor journal nor verdict can be written any more: the output and the exit code come all the same."""
    source = f"""
import os
with open({str(tiny / "ballast")!r}, "wb", buffering=0) as ballast:
    try:
        while True: ballast.write(bytes(4096))
    except OSError:
        pass
os.write(1, b"x" * 100_000)
"""
    done = place.run("--store", str(tiny / "store"), *place.script(source), store=False)
    assert (done.code, len(done.out)) == (0, 100_000)
    assert b"Traceback" not in done.err
    (tiny / "ballast").unlink()
    assert call("status", "--store", str(tiny / "store")).code == 0


def test_a_disk_that_fills_up_is_said_between_attempts(place: Place, tiny: Path) -> None:
    source = f"""
with open({str(tiny / "ballast")!r}, "wb", buffering=0) as ballast:
    try:
        while True: ballast.write(bytes(4096))
    except OSError:
        pass
raise SystemExit(1)
"""
    script = place.script(source)
    done = place.run("--store", str(tiny / "store"), *script, store=False)
    assert done.code == 126
    assert done.said("Free some space")
    assert b"Traceback" not in done.err
    (tiny / "ballast").unlink()
    place.write("script.py", TRAIN)
    again = place.run("--store", str(tiny / "store"), *script, store=False)
    assert (again.code, again.out) == (0, b"trained\n"), "with room again the same command goes on"


def test_a_store_that_goes_away(place: Place) -> None:
    """Somebody removes it under a running script: its output and its exit code come all the same."""
    done = place.run(*place.script(f"import shutil; shutil.rmtree({str(place.store)!r}); print('trained')"))
    assert done.out == b"trained\n"
    assert b"Traceback" not in done.err
    assert done.code == 0
